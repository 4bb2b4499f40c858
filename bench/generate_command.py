"""`warpdraft generate`: write text, then say what it cost."""

from __future__ import annotations

import secrets
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from .console import stderr, table, working
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
    rules_in_order,
)

if TYPE_CHECKING:
    from rich.table import Table

    from .strategies import Run


def generate(
    prompt: Annotated[
        str, typer.Argument(help="Text to continue; - reads it from stdin.", metavar="PROMPT")
    ],
    raw: Annotated[bool, typer.Option("--raw", help="Never apply the chat template.")] = False,
    max_new_tokens: Annotated[int, typer.Option(help="Longest continuation.", metavar="N")] = 128,
    num_drafts: Annotated[int, typer.Option(help="Draft paths a target call.", metavar="K")] = 4,
    draft_length: Annotated[int, typer.Option(help="Tokens a draft path.", metavar="L")] = 4,
    verifier: Annotated[
        str | None,
        typer.Option(
            help="How drafted tokens are accepted.",
            show_default="optimal_block, for prompt look-up target_only",
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Replays a run.", show_default="a new one, printed")
    ] = None,
    compare: Annotated[
        bool,
        typer.Option("--compare", help="Also run plain sampling and assisted generation."),
    ] = False,
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
    """Continue a prompt and print what it cost.

    The text goes to stdout, the table to stderr.
    """
    if prompt == "-":
        prompt = sys.stdin.read()
    seed = secrets.randbits(32) if seed is None else seed
    with working("Loading torch and the models"):
        from .model_pair import load_pair, own_verifier
        from .strategies import Sampling, Speculation, run_assisted, run_plain, run_warpdraft
        from .text_streamer import StdoutStreamer

        rules = rules_in_order(top_h, top_h_variant, top_k, top_p, min_p)
        sampling = Sampling(rules, temperature, max_new_tokens, seed)
        speculation = Speculation(
            num_drafts,
            draft_length,
            verifier or own_verifier(draft_model),
            selector=selector,
            num_top=num_top,
            structure=structure,
            node_budget=node_budget,
            layout=layout,
        )
        pair = load_pair(model, draft_model, skip=skip or (), device=device, dtype=dtype)
        inputs = pair.encode([prompt], raw=raw)
        streamer = StdoutStreamer(pair.tokenizer, skip_prompt=pair.is_chat and not raw)

    if compare:
        with working("Warming up"):
            run_warpdraft(pair, inputs, sampling.warm_up(), speculation)
    runs = [run_warpdraft(pair, inputs, sampling, speculation, streamer=streamer)]
    if compare:
        with working("Plain sampling"):
            run_plain(pair, inputs, sampling.warm_up())
            runs.append(run_plain(pair, inputs, sampling))
    if compare and pair.source is not None:
        with working("Assisted generation"):
            run_assisted(pair, inputs, sampling.warm_up(), draft_length)
            runs.append(run_assisted(pair, inputs, sampling, draft_length))
    stderr.print(cost_table(runs, f"{pair.name}, {sampling}"))


def cost_table(runs: list[Run], title: str) -> Table:
    """One line a strategy; with several, how each compares with plain sampling."""
    columns = ["", "tokens", "target calls", "block efficiency", "acceptance rate", "tokens/s"]
    plain = next((run for run in runs if run.strategy == "plain sampling"), None)
    if plain is not None:
        columns.append("ratio to plain")
    result = table(*columns, title=title)
    for run in runs:
        acceptance = "" if run.acceptance_rate is None else f"{run.acceptance_rate:.3f}"
        row = [
            run.strategy,
            str(run.tokens),
            str(run.target_calls),
            f"{run.block_efficiency:.2f}",
            acceptance,
            f"{run.tokens_per_second:.1f}",
        ]
        if plain is not None:
            row.append(f"{run.tokens_per_second / plain.tokens_per_second:.2f}")
        result.add_row(*row)
    return result
