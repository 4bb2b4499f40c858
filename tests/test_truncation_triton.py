"""Truncation and sampling by the Triton kernels: what must hold on a machine without a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from warpdraft import MinP, TopH, sample, truncate


@pytest.mark.timeout(600)
def test_the_kernels_agree_with_the_reference_in_the_interpreter():
    # a process of its own, because Triton decides at its import whether it interprets
    file = Path(__file__).with_name("interpreted_truncation.py")
    command = [sys.executable, "-m", "pytest", str(file), "-n", "0", "-q", "-p", "no:cacheprovider"]
    run = subprocess.run(
        command,
        cwd=file.parent.parent,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert " passed" in run.stdout


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
