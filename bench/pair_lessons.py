"""What the draft learns from: text, and the target's hidden states on it, computed once."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from transformers import DynamicCache, LlamaForCausalLM

from warpdraft.bench.pair_corpus import CONTEXT, windows

LESSON_LENGTH = 512

# the kinds of lessons
TEXT = "corpus text"
SAMPLES = "the target's own samples"
LONG_TEXT = f"corpus text in windows of {CONTEXT}"


@dataclass(frozen=True)
class Lessons:
    """Rows of text with the target's last hidden states: what the draft learns from."""

    tokens: Tensor
    states: Tensor

    def pick(self, count: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """`count` random rows and their states."""
        rows = torch.randint(len(self.tokens), (count,), generator=generator)
        return self.tokens[rows], self.states[rows]


@torch.no_grad()
def teach(target: LlamaForCausalLM, parts: Iterable[Tensor], seconds: float) -> Lessons:
    """Hidden states in bfloat16 for as many parts as the time allows, at least one."""
    end = time.monotonic() + seconds
    tokens, states = [], []
    for part in parts:
        tokens.append(part)
        states.append(target.model(input_ids=part, use_cache=False).last_hidden_state.bfloat16())
        if time.monotonic() > end:
            break
    return Lessons(torch.cat(tokens), torch.cat(states))


def prepare_lessons(
    target: LlamaForCausalLM, stream: Tensor, bos: int, seed: int, seconds: float
) -> dict[str, Lessons]:
    """Corpus rows, the target's own samples and long corpus rows, each for a share of the time."""
    generator = Generator().manual_seed(seed)
    torch.manual_seed(seed)

    def shuffled(length: int, rows: int) -> tuple[Tensor, ...]:
        cut = windows(stream, length, bos)
        parts: tuple[Tensor, ...] = cut[torch.randperm(len(cut), generator=generator)].split(rows)
        return parts

    sampled = (sample_rows(target, part, LESSON_LENGTH) for part in shuffled(32, 64))
    return {
        TEXT: teach(target, shuffled(LESSON_LENGTH, 16), 0.55 * seconds),
        SAMPLES: teach(target, sampled, 0.3 * seconds),
        LONG_TEXT: teach(target, shuffled(CONTEXT, 1), 0.15 * seconds),
    }


@torch.no_grad()
def sample_rows(target: LlamaForCausalLM, prompts: Tensor, length: int) -> Tensor:
    """Continue prompts `[rows, prompt]` to `[rows, length]` by plain sampling at temperature 1."""
    cache, tokens, fresh = DynamicCache(), prompts, prompts
    while tokens.shape[1] < length:
        logits = target(input_ids=fresh, past_key_values=cache, logits_to_keep=1).logits[:, -1]
        fresh = torch.multinomial(F.softmax(logits, dim=-1), 1)
        tokens = torch.cat([tokens, fresh], dim=1)
    return tokens
