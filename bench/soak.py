"""10,000 short generations with mixed options: errors, memory, objects and the law.

    python bench/soak.py --json bench/results/soak.json
    python bench/soak.py --generations 200 --groups 12

Every generation takes one group of options, at random: draft sources, paths, lengths, verifiers, structures,
layouts, rules, temperatures, a repetition penalty, left-padded batches, end tokens, caches and dtypes, on two tiny
random models. What came out is held against the target alone (`soak_law.py`): every token must have been allowed,
every row must end where an end token says, and the tokens of a group are counted against the sum of their laws, the
first new token and the later ones apart. The resident memory and the number of objects that the collector knows are
recorded; their slopes over the second half of the run stand with 95 % intervals.
"""

from __future__ import annotations

import gc
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from scipy import stats
from torch import Tensor

from warpdraft.bench.soak_groups import LONGEST, PAD, PROMPTS, Group, Pair, groups_of, pairs
from warpdraft.bench.soak_law import Tally
from warpdraft.bench.throughput.machine import machine_line
from warpdraft.integrations.transformers import generate

FALSE_ALARMS = 1e-3
"""Chance that a run of lossless code says otherwise, all its chi-squares together."""


class Soak:
    """The groups, and what came out of them.

    Attributes:
        errors: what was raised, and every text that cannot be, by its message.
        tokens: new tokens so far.
    """

    def __init__(self, seed: int, groups: int) -> None:
        self.rng = random.Random(seed)
        self.seed = seed
        self.groups = groups_of(self.rng, groups)
        self.pairs = pairs()
        # the first new token and the later ones
        self.tallies = [(Tally(), Tally()) for _ in self.groups]
        self.errors: Counter[str] = Counter()
        self.rows = 0
        self.tokens = 0

    def generate(self, number: int) -> None:
        """One generation of a group at random."""
        place = self.rng.randrange(len(self.groups))
        group = self.groups[place]
        pair = self.pairs[group.dtype]
        batch = [self.rng.choice(PROMPTS) for _ in range(group.batch)]
        prompts, seen = padded(batch)
        text = text_of(
            group, pair, prompts, seen, self.rng.randrange(2, LONGEST), self.seed + number
        )
        self.count(place, text, seen)

    def count(self, place: int, text: Tensor, seen: Tensor) -> None:
        """Hold the new tokens against their laws."""
        group = self.groups[place]
        laws = group.laws(self.pairs[group.dtype].target, text, seen)
        ended = torch.zeros(len(text), dtype=torch.bool)
        for depth, column in enumerate(text[:, seen.shape[1] :].T):
            if (column[ended] != PAD).any():
                self.errors["a token after the end"] += 1
            writing, law = ~ended, laws[:, depth]
            chance = law[writing].gather(1, column[writing, None])
            if (chance == 0).any():
                self.errors["a token that the rules do not allow"] += 1
            self.tallies[place][min(depth, 1)].add(column[writing], law[writing])
            self.tokens += int(writing.sum())
            ended |= torch.isin(column, torch.tensor(group.ends, dtype=column.dtype))
        self.rows += len(text)

    def p_values(self) -> list[float]:
        """Of all tallies with tokens enough."""
        found = (tally.p_value() for pair in self.tallies for tally in pair)
        return [value for value in found if value is not None]


def padded(prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Token ids `[batch, length]` padded on the left, and their mask."""
    length = max(map(len, prompts))
    ids = [[PAD] * (length - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids), torch.tensor(mask)


def text_of(
    group: Group, pair: Pair, prompts: Tensor, seen: Tensor, new_tokens: int, seed: int
) -> Tensor:
    """Prompts and new tokens `[batch, length + new]`."""
    text = generate(
        pair.target,
        group.draft_of(pair),
        prompts,
        seed=seed,
        rules=group.rules,
        attention_mask=seen,
        do_sample=True,
        temperature=group.temperature,
        repetition_penalty=group.penalty,
        top_k=0,
        eos_token_id=list(group.ends) or None,
        pad_token_id=PAD,
        max_new_tokens=new_tokens,
        cache_implementation=group.cache,
        disable_compile=True,
        **group.speculation(),
    )
    assert isinstance(text, Tensor)
    return text


def resident() -> float:
    """Resident memory of this process in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def slope(points: Sequence[tuple[int, float]]) -> tuple[float, float, float]:
    """Growth a 1,000 generations over the second half, with its 95 % interval.

    Raises:
        ValueError: fewer than 8 points.
    """
    if len(points) < 8:
        raise ValueError(f"a slope needs at least 8 points, got {len(points)}")
    late = np.array(points[len(points) // 2 :], dtype=float)
    # a count that stands still has no residuals, of which linregress makes NaN
    if (late[:, 1] == late[0, 1]).all():
        return 0.0, 0.0, 0.0
    fit = stats.linregress(late[:, 0] / 1000, late[:, 1])
    half = float(stats.t.ppf(0.975, len(late) - 2) * fit.stderr)
    return float(fit.slope), float(fit.slope) - half, float(fit.slope) + half


def soak(generations: int, seed: int, groups: int) -> dict[str, Any]:
    """Run, and say what happened."""
    run = Soak(seed, groups)
    memory: list[tuple[int, float]] = []
    objects: list[tuple[int, float]] = []
    start = time.monotonic()
    every = max(1, generations // 200)
    for number in range(1, generations + 1):
        try:
            run.generate(number)
        # a soak is there to find what nobody thought of: it goes on, and counts
        except Exception as error:
            run.errors[f"{type(error).__name__}: {error}"[:200]] += 1
        if number % every == 0:
            gc.collect()
            memory.append((number, resident()))
            objects.append((number, float(len(gc.get_objects()))))
    chances = run.p_values()
    least = min(chances, default=1.0)
    return {
        "command": f"python bench/soak.py --generations {generations} --groups {groups} --seed {seed}",
        "machine": machine_line(torch.device("cpu")),
        "minutes": round((time.monotonic() - start) / 60, 1),
        "generations": generations,
        "groups": len(run.groups),
        "rows": run.rows,
        "tokens": run.tokens,
        "errors": dict(run.errors),
        "resident_MiB": [round(value, 1) for _, value in memory],
        "resident_MiB_per_1000": [round(value, 3) for value in slope(memory)],
        "objects_per_1000": [round(value, 1) for value in slope(objects)],
        "chi_squares": len(chances),
        "least_p": least,
        "false_alarm_rate": FALSE_ALARMS,
        "law_holds": least > FALSE_ALARMS / max(1, len(chances)),
    }


def main(
    generations: Annotated[int, typer.Option(min=8, help="How many.")] = 10_000,
    groups: Annotated[int, typer.Option(min=1, help="Of options.")] = 100,
    seed: Annotated[int, typer.Option(help="Of groups, prompts and texts.")] = 1,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Where the result is written.")
    ] = None,
) -> None:
    """Run, print the result, and exit with 1 where something was wrong."""
    torch.set_num_threads(1)
    found = soak(generations, seed, groups)
    text = json.dumps(found, indent=1)
    typer.echo(text)
    if json_file is not None:
        json_file.write_text(text + "\n", encoding="utf-8")
    if found["errors"] or not found["law_holds"]:
        sys.exit(1)


if __name__ == "__main__":
    typer.run(main)
