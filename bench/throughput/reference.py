"""The kept tokens of a rule list by sorting and scanning in float64: what the gate compares with.

    order the row (logit descending, then token id ascending); every rule keeps a prefix of what is left
    paper top-H: the longest prefix with log S - L / S <= alpha * (the same of the whole),  S = sum w, L = sum w z
    top-p: while the mass before a token is below p;   min-p: w >= min_p;   top-k: the first k

with z = (x - max) / T and w = exp(z). A prefix is known up to a band, because float32 cannot tell
a score from its bound below it: `least` and `most` are the counts with the bound a band lower and higher.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from warpdraft import MinP, TopH, TopK, TopP
from warpdraft.kernels.top_h import TRANSFORMERS_HEAD
from warpdraft.rules import Rule

BAND = 1e-5
"""Nats, or a share of a mass."""

ROWS_AT_ONCE = 64
"""Rows that are sorted in float64 at a time: half a gigabyte with their keys at 262,144 tokens."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What a rule list keeps of each row.

    Attributes:
        least: int64 `[rows]`, the shortest prefix that is right.
        most: int64 `[rows]`, the longest one.
        token_ids: int64 `[rows, vocab]`, the tokens in order.
    """

    least: Tensor
    most: Tensor
    token_ids: Tensor

    def prefix(self, count: Tensor) -> Tensor:
        """Which of `token_ids` are in a prefix of `count` `[rows]` tokens."""
        ranks = torch.arange(self.token_ids.shape[1], device=count.device)
        return ranks < count[:, None]


def kept_counts(
    logits: Tensor, rules: Sequence[Rule], temperature: float, *, band: float = BAND
) -> Kept:
    """The prefixes that `rules` may keep of rows `[rows, vocab]` without NaN and +inf.

    Raises:
        ValueError: a rule that has no scan here.
    """
    least, most, token_ids = [], [], []
    for chunk in logits.split(ROWS_AT_ONCE):
        ordered, ids = torch.sort(chunk.double(), dim=-1, descending=True, stable=True)
        levels = (ordered - ordered[:, :1]) / temperature
        low = high = (levels > -torch.inf).sum(-1)
        for rule in rules:
            ends = [_scan(rule, levels, count, band) for count in (low, high)]
            low = torch.minimum(ends[0][0], ends[1][0])
            high = torch.maximum(ends[0][1], ends[1][1])
        least.append(low)
        most.append(high)
        token_ids.append(ids)
    return Kept(torch.cat(least), torch.cat(most), torch.cat(token_ids))


def _scan(rule: Rule, levels: Tensor, count: Tensor, band: float) -> tuple[Tensor, Tensor]:
    """The least and the most tokens that a rule keeps of the first `count` of each row."""
    inside = torch.arange(levels.shape[1], device=levels.device) < count[:, None]
    weights = torch.where(inside, levels.exp(), 0.0)
    value = float(rule.value)
    if isinstance(rule, TopK):
        first = count.clamp(max=int(value))
        return first, first
    if isinstance(rule, MinP):
        return _within(levels, inside, math.log(value), band)
    if isinstance(rule, TopP):
        mass = weights.cumsum(-1)
        before = (mass - weights) / mass[:, -1:]
        return _within(-before, inside, -value, band)
    if not isinstance(rule, TopH):
        raise ValueError(f"the gate has no scan for {rule}")
    if value >= 1:
        return count, count
    if rule.variant == "transformers":
        head = weights[:, :TRANSFORMERS_HEAD]
        probs = head / head.sum(-1, keepdim=True)
        surprise = torch.special.entr(probs)
        scores = surprise.cumsum(-1)
        bound = value * surprise.sum(-1, keepdim=True)
        return _within(-scores, inside[:, :TRANSFORMERS_HEAD], -bound, band)
    # without the largest token, whose weight is 1: a sum of 1 + 1e-9 would lose the rest
    excess = (weights.cumsum(-1) - 1.0).clamp(min=0.0)
    drop = (weights * torch.where(inside, levels, 0.0)).cumsum(-1)
    entropy = torch.log1p(excess) - drop / (1.0 + excess)
    return _within(-entropy, inside, -value * entropy[:, -1:], band)


def _within(
    scores: Tensor, inside: Tensor, bound: Tensor | float, band: float
) -> tuple[Tensor, Tensor]:
    """How many scores reach `bound`, moved up and down by a band; at least one."""
    least = ((scores >= bound + band) & inside).sum(-1).clamp(min=1)
    most = ((scores >= bound - band) & inside).sum(-1).clamp(min=1)
    return least, most
