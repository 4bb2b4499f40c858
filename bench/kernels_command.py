"""`warpdraft bench kernels`: the truncation rules against transformers' warpers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .console import working
from .options import check_folder, whole_numbers


def kernels(
    device: Annotated[str, typer.Option(help="Only cpu in this version.")] = "cpu",
    vocab: Annotated[int, typer.Option(min=2, help="Tokens in a row.", metavar="V")] = 262_144,
    batch: Annotated[str, typer.Option(help="Batch sizes.", metavar="B,...")] = "1,8,64",
    threads: Annotated[str, typer.Option(help="Numbers of threads.", metavar="N,...")] = "1,2",
    repeats: Annotated[
        int, typer.Option(min=1, help="Runs of each side; the fastest counts.", metavar="N")
    ] = 15,
    seed: Annotated[int, typer.Option(help="Of the rows.")] = 0,
    out: Annotated[Path | None, typer.Option(help="A .csv or .json file for the results.")] = None,
) -> None:
    """Time the truncation rules against transformers' warpers."""
    if device != "cpu":
        raise ValueError(f"the kernels run on the CPU in this version, got --device {device}")
    batches = whole_numbers("--batch", batch)
    thread_counts = whole_numbers("--threads", threads)
    check_folder("--out", out)
    with working("Loading torch and transformers"):
        from . import bench_truncation

    results = bench_truncation.run(vocab, batches, thread_counts, repeats=repeats, seed=seed)
    bench_truncation.show(results)
    if out is not None:
        bench_truncation.save(results, out)
