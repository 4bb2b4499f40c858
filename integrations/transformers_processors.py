"""Our rules as logits processors: they choose the support and leave every surviving score as it is.

Only rules that change the temperature move the survivors, by what the call's temperature lacks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor
from transformers import LogitsProcessor

from warpdraft.parameters import POSITIVE, check_number
from warpdraft.rules import MinP, Rule, TopH
from warpdraft.truncation import check_rules, truncate


class _RulesProcessor(LogitsProcessor):
    """Applies rules to `scores / temperature` and hands the surviving scores on untempered.

    Right in every slot before the engine's temperature, `generate`'s custom slot included. There it
    also runs before `top_k` (50 unless `generate` gets `top_k=0`) and `top_p`.
    """

    stateless = True
    context_free = True
    supports_continuous_batching = True

    def __init__(self, rules: Rule | Sequence[Rule], temperature: float) -> None:
        check_number("temperature", temperature, POSITIVE)
        self.rules = check_rules(rules)
        self.temperature = temperature

    @property
    def needs_all_rows(self) -> bool:
        """Whether a parameter is a tensor `[batch]`, which fits plain `generate` alone."""
        values = [value for rule in self.rules for _, value, *_ in rule.parameters]
        return any(isinstance(value, Tensor) and value.ndim > 0 for value in values)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Mask `scores` `[batch, vocab]`: a new tensor, -inf outside the support."""
        return truncate(scores, self.rules, temperature=self.temperature)

    def __repr__(self) -> str:
        rules = ", ".join(map(repr, self.rules))
        return f"{type(self).__name__}({rules}, temperature={self.temperature})"


class RulesLogitsProcessor(_RulesProcessor):
    """Any rules as a logits processor, in their order: truncation rules and temperature rules.

    Args:
        rules: one or several, such as `[DynamicTemperature(0.5, 1.5), MinP(0.1)]`.
        temperature: that of the call; `temperature=` of `generate` divides the scores afterwards,
            which gives the law of the rules whatever temperature they have come to.

    Raises:
        TypeError: a rule is not a rule, or the temperature no number.
        ValueError: the temperature is not positive and finite.
    """

    def __init__(self, rules: Rule | Sequence[Rule], *, temperature: float = 1.0) -> None:
        super().__init__(rules, temperature)


class TopHLogitsProcessor(_RulesProcessor):
    """Top-H as a logits processor: keeps the longest prefix whose entropy is at most alpha times H.

    Args:
        alpha: share of the row's entropy that the kept tokens may have, above 0; 1 keeps all.
        temperature: that of the call; `temperature=` of `generate` divides the scores afterwards.
        variant: "paper" (arXiv 2509.02510, Algorithm 1) or "transformers" (`TopHLogitsWarper`).
        ties: "lowest_id" or "all".
        min_tokens_to_keep: at least so many tokens survive.

    Raises:
        ValueError: for a parameter outside its range.
    """

    def __init__(
        self,
        alpha: float = 0.4,
        *,
        temperature: float = 1.0,
        variant: Literal["paper", "transformers"] = "paper",
        ties: Literal["lowest_id", "all"] = "lowest_id",
        min_tokens_to_keep: int = 1,
    ) -> None:
        rule = TopH(alpha, variant=variant, ties=ties, min_tokens_to_keep=min_tokens_to_keep)
        super().__init__(rule, temperature)


class MinPLogitsProcessor(_RulesProcessor):
    """Min-p as a logits processor: keeps tokens of at least `min_p` times the largest probability.

    Args:
        min_p: in [0, 1] (arXiv 2407.01082).
        temperature: that of the call; `temperature=` of `generate` divides the scores afterwards.
        min_tokens_to_keep: at least so many tokens survive.

    Raises:
        ValueError: for a parameter outside its range.
    """

    def __init__(
        self, min_p: float = 0.1, *, temperature: float = 1.0, min_tokens_to_keep: int = 1
    ) -> None:
        super().__init__(MinP(min_p, min_tokens_to_keep=min_tokens_to_keep), temperature)
