"""The truncation rules: which tokens may be drawn.

A rule sees the law of a row renormalised to the support so far, at the temperature so far: that of
the call, unless one of temperature_rules.py has changed it. A truncation rule narrows the support.
Its fields are named as in `generate`; their defaults are the documentation.
A parameter may be a number for all rows, checked here, or a tensor `[batch]`, checked by dtype and
shape (values outside the range set `.status`).

Every prefix rule keeps a prefix of the order logit descending, then token id ascending:

    ties                "lowest_id" cuts between equal logits where the rule says so;
                        "all" keeps every token that equals the last kept one
    min_tokens_to_keep  lowers the rule's threshold to that token of its support
"""

from __future__ import annotations

import functools
import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias, cast

import torch
from torch import Tensor

from warpdraft.kernels.epsilon import epsilon, epsilon_reference
from warpdraft.kernels.eta import eta, eta_reference
from warpdraft.kernels.min_p import min_p, min_p_reference
from warpdraft.kernels.p_less import p_less, p_less_reference
from warpdraft.kernels.row_stats import Row
from warpdraft.kernels.support import (
    Support,
    compute_dtype,
    intersect,
    threshold_support,
    union,
)
from warpdraft.kernels.top_a import top_a, top_a_reference
from warpdraft.kernels.top_h import (
    top_h,
    top_h_reference,
    top_h_transformers,
    top_h_transformers_reference,
)
from warpdraft.kernels.top_k import top_k, top_k_reference
from warpdraft.kernels.top_n_sigma import top_n_sigma, top_n_sigma_reference
from warpdraft.kernels.top_p import top_p, top_p_reference
from warpdraft.kernels.typical import typical, typical_reference

Ties: TypeAlias = Literal["lowest_id", "all"]
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
    numeric = int if integer else (int, float)
    if isinstance(value, bool) or not isinstance(value, numeric):
        raise TypeError(f"{name} must be {kind} or a tensor [batch], got {value!r}")
    if not accepted.holds(value):
        raise ValueError(f"{name} must be in {accepted}, got {value!r}")


def rows_of(name: str, value: Parameter, batch: int, device: torch.device) -> Tensor:
    """A parameter as float64 `[batch]` on the device of the logits."""
    if not isinstance(value, Tensor):
        return torch.full((batch,), float(value), dtype=torch.float64, device=device)
    if value.device != device:
        raise ValueError(f"{name} is on {value.device}, the logits are on {device}")
    if value.ndim == 1 and value.shape[0] != batch:
        raise ValueError(f"{name} must have shape [{batch}], got {list(value.shape)}")
    return value.detach().double().expand(batch)


def values_of(rule: Rule, batch: int, device: torch.device) -> tuple[Tensor, ...]:
    """The parameters of a rule as float64 `[batch]` on the device of the logits."""
    return tuple(
        rows_of(parameter.name, parameter.value, batch, device) for parameter in rule.parameters
    )


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


class Rule(ABC):
    """What a list of rules holds: it narrows the support, or sets the temperature of what follows."""

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
        for name, value, accepted, integer in self.parameters:
            check_parameter(name, value, accepted, integer=integer)
        keep = self.min_tokens_to_keep
        if isinstance(keep, bool) or not isinstance(keep, int):
            raise TypeError(f"min_tokens_to_keep must be an integer, got {keep!r}")
        if keep < 1:
            raise ValueError(f"min_tokens_to_keep must be at least 1, got {keep}")
        self._check_choices()

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


@dataclass(frozen=True, slots=True)
class TopH(TruncationRule):
    """The longest prefix whose entropy is at most `alpha` times the row's (arXiv 2509.02510).

    Args:
        alpha: above 0; at 1 and above everything is kept.
        variant: "paper" is Algorithm 1 over the full vocabulary; "transformers" is the rule of
            `TopHLogitsWarper`, a partial sum over the first 100 tokens, with alpha in (0, 1].
        ties: see the module.
        min_tokens_to_keep: see the module.
    """

    alpha: Parameter = 0.4
    variant: Literal["paper", "transformers"] = "paper"
    ties: Ties = "lowest_id"
    min_tokens_to_keep: int = 1

    parameter: ClassVar[str | None] = "alpha"
    accepted: ClassVar[Range] = Range(0, math.inf, low_included=False)

    @property
    def range(self) -> Range:
        """(0, 1] for variant="transformers"."""
        return self.accepted if self.variant == "paper" else Range(0, 1, low_included=False)

    def _check_choices(self) -> None:
        TruncationRule._check_choices(self)
        if self.variant not in ("paper", "transformers"):
            raise ValueError(f"variant must be 'paper' or 'transformers', got {self.variant!r}")

    def _row_threshold(self, row: Row, temperature: float, value: float) -> tuple[float, int]:
        rule = top_h if self.variant == "paper" else top_h_transformers
        return rule(row, temperature, value)

    def _threshold(
        self, logits: Tensor, support: Support, temperature: Tensor, value: Tensor
    ) -> Support:
        rule = top_h_reference if self.variant == "paper" else top_h_transformers_reference
        return rule(logits, support, temperature, value)


