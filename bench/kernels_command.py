"""`warpdraft bench kernels`: the throughput of every kernel beside other ways to compute the same."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .console import progress_bar, stderr, working
from .options import check_folder, names_in, whole_numbers

if TYPE_CHECKING:
    import torch


GATE_FAILED = 1
REGRESSION = 3

CELLS = "Cells"
EFFORT = "Effort"
FILES = "Files"

CUDA_COPY, CPU_COPY = 1 << 30, 1 << 27
"""Bytes of the bandwidth test: several times what the caches hold."""


def kernels(
    kernel: Annotated[
        str,
        typer.Option(help="Kernels, or all.", metavar="NAME,...", rich_help_panel=CELLS),
    ] = "all",
    vocab: Annotated[
        str, typer.Option(help="Tokens in a row.", metavar="V,...", rich_help_panel=CELLS)
    ] = "128256",
    batch: Annotated[
        str, typer.Option(help="Rows, or blocks.", metavar="B,...", rich_help_panel=CELLS)
    ] = "1,8",
    dtype: Annotated[
        str,
        typer.Option(
            help="float32, bfloat16 or float16.", metavar="TYPE,...", rich_help_panel=CELLS
        ),
    ] = "float32",
    rows: Annotated[
        str,
        typer.Option(
            help="llm, flat, gaussian, one-hot or recorded.",
            show_default="each kernel's own",
            metavar="KIND,...",
            rich_help_panel=CELLS,
        ),
    ] = "own",
    provider: Annotated[
        str,
        typer.Option(help="Providers, or all.", metavar="NAME,...", rich_help_panel=CELLS),
    ] = "all",
    device: Annotated[
        str,
        typer.Option(
            help="cpu, cuda or cuda:N.",
            show_default="cuda where there is one",
            rich_help_panel=CELLS,
        ),
    ] = "auto",
    seed: Annotated[int, typer.Option(help="Of the rows.", rich_help_panel=CELLS)] = 0,
    seconds: Annotated[
        float, typer.Option(min=0, help="Start no cell later than this.", rich_help_panel=EFFORT)
    ] = float("inf"),
    cell_seconds: Annotated[
        float,
        typer.Option(min=0, help="Timed runs of one line, at least 10.", rich_help_panel=EFFORT),
    ] = 0.25,
    check: Annotated[
        bool, typer.Option("--check", help="Only the correctness gate.", rich_help_panel=EFFORT)
    ] = False,
    keep_going: Annotated[
        bool,
        typer.Option(
            "--keep-going",
            help="Measure what passes when something fails the gate.",
            rich_help_panel=EFFORT,
        ),
    ] = False,
    csv_file: Annotated[
        Path | None,
        typer.Option("--csv", help="Write the lines here.", rich_help_panel=FILES),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Likewise.", rich_help_panel=FILES)
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="A roofline, PNG.", rich_help_panel=FILES)
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(help="A chrome trace of the first cell.", rich_help_panel=FILES),
    ] = None,
    compare: Annotated[
        Path | None,
        typer.Option(
            help="An earlier CSV; exit code 3 where a cell is slower beyond the noise.",
            rich_help_panel=FILES,
        ),
    ] = None,
    ncu: Annotated[
        bool,
        typer.Option("--ncu", help="Print the Nsight Compute command of the first cell, and stop."),
    ] = False,
) -> None:
    """Check every row against float64, then time the kernels: cold and hot, beside other providers.

    Exit code 1 if the gate finds a wrong row (no times are printed), 3 if --compare finds a regression.
    """
    files = {"--csv": csv_file, "--json": json_file, "--plot": plot, "--trace": trace}
    for option, file in files.items():
        check_folder(option, file)
    batches, vocabs = whole_numbers("--batch", batch), whole_numbers("--vocab", vocab)
    with working("Loading torch"):
        from .baselines.registry import PROVIDERS
        from .rows import GENERATORS
        from .throughput import screen
        from .throughput.kernels import DTYPES, KERNELS, Cell
        from .throughput.results import compare as compared
        from .throughput.results import load, save
        from .throughput.run import Plan, measure
        from .throughput.timers import Effort, timer_for

    kinds = ["own"] if rows == "own" else names_in("--rows", rows, GENERATORS)
    cells = [
        Cell(one, one.rows if kind == "own" else kind, width, size, number, seed)
        for one in (KERNELS[name] for name in names_in("--kernel", kernel, KERNELS))
        for kind in kinds
        for width in vocabs
        for size in batches
        for number in names_in("--dtype", dtype, DTYPES)
    ]
    providers = [PROVIDERS[name] for name in names_in("--provider", provider, PROVIDERS)]
    where = device_named(device)
    if ncu:
        screen.print_ncu(cells[0], providers[0].name, where)
        return
    # read before anything is measured
    before = None if compare is None else load(compare)

    copied = CUDA_COPY if where.type == "cuda" else CPU_COPY
    timer = timer_for(where, Effort(seconds=cell_seconds, copied_bytes=copied))
    plan = Plan(cells, providers, where, keep_going, check, seconds)
    with progress_bar() as progress:
        task = progress.add_task("cells", total=len(cells))

        def on_cell(cell: Cell) -> None:
            progress.update(task, advance=1, description=str(cell))

        report = measure(plan, timer, on_cell)
    for failure in report.failures:
        stderr.print(f"the gate: {failure}", markup=False, soft_wrap=True)
    if report.failures and not keep_going:
        raise typer.Exit(GATE_FAILED)
    screen.print_report(report, check_only=check)
    for file in (csv_file, json_file):
        if file is not None:
            save(report.results, file)
    if plot is not None:
        from .plots import plot_roofline

        plot_roofline(report.results, report.copy_gb_s, plot)
    if trace is not None:
        screen.trace(cells[0], providers, where, trace)
    if report.failures:
        raise typer.Exit(GATE_FAILED)
    if before is not None and screen.print_changes(compared(before, report.results)):
        raise typer.Exit(REGRESSION)


def device_named(name: str) -> torch.device:
    """The device of that name; "auto" is the first CUDA device, or the CPU.

    Raises:
        ValueError: torch knows no such device, or it is not there.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"--device takes cpu, cuda or cuda:N, got {name!r}") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device takes cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"--device {name}: there are {torch.cuda.device_count()} CUDA devices")
    return device
