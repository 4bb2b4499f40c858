"""Rules that change the temperature: their formulas, their place in a list, and everything that draws by them."""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from enumeration import Tables, block_law
from heated_reference import law_of_row
from hypothesis import given, settings
from hypothesis import strategies as st
from own_process import run_tests
from reference import KINDS, gaussian, row_of
from scipy.stats import chi2
from tiny_models import tiny_model
from transformers import LogitsProcessorList

import warpdraft
import warpdraft.laws as laws
import warpdraft.sampling as sampling
from warpdraft import (
    DynamicTemperature,
    EntropyDependentTemperature,
    HapoTemperature,
    MinP,
    TopH,
    TopK,
    TopNSigma,
    TopP,
    sample,
    truncate,
    verify_block,
)
from warpdraft.integrations.transformers import (
    FusedSampling,
    RulesLogitsProcessor,
    SpeculativeDecoding,
)
from warpdraft.kernels.support import BAD_PARAMETER, EMPTY, NAN, OK, POSITIVE_INFINITY
from warpdraft.laws import law_of
from warpdraft.per_request import PerRequestRules
from warpdraft.request_parameters import rules_of_request
from warpdraft.truncation import Call, resolve
from warpdraft.verification import get_verifier

DYNAMIC = DynamicTemperature(0.5, 1.5)
DEPENDENT = EntropyDependentTemperature(0.5, 1.4)
HAPO = HapoTemperature(-0.5, 1.2, 0.7, 0.9, 0.4)
SINGLE = [
    DYNAMIC,
    DynamicTemperature(0.3, 2.5, 2.0),
    DEPENDENT,
    EntropyDependentTemperature(0.0, 0.6),
    EntropyDependentTemperature(2.0, 1.0, 0.5),
    # sees the digits of an entropy near 0
    EntropyDependentTemperature(1e-14, 1.2),
    HAPO,
    HapoTemperature(1.0, 0.0, 1.0, 1.0),
    # and the least one
    HapoTemperature(-14.0, 8.0, 0.9, 0.9, 0.3),
]
LISTS = {
    "before min-p": [DYNAMIC, MinP(0.1)],
    "behind min-p": [MinP(0.1), DYNAMIC],
    "before top-H": [HAPO, TopH(0.7)],
    "behind top-H": [TopH(0.7), DEPENDENT],
    "between": [TopK(20), DEPENDENT, TopP(0.8), HAPO, TopNSigma(1.5)],
    "twice": [DYNAMIC, DYNAMIC],
}
on_lists = pytest.mark.parametrize("rules", LISTS.values(), ids=LISTS.keys())
# 7 comparisons: less than one false alarm in a million runs with other seeds
ALARM = 1e-6 / 7


def laws_of(logits, rules, temperature=1.0):
    """The reference, row by row: `[rows, vocab]` and temperatures `[rows]`, float64."""
    found = [law_of_row(row, rules, temperature) for row in logits.double().numpy()]
    probs, heats = zip(*found, strict=True)
    return torch.from_numpy(np.stack(probs)), torch.tensor(heats, dtype=torch.float64)


def softmax(logits, temperature):
    return (logits.double() / temperature).softmax(-1)


def assert_temperatures(found, expected):
    # as cold as that is all one, and is kept above 1e-30
    found, expected = found.clamp(min=1e-25), expected.clamp(min=1e-25)
    # a power of theta / H carries the relative error of H
    band = 1e-5 * (1 + expected.log().abs())
    assert bool(((found.log() - expected.log()).abs() <= band).all()), (found, expected)


def random_logits(rows, vocab, seed=0, scale=3.0):
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * scale


# ---- the formulas


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("rule", SINGLE, ids=repr)
def test_both_forms_have_the_temperature_of_the_formula(rule, kind):
    for vocab, temperature in itertools.product((1, 2, 127, 9001), (0.7, 1.0, 1.6)):
        logits = row_of(kind, vocab)
        expected, heat = laws_of(logits, [rule], temperature)
        call = Call.create(logits, rule, temperature)
        for resolved in (call.resolve_rows(), call.resolve_batch()):
            assert resolved.status.tolist() == [OK]
            assert_temperatures(resolved.temperature, heat)
        law = law_of(logits, rule, temperature).dense().probs.double()
        torch.testing.assert_close(law, expected, rtol=3e-4, atol=1e-9)


