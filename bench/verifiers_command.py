"""`warpdraft bench verifiers`: every verifier on the same contexts, with paired intervals."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .console import progress_bar, stderr, stdout, table, working
from .options import (
    Device,
    DraftModel,
    Dtype,
    MinPShare,
    Model,
    SkippedLayers,
    Temperature,
    TopHAlpha,
    TopHVariant,
    TopKTokens,
    TopPMass,
    check_folder,
    rules_in_order,
    whole_numbers,
)
from .paired_results import Results, Settings
from .prompts import prompts_for

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.table import Table

    from .bench_verifiers import Context, Line
    from .contest import Drafting, Reading
    from .model_pair import ModelPair
    from .paired_summary import Difference, Summary
    from .strategies import Sampling

REFERENCES = ("k_seq", "optimal_block")


def verifiers(
    results: Annotated[
        Path | None,
        typer.Option(
            "--csv",
            help="A line a context and verifier, written as it goes; a run that was stopped goes on there.",
        ),
    ] = None,
    summarise: Annotated[
        list[Path] | None,
        typer.Option(
            help="Measure nothing: tables of this --csv file; may be repeated, and files on the same texts are "
            "put together.",
            metavar="FILE",
        ),
    ] = None,
    verifier: Annotated[
        str, typer.Option(help="all, or labels of the table, separated by commas.")
    ] = "all",
    against: Annotated[
        str, typer.Option(help="Labels that every verifier is compared with.", metavar="LABEL,...")
    ] = ",".join(REFERENCES),
    num_drafts: Annotated[
        str, typer.Option(help="Draft paths a target call.", metavar="K,...")
    ] = "1,2,4,8",
    draft_length: Annotated[
        str, typer.Option(help="Tokens a draft path.", metavar="L,...")
    ] = "4,8",
    prompts: Annotated[
        int | None, typer.Option(min=2, help="So many of the prompts.", show_default="all")
    ] = None,
    prompt_file: Annotated[
        Path | None, typer.Option(help="Prompts of your own instead, one a line.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest text.", metavar="N")] = 64,
    stride: Annotated[
        int, typer.Option(min=1, help="A block at every N-th token of a text.", metavar="N")
    ] = 4,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Contexts a call of the loop.", metavar="N")
    ] = 8,
    seed: Annotated[int, typer.Option(help="Of texts and drafts.")] = 0,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Also write the summary as JSON.")
    ] = None,
    model: Model = None,
    draft_model: DraftModel = None,
    skip: SkippedLayers = None,
    device: Device = "cpu",
    dtype: Dtype = None,
    temperature: Temperature = 1.0,
    top_h: TopHAlpha = None,
    top_h_variant: TopHVariant = "paper",
    top_k: TopKTokens = None,
    top_p: TopPMass = None,
    min_p: MinPShare = None,
) -> None:
    """Compare the verifiers on the same texts, drafts and laws.

    At places in texts of the target one block is drafted for each draft structure; what a verifier accepts of it is
    computed, not sampled. The tables give block efficiency and its paired difference to a reference, in percent, with
    a 95 % interval over texts and, as stars, Holm-corrected p-values below 0.05, 0.01 and 0.001.
    """
    check_folder("--csv", results)
    check_folder("--json", json_file)
    drafts = whole_numbers("--num-drafts", num_drafts)
    lengths = whole_numbers("--draft-length", draft_length)
    if summarise:
        show([Results.read(file) for file in summarise], against.split(","), json_file)
        return
    with working("Loading torch and the models"):
        from .bench_verifiers import contexts_of, sample_texts
        from .contest import contenders_named, readings_by_drafting
        from .model_pair import load_pair
        from .strategies import Sampling

        plan = readings_by_drafting(contenders_named(verifier.split(",")), drafts, lengths)
        rules = rules_in_order(top_h, top_h_variant, top_k, top_p, min_p)
        sampling = Sampling(rules, temperature, max_new_tokens, seed)
        pair = load_pair(model, draft_model, skip=skip or (), device=device, dtype=dtype)
        if pair.draft is None:
            raise ValueError(
                f"--draft must be a model or first-layers:N here, or --skip given, got {draft_model!r}"
            )
        texts = prompts_for(pair.name, prompt_file, prompts)
        file = Results(
            results,
            Settings(
                pair.name,
                str(sampling),
                stride,
                sorted({reading.contender.label for each in plan.values() for reading in each}),
                drafts,
                lengths,
                texts,
            ),
        )
        if not file.tails:
            file.begin(*sample_texts(pair, texts, sampling))
        contexts = file.missing(contexts_of(file.heads, file.tails, stride))

    if contexts:
        seconds = measure(pair, contexts, plan, sampling, file, batch_size)
        stderr.print(f"{seconds / len(contexts):.2f} s a context")
    show([file], against.split(","), json_file)


def measure(
    pair: ModelPair,
    contexts: Sequence[Context],
    plan: dict[Drafting, list[Reading]],
    sampling: Sampling,
    file: Results,
    batch_size: int,
) -> float:
    """Compare at all contexts, batch by batch, each written when it is done; the seconds it took."""
    from .bench_verifiers import compare_at

    start = time.perf_counter()
    with progress_bar() as progress:
        task = progress.add_task("", total=len(contexts) * len(plan))
        for number in range(0, len(contexts), batch_size):
            batch = contexts[number : number + batch_size]
            lines: list[Line] = []
            for drafting, found in zip(plan, compare_at(pair, batch, plan, sampling), strict=True):
                lines += found
                progress.update(task, advance=len(batch), description=describe(drafting))
            file.add(lines)
    return time.perf_counter() - start


def describe(drafting: Drafting) -> str:
    """What is being drafted, for the progress bar."""
    kind = drafting.drafts if drafting.structure == "paths" else drafting.structure
    return f"{kind}, {drafting.num_drafts} x {drafting.draft_length}"


def show(files: Sequence[Results], references: Sequence[str], json_file: Path | None) -> None:
    """Tables of the files, those on the same texts together, and all of them as JSON."""
    from .paired_summary import summarise

    written = []
    groups: dict[str, list[Results]] = {}
    for file in files:
        groups.setdefault(file.texts, []).append(file)
    for group in groups.values():
        file = group[0]
        summary = summarise([line for each in group for line in each.lines], references)
        for each in tables(summary, references, f"{file.settings.pair}, {file.settings.sampling}"):
            stdout.print(each)
        stdout.print(footnote(summary))
        settings = [asdict(each.settings) for each in group]
        written.append({"settings": settings, **asdict(summary)})
    if json_file is not None:
        json_file.write_text(json.dumps(written, indent=1) + "\n")


def tables(summary: Summary, references: Sequence[str], title: str) -> Iterator[Table]:
    """One table for each draft length: a line a verifier, and for every K its gains."""
    for length in sorted({cell.draft_length for cell in summary.cells}):
        for paths in sorted({cell.num_drafts for cell in summary.cells}):
            cells = [
                cell
                for cell in summary.cells
                if (cell.num_drafts, cell.draft_length) == (paths, length)
            ]
            if not cells:
                continue
            rows = table(
                "verifier",
                "block efficiency",
                "first token accepted",
                *(f"against {reference}, %" for reference in references),
                title=f"{title}: K = {paths}, L = {length}",
            )
            for cell in cells:
                rows.add_row(
                    cell.verifier,
                    f"{cell.tokens:.3f} ± {cell.tokens_error:.3f}",
                    f"{cell.root_acceptance:.3f}",
                    *(gain(cell.against.get(reference)) for reference in references),
                )
            yield rows


def gain(difference: Difference | None) -> str:
    """A difference with its interval, starred where it is significant after Holm's correction."""
    if difference is None:
        return ""
    stars = "*" * sum(difference.p_value < level for level in (0.05, 0.01, 0.001))
    return f"{difference.percent:+.2f} [{difference.low:+.2f}, {difference.high:+.2f}]{stars:<3}"


def footnote(summary: Summary) -> str:
    """What the tables rest on."""
    most = max(summary.cells, key=lambda cell: cell.contexts)
    parts = [f"{most.contexts} contexts in {most.texts} texts"]
    if summary.optimal_acceptance:
        bounds = ", ".join(
            f"{bound:.3f} (K = {paths})" for paths, bound in summary.optimal_acceptance.items()
        )
        parts.append(f"alpha* of the first token, for i.i.d. drafts: {bounds}")
    if summary.k_seq_error is not None:
        parts.append(f"k-SEQ within {summary.k_seq_error:.1e} of its acceptance at a bisected rho")
    return "\n".join(parts)
