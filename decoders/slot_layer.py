"""A cache layer of fixed shape: keys and values stand in slots, and every call says which of them it fills.

Nothing is allocated after the first call, no shape depends on how long a text is, and nothing is read back to the host:
what a compiled model and a CUDA graph need.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers.cache_utils import CacheLayerMixin


@dataclass(slots=True)
class Place:
    """Where a call writes, and what it attends to; one for all layers of a cache.

    Attributes:
        capacity: slots of a row.
        slots: `[rows, n]` int64, one slot for each new token.
        width: the first so many slots are attended to.
    """

    capacity: int
    slots: Tensor
    width: int


@cache
def slot_layer() -> type[CacheLayerMixin]:
    """The class of the layers; made when first asked for, because its base is transformers'."""
    from transformers.cache_utils import CacheLayerMixin

    class SlotLayer(CacheLayerMixin):
        """Keys and values `[rows, heads, capacity, size]`."""

        is_compileable = True
        is_sliding = False

        def __init__(self, place: Place) -> None:
            super().__init__()  # type: ignore[no-untyped-call]
            self.place = place

        def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
            """Zeros: a slot that nothing was written to is masked, and a mask does not hide NaN."""
            self.keys = _room(key_states, self.place.capacity)
            self.values = _room(value_states, self.place.capacity)
            self.is_initialized = True

        def update(
            self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
        ) -> tuple[Tensor, Tensor]:
            """Write states `[rows, heads, n, size]` to the call's slots; all keys and values that it attends to."""
            if not self.is_initialized:
                self.lazy_initialization(key_states, value_states)
            assert self.keys is not None
            assert self.values is not None
            place = self.place
            write_inplace(self.keys, place.slots, key_states)
            write_inplace(self.values, place.slots, value_states)
            if place.width == place.capacity:
                return self.keys, self.values
            return self.keys[:, :, : place.width], self.values[:, :, : place.width]

        def get_seq_length(self, *args: Any) -> int:
            """Texts of different lengths have no common one; positions and masks are given with every call."""
            return 0

        def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
            """Width and offset of the mask."""
            return self.place.width, 0

        def get_max_length(self) -> int:
            """Slots of a row."""
            return self.place.capacity

    return SlotLayer


def write_inplace(states: Tensor, slots: Tensor, new: Tensor) -> None:
    """Put `new` `[rows, heads, n, size]` into the slots `[rows, n]` of `states` `[rows, heads, capacity, size]`."""
    slots = slots.to(states.device)
    if len(slots) == 1:
        states.index_copy_(2, slots[0], new)
        return
    index = slots[:, None, :, None].expand(-1, new.shape[1], -1, new.shape[3])
    states.scatter_(2, index, new)


def _room(states: Tensor, capacity: int) -> Tensor:
    room = states.new_zeros(*states.shape[:2], capacity, states.shape[3])
    if room.device.type == "cuda":
        # a CUDA graph then writes here, and not to a copy of its own
        torch._dynamo.mark_static_address(room)
    return room
