"""Static caches: the same texts as dynamic ones, from calls of fixed shape that can be compiled."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from test_loop import PAD, prompts, run
from tiny_models import ARCHITECTURES, tiny_model
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import CompileConfig, DynamicCache, PreTrainedModel

from warpdraft.adaptive_shape import AdaptiveShape
from warpdraft.compiled_steps import _compiled
from warpdraft.integrations.transformers import FusedSampling, SpeculativeDecoding
from warpdraft.laws import LawPipeline
from warpdraft.loop import Generated
from warpdraft.prompt_lookup import PromptLookup
from warpdraft.slot_model import SlotModel, capacity_for

EAGER = CompileConfig(fullgraph=True, dynamic=False, backend="aot_eager", mode=None)


def pair(architecture: str = "llama") -> tuple[PreTrainedModel, PreTrainedModel]:
    return tiny_model(architecture), tiny_model(architecture, seed=1, layers=1)


def both(
    models: tuple[PreTrainedModel, PreTrainedModel | None],
    token_ids: Tensor,
    mask: Tensor | None,
    new_tokens: int,
    **options: object,
) -> tuple[Generated, Generated]:
    """The text by dynamic and by static caches."""
    compiled = options.pop("compile_config", None)
    dynamic = run(*models, token_ids, mask, new_tokens, seed=5, **options)
    static = run(
        *models,
        token_ids,
        mask,
        new_tokens,
        seed=5,
        cache_implementation="static",
        compile_config=compiled,
        **options,
    )
    return dynamic, static


@pytest.mark.parametrize("num_drafts", [1, 4])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_static_caches_write_the_text_of_dynamic_ones(architecture, batch, num_drafts) -> None:
    # 24 new tokens: the sliding windows of 8 are passed
    dynamic, static = both(
        pair(architecture), *prompts(batch), 24, num_drafts=num_drafts, draft_length=3
    )
    assert torch.equal(dynamic.token_ids, static.token_ids)
    assert dynamic.stats.accepted_by_position == static.stats.accepted_by_position


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("verifier", ["optimal_block", "k_seq", "greedy_drafts"])
def test_end_tokens_and_lengths_cut_the_same_text(verifier, attention) -> None:
    models = pair("gemma3")
    for model in models:
        model.set_attn_implementation(attention)
    options = {"num_drafts": 3, "draft_length": 5, "verifier": verifier}
    for new_tokens in (1, 2, 13):
        dynamic, static = both(
            models, *prompts(), new_tokens, eos_token_ids=[7, 11, 20, 33], **options
        )
        assert torch.equal(dynamic.token_ids, static.token_ids)


def test_a_prompt_of_one_token_is_read_as_two() -> None:
    token_ids = torch.tensor([[0, 0, 5], [3, 4, 5], [0, 9, 6]])
    mask = (token_ids != 0).long()
    for rows in (slice(0, 1), slice(0, 3)):
        kept = slice(2, 3) if rows.stop == 1 else slice(0, 3)
        dynamic, static = both(
            pair("gemma3"), token_ids[rows, kept], mask[rows, kept], 20, num_drafts=2
        )
        assert torch.equal(dynamic.token_ids, static.token_ids)


def test_a_long_prompt_is_read_in_parts(monkeypatch) -> None:
    monkeypatch.setattr("warpdraft.slot_model.CHUNK", 4)
    dynamic, static = both(pair("gemma3"), *prompts(width=15), 12, num_drafts=2)
    assert torch.equal(dynamic.token_ids, static.token_ids)


def test_blocks_shrink_where_the_context_ends() -> None:
    models = tuple(tiny_model("gpt2", seed=seed, context=24) for seed in (0, 1))
    dynamic, static = both(models, *prompts(1), 15, num_drafts=2, draft_length=4)
    assert static.token_ids.shape[1] == 24
    assert torch.equal(dynamic.token_ids, static.token_ids)


def test_adaptive_lengths_and_plain_sampling() -> None:
    models = pair()
    adaptive = AdaptiveShape(draft_lengths=(1, 2, 4), draft_cost=0.2, node_cost=0.05)
    dynamic, static = both(models, *prompts(), 24, num_drafts=2, adaptive=adaptive)
    assert torch.equal(dynamic.token_ids, static.token_ids)
    dynamic, static = both((models[0], None), *prompts(), 12)
    assert torch.equal(dynamic.token_ids, static.token_ids)


def test_compiled_calls_write_the_same_text_and_are_compiled_once() -> None:
    models = pair("gemma3")
    options = {"num_drafts": 2, "draft_length": 3, "compile_config": EAGER}
    dynamic, static = both(models, *prompts(), 24, **options)
    assert torch.equal(dynamic.token_ids, static.token_ids)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    # another prompt of the same shape class, and a shorter one
    for width, new_tokens in ((9, 12), (7, 14)):
        both(models, *prompts(width=width, seed=1), new_tokens, **options)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs
    # code lives as long as the model
    model = weakref.ref(models[0])
    assert model() in _compiled
    del models, dynamic, static
    gc.collect()
    assert model() is None


@pytest.mark.parametrize(
    ("whole", "cache"), [(True, "dynamic"), (True, "static"), (False, "static")]
)
def test_models_that_are_compiled_already(whole, cache) -> None:
    models = [tiny_model(seed=seed, layers=1) for seed in (0, 1)]
    token_ids, mask = prompts(1)
    options = {"seed": 5, "draft_length": 1, "cache_implementation": cache}
    expected = run(*models, token_ids, mask, 2, **options).token_ids
    compiled = []
    for model in models:
        if whole:
            compiled.append(torch.compile(model, backend="eager"))
        else:
            model.forward = torch.compile(model.forward, backend="eager")
            compiled.append(model)
    got = run(*compiled, token_ids, mask, 2, **options)
    assert torch.equal(got.token_ids, expected)


class NoReadOut(TorchDispatchMode):
    """Raises where the host waits for a tensor's values."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in {"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "unique"}:
            raise AssertionError(f"{name} waits for the device")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("rows", [1, 3])
