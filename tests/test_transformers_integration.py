"""`model.generate` through our `custom_generate` objects, on tiny random models."""

import importlib.util
import sys
import threading

import pytest
import torch
import transformers
from drafted_texts import MASK, PROMPTS, greedy, model_of, one_prompt, perturbed_target, prompts
from scipy import stats
from tiny_models import ARCHITECTURES, tiny_model
from transformers import (
    DynamicCache,
    LogitsProcessorList,
    StaticCache,
    TopPLogitsWarper,
)

import warpdraft.integrations.transformers as integration
from warpdraft.integrations.transformers import FusedSampling, SpeculativeDecoding
from warpdraft.rules import MinP, TopK


@pytest.fixture
def target():
    return model_of("llama")


@pytest.fixture
def draft():
    return model_of("llama", seed=1)


@pytest.fixture
def good_draft():
    return perturbed_target()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_greedy_equals_generate(name):
    """Padded prompts, rows of different acceptance, gemma3 far past its window."""
    model, draft = model_of(name), model_of(name, seed=1)
    expected = greedy(model, **prompts(), max_new_tokens=30)
    end_token = int(expected[0, 12])
    for arguments in ({"eos_token_id": None}, {"eos_token_id": end_token}):
        expected = greedy(model, **prompts(), max_new_tokens=30, **arguments)
        for drafter in (draft, model):
            spec = SpeculativeDecoding(drafter, num_drafts=2, draft_length=5)
            written = greedy(model, spec, **prompts(), max_new_tokens=30, **arguments)
            assert torch.equal(written, expected)
            if drafter is model and arguments["eos_token_id"] is None:
                assert spec.last_stats.acceptance_rate == 1.0


def test_greedy_of_a_good_draft_accepts_runs_of_every_length(target, good_draft):
    spec = SpeculativeDecoding(good_draft, draft_length=4)
    written = greedy(target, spec, **prompts(), max_new_tokens=60)
    assert torch.equal(written, greedy(target, **prompts(), max_new_tokens=60))
    assert 0.1 < spec.last_stats.acceptance_rate < 0.95


PROCESSOR_ARGUMENTS = {
    "repetition_penalty": {"repetition_penalty": 1.8},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 2},
    "encoder_repetition_penalty": {"encoder_repetition_penalty": 1.5},
    "encoder_no_repeat_ngram_size": {"encoder_no_repeat_ngram_size": 1},
    "min_new_tokens": {"min_new_tokens": 11, "eos_token_id": list(range(30, 64))},
    "min_length": {"min_length": 12, "eos_token_id": list(range(30, 64))},
    "bad_words_ids": {"bad_words_ids": [[7], [12, 3]] + [[n, n] for n in range(64)]},
    "sequence_bias": {"sequence_bias": {(n, (n * 7) % 64): 9.0 for n in range(64)}},
    "forced_eos_token_id": {"forced_eos_token_id": 9, "max_length": 19},
    "exponential_decay": {"exponential_decay_length_penalty": (3, 1.3), "eos_token_id": 9},
    "suppress_tokens": {"suppress_tokens": list(range(20, 60)), "begin_suppress_tokens": [3]},
    "prefix_allowed_tokens_fn": {
        "prefix_allowed_tokens_fn": lambda row, prefix: [row + 1, (int(prefix[-1]) * 5 + row) % 64]
    },
    "remove_invalid_values": {"remove_invalid_values": True, "renormalize_logits": True},
    "a warper of the caller": {"logits_processor": LogitsProcessorList([TopPLogitsWarper(0.5)])},
}


@pytest.mark.parametrize("name", PROCESSOR_ARGUMENTS)
def test_greedy_equals_generate_under_every_processor(target, good_draft, name):
    arguments = {"max_new_tokens": 16} | PROCESSOR_ARGUMENTS[name]
    if "max_length" in arguments:
        del arguments["max_new_tokens"]
    expected = greedy(target, **prompts(), **arguments)
    spec = SpeculativeDecoding(good_draft, num_drafts=3, draft_length=3)
    assert torch.equal(greedy(target, spec, **prompts(), **arguments), expected)
    assert torch.equal(greedy(target, FusedSampling(), **prompts(), **arguments), expected)


