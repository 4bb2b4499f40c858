"""The Triton kernels of truncation and sampling in Triton's interpreter, against the scans in float64.

Run by test_truncation_triton.py in a process of its own, because Triton decides at its import whether
it interprets; `TRITON_INTERPRET=1 python -m pytest -n 0 tests/interpreted_truncation.py` runs it alone.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from reference import (
    KINDS,
    assert_right,
    bf16_ties,
    gaussian,
    masked_tail,
    one_hot,
    row_of,
    spike,
    two_values,
    uniform,
)

from warpdraft import (
    Epsilon,
    Eta,
    MinP,
    PLess,
    TopA,
    TopH,
    TopK,
    TopNSigma,
    TopP,
    sample,
    truncate,
)
from warpdraft.backend import operations_of
from warpdraft.kernels.noise import Noise
from warpdraft.kernels.support import BAD_PARAMETER, EMPTY, NAN, OK, POSITIVE_INFINITY
from warpdraft.kernels.truncation_call import TruncationCall
from warpdraft.kernels.truncation_plan import plan
from warpdraft.kernels.truncation_triton import sample_triton, support_triton, truncate_triton

# NumPy interprets: -inf - -inf and log(0) are meant
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

RULES = [
    TopH(0.4),
    TopH(0.8),
    TopH(0.5, variant="transformers"),
    MinP(0.1),
    TopK(7),
    TopP(0.8),
    TopNSigma(1.5),
    Epsilon(0.02),
    Eta(0.05),
    TopA(0.3),
    PLess(),
    PLess(normalized=True),
]
FLAT = [gaussian, uniform, two_values, bf16_ties, spike, masked_tail]

# 129 groups and a token of the next one: more than the candidates hold, and no multiple of 32
OVERFLOWING = 4129
# three slices, the last one ragged
SLICED = 20_001
LARGE = 128_256


def rows_of(kinds, vocab):
    return torch.cat([row_of(kind, vocab) for kind in kinds])


def assert_all_right(logits, rules, temperature=1.0):
    before = logits.clone()
    truncated = truncate(logits, rules, temperature=temperature, backend="triton")
    assert torch.equal(logits, before)
    assert truncated.dtype == logits.dtype
    for row, masked in zip(logits, truncated, strict=True):
        assert_right(masked, row, rules, temperature)


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_every_rule_on_hostile_rows(rule):
    assert_all_right(rows_of(KINDS, 127), [rule], 1.3)


@pytest.mark.parametrize("vocab", [1, 2, 31, 33])
def test_tiny_vocabularies(vocab):
    for rule in (TopH(0.4), MinP(0.1), TopP(0.8), TopNSigma(1.5)):
        assert_all_right(rows_of([gaussian, uniform], vocab), [rule])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("rule", [TopH(0.7), MinP(0.1)], ids=repr)
def test_halves(dtype, rule):
    # more ties than candidates
    assert_all_right(rows_of([gaussian, bf16_ties], OVERFLOWING).to(dtype), [rule], 1.5)


@pytest.mark.parametrize(
    ("rules", "kinds"),
    [
        ([TopH(0.85)], FLAT),
        ([TopP(0.9)], [gaussian, two_values, spike]),
        ([TopK(3000)], [gaussian, uniform, bf16_ties]),
        ([TopK(3000, ties="all")], [gaussian, bf16_ties]),
        ([TopP(0.95), TopH(0.9)], [gaussian, two_values]),
        ([TopNSigma(2.5), PLess()], [gaussian, masked_tail]),
        ([MinP(1e-3), TopNSigma(1.0), TopP(0.7)], [gaussian, uniform]),
        ([MinP(0.9, min_tokens_to_keep=3000)], [gaussian, two_values]),
        ([TopP(0.9), PLess(min_tokens_to_keep=200, ties="all")], [gaussian, bf16_ties]),
    ],
    ids=str,
)
def test_supports_beyond_the_candidates(rules, kinds):
    assert_all_right(rows_of(kinds, OVERFLOWING), rules)


@pytest.mark.parametrize("rule", [TopH(0.9), TopK(5000)], ids=repr)
def test_searches_over_several_slices(rule):
    assert_all_right(rows_of([gaussian, two_values], SLICED), [rule], 1.5)


@pytest.mark.parametrize("kept", [2500, 5000])
def test_a_crowd_that_the_rounds_cannot_part(kept):
    # thousands of logits closer than a 225th of the interval, half of them equal
    row = torch.linspace(0.0, 1e-5, SLICED)
    row[::2] = 5e-6
    row[7], row[9] = 30.0, -30.0
    assert_all_right(row[None], [TopK(kept)])


def test_more_groups_than_a_program_holds_at_once(monkeypatch):
    logits = rows_of([gaussian, uniform, bf16_ties], OVERFLOWING)
    operations = operations_of([TopK(90)])
    expected, _ = support_triton(logits, operations, 1.0)
    monkeypatch.setattr("warpdraft.kernels.truncation_call.MAX_GROUPS_AT_ONCE", 64)
    found, _ = support_triton(logits, operations, 1.0)
    assert torch.equal(found.value, expected.value)
    assert torch.equal(found.index, expected.index)
    assert_all_right(logits, [TopK(90)])


def test_a_large_vocabulary():
    # confident, and flat at the temperature of the second row
    row = row_of(gaussian, LARGE)
    confident = row * 1.2
    confident[0, 77] = 19.0
    assert_all_right(torch.cat([confident, row]), [TopH(0.4)])
    drawn = [sample(row, [TopH(0.6)], seed=3, backend=name) for name in ("triton", "torch")]
    assert torch.equal(drawn[0].token_ids, drawn[1].token_ids)


@pytest.mark.parametrize(
    "rules",
    [
        [TopK(50), TopP(0.9), TopH(0.4), MinP(0.05)],
        [MinP(0.02, min_tokens_to_keep=5, ties="all"), TopK(3)],
        [TopP(0.9, ties="all"), TopH(0.5, ties="all")],
        [TopH(0.5, variant="transformers", ties="all", min_tokens_to_keep=2), TopA(0.2)],
        [TopP(0.0), Eta(0.9, min_tokens_to_keep=4)],
        [TopH(0.1, min_tokens_to_keep=6), Epsilon(0.2, min_tokens_to_keep=3)],
    ],
    ids=str,
)
def test_chains(rules):
    assert_all_right(rows_of([gaussian, two_values, one_hot, bf16_ties], 1000), rules, 0.8)


def test_rows_with_parameters_of_their_own():
    logits = rows_of([gaussian] * 5, 300)
    alpha = torch.tensor([0.2, 0.5, 0.9, 1.0, 0.5])
    heat = torch.tensor([0.7, 1.0, 1.4, 1.0, 0.0])
    top_k = torch.tensor([1, 5, 200, 299, 40])
    truncated = truncate(logits, [TopH(alpha), TopK(top_k)], temperature=heat, backend="triton")
    for number in range(4):
        rules = [TopH(float(alpha[number])), TopK(int(top_k[number]))]
        assert_right(truncated[number], logits[number], rules, float(heat[number]))
    assert (truncated[4] > -torch.inf).nonzero().tolist() == [[int(logits[4].argmax())]]


def test_a_bad_row_gets_a_status_and_leaves_the_others_alone():
    logits = rows_of([gaussian], 50).expand(6, 50).clone()
    logits[1, 3], logits[2, 4], logits[3] = math.nan, math.inf, -math.inf
    rule = MinP(torch.tensor([0.1, 0.1, 0.1, 0.1, 1.5, 0.1]))
    valid = rule.range.holds_tensor(rule.min_p)
    operations = operations_of([rule])
    support, status = support_triton(logits, operations, 1.0, valid=valid)
    assert status.tolist() == [OK, NAN, POSITIVE_INFINITY, EMPTY, BAD_PARAMETER, OK]
    assert support.value[[1, 2, 3, 4]].eq(torch.inf).all()
    assert support.value[0] == support.value[5] < torch.inf
    noise = Noise.create(6, seed=1, device="cpu")
    drawn = sample_triton(logits, operations, 1.0, noise, valid=valid)
    assert drawn.token_ids[1:5].eq(-1).all()
    assert drawn.logprobs[1:5].isnan().all()
    assert drawn.kept_mass[1:5].isnan().all()
    assert (drawn.token_ids[[0, 5]] >= 0).all()
    with pytest.raises(ValueError, match=r"row 1 has a NaN logit; row 2 .* row 4 has a parameter"):
        truncate(logits, rule, backend="triton")


def test_rows_stay_bit_for_bit_the_same_in_any_batch():
    logits = rows_of([gaussian, spike], OVERFLOWING)
    operations = operations_of([TopH(0.6)])
    together, _ = support_triton(logits, operations, 1.1)
    for number in range(2):
        alone, _ = support_triton(logits[number : number + 1], operations, 1.1)
        assert alone.value[0] == together.value[number]
        assert alone.index[0] == together.index[number]


@pytest.mark.parametrize("vocab", [1000, OVERFLOWING])
@pytest.mark.parametrize(
    "layout", ["padded-rows", "every-other-column", "expanded"], ids=lambda name: name
)
def test_rows_that_do_not_follow_each_other(vocab, layout):
    row = rows_of([gaussian, bf16_ties], vocab)
    logits = {
        "padded-rows": torch.nn.functional.pad(row, (0, 5), value=99.0)[:, :vocab],
        "every-other-column": row.repeat_interleave(2, dim=1)[:, ::2],
        "expanded": row[:1].expand(2, vocab),
    }[layout]
    assert_all_right(logits, [MinP(0.05)])


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_rows_by_index_in_place_and_into_another_tensor(backend):
    logits = rows_of([gaussian, two_values, spike, bf16_ties], 200)
    rows = torch.tensor([2, 0])
    rule = TopH(torch.tensor([0.3, 0.7]))
    expected = logits.clone()
    expected[2] = truncate(logits[2:3], TopH(0.3))[0]
    expected[0] = truncate(logits[:1], TopH(0.7))[0]
    copied = truncate(logits, rule, row_indices=rows, backend=backend)
    assert torch.equal(copied, expected)
    wide = torch.zeros(4, 256)
    out = wide[:, :200]
    assert truncate(logits, rule, row_indices=rows, out=out, backend=backend) is out
    assert torch.equal(out[[0, 2]], expected[[0, 2]])
    assert not wide[[1, 3]].any()
    assert not wide[:, 200:].any()
    assert truncate(logits, rule, row_indices=rows, out=logits, backend=backend) is logits
    assert torch.equal(logits, expected)


@pytest.mark.parametrize("rules", [[], [TopH(0.6)], [MinP(0.02)]], ids=str)
@pytest.mark.parametrize("vocab", [40, OVERFLOWING])
def test_a_bitmask_is_minus_infinity(vocab, rules):
    logits = rows_of([gaussian, bf16_ties], vocab)
    random = np.random.default_rng(4)
    allowed = random.random((2, -(-vocab // 32) * 32)) < 0.4
    allowed[:, 5] = True
    words = np.packbits(allowed, axis=1, bitorder="little").view(np.int32)
    masked = logits.masked_fill(~torch.from_numpy(allowed[:, :vocab]), -torch.inf)
    bitmask = torch.from_numpy(words)
    for backend in ("triton", "torch"):
        found = truncate(logits, rules, token_bitmask=bitmask, backend=backend)
        assert torch.equal(found, truncate(masked, rules))
        drawn = sample(logits, rules, seed=8, token_bitmask=bitmask, backend=backend)
        expected = sample(masked, rules, seed=8)
        assert torch.equal(drawn.token_ids, expected.token_ids)
        torch.testing.assert_close(drawn.logprobs, expected.logprobs, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize(
    ("vocab", "rules", "mode"),
    [
        (900, [], "raw"),
        (900, [TopH(0.4)], "raw"),
        (900, [TopK(50), TopP(0.9), TopH(0.4), MinP(0.05)], "processed"),
        # all tokens in one program, too many for a direct race
        (2000, [], "processed"),
        # few tokens in many groups, and stages over slices
        (SLICED, [TopK(400, ties="all")], "processed"),
        (SLICED, [], "raw"),
    ],
    ids=str,
)
def test_tokens_are_those_of_plain_torch(vocab, rules, mode):
    logits = rows_of([gaussian, uniform, spike, bf16_ties], vocab)
    sequence, step = torch.tensor([5, 2**40 + 3, 7, 1]), torch.tensor([0, 9, 2**31 + 1, 4])
    heat = torch.tensor([1.3, 0.9, 1.0, 0.0])
    found, expected = (
        sample(
            logits,
            rules,
            temperature=heat,
            seed=torch.tensor([3, -(2**63), 2**63 - 1, 0]),
            sequence=sequence,
            step=step,
            logprobs_mode=mode,
            backend=backend,
        )
        for backend in ("triton", "torch")
    )
    assert torch.equal(found.token_ids, expected.token_ids)
    torch.testing.assert_close(found.logprobs, expected.logprobs, rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(found.kept_mass, expected.kept_mass, rtol=1e-5, atol=2e-6)
    assert not found.status.any()


def test_sums_of_slices_against_float64():
    logits = rows_of([gaussian, spike, masked_tail], SLICED)
    rules = [PLess(), TopNSigma(1.0), TopK(3000)]
    call = TruncationCall(logits, operations_of(rules), 1.7, None, None, None)
    call.resolve()
    # the plan restricts the sums of two rows further on; the whole rows are read again
    call.row_stats(restricted=False, raw=True)
    for row, sums in zip(logits.double(), call.stats.permute(1, 2, 0).double(), strict=True):
        for part, found in zip(row.split(8192), sums, strict=True):
            x = part[part > -torch.inf]
            d = x - x.max()
            weights = torch.exp(d / 1.7)
            weights_but_one = weights.sort().values[:-1]
            expected = [
                x.max(),
                weights_but_one.sum(),
                (weights * d).sum() / (1.7 * math.log(2)),
                weights.square().sum(),
                len(x),
                x.mean(),
                (x - x.mean()).square().sum(),
                x.min(),
                d.exp().sum(),
            ]
            expected = torch.tensor([float(value) for value in expected])
            torch.testing.assert_close(found.float(), expected, rtol=3e-6, atol=1e-7)
    maxima = torch.nn.functional.pad(logits, (0, -SLICED % 32), value=-torch.inf)
    assert torch.equal(call.group_maxima, maxima.unflatten(1, (-1, 32)).amax(-1))


@pytest.mark.parametrize(
    ("rules", "vocab", "waits"),
    [
        ([MinP(0.1)], LARGE, []),
        ([TopH(0.4)], LARGE, ["bracket"]),
        ([TopH(0.4)], 4096, []),
        ([TopH(0.4, variant="transformers")], LARGE, []),
        ([TopK(50), TopP(0.9), TopH(0.4), MinP(0.05)], LARGE, []),
        ([TopK(50, ties="all"), TopP(0.9)], LARGE, ["sums", "bracket"]),
        ([TopK(torch.tensor([50]))], LARGE, ["bracket"]),
        ([TopK(128)], LARGE, ["bracket"]),
        ([TopP(0.9), MinP(0.1), Epsilon(0.1)], LARGE, ["bracket", "sums"]),
        ([MinP(0.1, min_tokens_to_keep=127)], LARGE, []),
        ([MinP(0.1, min_tokens_to_keep=128)], LARGE, ["bracket"]),
    ],
    ids=str,
)
def test_launches_follow_from_shapes_and_rules(rules, vocab, waits):
    assert plan(operations_of(rules), vocab) == waits


class OwnMinP(MinP):
    """A caller's own rule."""


