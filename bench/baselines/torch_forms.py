"""Plain torch: the rules by sorting the row, and by hand without sorting all of it; both also compiled.

torch   sort -> cumulative sums -> the longest prefix of every rule -> mask or exponential race
hand    min-p by its threshold; the others on the 2,048 largest logits, with sums over the whole row
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import warpdraft
from warpdraft import MinP, TopH, TopK, TopP
from warpdraft.bench.throughput.inputs import Block, Inputs, Rows
from warpdraft.bench.throughput.kernels import Kernel
from warpdraft.rules import Rule

from .provider import Call, NotMeasured

HEAD = 2048
"""Logits that the hand-written form sorts."""

Form = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class SortReference:
    """Every rule by sorting the row; the plain-torch verifiers for blocks."""

    compiled: bool = False

    @property
    def name(self) -> str:
        """As in the table."""
        return "torch-compiled" if self.compiled else "torch"

    def prepare(self, kernel: Kernel, inputs: Inputs, most_kept: int) -> Call | None:
        """The sort, or `verify_block` with `backend="torch"`, which follows data and is not compiled."""
        if isinstance(inputs, Block):
            return None if self.compiled else Call(_verifier(kernel), kernel.rules)

        def form(logits: Tensor) -> Tensor:
            ordered, token_ids = torch.sort(logits.float(), dim=-1, descending=True, stable=True)
            return _finished(kernel, logits, ordered, token_ids, whole=ordered)

        return _call(kernel, form, compiled=self.compiled, any_ties=False)


@dataclass(frozen=True, slots=True)
class HandWritten:
    """What one writes who knows the rule: no sort of the row."""

    compiled: bool = False

    @property
    def name(self) -> str:
        """As in the table."""
        return "hand-compiled" if self.compiled else "hand"

    def prepare(self, kernel: Kernel, inputs: Inputs, most_kept: int) -> Call | None:
        """A threshold for min-p alone, else the largest logits of each row."""
        if isinstance(inputs, Block):
            return None
        if len(kernel.rules) == 1 and isinstance(kernel.rules[0], MinP):
            return _call(kernel, _min_p(kernel), compiled=self.compiled)
        first = kernel.rules[0]
        head = int(first.top_k) if isinstance(first, TopK) else HEAD
        head = min(head, inputs.logits.shape[1])
        if most_kept > head:
            raise NotMeasured(f"its {HEAD:,} largest logits hold too little of these rows")

        def form(logits: Tensor) -> Tensor:
            ordered, token_ids = torch.topk(logits.float(), head, dim=-1)
            # behind a top-k nothing asks for the rest of the row
            whole = ordered if isinstance(first, TopK) else logits.float()
            return _finished(kernel, logits, ordered, token_ids, whole=whole)

        return _call(kernel, form, compiled=self.compiled)


def _min_p(kernel: Kernel) -> Form:
    least = kernel.temperature * math.log(float(kernel.rules[0].value))

    def form(logits: Tensor) -> Tensor:
        scores = logits.float()
        largest = scores.amax(-1, keepdim=True)
        masked = torch.where(scores >= largest + least, scores, -torch.inf)
        if kernel.output == "logits":
            return masked.to(logits.dtype)
        return _race(torch.exp((masked - largest) / kernel.temperature))

    return form


def _finished(
    kernel: Kernel, logits: Tensor, ordered: Tensor, token_ids: Tensor, *, whole: Tensor
) -> Tensor:
    """Masked logits or tokens from the largest logits in order.

    Args:
        kernel: its rules, temperature and output.
        logits: `[batch, vocab]`.
        ordered: float32 `[batch, n]`.
        token_ids: int64 `[batch, n]`.
        whole: float32, what the first rule sums over.
    """
    largest = ordered[:, :1]
    levels = (ordered - largest) / kernel.temperature
    inside = prefix(kernel.rules, levels, (whole - largest) / kernel.temperature)
    if kernel.output == "tokens":
        winners = _race(torch.where(inside, levels.exp(), 0.0))
        return token_ids.gather(1, winners[:, None])[:, 0]
    kept = torch.where(inside, ordered, -torch.inf).to(logits.dtype)
    return torch.full_like(logits, -torch.inf).scatter(1, token_ids, kept)


def prefix(rules: Sequence[Rule], levels: Tensor, whole: Tensor) -> Tensor:
    """Which of the ordered tokens the rules keep, bool `[batch, n]`.

    Args:
        rules: in their order.
        levels: `(x - max) / T` of the largest tokens, in order.
        whole: the same of all tokens that the first rule sums over, in any order.
    """
    ranks = torch.arange(levels.shape[1], device=levels.device)
    inside = levels > -torch.inf
    for rule in rules:
        weights = torch.where(inside, levels.exp(), 0.0)
        everything, all_levels = weights, levels
        if rule is rules[0]:
            everything, all_levels = whole.exp(), whole
        if isinstance(rule, TopK):
            inside = inside & (ranks < int(rule.top_k))
        elif isinstance(rule, MinP):
            inside = inside & (levels >= math.log(float(rule.min_p)))
        elif isinstance(rule, TopP):
            before = weights.cumsum(-1) - weights
            inside = inside & (before < float(rule.top_p) * everything.sum(-1, keepdim=True))
        elif isinstance(rule, TopH) and rule.variant == "paper":
            excess = weights[:, 1:].cumsum(-1)
            excess = torch.nn.functional.pad(excess, (1, 0))
            drop = (weights * levels.clamp(min=-1e30)).cumsum(-1)
            total = everything.sum(-1, keepdim=True)
            dropped = (everything * all_levels.clamp(min=-1e30)).sum(-1, keepdim=True)
            bound = float(rule.alpha) * (total.log() - dropped / total)
            inside = inside & (torch.log1p(excess) - drop / (1.0 + excess) <= bound)
        else:
            raise NotMeasured(f"no form of {rule}")
        # the most likely token always stays
        inside = inside | (ranks == 0)
    return inside


def _race(weights: Tensor) -> Tensor:
    """One token a row, with probability in proportion to its weight."""
    return (weights / torch.empty_like(weights).exponential_()).argmax(-1)


def _call(kernel: Kernel, form: Form, *, compiled: bool, any_ties: bool = True) -> Call:
    if compiled:
        # every cell is another program: the limit counts the programs of one function
        torch.compiler.reset()
        form = torch.compile(form, fullgraph=True, dynamic=False)

    def run(rows: Rows) -> object:
        return form(rows.logits)

    return Call(run, kernel.rules, any_ties=any_ties)


def _verifier(kernel: Kernel) -> Callable[[Block], object]:
    def run(block: Block) -> object:
        return warpdraft.verify_block(
            block.target_logits,
            block.draft_logits,
            block.draft_token_ids,
            block.node_index,
            verifier=kernel.verifier,
            rules=kernel.rules,
            temperature=kernel.temperature,
            seed=0,
            backend="torch",
        )

    return run
