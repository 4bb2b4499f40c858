"""Truncation and sampling by the Triton kernels: what must hold on a machine without a GPU."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from own_process import run_tests

from warpdraft import MinP, TopH, sample, truncate
from warpdraft.backend import _is_served, takes_triton


@pytest.mark.timeout(600)
def test_the_kernels_agree_with_the_reference_in_the_interpreter():
    run_tests("interpreted_truncation.py", interpret=True)


@pytest.mark.parametrize("function", [truncate, sample])
def test_triton_is_refused_for_cpu_tensors_outside_the_interpreter(function, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match=r"on the CPU, .*TRITON_INTERPRET=1"):
        function(torch.zeros(2, 5), [MinP(0.1)], backend="triton")


def test_triton_is_refused_where_it_is_not_installed(monkeypatch):
    monkeypatch.setattr("warpdraft.backend.triton_available", lambda: False)
    with pytest.raises(ValueError, match="Triton is not installed"):
        truncate(torch.zeros(2, 5), [MinP(0.1)], backend="triton")
    truncate(torch.zeros(2, 5), [MinP(0.1)], backend="auto")


def on_device(name, dtype=torch.float32, vocab=5):
    """What the dispatch reads of logits on a device that need not be there."""
    return SimpleNamespace(device=torch.device(name), dtype=dtype, shape=(2, vocab))


@pytest.mark.parametrize(
    ("logits", "rules", "taken"),
    [
        (on_device("cuda:0"), [MinP(0.1), TopH(0.4)], True),
        (on_device("cuda:0", torch.bfloat16), [], True),
        (on_device("cuda:0", torch.float64), [], False),
        (on_device("cuda:0", vocab=(1 << 24) + 1), [], False),
        (on_device("cuda:0"), [TopH(0.4, variant="transformers", min_tokens_to_keep=101)], False),
        (on_device("cuda:0"), [TopH(0.4)] * 13, False),
        (on_device("cpu"), [MinP(0.1)], False),
        (on_device("mps"), [MinP(0.1)], False),
        (on_device("meta"), [MinP(0.1)], False),
    ],
    ids=["chain", "half", "double", "vocab", "tokens", "operations", "cpu", "mps", "meta"],
)
@pytest.mark.parametrize("interpreter", ["0", "1"])
def test_auto_takes_the_kernels_for_what_they_can_run_on_a_gpu(
    logits, rules, taken, interpreter, monkeypatch
):
    monkeypatch.setenv("TRITON_INTERPRET", interpreter)
    monkeypatch.setattr("warpdraft.backend._is_served", lambda device: True)
    assert takes_triton("auto", logits, rules) is taken
    assert takes_triton("torch", logits, rules) is False
    assert takes_triton("auto", logits, rules, refusal="not that one") is False
    with pytest.raises(ValueError, match="cannot run this call: not that one"):
        takes_triton("triton", on_device("cuda:0"), [], refusal="not that one")


@pytest.mark.parametrize(
    ("hip", "capability", "served"),
    [(None, (8, 0), True), (None, (9, 0), True), (None, (7, 5), False), ("7.0", (9, 4), True)],
    ids=["sm_80", "sm_90", "sm_75", "rocm"],
)
def test_auto_leaves_old_gpus_to_plain_torch(hip, capability, served, monkeypatch):
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr("warpdraft.backend._is_served", _is_served.__wrapped__)
    assert takes_triton("auto", on_device("cuda:0"), [MinP(0.1)]) is served


LOGITS = torch.zeros(3, 40)
BITMASK = torch.full((3, 2), -1, dtype=torch.int32)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"token_bitmask": BITMASK.long()}, TypeError, "token_bitmask must be int32"),
        ({"token_bitmask": BITMASK[:2]}, ValueError, r"token_bitmask must be \[3, 2\]"),
        ({"token_bitmask": BITMASK[:, :1]}, ValueError, r"token_bitmask must be \[3, 2\]"),
        ({"token_bitmask": BITMASK.t().contiguous().t()}, ValueError, "side by side"),
        ({"row_indices": torch.tensor([0.0])}, TypeError, "row_indices must be int64"),
        ({"row_indices": torch.tensor([[0]])}, ValueError, r"row_indices must be \[rows\]"),
        ({"row_indices": torch.tensor([0, 3])}, ValueError, r"\[0, 2\], got \[0, 3\]"),
        ({"row_indices": torch.tensor([1, 1])}, ValueError, "distinct"),
        ({"out": torch.zeros(3, 41)}, ValueError, r"out must be torch.float32 \[3, 40\]"),
        ({"out": torch.zeros(3, 40).half()}, ValueError, "got torch.float16"),
        ({"out": torch.zeros(40, 3).t()}, ValueError, "stride 3"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        truncate(LOGITS, TopH(0.4), **arguments)
