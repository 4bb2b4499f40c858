"""Tiny random models of every architecture that the tests run."""

from __future__ import annotations

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma3", "gpt2", "mistral")


def tiny_model(
    architecture: str = "llama",
    *,
    seed: int = 0,
    vocab: int = 64,
    layers: int = 2,
    kv_heads: int = 1,
    context: int = 512,
    spread: float = 4.0,
    dtype: torch.dtype = torch.float32,
) -> PreTrainedModel:
    """A random model whose laws are neither flat nor one-hot; `spread` scales the logits."""
    torch.manual_seed(seed)
    shape = {
        "vocab_size": vocab,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": kv_heads,
        "head_dim": 16,
        "max_position_embeddings": context,
        "bos_token_id": 1,
        "eos_token_id": None,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
    }
    configs = {
        "llama": lambda: LlamaConfig(**shape),
        "qwen2": lambda: Qwen2Config(**shape),
        "qwen3": lambda: Qwen3Config(**shape),
        # every layer but the last looks back over 8 tokens only
        "gemma3": lambda: Gemma3TextConfig(
            **shape,
            sliding_window=8,
            layer_types=["sliding_attention"] * (layers - 1) + ["full_attention"],
        ),
        "mistral": lambda: MistralConfig(**shape, sliding_window=8),
        "gpt2": lambda: GPT2Config(
            vocab_size=vocab,
            n_embd=32,
            n_layer=layers,
            n_head=2,
            n_positions=context,
            bos_token_id=1,
            eos_token_id=None,
            pad_token_id=0,
            tie_word_embeddings=False,
        ),
    }
    model = AutoModelForCausalLM.from_config(configs[architecture]()).to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.25)
        head = model.get_output_embeddings()
        head.weight.normal_(std=spread / 32**0.5)
    return model
