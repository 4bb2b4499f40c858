"""A cache layer that appends in place: keys and values stand in front of spare slots.

transformers' dynamic layer makes a new tensor of all keys for every call, and needs the old one beside it until then.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from transformers.cache_utils import DynamicLayer

CHUNK = 256
"""Slots are added by this many at a time."""


@cache
def growing_layer() -> type[DynamicLayer]:
    """The class of the layers; made when first asked for, because its base is transformers'."""
    from transformers.cache_utils import DynamicLayer

    class GrowingLayer(DynamicLayer):
        """A dynamic layer whose `keys` and `values` are the front of a room that may have spare slots.

        Where they are not (rows were selected, or the tensors are a caller's), the next update copies them into a room.
        """

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)  # type: ignore[no-untyped-call]
            self._rooms: dict[str, Tensor] = {}

        def update(
            self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
        ) -> tuple[Tensor, Tensor]:
            """Append states `[rows, heads, n, size]`; all keys and values so far."""
            if not self.is_initialized:
                self.lazy_initialization(key_states, value_states)
            assert self.keys is not None
            assert self.values is not None
            self.keys = _append(self._rooms, "keys", self.keys, key_states)
            self.values = _append(self._rooms, "values", self.values, value_states)
            return self.keys, self.values

        def hold(self, keys: Tensor, values: Tensor) -> None:
            """Take other keys and values; a room that they do not stand in front of is given back."""
            self.keys, self.values = keys, values
            for name, states in (("keys", keys), ("values", values)):
                if name in self._rooms and not _is_front(states, self._rooms[name]):
                    del self._rooms[name]

    return GrowingLayer


def _append(rooms: dict[str, Tensor], name: str, states: Tensor, new: Tensor) -> Tensor:
    """The states with the new ones behind them, in the room of that name."""
    used = states.shape[2] if states.ndim == 4 else 0
    total = used + new.shape[2]
    room = rooms.get(name)
    if room is None or room.shape[2] < total or not _is_front(states, room):
        capacity = -(-total // CHUNK) * CHUNK
        room = new.new_empty(*new.shape[:2], capacity, new.shape[3])
        if used:
            room[:, :, :used] = states
        rooms[name] = room
    room[:, :, used:total] = new
    return room[:, :, :total]


def _is_front(states: Tensor, room: Tensor) -> bool:
    """Whether the states are the room's own first slots."""
    return (
        states.data_ptr() == room.data_ptr()
        and states.stride() == room.stride()
        and states.shape[:2] == room.shape[:2]
    )
