"""Grammar-constrained decoding: xgrammar's and outlines' grammars as stateless logits processors.

The processors that those packages ship follow one text a row, token by token. A speculative loop
asks about several continuations of one text, and takes some back; these read the text each time.
"""

from __future__ import annotations

import copy
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from warpdraft.checks import check_integer

_WORD = 32


class _GrammarProcessor(LogitsProcessor, ABC):
    """Masks every token that the grammar does not allow after the row's generated tokens.

    A text that has ended, or has left the grammar as a looked-up draft may, is not masked: nothing
    is drawn there.
    """

    stateless = True

    def __init__(self, grammars: Any, prompt_length: int) -> None:
        self._grammars = tuple(grammars) if isinstance(grammars, list | tuple) else (grammars,)
        if not self._grammars:
            raise ValueError("grammars must be one, or one a prompt, got an empty list.")
        check_integer("prompt_length", prompt_length)
        self.prompt_length = prompt_length
        # the grammar of each row of a call, where its rows are not those of the batch
        self._chosen: list[int] | None = None

    def for_batch_rows(self, rows: Tensor, batch: int) -> _GrammarProcessor:
        """The processor of some rows of the batch, int64 `[rows]`, in any order and number."""
        chosen = copy.copy(self)
        of_batch = self._places(batch)
        chosen._chosen = [of_batch[row] for row in rows.tolist()]
        return chosen

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Mask `scores` `[batch, vocab]`: a new tensor, -inf outside the grammar."""
        if input_ids.shape[1] < self.prompt_length:
            raise ValueError(
                f"prompt_length={self.prompt_length}, but the text has {input_ids.shape[1]} tokens: "
                "it is the width of generate's input_ids, padding included."
            )
        places = self._places(len(input_ids)) if self._chosen is None else self._chosen
        texts = input_ids[:, self.prompt_length :].tolist()
        allowed = torch.ones(scores.shape, dtype=torch.bool)
        for row, place, text in zip(allowed, places, texts, strict=True):
            self._allow(place, text, row)
        return scores.masked_fill(~allowed.to(scores.device), -torch.inf)

    def _places(self, batch: int) -> list[int]:
        """The grammar of each row of a batch, in which every prompt is repeated as often."""
        if batch % len(self._grammars):
            raise ValueError(
                f"{len(self._grammars)} grammars, one a prompt, cannot be those of {batch} rows."
            )
        repeats = batch // len(self._grammars)
        return [row // repeats for row in range(batch)]

    @abstractmethod
    def _allow(self, place: int, text: list[int], row: Tensor) -> None:
        """Write into `row` `[vocab]` bool, all True, what the grammar allows after the text."""


class XGrammarLogitsProcessor(_GrammarProcessor):
    """`xgrammar.CompiledGrammar`s as a stateless logits processor.

    Args:
        compiled_grammar: one for all rows, or a list of them, one a prompt of the call;
            `num_return_sequences` repeats them with their prompts. Compiled for the model's tokenizer.
        prompt_length: the width of `generate`'s `input_ids`, padding included.

    Raises:
        ValueError: no grammar, or a prompt length below 1; when called, a text shorter than the
            prompt, or a batch that is no multiple of the grammars.
    """

    def __init__(self, compiled_grammar: Any | Sequence[Any], prompt_length: int) -> None:
        super().__init__(compiled_grammar, prompt_length)
        # what the matchers have read is no state: every call takes them back to its own text
        self._lock = threading.Lock()
        self._matchers: dict[int, _Matcher] = {}

    def _allow(self, place: int, text: list[int], row: Tensor) -> None:
        import xgrammar

        grammar = self._grammars[place]
        with self._lock:
            if place not in self._matchers:
                self._matchers[place] = _Matcher(xgrammar.GrammarMatcher(grammar))
            matcher = self._matchers[place]
            if not matcher.follow(text):
                return
            width = grammar.tokenizer_info.vocab_size
            bitmask = xgrammar.allocate_token_bitmask(1, width)
            matcher.matcher.fill_next_token_bitmask(bitmask)
        bits = bitmask[0, :, None] >> torch.arange(_WORD, dtype=torch.int32)
        allowed = (bits & 1).bool().flatten()[: min(width, len(row))]
        row[: len(allowed)] = allowed
        row[len(allowed) :] = False


class _Matcher:
    """An `xgrammar.GrammarMatcher` and the tokens that it has read."""

    def __init__(self, matcher: Any) -> None:
        self.matcher = matcher
        self._read: list[int] = []

    def follow(self, text: list[int]) -> bool:
        """Move the matcher to the text; False where it has ended or is outside the grammar."""
        common = _common_prefix(text, self._read)
        if common < len(self._read):
            self.matcher.rollback(len(self._read) - common)
            del self._read[common:]
        for token in text[common:]:
            if self.matcher.is_terminated() or not self.matcher.accept_token(token):
                return False
            self._read.append(token)
        return not self.matcher.is_terminated()


def _common_prefix(one: list[int], other: list[int]) -> int:
    for index, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return index
    return min(len(one), len(other))


class OutlinesLogitsProcessor(_GrammarProcessor):
    """`outlines_core.Index`es as a stateless logits processor.

    Args:
        index: one for all rows, or a list of them, one a prompt of the call; `num_return_sequences`
            repeats them with their prompts. Of a regular expression and the model's vocabulary.
        prompt_length: the width of `generate`'s `input_ids`, padding included.

    Raises:
        ValueError: no index, or a prompt length below 1; when called, a text shorter than the
            prompt, or a batch that is no multiple of the indices.
    """

    def __init__(self, index: Any | Sequence[Any], prompt_length: int) -> None:
        super().__init__(index, prompt_length)

    def _allow(self, place: int, text: list[int], row: Tensor) -> None:
        index = self._grammars[place]
        state = index.get_initial_state()
        for token in text:
            state = index.get_next_state(state, token)
            if state is None:
                return
        allowed = index.get_allowed_tokens(state)
        if allowed:
            row.fill_(False)
            row[torch.tensor(allowed)] = True
