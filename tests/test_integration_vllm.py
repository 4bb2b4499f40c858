"""The contract with vLLM, without vLLM: both of its interfaces, copied by signature only.

`tests/engines/vllm.sh` runs the real engine.
"""

from __future__ import annotations

import enum
import importlib
import subprocess
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from engine_modules import stand_in
from no_synchronisation import NoSynchronisation
from pretended_device import DEVICE, pretended_device

from warpdraft import MinP, TopH, TopK, truncate

VOCAB = 50


class MoveDirectionality(enum.Enum):
    UNIDIRECTIONAL = enum.auto()
    SWAP = enum.auto()


class V1LogitsProcessor(ABC):
    @classmethod
    def validate_params(cls, sampling_params):
        return None

    @abstractmethod
    def __init__(self, vllm_config, device, is_pin_memory): ...

    @abstractmethod
    def apply(self, logits): ...

    @abstractmethod
    def is_argmax_invariant(self): ...

    @abstractmethod
    def update_state(self, batch_update): ...


class V2LogitsProcessor(ABC):
    def __init__(self, vllm_config, req_states):
        return None

    @classmethod
    def validate_params(cls, sampling_params):
        return None

    def add_request(self, req_idx, sampling_params):
        return True

    def apply_staged_writes(self):
        return None

    @abstractmethod
    def apply(self, logits, ctx): ...


@dataclass(frozen=True)
class BatchUpdate:
    batch_size: int = 8
    removed: list = field(default_factory=list)
    added: list = field(default_factory=list)
    moved: list = field(default_factory=list)


@dataclass(frozen=True)
class RequestState:
    device: torch.device
    max_num_reqs: int = 8
    vocab_size: int = VOCAB


@dataclass(frozen=True)
class LogitsContext:
    expanded_idx_mapping: torch.Tensor
    idx_mapping_np: np.ndarray


@dataclass(frozen=True)
class SamplingParams:
    temperature: float = 1.0
    extra_args: dict | None = None


INTERFACES = {
    "vllm.v1.sample.logits_processor": {
        "LogitsProcessor": V1LogitsProcessor,
        "MoveDirectionality": MoveDirectionality,
    },
    "vllm.v1.worker.gpu.sample.logits_processor": {"LogitsProcessor": V2LogitsProcessor},
}


@pytest.fixture
def processor_class(monkeypatch):
    stand_in(monkeypatch, "vllm", INTERFACES)
    yield importlib.import_module("warpdraft.integrations.vllm").Truncation
    sys.modules.pop("warpdraft.integrations.vllm")


def random_logits(rows):
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(rows)) * 3


def test_one_class_serves_both_runners(processor_class):
    assert issubclass(processor_class, V1LogitsProcessor)
    assert issubclass(processor_class, V2LogitsProcessor)
    assert processor_class.apply_staged_writes is V2LogitsProcessor.apply_staged_writes
    assert processor_class(None, torch.device("cpu"), False).is_argmax_invariant()


def test_v1_follows_the_rows_and_sees_tempered_logits(processor_class):
    processor = processor_class(None, torch.device("cpu"), False)
    processor.update_state(None)
    top_h = SamplingParams(1.5, {"top_h": 0.4})
    min_p = SamplingParams(0.7, {"min_p": 0.2})
    greedy = SamplingParams(0.0, {"top_h": 0.4})
    added = [(row, params, [], []) for row, params in enumerate([top_h, min_p, greedy])]
    processor.update_state(BatchUpdate(added=[*added, (3, SamplingParams(), None, [])]))

    logits = random_logits(4)
    expected = logits.clone()
    expected[0] = truncate(logits[:1], TopH(0.4))[0]
    expected[1] = truncate(logits[1:2], MinP(0.2))[0]
    assert torch.equal(processor.apply(logits.clone()), expected)

    # row 0 goes, row 1 moves into it, then changes places with row 2, which a new request has taken
    moved = [(1, 0, MoveDirectionality.UNIDIRECTIONAL), (0, 2, MoveDirectionality.SWAP)]
    top_k = SamplingParams(1.0, {"top_k": 3})
    processor.update_state(BatchUpdate(removed=[0], added=[(2, top_k, None, [])], moved=moved))
    expected = logits.clone()
    expected[0] = truncate(logits[:1], TopK(3))[0]
    expected[2] = truncate(logits[2:3], MinP(0.2))[0]
    assert torch.equal(processor.apply(logits.clone()), expected)


