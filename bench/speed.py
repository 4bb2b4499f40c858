"""Tokens a second of plain, assisted and our generation of one pair in one run, and a block's cost beside its models.

    python bench/speed.py --json speed.json

Every way writes the same prompts, by turns, and the median of the rounds counts. Assisted generation gets the best of
1, 2, 3, 4 and 8 assistant tokens (threshold 0), ours the best of three draft lengths; transformers' assists one text at
a time. Plain generation runs on a compiled static cache too, for what compilation gains is no gain of drafting. Time
is the process's CPU time, so run it on one thread (the default): what else the machine does then changes it little.
Prompts are read within the time.

What a block costs beside its models is the time of its stages less that of the same models' calls alone: same shapes,
compiled the same way, one after the other.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from warpdraft.bench.options import SkippedLayers

if TYPE_CHECKING:
    from transformers import BatchEncoding

    from warpdraft.bench.model_pair import ModelPair
    from warpdraft.bench.strategies import Run, Sampling

ASSISTANT_TOKENS = (1, 2, 3, 4, 8)
DRAFT_LENGTHS = (2, 3, 4)


@dataclass(frozen=True, slots=True)
class Line:
    """One way to write the texts of one batch size.

    Attributes:
        name: plain, assisted or ours.
        batch: texts at a time.
        drafts: how it drafts, in words.
        tokens_per_second: median of the rounds, over all batches.
        spread: of the slowest and the fastest round.
        block_efficiency: emitted tokens a target call, all rounds.
        stages: milliseconds of our loop's stages a block, all rounds.
    """

    name: str
    batch: int
    drafts: str
    tokens_per_second: float
    spread: tuple[float, float]
    block_efficiency: float
    stages: dict[str, float]


@dataclass(frozen=True, slots=True)
class Overhead:
    """Milliseconds of a block, batch 1, K = 1.

    Attributes:
        way: "dynamic" or "compiled".
        draft_length: L.
        draft: the stage.
        draft_model: the draft model's calls in it, alone.
        target: the stage.
        target_model: the target's call in it, alone.
        verify: the stage.
        rest: commit, and the prompt's share.
    """

    way: str
    draft_length: int
    draft: float
    draft_model: float
    target: float
    target_model: float
    verify: float
    rest: float

    @property
    def ours(self) -> float:
        """What is not a model's call."""
        whole = self.draft + self.target + self.verify + self.rest
        return whole - self.draft_model - self.target_model


def main(
    prompts: Annotated[int, typer.Option(min=1, help="Texts at batch 1, held out ones.")] = 6,
    batch: Annotated[int, typer.Option(min=1, help="The larger batch, written once a round.")] = 8,
    max_new_tokens: Annotated[int, typer.Option(min=8, help="New tokens of each text.")] = 96,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of all ways.")] = 3,
    threads: Annotated[
        int, typer.Option(min=1, help="Threads of torch; of several, wall time.")
    ] = 1,
    model: Annotated[str | None, typer.Option(help="A target in place of the built-in.")] = None,
    draft: Annotated[str | None, typer.Option(help="Its draft.")] = None,
    skip: SkippedLayers = None,
    compile: Annotated[bool, typer.Option(help="Ours on compiled calls too.")] = True,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all of it here.")] = None,
) -> None:
    """Time all ways of one pair."""
    import torch

    from warpdraft.bench.model_pair import load_pair
    from warpdraft.bench.strategies import Sampling
    from warpdraft.bench.throughput.machine import machine_line

    torch.set_num_threads(threads)
    clock = time.process_time if threads == 1 else time.perf_counter
    pair = load_pair(model, draft, skip=skip or (), dtype="float32")
    sampling = Sampling((), 1.0, max_new_tokens, 0)
    lines = []
    for texts in (1, batch):
        ways = ways_of(pair, sampling, batch=texts, compiled=compile)
        batches = encoded(pair, texts, prompts if texts == 1 else texts)
        lines += timed(ways, batches, texts, rounds, clock)
        print_lines([line for line in lines if line.batch == texts])
    overheads = [overhead_of(pair, line, clock) for line in best_of_one_path(lines)]
    for overhead in overheads:
        print_overhead(overhead)
    if json_file is not None:
        record = {
            "machine": machine_line(torch.device("cpu")),
            "settings": {
                "threads": threads,
                "prompts": prompts,
                "max_new_tokens": max_new_tokens,
                "rounds": rounds,
            },
            "lines": [asdict(line) for line in lines],
            "overheads": [asdict(overhead) for overhead in overheads],
        }
        json_file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


