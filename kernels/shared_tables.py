"""Tables of numbers for kernels: copied to a device once, and kept for the graphs that read them."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

# a graph reads its tables where they were when it was captured, however long it is replayed
_TABLES_OF_GRAPHS: dict[tuple[tuple[float, ...], torch.dtype, torch.device], Tensor] = {}


def shared_table(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The numbers `[len(values)]` on a device, in memory that calls share."""
    if device.type != "cuda" or not torch.cuda.is_current_stream_capturing():
        return _copied_table(values, dtype, device)
    try:
        table = _TABLES_OF_GRAPHS[values, dtype, device] = _copied_table(values, dtype, device)
    except _NotInGraphsError:
        # other numbers than those of the warm-up: the graph fills the table each time
        return torch.cat([torch.full((1,), value, dtype=dtype, device=device) for value in values])
    return table


class _NotInGraphsError(RuntimeError):
    """A copy from the host cannot be captured."""


@functools.lru_cache(maxsize=256)
def _copied_table(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A table that is copied to the device once, not at every call."""
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise _NotInGraphsError
    return torch.tensor(values, dtype=dtype, device=device)