def test_v2_keeps_slots_and_sees_untempered_logits(processor_class):
    processor = processor_class(None, RequestState(torch.device("cpu")))
    assert processor.add_request(5, SamplingParams(1.5, {"top_h": 0.4}))
    assert processor.add_request(2, SamplingParams(0.7, {"min_p": 0.2}))
    assert not processor.add_request(3, SamplingParams(0.0, {"min_p": 0.2}))
    assert not processor.add_request(4, SamplingParams())
    processor.apply_staged_writes()

    logits = random_logits(4)
    slots = np.array([4, 2, 3, 5], dtype=np.int32)
    expected = logits.clone()
    expected[1] = truncate(logits[1:2], MinP(0.2), temperature=0.7)[0]
    expected[3] = truncate(logits[3:], TopH(0.4), temperature=1.5)[0]
    context = LogitsContext(torch.from_numpy(slots), slots)
    assert torch.equal(processor.apply(logits.clone(), context), expected)

    # with drafted tokens slot 2 has three rows; the next occupant of slot 5 has no rules
    assert not processor.add_request(5, SamplingParams(1.5, {}))
    context = LogitsContext(torch.tensor([2, 2, 2, 5], dtype=torch.int32), np.array([2, 5]))
    expected = logits.clone()
    expected[:3] = truncate(logits[:3], MinP(0.2), temperature=0.7)
    assert torch.equal(processor.apply(logits.clone(), context), expected)


REQUESTS = [
    SamplingParams(1.5, {"top_h": 0.4}),
    SamplingParams(0.7, {"min_p": 0.2}),
    SamplingParams(1.5, {"top_h": 0.8}),
    SamplingParams(1.0, {"rules": [{"top_k": 9}, {"top_n_sigma": 1.0}]}),
    SamplingParams(1.0, {"rules": [{"dynamic_temperature": [0.5, 1.5]}, {"eta_cutoff": 0.01}]}),
    SamplingParams(),
]


@pytest.mark.parametrize("runner", ["V1", "V2", "V2 with drafted tokens"])
def test_a_step_of_an_unchanged_batch_never_waits_for_the_device(processor_class, runner):
    slots = np.arange(len(REQUESTS), dtype=np.int32)
    rows = np.repeat(slots, 2) if runner.endswith("tokens") else slots
    values = random_logits(len(rows))

    def processor_and_arguments(device):
        if runner == "V1":
            processor = processor_class(None, device, False)
            added = [(row, params, None, []) for row, params in enumerate(REQUESTS)]
            processor.update_state(BatchUpdate(added=added))
            return processor, ()
        processor = processor_class(None, RequestState(device))
        for slot, params in enumerate(REQUESTS):
            processor.add_request(slot, params)
        return processor, (LogitsContext(torch.from_numpy(rows).to(device), slots),)

    processor, arguments = processor_and_arguments(torch.device("cpu"))
    expected = processor.apply(values.clone(), *arguments)
    with pretended_device():
        processor, arguments = processor_and_arguments(DEVICE)
        # the first step takes the parameters to the device
        processor.apply(values.to(DEVICE), *arguments)
        logits = values.to(DEVICE)
        with NoSynchronisation():
            processor.apply(logits, *arguments)
            with pytest.raises(AssertionError, match="waits for the device"):
                logits.amax().item()
            with pytest.raises(AssertionError, match="copies between"):
                logits.cpu()
        assert torch.equal(logits.cpu(), expected)


def test_finished_requests_leave_nothing_behind(processor_class):
    rules = [{"top_h": 0.1 + 0.001 * number} for number in range(300)]
    v1 = processor_class(None, torch.device("cpu"), False)
    v2 = processor_class(None, RequestState(torch.device("cpu")))
    for number, extra in enumerate(rules):
        row, params = number % 4, SamplingParams(1.0, extra)
        v1.update_state(BatchUpdate(removed=[row], added=[(row, params, None, [])]))
        v2.add_request(row, params)
        assert len(v1.requests) == len(v2.requests) == min(number + 1, 4)
    v1.update_state(BatchUpdate(removed=list(range(4))))
    # vLLM does not tell the second runner's processors who has left: a slot waits for the next one
    for row in range(4):
        v2.add_request(row, SamplingParams())
    logits = random_logits(4)
    slots = np.arange(4)
    assert len(v1.requests) == len(v2.requests) == 0
    assert torch.equal(v1.apply(logits.clone()), logits)
    context = LogitsContext(torch.from_numpy(slots), slots)
    assert torch.equal(v2.apply(logits.clone(), context), logits)


def test_bad_parameters_are_refused_before_the_engine_sees_them(processor_class):
    for good in (None, {}, {"top_h": 0.4}, {"of_another_plugin": "x"}):
        processor_class.validate_params(SamplingParams(extra_args=good))
    with pytest.raises(ValueError, match=r"top_h: alpha must be in \(0, inf\], got -1"):
        processor_class.validate_params(SamplingParams(extra_args={"top_h": -1}))


@pytest.mark.parametrize("missing", INTERFACES)
def test_a_missing_or_old_engine_gets_one_line(monkeypatch, missing):
    stand_in(monkeypatch, "vllm", INTERFACES)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=r"needs vLLM 0\.32 or newer") as caught:
        importlib.import_module("warpdraft.integrations.vllm")
    assert "pip install 'vllm>=0.32'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_importing_warpdraft_imports_no_engine():
    code = (
        "import sys, warpdraft, warpdraft.per_request, warpdraft.request_parameters;"
        "sys.exit(any(name.split('.')[0] == 'vllm' for name in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_no_entry_point_loads_us_into_every_server():
    from importlib.metadata import entry_points

    ours = [entry.value for entry in entry_points(group="vllm.logits_processors")]
    assert not [value for value in ours if value.startswith("warpdraft")]
