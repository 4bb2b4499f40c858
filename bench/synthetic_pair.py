"""A pair of real size out of random weights: what speculation gains where a prompt's content plays no part.

The target has the shape of a published model and random weights. The draft is its own first layers; what the later
layers add to the residual stream is scaled by one number, so that the two laws overlap as much as asked:

    overlap = sum_x min(target(x), draft(x)) = 1 - total variation, the chance that one draft is accepted

A pair like this costs what a trained one of its shape costs and accepts as often as we choose, so measured speeds can
be set beside published ones. It says nothing about the quality of any text.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

SHAPES: dict[str, dict[str, int]] = {
    "llama-8b": {
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "tiny": {
        "vocab_size": 2048,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
}
"""Llama 3's of 8 billion parameters, and one that a laptop runs."""

CONTEXT = 4096
"""Positions of the models."""

LOGIT_SPREAD = 4.0
"""Standard deviation of the logits: 128,256 gaussian ones then have an entropy of ln V - 8, about 4 nats."""

CALIBRATION = (4, 64)
"""Texts and tokens of the laws that are compared: 256 laws, whose mean overlap has an error below 0.01."""

HALVINGS = 14
"""Of the scale's interval [0, 8]: to 0.0005, which moves the overlap by less than its tolerance."""


@dataclass(frozen=True, slots=True)
class SyntheticPair:
    """A target, how many of its layers draft, and what was calibrated.

    Attributes:
        target: in evaluation mode.
        kept: the draft is the target's first so many layers.
        overlap: mean of sum min(target, draft) at temperature 1 over the calibration texts.
        scale: of what the later layers add.
    """

    target: PreTrainedModel
    kept: int
    overlap: float
    scale: float


def synthetic_pair(
    shape: str,
    kept: int,
    overlap: float,
    *,
    first_layers: Callable[[PreTrainedModel, int], PreTrainedModel],
    device: torch.device,
    dtype: torch.dtype,
    seed: int = 0,
) -> SyntheticPair:
    """Make the target and scale its later layers until the overlap is the one asked for.

    Args:
        shape: a name in `SHAPES`.
        kept: layers of the draft, at least 1 and less than the target's.
        overlap: in (0, 1).
        first_layers: makes the draft of a model; its weights must be the model's own.
        device: where the weights are made.
        dtype: of the weights.
        seed: of the weights and of the calibration texts.

    Raises:
        ValueError: an unknown shape, or numbers out of range, or an overlap that no scale reaches.
    """
    if shape not in SHAPES:
        raise ValueError(f"shape must be one of {', '.join(SHAPES)}, got {shape!r}")
    layers = SHAPES[shape]["num_hidden_layers"]
    if not 1 <= kept < layers:
        raise ValueError(f"kept must be in [1, {layers - 1}], got {kept}")
    if not 0 < overlap < 1:
        raise ValueError(f"overlap must be in (0, 1), got {overlap}")
    target = random_target(shape, device, dtype, seed)
    draft = first_layers(target, kept)
    texts = calibration_texts(target, seed)
    later = LaterLayers(target, kept)
    low, high = 0.0, 8.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        later.scale(middle)
        low, high = (
            (middle, high) if mean_overlap(target, draft, texts) > overlap else (low, middle)
        )
    later.scale(high)
    reached = mean_overlap(target, draft, texts)
    if abs(reached - overlap) > 0.02:
        raise ValueError(f"no scale gives an overlap of {overlap}: the closest is {reached:.3f}")
    return SyntheticPair(target, kept, reached, high)


def random_target(
    shape: str, device: torch.device, dtype: torch.dtype, seed: int
) -> PreTrainedModel:
    """A llama of this shape whose logits have the spread of `LOGIT_SPREAD`."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    sizes: dict[str, Any] = {**SHAPES[shape]}
    config = LlamaConfig(
        **sizes,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=None,
        pad_token_id=0,
    )
    torch.manual_seed(seed)
    with device:
        target = AutoModelForCausalLM.from_config(config, dtype=dtype)
    with torch.no_grad():
        # the last norm gives every hidden number the variance 1
        target.get_output_embeddings().weight.normal_(std=LOGIT_SPREAD / config.hidden_size**0.5)
    model: PreTrainedModel = target.eval()
    return model


def calibration_texts(model: PreTrainedModel, seed: int) -> Tensor:
    """Random token ids, `CALIBRATION` of them."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(model.config.vocab_size, CALIBRATION, generator=generator)
    return ids.to(model.device)


def mean_overlap(target: PreTrainedModel, draft: PreTrainedModel, texts: Tensor) -> float:
    """Mean of sum min(target, draft) at temperature 1 over all positions of the texts."""
    import torch

    total = 0.0
    with torch.no_grad():
        # text by text: the laws of one are 64 rows of the vocabulary in float32
        for text in texts:
            laws = [_laws(model, text[None]) for model in (target, draft)]
            total += float(torch.minimum(*laws).sum(-1).mean())
    return total / len(texts)


def _laws(model: Any, text: Tensor) -> Tensor:
    """The model's laws after every token, `[length, vocab]` float32."""
    logits: Tensor = model(input_ids=text, use_cache=False).logits[0]
    return logits.float().softmax(-1)


class LaterLayers:
    """The weights by which the layers behind the draft's write to the residual stream."""

    def __init__(self, target: PreTrainedModel, kept: int) -> None:
        layers: Any = target.get_decoder().layers
        self._weights = [
            weight
            for layer in layers[kept:]
            for weight in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight)
        ]
        self._unscaled = [weight.detach().clone() for weight in self._weights]

    def scale(self, factor: float) -> None:
        """Set them to `factor` times what they were."""
        import torch

        with torch.no_grad():
            for weight, unscaled in zip(self._weights, self._unscaled, strict=True):
                torch.mul(unscaled, factor, out=weight)
