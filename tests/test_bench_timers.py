"""Timing on a GPU, played on a CPU: graphs, copies, and calls that no graph can hold."""

from __future__ import annotations

import contextlib

import pytest
import torch

from warpdraft.bench.throughput.timers import Effort, GraphTimer, Timing, timer_for

CPU = torch.device("cpu")
TINY = Effort(least_runs=2, most_runs=3, seconds=0.0, copied_bytes=1 << 16)


def test_quantiles_of_a_timing():
    timing = Timing.of([5.0, 1.0, 2.0, 3.0, 4.0, 6.0], "clock")
    assert (timing.median, timing.p20, timing.p80, timing.runs) == (3.5, 2.0, 5.0, 6)


class StandIn:
    """CUDA's graphs, events and streams, played on a CPU with a clock that every call advances."""

    def __init__(self, monkeypatch, *, waits=False):
        self.now, self.captured, self.waits, self.strict = 0.0, None, waits, False
        cuda = torch.cuda
        for name, value in {
            "get_device_properties": lambda device: type("P", (), {"L2_cache_size": 1 << 20})(),
            "device": lambda device: contextlib.nullcontext(),
            "Stream": lambda device: self,
            "current_stream": lambda device: self,
            "stream": lambda stream: contextlib.nullcontext(),
            "synchronize": lambda device: None,
            "CUDAGraph": lambda: self,
            "graph": self.capture,
            "Event": lambda enable_timing: Moment(self),
            "get_sync_debug_mode": lambda: self.strict,
            "set_sync_debug_mode": lambda mode: setattr(self, "strict", mode == "error"),
        }.items():
            monkeypatch.setattr(cuda, name, value)

    def wait_stream(self, stream):
        pass

    @contextlib.contextmanager
    def capture(self, graph):
        self.captured = []
        yield
        self.calls, self.captured = self.captured, None

    def run(self, inputs):
        if self.strict and self.waits:
            raise RuntimeError("called a synchronizing CUDA operation")
        if self.captured is not None:
            self.captured.append(inputs)
        else:
            self.now += inputs

    def replay(self):
        self.now += sum(self.calls)


class Moment:
    def __init__(self, stand_in):
        self.stand_in = stand_in

    def record(self):
        self.at = self.stand_in.now

    def synchronize(self):
        pass

    def elapsed_time(self, later):
        return later.at - self.at


def test_graphs_hold_many_calls_and_times_are_of_one(monkeypatch):
    stand_in = StandIn(monkeypatch)
    timer = GraphTimer(TINY, CPU)
    assert [timer.copies(size) for size in (1 << 22, 1 << 20, 1 << 18, 1)] == [2, 3, 12, 512]
    hot = timer.time(stand_in.run, [2.0, 4.0], cold=False)
    assert (hot.mode, hot.median) == ("graph", pytest.approx(2e3))
    assert stand_in.calls == [2.0] * 20
    cold = timer.time(stand_in.run, [2.0, 4.0], cold=True)
    assert (cold.median, stand_in.calls) == (pytest.approx(3e3), [2.0, 4.0])


def test_calls_that_wait_for_the_device_are_timed_one_by_one(monkeypatch):
    stand_in = StandIn(monkeypatch, waits=True)
    timing = GraphTimer(TINY, CPU).time(stand_in.run, [2.0, 4.0], cold=True)
    assert (timing.mode, timing.p20) == ("events", pytest.approx(2e3, rel=0.5))
    assert stand_in.captured is None
    assert not stand_in.strict


def test_other_devices_have_no_timer():
    with pytest.raises(ValueError, match="cpu and cuda"):
        timer_for(torch.device("meta"), TINY)
