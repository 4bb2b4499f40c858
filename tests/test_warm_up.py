"""Warm-up: what it refuses, and, in another process, what it compiles."""

from __future__ import annotations

import pytest
import torch
from own_process import run_tests

from warpdraft import MinP, warmup


def test_a_warm_up_compiles_what_is_called_and_workspaces_are_small():
    run_tests("specializations.py", interpret=False)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"device": "cpu"}, ValueError, r"on the CPU, .*TRITON_INTERPRET=1"),
        ({"shapes": [(0, 9)], "device": "cpu"}, ValueError, r"both at least 1, got \(0, 9\)"),
        ({"shapes": [9], "device": "cpu"}, ValueError, r"shapes must hold pairs .*got 9"),
        ({"shapes": 9, "device": "cpu"}, ValueError, r"shapes must hold pairs .*got 9"),
        ({"blocks": [(2, 0)], "device": "cpu"}, ValueError, r"blocks must hold .*got \(2, 0\)"),
        ({"dtypes": ["half"], "device": "cpu"}, ValueError, "dtypes must be .*got 'half'"),
        ({"device": "gpu"}, ValueError, "device must be a torch.device .*got 'gpu'"),
        ({"temperature": "1", "device": "cpu"}, TypeError, "temperature must be a number"),
        ({"rules": "top-h", "device": "cpu"}, TypeError, "rules must be truncation rules"),
    ],
    ids=["cpu", "shape", "number", "no_list", "block", "dtype", "device", "temperature", "rule"],
)
def test_calls_that_cannot_be_warmed_up(options, error, message, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    arguments = {"shapes": [(2, 9)], "rules": MinP(0.1), **options}
    with pytest.raises(error, match=message):
        warmup(arguments.pop("shapes"), **arguments)


def test_a_gpu_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="torch sees none"):
        warmup([(2, 9)])