@pytest.mark.parametrize("temperature", [0.8, 1.0, 1.7])
@on_lists
def test_rules_see_what_is_before_them(rules, temperature):
    logits = torch.cat([row_of(gaussian, 127, seed) for seed in range(8)])
    expected, heat = laws_of(logits, rules, temperature)
    call = Call.create(logits, rules, temperature)
    for resolved in (call.resolve_rows(), call.resolve_batch()):
        assert_temperatures(resolved.temperature, heat)
    for probs in (
        law_of(logits, rules, temperature).dense().probs.double(),
        softmax(truncate(logits, rules, temperature=temperature), temperature),
    ):
        assert torch.equal(probs > 0, expected > 0)
        torch.testing.assert_close(probs, expected, rtol=1e-4, atol=1e-9)


def test_the_place_in_the_list_decides_which_tokens_are_left():
    logits = row_of(gaussian, 127)
    kept = {
        name: int((law_of_row(logits[0], rules, 1.0)[0] > 0).sum()) for name, rules in LISTS.items()
    }
    assert kept["before min-p"] != kept["behind min-p"]
    behind = truncate(logits, LISTS["behind min-p"])
    assert torch.equal(behind > -torch.inf, truncate(logits, MinP(0.1)) > -torch.inf)
    # standard deviations do not know the temperature
    spread = truncate(logits, [DYNAMIC, TopNSigma(1.5)])
    assert torch.equal(spread > -torch.inf, truncate(logits, TopNSigma(1.5)) > -torch.inf)


def test_a_certain_law_and_a_uniform_one():
    logits = torch.full((2, 9), -torch.inf)
    logits[0, 4], logits[1, :6] = 2.0, 1.25
    wanted = {
        DYNAMIC: [0.5, 1.5],
        DEPENDENT: [1e-30, 1.4 * 0.8 ** (0.5 / math.log(6))],
        HAPO: [0.6, 1 + 0.4 * (math.log(math.log(6)) + 0.5) * 0.7 / (1.2 + 1e-6)],
    }
    for rule, heats in wanted.items():
        call = Call.create(logits, rule, 1.0)
        for resolved in (call.resolve_rows(), call.resolve_batch()):
            assert resolved.temperature.tolist() == pytest.approx(heats, rel=1e-6)
        masked = truncate(logits, rule)
        assert torch.equal(masked, logits)
        assert sample(logits, rule, seed=1).token_ids[0] == 4


def test_equal_bounds_multiply_by_a_constant():
    # HAPO with a temperature of its own, and its entropy at temperature 1
    logits = random_logits(3, 50)
    found = resolve(logits, [HAPO, DynamicTemperature(0.7, 0.7)]).temperature
    torch.testing.assert_close(found, 0.7 * resolve(logits, HAPO).temperature)


def test_temperatures_multiply():
    logits = random_logits(3, 50)
    once, twice = (resolve(logits, [DYNAMIC] * count).temperature for count in (1, 2))
    own = [
        resolve(logits[row : row + 1], DYNAMIC, temperature=float(heat)).temperature
        for row, heat in enumerate(once)
    ]
    torch.testing.assert_close(twice, torch.cat(own))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-40, 40, width=32) | st.just(-math.inf), min_size=1, max_size=40).filter(
        lambda row: max(row) > -math.inf
    ),
    st.lists(st.sampled_from([*SINGLE, TopK(3), TopK(9)]), min_size=1, max_size=4),
    st.sampled_from([0.5, 1.0, 2.0]),
    st.randoms(use_true_random=False),
)
def test_any_row_and_any_list(row, rules, temperature, random):
    logits = torch.tensor([row])
    heats = []
    for form in (Call.resolve_rows, Call.resolve_batch):
        resolved = form(Call.create(logits, rules, temperature))
        assert resolved.status.tolist() == [OK]
        heats.append(resolved.temperature)
    assert_temperatures(*heats)
    # rules see logits / T and nothing else of T
    tempered = resolve(logits.double() / temperature, rules).temperature
    assert_temperatures(tempered * temperature, heats[0])
    # nor do they see the ids or the level of the logits
    shuffled = random.sample(row, len(row))
    moved = resolve(
        torch.tensor([shuffled], dtype=torch.float64) + 3, rules, temperature=temperature
    )
    assert_temperatures(moved.temperature, heats[0])
    low, high = 1.0, 1.0
    for rule in rules:
        if isinstance(rule, DynamicTemperature):
            low, high = low * rule.minimum, high * rule.maximum
        elif isinstance(rule, EntropyDependentTemperature):
            low, high = 0.0, high * rule.maximum
        elif isinstance(rule, HapoTemperature):
            low, high = low * (1 - rule.strength), high * (1 + rule.strength)
    assert low * (1 - 1e-9) <= float(heats[0]) / temperature <= max(high, 1e-29) * (1 + 1e-9)
    masked = truncate(logits, rules, temperature=temperature)
    assert not masked.isnan().any()
    assert masked.max() == logits.max()


