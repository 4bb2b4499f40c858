"""A draft out of the target itself: the same model without some of its layers.

    python bench/layer_skipping.py FOLDER --skip 4 --skip 8 --prompt "The lighthouse keeper"

writes text under top-H and SpecTr with such a pair, and prints what the run did. FOLDER holds any causal model of the
Hugging Face format; nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from warpdraft.first_layers import with_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def layer_skipped_draft(model: PreTrainedModel, skipped: Collection[int]) -> PreTrainedModel:
    """The model without the layers of these numbers; the weights are shared, not copied.

    Args:
        model: a causal decoder of an architecture that `FirstLayers` takes.
        skipped: layer numbers, counted from 0.

    Raises:
        ValueError: a number that is no layer's, nothing left, or another architecture.
    """
    count = model.config.num_hidden_layers
    kept = [layer for layer in range(count) if layer not in skipped]
    if not kept or not set(skipped) <= set(range(count)):
        raise ValueError(
            f"skipped layers must leave some of 0 to {count - 1}, got {sorted(skipped)}"
        )
    return with_layers(model, kept)


def main(
    folder: Path,
    prompt: Annotated[str, typer.Option(help="Text to continue.")] = "The lighthouse keeper",
    skip: Annotated[list[int] | None, typer.Option(help="A layer to leave out.")] = None,
    num_drafts: int = 4,
    draft_length: int = 4,
    alpha: Annotated[float, typer.Option(help="Top-H's share of the entropy.")] = 0.4,
    temperature: float = 1.0,
    max_new_tokens: int = 96,
    seed: int = 7,
) -> None:
    """Continue PROMPT under top-H (the paper's rule) and SpecTr, drafting with the target's own layers."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from warpdraft import TopH
    from warpdraft.integrations.transformers import SpeculativeDecoding

    target = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    draft = layer_skipped_draft(target, skip or [])
    speculation = SpeculativeDecoding(
        draft, num_drafts=num_drafts, draft_length=draft_length, rules=[TopH(alpha)], seed=seed
    )
    inputs = tokenizer(prompt, return_tensors="pt")
    output = target.generate(
        input_ids=inputs.input_ids,
        attention_mask=inputs.attention_mask,
        custom_generate=speculation,
        do_sample=True,
        temperature=temperature,
        top_k=0,
        top_p=1.0,
        max_new_tokens=max_new_tokens,
        return_dict_in_generate=True,
    )
    stats = output.stats
    typer.echo(tokenizer.decode(output.sequences[0], skip_special_tokens=True))
    typer.echo(
        f"\n{stats.emitted_tokens} tokens in {stats.target_calls} target calls: block efficiency "
        f"{stats.block_efficiency:.2f}, acceptance rate {stats.acceptance_rate:.3f}; "
        f"rules {', '.join(stats.rules)}"
    )


if __name__ == "__main__":
    typer.run(main)