@dataclass(frozen=True, slots=True)
class MinP(ThresholdRule):
    """Tokens at least `min_p` times as likely as the most likely one (arXiv 2407.01082).

    Args:
        min_p: in [0, 1].
        ties: see the module.
        min_tokens_to_keep: see the module.
    """

    min_p: Parameter = 0.1
    ties: Ties = "lowest_id"
    min_tokens_to_keep: int = 1

    parameter: ClassVar[str | None] = "min_p"
    accepted: ClassVar[Range] = Range(0, 1)

    def _row_least(self, row: Row, temperature: float, value: float) -> float:
        return min_p(row, temperature, value)

    def _least(
        self, logits: Tensor, support: Support, temperature: Tensor, value: Tensor
    ) -> Tensor:
        return min_p_reference(logits, support, temperature, value)


@dataclass(frozen=True, slots=True)
class TopK(TruncationRule):
    """The first `top_k` tokens (arXiv 1805.04833).

    Args:
        top_k: an integer, at least 1.
        ties: see the module; transformers keeps all.
        min_tokens_to_keep: see the module.
    """

    top_k: int | Tensor = 50
    ties: Ties = "lowest_id"
    min_tokens_to_keep: int = 1

    parameter: ClassVar[str | None] = "top_k"
    accepted: ClassVar[Range] = Range(1, math.inf)
    integer: ClassVar[bool] = True

    def _row_threshold(self, row: Row, temperature: float, value: float) -> tuple[float, int]:
        return top_k(row, int(value))

    def _threshold(
        self, logits: Tensor, support: Support, temperature: Tensor, value: Tensor
    ) -> Support:
        return top_k_reference(logits, support, value)


@dataclass(frozen=True, slots=True)
class TopP(TruncationRule):
    """The shortest prefix that holds `top_p` of the mass (arXiv 1904.09751).

    Args:
        top_p: in [0, 1].
        ties: see the module.
        min_tokens_to_keep: see the module.
    """

    top_p: Parameter = 0.9
    ties: Ties = "lowest_id"
    min_tokens_to_keep: int = 1

    parameter: ClassVar[str | None] = "top_p"
    accepted: ClassVar[Range] = Range(0, 1)

    def _row_threshold(self, row: Row, temperature: float, value: float) -> tuple[float, int]:
        return top_p(row, temperature, value)

    def _threshold(
        self, logits: Tensor, support: Support, temperature: Tensor, value: Tensor
    ) -> Support:
        return top_p_reference(logits, support, temperature, value)


@dataclass(frozen=True, slots=True)
class TopNSigma(ThresholdRule):
    """Logits within `n_sigma` standard deviations of the largest (arXiv 2411.07641).

    Args:
        n_sigma: at least 0.
        ties: see the module.
        min_tokens_to_keep: see the module.
    """

    n_sigma: Parameter = 1.0
    ties: Ties = "lowest_id"
    min_tokens_to_keep: int = 1

    parameter: ClassVar[str | None] = "n_sigma"
    accepted: ClassVar[Range] = Range(0, math.inf, high_included=False)

    def _row_least(self, row: Row, temperature: float, value: float) -> float:
        return top_n_sigma(row, value)

    def _least(
        self, logits: Tensor, support: Support, temperature: Tensor, value: Tensor
    ) -> Tensor:
        return top_n_sigma_reference(logits, support, value)


@dataclass(frozen=True, slots=True)
class Epsilon(ThresholdRule):
    """Tokens with a probability of at least `epsilon_cutoff` (arXiv 2210.15191).

    Args:
        epsilon_cutoff: in [0, 1).
        ties: see the module.
        min_tokens_to_keep: see the module.
    """

    epsilon_cutoff: Parameter = 3e-4
    ties: Ties = "lowest_id"
    min_tokens_to_keep: int = 1

    parameter: ClassVar[str | None] = "epsilon_cutoff"
    accepted: ClassVar[Range] = Range(0, 1, high_included=False)

    def _row_least(self, row: Row, temperature: float, value: float) -> float:
        return epsilon(row, temperature, value)

    def _least(
        self, logits: Tensor, support: Support, temperature: Tensor, value: Tensor
    ) -> Tensor:
        return epsilon_reference(logits, support, temperature, value)


