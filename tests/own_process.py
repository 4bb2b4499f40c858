"""Tests in a process of their own, because Triton decides at its import whether it interprets."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def run_tests(name: str, *, interpret: bool) -> None:
    """Run a file of this folder under pytest; AssertionError with its output if a test fails."""
    file = Path(__file__).with_name(name)
    command = [sys.executable, "-m", "pytest", str(file), "-n", "0", "-q", "-p", "no:cacheprovider"]
    run = subprocess.run(
        command,
        cwd=file.parent.parent,
        env={**os.environ, "TRITON_INTERPRET": str(int(interpret))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert " passed" in run.stdout
