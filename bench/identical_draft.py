"""Acceptance rate of a draft model that is the target itself, as a Markdown table: 1 but for rounding.

    python bench/identical_draft.py

A processor that ran twice on the draft, or a law other than the sampled one at verification, would show here. The model
is the built-in target; the prompts are its held-out ones.
"""

from __future__ import annotations

import sys
from typing import Any, cast

import typer

from warpdraft.bench.model_pair import ModelPair, load_pair
from warpdraft.builtin_pair import held_out_prompts
from warpdraft.integrations.transformers import SpeculativeOutput, generate
from warpdraft.statistics import GenerationStats

SETTINGS = (
    {"temperature": 0.5},
    {"temperature": 0.7},
    {"temperature": 1.5},
    {"temperature": 1.0, "top_p": 0.7},
)
PROMPTS = 10
NEW_TOKENS = 64


def acceptance(
    pair: ModelPair, num_drafts: int, setting: dict[str, float], texts: list[str], new_tokens: int
) -> GenerationStats:
    """One batch of prompts, drafted and verified by the same model."""
    arguments: dict[str, Any] = {**pair.encode(texts, raw=True), "top_p": 1.0, **setting}
    output = generate(
        pair.target,
        pair.target,
        num_drafts=num_drafts,
        draft_length=4,
        verifier="k_seq",
        layout="paths",
        do_sample=True,
        top_k=0,
        max_new_tokens=new_tokens,
        return_dict_in_generate=True,
        seed=0,
        **arguments,
    )
    stats = cast("SpeculativeOutput", output).stats
    assert stats is not None
    return stats


def main(prompts: int = PROMPTS, new_tokens: int = NEW_TOKENS) -> None:
    """Print the table."""
    texts = held_out_prompts()[:prompts]
    print("| identical draft | K | " + " | ".join(map(_name, SETTINGS)) + " |")
    print("|---|---|" + "---|" * len(SETTINGS))
    fewest = sys.maxsize
    for dtype in ("float32", "bfloat16"):
        pair = load_pair(dtype=dtype)
        for num_drafts in (1, 4):
            runs = [acceptance(pair, num_drafts, each, texts, new_tokens) for each in SETTINGS]
            fewest = min(fewest, *(run.drafted_tokens for run in runs))
            cells = (f"{run.acceptance_rate:.4f}" for run in runs)
            print(f"| {dtype} | {num_drafts} | {' | '.join(cells)} |")
    print(f"\n{fewest:,} drafted tokens or more a cell")


def _name(setting: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in setting.items())


if __name__ == "__main__":
    typer.run(main)
