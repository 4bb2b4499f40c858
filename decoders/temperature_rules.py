"""The temperature rules: how hot the law is, by its entropy.

They stand anywhere in a list of rules. Each reads the entropy of the law so far, renormalised to the
support so far at the temperature so far, and multiplies the temperature of everything that follows:
of the rules behind it and of the draw. At temperature 1 the factor is the temperature.

A temperature of 0 stays 0. No rule ever gives 0: what it gives is kept between 1e-30 and 1e30. A law
as cold as that has only its most likely tokens, all equally likely.

    [MinP(0.1), DynamicTemperature(0.5, 1.5)]     the entropy of what min-p leaves; min-p at the call's
    [DynamicTemperature(0.5, 1.5), MinP(0.1)]     the entropy of the whole law; min-p at the new one
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from warpdraft.kernels.entropy_temperature import (
    count_reference,
    dynamic,
    dynamic_reference,
    entropy_dependent,
    entropy_dependent_reference,
    entropy_reference,
    hapo,
    hapo_reference,
    heated,
    heated_reference,
)
from warpdraft.kernels.row_stats import Row
from warpdraft.kernels.support import Support

from .abstract_rules import Rule
from .parameters import (
    NOT_NEGATIVE,
    POSITIVE,
    NamedParameter,
    Parameter,
    Range,
    check_parameter,
)


class TemperatureRule(Rule):
    """A rule that multiplies the temperature of what follows and keeps every token."""

    __slots__ = ()

    accepted: ClassVar[dict[str, Range]]

    def __post_init__(self) -> None:
        for name, value, accepted, _ in self.parameters:
            check_parameter(name, value, accepted)

    @property
    def parameters(self) -> tuple[NamedParameter, ...]:
        """All fields, in their order."""
        return tuple(
            NamedParameter(name, getattr(self, name), accepted)
            for name, accepted in self.accepted.items()
        )

    def apply_row(self, row: Row, temperature: float, values: Sequence[float]) -> float:
        """The temperature of what follows in one row."""
        return heated(temperature, self._row_factor(row, temperature, values))

    def apply(
        self, logits: Tensor, support: Support, temperature: Tensor, values: Sequence[Tensor]
    ) -> tuple[Support, Tensor]:
        """The temperatures of what follows in a batch."""
        entropy = entropy_reference(logits, support, temperature)
        factor = self.factor(entropy, count_reference(logits, support), values)
        return support, heated_reference(temperature, factor)

    @abstractmethod
    def factor(self, entropy: Tensor, count: Tensor, values: Sequence[Tensor]) -> Tensor:
        """What the temperatures of a batch are multiplied by.

        Args:
            entropy: float64 `[batch]`, of the law so far in nats.
            count: float64 `[batch]`, the tokens of the support so far.
            values: float64 `[batch]` of every parameter.
        """

    @abstractmethod
    def _row_factor(self, row: Row, temperature: float, values: Sequence[float]) -> float: ...


def change_temperature(rules: Sequence[Rule]) -> bool:
    """Whether the draw has another temperature than the call."""
    return any(isinstance(rule, TemperatureRule) for rule in rules)


@dataclass(frozen=True, slots=True)
class DynamicTemperature(TemperatureRule):
    """Dynamic temperature, as in llama.cpp and text-generation-webui.

    The factor goes from `minimum` for a certain law to `maximum` for a uniform one, by the share of
    the largest entropy that a support of so many tokens can have. llama.cpp states the two as its
    temperature less and plus a range.

    Args:
        minimum: above 0.
        maximum: at least `minimum`.
        exponent: above 0; the share's power, 1 is linear, more is colder.

    Raises:
        ValueError: a number outside its range, or a `minimum` above `maximum`.
        TypeError: a parameter that is neither a number nor a tensor of numbers.
    """

    minimum: Parameter
    maximum: Parameter
    exponent: Parameter = 1.0

    accepted: ClassVar[dict[str, Range]] = {
        "minimum": POSITIVE,
        "maximum": POSITIVE,
        "exponent": POSITIVE,
    }

    def __post_init__(self) -> None:
        TemperatureRule.__post_init__(self)
        if isinstance(self.minimum, Tensor) or isinstance(self.maximum, Tensor):
            return
        if self.minimum > self.maximum:
            raise ValueError(
                f"minimum must be in (0, maximum = {self.maximum}], got {self.minimum}"
            )

    def validity(self, values: Sequence[Tensor]) -> Tensor:
        """As for every rule, and `minimum` at most `maximum`."""
        return TemperatureRule.validity(self, values) & (values[0] <= values[1])

    def factor(self, entropy: Tensor, count: Tensor, values: Sequence[Tensor]) -> Tensor:
        """See `TemperatureRule`."""
        return dynamic_reference(entropy, count, *values)

    def _row_factor(self, row: Row, temperature: float, values: Sequence[float]) -> float:
        return dynamic(row, temperature, *values)


@dataclass(frozen=True, slots=True)
class EntropyDependentTemperature(TemperatureRule):
    """EDT: the factor `maximum * base ** (theta / entropy)` (arXiv 2403.14541).

    The paper's T0 is `maximum`, and its entropy that of the law at temperature 1.

    Args:
        theta: at least 0; more is colder, 0 is `maximum` everywhere.
        maximum: above 0, what high entropy comes near.
        base: in (0, 1]; the paper's N.
    """

    theta: Parameter
    maximum: Parameter = 1.0
    base: Parameter = 0.8

    accepted: ClassVar[dict[str, Range]] = {
        "theta": NOT_NEGATIVE,
        "maximum": POSITIVE,
        "base": Range(0.0, 1.0, low_included=False),
    }

    def factor(self, entropy: Tensor, count: Tensor, values: Sequence[Tensor]) -> Tensor:
        """See `TemperatureRule`."""
        return entropy_dependent_reference(entropy, *values)

    def _row_factor(self, row: Row, temperature: float, values: Sequence[float]) -> float:
        return entropy_dependent(row, temperature, *values)


@dataclass(frozen=True, slots=True)
class HapoTemperature(TemperatureRule):
    """HAPO's adaptive temperature: up to `strength` hotter or colder (arXiv 2509.16591).

    How far the logarithm of the entropy lies from the median of the training step before, in that
    step's standard deviations times a scale, at most 1 either way, says which share of `strength`.

    Args:
        median: of the logarithms of the entropies in nats.
        std: their standard deviation, at least 0.
        positive_scale: at least 0, of distances above the median.
        negative_scale: at least 0, of those below.
        strength: in [0, 1), the authors' tau.
    """

    median: Parameter
    std: Parameter
    positive_scale: Parameter
    negative_scale: Parameter
    strength: Parameter = 0.05

    accepted: ClassVar[dict[str, Range]] = {
        "median": Range(-math.inf, math.inf, low_included=False, high_included=False),
        "std": NOT_NEGATIVE,
        "positive_scale": NOT_NEGATIVE,
        "negative_scale": NOT_NEGATIVE,
        "strength": Range(0.0, 1.0, high_included=False),
    }

    def factor(self, entropy: Tensor, count: Tensor, values: Sequence[Tensor]) -> Tensor:
        """See `TemperatureRule`."""
        return hapo_reference(entropy, *values)

    def _row_factor(self, row: Row, temperature: float, values: Sequence[float]) -> float:
        return hapo(row, temperature, *values)
