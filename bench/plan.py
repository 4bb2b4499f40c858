"""Where speculation pays: the cost model over batch sizes and contexts, for measured or assumed block efficiency.

Block efficiency comes from a measurement, one number for every K and L, or from the chance a_1 that a draft token is
accepted (a_K: that one of K candidates is), which then holds at every position, whatever was accepted before:

    efficiency(K, L) = 1 + a_K (1 + a_1 + ... + a_1^(L-1))        one path survives the first token
    a_K = 1 - (1 - a_1)^K                                         where only a_1 is given

Both lines are assumptions: real acceptance falls with the depth, and candidates of one law are not independent chances.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .model_shape import ModelShape
from .roofline import CostModel

if TYPE_CHECKING:
    from .bench_speculation import Measurement

Efficiencies = dict[tuple[int, int], float]
"""Block efficiency by K and L."""

MOST_TEXTS = 512
"""No larger batch is looked at."""


def accepted_with(
    rates: Sequence[float], drafts: Sequence[int], lengths: Sequence[int]
) -> Efficiencies:
    """Block efficiency from acceptance, by the formula above.

    Args:
        rates: a_1 alone, or one a_K for each of `drafts`, K = 1 among them.
        drafts: K.
        lengths: L.

    Raises:
        ValueError: a rate outside [0, 1], or another number of them.
    """
    if not rates or any(not 0 <= rate <= 1 for rate in rates):
        raise ValueError(f"--acceptance takes rates in [0, 1], got {list(rates)}")
    if len(rates) == 1:
        first = rates[0]
        by_drafts = {paths: 1 - (1 - first) ** paths for paths in drafts}
    elif len(rates) == len(drafts) and 1 in drafts:
        by_drafts = dict(zip(drafts, rates, strict=True))
        first = by_drafts[1]
    else:
        raise ValueError(
            f"--acceptance takes one rate, or one for each of --num-drafts with 1 among them: got {len(rates)} "
            f"rates for {list(drafts)}"
        )
    return {
        (paths, length): 1 + by_drafts[paths] * sum(first**depth for depth in range(length))
        for paths in drafts
        for length in lengths
    }


def measured_efficiencies(lines: Sequence[Mapping[str, Any]]) -> Efficiencies:
    """The best verifier's block efficiency of every K and L in lines of `warpdraft bench spec`.

    Raises:
        ValueError: none of them drafts.
    """
    found: Efficiencies = {}
    for line in lines:
        key = int(line["num_drafts"]), int(line["draft_length"])
        if key[0] > 0:
            found[key] = max(found.get(key, 0.0), float(line["block_efficiency"]))
    if not found:
        raise ValueError("the measurement holds no line with drafts")
    return found


def efficiencies_of(measurements: Sequence[Measurement]) -> Efficiencies:
    """Those of a measurement that was just made."""
    return measured_efficiencies(
        [
            {
                name: getattr(line, name)
                for name in ("num_drafts", "draft_length", "block_efficiency")
            }
            for line in measurements
        ]
    )


def read_efficiencies(text: str, drafts: Sequence[int], lengths: Sequence[int]) -> Efficiencies:
    """What `--efficiency` names: a number for the one K and L, or a CSV or JSON file that this command wrote.

    Raises:
        ValueError: no such number, several K or L, or a file with other columns.
        OSError: no such file.
    """
    try:
        number = float(text)
    except ValueError:
        return _read_file(Path(text))
    if len(drafts) != 1 or len(lengths) != 1:
        raise ValueError(
            "--efficiency with a number needs one K and one L: --num-drafts and --draft-length"
        )
    if not 1 <= number <= lengths[0] + 1:
        raise ValueError(f"--efficiency must be in [1, L + 1] = [1, {lengths[0] + 1}], got {text}")
    return {(drafts[0], lengths[0]): number}


def _read_file(file: Path) -> Efficiencies:
    with file.open(newline="", encoding="utf-8") as stream:
        lines = json.load(stream) if file.suffix == ".json" else list(csv.DictReader(stream))
    try:
        return measured_efficiencies(lines)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{file} is no file that `warpdraft bench spec` wrote") from error


@dataclass(frozen=True, slots=True)
class PlanLine:
    """One batch size and context at one K and L.

    Attributes:
        context: cached tokens of each text.
        batch: texts.
        num_drafts: K.
        draft_length: L.
        block_efficiency: what was measured or assumed.
        plain_tokens_per_second: of all texts; None where plain sampling does not fit into the memory.
        tokens_per_second: of speculative sampling; None where it does not fit.
        ratio: of the two; None where one is.
        draft_share: of a block's time.
        target_share: of a block's time.
        truncate_share: of a block's time.
        verify_share: of a block's time.
        gigabytes: that speculative sampling takes.
    """

    context: int
    batch: int
    num_drafts: int
    draft_length: int
    block_efficiency: float
    plain_tokens_per_second: float | None
    tokens_per_second: float | None
    ratio: float | None
    draft_share: float
    target_share: float
    truncate_share: float
    verify_share: float
    gigabytes: float


@dataclass(frozen=True, slots=True)
class Limits:
    """Where something ends at one context; batch sizes, 0 for none.

    Attributes:
        context: cached tokens of each text.
        pays: the largest batch at which some K and L is faster than plain sampling.
        fits: the largest batch at which some K and L fits into the memory.
        plain_fits: the largest batch of plain sampling.
    """

    context: int
    pays: int
    fits: int
    plain_fits: int


@dataclass(frozen=True, slots=True)
class Plan:
    """Models on a machine.

    Attributes:
        cost: the machine and what is assumed of it.
        target: scores.
        draft: proposes.
        efficiencies: by K and L.
        is_tree: how the drafts of a text are held.
    """

    cost: CostModel
    target: ModelShape
    draft: ModelShape
    efficiencies: Efficiencies
    is_tree: bool = True

    def line(self, context: int, batch: int, num_drafts: int, length: int) -> PlanLine:
        """One batch size and context at one K and L."""
        efficiency = self.efficiencies[num_drafts, length]
        shape = (self.target, self.draft, batch, context, num_drafts, length)
        block = self.cost.speculative(*shape, efficiency, is_tree=self.is_tree)
        needed = self.cost.speculative_bytes(*shape, is_tree=self.is_tree)
        plain = self.plain(context, batch)
        speed = block.tokens_per_second if self.cost.fits(needed) else None
        return PlanLine(
            context=context,
            batch=batch,
            num_drafts=num_drafts,
            draft_length=length,
            block_efficiency=efficiency,
            plain_tokens_per_second=plain,
            tokens_per_second=speed,
            ratio=None if plain is None or speed is None else speed / plain,
            draft_share=block.draft / block.seconds,
            target_share=block.target / block.seconds,
            truncate_share=block.truncate / block.seconds,
            verify_share=block.verify / block.seconds,
            gigabytes=needed / 1e9,
        )

    def plain(self, context: int, batch: int) -> float | None:
        """Tokens a second of plain sampling; None where it does not fit."""
        if not self.plain_fits(context, batch):
            return None
        return self.cost.plain(self.target, batch, context).tokens_per_second

    def lines(self, contexts: Sequence[int], batches: Sequence[int]) -> Iterator[PlanLine]:
        """All of them, the settings of one batch size behind each other."""
        for context in contexts:
            for batch in batches:
                for num_drafts, length in self.efficiencies:
                    yield self.line(context, batch, num_drafts, length)

    def best(self, context: int, batch: int) -> PlanLine:
        """The fastest setting that fits; where none does, the one that takes the least memory."""
        lines = [self.line(context, batch, *setting) for setting in self.efficiencies]
        return max(lines, key=lambda line: (line.tokens_per_second or 0.0, -line.gigabytes))

    def limits(self, context: int) -> Limits:
        """Where speculation stops paying and where memory ends, among batches up to `MOST_TEXTS`."""
        batches = range(MOST_TEXTS, 0, -1)
        return Limits(
            context,
            # every batch is tried: the ratio may rise before it falls
            pays=next((batch for batch in batches if self.pays(context, batch)), 0),
            fits=next((batch for batch in batches if self.some_fit(context, batch)), 0),
            plain_fits=next((batch for batch in batches if self.plain_fits(context, batch)), 0),
        )

    def plain_fits(self, context: int, batch: int) -> bool:
        """Whether plain sampling fits into the memory."""
        return self.cost.fits(self.cost.plain_bytes(self.target, batch, context))

    def some_fit(self, context: int, batch: int) -> bool:
        """Whether some setting fits into the memory."""
        return any(
            self.cost.fits(
                self.cost.speculative_bytes(
                    self.target, self.draft, batch, context, *setting, is_tree=self.is_tree
                )
            )
            for setting in self.efficiencies
        )

    def pays(self, context: int, batch: int) -> bool:
        """Whether some setting that fits is faster than plain sampling."""
        if not self.some_fit(context, batch):
            return False
        best = self.best(context, batch)
        return best.ratio is not None and best.ratio > 1