# ---- what comes back


@on_lists
def test_dividing_by_the_temperature_of_the_call_gives_the_law(rules):
    logits = random_logits(5, 300, scale=2.0)
    for temperature in (0.6, 1.0, 1.8):
        expected = law_of(logits, rules, temperature).dense().probs.double()
        masked = truncate(logits, rules, temperature=temperature)
        torch.testing.assert_close(softmax(masked, temperature), expected, rtol=2e-5, atol=1e-9)
        # the largest logit stays where it is
        assert torch.equal(masked.amax(-1), logits.amax(-1))
        # an engine that has divided already gets the same law
        tempered = truncate(logits / temperature, rules)
        torch.testing.assert_close(softmax(tempered, 1.0), expected, rtol=2e-4, atol=1e-8)


def test_nothing_moves_without_a_rule_that_changes_the_temperature():
    logits = random_logits(4, 60)
    kept = truncate(logits, [TopK(9)], temperature=1.3)
    assert torch.equal(kept, torch.where(kept > -torch.inf, logits, -torch.inf))
    # nor where the factor is 1
    still = HapoTemperature(0.0, 1.0, 1.0, 1.0, strength=0.0)
    assert torch.equal(truncate(logits, [TopK(9), still], temperature=1.3), kept)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_other_dtypes_have_the_law_of_their_own_logits(dtype):
    logits = random_logits(6, 200).to(dtype)
    rules = [DYNAMIC, MinP(0.02)]
    expected, _ = laws_of(logits, rules, 1.3)
    probs = law_of(logits, rules, 1.3).dense().probs.double()
    torch.testing.assert_close(probs, expected, rtol=1e-4, atol=1e-9)
    masked = truncate(logits, rules, temperature=1.3)
    assert masked.dtype == dtype
    assert torch.equal(masked > -torch.inf, expected > 0)
    # logits between 8 and 16 come back as multiples of 8 eps, which counts twice in a softmax
    rounding = 2 * torch.finfo(dtype).eps * 8 / 2 / 1.3
    torch.testing.assert_close(softmax(masked, 1.3), expected, rtol=rounding + 1e-9, atol=1e-9)


def test_halves_do_not_overflow():
    logits = torch.tensor([[6e4, 5e4, -6e4, -math.inf]], dtype=torch.float16)
    cold = truncate(logits, DynamicTemperature(1e-3, 1e-2))
    assert cold.tolist() == [[6e4, -65504.0, -65504.0, -math.inf]]
    hot = truncate(logits, DynamicTemperature(1e30, 1e30))
    assert hot.tolist() == [[6e4, 6e4, 6e4, -math.inf]]


def test_bitmask_rows_and_out():
    logits = random_logits(4, 40)
    words = torch.full((4, 2), -1, dtype=torch.int32)
    words[:, 0] = 0b110110111
    rules = [TopK(12), DYNAMIC]
    forbidden = logits.clone()
    forbidden[:, :32] = torch.where(
        (words[:, :1] >> torch.arange(32)) & 1 == 1, logits[:, :32], -torch.inf
    )
    expected = truncate(forbidden, rules, temperature=1.2)
    assert torch.equal(truncate(logits, rules, temperature=1.2, token_bitmask=words), expected)
    rows = torch.tensor([3, 1])
    out = truncate(logits, rules, temperature=1.2, token_bitmask=words[:2], row_indices=rows)
    assert torch.equal(out[rows], expected[rows])
    assert torch.equal(out[[0, 2]], logits[[0, 2]])
    own = logits.clone()
    assert truncate(own, rules, temperature=1.2, out=own) is own
    assert torch.equal(own, truncate(logits, rules, temperature=1.2))


