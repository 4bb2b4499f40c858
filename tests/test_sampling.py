"""Sampling: the drawn law, its numbers, and what a draw depends on.

The chi-square tests use fixed seeds and fail below p = 1e-4: a right implementation would fail one
of them at an unlucky choice of seed with probability below 1e-3.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from reference import KINDS, row_of
from scipy.stats import chisquare

from warpdraft import MinP, TopH, TopK, Typical, check, sample, truncate
from warpdraft.sampling import _laws_of_batch, _laws_of_rows
from warpdraft.truncation import Call

P_FLOOR = 1e-4
DRAWS = 6_000


def law(logits, rules, temperature=1.0):
    """The processed law in float64."""
    masked = truncate(logits, rules, temperature=temperature).double()
    return (masked / temperature).softmax(-1)


@pytest.mark.parametrize(
    ("rules", "vocab", "temperature"),
    [
        pytest.param([], 12, 1.0, id="no-rules"),
        pytest.param([TopH(0.8)], 60, 1.5, id="top-h"),
        pytest.param([MinP(0.05)], 9000, 0.8, id="min-p"),
        pytest.param([Typical(0.8), TopK(9)], 60, 1.0, id="chain"),
        pytest.param([], 2000, 0.5, id="staged-draw"),
    ],
)
def test_tokens_follow_the_processed_law(rules, vocab, temperature):
    logits = row_of(KINDS[3], vocab, seed=5)
    expected = DRAWS * law(logits, rules, temperature)[0].numpy()
    drawn = sample(logits.expand(DRAWS, -1), rules, temperature=temperature, seed=11)
    observed = np.bincount(drawn.token_ids.numpy(), minlength=vocab)
    assert observed[expected == 0].sum() == 0
    # rare tokens are counted together
    rare = expected < 8
    observed = np.append(observed[~rare], observed[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    present = expected > 0
    assert chisquare(observed[present], expected[present]).pvalue > P_FLOOR


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.7])
@pytest.mark.parametrize(
    "rules", [[], [TopH(0.4)], [MinP(0.1)], [Typical(0.3)]], ids=lambda rules: repr(rules)
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_logprobs_and_kept_mass(rules, temperature, dtype):
    logits = torch.cat([row_of(kind, 8193) for kind in KINDS]).to(dtype)
    drawn = sample(logits, rules, temperature=temperature, seed=3)
    at_drawn = drawn.token_ids[:, None]
    logprobs = law(logits, rules, temperature).log().gather(-1, at_drawn)[:, 0]
    assert torch.allclose(drawn.logprobs.double(), logprobs, rtol=1e-5, atol=1e-5)
    kept = truncate(logits, rules, temperature=temperature) > -torch.inf
    mass = torch.where(kept, (logits.double() / temperature).softmax(-1), 0.0).sum(-1)
    assert torch.allclose(drawn.kept_mass.double(), mass, rtol=1e-5, atol=1e-6)
    raw = sample(logits, rules, temperature=temperature, seed=3, logprobs_mode="raw")
    assert torch.equal(raw.token_ids, drawn.token_ids)
    model = logits.double().log_softmax(-1).gather(-1, at_drawn)[:, 0]
    assert torch.allclose(raw.logprobs.double(), model, rtol=1e-5, atol=1e-5)
    assert drawn.token_ids.dtype == torch.int64
    assert {drawn.logprobs.dtype, drawn.kept_mass.dtype} == {torch.float32}
    assert drawn.status.dtype == torch.int8


@pytest.mark.parametrize("rules", [[], [TopH(0.4)], [Typical(0.3)]], ids=lambda rules: repr(rules))
def test_both_forms_have_one_law(rules):
    # the form for other devices, on the CPU
    logits = torch.cat([row_of(kind, 127) for kind in KINDS])
    temperature = torch.linspace(0, 2, len(logits))
    call = Call.create(logits, rules, temperature)
    for ours, theirs in zip(_laws_of_rows(call), _laws_of_batch(call), strict=True):
        assert torch.allclose(ours.double(), theirs.double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("temperature", [1e-300, 1e-40, 1e-6, 1e6, 1e40])
def test_any_temperature_has_a_law(temperature):
    logits = torch.tensor([[1.0, 0.5, -torch.inf, 1.0]])
    call = Call.create(logits, [], temperature)
    middle = 1.0 if temperature > 1 else 0.0
    for laws in (_laws_of_rows(call), _laws_of_batch(call)):
        assert torch.allclose(laws.weights, torch.tensor([[1.0, middle, 0.0, 1.0]]))
        assert torch.allclose(laws.kept_total, torch.tensor([2.0 + middle]).double())


def test_without_rules_all_mass_is_kept():
    logits = torch.cat([row_of(kind, 8193) for kind in KINDS])
    for temperature in (0.7, 1.0, 1.9):
        assert (sample(logits, temperature=temperature, seed=1).kept_mass == 1).all()


def test_greedy_is_certain():
    logits = torch.tensor([[0.0, 2.0, 2.0], [5.0, -1.0, 2.0]])
    drawn = sample(logits, [TopH(0.4)], temperature=0.0)
    assert drawn.token_ids.tolist() == [1, 0]
    assert drawn.logprobs.tolist() == [0.0, 0.0]
    assert drawn.kept_mass.tolist() == [1.0, 1.0]


def test_a_draw_is_named_by_seed_sequence_and_step():
    logits = torch.zeros(64, 5000)
    first = sample(logits, seed=1, step=2).token_ids
    assert torch.equal(first, sample(logits, seed=1, step=2).token_ids)
    assert not torch.equal(first, sample(logits, seed=2, step=2).token_ids)
    assert not torch.equal(first, sample(logits, seed=1, step=3).token_ids)
    # identical rows draw independently
    assert len(set(first.tolist())) > 32


def test_a_row_draws_the_same_in_any_batch():
    logits = torch.cat([row_of(KINDS[3], 9000, seed) for seed in range(6)])
    names = torch.tensor([10, 7, 3, 99, 4, 8])
    together = sample(logits, [TopH(0.9)], seed=5, sequence=names, step=4)
    order = torch.tensor([4, 1, 0])
    apart = sample(logits[order], [TopH(0.9)], seed=5, sequence=names[order], step=4)
    assert torch.equal(together.token_ids[order], apart.token_ids)
    assert torch.equal(together.logprobs[order], apart.logprobs)


def test_without_a_seed_torch_decides():
    logits = torch.zeros(32, 5000)
    torch.manual_seed(0)
    first, second = sample(logits).token_ids, sample(logits).token_ids
    torch.manual_seed(0)
    assert torch.equal(first, sample(logits).token_ids)
    assert not torch.equal(first, second)
    ours = [sample(logits, generator=torch.Generator().manual_seed(9)).token_ids for _ in range(2)]
    assert torch.equal(*ours)


def test_bad_rows_are_named():
    logits = torch.tensor([[0.0, 1.0], [0.0, float("nan")], [-torch.inf, -torch.inf]])
    with pytest.raises(ValueError, match=r"row 1 has a NaN logit; row 2 has no finite logit"):
        sample(logits, [TopH(0.4)], seed=0)


def test_check_names_the_rows_of_a_result():
    class Result:
        status = torch.tensor([0, 2, 0, 4], dtype=torch.int8)

    with pytest.raises(ValueError, match=r"row 1 has a logit of \+inf; row 3 has a parameter"):
        check(Result())
    check(sample(torch.zeros(2, 3), seed=0))


def test_an_empty_batch():
    drawn = sample(torch.empty(0, 7), [TopH(0.4)], seed=0)
    assert [len(column) for column in (drawn.token_ids, drawn.logprobs, drawn.status)] == [0, 0, 0]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"logprobs_mode": "both"}, ValueError, "'both'"),
        ({"backend": "triton"}, ValueError, "triton"),
        ({"temperature": -0.1}, ValueError, "-0.1"),
        ({"logits": torch.zeros(4)}, ValueError, r"\[batch, vocab\]"),
        ({"logits": torch.zeros(2, 4, dtype=torch.int32)}, TypeError, "int32"),
        ({"rules": ["min_p"]}, TypeError, "min_p"),
        ({"token_bitmask": [[1]]}, TypeError, "token_bitmask must be a tensor, got list"),
        ({"seed": True}, TypeError, "seed must be an integer or an int64 tensor, got True"),
        ({"step": True}, TypeError, "step must be an integer or an int64 tensor, got True"),
        ({"seed": None, "generator": 3}, TypeError, "generator must be a torch.Generator, got 3"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        sample(**{"logits": torch.zeros(2, 4), "seed": 0, **arguments})


@pytest.mark.parametrize("result", [3, None, torch.zeros(2)], ids=["number", "none", "tensor"])
def test_a_check_of_no_result(result):
    with pytest.raises(TypeError, match="result must be what sample or verify_block returned"):
        check(result)
