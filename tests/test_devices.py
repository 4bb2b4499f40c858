"""Models that accelerate has placed, and drafts on another device than their target's."""

from __future__ import annotations

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from pretended_device import CPU, DEVICE, move, pretended_device
from tiny_models import tiny_model
from transformers import AutoModelForCausalLM
from transformers.distributed import DistributedConfig

from warpdraft.first_layers import FirstLayers
from warpdraft.integrations.transformers import FusedSampling, SpeculativeDecoding

PROMPTS = torch.tensor([[5, 9, 2, 30, 41], [0, 0, 7, 7, 12]])
CALL = {
    "input_ids": PROMPTS,
    "attention_mask": (PROMPTS != 0).long(),
    "do_sample": True,
    "top_k": 0,
    "max_new_tokens": 16,
}


def target():
    return tiny_model(seed=0)


def draft():
    """The target with a perturbed head: rows of different acceptance."""
    model = tiny_model(seed=0)
    weight = model.get_output_embeddings().weight
    with torch.no_grad():
        noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(3))
        weight.add_(noise * weight.std() / 4)
    return model


def speculation(drafter, layout="auto", **options):
    return SpeculativeDecoding(drafter, num_drafts=3, layout=layout, seed=3, **options)


def write(model, custom_generate, **arguments):
    return model.generate(**CALL | arguments, custom_generate=custom_generate)


# placed by accelerate

SOME_LAYERS = {
    "model.embed_tokens": "disk",
    "model.layers.0": "cpu",
    "model.layers.1": "disk",
    "model.norm": "cpu",
    "model.rotary_emb": "cpu",
    "lm_head": "disk",
}
PLACES = {
    "one device": {"device_map": {"": "cpu"}},
    "some layers on disk": {"device_map": SOME_LAYERS},
    "auto, no memory": {"device_map": "auto", "max_memory": {"cpu": 20_000}},
}


@pytest.fixture(scope="module", params=PLACES)
def placed(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("placed")
    target().save_pretrained(folder / "model")
    options = PLACES[request.param]
    if request.param != "one device":
        options = options | {"offload_folder": folder / "offloaded"}
    model = AutoModelForCausalLM.from_pretrained(folder / "model", **options)
    offloaded = any(parameter.device.type == "meta" for parameter in model.parameters())
    assert offloaded == (request.param != "one device")
    return model


@pytest.mark.parametrize("layout", ["tree", "paths"])
def test_a_placed_model_writes_what_the_plain_one_writes(placed, layout):
    whole, drafter = target(), draft()
    expected = write(whole, speculation(drafter, layout))
    assert torch.equal(write(placed, speculation(drafter, layout)), expected)
    itself = write(whole, speculation(whole, layout))
    assert torch.equal(write(whole, speculation(placed, layout)), itself)


def test_a_placed_model_samples_plainly_and_drafts_with_its_own_layers(placed):
    whole = target()
    for custom in (FusedSampling(seed=3), speculation(FirstLayers(1))):
        assert torch.equal(write(placed, custom), write(whole, custom))


# two devices


def split(model):
    """The second layer and the head on the other device, activations moved by accelerate."""
    stack = model.model
    for module, device in (
        (stack.embed_tokens, CPU),
        (stack.rotary_emb, CPU),
        (stack.layers[0], CPU),
        (stack.layers[1], DEVICE),
        (stack.norm, DEVICE),
        (model.lm_head, DEVICE),
    ):
        if device == DEVICE:
            move(module)
        add_hook_to_module(module, AlignDevicesHook(execution_device=device))
    add_hook_to_module(model, AlignDevicesHook(io_same_device=True))
    return model


def test_the_pretended_device_is_one():
    model = move(target())
    with pretended_device(), torch.no_grad():
        assert model(PROMPTS.to(DEVICE)).logits.device == DEVICE
        with pytest.raises(RuntimeError, match="on the same device"):
            model(PROMPTS)
        with pytest.raises(RuntimeError, match="on the same device"):
            torch.ones(2, device=DEVICE) + torch.ones(2)


PAIRS = {
    "draft elsewhere": (target, lambda: move(draft())),
    "target elsewhere": (lambda: move(target()), draft),
    "target split": (lambda: split(target()), draft),
    "draft split": (target, lambda: split(draft())),
    "both split": (lambda: split(target()), lambda: split(draft())),
}


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("layout", ["tree", "paths"])
def test_two_devices_write_what_one_writes(name, layout):
    expected = write(target(), speculation(draft(), layout))
    model, drafter = (make() for make in PAIRS[name])
    device = model.get_input_embeddings().weight.device
    with pretended_device():
        inputs = {key: CALL[key].to(device) for key in ("input_ids", "attention_mask")}
        written = write(model, speculation(drafter, layout), **inputs)
        assert torch.equal(written.cpu(), expected)


def test_stages_over_ranks_are_refused():
    model = target()
    model.config.distributed_config = DistributedConfig(pp_size=2)
    with pytest.raises(ValueError, match=r"target model .* stages over ranks \(pp_size=2\)"):
        write(model, speculation(draft()))
    with pytest.raises(ValueError, match=r"draft model .* stages over ranks \(pp_size=2\)"):
        write(target(), speculation(model))


def test_layers_of_a_split_target_draft():
    expected = write(target(), speculation(FirstLayers(1)))
    with pretended_device():
        written = write(split(target()), speculation(FirstLayers(1)))
    assert torch.equal(written.cpu(), expected)


@pytest.mark.parametrize("role", ["draft", "target"])
def test_static_caches_refuse_a_model_elsewhere(role):
    models = {"target": target(), "draft": draft()}
    move(models[role])
    spec = SpeculativeDecoding(models["draft"])
    message = rf"device of input_ids, cpu; the {role} model LlamaForCausalLM is on pretended:0"
    with pretended_device(), pytest.raises(ValueError, match=message):
        write(models["target"], spec, cache_implementation="static")
