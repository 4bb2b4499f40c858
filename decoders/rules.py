"""The truncation rules: which tokens may be drawn.

A rule sees the law of a row renormalised to the support so far, at the temperature so far: that of
the call, unless one of temperature_rules.py has changed it. A truncation rule narrows the support.
Its fields are named as in `generate`; their defaults are the documentation.
A parameter may be a number for all rows, checked here, or a tensor `[batch]`, checked by dtype and
shape (values outside the range set `.status`). Making a rule raises ValueError for a number or a
choice outside its range, and TypeError for a parameter that is neither a number nor a tensor of
numbers.

Every prefix rule keeps a prefix of the order logit descending, then token id ascending:

    ties                "lowest_id" cuts between equal logits where the rule says so;
                        "all" keeps every token that equals the last kept one
    min_tokens_to_keep  lowers the rule's threshold to that token of its support
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from warpdraft.kernels.epsilon import epsilon, epsilon_reference
from warpdraft.kernels.eta import eta, eta_reference
from warpdraft.kernels.min_p import min_p, min_p_reference
from warpdraft.kernels.p_less import p_less, p_less_reference
from warpdraft.kernels.row_stats import Row
from warpdraft.kernels.support import Support, compute_dtype, intersect
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

from .abstract_rules import Rule, ThresholdRule, Ties, TruncationRule
from .parameters import NamedParameter, Parameter, Range, check_parameter

__all__ = [
    "Epsilon",
    "Eta",
    "MinP",
    "NamedParameter",
    "PLess",
    "Parameter",
    "Range",
    "Rule",
    "ThresholdRule",
    "Ties",
    "TopA",
    "TopH",
    "TopK",
    "TopNSigma",
    "TopP",
    "TruncationRule",
    "Typical",
    "check_parameter",
]


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

    The kernels sum squares in float32: a support whose logits lie further apart than 1e18 (masked by the least finite
    number in place of -inf, for instance), or nowhere further than 1e-18, has no deviation there.

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
    """Tokens with a probability of at least `top_a` times the square of the largest (KoboldAI's top-a).

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