def test_temperature_0_stays_greedy():
    logits = random_logits(3, 30)
    logits[1, 5] = logits[1, 17] = 20.0
    heat = torch.tensor([0.0, 0.0, 1.0])
    for rule in SINGLE:
        masked = truncate(logits, rule, temperature=heat)
        assert (masked > -torch.inf).sum(-1).tolist() == [1, 1, 30]
        assert torch.equal(masked[:2].amax(-1), logits[:2].amax(-1))
        drawn = sample(logits, rule, temperature=heat, seed=1)
        assert drawn.token_ids[:2].tolist() == [int(logits[0].argmax()), 5]
        assert drawn.logprobs[:2].tolist() == [0.0, 0.0]
        assert drawn.kept_mass[:2].tolist() == [1.0, 1.0]
        call = Call.create(logits, rule, heat)
        for resolved in (call.resolve_rows(), call.resolve_batch()):
            assert resolved.temperature[:2].tolist() == [0.0, 0.0]


def test_as_cold_as_it_gets_only_the_most_likely_tokens_are_left():
    logits = torch.tensor([[1.0, 3.0, 3.0, 0.0]])
    coldest = EntropyDependentTemperature(1e9)
    law = law_of(logits, coldest, 1.0).dense().probs
    assert law.tolist() == [[0.0, 0.5, 0.5, 0.0]]
    assert softmax(truncate(logits, coldest), 1.0).tolist() == [[0.0, 0.5, 0.5, 0.0]]


@on_lists
def test_laws_of_a_batch_are_those_of_its_rows(rules):
    logits = random_logits(5, 60)
    heat = torch.tensor([0.0, 0.6, 1.0, 1.0, 1.7])
    call = Call.create(logits, rules, heat)
    by_row = law_of(logits, rules, heat, with_scores=True)
    by_batch = laws._law_of_batch(call, with_scores=True)
    expected = by_row.dense().probs
    torch.testing.assert_close(by_batch.probs, expected, rtol=1e-5, atol=1e-7)
    for law in (by_row, by_batch):
        torch.testing.assert_close(law.scores.softmax(-1), expected, rtol=1e-5, atol=1e-7)
    drawn_from = sampling._laws_of_rows(call), sampling._laws_of_batch(call)
    for found, same in zip(*drawn_from, strict=True):
        torch.testing.assert_close(found.double(), same.double(), rtol=1e-5, atol=1e-7)


# ---- rows and parameters without a law


def test_rows_without_a_law():
    logits = random_logits(4, 20)
    logits[0, 3], logits[1, 4], logits[2] = math.nan, math.inf, -math.inf
    rules = [DYNAMIC, TopK(5), HAPO]
    wanted = [NAN, POSITIVE_INFINITY, EMPTY, OK]
    call = Call.create(logits, rules, 0.9)
    for resolved in (call.resolve_rows(), call.resolve_batch()):
        assert resolved.status.tolist() == wanted
        assert resolved.temperature.isfinite().all()
    assert law_of(logits, rules, 0.9).status.tolist() == wanted
    with pytest.raises(
        ValueError, match=r"row 0 has a NaN logit; row 1 has a logit of \+inf; row 2"
    ):
        truncate(logits, rules)