@pytest.mark.parametrize("width", [56, 72])
def test_a_padded_vocabulary_drafts(target, width):
    spec = SpeculativeDecoding(model_of("llama", seed=1, vocab=width), draft_length=3)
    expected = greedy(target, **prompts(), max_new_tokens=12)
    assert torch.equal(greedy(target, spec, **prompts(), max_new_tokens=12), expected)


def test_without_an_attention_mask_and_for_one_token(target, draft):
    spec = SpeculativeDecoding(draft)
    tokens = torch.tensor([[4], [9]])
    expected = greedy(target, input_ids=tokens, max_new_tokens=1)
    assert torch.equal(greedy(target, spec, input_ids=tokens, max_new_tokens=1), expected)


# the law


def law_of_two_tokens(model, prompt, **arguments):
    """Plain generation's law of the next two tokens, `[vocab, vocab]`, from its own scores."""

    def law(input_ids):
        output = model.generate(
            input_ids,
            attention_mask=torch.ones_like(input_ids),
            max_length=input_ids.shape[1] + 1,
            do_sample=True,
            output_scores=True,
            return_dict_in_generate=True,
            **arguments,
        )
        return output.scores[0].softmax(-1)

    first = law(prompt)[0]
    vocab = len(first)
    continued = torch.cat([prompt.expand(vocab, -1), torch.arange(vocab)[:, None]], dim=1)
    return first[:, None] * law(continued)


LAWS = {
    "temperature": {"temperature": 0.8},
    "warpers": {"temperature": 1.4, "top_k": 5, "top_p": 0.9, "min_p": 0.05},
    "top_h": {"temperature": 2.0, "top_h": 0.7},
    "processors": {"repetition_penalty": 2.0, "no_repeat_ngram_size": 1, "temperature": 1.3},
    "watermark": {"temperature": 2.0, "min_p": 0.02, "watermarking_config": {"bias": 1.0}},
}


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("num_drafts", [0, 3])
def test_two_sampled_tokens_follow_the_law_of_plain_generation(name, num_drafts):
    """Chi-square over all pairs of 8 tokens, 1,200 rows of one call; false alarms 1e-6 a case."""
    target, draft = (tiny_model("llama", seed=seed, vocab=8, spread=1.5) for seed in (4, 5))
    arguments = {"top_k": 0} | LAWS[name]
    if "watermarking_config" in arguments:
        arguments["watermarking_config"] = transformers.WatermarkingConfig(bias=1.0)
    prompt = torch.tensor([[5, 2, 6]])
    law = law_of_two_tokens(target, prompt, **arguments).flatten().double()
    rows = 1200
    custom = FusedSampling(seed=1)
    if num_drafts > 0:
        custom = SpeculativeDecoding(draft, num_drafts=num_drafts, draft_length=2, seed=1)
    written = target.generate(
        prompt,
        do_sample=True,
        max_new_tokens=2,
        num_return_sequences=rows,
        custom_generate=custom,
        **arguments,
    )
    seen = torch.bincount(written[:, 3] * 8 + written[:, 4], minlength=64).double()
    assert seen[law == 0].sum() == 0
    # pairs that are expected fewer than five times share one bin
    rare = law * rows < 5
    expected = torch.cat([law[~rare], law[rare].sum()[None]]) * rows
    observed = torch.cat([seen[~rare], seen[rare].sum()[None]])
    used = expected > 0
    assert used.sum() > 5
    statistic = ((observed - expected)[used] ** 2 / expected[used]).sum()
    assert stats.chi2.sf(statistic, int(used.sum()) - 1) > 1e-6


@pytest.mark.parametrize(
    "arguments",
    [
        {"temperature": 0.5},
        {"temperature": 1.5, "top_p": 0.7},
        {"temperature": 0.7, "repetition_penalty": 1.5, "min_p": 0.1},
        {"typical_p": 0.5},
    ],
    ids=str,
)
def test_an_identical_draft_is_always_accepted(target, arguments):
    spec = SpeculativeDecoding(target, num_drafts=1, draft_length=6, seed=3)
    target.generate(
        **prompts(), do_sample=True, top_k=0, max_new_tokens=60, custom_generate=spec, **arguments
    )
    assert spec.last_stats.acceptance_rate >= 0.9995