def test_calls_and_commits_read_nothing_back(rows) -> None:
    from warpdraft.draft_tree import Draws
    from warpdraft.slot_tree import SlotTree

    models = [SlotModel(model, rows, torch.device("cpu"), capacity=256) for model in pair("gemma3")]
    target, draft = (SlotTree(model, 3, (2,)) for model in models)
    for model in models:
        model.prefill(torch.full((rows, 6), 5), torch.arange(6, 6 - rows, -1))
    paths = torch.arange(3).expand(rows, -1)
    zeros = torch.zeros(rows, dtype=torch.int64)
    with NoReadOut():
        tree = draft.new_tree()
        draft.root(torch.full((rows, 2), 4))
        for source in (paths * 0, paths):
            level = tree.grow(Draws(source, paths + 1))
            draft.extend(tree, level)
        target.score(torch.full((rows, 1), 4), tree)
        target.commit(tree, zeros + 2, zeros + 3)
        draft.commit(tree, zeros + 2, zeros + 1)


def test_the_cache_that_is_handed_out_continues_the_text() -> None:
    models, (token_ids, mask) = pair("gemma3"), prompts()
    first = run(
        *models, token_ids, mask, 8, seed=1, cache_implementation="static", return_cache=True
    )
    cache = first.past_key_values
    assert type(cache) is DynamicCache
    assert cache.get_seq_length() == first.token_ids.shape[1] - 1
    longer = torch.cat([mask, torch.ones_like(first.token_ids[:, mask.shape[1] :])], dim=1)
    expected, _ = both(models, first.token_ids, longer, 8)
    for got in both(models, first.token_ids, longer, 8, past_key_values=cache):
        assert torch.equal(got.token_ids, expected.token_ids)


def test_generate_says_which_caches_and_how_to_compile() -> None:
    target, draft = (tiny_model(seed=seed, layers=1) for seed in (0, 1))
    token_ids, mask = prompts(2)
    inputs = {"inputs": token_ids, "attention_mask": mask, "max_new_tokens": 10}
    inputs |= {"do_sample": True, "top_k": 0, "pad_token_id": PAD, "num_return_sequences": 2}

    def spec(**options: object) -> SpeculativeDecoding:
        return SpeculativeDecoding(draft, num_drafts=2, draft_length=3, seed=4, **options)

    expected = target.generate(**inputs, custom_generate=spec())
    calls = [
        ({"cache_implementation": "static"}, {}),
        ({"cache_implementation": "static", "compile_config": EAGER}, {}),
        ({"compile_config": EAGER, "disable_compile": False}, {"compile": True}),
        ({"disable_compile": True}, {"compile": True}),
        # only static caches read it
        ({"compile_config": EAGER}, {}),
    ]
    compiled = []
    for arguments, options in calls:
        _compiled.pop(target, None)
        got = target.generate(**inputs, **arguments, custom_generate=spec(**options))
        assert torch.equal(got, expected)
        compiled.append(target in _compiled)
    assert compiled == [False, True, True, False, False]
    sampled = [
        target.generate(**inputs, custom_generate=FusedSampling(seed=4), cache_implementation=kind)
        for kind in ("dynamic", "static")
    ]
    assert torch.equal(*sampled)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"structure": "rollover"}, "rollover"),
        ({"verifier": "recursive_without_replacement"}, "recursive_without_replacement"),
        ({"adaptive": AdaptiveShape(num_drafts=(1, 2))}, "one num_drafts"),
        ({"cache_implementation": "paged"}, "must be one of dynamic, static"),
        (
            {"cache_implementation": "dynamic", "compile_config": EAGER},
            'needs cache_implementation="static"',
        ),
    ],
)
def test_what_static_caches_do_not_suit_is_refused(options, message) -> None:
    options = {"cache_implementation": "static", "num_drafts": 2, **options}
    with pytest.raises(ValueError, match=message):
        run(*pair(), *prompts(), 4, **options)


def test_models_and_sources_that_static_caches_do_not_suit() -> None:
    target, draft = pair()
    with pytest.raises(ValueError, match="PromptLookup have no fixed length"):
        run(
            target,
            PromptLookup(2),
            *prompts(),
            4,
            num_drafts=1,
            cache_implementation="static",
        )
    draft.config._attn_implementation = "flex_attention"
    with pytest.raises(ValueError, match="draft model LlamaForCausalLM has not all of that"):
        run(target, draft, *prompts(), 4, cache_implementation="static")


def test_greedy_is_plain_generation() -> None:
    target, draft = pair("qwen3")
    token_ids, mask = prompts()
    expected = target.generate(
        token_ids, attention_mask=mask, do_sample=False, max_new_tokens=20, pad_token_id=PAD
    )
    got = run(
        target,
        draft,
        token_ids,
        mask,
        20,
        pipeline=LawPipeline(greedy=True),
        cache_implementation="static",
    )
    assert torch.equal(got.token_ids, expected)


def test_capacities_are_few() -> None:
    found = {capacity_for(length, 16) for length in range(1, 4096)}
    assert found == {256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144}
    assert all(capacity_for(length, 16) >= length + 18 for length in range(1, 4096))
