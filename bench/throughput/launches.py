"""The launches inside a call: their times, a trace, NVTX ranges, and the command for Nsight Compute."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from .inputs import Inputs
from .kernels import Cell

T = TypeVar("T")

PROFILED_CALLS = 10

READ_SLACK = 1.08
"""A one-read kernel may read the row and so much more: group maxima, statistics, gathered candidates."""

METRICS = (
    "dram__bytes_read.sum",
    "dram__bytes_write.sum",
    "gpu__time_duration.sum",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed",
)


class Launch(NamedTuple):
    """One kernel of a call: its name, launches a call, and microseconds a call of all of them."""

    name: str
    calls: int
    microseconds: float


def launches_of(run: Callable[[T], object], inputs: T, device: torch.device) -> list[Launch]:
    """The launches of one call on a CUDA device, in the order of their first; none on a CPU."""
    if device.type != "cuda":
        return []
    run(inputs)
    torch.cuda.synchronize(device)
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiler:
        for _ in range(PROFILED_CALLS):
            run(inputs)
        torch.cuda.synchronize(device)
    return summed(
        (event.name, event.time_range.elapsed_us())
        for event in profiler.events() or ()
        if event.device_type == DeviceType.CUDA
    )


def summed(events: Iterable[tuple[str, float]]) -> list[Launch]:
    """The launches of one call from the names and times of those of all profiled calls."""
    times: dict[str, list[float]] = {}
    for name, microseconds in events:
        times.setdefault(short_name(name), []).append(microseconds)
    return [
        Launch(name, round(len(all_of) / PROFILED_CALLS), sum(all_of) / PROFILED_CALLS)
        for name, all_of in times.items()
    ]


def short_name(name: str) -> str:
    """A kernel's name without types, template arguments and spaces."""
    name = re.sub(r"<.*|\(.*", "", name.removeprefix("void "))
    return name.rpartition("::")[2].strip().replace(" ", "_") or name


def launch_text(launches: list[Launch]) -> str:
    """The launches in one field of the table: "row_stats=9.1 round=2x3.4"."""
    return " ".join(
        f"{name}={f'{count}x' if count > 1 else ''}{time / max(count, 1):.3g}"
        for name, count, time in launches
    )


def walk_time(launches: list[Launch]) -> float | None:
    """Microseconds of the launches that walk a block; None where there are none."""
    times = [launch.microseconds for launch in launches if "walk" in launch.name]
    return sum(times) if times else None


@contextmanager
def named_range(name: str, device: torch.device) -> Iterator[None]:
    """A range that Nsight Systems, Nsight Compute and the trace show by name."""
    with record_function(name):
        if device.type == "cuda":
            torch.cuda.nvtx.range_push(name)
        try:
            yield
        finally:
            if device.type == "cuda":
                torch.cuda.nvtx.range_pop()


def write_trace(
    runs: Sequence[tuple[str, Callable[[], object]]], device: torch.device, path: Path
) -> None:
    """A chrome trace of a few calls of each, named."""
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiler:
        for name, run in runs:
            for _ in range(3):
                with named_range(name, device):
                    run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    profiler.export_chrome_trace(str(path))


def ncu_command(cell: Cell, provider: str, inputs: Inputs, *, reads: int) -> str:
    """The exact Nsight Compute command of a cell, and what its counters must say."""
    bench = (
        f"{shlex.quote(sys.executable)} -m warpdraft.bench.cli bench kernels --check --device cuda "
        f"--kernel {cell.kernel.name} --provider {provider} --rows {cell.rows} --vocab {cell.vocab} "
        f"--batch {cell.batch} --dtype {cell.dtype} --seed {cell.seed}"
    )
    command = (
        f"ncu --clock-control none --cache-control all --nvtx --nvtx-include {range_name(provider)}/ "
        f"--metrics {','.join(METRICS)} {bench}"
    )
    most = int(READ_SLACK * reads * inputs.size)
    return (
        f"{command}\n# dram__bytes_read.sum over the launches of the range: at most "
        f"{READ_SLACK} x {reads * inputs.size:,} = {most:,} bytes"
    )


def range_name(provider: str) -> str:
    """The range around the call that the gate looks at."""
    return f"gate-{provider}"
