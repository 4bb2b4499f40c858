"""What a rule is: its parameters, and what it does to one row or to a batch.

A rule sees the law of a row renormalised to the support so far, at the temperature so far. Every
rule is given twice: for one row on the CPU, and for a batch on any device without synchronising.
"""

from __future__ import annotations

import functools
import operator
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, TypeAlias, cast

import torch
from torch import Tensor

from warpdraft.kernels.row_stats import Row
from warpdraft.kernels.support import (
    Support,
    compute_dtype,
    intersect,
    threshold_support,
    union,
)
from warpdraft.kernels.top_k import top_k, top_k_reference

from .checks import check_integer
from .parameters import NamedParameter, Parameter, Range, check_parameter, rows_of

Ties: TypeAlias = Literal["lowest_id", "all"]


class Rule(ABC):
    """What a list of rules holds: a `TruncationRule`, which narrows the support, or a `TemperatureRule`."""

    __slots__ = ()

    @property
    @abstractmethod
    def parameters(self) -> tuple[NamedParameter, ...]:
        """What may differ from row to row."""

    @property
    def value(self) -> Parameter:
        """The first parameter; 0 for a rule that has none."""
        return self.parameters[0].value if self.parameters else 0.0

    @property
    def has_tensors(self) -> bool:
        """Whether a parameter is a tensor, whose values only the device knows."""
        return any(isinstance(parameter.value, Tensor) for parameter in self.parameters)

    def with_parameters(self, values: Sequence[Parameter]) -> Rule:
        """The rule with other parameters, in the order of `parameters`."""
        names = [parameter.name for parameter in self.parameters]
        changed = dict(zip(names, values, strict=True))
        return cast(Rule, replace(cast(Any, self), **changed))

    def validity(self, values: Sequence[Tensor]) -> Tensor:
        """Which rows have parameters in their ranges, bool `[batch]`, without synchronising.

        Args:
            values: float64 `[batch]` of every parameter; there is at least one.
        """
        held = (
            parameter.accepted.holds_tensor(value)
            for parameter, value in zip(self.parameters, values, strict=True)
        )
        return functools.reduce(operator.and_, held)

    @abstractmethod
    def apply_row(self, row: Row, temperature: float, values: Sequence[float]) -> float:
        """Apply the rule to one row on the CPU.

        Args:
            row: the row and its support so far, which may be narrowed.
            temperature: that so far, above 0.
            values: the parameters for this row.

        Returns:
            The temperature of everything that follows.
        """

    @abstractmethod
    def apply(
        self, logits: Tensor, support: Support, temperature: Tensor, values: Sequence[Tensor]
    ) -> tuple[Support, Tensor]:
        """Apply the rule to a batch on any device, without synchronising.

        Args:
            logits: `[batch, vocab]`.
            support: that so far.
            temperature: `[batch]` float64, that so far, above 0.
            values: `[batch]` float64, the parameters.

        Returns:
            Support and temperature of everything that follows.
        """


class TruncationRule(Rule):
    """A rule with one parameter, or none, that narrows the support."""

    __slots__ = ()

    parameter: ClassVar[str | None]
    accepted: ClassVar[Range]
    integer: ClassVar[bool] = False

    ties: Ties
    min_tokens_to_keep: int

    def __post_init__(self) -> None:
        # the range of a parameter may depend on a choice
        self._check_choices()
        for name, value, accepted, integer in self.parameters:
            check_parameter(name, value, accepted, integer=integer)
        check_integer("min_tokens_to_keep", self.min_tokens_to_keep)

    @property
    def range(self) -> Range:
        """The accepted values of the parameter."""
        return self.accepted

    @property
    def parameters(self) -> tuple[NamedParameter, ...]:
        """The parameter, if there is one."""
        if self.parameter is None:
            return ()
        value = getattr(self, self.parameter)
        return (NamedParameter(self.parameter, value, self.range, self.integer),)

    def apply_row(self, row: Row, temperature: float, values: Sequence[float]) -> float:
        """Narrow the support of one row."""
        self.narrow_row(row, temperature, values[0] if values else 0.0)
        return temperature

    def apply(
        self, logits: Tensor, support: Support, temperature: Tensor, values: Sequence[Tensor]
    ) -> tuple[Support, Tensor]:
        """Narrow the supports of a batch."""
        value = values[0] if values else torch.zeros_like(temperature)
        return self.narrow(logits, support, temperature, value), temperature

    def narrow_row(self, row: Row, temperature: float, value: float) -> None:
        """Narrow the support of one row on the CPU.

        Args:
            row: the row and its support so far.
            temperature: above 0.
            value: the rule's parameter for this row.
        """
        threshold, index = self._row_threshold(row, temperature, value)
        if self.min_tokens_to_keep > 1 or threshold > row.maximum:
            least, last = top_k(row, self.min_tokens_to_keep)
            if least < threshold or (least == threshold and last > index):
                threshold, index = least, last
        row.narrow(threshold, row.vocab - 1 if self.ties == "all" else index)

    def narrow(
        self, logits: Tensor, support: Support, temperature: Tensor, value: Tensor
    ) -> Support:
        """The narrowed support of a batch on any device, without synchronising.

        Args:
            logits: `[batch, vocab]`.
            support: the support so far.
            temperature: `[batch]` float64, above 0.
            value: `[batch]` float64, the rule's parameter.
        """
        kept = self._threshold(logits, support, temperature, value)
        keep = torch.full_like(value, self.min_tokens_to_keep)
        kept = union(kept, top_k_reference(logits, support, keep))
        index = (
            torch.full_like(kept.index, logits.shape[-1] - 1) if self.ties == "all" else kept.index
        )
        # a threshold between two logits is rounded up: the same tokens are above it
        rounded = kept.value.to(compute_dtype(logits.dtype))
        above = torch.nextafter(rounded, torch.full_like(rounded, torch.inf))
        exact = torch.where(rounded < kept.value, above, rounded)
        return intersect(support, Support(exact, index, kept.upper.to(exact.dtype)))

    def _check_choices(self) -> None:
        if self.ties not in ("lowest_id", "all"):
            raise ValueError(f"ties must be 'lowest_id' or 'all', got {self.ties!r}")

    @abstractmethod
    def _row_threshold(self, row: Row, temperature: float, value: float) -> tuple[float, int]: ...

    @abstractmethod
    def _threshold(
        self, logits: Tensor, support: Support, temperature: Tensor, value: Tensor
    ) -> Support: ...


class ThresholdRule(TruncationRule):
    """A rule whose least kept logit follows from sums over the row."""

    __slots__ = ()

    def _row_threshold(self, row: Row, temperature: float, value: float) -> tuple[float, int]:
        # rounding up keeps the same tokens
        return row.round_up(self._row_least(row, temperature, value)), row.vocab - 1

    def _threshold(
        self, logits: Tensor, support: Support, temperature: Tensor, value: Tensor
    ) -> Support:
        least = self._least(logits, support, temperature, value)
        return threshold_support(least, logits.shape[-1])

    @abstractmethod
    def _row_least(self, row: Row, temperature: float, value: float) -> float: ...

    @abstractmethod
    def _least(
        self, logits: Tensor, support: Support, temperature: Tensor, value: Tensor
    ) -> Tensor: ...


def values_of(rule: Rule, batch: int, device: torch.device) -> tuple[Tensor, ...]:
    """The parameters of a rule as float64 `[batch]` on the device of the logits."""
    return tuple(
        rows_of(parameter.name, parameter.value, batch, device) for parameter in rule.parameters
    )
