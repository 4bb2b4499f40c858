"""`warpdraft bench spec`: block efficiency of the verifiers, as a table, JSON, CSV or plot."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from .console import progress_bar, stdout, table, working
from .options import (
    DRAFTS,
    Device,
    DraftModel,
    Dtype,
    LayoutName,
    MinPShare,
    Model,
    NodeBudget,
    NumTop,
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
from .prompts import prompts_for

PLAN = "Plan"
BATCHES = "1,2,4,8,16,32,64,128,256,512"
CONTEXTS = "1024,8192,32768,131072"

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from warpdraft.structures import Structure
    from warpdraft.verification import Selector

    from .bench_speculation import Measurement


def speculation(
    verifier: Annotated[
        str | None,
        typer.Option(
            help="all, or one or more, separated by commas.",
            show_default="optimal_block, for prompt look-up target_only",
            metavar="NAME,...",
        ),
    ] = None,
    num_drafts: Annotated[
        str, typer.Option(help="Draft paths a target call.", metavar="K,...")
    ] = "1,2,4,8",
    draft_length: Annotated[
        str, typer.Option(help="Tokens a draft path.", metavar="L,...")
    ] = "4,8",
    selector: Annotated[
        str | None,
        typer.Option(
            help="clip, lex or both, separated by commas.",
            show_default="the verifier's own",
            metavar="NAME,...",
            rich_help_panel=DRAFTS,
        ),
    ] = None,
    structure: Annotated[
        str,
        typer.Option(
            help="paths, rollover or both, separated by commas.",
            metavar="NAME,...",
            rich_help_panel=DRAFTS,
        ),
    ] = "paths",
    prompts: Annotated[
        int | None,
        typer.Option(min=2, help="So many of the prompts.", metavar="N", show_default="all"),
    ] = None,
    prompt_file: Annotated[
        Path | None, typer.Option(help="Prompts of your own instead, one a line.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts a call.", metavar="N")] = 1,
    max_new_tokens: Annotated[int, typer.Option(help="Longest continuation.", metavar="N")] = 64,
    seed: Annotated[int, typer.Option(help="The i-th call takes this plus i.")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write JSON here.")] = None,
    csv_file: Annotated[Path | None, typer.Option("--csv", help="Also write CSV here.")] = None,
    plot_file: Annotated[
        Path | None, typer.Option("--plot", help="Also draw block efficiency over K here (PNG).")
    ] = None,
    model: Model = None,
    draft_model: DraftModel = None,
    skip: SkippedLayers = None,
    device: Device = "cpu",
    dtype: Dtype = None,
    plan: Annotated[
        str | None,
        typer.Option(
            help="Predict instead: tokens a second on this machine, by a cost model. h100, h100-pcie, h200, gh200, "
            "a100, l40s, rtx-4090, b200, mi300x or cpu (this one, measured now). --csv, --json and --plot then hold "
            "the plan.",
            metavar="MACHINE",
            rich_help_panel=PLAN,
        ),
    ] = None,
    efficiency: Annotated[
        str | None,
        typer.Option(
            help="Block efficiency: a number, for one K and L, or a --csv or --json file of this command.",
            show_default="measured now",
            metavar="NUMBER|FILE",
            rich_help_panel=PLAN,
        ),
    ] = None,
    acceptance: Annotated[
        str | None,
        typer.Option(
            help="Block efficiency from the chance that a draft token is accepted, taken as the same everywhere; or "
            "one chance for each K that one of K candidates is.",
            metavar="RATE,...",
            rich_help_panel=PLAN,
        ),
    ] = None,
    batches: Annotated[
        str, typer.Option(help="Texts a batch.", metavar="B,...", rich_help_panel=PLAN)
    ] = BATCHES,
    contexts: Annotated[
        str, typer.Option(help="Cached tokens a text.", metavar="N,...", rich_help_panel=PLAN)
    ] = CONTEXTS,
    assume: Annotated[
        list[str] | None,
        typer.Option(
            help="Change an assumption of the cost model (docs/plan.md); may be repeated.",
            metavar="NAME=NUMBER",
            rich_help_panel=PLAN,
        ),
    ] = None,
    num_top: NumTop = None,
    node_budget: NodeBudget = None,
    layout: LayoutName = "auto",
    temperature: Temperature = 1.0,
    top_h: TopHAlpha = None,
    top_h_variant: TopHVariant = "paper",
    top_k: TopKTokens = None,
    top_p: TopPMass = None,
    min_p: MinPShare = None,
) -> None:
    """Measure block efficiency and speed over verifiers, draft paths and draft lengths.

    Every setting continues the same prompts; plain sampling comes first. Combinations that a verifier does not take
    are left out. With --plan speed on another machine is predicted, over batch size and context.
    """
    drafts, lengths = (
        whole_numbers("--num-drafts", num_drafts),
        whole_numbers("--draft-length", draft_length),
    )
    check_folder("--json", json_file)
    check_folder("--csv", csv_file)
    check_folder("--plot", plot_file)
    asked_plan = None
    if plan is not None:
        with working("Counting the models"):
            from .plan_command import known_efficiencies, planned, show_plan

            asked_plan = planned(
                plan,
                model,
                draft_model,
                skip or (),
                dtype=dtype,
                layout=layout,
                assume=assume or (),
                batches=whole_numbers("--batches", batches),
                contexts=whole_numbers("--contexts", contexts),
            )
            known = known_efficiencies(efficiency, acceptance, drafts, lengths)
        if known is not None:
            show_plan(
                asked_plan, known, json_file=json_file, csv_file=csv_file, plot_file=plot_file
            )
            return
    elif efficiency is not None or acceptance is not None or assume:
        raise ValueError("--efficiency, --acceptance and --assume belong to --plan")
    with working("Loading torch and the models"):
        from .bench_speculation import PLAIN, measure, recommendation, settings
        from .model_pair import load_pair, own_verifier
        from .strategies import Sampling

        rules = rules_in_order(top_h, top_h_variant, top_k, top_p, min_p)
        sampling = Sampling(rules, temperature, max_new_tokens, seed)
        asked = settings(
            (verifier or own_verifier(draft_model)).split(","),
            drafts,
            lengths,
            selectors=cast("list[Selector | None]", selector.split(",") if selector else [None]),
            structures=cast("list[Structure]", structure.split(",")),
            template=replace(PLAIN, num_top=num_top, node_budget=node_budget, layout=layout),
        )
        pair = load_pair(model, draft_model, skip=skip or (), device=device, dtype=dtype)
        if pair.source is None:
            raise ValueError("the benchmark needs a draft: --draft or --skip")
        texts = prompts_for(pair.name, prompt_file, prompts)

    measurements = []
    calls = (1 + len(asked)) * math.ceil(len(texts) / batch_size)
    with progress_bar() as progress:
        task = progress.add_task("warming up", total=calls)
        for measurement in measure(
            pair,
            texts,
            sampling,
            asked,
            batch_size=batch_size,
            on_call=lambda strategy: progress.update(task, advance=1, description=strategy),
        ):
            measurements.append(measurement)
    title = f"{pair.name}, {len(texts)} prompts, {max_new_tokens} new tokens, {sampling}"
    stdout.print(result_table(measurements, title))
    stdout.print("\n".join(recommendation(measurements)), markup=False)
    if asked_plan is not None:
        from .plan import efficiencies_of

        show_plan(
            asked_plan,
            efficiencies_of(measurements),
            json_file=json_file,
            csv_file=csv_file,
            plot_file=plot_file,
        )
        return
    if json_file is not None:
        json_file.write_text(json.dumps([asdict(line) for line in measurements], indent=1) + "\n")
    if csv_file is not None:
        write_csv(measurements, csv_file)
    if plot_file is not None:
        from .plots import plot_block_efficiency

        plot_block_efficiency(measurements, plot_file, title)


def write_csv(measurements: Sequence[Measurement], file: Path) -> None:
    """A line a setting; rates by position and seconds by stage are JSON."""
    lines = [asdict(line) for line in measurements]
    for line in lines:
        for column in ("acceptance_by_position", "seconds"):
            line[column] = json.dumps(line[column])
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)


def result_table(measurements: list[Measurement], title: str) -> Table:
    """One line a setting."""
    rows = table(
        "verifier",
        "K",
        "L",
        "block efficiency",
        "accepted by position",
        "alpha*",
        "draft/target/verify, %",
        "tokens/s",
        "ratio to plain",
        title=title,
    )
    for line in measurements:
        drafted = line.num_drafts > 0
        rows.add_row(
            line.label,
            str(line.num_drafts) if drafted else "",
            str(line.draft_length) if drafted else "",
            f"{line.block_efficiency:.3f} ± {line.block_efficiency_error:.3f}",
            " ".join(
                f"{rate:.2f}"[1:] if rate < 1 else "1" for rate in line.acceptance_by_position
            ),
            "" if line.optimal_acceptance is None else f"{line.optimal_acceptance:.3f}",
            time_split(line.seconds) if drafted else "",
            f"{line.tokens_per_second:.1f}",
            f"{line.ratio_to_plain:.2f}",
        )
    return rows


def time_split(seconds: dict[str, float]) -> str:
    """The share of each stage of a block in the time of all of them."""
    whole = sum(seconds.values())
    return "/".join(
        f"{100 * seconds[stage] / whole:.0f}" for stage in ("draft", "target", "verify")
    )
