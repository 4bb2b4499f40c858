"""Times `warpdraft.truncate` on the CPU against transformers' warpers, on rows that are checked first.

    ratio = our time / the baseline's time, each the minimum of `repeats` runs that take turns

Both sides get the same float32 rows and return a new masked tensor. Before a row is timed, its kept
set is compared with a float64 sort-and-scan: it must hold the first tokens of the sorted row, as
many as the rule allows when its bound moves by 1e-5 nats either way.

    python bench/bench_truncation.py --out results.csv
"""

from __future__ import annotations

import csv
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, TypeAlias

import numpy as np
import torch
import transformers
import typer
from numpy.typing import NDArray
from torch import Tensor
from transformers.generation import logits_process

import warpdraft
from warpdraft import MinP, TopH
from warpdraft.bench.console import progress_bar, stdout, table
from warpdraft.bench.rows import ROWS
from warpdraft.rules import Rule

# the bound of a rule may move by so much: float32 cannot tell more
AMBIGUOUS_NATS = 1e-5

Side: TypeAlias = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Case:
    """One comparison: a rule on some rows against something else on the same or other rows.

    Attributes:
        rule: what is timed.
        temperature: the rule's; the rows are not divided by it.
        baseline: what the rule is compared with.
        baseline_name: its name in the table.
        baseline_rows: the rows of the baseline; the same as the rule's when None.
        rows: the kinds of rows; all when empty.
        target: the largest ratio that is good enough.
    """

    rule: Rule
    baseline: Side
    baseline_name: str
    target: float
    temperature: float = 1.0
    rows: tuple[str, ...] = ()
    baseline_rows: str | None = None


def _warper(warper: logits_process.LogitsProcessor) -> Side:
    token_ids = torch.zeros(1, 1, dtype=torch.int64)
    return lambda rows: warper(token_ids, rows)


def _few(rows: Tensor) -> Tensor:
    return warpdraft.truncate(rows, TopH(0.4))


def cases() -> list[Case]:
    """The comparisons of the benchmark; the last ones ask what thousands of kept tokens cost."""
    flat = [
        Case(
            TopH(alpha), _few, "TopH(0.4) keeping few", 3.0, temperature, ("gaussian",), "llm_like"
        )
        for alpha, temperature in ((0.8, 1.0), (0.8, 1.5), (0.8, 2.0))
    ]
    return [
        Case(TopH(0.4), _warper(logits_process.TopHLogitsWarper(0.4)), "TopHLogitsWarper", 0.8),
        Case(MinP(0.1), _warper(logits_process.MinPLogitsWarper(0.1)), "MinPLogitsWarper", 0.35),
        *flat,
    ]


@dataclass(frozen=True, slots=True)
class Result:
    """One line of the table; times in milliseconds for the whole batch."""

    rule: str
    temperature: float
    rows: str
    vocab: int
    batch: int
    threads: int
    kept: float
    ms: float
    baseline: str
    baseline_ms: float
    ratio: float
    target: float


def run(
    vocab: int = 262_144,
    batches: Sequence[int] = (1, 8, 64),
    threads: Sequence[int] = (1, 2),
    rows: Sequence[str] = tuple(ROWS),
    repeats: int = 15,
    seed: int = 0,
) -> list[Result]:
    """Check, then time, every case on every kind of rows.

    Args:
        vocab: the width of a row.
        batches: the batch sizes.
        threads: the numbers of torch's threads.
        rows: names from `warpdraft.bench.rows.ROWS`.
        repeats: how often each side runs; the fastest run counts.
        seed: of the rows.

    Raises:
        AssertionError: a kept set differs from the float64 sort-and-scan.
    """
    logits = {name: ROWS[name](max(batches), vocab, seed=seed) for name in ROWS}
    plan = [(case, name) for case in cases() for name in rows if name in (case.rows or rows)]
    before, results = torch.get_num_threads(), []
    try:
        with progress_bar() as progress:
            task = progress.add_task("timing", total=len(plan) * len(batches) * len(threads))
            for case, name in plan:
                kept = check_kept(case.rule, case.temperature, logits[name])
                for batch in batches:
                    ours = logits[name][:batch]
                    theirs = logits[case.baseline_rows or name][:batch]
                    for count in threads:
                        torch.set_num_threads(count)
                        ms, baseline_ms = _race(case, ours, theirs, repeats)
                        results.append(
                            Result(
                                rule=f"{type(case.rule).__name__}({case.rule.value:g})",
                                temperature=case.temperature,
                                rows=name,
                                vocab=vocab,
                                batch=batch,
                                threads=count,
                                kept=float(np.median(kept[:batch])),
                                ms=ms,
                                baseline=case.baseline_name,
                                baseline_ms=baseline_ms,
                                ratio=ms / baseline_ms,
                                target=case.target,
                            )
                        )
                        progress.advance(task)
    finally:
        torch.set_num_threads(before)
    return results