Way = Callable[["BatchEncoding", int], "Run"]


def ways_of(
    pair: ModelPair, sampling: Sampling, *, batch: int, compiled: bool
) -> dict[tuple[str, str], Way]:
    """Every way to write a batch, by name and drafts; each takes prompts and a seed."""
    from dataclasses import replace

    from warpdraft.bench.strategies import Speculation, run_assisted, run_plain, run_warpdraft

    def plain(inputs: BatchEncoding, seed: int) -> Run:
        return run_plain(pair, inputs, replace(sampling, seed=seed))

    def assisted(tokens: int) -> Way:
        return lambda inputs, seed: run_assisted(pair, inputs, replace(sampling, seed=seed), tokens)

    def ours(speculation: Speculation) -> Way:
        return lambda inputs, seed: run_warpdraft(
            pair, inputs, replace(sampling, seed=seed), speculation
        )

    ways: dict[tuple[str, str], Way] = {("plain", ""): plain}
    if compiled:
        ways["plain", "compiled"] = lambda inputs, seed: run_plain_compiled(
            pair, inputs, replace(sampling, seed=seed)
        )
    for tokens in ASSISTANT_TOKENS if batch == 1 else ():
        ways["assisted", f"{tokens} tokens"] = assisted(tokens)
    for num_drafts in (1, 4):
        for length in DRAFT_LENGTHS:
            for way in (False, True) if compiled else (False,):
                drafts = f"K = {num_drafts}, L = {length}{', compiled' if way else ''}"
                speculation = Speculation(num_drafts, length, "optimal_block", compiled=way)
                ways["ours", drafts] = ours(speculation)
    return ways


def run_plain_compiled(pair: ModelPair, inputs: BatchEncoding, sampling: Sampling) -> Run:
    """Plain sampling by transformers on a static cache, its call of one token compiled."""
    import torch
    from transformers import CompileConfig

    from warpdraft.bench.strategies import Run, emitted_tokens

    mode: Any = None
    config: Any = CompileConfig(fullgraph=False, dynamic=False, mode=mode)
    # transformers compiles by itself on accelerators alone
    config._compile_all_devices = True
    torch.manual_seed(sampling.seed)
    target: Any = pair.target
    start = time.perf_counter()
    sequences = target.generate(
        **inputs,
        **sampling.generate_arguments(),
        cache_implementation="static",
        compile_config=config,
    )
    seconds = time.perf_counter() - start
    tokens = emitted_tokens(pair, sequences[:, inputs["input_ids"].shape[1] :])
    return Run("plain sampling, compiled", tokens, tokens, seconds)


def encoded(pair: ModelPair, batch: int, prompts: int) -> list[BatchEncoding]:
    """The held-out prompts in batches."""
    from warpdraft.builtin_pair import held_out_prompts

    texts = held_out_prompts()[:prompts]
    return [
        pair.encode(texts[start : start + batch], raw=True) for start in range(0, prompts, batch)
    ]


def timed(
    ways: dict[tuple[str, str], Way],
    batches: list[BatchEncoding],
    batch: int,
    rounds: int,
    clock: Callable[[], float],
) -> list[Line]:
    """Run all ways by turns; a round is all batches with one seed."""
    speeds: dict[tuple[str, str], list[float]] = {key: [] for key in ways}
    runs: dict[tuple[str, str], list[Run]] = {key: [] for key in ways}
    for way in ways.values():
        # compiled for every batch's shape, and all that is made at first use
        for inputs in batches:
            way(inputs, 0)
    for seed in range(1, rounds + 1):
        for key, way in ways.items():
            start = clock()
            written = [way(inputs, seed) for inputs in batches]
            seconds = clock() - start
            speeds[key].append(sum(run.tokens for run in written) / seconds)
            runs[key] += written
    return [
        Line(
            name,
            batch,
            drafts,
            statistics.median(speeds[name, drafts]),
            (min(speeds[name, drafts]), max(speeds[name, drafts])),
            sum(run.tokens for run in runs[name, drafts])
            / sum(run.target_calls for run in runs[name, drafts]),
            stages_of(runs[name, drafts]),
        )
        for name, drafts in ways
    ]


def stages_of(runs: list[Run]) -> dict[str, float]:
    """Milliseconds of the loop's stages a block."""
    stages: dict[str, float] = {}
    blocks = 0
    for run in runs:
        if run.stats is None:
            return {}
        blocks += max(run.stats.target_calls_by_row)
        for stage, seconds in run.stats.seconds.items():
            stages[stage] = stages.get(stage, 0.0) + 1000 * seconds
    return {stage: milliseconds / blocks for stage, milliseconds in stages.items()}