@pytest.mark.parametrize(
    ("logits", "rules", "reason"),
    [
        (torch.zeros(1, 4, dtype=torch.float64), [MinP(0.1)], "float64"),
        (
            torch.zeros(1, 4),
            [TopH(0.4, variant="transformers", min_tokens_to_keep=101)],
            "min_tokens_to_keep=101",
        ),
        (torch.zeros(1, 4), [TopH(0.4, variant="transformers")] * 7, "14 operations"),
        (torch.zeros(1, 4), [OwnMinP(0.1)], "OwnMinP is none of the rules"),
    ],
    ids=["float64", "tokens-to-keep", "operations", "own-rule"],
)
def test_calls_that_the_kernels_refuse(logits, rules, reason):
    for function in (truncate, sample):
        with pytest.raises(ValueError, match=f"backend='triton' cannot run this call: .*{reason}"):
            function(logits, rules, backend="triton")
        function(logits, rules, backend="auto")


def test_an_empty_batch():
    assert truncate(torch.zeros(0, 9), MinP(0.1), backend="triton").shape == (0, 9)
    assert sample(torch.zeros(0, 9), backend="triton", seed=1).token_ids.shape == (0,)
    truncated, status = truncate_triton(torch.zeros(0, 9), (), 1.0)
    assert truncated.shape == (0, 9)
    assert status.shape == (0,)
