"""What the rules keep of a model's laws on text that people wrote, without generating anything.

At each position of the text, with the model's law of the next token and the token that stands there:

    kept tokens   size of the support
    kept mass     its probability before truncation, at the temperature of the setting
    entropy       of the processed law, in nats
    coverage      whether the support holds the token that stands there

A rule that holds on to what people write and is surer elsewhere covers more at the same entropy.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from warpdraft.kernels.support import contains
from warpdraft.truncation import resolve

from .model_pair import BUILT_IN
from .quality_methods import Setting, rules_of

if TYPE_CHECKING:
    from .model_pair import ModelPair

# the first tokens of a window, which follow on nothing, are only read
CONTEXT = 32


@dataclass(frozen=True, slots=True)
class CoverageLine:
    """One setting on one window of text: means over its positions."""

    method: str
    value: float
    temperature: float
    window: int
    positions: int
    kept_tokens: float
    kept_mass: float
    entropy: float
    coverage: float


def text_for(pair: str, file: Path | None) -> str:
    """A file, or for the built-in pair the standard library's held-out files, else English prose.

    The prose is the language reference in `pydoc_data`, which every Python has.
    """
    if file is not None:
        return file.read_text(encoding="utf-8")
    from .pair_corpus import collect_documents

    documents = collect_documents()
    if pair == BUILT_IN:
        from warpdraft.builtin_pair import builtin_pair_folders

        record = builtin_pair_folders().target.parent / "training.json"
        names = set(json.loads(record.read_text(encoding="utf-8"))["corpus"]["held_out_files"])
        return "\n\n".join(each.text for each in documents if each.name in names)
    return "\n\n".join(each.text for each in documents if each.name.startswith("pydoc_data/"))


def windows_of(pair: ModelPair, text: str, count: int, length: int) -> Tensor:
    """Pieces of a text with equal gaps, int64 `[count, length]`; each begins with the tokenizer's first token.

    Args:
        pair: whose tokenizer reads the text.
        text: long enough.
        count: of the windows.
        length: in tokens, more than `CONTEXT`.

    Raises:
        ValueError: the text is too short, or the windows are.
    """
    if length <= CONTEXT:
        raise ValueError(f"a window must be longer than its context of {CONTEXT}, got {length}")
    token_ids = pair.tokenizer.encode(text, add_special_tokens=False, verbose=False)
    begin = pair.tokenizer.bos_token_id
    head = [] if begin is None else [begin]
    own = length - len(head)
    if len(token_ids) < count * own:
        raise ValueError(
            f"{count} windows need {count * own} tokens, the text has {len(token_ids)}"
        )
    gap = len(token_ids) // count
    return torch.tensor(
        [head + token_ids[start : start + own] for start in range(0, count * gap, gap)]
    )


@torch.inference_mode()
def laws_of(pair: ModelPair, windows: Tensor) -> tuple[Tensor, Tensor]:
    """Logits at the scored positions, `[windows, positions, vocab]`, and the tokens that follow them."""
    logits = [
        pair.target(window[None].to(pair.device), logits_to_keep=windows.shape[1] - CONTEXT + 1)
        .logits[0, :-1]
        .float()
        for window in windows
    ]
    return torch.stack(logits), windows[:, CONTEXT:].to(pair.device)


@torch.inference_mode()
def coverage_of(
    logits: Tensor, token_ids: Tensor, settings: Sequence[Setting]
) -> list[CoverageLine]:
    """A line for each setting and window.

    Args:
        logits: `[windows, positions, vocab]`.
        token_ids: `[windows, positions]`, the token that stands at each position.
        settings: with temperatures above 0.
    """
    totals = {
        temperature: [total_weight(rows, temperature) for rows in logits]
        for temperature in {setting.temperature for setting in settings}
    }
    lines = []
    for setting in settings:
        parts = zip(logits, token_ids, totals[setting.temperature], strict=True)
        for number, (rows, following, total) in enumerate(parts):
            measured = measure_rows(rows, following, setting, total)
            lines.append(
                CoverageLine(
                    *setting, number, len(rows), *(part.mean().item() for part in measured)
                )
            )
    return lines


def total_weight(logits: Tensor, temperature: float) -> Tensor:
    """exp((x - max) / temperature), summed over the vocabulary: float64 `[positions]`."""
    levels = (logits - logits.amax(-1, keepdim=True)) / temperature
    return levels.exp_().sum(-1, dtype=torch.float64)


def measure_rows(
    logits: Tensor, token_ids: Tensor, setting: Setting, total: Tensor
) -> tuple[Tensor, ...]:
    """Kept tokens, kept mass, entropy and coverage at every position, float64 `[positions]` each.

    With z = (x - max) / temperature, W and U the sums of exp(z) and z exp(z) over the support:

        kept mass = W / total        entropy = ln W - U / W

    Args:
        logits: `[positions, vocab]`.
        token_ids: `[positions]`, the token that stands at each position.
        setting: with a temperature above 0.
        total: `[positions]`, from `total_weight`, the same for all rules of a temperature.
    """
    rules = rules_of([setting], len(logits))
    kept = contains(logits, resolve(logits, rules, temperature=setting.temperature).support)
    row, token = kept.nonzero(as_tuple=True)
    maximum = logits.amax(-1).double()
    levels = (logits[row, token].double() - maximum[row]) / setting.temperature
    weights = levels.exp()
    kept_weight = torch.zeros_like(total).index_add_(0, row, weights)
    moment = torch.zeros_like(total).index_add_(0, row, weights * levels)
    entropy = kept_weight.log() - moment / kept_weight
    covered = kept.gather(-1, token_ids[:, None])[:, 0]
    return kept.sum(-1).double(), kept_weight / total, entropy, covered.double()
