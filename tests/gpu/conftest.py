"""Where the GPU suite runs: `pytest -m gpu -n 0` on a machine with CUDA, nowhere else.

Without CUDA nothing here is collected. `WARPDRAFT_DRY_RUN=1 TRITON_INTERPRET=1 pytest -m gpu -n 0` runs the
same bodies on tiny shapes in Triton's interpreter, where only the name of the device is another one:
everything but what CUDA alone has (synchronisation, graphs). With Triton 3.6 the interpreter needs
NumPy < 2.4; compiled kernels take any NumPy.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from device import DEVICE, DRY_RUN


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Files for CUDA alone are not even imported in a dry run, and none is without a device."""
    if DEVICE is None or (DRY_RUN and collection_path.stem in ("test_graphs", "test_waiting")):
        return True
    return None


def pytest_report_header() -> str:
    """What the numbers below were found on."""
    import torch
    import triton

    name = torch.cuda.get_device_name() if DEVICE == "cuda" else "Triton's interpreter"
    return f"gpu suite: {name}, torch {torch.__version__}, triton {triton.__version__}"


@pytest.fixture
def device() -> str:
    """The device under test."""
    assert DEVICE is not None
    return DEVICE
