"""Parameters of rules and calls: a number for all rows, or a tensor `[batch]`, in a stated range.

Numbers are checked by value. Tensors are checked by dtype, shape and device alone, for reading their
values would wait for the device: values outside the range set `.status`.
"""

from __future__ import annotations

import math
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from .checks import LARGEST

Parameter: TypeAlias = float | Tensor


class Range(NamedTuple):
    """The accepted values of a parameter."""

    low: float
    high: float
    low_included: bool = True
    high_included: bool = True

    def holds(self, value: float) -> bool:
        """Whether a number lies in the range; NaN lies in none."""
        above = value >= self.low if self.low_included else value > self.low
        below = value <= self.high if self.high_included else value < self.high
        return above and below

    def holds_tensor(self, values: Tensor) -> Tensor:
        """The same for a tensor, without synchronising."""
        above = values >= self.low if self.low_included else values > self.low
        below = values <= self.high if self.high_included else values < self.high
        return above & below

    def __str__(self) -> str:
        left = "[" if self.low_included else "("
        right = "]" if self.high_included else ")"
        return f"{left}{self.low:g}, {self.high:g}{right}"


POSITIVE = Range(0.0, math.inf, low_included=False, high_included=False)
NOT_NEGATIVE = Range(0.0, math.inf, high_included=False)


class NamedParameter(NamedTuple):
    """A parameter of a rule.

    Attributes:
        name: of its field.
        value: a number, or a tensor `[batch]`.
        accepted: the values that it may have.
        integer: whether they are integers.
    """

    name: str
    value: Parameter
    accepted: Range
    integer: bool = False


def check_parameter(name: str, value: object, accepted: Range, *, integer: bool = False) -> None:
    """TypeError or ValueError unless `value` is a number in its range or a tensor `[batch]`."""
    kind = "an integer" if integer else "a number"
    if isinstance(value, Tensor):
        is_integer = not (
            value.is_floating_point() or value.is_complex() or value.dtype == torch.bool
        )
        if not (is_integer or (value.is_floating_point() and not integer)):
            raise TypeError(f"{name} must be {kind} or a tensor of them, got dtype {value.dtype}")
        if value.ndim > 1:
            raise ValueError(f"{name} must have shape [batch], got {list(value.shape)}")
        return
    check_number(name, value, accepted, kind=f"{kind} or a tensor [batch]", integer=integer)


def check_number(
    name: str,
    value: object,
    accepted: Range,
    *,
    kind: str = "a number",
    integer: bool = False,
) -> None:
    """TypeError or ValueError unless `value` is a number of Python's in its range; True is none."""
    numeric = int if integer else (int, float)
    if isinstance(value, bool) or not isinstance(value, numeric):
        raise TypeError(f"{name} must be {kind}, got {value!r}")
    if isinstance(value, int) and abs(value) > LARGEST:
        # as a float it may overflow, and so may its text
        raise ValueError(
            f"{name} must be in {accepted} and fit int64, got an integer of {value.bit_length()} bits"
        )
    if not accepted.holds(value):
        raise ValueError(f"{name} must be in {accepted}, got {value!r}")


def rows_of(name: str, value: Parameter, batch: int, device: torch.device) -> Tensor:
    """A parameter as float64 `[batch]` on the device of the logits; ValueError if it does not fit them."""
    if not isinstance(value, Tensor):
        return torch.full((batch,), float(value), dtype=torch.float64, device=device)
    if value.device != device:
        raise ValueError(f"{name} is on {value.device}, the logits are on {device}")
    if value.ndim == 1 and value.shape[0] != batch:
        raise ValueError(f"{name} must have shape [{batch}], got {list(value.shape)}")
    return value.detach().double().expand(batch)