def test_rules_run_after_the_warpers_of_the_call(target, draft):
    output = target.generate(
        **prompts(),
        do_sample=True,
        temperature=0.9,
        top_k=0,
        top_p=0.95,
        repetition_penalty=1.2,
        max_new_tokens=4,
        return_dict_in_generate=True,
        output_scores=True,
        custom_generate=SpeculativeDecoding(draft, rules=[MinP(0.05), TopK(3)]),
    )
    assert [rule.split("(")[0] for rule in output.stats.rules] == [
        "RepetitionPenaltyLogitsProcessor",
        "temperature=0.9",
        "TopP",
        "MinP",
        "TopK",
    ]
    assert all(((~step.isneginf()).sum(-1) <= 3).all() for step in output.scores)
    single = FusedSampling(TopK(1), seed=1)
    written = target.generate(**prompts(), do_sample=True, max_new_tokens=9, custom_generate=single)
    assert torch.equal(written, greedy(target, **prompts(), max_new_tokens=9))


def test_seeds_name_the_text(target, good_draft):
    def sample(**options):
        spec = SpeculativeDecoding(good_draft, num_drafts=2, **options)
        return target.generate(
            **one_prompt(),
            do_sample=True,
            max_new_tokens=20,
            num_return_sequences=3,
            custom_generate=spec,
        )

    assert torch.equal(sample(seed=5), sample(seed=5))
    assert not torch.equal(sample(seed=5), sample(seed=6))
    first = sample(seed=5)
    assert len({tuple(row.tolist()) for row in first}) == 3
    turned = sample(seed=5, sequence=torch.tensor([2, 1, 0]))
    assert torch.equal(turned, first.flip(0))
    torch.manual_seed(0)
    unseeded = sample()
    assert not torch.equal(unseeded, sample())
    torch.manual_seed(0)
    assert torch.equal(unseeded, sample())


# what is returned


@pytest.mark.parametrize("sampled", [False, True], ids=["greedy", "sampled"])
@pytest.mark.parametrize("renormalize", [False, True])
def test_scores_and_logits_are_those_of_plain_generation(target, good_draft, sampled, renormalize):
    arguments = {
        "do_sample": sampled,
        "max_new_tokens": 12,
        "output_scores": True,
        "output_logits": True,
        "return_dict_in_generate": True,
        "repetition_penalty": 1.3,
        "top_k": 10,
        "renormalize_logits": renormalize,
        "eos_token_id": None,
    }
    output = target.generate(
        **prompts(), custom_generate=SpeculativeDecoding(good_draft, num_drafts=2), **arguments
    )
    # plain generation of the same text: what each step's prefix gives
    for step in range(12):
        width = PROMPTS.shape[1] + step
        again = target.generate(
            output.sequences[:, :width],
            attention_mask=torch.cat([MASK, torch.ones(3, step, dtype=torch.int64)], dim=1),
            **arguments | {"max_new_tokens": 1},
        )
        for name in ("scores", "logits"):
            torch.testing.assert_close(
                output[name][step], again[name][0], rtol=1e-4, atol=1e-4, msg=f"{name} {step}"
            )
    assert len(output.scores) == len(output.logits) == 12


def test_the_output_carries_its_statistics(target, good_draft):
    spec = SpeculativeDecoding(good_draft, num_drafts=3, draft_length=5)
    output = target.generate(
        **prompts(), max_new_tokens=20, custom_generate=spec, return_dict_in_generate=True
    )
    assert isinstance(output, transformers.generation.GenerateDecoderOnlyOutput)
    assert output.stats is spec.last_stats
    assert output.stats.emitted_tokens == 60 and 12 <= output.stats.target_calls < 60
    assert output.scores is None and output.logits is None
    assert isinstance(
        target.generate(**prompts(), max_new_tokens=3, custom_generate=spec), torch.Tensor
    )
    assert spec.last_stats is not output.stats


# caches


