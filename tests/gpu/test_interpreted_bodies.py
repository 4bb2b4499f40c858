"""Every test of the interpreter, compiled: the same bodies with the kernels' calls on the device."""

from __future__ import annotations

import interpreted_truncation
import interpreted_typical
import interpreted_verification
import pytest
from device_calls import at_device

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore::RuntimeWarning")]

MODULES = (interpreted_truncation, interpreted_typical, interpreted_verification)

CALLS = (
    "truncate",
    "sample",
    "verify_block",
    "support_triton",
    "sample_triton",
    "truncate_triton",
    "sum_nodes",
    "walk",
    "TruncationCall",
)

for module in MODULES:
    # a name of its own a file, for several files may test the same thing of other rules
    prefix = module.__name__.removeprefix("interpreted_")
    for name, body in vars(module).copy().items():
        if name.startswith("test_"):
            globals()[f"test_{prefix}_{name.removeprefix('test_')}"] = body


@pytest.fixture(autouse=True)
def _calls_at_the_device(monkeypatch):
    for module in MODULES:
        for name in set(CALLS) & set(vars(module)):
            monkeypatch.setattr(module, name, at_device(getattr(module, name)))
