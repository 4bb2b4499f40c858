"""The README's table of kernels on a GPU, made from the committed results.

    python bench/kernel_table.py            prints it
    python bench/kernel_table.py --write    puts it into the README, between its marks

Every bench/results/kernels_*.csv (written by `warpdraft bench kernels --device cuda --csv`) gives a table.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from warpdraft.bench.marks import between, marks
from warpdraft.bench.throughput.results import Result, load

RESULTS = Path(__file__).with_name("results")
README = Path(__file__).parent.parent / "README.md"
START, END = marks("kernels on a GPU", "bench/kernel_table.py")
NOTHING = "Not measured yet: no run of `bash bench/gpu.sh` on a GPU has been committed."

OWN = "warpdraft"
RIVALS = ("torch", "torch-compiled", "hand", "hand-compiled", "transformers", "flashinfer", "vllm")


def table_of(files: Sequence[Path]) -> str:
    """Markdown of all results files that were measured on a GPU."""
    parts = []
    for file in files:
        lines = [line for line in load(file) if line.device == "cuda"]
        if lines:
            parts.append(_table(lines, file.name))
    return "\n\n".join(parts) if parts else NOTHING


def _table(lines: Sequence[Result], name: str) -> str:
    """One file: our time, its shares, and how much faster than each of the others."""
    cold = {(_cell(line), line.provider): line for line in lines if line.cache == "cold"}
    rivals = [name for name in RIVALS if any(provider == name for _, provider in cold)]
    head = ["kernel", "rows", "batch", "dtype", "us", "% of copy", "% of floor", "walk us"]
    rows = [head + [f"x {rival}" for rival in rivals]]
    for (cell, provider), line in cold.items():
        if provider != OWN:
            continue
        rows.append(
            [
                f"`{line.kernel}`, V = {line.vocab:,}",
                line.rows,
                str(line.batch),
                line.dtype,
                _number(line.median_us) or line.note,
                _number(line.copy_percent),
                _number(line.floor_percent),
                _number(line.walk_us),
                *(_speedup(line, cold.get((cell, rival))) for rival in rivals),
            ]
        )
    rows.insert(1, ["---"] * len(head + rivals))
    body = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    return (
        f"{lines[0].machine} (`{name}`). Medians with a cold L2; the last columns say how many times "
        f"faster than the others on the same rows:\n\n{body}"
    )


def _cell(line: Result) -> tuple[str | int, ...]:
    return (line.kernel, line.rows, line.vocab, line.batch, line.dtype)


def _speedup(own: Result, other: Result | None) -> str:
    if other is None:
        return ""
    if own.median_us is None or other.median_us is None:
        return "not measured"
    return f"{other.median_us / own.median_us:.1f}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def with_table(readme: str, made: str) -> str:
    """The README with another table between its marks.

    Raises:
        ValueError: a mark is missing.
    """
    return between(readme, START, END, f"\n{made}\n")


def main(
    write: Annotated[bool, typer.Option("--write", help="Change the README.")] = False,
) -> None:
    """Print the table, or put it into the README."""
    made = table_of(sorted(RESULTS.glob("kernels_*.csv")))
    if write:
        README.write_text(with_table(README.read_text(encoding="utf-8"), made), encoding="utf-8")
    else:
        typer.echo(made)


if __name__ == "__main__":
    typer.run(main)
