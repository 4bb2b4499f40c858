"""Checks at the doors of the public functions: one error that names the argument and what it got.

Tensors are checked by type and layout alone, so that no check waits for a device.
"""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST = (1 << 63) - 1
"""The largest int64: larger integers fit no tensor."""


def check_tensor(name: str, value: object) -> None:
    """TypeError unless `value` is a tensor with strides: lists, arrays and sparse tensors are none."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    if value.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got layout {value.layout}")


def check_integer(name: str, value: object, low: int = 1, high: int = LARGEST) -> None:
    """TypeError unless `value` is an int, and ValueError unless it is in [low, high]; True is no number."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if value < low and high == LARGEST:
        raise ValueError(f"{name} must be at least {low}, got {_shown(value)}")
    if not low <= value <= high:
        raise ValueError(f"{name} must be in [{low}, {high}], got {_shown(value)}")


def _shown(number: int) -> str:
    """Python refuses to write very long integers out."""
    return str(number) if number.bit_length() <= 128 else f"one of {number.bit_length()} bits"


def check_streamer(streamer: object) -> None:
    """TypeError unless `streamer` is None or takes tokens as transformers' streamers do."""
    methods = [getattr(streamer, name, None) for name in ("put", "end")]
    if streamer is not None and not all(map(callable, methods)):
        raise TypeError(f"streamer must have put() and end(), got {streamer!r}")


def check_device(name: str, value: object) -> torch.device:
    """The device of that name; ValueError for anything that torch takes for none."""
    try:
        return torch.device(value)  # type: ignore[call-overload, no-any-return]
    except (RuntimeError, TypeError):
        raise ValueError(
            f"{name} must be a torch.device or the name of one, such as 'cuda:0', got {value!r}"
        ) from None
