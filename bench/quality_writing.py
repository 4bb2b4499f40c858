"""Texts by every setting of a method, all in one batch: a prompt is read once, its cache copied for every setting.

Each token is `warpdraft.sample`'s, the draw that `FusedSampling` makes, with the setting's parameter and temperature
in its row. The noise is named by seed, prompt and step, so that all settings of all methods draw from the same random
numbers: what differs between them is the rule. Special tokens are masked, so that all texts are of one length.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from warpdraft import sample

from .quality_methods import Setting, rules_of
from .quality_results import TextLine

if TYPE_CHECKING:
    from .model_pair import ModelPair
    from .quality_judge import Judge


def judged_texts(
    pair: ModelPair,
    judge: Judge,
    prompts: Sequence[str],
    settings: Sequence[Setting],
    *,
    max_new_tokens: int,
    seed: int,
    batch_size: int,
) -> list[TextLine]:
    """A text of every prompt by every setting of a method, with its bits under the judge.

    Args:
        pair: its target writes.
        judge: reads.
        prompts: texts to continue.
        settings: of one method.
        max_new_tokens: length of each continuation.
        seed: of the noise.
        batch_size: the most texts at once; at least one prompt is written at a time.
    """
    lines = []
    together = max(1, batch_size // len(settings))
    for first in range(0, len(prompts), together):
        some = prompts[first : first + together]
        written = write(pair, some, settings, max_new_tokens=max_new_tokens, seed=seed, first=first)
        for number, prompt in enumerate(some):
            rows = written[:, number].tolist()
            texts = [str(text) for text in pair.tokenizer.batch_decode(rows)]
            for setting, text, row, bits in zip(
                settings, texts, rows, judge.bits(prompt, texts), strict=True
            ):
                token_ids = " ".join(map(str, row))
                lines.append(TextLine(*setting, first + number, seed, bits, len(text), token_ids))
    return lines


@torch.inference_mode()
def write(
    pair: ModelPair,
    prompts: Sequence[str],
    settings: Sequence[Setting],
    *,
    max_new_tokens: int,
    seed: int,
    first: int = 0,
) -> Tensor:
    """The continuations, int64 `[settings, prompts, max_new_tokens]` on the CPU.

    Args:
        pair: its target writes.
        prompts: texts to continue.
        settings: of one method.
        max_new_tokens: length of each continuation.
        seed: of the noise.
        first: number of the first prompt; names the noise of the rows.
    """
    inputs = pair.encode(list(prompts), raw=True)
    repeats = len(settings)
    mask = inputs["attention_mask"]
    output = pair.target(
        **inputs,
        position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
        use_cache=True,
        logits_to_keep=1,
    )
    cache = output.past_key_values
    # rows by setting, then by prompt: the order of `rules_of`
    rows = torch.arange(len(prompts), device=pair.device).repeat(repeats)
    cache.batch_select_indices(rows)
    logits = output.logits[:, -1].index_select(0, rows)
    mask = mask.index_select(0, rows)

    rules = rules_of(settings, len(prompts))
    heat = torch.tensor([setting.temperature for setting in settings], dtype=torch.float64)
    temperature = heat.repeat_interleave(len(prompts)).to(pair.device)
    special = torch.tensor(sorted(set(pair.tokenizer.all_special_ids)), device=pair.device)
    written = []
    for step in range(max_new_tokens):
        logits = logits.float().index_fill(-1, special, -torch.inf)
        drawn = sample(
            logits, rules, temperature=temperature, seed=seed, sequence=rows + first, step=step
        )
        written.append(drawn.token_ids)
        if step + 1 == max_new_tokens:
            break
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
        output = pair.target(
            input_ids=drawn.token_ids[:, None],
            attention_mask=mask,
            position_ids=mask.sum(-1, keepdim=True) - 1,
            past_key_values=cache,
            use_cache=True,
        )
        logits = output.logits[:, -1]
    return torch.stack(written, dim=-1).view(repeats, len(prompts), max_new_tokens).cpu()
