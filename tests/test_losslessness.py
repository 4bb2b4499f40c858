"""End to end: generated text has exactly the law of plain sampling from the processed target law.

The expected law is enumerated here, in float64, with a truncation written for this file. Each test compares counts of
texts by a chi-square; `ALARM` is its false-alarm rate. The seeds are fixed, so a test that passes once passes always.

Power: the rows of one law, over all K and L, number 18,000. A probability between 0.05 and 0.2 that is off
by 0.02 then lies 6.7 to 12 standard deviations away, where 5.5 already raise the alarm.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.stats import chi2
from tiny_models import tiny_model
from transformers import CompileConfig

import warpdraft.draft_sources as draft_sources
import warpdraft.kernels.noise as noise_module
import warpdraft.laws as laws
import warpdraft.loop as loop
import warpdraft.truncation as truncation
from warpdraft.adaptive_shape import AdaptiveShape
from warpdraft.drafting import DraftPaths, draft_paths
from warpdraft.first_layers import FirstLayers
from warpdraft.kernels.noise import Noise
from warpdraft.laws import Law, LawPipeline
from warpdraft.loop import LoopOptions, generate_tokens
from warpdraft.processors import ProcessorStack
from warpdraft.prompt_lookup import PromptLookup
from warpdraft.rules import MinP, TopH, TopP
from warpdraft.structures import LevelLaws

# at most 60 comparisons: less than one false alarm in a million runs with other seeds
ALARM = 1e-6 / 60
VOCAB, TOKENS, ROWS = 8, 3, 1500
# rows for each K: many paths take longer, and the law does not depend on their number
ROWS_OF = {1: 4500, 2: 3000, 4: 1500}
PAD = 0
PROMPT = (3, 5, 2, 6)


@pytest.fixture(scope="module")
def target():
    return tiny_model(seed=1, vocab=VOCAB, layers=2, spread=1.5)


@pytest.fixture(scope="module")
def draft():
    return tiny_model(seed=2, vocab=VOCAB, layers=1, spread=1.5)


@pytest.fixture(autouse=True)
def all_rows_at_once(monkeypatch, request):
    """Make laws as on other devices: thousands of rows of eight tokens are slow one by one."""
    if request.node.originalname == "test_every_way_to_draft_has_the_law_of_plain_sampling":
        # here row by row, compact laws and all
        return
    monkeypatch.setattr(truncation.Call, "resolve_rows", truncation.Call.resolve_batch)
    monkeypatch.setattr(
        laws, "_law_of_rows", lambda call: laws._law_of_batch(call, with_scores=False)
    )


# ---- the expected law


def untruncated(probs):
    return np.ones_like(probs, dtype=bool)


def top_h_090(probs):
    """The paper's Algorithm 1: the longest prefix whose entropy is at most 0.9 of the whole law's."""

    def entropy(law):
        law = law[law > 0] / law.sum()
        return -(law * np.log(law)).sum()

    order = np.argsort(-probs, kind="stable")
    sizes = [
        n for n in range(1, len(probs) + 1) if entropy(probs[order[:n]]) <= 0.9 * entropy(probs)
    ]
    kept = np.zeros_like(probs, dtype=bool)
    # entropy grows with the prefix, so the sizes are 1, 2, ..
    kept[order[: max(sizes)]] = True
    return kept


def min_p_010(probs):
    return probs >= 0.1 * probs.max()


def text_law(model, prompt, temperature, kept):
    """Probability of each text of `TOKENS` tokens, `[VOCAB] * TOKENS`."""
    law = np.ones([VOCAB] * TOKENS)
    for depth in range(TOKENS):
        prefixes = list(itertools.product(range(VOCAB), repeat=depth))
        token_ids = torch.tensor([[*prompt, *prefix] for prefix in prefixes])
        with torch.no_grad():
            logits = model(token_ids).logits[:, -1].double().numpy() / temperature
        probs = np.exp(logits - logits.max(1, keepdims=True))
        probs /= probs.sum(1, keepdims=True)
        probs = np.stack([np.where(kept(row), row, 0) for row in probs])
        probs /= probs.sum(1, keepdims=True)
        law *= probs.reshape([VOCAB] * (depth + 1) + [1] * (TOKENS - depth - 1))
    return law


# ---- what is generated, and how far it is from the law


def generated(target, draft, prompts, options, rules=(), temperature=1.0):
    """New tokens `[rows, new]` of rows with the given prompts, left-padded, and the statistics."""
    width = max(len(prompt) for prompt in prompts)
    padded = [[PAD] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    settings = {"max_length": width + TOKENS + 1, "pad_token_id": PAD, "seed": 1}
    settings |= {"verifier": "k_seq", **options}
    pipeline = LawPipeline(ProcessorStack([]), rules)
    pipeline.temperature = temperature
    result = generate_tokens(
        target, draft, torch.tensor(padded), torch.tensor(mask), pipeline, LoopOptions(**settings)
    )
    return result.token_ids[:, width:], result.stats


def count(token_ids):
    """How often each text of `TOKENS` tokens occurs, `[VOCAB] * TOKENS`."""
    counts = np.zeros([VOCAB] * TOKENS)
    np.add.at(counts, tuple(token_ids[:, :TOKENS].numpy().T), 1)
    return counts


def p_value(counts, law):
    """Chi-square of counts against a law; texts expected less than 5 times share one cell."""
    rows = counts.sum()
    assert np.isclose(law.sum(), 1, atol=1e-9)
    impossible = law == 0
    if counts[impossible].any():
        return 0.0
    common = law * rows >= 5
    observed = np.append(counts[common], counts[~common].sum())
    expected = np.append(law[common], law[~common].sum()) * rows
    observed, expected = observed[expected > 0], expected[expected > 0]
    statistic = ((observed - expected) ** 2 / expected).sum()
    return float(chi2.sf(statistic, len(expected) - 1))


LAWS = {
    "temperature 0.7": (0.7, [], untruncated),
    "top-H": (1.0, [TopH(0.9)], top_h_090),
    "temperature 1.3, min-p": (1.3, [MinP(0.1)], min_p_010),
}


@pytest.mark.parametrize(("temperature", "rules", "kept"), LAWS.values(), ids=LAWS.keys())
def test_text_has_the_law_of_plain_sampling(target, draft, temperature, rules, kept):
    law = text_law(target, PROMPT, temperature, kept)
    pooled = np.zeros_like(law)
    for seed, (num_drafts, length) in enumerate(itertools.product(ROWS_OF, [2, 3])):
        options = {"num_drafts": num_drafts, "draft_length": length, "seed": seed}
        prompts = [PROMPT] * ROWS_OF[num_drafts]
        token_ids, stats = generated(target, draft, prompts, options, rules, temperature)
        assert 0.2 < stats.acceptance_rate < 0.95, "the drafts test nothing"
        counts = count(token_ids)
        assert p_value(counts, law) > ALARM, f"K = {num_drafts}, L = {length}"
        pooled += counts
    assert p_value(pooled, law) > ALARM
    assert p_value(pooled.sum(2), law.sum(2)) > ALARM
    for position in range(TOKENS):
        others = tuple(axis for axis in range(TOKENS) if axis != position)
        assert p_value(pooled.sum(others), law.sum(others)) > ALARM


STATIC = {"cache_implementation": "static"}
# the graphs are traced and run as they are: their own compilation takes a minute
COMPILED = {**STATIC, "compile_config": CompileConfig(backend="aot_eager", mode=None)}

DRAFTED = {
    "k_seq": {},
    "k_seq, rollover": {"verifier": "k_seq", "structure": "rollover", "node_budget": 8},
    "optimal, rollover, paths": {
        "verifier": "optimal",
        "structure": "rollover",
        "layout": "paths",
    },
    "optimal_block": {"verifier": "optimal_block"},
    "optimal_block, rollover": {"verifier": "optimal_block", "structure": "rollover"},
    "optimal_block, static": {"verifier": "optimal_block", **STATIC},
    "k_seq, static, compiled": {"verifier": "k_seq", **COMPILED},
}


@pytest.mark.parametrize("options", DRAFTED.values(), ids=DRAFTED.keys())
def test_every_way_to_draft_has_the_law_of_plain_sampling(target, draft, options):
    law = text_law(target, PROMPT, 1.0, top_h_090)
    options = {"num_drafts": 3, "draft_length": 3, "seed": 5, **options}
    token_ids, stats = generated(target, draft, [PROMPT] * ROWS, options, [TopH(0.9)])
    assert 0.2 < stats.acceptance_rate < 0.95, "the drafts test nothing"
    assert p_value(count(token_ids), law) > ALARM


# the end of the text stood in it before, with other tokens behind it
REPETITIVE = (3, 5, 2, 3, 5, 6, 3, 5)
SOURCES = {
    "first layer": (FirstLayers(1), {"num_drafts": 3}),
    "look-up, one path": (PromptLookup(), {"verifier": "optimal_block"}),
    "look-up, k_seq": (PromptLookup(), {"verifier": "k_seq"}),
    "look-up, several paths": (PromptLookup(), {"verifier": "target_only", "num_drafts": 3}),
    "adaptive": (
        FirstLayers(1),
        {"adaptive": AdaptiveShape((1, 3), (1, 3), draft_cost=0.1, node_cost=0.1)},
    ),
}


@pytest.mark.parametrize(("source", "options"), SOURCES.values(), ids=SOURCES.keys())
def test_every_draft_source_has_the_law_of_plain_sampling(target, source, options):
    law = text_law(target, REPETITIVE, 1.0, top_h_090)
    options = {"verifier": "optimal_block", "draft_length": 3, "seed": 9, **options}
    token_ids, stats = generated(target, source, [REPETITIVE] * ROWS, options, [TopH(0.9)])
    assert 0.03 < stats.acceptance_rate < 0.95, "the drafts test nothing"
    assert p_value(count(token_ids), law) > ALARM


def test_the_laws_under_test_are_neither_flat_nor_narrow(target):
    for temperature, rules, kept in LAWS.values():
        law = text_law(target, PROMPT, temperature, kept)
        assert law.max() < 0.3
        assert (law > 0).sum() >= 30
        assert (law > 0).all() == (not rules)


def test_rows_of_different_prompts_have_their_own_laws(target, draft):
    prompts = [PROMPT, (7,), (4, 1, 1, 3, 5, 2)]
    options = {"num_drafts": 2, "draft_length": 3}
    token_ids, _ = generated(target, draft, prompts * ROWS, options, [TopH(0.9)])
    for row, prompt in enumerate(prompts):
        law = text_law(target, prompt, 1.0, top_h_090)
        assert p_value(count(token_ids[row :: len(prompts)]), law) > ALARM


def test_eos_inside_an_accepted_run_ends_the_text(target, draft):
    # the most likely second token, so that runs go past it often
    law = text_law(target, PROMPT, 1.0, untruncated)
    eos = int(law.sum((0, 2)).argmax())
    options = {"num_drafts": 2, "draft_length": 3, "eos_token_ids": [eos]}
    token_ids, stats = generated(target, draft, [PROMPT] * ROWS, options)
    assert stats.emitted_tokens < token_ids.numel()

    def cut(texts):
        """Everything after the first end stands for nothing."""
        ended = np.cumsum(texts == eos, axis=1) - (texts == eos) > 0
        return np.where(ended, PAD, texts)

    texts = token_ids[:, :TOKENS].numpy()
    assert (cut(texts) == texts).all()
    expected = np.zeros_like(law)
    every_text = np.array(list(np.ndindex(law.shape)))
    np.add.at(expected, tuple(cut(every_text).T), law.ravel())
    assert p_value(count(token_ids), expected) > ALARM


@pytest.mark.parametrize("new_tokens", [1, 2, 3])
def test_max_length_cuts_inside_a_block(target, draft, new_tokens):
    options = {"num_drafts": 2, "draft_length": 4, "max_length": len(PROMPT) + new_tokens}
    token_ids, _ = generated(target, draft, [PROMPT] * ROWS, options)
    assert token_ids.shape == (ROWS, new_tokens)
    law = text_law(target, PROMPT, 1.0, untruncated)
    padded = torch.cat(
        [token_ids, torch.zeros(ROWS, TOKENS - new_tokens, dtype=torch.int64)], dim=1
    )
    unseen = tuple(range(new_tokens, TOKENS))
    assert p_value(count(padded).sum(unseen), law.sum(unseen)) > ALARM


# ---- mutations that must be noticed


MUTATED_RULES = (TopH(0.9),)


def detected(target, draft, rules=MUTATED_RULES, kept=top_h_090):
    """The p-value of a run with the pieces as they now are."""
    # one path is where words shared between roles meet most often
    options = {"num_drafts": 1, "draft_length": 2}
    token_ids, _ = generated(target, draft, [PROMPT] * ROWS_OF[1], options, rules)
    return p_value(count(token_ids), text_law(target, PROMPT, 1.0, kept))


def test_the_run_that_is_mutated_is_sound(target, draft):
    assert detected(target, draft) > ALARM


def test_noise_without_step_is_noticed(target, draft, monkeypatch):
    monkeypatch.setattr(Noise, "at", lambda self, step: self)
    assert detected(target, draft) < 1e-6


def test_noise_without_role_is_noticed(target, draft, monkeypatch):
    layout = noise_module._layout
    monkeypatch.setattr(noise_module, "_layout", lambda role, *names: layout(0, *names))
    assert detected(target, draft) < 1e-6


def test_noise_without_sequence_is_noticed(target, draft, monkeypatch):
    layout = noise_module._layout
    monkeypatch.setattr(
        noise_module,
        "_layout",
        lambda role, seed, sequence, *names: layout(role, seed, sequence * 0, *names),
    )
    assert detected(target, draft) < 1e-6


def test_raw_draft_law_is_noticed(target, draft, monkeypatch):
    def with_raw_laws(branches, texts, unread, drafter, *, pipeline, **options):
        raw = []

        class Recording:
            def after(self, texts, rows, drafted, logits):
                raw.append(Law.of_probs(torch.softmax(logits.float() / pipeline.temperature, -1)))
                return pipeline.after(texts, rows, drafted, logits)

        paths = draft_paths(branches, texts, unread, drafter, pipeline=Recording(), **options)
        levels = [LevelLaws(law, level.row) for law, level in zip(raw, paths.laws, strict=True)]
        return DraftPaths(paths.tree, levels)

    # a rule that leaves few tokens, so that the laws before and after it differ much
    strict = {"rules": [MinP(0.4)], "kept": lambda probs: probs >= 0.4 * probs.max()}
    assert detected(target, draft, **strict) > ALARM
    monkeypatch.setattr(loop, "draft_paths", with_raw_laws)
    assert detected(target, draft, **strict) < 1e-6


def test_look_up_that_passes_for_uniform_draws_is_noticed(target, monkeypatch):
    def uniform(tree, depth, vocabulary):
        rows = len(tree.token_ids)
        law = Law.of_probs(torch.full((rows, vocabulary), 1 / vocabulary))
        return LevelLaws(law, torch.arange(rows)[:, None])

    monkeypatch.setattr(draft_sources, "_point_masses", uniform)
    law = text_law(target, REPETITIVE, 1.0, top_h_090)
    options = {"draft_length": 3, "seed": 9}
    prompts = [REPETITIVE] * ROWS
    token_ids, _ = generated(target, PromptLookup(), prompts, options, [TopH(0.9)])
    assert p_value(count(token_ids), law) < 1e-6


# ---- an identical draft model


@pytest.mark.parametrize("num_drafts", [1, 4])
@pytest.mark.parametrize(
    ("temperature", "rules"),
    [(0.5, []), (0.7, []), (1.5, []), (1.0, [TopP(0.7)])],
    ids=["0.5", "0.7", "1.5", "top-p"],
)
def test_identical_draft_model_is_always_accepted(temperature, rules, num_drafts):
    check_identical_draft({"num_drafts": num_drafts}, temperature, rules)


@pytest.mark.parametrize("caches", [STATIC, COMPILED], ids=["static", "compiled"])
@pytest.mark.parametrize("verifier", ["k_seq", "optimal_block"])
def test_identical_draft_model_is_always_accepted_on_static_caches(caches, verifier):
    check_identical_draft({"num_drafts": 3, "verifier": verifier, **caches}, 0.7, [TopP(0.9)])


def check_identical_draft(options, temperature, rules):
    model = tiny_model(seed=3, vocab=64)
    options = {"draft_length": 4, "max_length": len(PROMPT) + 50, **options}
    _, stats = generated(model, model, [PROMPT] * 64, options, rules, temperature)
    assert stats.drafted_tokens >= 2000
    assert stats.acceptance_rate >= 0.9995
