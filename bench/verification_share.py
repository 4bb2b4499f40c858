"""What verification costs, as a share of the target call's time, without and with truncation.

    python bench/verification_share.py --model FOLDER --skip 12 --json verification_share.json

The stage's whole time, truncation of the target's rows included, over that of the target calls, in whole texts. The
verifiers take turns, round by round; the median of the rounds stands with the least and the largest.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated

import typer

from warpdraft.bench.options import SkippedLayers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from warpdraft.bench.model_pair import ModelPair
    from warpdraft.bench.strategies import Run, Sampling, Speculation

VERIFIERS = ("optimal_block", "optimal", "k_seq")
NUM_DRAFTS, DRAFT_LENGTH = 4, 8


def main(
    json_file: Annotated[Path, typer.Option("--json", help="Write the shares here.")],
    model: Annotated[str | None, typer.Option(help="A folder; the built-in pair without.")] = None,
    skip: SkippedLayers = None,
    prompts: Annotated[int, typer.Option(min=2, help="Texts.")] = 3,
    max_new_tokens: Annotated[int, typer.Option(help="Longest continuation.")] = 32,
    rounds: Annotated[int, typer.Option(min=1, help="Times that every verifier runs.")] = 3,
) -> None:
    """Measure every verifier under every rule, and write the shares."""
    from warpdraft import MinP, TopH
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
        sampling = Sampling(rules, 1.0, max_new_tokens, 0)
        found = shares_of(pair, texts, sampling, asked, rounds)
        shares[name] = {
            verifier: [round(value, 3) for value in (median(values), min(values), max(values))]
            for verifier, values in found.items()
        }
        typer.echo(f"{name}: {shares[name]}")
    written = {
        "pair": pair.name,
        "num_drafts": NUM_DRAFTS,
        "draft_length": DRAFT_LENGTH,
        "rounds": rounds,
    }
    json_file.write_text(json.dumps({**written, "shares": shares}, indent=1) + "\n")


def shares_of(
    pair: ModelPair,
    texts: Sequence[str],
    sampling: Sampling,
    settings: Sequence[Speculation],
    rounds: int,
) -> dict[str, list[float]]:
    """By verifier, of every round: seconds of verification over those of target calls, all texts together."""
    from warpdraft.bench.strategies import run_warpdraft

    batches = [pair.encode([text], raw=True) for text in texts]
    found: dict[str, list[float]] = defaultdict(list)
    for setting in settings:
        run_warpdraft(pair, batches[0], sampling.warm_up(), setting)
    for _ in range(rounds):
        for setting in settings:
            runs = [
                run_warpdraft(pair, batch, replace(sampling, seed=sampling.seed + number), setting)
                for number, batch in enumerate(batches)
            ]
            found[setting.verifier].append(_seconds(runs, "verify") / _seconds(runs, "target"))
    return found


def _seconds(runs: Sequence[Run], stage: str) -> float:
    return sum(run.stats.seconds[stage] for run in runs if run.stats)


if __name__ == "__main__":
    typer.run(main)
