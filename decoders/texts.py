"""The texts that a generation writes: what stands in each row, and when a row stops."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .processors import Prefixes

StoppingCriterion = Callable[[Tensor, None], Tensor]

Stops = tuple[Tensor, Tensor, Tensor]
"""Lengths of the rows `[batch]`, the largest length (a scalar), and the end tokens `[n]`, all int64."""


class Texts:
    """Rows of token ids that grow at their own pace.

    Attributes:
        token_ids: `[batch, max_length]` int64: the prompt as it was given, the new tokens, then padding.
        lengths: `[batch]` int64, slots in use: the prompt's width and the row's new tokens.
        finished: `[batch]` bool.
        writing: the rows that had not finished when the host last looked.
    """

    def __init__(
        self,
        input_ids: Tensor,
        *,
        max_length: int,
        pad_token_id: int,
        eos_token_ids: Sequence[int] = (),
        stopping: Sequence[StoppingCriterion] = (),
    ) -> None:
        batch, width = input_ids.shape
        # the last column takes what is written nowhere, so that no write waits for a look at the texts
        self._columns = input_ids.new_full((batch, max_length + 1), pad_token_id)
        self._columns[:, :width] = input_ids
        self.token_ids = self._columns[:, :max_length]
        self.lengths = input_ids.new_full((batch,), width)
        self.finished = torch.zeros(batch, dtype=torch.bool, device=input_ids.device)
        self._max_length = max_length
        self._most = input_ids.new_tensor(max_length)
        # what the host knows of `lengths` and `finished`
        self._longest, self.writing = width, list(range(batch))
        self._eos = input_ids.new_tensor(list(eos_token_ids))
        self._stopping = tuple(stopping)

    def last_tokens(self, count: int) -> Tensor:
        """The last `count` tokens of every row, `[batch, count]`."""
        index = self.lengths[:, None] - torch.arange(count, 0, -1, device=self.lengths.device)
        return self.token_ids.gather(1, index.clamp_min(0))

    def prefixes(self, rows: Tensor, drafted: Tensor) -> Prefixes:
        """Each of the rows, which have not `ended`, continued by its drafted tokens `[len(rows), depth]`."""
        lengths, depth = self.lengths[rows], drafted.shape[1]
        token_ids = self.token_ids[rows]
        index = lengths[:, None] + torch.arange(depth, device=lengths.device)
        token_ids.scatter_(1, index, drafted)
        return Prefixes(token_ids, lengths + depth, rows, len(self.lengths))

    def may_end(self, depth: int) -> bool:
        """Whether a row can have ended after so many drafted tokens, for all that is known without a look at them."""
        full = self._longest + depth >= self._max_length
        return len(self._eos) > 0 or len(self.writing) < len(self.lengths) or full

    def ended(self, rows: Tensor, drafted: Tensor) -> Tensor:
        """Whether each of the rows, continued by its drafted tokens, has no next token: `[len(rows)]` bool."""
        full = self.lengths[rows] + drafted.shape[1] >= self._max_length
        return self.finished[rows] | full | torch.isin(drafted, self._eos).any(1)

    @property
    def stops(self) -> Stops:
        """What ends the rows, for code that looks at no number."""
        return self.lengths, self._most, self._eos

    def append(self, output_token_ids: Tensor) -> Tensor:
        """Emit a block's tokens, each row up to its first stop; then `look`.

        Without stopping criteria nothing here waits for the device.

        Args:
            output_token_ids: `[batch, L + 1]` int64, -1 where a row has no more.

        Returns:
            `[batch]` int64, how many were emitted; 0 for rows that had finished.
        """
        column = torch.arange(output_token_ids.shape[1], device=self.lengths.device)
        stops = torch.isin(output_token_ids, self._eos)
        before_stop = (stops.to(torch.int64).cumsum(1) - stops.to(torch.int64)) == 0
        fits = column < (self._max_length - self.lengths)[:, None]
        kept = (output_token_ids >= 0) & before_stop & fits & ~self.finished[:, None]
        if self._stopping:
            kept = self._until_criterion(output_token_ids, kept)
        else:
            self._write(output_token_ids, kept)
        emitted = kept.sum(1)
        self.finished |= (stops & kept).any(1) | (self.lengths >= self._max_length)
        return emitted

    def look(self, *columns: Tensor) -> list[list[int]]:
        """Bring to the host which rows go on, and further columns `[batch]`, in one transfer."""
        lengths, finished, *rest = torch.stack([self.lengths, self.finished, *columns]).tolist()
        self._longest = max(lengths)
        self.writing = [row for row, done in enumerate(finished) if not done]
        return rest

    def _write(self, output_token_ids: Tensor, kept: Tensor) -> None:
        column = torch.arange(kept.shape[1], device=kept.device)
        place = torch.where(kept, self.lengths[:, None] + column, self._max_length)
        self._columns.scatter_(1, place, output_token_ids)
        self.lengths += kept.sum(1)

    def _until_criterion(self, output_token_ids: Tensor, kept: Tensor) -> Tensor:
        """Write token by token and ask the criteria after each, as plain generation does."""
        kept = kept.clone()
        for column in range(kept.shape[1]):
            rows = kept[:, column].nonzero().squeeze(1)
            if len(rows) == 0:
                break
            self.token_ids[rows, self.lengths[rows]] = output_token_ids[rows, column]
            self.lengths[rows] += 1
            stopped = rows[self._criteria_met(rows)]
            kept[stopped, column + 1 :] = False
            self.finished[stopped] = True
        return kept

    def _criteria_met(self, rows: Tensor) -> Tensor:
        """Whether any criterion stops each row: rows of equal length are asked together, without padding."""
        met = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
        for length in self.lengths[rows].unique().tolist():
            group = self.lengths[rows] == length
            token_ids = self.token_ids[rows[group], :length]
            for criterion in self._stopping:
                met[group] |= criterion(token_ids, None).to(met.device)
        return met
