"""Seeded rows of logits for benchmarks and tests, float32 `[batch, vocab]`.

gaussian   independent normal logits, standard deviation 2.5: hundreds of plausible tokens
llm_like   the rows of the CPU table: a Zipf head in which a few tokens hold most of the mass, above a
           normal tail; the token ids are shuffled
llm        the same with head and tail fitted to the recorded rows of bench/recorded_rows.py
flat       a peak over a long tail: at temperature 2 top-H keeps thousands
one_hot    one finite logit

Calibration at 262,144 tokens under TopH(0.4), medians: at temperature 1 `llm` keeps 5 tokens with an entropy of
3.3 nats, and the recorded rows of Gemma 3 270M 5 with 3.0; at temperature 2 `llm` keeps 108 with 10.7 nats, the
recorded rows 48 with 8.8. Rows of which the paper's top-H keeps thousands at temperature 2 are confident ones with a
tail that holds a tenth to a third of the mass there, as in `flat` (14,360 to 18,012 tokens; at 128,256 tokens 7,035
to 8,971); none of the 64 recorded rows is one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor

# the rank profile of the recorded rows: Zipf down to about rank 1,000, then a normal tail
HEAD_EXPONENTS = (1.2, 2.2)
HEAD_NOISE = 0.5
TAIL_MEAN = -24.0
TAIL_DEVIATION = 4.7

# the peak's probability at temperature 2
PEAKS = (0.7, 0.9)

HASHED_ROWS = 4


def gaussian(batch: int, vocab: int, *, seed: int = 0, deviation: float = 2.5) -> Tensor:
    """Independent normal logits."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, vocab, generator=generator) * deviation


def llm_like(batch: int, vocab: int, *, seed: int = 0) -> Tensor:
    """A Zipf head of exponent 1.6 and a sharper or flatter peak on it, over a normal tail."""
    generator = torch.Generator().manual_seed(seed)
    ranks = torch.arange(1, vocab + 1, dtype=torch.float32)
    exponent = 1.3 + 0.6 * torch.rand(batch, 1, generator=generator)
    head = 12.0 - exponent * ranks.log() + 0.5 * torch.randn(batch, vocab, generator=generator)
    tail = 2.0 * torch.randn(batch, vocab, generator=generator) - 6.0
    logits = torch.logaddexp(head, tail)
    shuffled = torch.rand(batch, vocab, generator=generator).argsort(dim=-1)
    return logits.gather(-1, shuffled)


def llm(batch: int, vocab: int, *, seed: int = 0) -> Tensor:
    """A Zipf head over a normal tail, as in the recorded rows of a language model."""
    generator = torch.Generator().manual_seed(seed)
    ranks = torch.arange(1, vocab + 1, dtype=torch.float32)
    least, most = HEAD_EXPONENTS
    exponent = least + (most - least) * torch.rand(batch, 1, generator=generator)
    head = HEAD_NOISE * torch.randn(batch, vocab, generator=generator) - exponent * ranks.log()
    tail = TAIL_DEVIATION * torch.randn(batch, vocab, generator=generator) + TAIL_MEAN
    return _shuffled(torch.logaddexp(head, tail), generator)


def flat(batch: int, vocab: int, *, seed: int = 0) -> Tensor:
    """A peak that holds 70 to 90 % at temperature 2, over a normal tail of standard deviation 2.5."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, vocab, generator=generator) * 2.5
    least, most = PEAKS
    peak = least + (most - least) * torch.rand(batch, generator=generator)
    logits[:, 0] = 2.0 * (torch.logit(peak) + torch.logsumexp(logits[:, 1:] / 2.0, dim=-1))
    return _shuffled(logits, generator)


def one_hot(batch: int, vocab: int, *, seed: int = 0) -> Tensor:
    """One token with a finite logit, another one in every row."""
    generator = torch.Generator().manual_seed(seed)
    token_ids = torch.randint(vocab, (batch, 1), generator=generator)
    return torch.full((batch, vocab), -torch.inf).scatter(1, token_ids, 3.0)


def recorded(batch: int, vocab: int, *, seed: int = 0) -> Tensor:
    """The first of the 64 recorded rows of a real model; the seed places their unlikely tokens."""
    from .recorded_rows import VOCAB, load

    rows = load(seed=seed)
    if vocab != VOCAB:
        raise ValueError(f"the recorded rows have {VOCAB} tokens, got --vocab {vocab}")
    if batch > len(rows):
        raise ValueError(f"there are {len(rows)} recorded rows, asked for {batch}")
    return rows[:batch]


ROWS: dict[str, Callable[..., Tensor]] = {"gaussian": gaussian, "llm_like": llm_like}
"""The rows of the CPU table, see bench_truncation.py."""

GENERATORS: dict[str, Callable[..., Tensor]] = {
    "llm": llm,
    "flat": flat,
    "gaussian": gaussian,
    "one-hot": one_hot,
    "recorded": recorded,
}
"""The rows of the throughput profiler."""


def rows_hash(rows: Tensor) -> str:
    """The sha256 of the first rows, float32: equal hashes are equal benchmarks."""
    first = rows[:HASHED_ROWS].float().contiguous().cpu()
    return hashlib.sha256(first.numpy().tobytes()).hexdigest()


def _shuffled(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Every row in an order of its own."""
    vocab = logits.shape[1]
    return torch.stack([row[torch.randperm(vocab, generator=generator)] for row in logits])
