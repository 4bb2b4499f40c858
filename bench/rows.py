"""Seeded rows of logits for benchmarks and tests, float32 `[batch, vocab]`.

gaussian   independent normal logits, standard deviation 2.5: flat, hundreds of plausible tokens
llm_like   what a language model mostly says: a Zipf head in which a few tokens hold most of the
mass, above a normal tail; the token ids are shuffled
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


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


ROWS: dict[str, Callable[..., Tensor]] = {"gaussian": gaussian, "llm_like": llm_like}
