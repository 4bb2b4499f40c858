"""Prompt look-up: what followed the text's last tokens where they stood before will follow them again.

    for g = max_ngram, .., min_ngram:
        for every earlier place where the text's last g tokens stand, the latest first:
            draft the L tokens that follow it

Worth most where a text repeats its prompt: summaries, edited code, answers out of documents (Saxena, 2023, prompt
look-up decoding). No model runs, so a block costs one target call, and where nothing matches one plain step.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .checks import check_integer
from .draft_sources import TextSource


@dataclass(frozen=True, slots=True)
class PromptLookup(TextSource):
    """Drafts continuations that stand in the text already, prompt and new tokens alike.

    Attributes:
        max_ngram: the most last tokens that must agree, >= 1; places where more of them do are taken first.
        min_ngram: the fewest, in [1, max_ngram].

    Raises:
        TypeError: a number is no int.
        ValueError: not 1 <= min_ngram <= max_ngram.
    """

    max_ngram: int = 3
    min_ngram: int = 1

    def __post_init__(self) -> None:
        for name in ("max_ngram", "min_ngram"):
            check_integer(name, getattr(self, name))
        if self.min_ngram > self.max_ngram:
            raise ValueError(
                f"min_ngram must be in [1, max_ngram = {self.max_ngram}], got {self.min_ngram}"
            )

    def continuations(
        self, token_ids: NDArray[np.int64], num_drafts: int, draft_length: int
    ) -> list[list[int]]:
        """See `TextSource`."""
        found: list[list[int]] = []
        for end in self._places(token_ids):
            path = _following(token_ids, end, draft_length)
            if path not in found:
                found.append(path)
            if len(found) == num_drafts:
                break
        return found

    def _places(self, token_ids: NDArray[np.int64]) -> list[int]:
        """Where earlier n-grams end that the text ends with too, the best first."""
        last = len(token_ids) - 1
        by_length: list[NDArray[np.int64]] = []
        ends = np.arange(last)
        for back in range(min(self.max_ngram, last)):
            ends = ends[ends >= back]
            ends = ends[token_ids[ends - back] == token_ids[last - back]]
            by_length.append(ends)
        longest_first = reversed(by_length[self.min_ngram - 1 :])
        # a place stands in the list of every shorter n-gram too: the first time counts
        return list(dict.fromkeys(int(end) for ends in longest_first for end in ends[::-1]))


def _following(token_ids: NDArray[np.int64], end: int, length: int) -> list[int]:
    """The tokens behind a place; past the text's end they go on with themselves, as a period does."""
    period = token_ids[end + 1 :]
    repeats = -(-length // len(period))
    path: list[int] = np.tile(period, repeats)[:length].tolist()
    return path
