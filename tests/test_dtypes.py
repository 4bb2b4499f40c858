"""bf16 and fp16 models, pairs of two dtypes, and adapters: the law is that of plain generation in the same dtype.

A chi-square compares counts of texts with the law enumerated from plain generation's own scores; `ALARM` is its
false-alarm rate. The seeds are fixed, so a test that passes once passes always.
"""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from scipy.stats import chi2
from tiny_models import tiny_model

import warpdraft.laws as laws
import warpdraft.truncation as truncation
from warpdraft.first_layers import FirstLayers
from warpdraft.integrations.transformers import FusedSampling, SpeculativeDecoding
from warpdraft.without_adapter import WithoutAdapter

# at most 20 comparisons: less than one false alarm in a million runs with other seeds
ALARM = 1e-6 / 20
VOCAB, ROWS = 8, 2000
PROMPT = torch.tensor([[5, 2, 6]])
HALVES = [torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def all_rows_at_once(monkeypatch):
    """Make laws as on other devices: thousands of rows of eight tokens are slow one by one."""
    monkeypatch.setattr(truncation.Call, "resolve_rows", truncation.Call.resolve_batch)
    monkeypatch.setattr(
        laws, "_law_of_rows", lambda call: laws._law_of_batch(call, with_scores=False)
    )


def small(seed, dtype=torch.float32):
    return tiny_model(seed=seed, vocab=VOCAB, spread=1.5, dtype=dtype)


def scores_after(model, token_ids, **arguments):
    """Plain generation's processed scores of the next token, `[rows, vocab]`."""
    output = model.generate(
        input_ids=token_ids,
        attention_mask=torch.ones_like(token_ids),
        max_new_tokens=1,
        do_sample=True,
        output_scores=True,
        return_dict_in_generate=True,
        **arguments,
    )
    (scores,) = output.scores
    return scores


def law_of_two_tokens(model, **arguments):
    """Plain generation's law of the next two tokens, `[vocab, vocab]` float64."""
    first = scores_after(model, PROMPT, **arguments)
    assert first.dtype == torch.float32
    texts = torch.cat([PROMPT.expand(VOCAB, -1), torch.arange(VOCAB)[:, None]], dim=1)
    second = scores_after(model, texts, **arguments)
    return first[0].double().softmax(-1)[:, None] * second.double().softmax(-1)


def counts_of_two_tokens(model, custom_generate, **arguments):
    """How often each pair of tokens was written, `[vocab, vocab]`."""
    written = model.generate(
        input_ids=PROMPT,
        do_sample=True,
        max_new_tokens=2,
        num_return_sequences=ROWS,
        custom_generate=custom_generate,
        **arguments,
    )
    pairs = torch.bincount(written[:, -2] * VOCAB + written[:, -1], minlength=VOCAB**2)
    return pairs.view(VOCAB, VOCAB)


def alarm(counts, law):
    """The chi-square's p-value; pairs expected fewer than five times share a bin."""
    expected, seen = (law * ROWS).flatten(), counts.flatten().double()
    assert seen[expected == 0].sum() == 0
    rare = expected < 5
    expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
    seen = torch.cat([seen[~rare], seen[rare].sum()[None]])
    used = expected > 0
    statistic = ((seen - expected)[used] ** 2 / expected[used]).sum()
    return chi2.sf(float(statistic), int(used.sum()) - 1)


# half precision

PAIRS = {
    "bf16 pair": (torch.bfloat16, torch.bfloat16),
    "fp16 pair": (torch.float16, torch.float16),
    "bf16 target, float32 draft": (torch.bfloat16, torch.float32),
    "float32 target, bf16 draft": (torch.float32, torch.bfloat16),
    "bf16 target, fp16 draft": (torch.bfloat16, torch.float16),
}
WARPERS = {"temperature": 1.3, "top_k": 6, "top_p": 0.95}


@pytest.mark.parametrize("name", PAIRS)
def test_half_precision_has_the_law_of_plain_generation(name):
    target_dtype, draft_dtype = PAIRS[name]
    target = small(4, target_dtype)
    spec = SpeculativeDecoding(small(5, draft_dtype), num_drafts=3, draft_length=2, seed=1)
    law = law_of_two_tokens(target, **WARPERS)
    assert alarm(counts_of_two_tokens(target, spec, **WARPERS), law) > ALARM


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_fused_sampling_of_half_precision(dtype):
    target = small(4, dtype)
    law = law_of_two_tokens(target, **WARPERS)
    assert alarm(counts_of_two_tokens(target, FusedSampling(seed=1), **WARPERS), law) > ALARM


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_scores_of_half_precision_are_those_of_plain_generation(dtype):
    """Up to a unit in the last place or two: our call of the target has another width."""
    target = small(4, dtype)
    spec = SpeculativeDecoding(small(5, dtype), num_drafts=2)
    for custom_generate in (spec, FusedSampling()):
        ours = scores_after(target, PROMPT, custom_generate=custom_generate, **WARPERS)
        plain = scores_after(target, PROMPT, **WARPERS)
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, plain, rtol=2**-7, atol=2**-5)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("num_drafts", [1, 3])
def test_an_identical_draft_of_half_precision_is_nearly_always_accepted(dtype, num_drafts):
    """Less than 1 only by what a call over several tokens rounds differently."""
    model = tiny_model(dtype=dtype)
    spec = SpeculativeDecoding(model, num_drafts=num_drafts, draft_length=4, seed=3)
    model.generate(
        input_ids=torch.tensor([[5, 9, 2]]),
        do_sample=True,
        top_k=0,
        max_new_tokens=60,
        num_return_sequences=8,
        custom_generate=spec,
    )
    assert spec.last_stats.drafted_tokens > 350
    assert spec.last_stats.acceptance_rate > 0.97


