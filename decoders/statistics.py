"""What a generation did: counted as it runs, and handed back with the text."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(slots=True)
class GenerationStats:
    """Counts and times of one call of `generate`, over all rows of the batch.

    Attributes:
        target_calls: target calls that each row took part in, summed over the rows (prompts not counted).
        emitted_tokens: new tokens, summed over the rows.
        drafted_tokens: tokens of one draft path, summed over calls and rows: L a call, apart from stops and from
            texts in which prompt look-up found fewer.
        accepted_tokens: drafted tokens that were emitted.
        drafted_by_position: calls in which position i of the path was drafted.
        accepted_by_position: calls in which it was accepted.
        rules: names of the processors and rules that ran, in order.
        verifier: its name, or None for plain sampling.
        num_drafts: K of a block, the largest where it adapts; 1 in greedy decoding with i.i.d. drafts.
        draft_length: L, likewise.
        blocks_by_shape: how many blocks had K paths of L tokens, by (K, L), where that adapts.
        seed: of the noise: the same seed, batch and models write the same text.
        target_calls_by_row: target calls that each row of the batch took part in.
        emitted_tokens_by_row: new tokens of each row.
        seconds: by stage: "prefill", "draft", "target", "verify", "commit".
    """

    rules: tuple[str, ...] = ()
    verifier: str | None = None
    num_drafts: int = 0
    draft_length: int = 0
    seed: int = 0
    target_calls: int = 0
    emitted_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    drafted_by_position: list[int] = field(default_factory=list)
    accepted_by_position: list[int] = field(default_factory=list)
    target_calls_by_row: list[int] = field(default_factory=list)
    emitted_tokens_by_row: list[int] = field(default_factory=list)
    blocks_by_shape: dict[tuple[int, int], int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def block_efficiency(self) -> float:
        """Emitted tokens per target call, in [1, L + 1] apart from stops."""
        return self.emitted_tokens / self.target_calls if self.target_calls else 0.0

    @property
    def acceptance_rate(self) -> float:
        """Accepted drafted tokens / drafted tokens of one path."""
        return self.accepted_tokens / self.drafted_tokens if self.drafted_tokens else 0.0

    @property
    def acceptance_by_position(self) -> list[float]:
        """Acceptance rate of the i-th drafted token, over the calls that drafted it."""
        pairs = zip(self.accepted_by_position, self.drafted_by_position, strict=True)
        return [accepted / drafted for accepted, drafted in pairs]

    @property
    def total_seconds(self) -> float:
        """Sum over the stages."""
        return sum(self.seconds.values())

    def record_block(
        self, drafted: list[int], rows: list[int], accepted: list[int], emitted: list[int]
    ) -> None:
        """Count one block of every row that was still writing.

        Args:
            drafted: tokens of a path, a row each: L, or fewer where a source found fewer.
            rows: their numbers in the batch.
            accepted: drafted tokens that the verifier accepted, a row each.
            emitted: tokens that were emitted; where a stop cut the block, drafted tokens behind it count nowhere.
        """
        while len(self.drafted_by_position) < max(drafted, default=0):
            self.drafted_by_position.append(0)
            self.accepted_by_position.append(0)
        self.target_calls += len(emitted)
        self.emitted_tokens += sum(emitted)
        for row, length, row_accepted, row_emitted in zip(
            rows, drafted, accepted, emitted, strict=True
        ):
            missing = row + 1 - len(self.target_calls_by_row)
            self.target_calls_by_row += [0] * missing
            self.emitted_tokens_by_row += [0] * missing
            self.target_calls_by_row[row] += 1
            self.emitted_tokens_by_row[row] += row_emitted
            counted = length if row_emitted > row_accepted else row_emitted
            kept = min(row_accepted, row_emitted)
            self.drafted_tokens += counted
            self.accepted_tokens += kept
            for position in range(counted):
                self.drafted_by_position[position] += 1
                self.accepted_by_position[position] += position < kept

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time of a `with` block to a stage.

        Host time: a GPU's queue drains at the one synchronisation of the block.
        """
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start