@pytest.mark.parametrize("name", ["llama", "gemma3"])
@pytest.mark.parametrize("custom", ["fused", "speculative"])
def test_a_second_turn_continues_the_returned_cache(name, custom):
    model, draft = model_of(name), model_of(name, seed=1)

    def objects():
        return FusedSampling() if custom == "fused" else SpeculativeDecoding(draft)

    first = greedy(model, objects(), **prompts(), max_new_tokens=9, return_dict_in_generate=True)
    question = torch.tensor([[3, 8], [40, 2], [9, 9]])
    text = torch.cat([first.sequences, question], dim=1)
    mask = torch.cat([MASK, torch.ones(3, 11, dtype=torch.int64)], dim=1)
    expected = greedy(model, input_ids=text, attention_mask=mask, max_new_tokens=9)
    for custom_generate in (objects(), None):
        cache = copy_of(first.past_key_values)
        written = greedy(
            model,
            custom_generate,
            input_ids=text,
            attention_mask=mask,
            max_new_tokens=9,
            past_key_values=cache,
        )
        assert torch.equal(written, expected)
        assert cache.get_seq_length() == expected.shape[1] - 1


def copy_of(cache):
    copied = DynamicCache()
    for number, layer in enumerate(cache.layers):
        copied.update(layer.keys.clone(), layer.values.clone(), number)
    return copied


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_a_caller_fills_one_cache_over_several_turns(name):
    model, draft = model_of(name), model_of(name, seed=1)
    cache, text = DynamicCache(config=model.config), PROMPTS[:1]
    for turn in range(3):
        text = torch.cat([text, torch.tensor([[turn + 4, 8]])], dim=1)
        expected = greedy(model, input_ids=text, max_new_tokens=7)
        spec = SpeculativeDecoding(draft)
        written = greedy(model, spec, input_ids=text, max_new_tokens=7, past_key_values=cache)
        assert torch.equal(written, expected)
        text = written
        assert cache.get_seq_length() == text.shape[1] - 1


def test_caches_that_cannot_be_used(target, draft):
    spec = SpeculativeDecoding(draft)
    static = StaticCache(config=target.config, max_cache_len=32)
    with pytest.raises(ValueError, match=r"DynamicCache.*StaticCache"):
        greedy(target, spec, **one_prompt(), max_new_tokens=4, past_key_values=static)
    cache = DynamicCache()
    target(PROMPTS[:1, :3], past_key_values=cache)
    with pytest.raises(ValueError, match=r"holds 1 rows.*has 2"):
        target.generate(
            **one_prompt(),
            max_new_tokens=4,
            past_key_values=cache,
            do_sample=True,
            num_return_sequences=2,
            custom_generate=spec,
        )


# one object, many runs


def test_one_object_serves_several_threads(target, good_draft):
    spec = SpeculativeDecoding(good_draft, num_drafts=2, seed=11)
    lengths = [5, 9, 13, 17]

    def run(length):
        return target.generate(
            **prompts(),
            do_sample=True,
            max_new_tokens=length,
            custom_generate=spec,
            return_dict_in_generate=True,
        )

    alone = [run(length) for length in lengths]
    together = [None] * len(lengths)

    def fill(index):
        together[index] = run(lengths[index])

    threads = [threading.Thread(target=fill, args=(index,)) for index in range(len(lengths))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, other, length in zip(alone, together, lengths, strict=True):
        assert torch.equal(one.sequences, other.sequences)
        assert other.stats.emitted_tokens == 3 * length
        for field in ("target_calls", "drafted_tokens", "accepted_tokens", "rules"):
            assert getattr(one.stats, field) == getattr(other.stats, field)
    assert any(spec.last_stats is output.stats for output in together)


# versions


def fresh_module():
    """The front door, executed again."""
    spec = importlib.util.spec_from_file_location(
        "warpdraft.integrations._front_door", integration.__file__
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_an_old_transformers_is_named(monkeypatch):
    # what an import statement finds, which need not be the object that earlier imports bound
    found = sys.modules["transformers"]
    monkeypatch.setattr(found, "__version__", "5.16.1")
    with pytest.raises(ImportError, match=r"5\.17 or newer, found 5\.16\.1"):
        fresh_module()
    monkeypatch.setattr(found, "__version__", "5.17.0.dev0")
    assert fresh_module().generate is not None


def test_a_missing_transformers_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"pip install 'transformers>=5\.17'"):
        fresh_module()
