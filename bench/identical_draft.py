"""Acceptance rate of a draft model that is the target itself, as a Markdown table: 1 but for rounding.

    python bench/identical_draft.py

A processor that ran twice on the draft, or a law other than the sampled one at verification, would show here. The model
is the built-in target; the prompts are its held-out ones.
"""

from __future__ import annotations

import sys
from typing import Any, cast

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from warpdraft.builtin_pair import held_out_prompts, load_builtin_pair
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
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    num_drafts: int,
    setting: dict[str, float],
) -> GenerationStats:
    """One batch of prompts, drafted and verified by the same model."""
    prompts = tokenizer(
        held_out_prompts()[:PROMPTS],
        padding=True,
        padding_side="left",
        return_tensors="pt",
        return_token_type_ids=False,
    )
    arguments: dict[str, Any] = {**prompts, "top_p": 1.0, **setting}
    output = generate(
        model,
        model,
        num_drafts=num_drafts,
        draft_length=4,
        do_sample=True,
        top_k=0,
        max_new_tokens=NEW_TOKENS,
        return_dict_in_generate=True,
        seed=0,
        **arguments,
    )
    stats = cast("SpeculativeOutput", output).stats
    assert stats is not None
    return stats


def main() -> None:
    """Print the table."""
    logging.disable_progress_bar()
    print("| identical draft | K | " + " | ".join(map(_name, SETTINGS)) + " |")
    print("|---|---|" + "---|" * len(SETTINGS))
    fewest = sys.maxsize
    for dtype in (torch.float32, torch.bfloat16):
        pair = load_builtin_pair(dtype=dtype)
        for num_drafts in (1, 4):
            runs = [acceptance(pair.target, pair.tokenizer, num_drafts, each) for each in SETTINGS]
            fewest = min(fewest, *(run.drafted_tokens for run in runs))
            cells = (f"{run.acceptance_rate:.4f}" for run in runs)
            print(f"| {str(dtype).removeprefix('torch.')} | {num_drafts} | {' | '.join(cells)} |")
    print(f"\n{fewest:,} drafted tokens or more a cell")


def _name(setting: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in setting.items())


if __name__ == "__main__":
    main()
