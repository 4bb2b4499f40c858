"""What `warpdraft bench kernels` prints, beside its files."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from rich import box
from rich.table import Table

from warpdraft.bench.baselines.provider import NotMeasured, Provider
from warpdraft.bench.console import stdout, table

from .inputs import make_inputs
from .kernels import Cell
from .launches import ncu_command, write_trace
from .results import Change, Result
from .run import Report, moved_bytes


def print_report(report: Report, *, check_only: bool) -> None:
    """The machine, the table, the launches and what was not measured."""
    if report.results:
        stdout.print(report.results[0].machine, soft_wrap=True)
    measured = [line for line in report.results if line.median_us is not None]
    if measured:
        stdout.print(f"copy bandwidth in this run: {report.copy_gb_s:.1f} GB/s")
        for shown in _times(measured):
            stdout.print(shown)
    for line in measured:
        if line.launch_us and line.cache == "cold":
            walk = "" if line.walk_us is None else f"; the walk {line.walk_us:.1f} us"
            stdout.print(
                f"{_cell(line)}, {line.provider}, launches in us: {line.launch_us}{walk}",
                soft_wrap=True,
            )
    for line in report.results:
        if line.median_us is None:
            stdout.print(f"{_cell(line)}, {line.provider}: {line.note}", soft_wrap=True)
    if check_only and not report.failures:
        stdout.print("every row that was checked passes the gate")


def _times(lines: Sequence[Result]) -> list[Table]:
    """A table a cell, a line a provider: cold, then hot."""
    cells: dict[str, dict[str, list[Result]]] = {}
    for line in lines:
        cells.setdefault(_cell(line), {}).setdefault(line.provider, []).append(line)
    tables = []
    for cell, providers in cells.items():
        columns = ("p20", "p80", "GB/s", "% copy", "% floor", "hot us", "p20", "p80", "GB/s", "by")
        shown = table("provider", "cold us", *columns, title=cell)
        shown.box = box.SIMPLE_HEAD
        for provider, (cold, hot) in providers.items():
            shown.add_row(
                provider,
                *map(_number, (cold.median_us, cold.p20_us, cold.p80_us)),
                *map(_number, (cold.gb_s, cold.copy_percent, cold.floor_percent)),
                *map(_number, (hot.median_us, hot.p20_us, hot.p80_us, hot.gb_s)),
                cold.mode,
            )
        tables.append(shown)
    return tables


def print_changes(changes: Sequence[Change]) -> bool:
    """The ratios to an earlier file; whether one of them is a regression."""
    shown = table(
        "kernel", "shape", "dtype", "provider", "cache", "us before", "us now", "ratio", "",
        title="beside the old file",
    )  # fmt: skip
    for change in changes:
        line = change.new
        shown.add_row(
            line.kernel,
            f"{line.batch} x {line.vocab}",
            line.dtype,
            line.provider,
            line.cache,
            _number(change.old.median_us),
            _number(line.median_us),
            f"{change.ratio:.3f}",
            "REGRESSION" if change.regression else "",
            style="bold red" if change.regression else "",
        )
    stdout.print(shown)
    return any(change.regression for change in changes)


def print_ncu(cell: Cell, provider: str, device: torch.device) -> None:
    """The command that measures what a cell reads from memory."""
    inputs = make_inputs(cell, device)
    reads = 1 if cell.kernel.output != "block" else moved_bytes(cell, inputs) // inputs.size
    stdout.print(ncu_command(cell, provider, inputs, reads=reads), soft_wrap=True, markup=False)


def trace(cell: Cell, providers: Sequence[Provider], device: torch.device, path: Path) -> None:
    """A chrome trace of one cell: every provider that can run it."""
    inputs = make_inputs(cell, device)
    runs = []
    for provider in providers:
        try:
            call = provider.prepare(cell.kernel, inputs, 0)
        except NotMeasured:
            continue
        if call is not None:
            runs.append((provider.name, partial(call.run, inputs.copy())))
    write_trace(runs, device, path)


def _cell(line: Result) -> str:
    kept = "" if line.kept is None else f", keeps {line.kept:g}"
    return f"{line.kernel}, {line.batch} x {line.vocab} {line.dtype}, {line.rows}{kept}"


def _number(value: float | None) -> str:
    """Three digits or more."""
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
