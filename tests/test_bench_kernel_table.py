"""The README's table of kernels on a GPU comes from the committed files."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from warpdraft.bench import kernel_table
from warpdraft.bench.throughput.results import Result, save


def line_of(**values):
    texts = {field.name: "" for field in fields(Result) if field.type == "str"}
    numbers = {field.name: None for field in fields(Result) if "None" in str(field.type)}
    cell = {"kernel": "min-p", "vocab": 1000, "batch": 8, "device": "cuda", "cache": "cold"}
    return Result(**{**texts, **numbers, **cell, **values})


def test_the_readme_holds_what_the_script_makes():
    # an installed package has neither beside it
    checkout = Path(__file__).parent.parent
    readme = (checkout / "README.md").read_text()
    made = kernel_table.table_of(sorted((checkout / "bench/results").glob("kernels_*.csv")))
    assert kernel_table.with_table(readme, made) == readme


def test_a_file_becomes_a_table(tmp_path):
    own = line_of(provider="warpdraft", median_us=10.0, copy_percent=81.23, machine="a GPU; driver")
    save(
        [
            own,
            line_of(provider="torch", median_us=125.0, machine="a GPU; driver"),
            line_of(provider="vllm", note="not measured: no", machine="a GPU; driver"),
            line_of(provider="warpdraft", device="cpu", median_us=1.0),
        ],
        tmp_path / "kernels_one.csv",
    )
    made = kernel_table.table_of([tmp_path / "kernels_one.csv"])
    assert "a GPU; driver (`kernels_one.csv`)" in made
    assert (
        made.splitlines()[-1]
        == "| `min-p`, V = 1,000 |  | 8 |  | 10 | 81.2 |  |  | 12.5 | not measured |"
    )


def test_without_a_gpu_nothing_is_claimed(tmp_path):
    save([line_of(provider="warpdraft", device="cpu", median_us=1.0)], tmp_path / "kernels_cpu.csv")
    assert kernel_table.table_of([tmp_path / "kernels_cpu.csv"]).startswith("Not measured yet")
    with pytest.raises(ValueError, match="has no line"):
        kernel_table.with_table("# no marks", "table")