# adapters


def adapted(seed, adapter_seed=7):
    """A model with a LoRA adapter that changes its law."""
    torch.manual_seed(adapter_seed)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], lora_alpha=8)
    model = get_peft_model(small(seed), config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3)
    return model


@pytest.fixture(scope="module")
def lora():
    return adapted(4)


def test_the_adapter_changes_the_law(lora):
    """By enough for the chi-squares below to notice if it were left out."""
    law, plain = law_of_two_tokens(lora), law_of_two_tokens(small(4))
    distance = (law - plain).abs().sum() / 2
    assert distance > 0.2
    counts = counts_of_two_tokens(small(4), FusedSampling(seed=1))
    assert alarm(counts, plain) > ALARM > alarm(counts, law)


def drafts(lora):
    return {
        "another model": small(5),
        "another adapter": adapted(4, adapter_seed=8),
        "the model under the adapter": WithoutAdapter(),
        "its own layers": FirstLayers(1),
    }


@pytest.mark.parametrize("name", drafts(None))
def test_an_adapted_target_has_its_own_law(lora, name):
    spec = SpeculativeDecoding(drafts(lora)[name], num_drafts=3, draft_length=2, seed=1)
    assert alarm(counts_of_two_tokens(lora, spec), law_of_two_tokens(lora)) > ALARM


def test_the_model_under_the_adapter_drafts_without_a_second_copy(lora):
    draft = WithoutAdapter().model_for(lora)
    # what was compiled for it is found again
    assert WithoutAdapter().model_for(lora) is draft
    torch.testing.assert_close(draft(PROMPT).logits, small(4)(PROMPT).logits)
    weights = {id(parameter) for parameter in lora.parameters()}
    assert {id(parameter) for parameter in draft.parameters()} <= weights
    # the target is adapted as before
    assert (lora(PROMPT).logits - draft(PROMPT).logits).abs().max() > 0.1
    torch.testing.assert_close(lora(PROMPT).logits, adapted(4)(PROMPT).logits)


def test_targets_that_have_no_model_under_an_adapter():
    with pytest.raises(ValueError, match="LlamaForCausalLM has no adapted layer"):
        counts_of_two_tokens(small(4), SpeculativeDecoding(WithoutAdapter()))
    merged = adapted(4)
    merged.merge_adapter()
    with pytest.raises(ValueError, match="unmerge it first"):
        counts_of_two_tokens(merged, SpeculativeDecoding(WithoutAdapter()))


def test_an_adapted_target_samples_plainly(lora):
    law = law_of_two_tokens(lora)
    assert alarm(counts_of_two_tokens(lora, FusedSampling(seed=1)), law) > ALARM


def test_a_target_whose_adapter_is_disabled_has_the_law_of_the_model_under_it(lora):
    with lora.disable_adapter():
        law = law_of_two_tokens(lora)
        torch.testing.assert_close(law, law_of_two_tokens(small(4)))
        spec = SpeculativeDecoding(small(5), num_drafts=3, draft_length=2, seed=1)
        assert alarm(counts_of_two_tokens(lora, spec), law) > ALARM
    spec = SpeculativeDecoding(lora, num_drafts=3, draft_length=2, seed=1)
    assert alarm(counts_of_two_tokens(small(4), spec), law) > ALARM


def test_an_adapted_model_is_its_own_identical_draft(lora):
    spec = SpeculativeDecoding(lora, num_drafts=1, draft_length=4, seed=3)
    lora.generate(
        input_ids=PROMPT, do_sample=True, top_k=0, max_new_tokens=60, custom_generate=spec
    )
    assert spec.last_stats.acceptance_rate == 1.0
