from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from tiny_models import ARCHITECTURES, tiny_model
from torch.nn import ModuleList
from transformers import AutoModelForCausalLM, GPTNeoXConfig, PreTrainedModel

from warpdraft.first_layers import FirstLayers, with_layers
from warpdraft.integrations.transformers import SpeculativeDecoding, generate

PROMPTS = torch.tensor([[5, 9, 2, 30, 41], [0, 0, 7, 7, 12], [0, 3, 61, 8, 20]])
PROMPT = {"input_ids": PROMPTS, "attention_mask": (PROMPTS != 0).long()}


def layers_of(model: PreTrainedModel) -> ModuleList:
    return model.transformer.h if model.config.model_type == "gpt2" else model.model.layers


def pruned(model: PreTrainedModel, kept: list[int]) -> PreTrainedModel:
    """A copy of the model, weights and all, that lost its other layers."""
    model = copy.deepcopy(model)
    layers = layers_of(model)
    left = [layers[number] for number in kept]
    config = model.config
    config.num_hidden_layers = len(kept)
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[number] for number in kept]
    for place in range(len(layers) - 1, -1, -1):
        del layers[place]
    layers.extend(left)
    return model


@pytest.mark.parametrize("kept", [[0, 1], [0, 2], [2]], ids=str)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_view_is_the_model_without_the_other_layers(architecture: str, kept: list[int]) -> None:
    model = tiny_model(architecture, layers=3)
    view = with_layers(model, kept)
    with torch.no_grad():
        expected = pruned(model, kept)(input_ids=PROMPTS, use_cache=False).logits
        torch.testing.assert_close(view(input_ids=PROMPTS, use_cache=False).logits, expected)
        # through a cache, where a layer's number is its place
        cache = view(input_ids=PROMPTS[:, :3]).past_key_values
        rest = view(input_ids=PROMPTS[:, 3:], past_key_values=cache).logits
    assert len(cache.layers) == len(kept)
    torch.testing.assert_close(rest, expected[:, 3:], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_weights_are_shared_and_the_target_stays_as_it_was(architecture: str) -> None:
    model = tiny_model(architecture, layers=3)
    config, layers = copy.deepcopy(model.config), list(layers_of(model))
    weights = {weight.data_ptr() for weight in model.parameters()}
    with torch.no_grad():
        before = model(input_ids=PROMPTS).logits
        view = with_layers(model, [0, 2])
        view(input_ids=PROMPTS)
        assert torch.equal(model(input_ids=PROMPTS).logits, before)
    assert {weight.data_ptr() for weight in view.parameters()} < weights
    assert model.config.to_dict() == config.to_dict()
    assert list(layers_of(model)) == layers
    assert [
        (layer.attn if hasattr(layer, "attn") else layer.self_attn).layer_idx for layer in layers
    ] == [0, 1, 2]


@pytest.mark.parametrize("layers", [2, [0, 2]], ids=str)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_equals_generate(architecture: str, layers: int | list[int]) -> None:
    model = tiny_model(architecture, layers=3)
    # past gemma3's and mistral's window of 8
    plain = model.generate(**PROMPT, max_new_tokens=16, do_sample=False)
    text = generate(model, FirstLayers(layers), **PROMPT, max_new_tokens=16, do_sample=False)
    assert torch.equal(text, plain)


def test_the_view_is_made_once_and_again_where_weights_were_replaced() -> None:
    target = tiny_model(layers=3)
    view = FirstLayers(2).model_for(target)
    assert FirstLayers(2).model_for(target) is view
    assert FirstLayers([0, 2]).model_for(target) is not view
    target.resize_token_embeddings(72)
    resized = FirstLayers(2).model_for(target)
    assert resized is not view
    assert resized(input_ids=PROMPTS).logits.shape[2] == 72


def test_a_view_does_not_outlive_its_target() -> None:
    target = tiny_model(layers=3)
    view = weakref.ref(FirstLayers(2).model_for(target))
    del target
    gc.collect()
    assert view() is None


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt2"])
def test_all_layers_are_always_accepted(architecture: str) -> None:
    model = tiny_model(architecture, layers=3)
    output = generate(
        model,
        FirstLayers(3),
        **PROMPT,
        num_drafts=2,
        max_new_tokens=40,
        do_sample=True,
        top_k=0,
        seed=1,
        return_dict_in_generate=True,
    )
    assert output.stats.acceptance_rate == 1
    assert output.stats.block_efficiency == 5


def test_as_custom_generate_it_writes_what_the_same_model_as_draft_writes() -> None:
    model = tiny_model(layers=3)
    arguments = {**PROMPT, "max_new_tokens": 16, "do_sample": True, "top_k": 0}
    texts = [
        model.generate(**arguments, custom_generate=SpeculativeDecoding(draft, seed=3))
        for draft in (FirstLayers(1), pruned(model, [0]))
    ]
    assert torch.equal(*texts)


def test_an_unknown_architecture_is_refused() -> None:
    config = GPTNeoXConfig(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
    )
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(ValueError, match=r"GPTNeoXForCausalLM \(gpt_neox\) cannot draft with its"):
        generate(model, FirstLayers(1), **PROMPT, max_new_tokens=4)


def test_layers_that_accelerate_moves_keep_their_numbers() -> None:
    model = tiny_model(layers=3)
    for layer in model.model.layers:
        layer._hf_hook = object()
    with pytest.raises(ValueError, match=r"keep the first layers, FirstLayers\(n\)"):
        with_layers(model, [0, 2])
    assert len(with_layers(model, [0, 1]).model.layers) == 2


@pytest.mark.parametrize(
    ("layers", "error"),
    [
        (0, ValueError),
        ([], ValueError),
        ([1, 0], ValueError),
        ([-1], ValueError),
        ("2", TypeError),
        (None, TypeError),
        (1.5, TypeError),
        (True, TypeError),
        ({0, 1}, TypeError),
    ],
    ids=str,
)
def test_layers_that_are_none_are_refused(layers: object, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"layers must be .*got"):
        FirstLayers(layers)


def test_more_layers_than_there_are_are_refused() -> None:
    with pytest.raises(ValueError, match=r"the target has 2 layers, got FirstLayers\(3\)"):
        generate(tiny_model(), FirstLayers(3), **PROMPT, max_new_tokens=4)
