"""Self-speculation: some of the target's own layers draft, under its own final norm and head.

The draft is another view of the target's modules: no weight is copied, and the target is not touched. A layer that
gets another number is a new module around the old one's weights, because the number is its place in the cache. Both
models keep caches of their own.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .checks import check_integer
from .draft_sources import ModelSource
from .model_views import kept_view, view_of
from .tree_mask import model_inside

if TYPE_CHECKING:
    from torch.nn import Module
    from transformers import PreTrainedModel

# architecture -> the stack inside the model, its list of layers, and a layer's attention
_LLAMA_LIKE = "model", "layers", "self_attn"
_PLACES = {
    "llama": _LLAMA_LIKE,
    "mistral": _LLAMA_LIKE,
    "qwen2": _LLAMA_LIKE,
    "qwen3": _LLAMA_LIKE,
    "gemma3_text": _LLAMA_LIKE,
    "gpt2": ("transformer", "h", "attn"),
}


@dataclass(frozen=True, slots=True)
class FirstLayers(ModelSource):
    """Drafts with layers of the target.

    Attributes:
        layers: an int, so many of the first layers; or the numbers of those to keep, ascending, from 0.

    Raises:
        TypeError: `layers` is neither.
        ValueError: no layer, or numbers that do not ascend; when used, a layer that the target does not have, or an
            architecture whose layers cannot draft.
    """

    layers: int | Sequence[int]

    def __post_init__(self) -> None:
        if isinstance(self.layers, int):
            check_integer("layers", self.layers)
            return
        numbers = list(self.layers) if isinstance(self.layers, Sequence) else [None]
        if any(not isinstance(number, int) or isinstance(number, bool) for number in numbers):
            raise TypeError(f"layers must be an int or a sequence of ints, got {self.layers!r}")
        if not numbers or numbers[0] < 0 or numbers != sorted(set(numbers)):
            raise ValueError(
                f"layers must be at least one number, ascending from 0 or more, got {self.layers!r}"
            )

    def model_for(self, target: PreTrainedModel) -> PreTrainedModel:
        """See `ModelSource`; the same view as long as the target's weights are: what was compiled for it is kept."""
        kept = self._kept(target)
        return kept_view(target, tuple(kept), with_layers(target, kept))

    def _kept(self, target: PreTrainedModel) -> list[int]:
        kept = list(range(self.layers)) if isinstance(self.layers, int) else list(self.layers)
        count = model_inside(target).config.num_hidden_layers
        if kept[-1] >= count:
            raise ValueError(f"the target has {count} layers, got FirstLayers({self.layers!r})")
        return kept


def with_layers(model: PreTrainedModel, kept: Sequence[int]) -> PreTrainedModel:
    """A view of a model with some of its layers.

    Args:
        model: a causal decoder of one of the architectures in `_PLACES`; an adapter's is unwrapped, its layers stay
            adapted.
        kept: numbers of layers, ascending.

    Raises:
        ValueError: another architecture; layers that must be renumbered but that accelerate moves between devices.
    """
    inside = model_inside(model)
    kind = inside.config.model_type
    if kind not in _PLACES:
        raise ValueError(
            f"{type(inside).__name__} ({kind}) cannot draft with its own layers: that is known of "
            f"{', '.join(sorted(_PLACES))}"
        )
    stack_name, layers_name, attention_name = _PLACES[kind]
    stack = getattr(inside, stack_name)
    layers = getattr(stack, layers_name)
    config = copy.deepcopy(inside.config)
    config.num_hidden_layers = len(kept)
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[number] for number in kept]

    fewer = view_of(layers)
    fewer._modules = {
        str(new): layers[old] if new == old else _renumbered(layers[old], new, attention_name)
        for new, old in enumerate(kept)
    }
    inner, outer = view_of(stack), view_of(inside)
    inner._modules[layers_name] = fewer
    outer._modules[stack_name] = inner
    inner.config = outer.config = config
    view: PreTrainedModel = outer
    return view


def _renumbered(layer: Module, number: int, attention_name: str) -> Module:
    """A view of a layer that keeps its states at another place of the cache."""
    attention = getattr(layer, attention_name)
    if hasattr(layer, "_hf_hook") or hasattr(attention, "_hf_hook"):
        raise ValueError(
            "accelerate moves the target's layers between devices, and those cannot be renumbered: "
            "keep the first layers, FirstLayers(n)"
        )
    layer, attention = view_of(layer), view_of(attention)
    layer._modules[attention_name] = attention
    for module in (layer, attention):
        if hasattr(module, "layer_idx"):
            module.layer_idx = number
    return layer
