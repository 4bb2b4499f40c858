"""What texts cost under another model: bits of a continuation, given its prompt.

The judge reads text, not tokens, so it may have another tokenizer; bits are counted a character, so that texts of
different tokens compare. The prompt is read once and its cache copied; equal continuations are read once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase

BATCH_TOKENS = 2048
# logits of so many tokens of the vocabulary at once stay in a core's cache: 372 tokens a second on one core of a
# Xeon, against 239 with whole rows of 262,144, 64 rows at once
HEAD_TOKENS = 4096
TOLERANCE = 1e-3


class Judge:
    """A causal language model that says how likely a text is.

    Args:
        model: in evaluation mode.
        tokenizer: its own.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._head = linear_head(model)

    @torch.inference_mode()
    def bits(self, prompt: str, continuations: Sequence[str]) -> list[float]:
        """-log2 of the probability of each continuation after the prompt.

        Args:
            prompt: what stands before; not counted.
            continuations: texts, read as their own tokens after those of the prompt.

        Raises:
            ValueError: the prompt has no token for this judge.
        """
        head = self._tokenizer(prompt, return_tensors="pt").input_ids.to(self._model.device)
        if head.shape[1] == 0:
            raise ValueError(f"the judge reads no token of the prompt {prompt!r}")
        token_ids = {
            text: self._tokenizer.encode(text, add_special_tokens=False)
            for text in dict.fromkeys(continuations)
        }
        read = self._model.base_model(head[:, :-1], use_cache=True) if head.shape[1] > 1 else None
        found = dict.fromkeys(token_ids, 0.0)
        for batch in _batches({text: ids for text, ids in token_ids.items() if ids}):
            cache = None if read is None else deepcopy(read.past_key_values)
            for text, cost in zip(batch, self._bits_of(batch, head, cache), strict=True):
                found[text] = cost
        return [found[text] for text in continuations]

    def _bits_of(
        self, batch: dict[str, list[int]], head: Tensor, cache: Cache | None
    ) -> list[float]:
        """Bits of one batch; right-padded, so that no position sees a pad."""
        longest = max(map(len, batch.values()))
        padded = torch.tensor([ids + [0] * (longest - len(ids)) for ids in batch.values()])
        padded = padded.to(head.device)
        lengths = torch.tensor([len(ids) for ids in batch.values()], device=head.device)
        within = torch.arange(longest, device=head.device) < lengths[:, None]
        # the last token of the prompt foretells the first of the text
        inputs = torch.cat([head[:, -1:].expand(len(batch), 1), padded[:, :-1]], dim=1)
        if cache is not None:
            cache.batch_repeat_interleave(len(batch))
        spread = torch.zeros(within.shape, dtype=torch.float64, device=head.device)
        spread[within] = self._logprobs(inputs, cache, within, padded[within]).double()
        return [float(cost) for cost in -spread.sum(-1) / math.log(2)]

    def _logprobs(
        self, inputs: Tensor, cache: Cache | None, within: Tensor, token_ids: Tensor
    ) -> Tensor:
        """Log-probabilities `[tokens]` of the tokens after the places `within` the inputs."""
        options = {"past_key_values": cache, "use_cache": cache is not None}
        if self._head is None:
            logits = self._model(inputs, **options).logits[within].float()
            logprobs: Tensor = logits.log_softmax(-1).gather(-1, token_ids[:, None])[:, 0]
            return logprobs
        hidden = self._model.base_model(inputs, **options).last_hidden_state[within]
        total = torch.full((len(hidden),), -torch.inf, device=hidden.device)
        for part in self._head.split(HEAD_TOKENS):
            logits = torch.nn.functional.linear(hidden, part).float()
            total = torch.logaddexp(total, torch.logsumexp(logits, -1))
        own: Tensor = (hidden * self._head[token_ids]).sum(-1).float()
        return own - total


@torch.inference_mode()
def linear_head(model: PreTrainedModel) -> Tensor | None:
    """The matrix that takes last hidden states to logits; None where more is done to them (soft caps, scales)."""
    output = model.get_output_embeddings()
    if getattr(output, "weight", None) is None:
        return None
    weight: Tensor = output.weight
    token_ids = torch.arange(min(8, len(weight)), device=weight.device)[None]
    states = getattr(model.base_model(token_ids, use_cache=False), "last_hidden_state", None)
    if states is None or states.shape[-1] != weight.shape[-1]:
        return None
    logits = model(token_ids, use_cache=False).logits.float()
    ours = torch.nn.functional.linear(states, weight).float()
    is_same = ours.shape == logits.shape and torch.allclose(
        ours, logits, rtol=TOLERANCE, atol=TOLERANCE
    )
    return weight if is_same else None


def _batches(texts: dict[str, list[int]]) -> Iterator[dict[str, list[int]]]:
    """Texts of like length together, at most `BATCH_TOKENS` a batch with the padding."""
    batch: dict[str, list[int]] = {}
    for text, token_ids in sorted(texts.items(), key=lambda item: len(item[1])):
        if batch and (len(batch) + 1) * len(token_ids) > BATCH_TOKENS:
            yield batch
            batch = {}
        batch[text] = token_ids
    if batch:
        yield batch
