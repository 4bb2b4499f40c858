"""The figures of a pair on held-out text: losses, losses by position, overlap."""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaForCausalLM

from warpdraft.bench.pair_corpus import CONTEXT, windows
from warpdraft.bench.pair_lessons import LESSON_LENGTH, SAMPLES, sample_rows

# tokens of one forward pass: bounds the memory of the logits
PASS_TOKENS = 4096
# every stride-th window is measured: the whole text would take minutes a model
SHORT_STRIDE, LONG_STRIDE = 4, 3
SAMPLE_PROMPT, SAMPLE_LENGTH, SAMPLE_ROWS = 32, 256, 48


def forward(model: LlamaForCausalLM, rows: Tensor) -> Tensor:
    """Float32 logits `[rows, length, vocab]`."""
    logits: Tensor = model(input_ids=rows, use_cache=False).logits
    return logits.float()


def passes(rows: Tensor) -> tuple[Tensor, ...]:
    """Rows in parts small enough for one forward pass."""
    parts: tuple[Tensor, ...] = rows.split(max(1, PASS_TOKENS // rows.shape[1]))
    return parts


@torch.no_grad()
def held_out_loss(model: LlamaForCausalLM, rows: Tensor) -> Tensor:
    """Cross-entropy of every token but the first, nats, `[rows, length - 1]`."""
    return torch.cat([_token_losses(forward(model, part), part) for part in passes(rows)])


@torch.no_grad()
def overlap(target: LlamaForCausalLM, draft: LlamaForCausalLM, rows: Tensor) -> float:
    """Mean overlap at temperature 1."""
    parts = [_token_overlap(forward(target, p), forward(draft, p), 1.0) for p in passes(rows)]
    return torch.cat(parts).mean().item()


@torch.no_grad()
def measure_pair(
    target: LlamaForCausalLM, draft: LlamaForCausalLM, stream: Tensor, bos: int, seed: int
) -> dict[str, Any]:
    """Losses and overlaps on held-out files, and the overlap on the target's own samples."""
    short = _measure_rows(target, draft, windows(stream, LESSON_LENGTH, bos)[::SHORT_STRIDE])
    long = _measure_rows(target, draft, windows(stream, CONTEXT, bos)[::LONG_STRIDE])
    torch.manual_seed(seed)
    starts = windows(stream, SAMPLE_PROMPT, bos)[:: len(stream) // SAMPLE_PROMPT // SAMPLE_ROWS]
    samples = _measure_rows(target, draft, sample_rows(target, starts, SAMPLE_LENGTH))
    overlaps = {
        "temperature 1": short["overlap"],
        "temperature 0.7": short["overlap 0.7"],
        f"temperature 1, windows of {CONTEXT}": long["overlap"],
        f"temperature 1, {SAMPLES}": samples["overlap"][:, SAMPLE_PROMPT:],
    }
    return {
        "tokens": short["overlap"].numel(),
        "tokens_by_position": long["overlap"].numel(),
        "loss": {name: _mean(short[name]) for name in ("target", "draft")},
        "loss_by_position": {name: by_position(long[name]) for name in ("target", "draft")},
        "overlap": {name: _mean(values) for name, values in overlaps.items()},
    }


def by_position(losses: Tensor) -> dict[str, float]:
    """Mean loss in buckets of the position, each twice as long as the one before."""
    edges = [0, *(2**k for k in range(6, 14))]
    pairs = [(a, b) for a, b in itertools.pairwise(edges) if a < losses.shape[1]]
    return {f"{a}-{b - 1}": _mean(losses[:, a:b]) for a, b in pairs}


def _measure_rows(
    target: LlamaForCausalLM, draft: LlamaForCausalLM, rows: Tensor
) -> dict[str, Tensor]:
    """Losses of both models and their overlaps, token by token, from one pass each."""
    parts = []
    for part in passes(rows):
        target_logits, draft_logits = forward(target, part), forward(draft, part)
        parts.append(
            {
                "target": _token_losses(target_logits, part),
                "draft": _token_losses(draft_logits, part),
                "overlap": _token_overlap(target_logits, draft_logits, 1.0),
                "overlap 0.7": _token_overlap(target_logits, draft_logits, 0.7),
            }
        )
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _token_losses(logits: Tensor, tokens: Tensor) -> Tensor:
    return F.cross_entropy(logits[:, :-1].mT, tokens[:, 1:], reduction="none")


def _token_overlap(target_logits: Tensor, draft_logits: Tensor, temperature: float) -> Tensor:
    """`sum min(target_probs, draft_probs)` = 1 - total variation, `[rows, length]`."""
    target_probs = F.softmax(target_logits / temperature, dim=-1)
    draft_probs = F.softmax(draft_logits / temperature, dim=-1)
    return torch.minimum(target_probs, draft_probs).sum(-1)


def _mean(values: Tensor) -> float:
    return round(values.mean().item(), 4)
