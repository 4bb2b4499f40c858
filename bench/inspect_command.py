"""`warpdraft inspect`: what the model could have written at every step, and what each rule would have kept."""

from __future__ import annotations

import json
import secrets
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer

from .console import stderr, stdout, working
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
    whole_numbers,
)
from .rule_names import DEFAULT_RULES, NAMES, rules_named


def inspect(
    prompt: Annotated[
        str, typer.Argument(help="Text to continue; - reads it from stdin.", metavar="PROMPT")
    ],
    rule: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Compare this rule; may be repeated. {', '.join(NAMES)}, each =VALUE or with its default; "
            "+ puts several one behind the other.",
            show_default=", ".join(DEFAULT_RULES),
            metavar="RULE",
        ),
    ] = None,
    html_file: Annotated[
        Path | None, typer.Option("--html", help="Write a page to explore here.", metavar="FILE")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write JSON here.")] = None,
    step: Annotated[
        str | None,
        typer.Option(
            help="Tokens to show in full: numbers separated by commas, or all.",
            show_default="the most uncertain one",
            metavar="N,...",
        ),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Most likely tokens to list.", metavar="N")] = 20,
    raw: Annotated[bool, typer.Option("--raw", help="Never apply the chat template.")] = False,
    max_new_tokens: Annotated[int, typer.Option(help="Longest continuation.", metavar="N")] = 64,
    plain: Annotated[bool, typer.Option("--plain", help="No drafts.")] = False,
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
    """Continue a prompt as `generate` does, and show what it was drawn from.

    At every token: what else was likely, which of it each rule keeps, and how
    the drafts fared. Compared rules change nothing; those under Sampling do.
    """
    check_folder("--html", html_file)
    check_folder("--json", json_file)
    numbers = steps_asked(step, max_new_tokens)
    if prompt == "-":
        prompt = sys.stdin.read()
    seed = secrets.randbits(32) if seed is None else seed
    with working("Loading torch and the models"):
        from .inspect_page import page
        from .inspect_screen import show
        from .inspector import inspect_generation
        from .model_pair import load_pair, own_verifier
        from .strategies import Sampling, Speculation
        from .watched_generation import watch

        compared = [rules_named(name) for name in rule or DEFAULT_RULES]
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
        if plain:
            pair = replace(pair, draft=None, lookup=None)
        if pair.source is not None:
            speculation.check()
        inputs = pair.encode([prompt], raw=raw)
    with working("Writing and looking on"):
        watched = watch(pair, inputs, sampling, speculation)
        inspection = inspect_generation(
            pair,
            watched,
            sampling,
            speculation,
            compared,
            top=top,
            message=prompt if pair.is_chat and not raw else None,
        )
    show(stdout, inspection, numbers)
    if json_file is not None:
        json_file.write_text(json.dumps(asdict(inspection), indent=1) + "\n")
    if html_file is not None:
        size = html_file.write_text(page(inspection), encoding="utf-8")
        stderr.print(f"{html_file}: {size / 1000:.0f} kB, one file, open it in any browser")


def steps_asked(text: str | None, most: int) -> list[int] | None:
    """The tokens to show in full, from 1; None for the most uncertain one.

    Raises:
        ValueError: no numbers, or one that no text can have.
    """
    if text is None:
        return None
    numbers = list(range(1, most + 1)) if text == "all" else whole_numbers("--step", text)
    if max(numbers, default=1) > most:
        raise ValueError(f"--step must be in [1, {most}], the longest text, got {max(numbers)}")
    return numbers
