"""A visit to a GPU, with a stand-in for Python: a failing part is recorded and the rest goes on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# says what it is asked to do, and fails for one part
STAND_IN = """#!/usr/bin/env bash
[ "$1" = - ] && exec "{python}" "$@"
[ "$1" = -c ] && exit 0
echo "$*" >>"{folder}/calls"
for package in bench/throughput/run.py kernels/top_h.py models/draft/config.json library.py; do
    [ -e "${{PYTHONPATH%%:*}}/warpdraft/$package" ] || echo "$package" >>"{folder}/missing"
done
while [ $# -gt 0 ]; do
    [ "$1" = --csv ] && printf 'head\\n%s\\n' "$2" >"$2"
    [ "$1" = bfloat16 ] && exit 7
    shift
done
exit 0
"""


def visit(tmp_path, *arguments, **environment):
    stand_in = tmp_path / "python"
    stand_in.write_text(STAND_IN.format(python=sys.executable, folder=tmp_path))
    stand_in.chmod(0o755)
    return subprocess.run(
        ["bash", str(ROOT / "bench" / "gpu.sh"), str(tmp_path / "out"), *arguments],
        env={**os.environ, "PYTHON": str(stand_in), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_a_failing_part_is_recorded_and_the_rest_goes_on(tmp_path):
    done = visit(tmp_path, "--device", "cpu")
    assert done.returncode == 1, done.stderr
    summary = (tmp_path / "out" / "summary.txt").read_text().splitlines()
    exits = {line[:28].strip(): line.split()[-3] for line in summary if " exit " in line}
    assert exits["four kernels, bf16"] == "7"
    assert set(exits) > {"environment", "gate, rows", "gate, blocks", "blocks", "beside others"}
    assert {code for name, code in exits.items() if name != "four kernels, bf16"} == {"0"}
    assert summary[-1].startswith("all of it                    with failures in ")
    # the packages can be imported from links while it runs, and nothing of that is left
    assert not (tmp_path / "missing").exists()
    assert not (tmp_path / "out" / "links").exists()
    # one file with one header
    lines = (tmp_path / "out" / "kernels_cpu.csv").read_text().splitlines()
    assert lines.count("head") == 1
    assert len(lines) == 1 + 6


def test_every_part_names_kernels_and_options_that_exist(tmp_path):
    from typer.main import get_command

    from warpdraft.bench.baselines.registry import PROVIDERS
    from warpdraft.bench.cli import app
    from warpdraft.bench.options import names_in
    from warpdraft.bench.throughput.kernels import KERNELS

    visit(tmp_path, "--device", "cpu")
    command = get_command(app).commands["bench"].commands["kernels"]
    calls = [line for line in (tmp_path / "calls").read_text().splitlines() if "kernels" in line]
    assert len(calls) == 9
    for call in calls:
        arguments = command.make_context("kernels", call.partition(" kernels ")[2].split()).params
        assert names_in("--kernel", arguments["kernel"], KERNELS)
        assert names_in("--provider", arguments["provider"], PROVIDERS)


def test_no_part_starts_without_time(tmp_path):
    assert visit(tmp_path, "--device", "cpu", BUDGET="0").returncode == 1
    assert "skipped: no time left" in (tmp_path / "out" / "summary.txt").read_text()
    assert not (tmp_path / "calls").exists()


@pytest.mark.parametrize("arguments", [("--device",), ("--gpu", "cpu")], ids=" ".join)
def test_bad_arguments_print_the_usage(tmp_path, arguments):
    done = visit(tmp_path, *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: ")
