"""What verification costs, as a share of the target call's time, without and with truncation.

    python bench/verification_share.py --model FOLDER --skip 12 --json verification_share.json

The stage's whole time, truncation of the target's rows included, over that of the target calls, in whole texts.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from warpdraft.bench.options import SkippedLayers

VERIFIERS = ("optimal_block", "optimal", "k_seq")
NUM_DRAFTS, DRAFT_LENGTH = 4, 8


def main(
    json_file: Annotated[Path, typer.Option("--json", help="Write the shares here.")],
    model: Annotated[str | None, typer.Option(help="A folder; the built-in pair without.")] = None,
    skip: SkippedLayers = None,
    prompts: Annotated[int, typer.Option(min=2, help="Texts.")] = 3,
    max_new_tokens: Annotated[int, typer.Option(help="Longest continuation.")] = 32,
) -> None:
    """Measure every verifier under every rule, and write the shares."""
    from warpdraft import MinP, TopH
    from warpdraft.bench.bench_speculation import measure
    from warpdraft.bench.model_pair import load_pair
    from warpdraft.bench.prompts import prompts_for
    from warpdraft.bench.strategies import Sampling, Speculation

    pair = load_pair(model, skip=skip or ())
    texts = prompts_for(pair.name, None, prompts)
    asked = [Speculation(NUM_DRAFTS, DRAFT_LENGTH, verifier) for verifier in VERIFIERS]
    shares = {}
    for name, rules in (
        ("untruncated", ()),
        ("`TopH(0.4)`", (TopH(0.4),)),
        ("`MinP(0.1)`", (MinP(0.1),)),
    ):
        lines = measure(pair, texts, Sampling(rules, 1.0, max_new_tokens, 0), asked)
        shares[name] = {
            line.verifier: round(line.seconds["verify"] / line.seconds["target"], 3)
            for line in lines
            if line.num_drafts
        }
        typer.echo(f"{name}: {shares[name]}")
    written = {"pair": pair.name, "num_drafts": NUM_DRAFTS, "draft_length": DRAFT_LENGTH}
    json_file.write_text(json.dumps({**written, "shares": shares}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