@dataclass(frozen=True, slots=True)
class Eta(ThresholdRule):
    """Tokens with a probability of at least min(eta_cutoff, sqrt(eta_cutoff) exp(-entropy)).

    From arXiv 2210.15191.

    Args:
        eta_cutoff: in [0, 1), the epsilon of the paper's formula.
        ties: see the module.
        min_tokens_to_keep: see the module.
    """

    eta_cutoff: Parameter = 3e-4
    ties: Ties = "lowest_id"
    min_tokens_to_keep: int = 1

    parameter: ClassVar[str | None] = "eta_cutoff"
    accepted: ClassVar[Range] = Range(0, 1, high_included=False)

    def _row_least(self, row: Row, temperature: float, value: float) -> float:
        return eta(row, temperature, value)

    def _least(
        self, logits: Tensor, support: Support, temperature: Tensor, value: Tensor
    ) -> Tensor:
        return eta_reference(logits, support, temperature, value)


@dataclass(frozen=True, slots=True)
class TopA(ThresholdRule):
    """Tokens with a probability of at least `top_a` times the square of the largest.

    Args:
        top_a: in [0, 1].
        ties: see the module.
        min_tokens_to_keep: see the module.
    """

    top_a: Parameter = 0.2
    ties: Ties = "lowest_id"
    min_tokens_to_keep: int = 1

    parameter: ClassVar[str | None] = "top_a"
    accepted: ClassVar[Range] = Range(0, 1)

    def _row_least(self, row: Row, temperature: float, value: float) -> float:
        return top_a(row, temperature, value)

    def _least(
        self, logits: Tensor, support: Support, temperature: Tensor, value: Tensor
    ) -> Tensor:
        return top_a_reference(logits, support, temperature, value)


@dataclass(frozen=True, slots=True)
class PLess(ThresholdRule):
    """Tokens with a probability of at least the sum of all squared probabilities (2509.23234).

    Args:
        normalized: compare with that sum's excess over a uniform law instead (p-less-norm).
        ties: see the module.
        min_tokens_to_keep: see the module.
    """

    normalized: bool = False
    ties: Ties = "lowest_id"
    min_tokens_to_keep: int = 1

    parameter: ClassVar[str | None] = None
    accepted: ClassVar[Range] = Range(0, 0)

    def _check_choices(self) -> None:
        TruncationRule._check_choices(self)
        if not isinstance(self.normalized, bool):
            raise TypeError(f"normalized must be True or False, got {self.normalized!r}")

    def _row_least(self, row: Row, temperature: float, value: float) -> float:
        return p_less(row, temperature, normalized=self.normalized)

    def _least(
        self, logits: Tensor, support: Support, temperature: Tensor, value: Tensor
    ) -> Tensor:
        return p_less_reference(logits, support, temperature, normalized=self.normalized)


@dataclass(frozen=True, slots=True)
class Typical(TruncationRule):
    """The tokens whose surprise is closest to the entropy, up to a mass (arXiv 2202.00666).

    Keeps an interval of logits, which may miss the largest; takes tokens of equal distance together.

    Args:
        typical_p: in (0, 1].
        ties: "all" only.
        min_tokens_to_keep: the closest tokens, at least so many.
    """

    typical_p: Parameter = 0.9
    ties: Ties = "all"
    min_tokens_to_keep: int = 1

    parameter: ClassVar[str | None] = "typical_p"
    accepted: ClassVar[Range] = Range(0, 1, low_included=False)

    def narrow_row(self, row: Row, temperature: float, value: float) -> None:
        """Narrow the support of one row on the CPU to an interval."""
        least, upper = typical(row, temperature, value, min_tokens_to_keep=self.min_tokens_to_keep)
        row.narrow(least, row.vocab - 1, upper)

    def narrow(
        self, logits: Tensor, support: Support, temperature: Tensor, value: Tensor
    ) -> Support:
        """The narrowed support of a batch on any device: an interval, which no top token extends."""
        return intersect(support, self._threshold(logits, support, temperature, value))

    def _check_choices(self) -> None:
        if self.ties != "all":
            raise ValueError(f"Typical takes only ties='all', got {self.ties!r}")

    def _row_threshold(self, row: Row, temperature: float, value: float) -> tuple[float, int]:
        raise AssertionError("an interval is no threshold")

    def _threshold(
        self, logits: Tensor, support: Support, temperature: Tensor, value: Tensor
    ) -> Support:
        found = typical_reference(
            logits,
            support,
            temperature,
            value,
            min_tokens_to_keep=self.min_tokens_to_keep,
        )
        dtype = compute_dtype(logits.dtype)
        return Support(found.value.to(dtype), found.index, found.upper.to(dtype))