@pytest.mark.parametrize(
    ("rule", "bad"),
    [
        (DynamicTemperature(torch.tensor([0.5, 0.0, 2.0, math.nan]), 1.5), [1, 2, 3]),
        (DynamicTemperature(0.5, torch.tensor([1.5, math.inf, 0.4, -1.0])), [1, 2, 3]),
        (DynamicTemperature(0.5, 1.5, torch.tensor([1.0, 0.0, -1.0, 2.0])), [1, 2]),
        (EntropyDependentTemperature(torch.tensor([1.0, -0.1, math.inf, 0.0])), [1, 2]),
        (EntropyDependentTemperature(1.0, 1.0, torch.tensor([0.8, 1.1, 0.0, 1.0])), [1, 2]),
        (HapoTemperature(torch.tensor([0.0, math.nan, math.inf, -9.0]), 1.0, 1.0, 1.0), [1, 2]),
        (HapoTemperature(0.0, torch.tensor([1.0, -1.0, 0.0, 1.0]), 1.0, 1.0), [1]),
        (HapoTemperature(0.0, 1.0, 1.0, 1.0, torch.tensor([0.0, 1.0, -0.1, 0.99])), [1, 2]),
    ],
    ids=repr,
)
def test_tensors_outside_their_range_set_the_status(rule, bad):
    logits = random_logits(4, 20)
    call = Call.create(logits, [TopK(9), rule, MinP(0.1)], 1.0)
    for resolved in (call.resolve_rows(), call.resolve_batch()):
        assert resolved.status.tolist() == [BAD_PARAMETER if row in bad else OK for row in range(4)]
        assert (resolved.support.value[bad] == math.inf).all()


