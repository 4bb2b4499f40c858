"""Blocks in compiled calls: the law and the texts of the loop that makes every law outside of them.

Compiling takes seconds a shape, so most tests run the steps as they are; what compiled code makes of them is compared
in `test_compiled_steps_write_the_same_text` and, for every shape of the calls, in test_slot_model.py.
"""

from __future__ import annotations

import pytest
import torch
from pretended_device import DEVICE, move, pretended_device
from test_loop import PAD, prompts, run
from test_losslessness import ALARM, PROMPT, count, generated, p_value, text_law, untruncated
from tiny_models import tiny_model
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import CompileConfig

import warpdraft.compiled_blocks as compiled_blocks
import warpdraft.compiled_steps as compiled_steps
import warpdraft.slot_model as slot_model
from warpdraft.compiled_blocks import CompiledBlocks
from warpdraft.compiled_steps import plain_law
from warpdraft.kernels.draw import draw
from warpdraft.kernels.noise import Noise, Role
from warpdraft.laws import LawPipeline, law_of
from warpdraft.loop import LoopOptions, _Run
from warpdraft.rules import MinP
from warpdraft.texts import Texts

EAGER = CompileConfig(fullgraph=True, dynamic=False, backend="aot_eager", mode=None)
STATIC = {"cache_implementation": "static", "compile_config": EAGER}


@pytest.fixture
def uncompiled(monkeypatch):
    """Run the steps of compiled blocks as they are."""
    monkeypatch.setattr(slot_model, "compiled", lambda model, step, config: step)


@pytest.fixture
def calls(monkeypatch):
    """The names of the methods of `CompiledBlocks` that run."""
    seen = set()
    for name in ("draft_paths", "verify"):
        method = getattr(CompiledBlocks, name)

        def watched(self, *args, name=name, method=method):
            seen.add(name)
            return method(self, *args)

        monkeypatch.setattr(CompiledBlocks, name, watched)
    return seen


def pair(architecture="llama"):
    return tiny_model(architecture), tiny_model(architecture, seed=1, layers=1)


@pytest.mark.parametrize("verifier", ["optimal_block", "k_seq"])
@pytest.mark.parametrize(("num_drafts", "length"), [(1, 3), (3, 2)])
def test_text_has_the_law_of_plain_sampling(uncompiled, calls, verifier, num_drafts, length):
    target = tiny_model(seed=1, vocab=8, layers=2, spread=1.5)
    draft = tiny_model(seed=2, vocab=8, layers=1, spread=1.5)
    law = text_law(target, PROMPT, 0.7, untruncated)
    options = {"num_drafts": num_drafts, "draft_length": length, "verifier": verifier, "seed": 3}
    token_ids, stats = generated(target, draft, [PROMPT] * 4500, options | STATIC, [], 0.7)
    assert 0.2 < stats.acceptance_rate < 0.95, "the drafts test nothing"
    assert p_value(count(token_ids), law) > ALARM
    one_path = num_drafts == 1 and verifier == "optimal_block"
    assert calls == ({"draft_paths", "verify"} if one_path else {"draft_paths"})


@pytest.mark.parametrize("num_drafts", [1, 4])
@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_the_text_of_laws_made_outside(uncompiled, calls, architecture, temperature, num_drafts):
    texts = []
    for options in ({}, STATIC):
        pipeline = LawPipeline(greedy=temperature == 0)
        pipeline.temperature = temperature
        options = {"num_drafts": num_drafts, "draft_length": 3, "seed": 5, **options}
        texts.append(run(*pair(architecture), *prompts(), 24, pipeline=pipeline, **options))
    assert torch.equal(texts[0].token_ids, texts[1].token_ids)
    assert texts[0].stats.accepted_by_position == texts[1].stats.accepted_by_position
    assert "draft_paths" in calls


