"""`warpdraft verify`: a losslessness test for any pair, verifier and sampling."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .console import progress_bar, stdout, table, working
from .options import (
    Device,
    DraftModel,
    Dtype,
    LayoutName,
    MinPShare,
    Model,
    NodeBudget,
    NumTop,
    SelectorName,
    SkippedLayers,
    StructureName,
    Temperature,
    TopHAlpha,
    TopHVariant,
    TopKTokens,
    TopPMass,
    check_folder,
    rules_in_order,
)

if TYPE_CHECKING:
    from rich.table import Table

    from .losslessness import Certificate

DEVIATES = 1


def verify(
    prompt: Annotated[
        str, typer.Option(help="All texts continue this one.", metavar="TEXT")
    ] = "def add(",
    verifier: Annotated[
        str, typer.Option(help="How drafted tokens are accepted.")
    ] = "optimal_block",
    num_drafts: Annotated[int, typer.Option(help="Draft paths a target call.", metavar="K")] = 4,
    draft_length: Annotated[int, typer.Option(help="Tokens a draft path.", metavar="L")] = 4,
    samples: Annotated[
        int, typer.Option(min=100, help="Texts of speculation, and of plain sampling.", metavar="N")
    ] = 2000,
    tokens: Annotated[
        int, typer.Option(min=1, max=3, help="First tokens of each that are tested.")
    ] = 3,
    seed: Annotated[int, typer.Option(help="Replays a run.")] = 0,
    false_alarm: Annotated[
        float, typer.Option(help="Chance that sound code fails.", metavar="P")
    ] = 1e-3,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write JSON here.")] = None,
    model: Model = None,
    draft_model: DraftModel = None,
    skip: SkippedLayers = None,
    device: Device = "cpu",
    dtype: Dtype = None,
    selector: SelectorName = None,
    num_top: NumTop = None,
    structure: StructureName = "paths",
    node_budget: NodeBudget = None,
    layout: LayoutName = "auto",
    temperature: Temperature = 1.0,
    top_h: TopHAlpha = None,
    top_h_variant: TopHVariant = "paper",
    top_k: TopKTokens = None,
    top_p: TopPMass = None,
    min_p: MinPShare = None,
) -> None:
    """Test that speculation is lossless and accepts as often as it should.

    Exit code 1 if a test finds a deviation. What it finds is stated: the smallest deviation from the law, spread
    evenly over the tokens, that it finds with probability 0.95.
    """
    check_folder("--json", json_file)
    with working("Loading torch and the models"):
        from .losslessness import certify
        from .model_pair import load_pair
        from .strategies import Sampling, Speculation

        rules = rules_in_order(top_h, top_h_variant, top_k, top_p, min_p)
        sampling = Sampling(rules, temperature, tokens, seed)
        speculation = Speculation(
            num_drafts,
            draft_length,
            verifier,
            selector=selector,
            num_top=num_top,
            structure=structure,
            node_budget=node_budget,
            layout=layout,
        )
        speculation.check()
        pair = load_pair(model, draft_model, skip=skip or (), device=device, dtype=dtype)
        if pair.draft is None:
            raise ValueError(
                f"--draft must be a model or first-layers:N here, or --skip given, got {draft_model!r}"
            )
        input_ids = pair.encode([prompt], raw=True)["input_ids"]

    with progress_bar() as progress:
        task = progress.add_task("speculation", total=2 * samples)
        certificate = certify(
            pair,
            input_ids,
            sampling,
            speculation.make_verifier(),
            speculation.loop_arguments(),
            samples=samples,
            false_alarm=false_alarm,
            on_texts=lambda stage, texts: progress.update(task, advance=texts, description=stage),
        )
    stdout.print(certificate_table(certificate, f"{pair.name}, {speculation}, {sampling}"))
    stdout.print(verdict(certificate))
    if json_file is not None:
        written = {
            "pair": pair.name,
            "speculation": asdict(speculation),
            "sampling": str(sampling),
            "prompt": prompt,
            "passed": not certificate.failed,
            **asdict(certificate),
        }
        json_file.write_text(json.dumps(written, indent=1) + "\n")
    if certificate.failed:
        raise typer.Exit(DEVIATES)


def certificate_table(certificate: Certificate, title: str) -> Table:
    """One line a test."""
    rows = table("test", "samples", "degrees of freedom", "p", "finds from", "", title=title)
    rows.columns[5].justify = "left"
    for check in certificate.checks:
        rows.add_row(
            check.name,
            f"{check.samples:,}",
            f"{check.degrees:,}",
            f"{check.p_value:.2g}",
            f"{check.smallest_deviation:.3f}",
            check.note,
        )
    return rows


def verdict(certificate: Certificate) -> str:
    """Acceptance beside the bound, and what failed."""
    lines = [
        f"first drafted token accepted: {certificate.acceptance:.4f}, expected "
        f"{certificate.expected_acceptance:.4f}, alpha* for {certificate.num_candidates} i.i.d. "
        f"drafts {certificate.optimal_acceptance:.4f}",
        f"p is Holm-corrected over {len(certificate.checks)} tests; sound code fails any of them with "
        f"probability {certificate.false_alarm:g}",
    ]
    failed = ", ".join(check.name for check in certificate.failed)
    lines.append(f"FAILED: {failed}" if failed else "passed")
    return "\n".join(lines)