def test_tensors_are_the_parameters_of_their_rows():
    logits = random_logits(3, 40)
    values = torch.tensor([[0.3, 0.5, 0.9], [1.0, 1.5, 2.0], [0.5, 1.0, 2.0]])
    found = truncate(logits, [DynamicTemperature(*values), MinP(0.1)], temperature=1.1)
    for row in range(3):
        alone = [DynamicTemperature(*values[:, row].tolist()), MinP(0.1)]
        expected = truncate(logits[row : row + 1], alone, temperature=1.1)[0]
        torch.testing.assert_close(found[row], expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DynamicTemperature(0.0, 1.0), r"minimum must be in \(0, inf\), got 0.0"),
        (lambda: DynamicTemperature(-1, 1.0), r"minimum must be in \(0, inf\), got -1"),
        (lambda: DynamicTemperature(0.5, math.inf), r"maximum must be in \(0, inf\), got inf"),
        (lambda: DynamicTemperature(1.5, 0.5), r"minimum must be in \(0, maximum = 0.5\], got 1.5"),
        (lambda: DynamicTemperature(0.5, 1.5, 0), r"exponent must be in \(0, inf\), got 0"),
        (lambda: EntropyDependentTemperature(-0.1), r"theta must be in \[0, inf\), got -0.1"),
        (lambda: EntropyDependentTemperature(1, 0), r"maximum must be in \(0, inf\), got 0"),
        (lambda: EntropyDependentTemperature(1, 1, 1.2), r"base must be in \(0, 1\], got 1.2"),
        (lambda: HapoTemperature(math.nan, 1, 1, 1), r"median must be in \(-inf, inf\), got nan"),
        (lambda: HapoTemperature(0, -1, 1, 1), r"std must be in \[0, inf\), got -1"),
        (lambda: HapoTemperature(0, 1, -1, 1), r"positive_scale must be in \[0, inf\), got -1"),
        (lambda: HapoTemperature(0, 1, 1, 1, 1.0), r"strength must be in \[0, 1\), got 1.0"),
    ],
)
def test_a_temperature_of_0_or_less_is_refused_at_the_door(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_no_finite_parameters_make_nan():
    logits = random_logits(2, 9)
    extremes = [
        HapoTemperature(1e308, 0.0, 0.0, 0.0, 0.9),
        HapoTemperature(-1e308, 0.0, 1e308, 1e308, 0.9),
        EntropyDependentTemperature(1e308, 1e-300, 1e-300),
        EntropyDependentTemperature(0.0, 1e308),
        DynamicTemperature(1e-308, 1e308, 1e308),
    ]
    for rule in extremes:
        for temperature in (1e-200, 1.0, 1e200):
            call = Call.create(logits, [rule, TopH(0.9)], temperature)
            for resolved in (call.resolve_rows(), call.resolve_batch()):
                assert resolved.temperature.isfinite().all()
                assert (resolved.temperature > 0).all()
            assert not truncate(logits, rule, temperature=temperature).isnan().any()
            law = law_of(logits, rule, temperature).dense().probs
            torch.testing.assert_close(law.sum(-1), torch.ones(2))


# ---- draws


@pytest.mark.parametrize("rules", [[MinP(0.02), DYNAMIC], [HAPO, TopK(6), DEPENDENT]], ids=str)
def test_tokens_follow_the_law(rules):
    row = random_logits(1, 12, seed=4, scale=2.0)
    draws = 6000
    drawn = sample(row.expand(draws, -1), rules, temperature=1.4, seed=5)
    expected, heat = laws_of(row, rules, 1.4)
    counts = torch.bincount(drawn.token_ids, minlength=12).double()
    inside = expected[0] > 0
    assert not counts[~inside].any()
    wanted = expected[0][inside] * draws
    assert wanted.min() > 5
    statistic = float(((counts[inside] - wanted) ** 2 / wanted).sum())
    assert chi2.sf(statistic, int(inside.sum()) - 1) > ALARM
    # what was drawn, in the law and in the whole law at the temperature of the draw
    chosen = drawn.token_ids[:1]
    assert float(drawn.logprobs[0]) == pytest.approx(float(expected[0, chosen].log()), abs=2e-6)
    before = softmax(row, float(heat))[0, chosen].log()
    assert float(drawn.logprobs[0] + drawn.kept_mass[0].log()) == pytest.approx(
        float(before), abs=2e-6
    )
    raw = sample(row, rules, temperature=1.4, seed=5, logprobs_mode="raw")
    assert float(raw.logprobs[0]) == pytest.approx(
        float(softmax(row, 1.0)[0, chosen].log()), abs=2e-6
    )


def test_compiled_calls_equal_eager_ones():
    logits = random_logits(3, 40)
    minimum = torch.tensor([0.3, 0.5, 1.5])

    def call(logits, minimum, step):
        rules = [TopK(30), DynamicTemperature(minimum, 1.5), TopH(0.8), HAPO]
        drawn = sample(logits, rules, temperature=1.3, seed=7, step=step)
        return truncate(logits, rules, temperature=1.3), drawn.token_ids, drawn.logprobs

    torch.compiler.reset()
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    for step in range(2):
        for found, expected in zip(
            compiled(logits, minimum, step), call(logits, minimum, step), strict=True
        ):
            assert torch.equal(found, expected)


@pytest.mark.timeout(600)
def test_the_kernels_agree_in_the_interpreter():
    run_tests("interpreted_temperature.py", interpret=True)


# ---- speculation

VOCAB, DEPTH = 3, 2


@pytest.mark.parametrize("verifier", ["k_seq", "optimal", "recursive"])
@on_lists
def test_speculation_is_lossless_by_enumeration(verifier, rules):
    counts = [VOCAB**depth for depth in range(DEPTH + 1)]
    logits = [
        torch.randn(sum(counts), VOCAB, generator=torch.Generator().manual_seed(seed)).double() * 2
        for seed in (3, 4)
    ]
    tables = [list(law_of(side, rules, 1.3).dense().probs.split(counts)) for side in logits]
    expected, _ = laws_of(logits[0], rules, 1.3)
    torch.testing.assert_close(torch.cat(tables[0]), expected, rtol=1e-9, atol=1e-12)
    law = block_law(get_verifier(verifier), Tables(tables[0], tables[1][:-1], tables[1][:-1]), 2)
    assert law.deviation < 1e-12


@pytest.mark.parametrize("verifier", ["k_seq", "optimal_block"])
@on_lists
def test_a_block_is_verified_under_the_laws_of_the_rules(verifier, rules):
    batch, vocab = 40, 12
    target, draft = (random_logits(batch * 5, vocab, seed=seed).double() for seed in (5, 6))
    draft = 0.6 * target + 0.4 * draft
    parameters = torch.linspace(0.4, 1.2, batch, dtype=torch.float64)
    per_row = [DynamicTemperature(parameters, 1.5) if rule == DYNAMIC else rule for rule in rules]
    tables = []
    for logits in (target, draft):
        found = [
            law_of_row(
                row,
                [
                    DynamicTemperature(float(parameters[number // 5]), 1.5)
                    if rule == DYNAMIC
                    else rule
                    for rule in rules
                ],
                1.2,
            )[0]
            for number, row in enumerate(logits.numpy())
        ]
        tables.append(torch.from_numpy(np.stack(found)).log().view(batch, 5, vocab))
    nodes = torch.tensor([[0, 1, 2], [0, 3, 4]]).repeat(batch, 1, 1)
    chosen = tables[1].exp().gather(1, nodes[:, :, :2].flatten(1)[..., None].expand(-1, -1, vocab))
    generator = torch.Generator().manual_seed(7)
    paths = torch.multinomial(chosen.flatten(0, 1), 1, generator=generator).view(batch, 2, 2)
    # both paths stand at one root, and tokens that agree there lead to one law
    shape = {"draft_token_ids": paths, "node_index": nodes, "verifier": verifier, "seed": 8}
    found = verify_block(
        target.view(batch, 5, vocab),
        draft.view(batch, 5, vocab),
        rules=per_row,
        temperature=1.2,
        **shape,
    )
    expected = verify_block(*tables, **shape)
    assert found.num_accepted.sum() > 0
    for name in ("output_token_ids", "num_accepted", "survivor_path", "status"):
        assert torch.equal(getattr(found, name), getattr(expected, name))


# ---- transformers

PROMPT, TOKENS, ROWS = (3, 5, 2, 6), 2, 2500
GENERATE = {"do_sample": True, "top_k": 0, "temperature": 1.3, "max_new_tokens": TOKENS}
IN_ORDER = [MinP(0.05), DYNAMIC, HAPO]


@pytest.fixture(scope="module")
def target():
    return tiny_model(seed=1, vocab=8, layers=2, spread=1.5)


@pytest.fixture(scope="module")
def text_law(target):
    """Of every text of two tokens under the rules."""

    def next_laws(prefixes):
        with torch.no_grad():
            logits = target(torch.tensor([[*PROMPT, *prefix] for prefix in prefixes])).logits[:, -1]
        return laws_of(logits, IN_ORDER, 1.3)[0]

    return next_laws([()]).T * next_laws([(token,) for token in range(8)])


@pytest.mark.parametrize("way", ["processor", "fused", "speculative"])
def test_generate_has_the_law_of_the_rules(way, target, text_law):
    prompts = torch.tensor([PROMPT]).repeat(ROWS, 1)
    transformers.set_seed(11)
    options = {
        "processor": {
            "logits_processor": LogitsProcessorList(
                [RulesLogitsProcessor(IN_ORDER, temperature=1.3)]
            )
        },
        "fused": {"custom_generate": FusedSampling(rules=IN_ORDER, seed=2)},
        "speculative": {
            "custom_generate": SpeculativeDecoding(
                tiny_model(seed=2, vocab=8, layers=1, spread=1.5),
                num_drafts=2,
                draft_length=1,
                rules=IN_ORDER,
                seed=3,
            )
        },
    }[way]
    texts = target.generate(prompts, **GENERATE, **options)[:, len(PROMPT) :]
    counts = torch.bincount(texts[:, 0] * 8 + texts[:, 1], minlength=64).double()
    law = text_law.flatten()
    assert not counts[law == 0].any()
    expected = law[law > 0] * ROWS
    counts = counts[law > 0]
    rare = expected < 5
    if rare.any():
        expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
        counts = torch.cat([counts[~rare], counts[rare].sum()[None]])
    statistic = float(((counts - expected) ** 2 / expected).sum())
    assert chi2.sf(statistic, len(expected) - 1) > ALARM


def test_the_processor_checks_its_arguments_and_names_its_rules():
    processor = RulesLogitsProcessor(DYNAMIC, temperature=1.5)
    assert repr(processor) == f"RulesLogitsProcessor({DYNAMIC}, temperature=1.5)"
    with pytest.raises(TypeError, match="rules must be"):
        RulesLogitsProcessor(["dynamic"])
    with pytest.raises(ValueError, match=r"temperature must be in \(0, inf\), got 0"):
        RulesLogitsProcessor(DYNAMIC, temperature=0)


def test_greedy_generation_ignores_them(target):
    prompt = torch.tensor([PROMPT])
    plain = target.generate(prompt, do_sample=False, max_new_tokens=5)
    for rules in ([DYNAMIC], [MinP(0.1), DEPENDENT]):
        fused = FusedSampling(rules=rules)
        again = target.generate(prompt, do_sample=False, max_new_tokens=5, custom_generate=fused)
        assert torch.equal(again, plain)


# ---- engines


def test_requests_have_their_own_temperatures_before_and_behind_the_engines_own():
    kinds = [
        (DynamicTemperature(0.5, 1.5), MinP(0.1)),
        (DynamicTemperature(0.7, 1.2, 2.0), MinP(0.2)),
        (),
        (TopK(9), HAPO),
    ]
    heats = [0.7, 1.5, 1.0, 1.2]
    logits = random_logits(4, 40)
    expected = torch.stack(
        [
            laws_of(row[None], rules, heat)[0][0]
            for row, rules, heat in zip(logits, kinds, heats, strict=True)
        ]
    )
    scale = torch.tensor(heats)[:, None]
    before, behind = PerRequestRules("cpu"), PerRequestRules("cpu")
    for slot, (rules, heat) in enumerate(zip(kinds, heats, strict=True)):
        before.add(slot, rules, heat)
        behind.add(slot, rules, 1.0)
    assert len(before._grouped(tuple(range(4)))) == 2
    for masked in (
        before.apply_inplace(logits.clone()) / scale,
        behind.apply_inplace(logits / scale),
    ):
        torch.testing.assert_close(masked.double().softmax(-1), expected, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize(
    ("parameters", "rules"),
    [
        ({"dynamic_temperature": [0.5, 1.5]}, (DYNAMIC,)),
        ({"dynamic_temperature": [0.5, 1.5, 2]}, (DynamicTemperature(0.5, 1.5, 2),)),
        ({"entropy_dependent_temperature": 0.5}, (EntropyDependentTemperature(0.5),)),
        ({"entropy_dependent_temperature": [0.5, 1.4]}, (DEPENDENT,)),
        ({"hapo_temperature": [-0.5, 1.2, 0.7, 0.9, 0.4]}, (HAPO,)),
        (
            {"rules": '[{"min_p": 0.1}, {"dynamic_temperature": [0.5, 1.5]}]'},
            (MinP(0.1), DYNAMIC),
        ),
    ],
    ids=str,
)
def test_rules_of_a_request(parameters, rules):
    assert rules_of_request(parameters) == rules


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (
            {"dynamic_temperature": 0.5},
            "a list of minimum, maximum, exponent, at least the first 2",
        ),
        ({"dynamic_temperature": [1, 2, 3, 4]}, "at least the first 2, got [1, 2, 3, 4]"),
        ({"dynamic_temperature": True}, "at least the first 2, got True"),
        ({"dynamic_temperature": [True, 2]}, "dynamic_temperature: minimum must be a number"),
        ({"dynamic_temperature": ["a", 2]}, "dynamic_temperature: minimum must be a number"),
        (
            {"dynamic_temperature": [0, 2]},
            "dynamic_temperature: minimum must be in (0, inf), got 0",
        ),
        ({"dynamic_temperature": [1, 10**400]}, "maximum must be at most 16777216 in magnitude"),
        (
            {"hapo_temperature": [0, 1, 1, 1], "ties": "all"},
            "ties is no option of hapo_temperature",
        ),
        (
            {"min_p": 0.1, "dynamic_temperature": [1, 2]},
            "min_p, dynamic_temperature without an order",
        ),
    ],
    ids=str,
)
def test_a_bad_request_gets_one_line(parameters, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        rules_of_request(parameters)
    assert "\n" not in str(caught.value)


# ---- the page


def test_the_page_runs():
    page = (Path(__file__).parent.parent / "docs" / "temperature.md").read_text()
    names = {
        "logits": random_logits(2, 64),
        "model": tiny_model(seed=1),
        "draft_model": tiny_model(seed=2, layers=1),
        "inputs": {"input_ids": torch.tensor([[1, 5, 9]])},
    }
    snippets = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert len(snippets) == 3
    for number, snippet in enumerate(snippets):
        exec(compile(snippet, f"docs/temperature.md snippet {number}", "exec"), names)
    assert torch.allclose(names["probs"].sum(-1), torch.ones(2))
    for name in ("DynamicTemperature", "EntropyDependentTemperature", "HapoTemperature"):
        assert name in warpdraft.__all__
        assert name in page
