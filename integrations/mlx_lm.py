"""mlx-lm: top-H, min-p and their family as one of its logits processors.

    from mlx_lm import generate, load
    from mlx_lm.sample_utils import make_sampler
    from warpdraft import TopH
    from warpdraft.integrations.mlx_lm import Truncation

    model, tokenizer = load(MODEL)
    processors = [Truncation(TopH(0.4), temperature=1.5)]
    generate(model, tokenizer, "Once", sampler=make_sampler(temp=1.5), logits_processors=processors)

mlx-lm divides by the temperature last, so it is stated twice. The `top_p`, `min_p` and `top_k` of its
own samplers come after our rules and, unlike them, before the temperature. `BatchGenerator.insert`
takes a list of processors a request. The rules run on the CPU, on a copy of the logits: each step
waits for its logits there.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from warpdraft.arguments import TEMPERATURES
from warpdraft.parameters import check_number
from warpdraft.rules import Rule
from warpdraft.truncation import check_rules_of_numbers, truncate

try:
    import mlx.core as mx
except ImportError as error:
    raise ImportError(
        f"warpdraft.integrations.mlx_lm needs mlx ({error}): pip install 'mlx-lm>=0.32', "
        "and 'mlx[cpu]' where there is no Metal"
    ) from error

__all__ = ["Truncation"]


class Truncation:
    """Rules for one request, or for all of them: nothing is remembered.

    Args:
        rules: one rule or several, applied in order.
        temperature: that of the sampler, at least 0.

    Raises:
        TypeError: a rule is not a rule, or a parameter or the temperature no number.
        ValueError: the temperature is negative or not finite; when called, a row holds NaN, +inf
            or nothing finite.
    """

    def __init__(self, rules: Rule | Sequence[Rule], *, temperature: float = 1.0) -> None:
        check_number("temperature", temperature, TEMPERATURES)
        self.rules = check_rules_of_numbers(rules)
        self.temperature = temperature

    def __call__(self, tokens: mx.array, logits: mx.array) -> mx.array:
        """`logits` `[rows, vocab]` with -inf outside the support: a new float32 array."""
        # numpy has no bfloat16
        rows = torch.from_numpy(np.array(logits.astype(mx.float32)))
        return mx.array(truncate(rows, self.rules, temperature=self.temperature).numpy())