def best(lines: list[Line], name: str, batch: int, drafts: str = "") -> Line | None:
    """The fastest line of a name whose drafts start like that."""
    found = [x for x in lines if (x.name, x.batch) == (name, batch) and x.drafts.startswith(drafts)]
    return max(found, key=lambda line: line.tokens_per_second, default=None)


def best_of_one_path(lines: list[Line]) -> list[Line]:
    """Our fastest lines of one path at batch 1, compiled and not."""
    ours = [x for x in lines if x.name == "ours" and x.batch == 1 and x.drafts.startswith("K = 1,")]
    kinds = [[x for x in ours if ("compiled" in x.drafts) == kind] for kind in (False, True)]
    return [max(kind, key=lambda line: line.tokens_per_second) for kind in kinds if kind]


def overhead_of(pair: ModelPair, line: Line, clock: Callable[[], float]) -> Overhead:
    """A block's stages beside the calls of its models alone."""
    length = int(line.drafts.split("L = ")[1].split(",")[0])
    way = "compiled" if "compiled" in line.drafts else "dynamic"
    draft, target = call_seconds(pair, length, way, clock)
    stages = line.stages
    rest = sum(stages.get(stage, 0.0) for stage in ("prefill", "commit"))
    return Overhead(
        way,
        length,
        stages["draft"],
        1000 * draft,
        stages["target"],
        1000 * target,
        stages["verify"],
        rest,
    )


def call_seconds(
    pair: ModelPair, length: int, way: str, clock: Callable[[], float]
) -> tuple[float, float]:
    """Seconds of the draft's calls of one block and of the target's, on caches of 128 tokens."""
    import torch
    from transformers import CompileConfig

    from warpdraft.cached_model import CachedModel
    from warpdraft.slot_model import SlotModel, capacity_for

    device = torch.device("cpu")
    prompt, number = torch.full((1, 128), 5), torch.arange(128)

    def reader(model: Any) -> Callable[[int], None]:
        if way == "dynamic":
            cached = CachedModel(model, 1, device)
            cached.prefill(prompt, torch.tensor([128]))

            def read(tokens: int) -> None:
                cached.forward(prompt[:, :tokens])
                cached.commit(number[:1], number[tokens : tokens + 1])

            return read
        mode: Any = None
        config = CompileConfig(fullgraph=True, dynamic=False, mode=mode)
        slots = SlotModel(
            model, 1, device, capacity=capacity_for(224, length), compile_config=config
        )
        slots.prefill(prompt, torch.tensor([128]))

        def read_slots(tokens: int) -> None:
            place = number[:tokens]
            slots.read(prompt[:, :tokens], place, place, place <= place[:, None], fast=True)

        return read_slots

    def median(read: Callable[[int], None], tokens: int) -> float:
        seconds = []
        for _ in range(60):
            start = clock()
            read(tokens)
            seconds.append(clock() - start)
        return statistics.median(seconds[10:])

    with torch.no_grad():
        draft, target = reader(pair.draft), reader(pair.target)
        return median(draft, 2) + (length - 1) * median(draft, 1), median(target, length + 1)


def print_lines(lines: list[Line]) -> None:
    """A table of one batch size."""
    plain = next(line for line in lines if line.name == "plain" and not line.drafts)
    assisted = best(lines, "assisted", lines[0].batch)
    typer.echo(f"batch {plain.batch}: tokens a second (spread of the rounds), block efficiency")
    for line in lines:
        low, high = line.spread
        ratio = f"{line.tokens_per_second / plain.tokens_per_second:.2f} x plain"
        if assisted is not None:
            speed = line.tokens_per_second / assisted.tokens_per_second
            ratio += f", {speed:.2f} x the best assisted"
        typer.echo(
            f"  {line.name:9}{line.drafts:26}{line.tokens_per_second:7.1f} ({low:.1f} to {high:.1f})"
            f"  {line.block_efficiency:5.2f}   {ratio}"
        )


def print_overhead(overhead: Overhead) -> None:
    """A block's milliseconds."""
    typer.echo(
        f"a block of {overhead.way} calls, K = 1, L = {overhead.draft_length}: "
        f"draft {overhead.draft:.2f} ms (its model's calls {overhead.draft_model:.2f}), "
        f"target {overhead.target:.2f} ({overhead.target_model:.2f}), "
        f"verify {overhead.verify:.2f}, prompt and commit {overhead.rest:.2f}; "
        f"ours {overhead.ours:.2f}"
    )


if __name__ == "__main__":
    typer.run(main)
