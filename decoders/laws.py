"""Laws: what a row of logits becomes after processors, temperature and truncation rules.

The one place where logits turn into probabilities. The target's rows and the draft's pass through the same pipeline,
each once, so that verification weighs exactly the laws that were sampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from warpdraft.kernels.support import mask

from .processors import Prefixes, ProcessorStack
from .rules import Rule
from .truncation import resolve

if TYPE_CHECKING:
    from .texts import Texts


@dataclass(frozen=True, slots=True)
class Law:
    """The law of the next token, a row each.

    Attributes:
        scores: `[rows, vocab]` float32 or float64 processed logits: tempered, -inf outside the support; in greedy
            decoding neither.
        probs: `[rows, vocab]` of the next token; all zeros where `status` is not 0.
        status: `[rows]` int8, 0 for a sound row.
    """

    scores: Tensor
    probs: Tensor
    status: Tensor

    def expand(self, repeats: int) -> Law:
        """Every row `repeats` times in turn, without a copy for one row."""
        return Law(*(_repeat(column, repeats) for column in (self.scores, self.probs, self.status)))


def law_of(logits: Tensor, rules: Rule | Sequence[Rule], temperature: float | Tensor) -> Law:
    """The law of each row: rules at `temperature`, then a softmax over the support.

    Args:
        logits: `[rows, vocab]` float.
        rules: applied in order, each on the law renormalised to the support so far.
        temperature: float or `[rows]`; 0 puts everything on the argmax of lowest id.
    """
    resolved = resolve(logits, rules, temperature=temperature)
    wide = logits if logits.dtype == torch.float64 else logits.to(torch.float32)
    if not isinstance(temperature, Tensor):
        temperature = torch.tensor(temperature, dtype=wide.dtype, device=wide.device)
    scale = temperature.to(wide.dtype)
    # a greedy row keeps one token: any finite scale gives it probability 1
    scale = torch.where(scale == 0, torch.ones_like(scale), scale).reshape(-1, 1)
    scores = mask(wide, resolved.support) / scale
    probs = torch.softmax(scores, dim=-1)
    bad = (resolved.status != 0)[:, None]
    if bool(bad.any()):
        probs = probs.masked_fill(bad, 0)
    return Law(scores, probs, resolved.status)


class LawPipeline:
    """Processors, then temperature, then rules: from a model's logits to the law that is sampled.

    Attributes:
        temperature: of the law; 0 is greedy.
        rules: the truncation rules, in the order in which they run.
        names: of everything that runs, for the statistics.
    """

    def __init__(
        self,
        processors: ProcessorStack | None = None,
        rules: Sequence[Rule] = (),
        *,
        greedy: bool = False,
    ) -> None:
        self._processors = processors
        found = processors.rules if processors is not None else ()
        self.rules: tuple[Rule, ...] = (*found, *rules)
        self.temperature = processors.temperature if processors is not None else 1.0
        self._greedy = greedy
        if greedy:
            # truncation never moves the argmax that greedy decoding takes, and plain generate does not truncate there
            self.rules, self.temperature = (), 0.0
        named = processors.names if processors is not None else ()
        self.names: tuple[str, ...] = (*named, *(repr(rule) for rule in rules))

    def __call__(self, logits: Tensor, prefixes: Prefixes) -> Law:
        """The law of each row, `logits` `[rows, vocab]`, each row after its own prefix."""
        if self._processors is not None:
            logits = self._processors(logits, prefixes)
        law = law_of(logits, self.rules, self.temperature)
        # plain greedy decoding hands out the scores that it takes the argmax of
        return replace(law, scores=logits.to(law.scores.dtype)) if self._greedy else law

    def after(self, texts: Texts, rows: Tensor, drafted: Tensor, logits: Tensor) -> Law:
        """The law of each row's next token, after its text and its drafted tokens.

        Behind a stop nothing is emitted and any law serves, if both models have the same: all on token 0. As in plain
        generation no processor is asked there: one that knows no token after the end may raise, or leave nothing.

        Args:
            texts: what has been written.
            rows: `[n]` int64, the text of each row.
            drafted: `[n, depth]` int64, the drafted tokens that follow it.
            logits: `[n, vocab]` of a model, after them.
        """
        ended = texts.ended(rows, drafted)
        if not bool(ended.any()):
            return self(logits, texts.prefixes(rows, drafted))
        wide = self._processors is None and logits.dtype == torch.float64
        dtype = torch.float64 if wide else torch.float32
        scores = torch.full_like(logits, -torch.inf, dtype=dtype)
        scores[:, 0] = 0
        law = Law(scores, scores.exp(), rows.new_zeros(len(rows), dtype=torch.int8))
        open_rows = (~ended).nonzero().squeeze(1)
        if len(open_rows) > 0:
            prefixes = texts.prefixes(rows[open_rows], drafted[open_rows])
            inner = self(logits[open_rows], prefixes)
            law.scores[open_rows] = inner.scores
            law.probs[open_rows] = inner.probs
            law.status[open_rows] = inner.status
        return law


def _repeat(column: Tensor, repeats: int) -> Tensor:
    if repeats == 1:
        return column
    if len(column) == 1:
        return column.expand(repeats, *column.shape[1:])
    return column.repeat_interleave(repeats, dim=0)
