"""The built-in pair is what its card says: small, consistent, useful and held out."""

import json
import re

import pytest
import torch
from safetensors import safe_open
from transformers import AutoTokenizer

from warpdraft import MinP
from warpdraft.builtin_pair import builtin_pair_folders, held_out_prompts, load_builtin_pair
from warpdraft.integrations.transformers import generate

FOLDERS = builtin_pair_folders()
MODELS = FOLDERS.target.parent


@pytest.fixture(scope="module")
def pair():
    return load_builtin_pair()


@pytest.fixture(scope="module")
def record():
    return json.loads((MODELS / "training.json").read_text(encoding="utf-8"))


def stored_tensors(folder):
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def test_everything_fits_sixteen_megabytes():
    assert sum(path.stat().st_size for path in MODELS.rglob("*") if path.is_file()) <= 16_000_000


@pytest.mark.parametrize("folder", FOLDERS, ids=FOLDERS._fields)
def test_files_hold_finite_float16(folder):
    tensors = stored_tensors(folder)
    assert tensors
    for tensor in tensors.values():
        assert tensor.dtype == torch.float16
        assert tensor.isfinite().all()


def test_draft_has_at_most_an_eighth_of_the_parameters(pair):
    assert 8 * pair.draft.num_parameters() <= pair.target.num_parameters()


def test_models_share_one_vocabulary_and_a_long_context(pair):
    for model in (pair.target, pair.draft):
        assert not model.training
        assert model.dtype == torch.float32
        assert model.config.vocab_size == len(pair.tokenizer)
        assert model.config.max_position_embeddings >= 8192
    vocabularies = [AutoTokenizer.from_pretrained(folder).get_vocab() for folder in FOLDERS]
    assert vocabularies[0] == vocabularies[1] == pair.tokenizer.get_vocab()


def test_tokenizer_is_lossless_and_begins_with_bos(pair):
    text = 'def area(radius):\n\treturn "π·r²"  # \U0001f600\r\n'
    token_ids = pair.tokenizer(text).input_ids
    assert token_ids[0] == pair.tokenizer.bos_token_id == pair.target.config.bos_token_id
    assert pair.tokenizer.decode(token_ids, skip_special_tokens=True) == text
    assert pair.tokenizer.eos_token_id == pair.target.generation_config.eos_token_id


def test_loading_prints_nothing_and_restores_the_progress_bars(capfd):
    from transformers.utils import logging

    logging.enable_progress_bar()
    load_builtin_pair(torch.bfloat16)
    assert logging.is_progress_bar_enabled()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("dtype", [torch.int64, "float32", None], ids=str)
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(TypeError, match="floating-point"):
        load_builtin_pair(dtype)


def test_prompts_are_fifty_beginnings_from_held_out_files(pair, record):
    prompts = held_out_prompts()
    assert len(prompts) == len(set(prompts)) == 50
    for prompt in prompts:
        assert prompt.lstrip().startswith(("def ", "class "))
        assert 48 <= len(pair.tokenizer.encode(prompt, add_special_tokens=False)) <= 96
    entries = json.loads((MODELS / "held_out_prompts.json").read_text(encoding="utf-8"))
    assert {entry["file"] for entry in entries} <= set(record["corpus"]["held_out_files"])


@pytest.fixture(scope="module")
def held_out(pair):
    prompts = [pair.tokenizer(p, return_tensors="pt").input_ids[:, :48] for p in held_out_prompts()]
    tokens = torch.cat(prompts)
    with torch.inference_mode():
        return tokens, pair.target(tokens).logits, pair.draft(tokens).logits


def test_overlap_on_held_out_prompts_is_realistic(held_out):
    _, *logits = held_out
    target_probs, draft_probs = (part.softmax(-1) for part in logits)
    overlap = torch.minimum(target_probs, draft_probs).sum(-1).mean().item()
    assert 0.6 <= overlap <= 0.85


@pytest.mark.parametrize("name", FOLDERS._fields)
def test_models_predict_held_out_text(held_out, name):
    tokens, *logits = held_out
    part = logits[FOLDERS._fields.index(name)]
    loss = torch.nn.functional.cross_entropy(part[:, :-1].mT, tokens[:, 1:]).item()
    # a uniform guess costs log 2048 = 7.6 nats a token
    assert loss < 4


def test_record_agrees_with_the_files(pair, record):
    overlap = record["held_out"]["overlap"]["temperature 1"]
    assert 0.6 <= overlap <= 0.85
    for name in FOLDERS._fields:
        assert record[name]["parameters"] == getattr(pair, name).num_parameters()
        before = record["held_out_loss_before_float16"][name]
        assert record["held_out"]["loss"][name] == pytest.approx(before, abs=2e-3)


def test_the_target_writes_recognisable_python(pair):
    inputs = pair.tokenizer(
        held_out_prompts()[:16],
        padding=True,
        padding_side="left",
        return_tensors="pt",
        return_token_type_ids=False,
    )
    output = generate(
        pair.target,
        pair.draft,
        **inputs,
        do_sample=True,
        top_k=0,
        max_new_tokens=64,
        rules=[MinP(0.1)],
        seed=0,
    )
    width = inputs["input_ids"].shape[1]
    texts = pair.tokenizer.batch_decode(output[:, width:], skip_special_tokens=True)
    statement = re.compile(r"\b(self\.|def |return |import |if |for |class |None\b)")
    # measured: 12 and 15 of 16; comments, lists and tables are the others
    assert sum(statement.search(text) is not None for text in texts) >= 10
    assert sum("\n" in text for text in texts) >= 13
