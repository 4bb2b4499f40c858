"""The lines of the benchmark: what is in them, how they are written, read and compared."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

NOISE = 0.03
"""A ratio nearer to 1 is no regression, however close together the runs were."""


@dataclass(frozen=True, slots=True)
class Result:
    """One provider on one cell with a cold or a hot cache; numbers are None where nothing was measured.

    Attributes:
        kernel: name of the kernel.
        law: its rules, or its verifier.
        rows: kind of rows.
        rows_sha256: of the first rows.
        kept: median of the tokens that a row keeps; None for blocks.
        provider: who computes it.
        device: "cpu" or "cuda".
        dtype: of the logits.
        vocab: tokens in a row.
        batch: rows or blocks.
        cache: "cold" or "hot".
        mode: "graph", "events" or "clock".
        median_us: microseconds of a call.
        p20_us: a fifth of the runs took less.
        p80_us: a fifth took more.
        gb_s: bytes that must be moved, over the median.
        copy_percent: of the bandwidth of a large copy in the same run.
        floor_us: the same bytes at the memory's data rate.
        floor_percent: of that floor.
        launch_us: launches of one call and their times, "name=3.2 name=2x1.1".
        walk_us: of the launches that walk a drafted block.
        clock: of the multiprocessors and the memory after the runs.
        note: why nothing was measured, or what is special.
        machine: device, driver, clocks, versions and commit.
    """

    kernel: str
    law: str
    rows: str
    rows_sha256: str
    kept: float | None
    provider: str
    device: str
    dtype: str
    vocab: int
    batch: int
    cache: str
    mode: str | None
    median_us: float | None
    p20_us: float | None
    p80_us: float | None
    gb_s: float | None
    copy_percent: float | None
    floor_us: float | None
    floor_percent: float | None
    launch_us: str
    walk_us: float | None
    clock: str
    note: str
    machine: str

    @property
    def key(self) -> tuple[str | int, ...]:
        """What two results must share to be compared."""
        cell = (self.kernel, self.law, self.rows, self.vocab, self.batch, self.dtype)
        return (*cell, self.provider, self.device, self.cache)


def save(results: Sequence[Result], path: Path) -> None:
    """Write a CSV, or JSON where the suffix is .json."""
    lines = [asdict(result) for result in results]
    if path.suffix == ".json":
        path.write_text(json.dumps(lines, indent=1) + "\n", encoding="utf-8")
        return
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=[field.name for field in fields(Result)])
        writer.writeheader()
        writer.writerows(
            {name: _shortened(value) for name, value in line.items()} for line in lines
        )


def load(path: Path) -> list[Result]:
    """Read what `save` wrote as CSV.

    Raises:
        ValueError: the file has other columns.
    """
    types = {field.name: str(field.type) for field in fields(Result)}
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if set(reader.fieldnames or ()) != set(types):
            raise ValueError(f"{path} is no CSV of `bench kernels`: other columns")
        return [
            _result({name: _read(types[name], text) for name, text in line.items()})
            for line in reader
        ]


@dataclass(frozen=True, slots=True)
class Change:
    """One cell in two files.

    Attributes:
        old: before.
        new: after.
        ratio: of the medians, new over old.
        regression: slower beyond the noise.
    """

    old: Result
    new: Result
    ratio: float
    regression: bool


def compare(old: Iterable[Result], new: Iterable[Result]) -> list[Change]:
    """The cells that both files measured.

    A regression is a cell whose fast runs (p20) are slower than the slow ones (p80) before, and whose
    median is more than 3 % up.

    Raises:
        ValueError: no cell in common, other rows, or another device.
    """
    before = {result.key: result for result in old if result.median_us is not None}
    changes = []
    for result in new:
        earlier = before.get(result.key)
        if earlier is None or earlier.median_us is None or result.median_us is None:
            continue
        if earlier.rows_sha256 != result.rows_sha256:
            raise ValueError(
                f"{result.kernel}: the rows are not those of the old file (sha256 differs)"
            )
        if _device_of(earlier) != _device_of(result):
            raise ValueError(
                f"the old file was measured on {_device_of(earlier)}, this one on {_device_of(result)}"
            )
        assert earlier.p80_us is not None and result.p20_us is not None
        ratio = result.median_us / earlier.median_us
        slower = result.p20_us > earlier.p80_us and ratio > 1 + NOISE
        changes.append(Change(earlier, result, ratio, slower))
    if not changes:
        raise ValueError("the two files have no measured cell in common")
    return changes


def _device_of(result: Result) -> str:
    """The first part of the machine line."""
    return result.machine.partition(";")[0]


def _shortened(value: object) -> object:
    return f"{value:.6g}" if isinstance(value, float) else value


def _result(values: dict[str, Any]) -> Result:
    return Result(**values)


def _read(kind: str, text: str) -> object:
    if kind.startswith("float"):
        return float(text) if text else None
    if kind == "int":
        return int(text)
    return text or (None if "None" in kind else "")
