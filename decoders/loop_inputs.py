"""Whether a generation can be run: its prompts, its lengths, its models, and the laws of every block."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from warpdraft.kernels.support import OK

from .checks import check_tensor
from .draft_sources import TextSource
from .loop_options import LoopOptions
from .slot_model import check_slots

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .draft_sources import Draft


def check_inputs(input_ids: Tensor, attention_mask: Tensor | None, options: LoopOptions) -> None:
    """TypeError or ValueError unless the prompts can be continued as the options ask.

    Args:
        input_ids: `[batch, width]`.
        attention_mask: `[batch, width]`, 0 for padding, or None.
        options: those of the run.
    """
    check_tensor("input_ids", input_ids)
    if attention_mask is not None:
        check_tensor("attention_mask", attention_mask)
    if input_ids.ndim != 2 or input_ids.shape[0] == 0 or input_ids.shape[1] == 0:
        raise ValueError(
            f"input_ids must be [batch, width], both at least 1, got {list(input_ids.shape)}"
        )
    if input_ids.dtype != torch.int64:
        raise TypeError(f"input_ids must be int64, got {input_ids.dtype}")
    if attention_mask is not None and attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask must have the shape of input_ids {list(input_ids.shape)}, "
            f"got {list(attention_mask.shape)}"
        )
    if attention_mask is not None and not bool(attention_mask[:, -1].all()):
        row = int((attention_mask[:, -1] == 0).nonzero()[0])
        raise ValueError(
            f"pad prompts on the left: the last column of attention_mask must be 1, got 0 in row {row}"
        )
    if options.max_length <= input_ids.shape[1]:
        raise ValueError(
            f"max_length must exceed the prompt's width {input_ids.shape[1]}, got {options.max_length}"
        )
    if options.streamer is not None and len(input_ids) > 1:
        raise ValueError(f"streamer= takes a batch of one text, got a batch of {len(input_ids)}")


def check_token_ids(input_ids: Tensor, vocabulary: int) -> None:
    """ValueError for prompts `[batch, width]` with ids that the target does not have."""
    least, most = (int(bound) for bound in input_ids.aminmax())
    if least < 0 or most >= vocabulary:
        raise ValueError(f"input_ids must be in [0, {vocabulary - 1}], got {least} to {most}")


def context_of(
    target_model: PreTrainedModel, draft_model: PreTrainedModel | None, max_length: int
) -> int:
    """Positions that both models have; ValueError if the text would need more."""
    smallest = sys.maxsize
    for role, model in (("target", target_model), ("draft", draft_model)):
        config = None if model is None else model.config.get_text_config()
        context = getattr(config, "max_position_embeddings", None)
        if context is None:
            continue
        if max_length > context:
            raise ValueError(
                f"prompt and new tokens need {max_length} positions, "
                f"the {role} model's context holds {context}"
            )
        smallest = min(smallest, context)
    return smallest


def check_windows(
    target_model: PreTrainedModel, attention_mask: Tensor | None, max_length: int
) -> None:
    """ValueError for padding between tokens in a sliding window, where it would take places that ours does not."""
    window = getattr(target_model.config.get_text_config(), "sliding_window", None)
    if window is None or max_length <= window or attention_mask is None:
        return
    if bool((attention_mask[:, 1:] < attention_mask[:, :-1]).any()):
        raise ValueError(
            "attention_mask has zeros between tokens, which take places in the target's sliding window "
            f"of {window} tokens: move the padding to the left, or write at most {window} tokens"
        )


def check_static(
    target_model: PreTrainedModel,
    draft_model: PreTrainedModel | None,
    draft: Draft | None,
    device: torch.device,
) -> None:
    """ValueError where caches of fixed shape do not suit."""
    if isinstance(draft, TextSource):
        raise ValueError(
            'cache_implementation="static" needs drafts of a model: '
            f"those of {type(draft).__name__} have no fixed length"
        )
    check_slots(target_model, "target", device)
    if draft_model is not None:
        check_slots(draft_model, "draft", device)


def check_laws(drafts: list[int], targets: list[int]) -> None:
    """ValueError for a row, the draft's codes first, that a block found no law for."""
    for role, codes in (("draft", drafts), ("target", targets)):
        for row, code in enumerate(codes):
            if code != OK:
                raise ValueError(
                    f"the {role} model's logits hold NaN, +inf or nothing finite after the "
                    f"processors (row {row})"
                )