@pytest.mark.parametrize("temperature", [0.7, 1.0])
@pytest.mark.parametrize("verifier", ["optimal_block", "k_seq"])
def test_trees_are_verified_from_logits(uncompiled, calls, monkeypatch, verifier, temperature):
    options = {"num_drafts": 3, "draft_length": 3, "seed": 5, "verifier": verifier}
    options["eos_token_ids"] = [7, 11, 20]
    pipeline = LawPipeline()
    pipeline.temperature = temperature
    expected = run(*pair(), *prompts(), 24, pipeline=pipeline, **options)
    # as on a GPU, but by the walk that the kernels are checked against
    monkeypatch.setattr(compiled_blocks, "_verifies", lambda *_: "tree")
    got = run(*pair(), *prompts(), 24, pipeline=pipeline, **options, **STATIC)
    assert torch.equal(got.token_ids, expected.token_ids)
    assert calls == {"draft_paths", "verify"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("temperature", [0.7, 1.7, 3e-4])
def test_trees_of_halves_are_verified_in_float32(
    uncompiled, calls, monkeypatch, dtype, temperature
):
    models = [model.to(dtype) for model in pair()]
    options = {"num_drafts": 3, "draft_length": 3, "seed": 5}
    pipeline = LawPipeline()
    pipeline.temperature = temperature
    texts = []
    for verifies in (None, "tree"):
        monkeypatch.setattr(compiled_blocks, "_verifies", lambda *_, verifies=verifies: verifies)
        texts.append(run(*models, *prompts(), 120, pipeline=pipeline, **options, **STATIC))
    assert torch.equal(texts[0].token_ids, texts[1].token_ids)
    assert calls == {"draft_paths", "verify"}


@pytest.mark.parametrize("num_drafts", [1, 3])
def test_compiled_steps_write_the_same_text(num_drafts):
    options = {"num_drafts": num_drafts, "draft_length": 2, "seed": 5, "eos_token_ids": [7, 20]}
    expected = run(*pair(), *prompts(), 12, **options)
    assert torch.equal(
        run(*pair(), *prompts(), 12, **options, **STATIC).token_ids, expected.token_ids
    )


def test_compiled_draws_are_those_of_plain_calls():
    # by inductor, which tests of whole blocks leave out; both sides of the 1,024 tokens that race directly
    mass = torch.rand(64, 3000, generator=torch.Generator().manual_seed(1))
    mass[::2, 900:] = 0
    noise = Noise.create(64, seed=9, step=3, device="cpu")

    def drawn(mass, seed, sequence, step, depth):
        return draw(mass, Noise(seed, sequence, step), Role.DRAFT, depth=depth)

    depth = torch.full((64,), 2)
    compiled = torch.compile(drawn, fullgraph=True, dynamic=False)
    tokens = compiled(mass, noise.seed, noise.sequence, noise.step, depth)
    assert torch.equal(tokens, draw(mass, noise, Role.DRAFT, depth=2))


def test_models_of_float64_keep_their_laws(uncompiled, calls):
    models = [model.double() for model in pair()]
    options = {"num_drafts": 2, "draft_length": 2, "seed": 5}
    expected = run(*models, *prompts(), 12, **options)
    assert torch.equal(
        run(*models, *prompts(), 12, **options, **STATIC).token_ids, expected.token_ids
    )
    assert not calls


def test_rules_run_outside(uncompiled, calls):
    pipeline = LawPipeline(rules=[MinP(0.1)])
    run(*pair(), *prompts(), 8, pipeline=pipeline, seed=1, **STATIC)
    assert not calls


@pytest.mark.parametrize("num_drafts", [1, 3])
def test_an_identical_draft_is_always_accepted(uncompiled, num_drafts):
    model = tiny_model()
    options = {"num_drafts": num_drafts, "draft_length": 4, "seed": 1}
    stats = run(model, model, *prompts(), 100, **options, **STATIC).stats
    assert stats.drafted_tokens >= 200
    assert stats.acceptance_rate == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("temperature", [0.0, 1e-6, 0.7, 1.0, 3.0])
def test_plain_law_is_that_of_the_pipeline(temperature, dtype):
    logits = (torch.randn(50, 1100) * 4).to(dtype)
    logits[0, :] = -torch.inf
    logits[1, 3] = torch.nan
    logits[2, 3] = torch.inf
    logits[3, :] = 1.0
    logits[4, 5:] = -torch.inf
    follows = torch.arange(50) != 5
    probs, status = plain_law(logits, torch.tensor(temperature, dtype=torch.float64), follows)
    law = law_of(logits, (), temperature).dense()
    assert torch.equal(status, law.status)
    fine = follows & (status == 0)
    assert fine.tolist() == [False] * 3 + [True] * 2 + [False] + [True] * 44
    torch.testing.assert_close(probs[fine], law.probs[fine])
    assert bool((probs[~fine] == torch.eye(1100)[0].to(probs.dtype)).all())


@pytest.mark.parametrize("who", ["draft", "target"])
def test_a_row_without_a_law_is_an_error(uncompiled, who):
    models = dict(zip(("target", "draft"), pair(), strict=True))
    with torch.no_grad():
        models[who].get_output_embeddings().weight[3] = torch.nan
    with pytest.raises(ValueError, match=rf"the {who} model's logits hold NaN"):
        run(*models.values(), *prompts(), 8, seed=1, **STATIC)


@pytest.mark.parametrize("eos", [[], [7, 11, 20, 33]], ids=["no end", "end tokens"])
@pytest.mark.parametrize("num_drafts", [1, 3])
def test_nothing_is_asked_behind_a_stop(uncompiled, monkeypatch, num_drafts, eos):
    asked = []
    made = compiled_steps.plain_law

    def watched(logits, temperature, follows):
        # no law: whoever looked at it would raise
        logits = torch.where(follows[:, None], logits, torch.nan)
        asked.append(bool(follows.all()))
        return made(logits, temperature, follows)

    monkeypatch.setattr(compiled_steps, "plain_law", watched)
    for new_tokens in (1, 2, 13):
        texts = []
        for options in ({}, STATIC):
            options = {"num_drafts": num_drafts, "draft_length": 5, "seed": 2, **options}
            options["eos_token_ids"] = eos
            texts.append(run(*pair(), *prompts(), new_tokens, **options).token_ids)
        assert torch.equal(*texts)
    assert not all(asked)


class ReadOuts(TorchDispatchMode):
    """Counts the operators at which the host waits for a tensor's values."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in {"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "_unique2", "item"}:
            self.names.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("eos", [[], [7]], ids=["no end", "end token"])
def test_a_block_is_read_once(uncompiled, monkeypatch, eos):
    token_ids, mask = prompts()
    looks = []
    monkeypatch.setattr(Texts, "look", watched_look(looks))
    with pretended_device(), torch.no_grad():
        models = [move(model) for model in pair()]
        options = LoopOptions(
            max_length=40, pad_token_id=PAD, draft_length=3, seed=1, eos_token_ids=eos, **STATIC
        )
        inputs = token_ids.to(DEVICE), mask.to(DEVICE)
        writer = _Run(*models, *inputs, LawPipeline(), options)
        writer.prefill(inputs[1])
        for _ in range(3):
            looks.clear()
            with ReadOuts() as waits:
                writer.block()
            assert waits.names == []
            assert looks == [5]


def watched_look(looks):
    look = Texts.look

    def watched(self, *columns):
        looks.append(len(columns) + 1)
        return look(self, *columns)

    return watched
