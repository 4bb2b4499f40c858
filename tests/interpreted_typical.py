"""Locally typical sampling by the Triton kernels in the interpreter, against the scans in float64.

Run by test_typical.py in a process of its own, because Triton decides at its import whether it
interprets; `TRITON_INTERPRET=1 python -m pytest -n 0 tests/interpreted_typical.py` runs it alone.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from reference import (
    KINDS,
    assert_right,
    bf16_ties,
    far_apart,
    gaussian,
    one_hot,
    row_of,
    spike,
    two_values,
    uniform,
)

from warpdraft import Eta, MinP, PLess, TopH, TopK, TopNSigma, TopP, Typical, sample, truncate
from warpdraft.backend import operations_of
from warpdraft.kernels.bracket_search_triton import COLLECTED
from warpdraft.kernels.row_stats_triton import (
    F_COMPLETE_VALUE,
    F_KEPT_EXCESS,
    I_BRACKETED,
    I_TOP_ID,
)
from warpdraft.kernels.truncation_call import TruncationCall
from warpdraft.kernels.truncation_plan import plan
from warpdraft.kernels.truncation_triton import support_triton
from warpdraft.truncation import resolve

# NumPy interprets: -inf - -inf and log(0) are meant
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

# 129 groups and a token of the next one: more than the candidates hold, and no multiple of 32
OVERFLOWING = 4129
# three slices, the last one ragged
SLICED = 20_001
LARGE = 128_256


def rows_of(kinds, vocab):
    return torch.cat([row_of(kind, vocab) for kind in kinds])


def assert_all_right(logits, rules, temperature=1.0):
    truncated = truncate(logits, rules, temperature=temperature, backend="triton")
    for row, masked in zip(logits, truncated, strict=True):
        assert_right(masked, row, rules, temperature)


def checked_call(logits, rules):
    """A call that has been resolved and whose mask is right."""
    call = TruncationCall(logits, operations_of(rules), 1.0, None, None, None)
    call.resolve()
    masked = torch.empty_like(logits)
    call.mask(masked)
    for row, found in zip(logits, masked, strict=True):
        assert_right(found, row, rules)
    return call


@pytest.mark.parametrize("rule", [Typical(0.9), Typical(0.2, min_tokens_to_keep=5)], ids=repr)
@pytest.mark.parametrize("vocab", [1, 31, 1000])
def test_hostile_rows(vocab, rule):
    assert_all_right(rows_of(KINDS, vocab), [rule], 1.7)


def test_everything():
    assert_all_right(rows_of(KINDS, 127), [Typical(1.0)])


@pytest.mark.parametrize(
    ("rule", "kinds", "vocab", "temperature"),
    [
        (Typical(0.9), KINDS, OVERFLOWING, 1.0),
        (Typical(0.3), [gaussian, uniform], SLICED, 1.5),
        # more tokens than have any mass
        (Typical(0.9, min_tokens_to_keep=300), [gaussian, spike, far_apart], OVERFLOWING, 0.1),
    ],
    ids=["all-kinds", "slices", "tokens-to-keep"],
)
def test_intervals_beyond_the_candidates(rule, kinds, vocab, temperature):
    assert_all_right(rows_of(kinds, vocab), [rule], temperature)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_halves(dtype):
    assert_all_right(rows_of([gaussian, bf16_ties], OVERFLOWING).to(dtype), [Typical(0.7)], 1.5)


def test_an_interval_below_all_candidates():
    logits = rows_of([gaussian], SLICED) * 0.4
    call = checked_call(logits, [Typical(0.3)])
    assert call.upper[0] < call.floats[0, F_COMPLETE_VALUE.value]
    token = call.integers[0, I_TOP_ID.value]
    assert call.value[0] <= logits[0, token] <= call.upper[0]
    for rules in ([Typical(0.3), TopH(0.9)], [Typical(0.3), TopK(40), MinP(0.9)]):
        assert_all_right(logits, rules)


@pytest.mark.parametrize("typical_p", [0.1, 0.6])
def test_a_crowd_that_the_rounds_cannot_part(typical_p):
    # thousands of logits closer than a 225th of the interval, half of them equal
    row = 1e-5 * torch.linspace(0.0, 1.0, SLICED) ** 2
    row[::2] = 3e-6
    row[9] = -30.0
    call = checked_call(row[None], [Typical(typical_p)])
    assert call.integers[0, I_BRACKETED.value] > COLLECTED.value


@pytest.mark.parametrize(
    "rules",
    [
        [TopK(50), Typical(0.5), TopP(0.8)],
        [TopP(0.9), Typical(0.6), TopK(5)],
        [Typical(0.8), Typical(0.5)],
        [Typical(0.5), MinP(0.3, min_tokens_to_keep=3)],
        [Typical(0.7), TopNSigma(1.0), Eta(0.1)],
        [Typical(0.4), TopH(0.4, variant="transformers", ties="all"), PLess()],
    ],
    ids=str,
)
def test_chains(rules):
    assert_all_right(rows_of([gaussian, two_values, one_hot], 300), rules, 0.8)
    assert_all_right(rows_of([gaussian], OVERFLOWING), rules, 2.0)


def test_a_large_vocabulary():
    # confident, and flat
    row = row_of(gaussian, LARGE)
    confident = row * 1.2
    confident[0, 77] = 19.0
    assert_all_right(torch.cat([confident, row]), [Typical(0.9)])


def test_the_interval_is_that_of_plain_torch():
    logits = rows_of([gaussian, bf16_ties, spike], OVERFLOWING)
    found, status = support_triton(logits, operations_of([Typical(0.6)]), 1.0)
    expected = resolve(logits, Typical(0.6)).support
    assert not status.any()
    assert torch.equal(found.upper, expected.upper)
    assert torch.equal(found.value, expected.value)
    assert torch.equal(found.index, expected.index)


def test_rows_with_parameters_of_their_own():
    logits = rows_of([gaussian] * 4, 300)
    typical_p = torch.tensor([0.2, 0.95, 1.0, 0.5])
    heat = torch.tensor([0.7, 1.4, 1.0, 0.0])
    truncated = truncate(
        logits, [Typical(typical_p), MinP(0.2)], temperature=heat, backend="triton"
    )
    for number in range(3):
        rules = [Typical(float(typical_p[number])), MinP(0.2)]
        assert_right(truncated[number], logits[number], rules, float(heat[number]))
    assert (truncated[3] > -torch.inf).nonzero().tolist() == [[int(logits[3].argmax())]]


def test_rows_stay_bit_for_bit_the_same_in_any_batch():
    logits = rows_of([gaussian, two_values], OVERFLOWING)
    operations = operations_of([Typical(0.4)])
    together, _ = support_triton(logits, operations, 1.1)
    for number in range(2):
        alone, _ = support_triton(logits[number : number + 1], operations, 1.1)
        assert alone.value[0] == together.value[number]
        assert alone.upper[0] == together.upper[number]


def test_a_bitmask_is_minus_infinity():
    logits = rows_of([gaussian], OVERFLOWING)
    allowed = np.random.default_rng(4).random((1, -(-OVERFLOWING // 32) * 32)) < 0.4
    words = np.packbits(allowed, axis=1, bitorder="little").view(np.int32)
    masked = logits.masked_fill(~torch.from_numpy(allowed[:, :OVERFLOWING]), -torch.inf)
    rules = [Typical(0.4), TopP(0.8)]
    found = truncate(logits, rules, token_bitmask=torch.from_numpy(words), backend="triton")
    assert torch.equal(found, truncate(masked, rules))


DROPPED = torch.cat([torch.tensor([[0.4, *[share / 3000] * 3000]]).log() for share in (0.1, 0.6)])
"""Of the first row the most likely token stays, of the second it goes."""


@pytest.mark.parametrize(
    ("logits", "rules", "mode"),
    [
        (DROPPED[:, :300], [Typical(0.5)], "processed"),
        (DROPPED, [Typical(0.5)], "raw"),
        (rows_of([gaussian, bf16_ties], 900), [TopK(50), Typical(0.3), TopP(0.5)], "raw"),
        (rows_of([gaussian, two_values], SLICED), [Typical(0.3)], "processed"),
    ],
    ids=["few", "stages", "candidates", "slices"],
)
def test_tokens_are_those_of_plain_torch(logits, rules, mode):
    heat = torch.tensor([1.0, 1.3])
    found, expected = (
        sample(logits, rules, temperature=heat, seed=5, logprobs_mode=mode, backend=backend)
        for backend in ("triton", "torch")
    )
    assert torch.equal(found.token_ids, expected.token_ids)
    torch.testing.assert_close(found.logprobs, expected.logprobs, rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(found.kept_mass, expected.kept_mass, rtol=1e-5, atol=2e-6)


def test_the_sum_over_an_interval_is_left_for_other_launches():
    logits = rows_of([gaussian, two_values], OVERFLOWING)
    rules = [TopK(50), Typical(0.4)]
    call = TruncationCall(logits, operations_of(rules), 1.0, None, None, None, kept=True)
    call.resolve()
    assert not call.waits_for_kept
    kept = truncate(logits, rules).double()
    expected = (kept - kept.amax(-1, keepdim=True)).exp().sum(-1)
    found = 1 + call.floats[:, F_KEPT_EXCESS.value].double()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("rules", "vocab", "waits"),
    [
        ([Typical(0.9)], LARGE, ["bracket"]),
        ([Typical(0.9)], 4096, []),
        ([TopK(50), Typical(0.9), MinP(0.1)], LARGE, []),
        ([Typical(0.9), MinP(0.1), TopK(50)], LARGE, ["bracket", "sums"]),
        ([MinP(0.1), Typical(0.9), TopK(50)], LARGE, ["sums", "bracket", "sums"]),
    ],
    ids=str,
)
def test_launches_follow_from_shapes_and_rules(rules, vocab, waits):
    assert plan(operations_of(rules), vocab) == waits
