"""Grammar-constrained decoding: xgrammar's and outlines' grammars as stateless logits processors.

The processors that those packages ship follow one text a row, token by token. A speculative loop
asks about several continuations of one text, and takes some back; these read the text each time.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

_WORD = 32


class _GrammarProcessor(LogitsProcessor, ABC):
    """Masks every token that the grammar does not allow after the row's generated tokens.

    A text that has ended, or has left the grammar as a looked-up draft may, is not masked: nothing
    is drawn there.
    """

    stateless = True

    def __init__(self, prompt_length: int) -> None:
        if prompt_length < 1:
            raise ValueError(f"prompt_length must be at least 1, got {prompt_length}.")
        self.prompt_length = prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Mask `scores` `[batch, vocab]`: a new tensor, -inf outside the grammar."""
        if input_ids.shape[1] < self.prompt_length:
            raise ValueError(
                f"prompt_length={self.prompt_length}, but the text has {input_ids.shape[1]} tokens: "
                "it is the width of generate's input_ids, padding included."
            )
        texts = input_ids[:, self.prompt_length :].tolist()
        allowed = torch.ones(scores.shape, dtype=torch.bool)
        for row, text in zip(allowed, texts, strict=True):
            self._allow(text, row)
        return scores.masked_fill(~allowed.to(scores.device), -torch.inf)

    @abstractmethod
    def _allow(self, text: list[int], row: Tensor) -> None:
        """Write into `row` `[vocab]` bool, all True, what may follow the text."""


class XGrammarLogitsProcessor(_GrammarProcessor):
    """An `xgrammar.CompiledGrammar` as a stateless logits processor, one grammar for all rows.

    Args:
        compiled_grammar: compiled for the model's tokenizer.
        prompt_length: the width of `generate`'s `input_ids`, padding included.

    Raises:
        ValueError: a prompt length below 1; when called, a text shorter than the prompt.
    """

    def __init__(self, compiled_grammar: Any, prompt_length: int) -> None:
        super().__init__(prompt_length)
        self._grammar = compiled_grammar
        # what the matcher has read is no state: every call takes it back to its own text
        self._lock = threading.Lock()
        self._matcher: Any = None
        self._read: list[int] = []

    def _allow(self, text: list[int], row: Tensor) -> None:
        import xgrammar

        with self._lock:
            if self._matcher is None:
                self._matcher = xgrammar.GrammarMatcher(self._grammar)
            if not self._follow(text):
                return
            width = self._grammar.tokenizer_info.vocab_size
            bitmask = xgrammar.allocate_token_bitmask(1, width)
            self._matcher.fill_next_token_bitmask(bitmask)
        bits = bitmask[0, :, None] >> torch.arange(_WORD, dtype=torch.int32)
        allowed = (bits & 1).bool().flatten()[: min(width, len(row))]
        row[: len(allowed)] = allowed
        row[len(allowed) :] = False

    def _follow(self, text: list[int]) -> bool:
        """Move the matcher to the text; False where it has ended or is outside the grammar."""
        common = _common_prefix(text, self._read)
        if common < len(self._read):
            self._matcher.rollback(len(self._read) - common)
            del self._read[common:]
        for token in text[common:]:
            if self._matcher.is_terminated() or not self._matcher.accept_token(token):
                return False
            self._read.append(token)
        return not self._matcher.is_terminated()


def _common_prefix(one: list[int], other: list[int]) -> int:
    for index, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return index
    return min(len(one), len(other))


class OutlinesLogitsProcessor(_GrammarProcessor):
    """An `outlines_core.Index` as a stateless logits processor, one index for all rows.

    Args:
        index: of a regular expression, built from the model's vocabulary.
        prompt_length: the width of `generate`'s `input_ids`, padding included.

    Raises:
        ValueError: a prompt length below 1; when called, a text shorter than the prompt.
    """

    def __init__(self, index: Any, prompt_length: int) -> None:
        super().__init__(prompt_length)
        self._index = index

    def _allow(self, text: list[int], row: Tensor) -> None:
        state = self._index.get_initial_state()
        for token in text:
            state = self._index.get_next_state(state, token)
            if state is None:
                return
        allowed = self._index.get_allowed_tokens(state)
        if allowed:
            row.fill_(False)
            row[torch.tensor(allowed)] = True
