"""The examples of docs/engines.md, run as they stand there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path


def run_example(page, engine):
    """What the block of bash under the heading of an engine prints; `python` is this one."""
    text = Path(page).read_text(encoding="utf-8")
    (section,) = re.findall(rf"^## {re.escape(engine)}$(.*?)(?=^## |\Z)", text, re.DOTALL | re.M)
    (example,) = re.findall(r"```bash\n(.*?)```", section, flags=re.DOTALL)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    with tempfile.TemporaryDirectory() as folder:
        run = subprocess.run(
            ["bash", "-ec", example],
            env={**os.environ, "PATH": path},
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
    assert run.returncode == 0, run.stderr[-3000:]
    assert len(run.stdout.strip()) > 10, run.stdout
    return run.stdout.strip()
