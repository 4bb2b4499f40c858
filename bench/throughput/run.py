"""One run of the benchmark: for every cell make the rows, check every provider on them, then time it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch

from warpdraft.bench.baselines.provider import Call, NotMeasured, Provider

from .gate import GateFailure, check
from .inputs import Block, Inputs, Rows, make_inputs
from .kernels import Cell
from .launches import launch_text, launches_of, named_range, range_name, walk_time
from .machine import NOT_MEASURED, clock, machine_line, peak_bandwidth
from .reference import kept_counts
from .results import Result
from .timers import Timer

COLD, HOT = "cold", "hot"

BLOCK_READS = 2
"""Reads of each row that a verification is measured against: statistics, then sums."""

GATE_FAILED = "gate failed: "


@dataclass
class Report:
    """What a run found.

    Attributes:
        results: a line a provider, cell and state of the cache.
        failures: what the gate found, a line each.
        copy_gb_s: bandwidth of a large copy in this run.
    """

    results: list[Result] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    copy_gb_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run does.

    Attributes:
        cells: in this order.
        providers: in this order.
        device: where.
        keep_going: measure other cells after a failure of the gate.
        check_only: time nothing.
        seconds: cells that would start later are not measured.
    """

    cells: Sequence[Cell]
    providers: Sequence[Provider]
    device: torch.device
    keep_going: bool = False
    check_only: bool = False
    seconds: float = float("inf")


def measure(
    plan: Plan, timer: Timer, on_cell: Callable[[Cell], None] = lambda cell: None
) -> Report:
    """Check and time every cell of the plan.

    The first failure of the gate ends the run, unless the plan keeps going; what fails is never timed.
    """
    report, start = Report(), time.perf_counter()
    machine = machine_line(plan.device)
    if not plan.check_only:
        report.copy_gb_s = timer.copy_bandwidth()
    for cell in plan.cells:
        on_cell(cell)
        if time.perf_counter() - start > plan.seconds:
            note = f"{NOT_MEASURED}: out of time"
            report.results += [
                _blank(cell, provider, plan.device, machine, note) for provider in plan.providers
            ]
            continue
        bench = _Cell(cell, plan, timer, report, machine)
        for provider in plan.providers:
            bench.measure(provider)
            if report.failures and not plan.keep_going:
                return report
    return report


class _Cell:
    """The inputs of one cell and what holds for all its providers."""

    def __init__(self, cell: Cell, plan: Plan, timer: Timer, report: Report, machine: str) -> None:
        self.cell, self.plan, self.timer, self.report = cell, plan, timer, report
        self.machine = machine
        self.inputs = make_inputs(cell, plan.device)
        self.kept: float | None = None
        self.most_kept = 0
        if isinstance(self.inputs, Rows):
            kept = kept_counts(self.inputs.logits, cell.kernel.rules, cell.kernel.temperature)
            self.kept = float(kept.least.double().median())
            self.most_kept = int(kept.most.max())

    def measure(self, provider: Provider) -> None:
        """The lines of one provider."""
        cell, device = self.cell, self.plan.device
        try:
            call = provider.prepare(cell.kernel, self.inputs, self.most_kept)
            if call is None:
                return
            with named_range(range_name(provider.name), device):
                check(cell.kernel, call, self.inputs)
        except NotMeasured as missing:
            self._not_measured(provider, f"{NOT_MEASURED}: {missing}")
            return
        except GateFailure as failure:
            self.report.failures.append(f"{provider.name}: {cell}: {failure}")
            self._not_measured(provider, f"{GATE_FAILED}{failure}")
            return
        except Exception as error:
            # what other libraries raise is their line's business, what ours raises is a failure
            if provider.name == "warpdraft":
                raise
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
            self._not_measured(provider, f"{NOT_MEASURED}: {reason}")
            return
        if not self.plan.check_only:
            self._timed(provider, call)

    def _timed(self, provider: Provider, call: Call) -> None:
        device, copy_gb_s = self.plan.device, self.report.copy_gb_s
        moved = moved_bytes(self.cell, self.inputs)
        floor = moved / 1e3 / (peak_bandwidth(device) or copy_gb_s)
        copies = [self.inputs.copy() for _ in range(self.timer.copies(self.inputs.size))]
        launches = launches_of(call.run, copies[0], device)
        for cache in (COLD, HOT):
            with named_range(f"{provider.name}-{self.cell.kernel.name}-{cache}", device):
                timing = self.timer.time(call.run, copies, cold=cache == COLD)
            gb_s = moved / timing.median / 1e3
            line = replace(
                self._line(provider, call.note),
                cache=cache,
                mode=timing.mode,
                median_us=timing.median,
                p20_us=timing.p20,
                p80_us=timing.p80,
                gb_s=gb_s,
                copy_percent=100 * gb_s / copy_gb_s,
                floor_us=floor,
                floor_percent=100 * floor / timing.median,
                launch_us=launch_text(launches),
                walk_us=walk_time(launches),
                clock=clock(device),
            )
            self.report.results.append(line)

    def _not_measured(self, provider: Provider, note: str) -> None:
        self.report.results.append(self._line(provider, note))

    def _line(self, provider: Provider, note: str) -> Result:
        line = _blank(self.cell, provider, self.plan.device, self.machine, note)
        return replace(line, rows_sha256=self.inputs.digest, kept=self.kept)


def moved_bytes(cell: Cell, inputs: Inputs) -> int:
    """Bytes that a call must move: one read, one read and one write, or two reads of both models' rows."""
    if isinstance(inputs, Block):
        return BLOCK_READS * inputs.size
    return inputs.size if cell.kernel.output == "tokens" else 2 * inputs.size


def _blank(cell: Cell, provider: Provider, device: torch.device, machine: str, note: str) -> Result:
    """A line without numbers."""
    return Result(
        kernel=cell.kernel.name,
        law=cell.kernel.law,
        rows=cell.rows,
        rows_sha256="",
        kept=None,
        provider=provider.name,
        device=device.type,
        dtype=cell.dtype,
        vocab=cell.vocab,
        batch=cell.batch,
        cache=COLD,
        mode=None,
        median_us=None,
        p20_us=None,
        p80_us=None,
        gb_s=None,
        copy_percent=None,
        floor_us=None,
        floor_percent=None,
        launch_us="",
        walk_us=None,
        clock=NOT_MEASURED,
        note=note,
        machine=machine,
    )
