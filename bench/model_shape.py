"""What the cost model must know of a model: its weights, its layers, its cache.

A model is built without storage (torch's meta device) from its configuration, and its modules are counted: nothing is
derived from the architecture's name, so whatever transformers builds out of linear layers is counted exactly.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from .synthetic_pair import SHAPES

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

PUBLISHED: dict[str, dict[str, int]] = {
    "llama-8b": SHAPES["llama-8b"],
    "llama-70b": {
        **SHAPES["llama-8b"],
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
    },
    "llama-1b": {
        **SHAPES["llama-8b"],
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "tie_word_embeddings": True,
    },
    "llama-2-7b": {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
    },
}
"""Llama 3.1 of 8 and 70 and Llama 3.2 of 1 billion parameters, and Llama 2: no folder is needed for these names."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A decoder layer.

    Attributes:
        matrix_weights: numbers in its linear layers.
        vector_weights: numbers in its norms and biases.
        activations: numbers that its linear layers read and write for one token.
        kv_width: numbers that the cache holds of a token: keys and values of all key-value heads.
        attention_width: heads times their width.
        window: tokens that its attention sees, the own one included; None for all.
    """

    matrix_weights: int
    vector_weights: int
    activations: int
    kv_width: int
    attention_width: int
    window: int | None

    def cached(self, context: int) -> int:
        """Tokens of a context that the cache still holds."""
        return context if self.window is None else min(context, self.window - 1)


# no slots: the sums below are asked for a thousand times, and made once
@dataclass(frozen=True)
class ModelShape:
    """A decoder as the cost model sees it.

    Attributes:
        name: for tables.
        layers: from the first.
        hidden: numbers in a token's vector.
        vocab: rows of the head.
        parameters: all numbers that lie in memory, tied ones once.
        other_vectors: numbers in the norms and biases outside the layers.
        has_own_weights: False for a part of another model that is in memory anyway.
    """

    name: str
    layers: tuple[Layer, ...]
    hidden: int
    vocab: int
    parameters: int
    other_vectors: int
    has_own_weights: bool = True

    @property
    def head_weights(self) -> int:
        """Numbers in the matrix before the logits."""
        return self.hidden * self.vocab

    @cached_property
    def matrix_weights(self) -> int:
        """Numbers that every token is multiplied with."""
        return self.head_weights + sum(layer.matrix_weights for layer in self.layers)

    @cached_property
    def read_weights(self) -> int:
        """Numbers that every call reads; of the table of embeddings it reads a row a token."""
        return (
            self.matrix_weights
            + self.other_vectors
            + sum(layer.vector_weights for layer in self.layers)
        )

    @cached_property
    def activations(self) -> int:
        """Numbers that the linear layers read and write for a token: embedding, layers, head and logits."""
        return 2 * self.hidden + self.vocab + sum(layer.activations for layer in self.layers)

    @cached_property
    def kinds(self) -> tuple[tuple[Layer, int], ...]:
        """Its different layers, and how many there are of each."""
        return tuple(Counter(self.layers).items())

    def kv_numbers(self, context: int, tokens: int) -> int:
        """Numbers in the caches of one text: what is left of its context, and new tokens behind it."""
        return sum(
            count * layer.kv_width * (layer.cached(context) + tokens) for layer, count in self.kinds
        )

    def attention_numbers(self, context: int, tokens: int) -> int:
        """Products of one query with the keys of all layers and heads, context and new tokens."""
        return sum(
            count * layer.attention_width * (layer.cached(context) + tokens)
            for layer, count in self.kinds
        )

    def first_layers(self, count: int) -> ModelShape:
        """Its first layers under its own norm and head, without weights of their own.

        Raises:
            ValueError: not less than its layers.
        """
        if not 1 <= count < len(self.layers):
            raise ValueError(f"first-layers:N needs N in [1, {len(self.layers) - 1}], got {count}")
        name = f"its first {count} layers"
        return replace(self, name=name, layers=self.layers[:count], has_own_weights=False)

    def without_layers(self, skipped: Sequence[int]) -> ModelShape:
        """The same without some layers, by their numbers.

        Raises:
            ValueError: numbers that are no layers', or none left.
        """
        kept = [layer for number, layer in enumerate(self.layers) if number not in skipped]
        if not kept or not set(skipped) <= set(range(len(self.layers))):
            raise ValueError(
                f"skipped layers must leave some of 0 to {len(self.layers) - 1}, got {sorted(skipped)}"
            )
        name = f"itself without layers {', '.join(map(str, sorted(skipped)))}"
        return replace(self, name=name, layers=tuple(kept), has_own_weights=False)


def shape_named(name: str) -> ModelShape:
    """A name of `PUBLISHED`, or the folder or name of a model of which only the configuration is read.

    Raises:
        ValueError: a model that is no dense decoder.
        OSError: no such model.
    """
    import transformers

    from .model_pair import require_folder

    if name in PUBLISHED:
        settings: dict[str, Any] = {"tie_word_embeddings": False, **PUBLISHED[name]}
        return shape_of(transformers.LlamaConfig(**settings), name)
    require_folder(name)
    return shape_of(transformers.AutoConfig.from_pretrained(name), name)


def shape_of(config: PretrainedConfig, name: str) -> ModelShape:
    """The shape of the model that transformers makes of a configuration.

    Raises:
        ValueError: an encoder-decoder model, or weights that are neither linear layers, embeddings nor vectors, as
            those of a mixture of experts.
    """
    import torch
    from transformers import AutoModelForCausalLM

    if config.is_encoder_decoder:
        raise ValueError(
            f"{name} is an encoder-decoder model; only decoder-only models can be used"
        )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return count_model(model, name)


def count_model(model: PreTrainedModel, name: str) -> ModelShape:
    """Count a model's modules; only sizes are read.

    Raises:
        ValueError: see `shape_of`.
    """
    config: Any = model.config.get_text_config(decoder=True)
    decoder: Any = model.get_decoder()
    blocks = next(
        (getattr(decoder, place) for place in ("layers", "h") if hasattr(decoder, place)), None
    )
    if blocks is None:
        raise ValueError(f"{name}: a {config.model_type} model has no list of decoder layers")
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    windows = _windows(config, len(blocks))
    layers = tuple(
        Layer(
            *_count(block, name),
            kv_width=2 * kv_heads * head_dim,
            attention_width=heads * head_dim,
            window=window,
        )
        for block, window in zip(blocks, windows, strict=True)
    )
    inside = {id(weight) for block in blocks for weight in block.parameters()}
    outside = [weight for weight in model.parameters() if id(weight) not in inside]
    return ModelShape(
        name=name,
        layers=layers,
        hidden=config.hidden_size,
        vocab=config.vocab_size,
        # a tied weight is one of the parameters, not two
        parameters=sum(weight.numel() for weight in model.parameters()),
        other_vectors=sum(weight.numel() for weight in outside if weight.dim() == 1),
    )


def _windows(config: Any, layers: int) -> list[int | None]:
    """The window of every layer, None where it sees everything."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        return [window] * layers
    return [window if kind == "sliding_attention" else None for kind in kinds]


def _count(block: Any, name: str) -> tuple[int, int, int]:
    """Numbers in the matrices and in the vectors of a layer, and numbers in and out of its matrices."""
    matrices = vectors = activations = 0
    for module in block.modules():
        for weight in module.parameters(recurse=False):
            if weight.dim() == 1:
                vectors += weight.numel()
            elif weight.dim() == 2 and type(module).__name__ in ("Linear", "Conv1D"):
                matrices += weight.numel()
                activations += sum(weight.shape)
            else:
                raise ValueError(
                    f"{name}: the cost model counts dense layers only, not {type(module).__name__}"
                )
    return matrices, vectors, activations
