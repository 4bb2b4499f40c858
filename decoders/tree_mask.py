"""Attention masks for a tree of drafted tokens in one row: which models take them, and in what form.

A model that attends by sdpa or eagerly takes a 4-D mask `[rows, 1, queries, keys]` as it is, so a node can be shown its
ancestors and nothing else. A sliding window must then be cut into the mask, by distance in the text; models that mix
kinds of layers take one mask for each kind.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Layout = Literal["auto", "paths", "tree"]
LAYOUTS: tuple[Layout, ...] = ("auto", "paths", "tree")

_ATTENTIONS = ("sdpa", "eager")
_LAYER_TYPES = {"full_attention", "sliding_attention"}
# the architectures whose tree logits the tests compare with those of separate paths: "auto" trusts no other
PROVEN = frozenset({"llama", "qwen2", "qwen3", "gemma3_text", "gpt2", "mistral"})


def takes_tree(model: PreTrainedModel) -> bool:
    """Whether a 4-D mask can be handed to the model."""
    config = model.config.get_text_config()
    return (
        config._attn_implementation in _ATTENTIONS
        and set(getattr(config, "layer_types", None) or ()) <= _LAYER_TYPES
        and "position_ids" in inspect.signature(model_inside(model).forward).parameters
    )


def choose_layout(
    model: PreTrainedModel, layout: Layout, *, one_path: bool
) -> Literal["paths", "tree"]:
    """How the model shall hold several draft paths.

    The tree reads the text's keys and values once instead of once a path, and scores a prefix that paths share once;
    one path is a plain sequence either way.

    Raises:
        ValueError: an unknown layout; "tree" for a model that cannot take one.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    if layout == "auto":
        proven = model.config.model_type in PROVEN and takes_tree(model)
        return "tree" if proven and not one_path else "paths"
    if layout == "tree" and not takes_tree(model):
        raise ValueError(
            f'layout="tree" needs position ids and sdpa or eager attention with full or sliding layers; '
            f"{type(model).__name__} has not all of that, and attends by "
            f'{model.config.get_text_config()._attn_implementation!r}: use layout="paths"'
        )
    return layout


def tree_mask(model: PreTrainedModel, seen: Tensor, distance: Tensor) -> Tensor | dict[str, Tensor]:
    """The mask in the form that the model takes.

    Args:
        model: whose attention it is for.
        seen: `[rows, queries, keys]` bool.
        distance: `[rows, queries, keys]` int64, position of the query less position of the key.
    """
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ())
    near = seen if window is None else seen & (distance < window)
    if not kinds:
        return _form(model, near)
    masks = {"full_attention": seen, "sliding_attention": near}
    if kinds == {"full_attention"}:
        return _form(model, seen)
    return {kind: _form(model, masks[kind]) for kind in kinds}


def _form(model: PreTrainedModel, seen: Tensor) -> Tensor:
    """Bool for sdpa, which cuts; numbers to add for eager attention."""
    if model.config.get_text_config()._attn_implementation == "sdpa":
        return seen[:, None]
    lowest = torch.finfo(model.dtype).min
    return torch.zeros_like(seen, dtype=model.dtype).masked_fill_(~seen, lowest)[:, None]


def model_inside(model: PreTrainedModel) -> PreTrainedModel:
    """The model inside a compiled one or an adapter's (PEFT), which hand their keyword arguments on."""
    model = getattr(model, "_orig_mod", model)
    unwrap = getattr(model, "get_base_model", None)
    return unwrap() if unwrap else model
