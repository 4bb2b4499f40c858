"""Laws: what a row of logits becomes after processors, temperature and truncation rules.

The one place where logits turn into probabilities. The target's rows and the draft's pass through the same pipeline,
each once, so that verification weighs exactly the laws that were sampled.

A law of few tokens is *compact*: its columns are those tokens and no others, so that everything that follows costs as
much as the support, not the vocabulary. Only the columns differ: probabilities and draws are those of the whole row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from warpdraft.kernels.draw import DIRECT, draw
from warpdraft.kernels.noise import Noise, Role
from warpdraft.kernels.row_stats import Row, levels_of
from warpdraft.kernels.support import OK, compute_dtype, mask

from .processors import Prefixes, ProcessorStack
from .rules import Rule
from .truncation import Call

if TYPE_CHECKING:
    from .texts import Texts


@dataclass(frozen=True, slots=True)
class Law:
    """The law of the next token, a row each.

    Attributes:
        probs: `[rows, width]` float32 or float64 of the next token; all zeros where `status` is not 0.
        status: `[rows]` int8, 0 for a sound row.
        token_ids: `[rows, width]` int64 ascending, the tokens that the columns stand for, at most 1,024; behind the
            last of a row columns of probability 0 that name the vocabulary's last token. None where the columns are
            the vocabulary.
        scores: `[rows, vocab]` float32 or float64 processed logits, if they were asked for: tempered, -inf outside the
            support; in greedy decoding neither.
        vocab: the vocabulary's width, of a compact law.
    """

    probs: Tensor
    status: Tensor
    token_ids: Tensor | None = None
    scores: Tensor | None = None
    vocab: int | None = None

    @classmethod
    def of_probs(cls, probs: Tensor) -> Law:
        """Sound rows `[rows, vocab]`."""
        return cls(probs, torch.zeros(len(probs), dtype=torch.int8, device=probs.device))

    def draw(
        self, noise: Noise, role: Role, *, depth: int | Tensor = 0, path: int | Tensor = 0
    ) -> Tensor:
        """One token a row, `[rows]` int64 token ids; -1 where there is no law."""
        column = draw(self.probs, noise, role, depth=depth, path=path, token_ids=self.token_ids)
        return _tokens(self.token_ids, column)

    def only(self, rows: Tensor) -> Law:
        """Some rows, by int64 numbers; one row of a CPU is a view, for its copy would cost as much as a pass."""
        one = len(rows) == 1 and rows.device.type == "cpu"
        kept = slice(int(rows), int(rows) + 1) if one else rows
        return Law(
            self.probs[kept],
            self.status[kept],
            None if self.token_ids is None else self.token_ids[kept],
            None if self.scores is None else self.scores[kept],
            self.vocab,
        )

    def dense(self) -> Law:
        """The same law over the whole vocabulary."""
        if self.token_ids is None:
            return self
        assert self.vocab is not None
        probs = self.probs.new_zeros(len(self.probs), self.vocab)
        # the padding may name a token of the support: it adds 0
        probs.scatter_add_(1, self.token_ids, self.probs)
        return Law(probs, self.status, scores=self.scores)


@dataclass(frozen=True, slots=True)
class NodeLaws:
    """Target and draft law of the same nodes, over the same columns.

    Attributes:
        target: `[rows, width]`.
        draft: `[rows, width]`.
        token_ids: `[rows, width]` int64, the tokens that the columns stand for, as in `Law`, the last column being
            spare; None where they are the vocabulary.
    """

    target: Tensor
    draft: Tensor
    token_ids: Tensor | None = None

    @classmethod
    def of(cls, target: Law, draft: Law) -> NodeLaws:
        """Bring both laws to the same columns: the union of their tokens, or the vocabulary."""
        if target.token_ids is not None and draft.token_ids is not None:
            merged = _merged(target, draft)
            if merged.target.shape[1] <= DIRECT:
                return merged
        return cls(target.dense().probs, draft.dense().probs)

    def columns(self, token_ids: Tensor) -> Tensor:
        """The columns `[rows, K]` of tokens: those outside both supports get the spare column, of probability 0."""
        if self.token_ids is None:
            return token_ids.clamp_min(0)
        spare = self.token_ids.shape[1] - 1
        found = torch.searchsorted(self.token_ids, token_ids).clamp_max_(spare)
        return torch.where(self.token_ids.gather(1, found) == token_ids, found, spare)

    def tokens(self, columns: Tensor) -> Tensor:
        """The tokens `[rows]` of columns `[rows]`, -1 for -1."""
        return _tokens(self.token_ids, columns)

    def only(self, kept: Tensor) -> NodeLaws:
        """Some rows, by bool `[rows]` or int64 numbers."""
        token_ids = None if self.token_ids is None else self.token_ids[kept]
        return NodeLaws(self.target[kept], self.draft[kept], token_ids)


def _tokens(token_ids: Tensor | None, columns: Tensor) -> Tensor:
    """The tokens of columns `[rows]`, -1 for -1."""
    if token_ids is None:
        return columns
    tokens = token_ids.gather(1, columns.clamp_min(0)[:, None]).squeeze(1)
    return torch.where(columns < 0, columns, tokens)


def _merged(target: Law, draft: Law) -> NodeLaws:
    """Two compact laws over the union of their tokens."""
    assert target.token_ids is not None
    assert draft.token_ids is not None
    assert target.vocab == draft.vocab
    assert target.vocab is not None
    token_ids, order = torch.cat([target.token_ids, draft.token_ids], dim=1).sort(dim=1)
    # equal tokens, one of each law and any padding, share a column
    column = pad((token_ids.diff(dim=1) != 0).cumsum(1), (1, 0))
    width = int(column[:, -1].max()) + 2 if len(column) > 0 else 1
    shape = len(column), width
    union = token_ids.new_full(shape, target.vocab - 1).scatter_(1, column, token_ids)
    own = order < target.token_ids.shape[1]
    probs = torch.cat([target.probs, draft.probs], dim=1).gather(1, order)
    target_probs, draft_probs = (
        probs.new_zeros(shape).scatter_add_(1, column, probs.masked_fill(other, 0))
        for other in (~own, own)
    )
    return NodeLaws(target_probs, draft_probs, union)


def law_of(
    logits: Tensor,
    rules: Rule | Sequence[Rule],
    temperature: float | Tensor,
    *,
    with_scores: bool = False,
) -> Law:
    """The law of each row: rules at `temperature`, then a softmax over the support.

    Compact on a CPU where the rules leave no row more than 1,024 tokens.

    Args:
        logits: `[rows, vocab]` float.
        rules: applied in order, each on the law renormalised to the support so far.
        temperature: float or `[rows]`; 0 puts everything on the argmax of lowest id.
        with_scores: fill in `Law.scores`.

    Returns:
        one law a row; a row that has none gets a status and zeros.

    Raises:
        ValueError: as `warpdraft.truncate`, but for rows without a law.
        TypeError: as `warpdraft.truncate`.
    """
    call = Call.create(logits, rules, temperature)
    if logits.device.type != "cpu":
        return _law_of_batch(call, with_scores=with_scores)
    law = _law_of_rows(call)
    return replace(law, scores=_scores(call)) if with_scores else law


def _law_of_batch(call: Call, *, with_scores: bool) -> Law:
    """The law of a batch on any device, without synchronising."""
    scores, status = _scores(call), call.resolve_batch().status
    probs = torch.softmax(scores, dim=-1).masked_fill((status != OK)[:, None], 0)
    return Law(probs, status, scores=scores if with_scores else None)


def _scores(call: Call) -> Tensor:
    """Tempered logits `[rows, vocab]`, -inf outside the support."""
    on_cpu = call.logits.device.type == "cpu"
    resolved = call.resolve_rows() if on_cpu else call.resolve_batch()
    wide = call.logits.to(compute_dtype(call.logits.dtype))
    return mask(wide, resolved.support) / _scale(resolved.temperature, wide.dtype)[:, None]


def _scale(temperature: Tensor, dtype: torch.dtype) -> Tensor:
    """What logits are divided by, within the normal numbers of their dtype."""
    numbers = torch.finfo(dtype)
    # a greedy row keeps one token: any scale gives it probability 1
    heat = torch.where(temperature == 0, 1.0, temperature)
    return heat.clamp(numbers.tiny, numbers.max).to(dtype)


def _law_of_rows(call: Call) -> Law:
    """The law of a CPU batch, row by row while it stays in the cache."""
    rows, vocab = call.logits.shape
    dtype = compute_dtype(call.logits.dtype)
    dense: Tensor | None = None
    few: dict[int, _FewTokens] = {}
    status = []
    for number, (row, temperature) in enumerate(call.rows()):
        status.append(row.status)
        narrowed = bool(call.rules) or temperature == 0
        tokens = _few_tokens(row, temperature) if narrowed or row.status != OK else None
        if tokens is not None:
            few[number] = tokens
            continue
        if dense is None:
            dense = torch.empty(rows, vocab, dtype=dtype)
        _softmax(row, temperature, dense[number : number + 1])
    codes = torch.tensor(status, dtype=torch.int8)
    if dense is None and (call.rules or bool((call.temperature == 0).any())):
        return _compact(few, codes, vocab, dtype)
    if dense is None:
        dense = torch.empty(rows, vocab, dtype=dtype)
    for number, (ids, probs) in few.items():
        dense[number] = 0
        dense[number, torch.from_numpy(ids)] = torch.from_numpy(probs).to(dtype)
    return Law(dense, codes)


_FewTokens = tuple[NDArray[np.int64], NDArray[np.float64]]


def _few_tokens(row: Row, temperature: float) -> _FewTokens | None:
    """Tokens and probabilities of a support of at most 1,024 tokens; none where a row has no law."""
    if row.status != OK:
        return np.empty(0, np.int64), np.empty(0)
    if temperature == 0:
        return np.array([row.index]), np.ones(1)
    if not row.restricted and row.vocab > DIRECT:
        return None
    logits, ids = row.tokens()
    if len(ids) > DIRECT:
        return None
    mass = np.exp(levels_of(logits, row.maximum, temperature))
    return ids, mass / mass.sum()


def _compact(few: dict[int, _FewTokens], status: Tensor, vocab: int, dtype: torch.dtype) -> Law:
    """The law of rows that all have few tokens."""
    width = max(1, *(len(ids) for ids, _ in few.values())) if few else 1
    token_ids = np.full((len(few), width), vocab - 1)
    probs = np.zeros((len(few), width))
    for number, (ids, mass) in few.items():
        token_ids[number, : len(ids)] = ids
        probs[number, : len(ids)] = mass
    return Law(torch.from_numpy(probs).to(dtype), status, torch.from_numpy(token_ids), None, vocab)


def _softmax(row: Row, temperature: float, probs: Tensor) -> None:
    """Write the probabilities of a support of many tokens into `probs` `[1, vocab]`."""
    logits = torch.from_numpy(row.logits)[None]
    if row.restricted:
        probs.fill_(-torch.inf)
        row.write(probs[0])
        logits = probs
    if temperature != 1:
        # in the order of `levels_of`: the maximum first, for a cold row overflows without
        scale = float(_scale(torch.tensor(temperature, dtype=torch.float64), probs.dtype))
        with np.errstate(over="ignore"):
            levels = np.subtract(logits.numpy(), row.maximum, out=probs.numpy())
            np.divide(levels, scale, out=levels)
        logits = probs
    torch.softmax(logits, dim=-1, out=probs)


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
        if greedy:
            # truncation never moves the argmax that greedy decoding takes, and plain generate does not truncate there
            rules = ()
        self._processors = None if processors is None or processors.is_empty else processors
        # as transformers hands logits to processors
        self._in_float32 = processors is not None
        self._greedy = greedy
        found = processors.rules if processors is not None and not greedy else ()
        named = processors.names if processors is not None else ()
        heat = processors.temperature if processors is not None else 1.0
        self.rules: tuple[Rule, ...] = (*found, *rules)
        self.temperature = 0.0 if greedy else heat
        self.names: tuple[str, ...] = (*named, *(repr(rule) for rule in rules))

    def __call__(
        self, logits: Tensor, prefixes: Prefixes | None, *, with_scores: bool = False
    ) -> Law:
        """The law of each row, `logits` `[rows, vocab]`, each row after its own prefix; None where nobody reads it."""
        if self._processors is not None:
            assert prefixes is not None
            logits = self._processors(logits, prefixes)
        elif self._in_float32:
            logits = logits.to(torch.float32)
        # plain greedy decoding hands out the scores that it takes the argmax of
        law = law_of(
            logits,
            self.rules,
            self.temperature,
            with_scores=with_scores and not self._greedy,
        )
        if with_scores and self._greedy:
            return replace(law, scores=logits.to(law.probs.dtype))
        return law

    @property
    def is_plain(self) -> bool:
        """Whether the law is the softmax of the tempered logits, or their argmax."""
        return self._processors is None and not self.rules

    def after(
        self,
        texts: Texts,
        rows: Tensor,
        drafted: Tensor,
        logits: Tensor,
        *,
        with_scores: bool = False,
    ) -> Law:
        """The law of each row's next token, after its text and its drafted tokens.

        Behind a stop nothing is emitted and any law serves, if both models have the same: all on token 0. As in plain
        generation no processor is asked there: one that knows no token after the end may raise, or leave nothing.

        Args:
            texts: what has been written.
            rows: `[n]` int64, the text of each row.
            drafted: `[n, depth]` int64, the drafted tokens that follow it.
            logits: `[n, vocab]` of a model, after them.
            with_scores: fill in `Law.scores`.
        """
        ended = texts.ended(rows, drafted) if texts.may_end(drafted.shape[1]) else None
        if ended is None or not bool(ended.any()):
            return self(logits, self._prefixes(texts, rows, drafted), with_scores=with_scores)
        open_rows = (~ended).nonzero().squeeze(1)
        inner = None
        if len(open_rows) > 0:
            prefixes = self._prefixes(texts, rows[open_rows], drafted[open_rows])
            inner = self(logits[open_rows], prefixes, with_scores=with_scores)
        wide = not self._in_float32 and logits.dtype == torch.float64
        law = _on_token_zero(logits, torch.float64 if wide else torch.float32)
        if with_scores:
            law = replace(law, scores=law.dense().probs.log())
        return law if inner is None else _replaced(law, open_rows, inner)

    def _prefixes(self, texts: Texts, rows: Tensor, drafted: Tensor) -> Prefixes | None:
        """What the processors read; a copy of the texts, so only where there are some."""
        return None if self._processors is None else texts.prefixes(rows, drafted)


def _on_token_zero(logits: Tensor, dtype: torch.dtype) -> Law:
    """For every row the compact law that is certain of token 0."""
    rows, vocab = logits.shape
    law = Law.of_probs(torch.ones(rows, 1, dtype=dtype, device=logits.device))
    return replace(law, token_ids=torch.zeros_like(law.probs, dtype=torch.int64), vocab=vocab)


def _replaced(law: Law, rows: Tensor, inner: Law) -> Law:
    """The compact law, its rows of these numbers replaced by those of `inner`, compact if that is."""
    if inner.token_ids is None:
        law = law.dense()
    else:
        assert law.token_ids is not None
        assert law.vocab is not None
        more = (0, inner.token_ids.shape[1] - law.token_ids.shape[1])
        law = replace(
            law,
            probs=pad(law.probs, more),
            token_ids=pad(law.token_ids, more, value=law.vocab - 1).index_copy(
                0, rows, inner.token_ids
            ),
        )
    if law.scores is not None:
        assert inner.scores is not None
        law = replace(law, scores=law.scores.index_copy(0, rows, inner.scores))
    return replace(
        law,
        probs=law.probs.index_copy(0, rows, inner.probs),
        status=law.status.index_copy(0, rows, inner.status),
    )
