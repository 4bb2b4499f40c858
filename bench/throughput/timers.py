"""How long a call takes: on a GPU by replayed CUDA graphs, elsewhere by the clock.

    hot    the same inputs again and again: what the language model's head just wrote is in the L2 cache
    cold   inputs that the cache cannot hold any more

A graph holds many calls one after another, so that neither launches from the host nor the resolution of
events is in the time of one; a call that cannot be captured is timed with events around it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch

T = TypeVar("T")

HOT_CALLS = 20
"""Calls in the graph of hot runs."""

MOST_COPIES = 512
"""Calls in the graph of cold runs, at most."""

CACHES = 3
"""Sizes of the L2 cache that the copies of a cold run fill together."""

CPU_CACHE = 64 << 20
"""Bytes that are written between cold runs on a CPU: more than its caches hold."""

QUANTILES = (0.5, 0.2, 0.8)


@dataclass(frozen=True, slots=True)
class Timing:
    """Microseconds of one call; with graphs each run is the mean of the calls in one replay.

    Attributes:
        median: of the runs.
        p20: a fifth of the runs took less.
        p80: a fifth took more.
        mode: "graph", "events" or "clock".
        runs: how many there were.
    """

    median: float
    p20: float
    p80: float
    mode: str
    runs: int

    @classmethod
    def of(cls, microseconds: Sequence[float], mode: str) -> Timing:
        """The quantiles of the runs."""
        levels = torch.tensor(QUANTILES, dtype=torch.float64)
        runs = torch.tensor(microseconds, dtype=torch.float64)
        median, p20, p80 = runs.quantile(levels).tolist()
        return cls(median, p20, p80, mode, len(microseconds))


class Timer(Protocol):
    """Times calls on one device."""

    def copies(self, size: int) -> int:
        """How many copies of inputs of `size` bytes a cold run needs."""
        ...

    def time(self, run: Callable[[T], object], inputs: Sequence[T], *, cold: bool) -> Timing:
        """One call on each of the inputs in turn when cold, on the first of them when hot."""
        ...

    def copy_bandwidth(self) -> float:
        """Gigabytes read and written a second by a large copy."""
        ...


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured.

    Attributes:
        least_runs: of each cell.
        most_runs: likewise.
        seconds: a cell stops after, when it has its least runs.
        copied_bytes: of the bandwidth test.
    """

    least_runs: int = 10
    most_runs: int = 200
    seconds: float = 0.25
    copied_bytes: int = 1 << 30

    def repeat(self, once: Callable[[], float]) -> list[float]:
        """The results of as many runs as the limits allow."""
        start, results = time.perf_counter(), list[float]()
        while len(results) < self.most_runs:
            results.append(once())
            if len(results) >= self.least_runs and time.perf_counter() - start > self.seconds:
                break
        return results


class ClockTimer:
    """Wall-clock times of a device that runs calls at once: the CPU."""

    def __init__(self, effort: Effort, flushed_bytes: int = CPU_CACHE) -> None:
        self.effort = effort
        self.flushed = torch.zeros(flushed_bytes // 4)

    def copies(self, size: int) -> int:
        """One: the cache is overwritten between the runs."""
        return 1

    def time(self, run: Callable[[T], object], inputs: Sequence[T], *, cold: bool) -> Timing:
        """See `Timer`."""
        run(inputs[0])

        def once() -> float:
            if cold:
                self.flushed.add_(1.0)
            start = time.perf_counter()
            run(inputs[0])
            return 1e6 * (time.perf_counter() - start)

        return Timing.of(self.effort.repeat(once), "clock")

    def copy_bandwidth(self) -> float:
        """See `Timer`."""
        source = torch.ones(self.effort.copied_bytes // 4)
        target = torch.empty_like(source)
        timing = self.time(target.copy_, [source], cold=False)
        return 2e-3 * source.numel() * 4 / timing.median


class GraphTimer:
    """Times on a CUDA device."""

    def __init__(self, effort: Effort, device: torch.device) -> None:
        self.effort = effort
        self.device = device
        self.l2 = int(torch.cuda.get_device_properties(device).L2_cache_size)

    def copies(self, size: int) -> int:
        """Enough to fill the cache several times."""
        return min(max(2, -(-CACHES * self.l2 // max(size, 1))), MOST_COPIES)

    def time(self, run: Callable[[T], object], inputs: Sequence[T], *, cold: bool) -> Timing:
        """See `Timer`."""
        sequence = list(inputs) if cold else [inputs[0]] * HOT_CALLS
        with torch.cuda.device(self.device):
            graph = self._captured(run, sequence)
            if graph is None:
                return self._events(run, sequence, cold=cold)

            def once() -> float:
                return self._milliseconds(graph.replay) * 1e3 / len(sequence)

            once()
            return Timing.of(self.effort.repeat(once), "graph")

    def copy_bandwidth(self) -> float:
        """See `Timer`."""
        source = torch.ones(self.effort.copied_bytes // 4, device=self.device)
        target = torch.empty_like(source)
        timing = self.time(target.copy_, [source], cold=False)
        return 2e-3 * source.numel() * 4 / timing.median

    def _captured(self, run: Callable[[T], object], sequence: Sequence[T]) -> Any:
        """A graph of the calls; None if they cannot be captured."""
        # everything that a first call does, compilation too, must be over before the capture
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            for _ in range(3):
                run(sequence[0])
        torch.cuda.current_stream(self.device).wait_stream(stream)
        torch.cuda.synchronize(self.device)
        # a capture that fails half-way leaves torch's random numbers in a captured state
        if self._synchronises(run, sequence[0]):
            return None
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                for one in sequence:
                    run(one)
        except RuntimeError:
            torch.cuda.synchronize(self.device)
            return None
        return graph

    def _synchronises(self, run: Callable[[T], object], one: T) -> bool:
        """Whether a call waits for the device, which no graph can hold."""
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            run(one)
        except RuntimeError:
            return True
        finally:
            torch.cuda.set_sync_debug_mode(before)
        return False

    def _events(self, run: Callable[[T], object], sequence: Sequence[T], *, cold: bool) -> Timing:
        """One call at a time, launches included."""
        flushed = torch.zeros(CACHES * self.l2 // 4, device=self.device)
        position = 0

        def once() -> float:
            nonlocal position
            if cold:
                flushed.add_(1.0)
            one = sequence[position % len(sequence)]
            position += 1
            return 1e3 * self._milliseconds(lambda: run(one))

        return Timing.of(self.effort.repeat(once), "events")

    def _milliseconds(self, work: Callable[[], object]) -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        work()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end))


def timer_for(device: torch.device, effort: Effort) -> Timer:
    """The timer of a device.

    Raises:
        ValueError: neither a CPU nor a CUDA device.
    """
    if device.type == "cuda":
        return GraphTimer(effort, device)
    if device.type == "cpu":
        return ClockTimer(effort)
    raise ValueError(f"the benchmark runs on cpu and cuda devices, got {device}")