def _race(case: Case, ours: Tensor, theirs: Tensor, repeats: int) -> tuple[float, float]:
    """The fastest run of each side in milliseconds; the sides take turns."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        start = time.perf_counter()
        warpdraft.truncate(ours, case.rule, temperature=case.temperature)
        middle = time.perf_counter()
        case.baseline(theirs)
        times[0].append(middle - start)
        times[1].append(time.perf_counter() - middle)
    return 1e3 * min(times[0]), 1e3 * min(times[1])


def check_kept(rule: Rule, temperature: float, logits: Tensor) -> list[int]:
    """The number of kept tokens of each row; AssertionError where they are not the right ones."""
    masked = warpdraft.truncate(logits, rule, temperature=temperature)
    counts = []
    for row, row_masked in zip(logits.numpy(), masked.numpy(), strict=True):
        kept = row_masked > -np.inf
        count = int(kept.sum())
        least, most = _allowed(rule, temperature, row)
        prefix = row[kept].min() >= row[~kept].max(initial=-np.inf)
        assert prefix and np.array_equal(row_masked[kept], row[kept]), f"{rule}: not a prefix"
        assert least <= count <= most, f"{rule}: keeps {count} tokens, not {least} to {most}"
        counts.append(count)
    return counts


def _allowed(rule: Rule, temperature: float, row: NDArray[np.float32]) -> tuple[int, int]:
    """The numbers of tokens that a float64 sort-and-scan keeps with its bound a little off."""
    levels = np.sort(row.astype(np.float64))[::-1] / temperature
    levels -= levels[0]
    if isinstance(rule, MinP):
        scores, bound = -levels, -np.log(float(rule.min_p))
    elif isinstance(rule, TopH):
        weights = np.exp(levels)
        excess = np.concatenate([[0.0], np.cumsum(weights[1:])])
        scores = np.log1p(excess) - np.cumsum(weights * levels) / (1 + excess)
        bound = float(rule.alpha) * scores[-1]
    else:
        raise AssertionError(f"no sort-and-scan for {rule}")
    return (
        max(1, int(np.count_nonzero(scores <= bound - AMBIGUOUS_NATS))),
        int(np.count_nonzero(scores <= bound + AMBIGUOUS_NATS)),
    )


def machine() -> str:
    """What the numbers were measured on."""
    return (
        f"{_processor()}, {os.cpu_count()} cores, {platform.system()}; Python "
        f"{platform.python_version()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}"
    )


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def show(results: Sequence[Result]) -> None:
    """Print the machine and the table of results."""
    stdout.print(machine())
    shown = table(
        "rule",
        "rows",
        "T",
        "batch",
        "threads",
        "kept",
        "ms",
        "baseline",
        "ms",
        "ratio",
        "target",
        title=f"warpdraft.truncate, V = {results[0].vocab:,}, float32" if results else None,
    )
    for result in results:
        style = "" if result.ratio <= result.target else "bold red"
        shown.add_row(
            result.rule,
            result.rows,
            f"{result.temperature:g}",
            str(result.batch),
            str(result.threads),
            f"{result.kept:g}",
            f"{result.ms:.3f}",
            result.baseline,
            f"{result.baseline_ms:.3f}",
            f"{result.ratio:.2f}",
            f"{result.target:g}",
            style=style,
        )
    stdout.print(shown)


def save(results: Sequence[Result], path: Path) -> None:
    """Write the results with the machine line, as CSV or (suffix .json) as JSON."""
    lines = [{**asdict(result), "machine": machine()} for result in results]
    if path.suffix == ".json":
        path.write_text(json.dumps(lines, indent=1) + "\n")
        return
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)


def main(
    vocab: Annotated[int, typer.Option(help="Tokens in a row.")] = 262_144,
    batch: Annotated[list[int], typer.Option(help="Batch sizes; repeat the option.")] = [1, 8, 64],  # noqa: B006
    threads: Annotated[list[int], typer.Option(help="Thread numbers; repeat the option.")] = [1, 2],  # noqa: B006
    repeats: Annotated[int, typer.Option(help="Runs of each side; the fastest counts.")] = 15,
    seed: Annotated[int, typer.Option(help="Of the rows.")] = 0,
    out: Annotated[Path | None, typer.Option(help="A .csv or .json file for the results.")] = None,
) -> None:
    """Time the truncation rules on the CPU against transformers' warpers."""
    results = run(vocab, batch, threads, repeats=repeats, seed=seed)
    show(results)
    if out is not None:
        save(results, out)


if __name__ == "__main__":
    typer.run(main)
