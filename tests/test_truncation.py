"""Truncation as a whole: chains of rules, transformers' warpers, and what holds for every rule."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import KINDS, SMALL_VOCABS, TIE_FREE, assert_right, row_of
from transformers.generation import logits_process as warpers

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
    Typical,
    truncate,
)
from warpdraft.abstract_rules import Rule
from warpdraft.kernels.support import (
    BAD_PARAMETER,
    EMPTY,
    NAN,
    POSITIVE_INFINITY,
    contains,
    count,
    kept_mass,
    mask,
)
from warpdraft.truncation import Call, resolve

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
    Typical(0.7),
]
MONOTONE = [
    (TopH, (0.1, 0.4, 0.7, 0.99, 1.0)),
    (MinP, (1.0, 0.5, 0.1, 1e-4, 0.0)),
    (TopK, (1, 2, 10, 99, 1000)),
    (TopP, (0.0, 0.2, 0.5, 0.95, 1.0)),
    (TopNSigma, (0.0, 0.5, 1.0, 3.0, 50.0)),
    (Epsilon, (0.5, 0.1, 1e-2, 1e-4, 0.0)),
    (Eta, (0.9, 0.1, 1e-2, 1e-4, 0.0)),
    (TopA, (1.0, 0.3, 0.1, 1e-3, 0.0)),
]

# rule and warper of the same meaning
PAIRS = {
    "top_h": (TopH(0.4, variant="transformers"), warpers.TopHLogitsWarper(0.4)),
    "top_k": (TopK(20, ties="all"), warpers.TopKLogitsWarper(20)),
    "top_p": (TopP(0.8), warpers.TopPLogitsWarper(0.8)),
    "min_p": (MinP(0.05), warpers.MinPLogitsWarper(0.05)),
    "typical": (Typical(0.6), warpers.TypicalLogitsWarper(0.6)),
    "epsilon": (Epsilon(0.01, ties="all"), warpers.EpsilonLogitsWarper(0.01)),
    "eta": (Eta(0.02, ties="all"), warpers.EtaLogitsWarper(0.02)),
    "min_p_keeping_3": (
        MinP(0.9, min_tokens_to_keep=3),
        warpers.MinPLogitsWarper(0.9, min_tokens_to_keep=3),
    ),
    "top_p_keeping_3": (
        TopP(0.01, min_tokens_to_keep=3),
        warpers.TopPLogitsWarper(0.01, min_tokens_to_keep=3),
    ),
    "top_k_keeping_3": (
        TopK(1, ties="all", min_tokens_to_keep=3),
        warpers.TopKLogitsWarper(1, min_tokens_to_keep=3),
    ),
    "epsilon_keeping_3": (
        Epsilon(0.9, ties="all", min_tokens_to_keep=3),
        warpers.EpsilonLogitsWarper(0.9, min_tokens_to_keep=3),
    ),
    "eta_keeping_3": (
        Eta(0.9, ties="all", min_tokens_to_keep=3),
        warpers.EtaLogitsWarper(0.9, min_tokens_to_keep=3),
    ),
}
TOKEN_IDS = torch.zeros(1, 1, dtype=torch.int64)

# eighths are exact in every dtype, and make ties
LOGITS = st.integers(-40, 40).map(lambda eighths: eighths / 8)
ROWS = st.lists(LOGITS | st.just(float("-inf")), min_size=1, max_size=40).filter(
    lambda row: max(row) > float("-inf")
)


def kept(logits, rules, temperature=1.0):
    return truncate(logits, rules, temperature=temperature) > -torch.inf


@pytest.mark.parametrize("first", PAIRS)
def test_every_ordered_pair_agrees_with_transformers(first):
    # float64: with no rounding to speak of the kept sets are equal, not almost
    logits = torch.cat([row_of(kind, 1000, seed) for kind in TIE_FREE for seed in range(2)])
    noise = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))
    logits = logits.double() + 1e-6 * noise.double()
    rule, warper = PAIRS[first]
    for temperature, second in itertools.product((1.0, 1.6), PAIRS):
        next_rule, next_warper = PAIRS[second]
        scores = next_warper(TOKEN_IDS, warper(TOKEN_IDS, logits / temperature))
        ours = kept(logits, [rule, next_rule], temperature)
        assert torch.equal(ours, scores > -torch.inf), second


@pytest.mark.parametrize("name", PAIRS)
def test_every_rule_agrees_with_its_warper(name):
    rule, warper = PAIRS[name]
    for vocab in (3, 50, 8193, 32000):
        logits = torch.cat([row_of(KINDS[3], vocab, seed) for seed in range(2)]).double()
        assert torch.equal(kept(logits, rule), warper(TOKEN_IDS, logits) > -torch.inf), vocab


@pytest.mark.parametrize("rule", [TopH(0.4, variant="transformers"), MinP(0.1)], ids=repr)
@pytest.mark.parametrize("vocab", [1000, 32000, 262144])
def test_float32_agrees_with_transformers_but_for_rounding(rule, vocab):
    logits = torch.cat([row_of(KINDS[3], vocab, seed) for seed in range(2)])
    warper = (
        warpers.TopHLogitsWarper(0.4) if isinstance(rule, TopH) else warpers.MinPLogitsWarper(0.1)
    )
    theirs = warper(TOKEN_IDS, logits)
    for row, row_theirs in zip(logits, theirs, strict=True):
        assert_right(row_theirs, row, [rule])
    for row, row_ours in zip(logits, truncate(logits, rule), strict=True):
        assert_right(row_ours, row, [rule])


def test_the_order_of_rules_matters():
    logits = torch.tensor([[0.4, 0.2, 0.2, 0.1, 0.1]]).log()
    assert kept(logits, [TopK(2), TopP(0.6)]).sum() == 1
    assert kept(logits, [TopP(0.6), TopK(2)]).sum() == 2


@pytest.mark.parametrize("first", RULES, ids=repr)
def test_every_ordered_pair_agrees_with_sort_and_scan(first):
    logits = torch.cat([row_of(kind, 127) for kind in KINDS])
    for second in RULES:
        for row, masked in zip(logits, truncate(logits, [first, second]), strict=True):
            assert_right(masked, row, [first, second])


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_the_batched_form_agrees_with_sort_and_scan(rule):
    # the form for other devices, on the CPU
    for vocab in SMALL_VOCABS:
        logits = torch.cat([row_of(kind, vocab) for kind in KINDS])
        resolved = Call.create(logits, rule, 1.3).resolve_batch()
        assert not resolved.status.any()
        for row, masked in zip(logits, mask(logits, resolved.support), strict=True):
            assert_right(masked, row, [rule], 1.3)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.lists(ROWS, min_size=1, max_size=3),
    st.lists(st.sampled_from(RULES), max_size=3),
    st.sampled_from([0.0, 0.3, 1.0, 2.0]),
    st.integers(1, 4),
    st.sampled_from(["lowest_id", "all"]),
)
def test_both_forms_and_the_scan_agree_on_any_chain(rows, rules, temperature, keep, ties):
    width = max(map(len, rows))
    logits = torch.tensor([row + [float("-inf")] * (width - len(row)) for row in rows])
    rules = [
        rule if isinstance(rule, Typical) else replace(rule, ties=ties, min_tokens_to_keep=keep)
        for rule in rules
    ]
    by_rows = truncate(logits, rules, temperature=temperature)
    by_batch = mask(logits, Call.create(logits, rules, temperature).resolve_batch().support)
    for row, ours, theirs in zip(logits, by_rows, by_batch, strict=True):
        if temperature == 0:
            assert (ours > -torch.inf).nonzero().tolist() == [
                [int((row == row.max()).nonzero()[0])]
            ]
            assert torch.equal(ours, theirs)
        else:
            assert_right(ours, row, rules, temperature)
            assert_right(theirs, row, rules, temperature)


@pytest.mark.parametrize(
    ("rule", "values"), MONOTONE, ids=lambda value: getattr(value, "__name__", "")
)
@settings(max_examples=20, deadline=None, derandomize=True)
@given(row=ROWS, temperature=st.sampled_from([0.5, 1.0, 2.0]))
def test_a_looser_parameter_keeps_more_and_the_loosest_everything(rule, values, row, temperature):
    logits = torch.tensor([row])
    masks = [kept(logits, rule(value), temperature) for value in values]
    for tight, loose in itertools.pairwise(masks):
        assert (loose | ~tight).all()
    assert masks[0].any()
    assert torch.equal(masks[-1], logits > -torch.inf)


@pytest.mark.parametrize("rule", RULES, ids=repr)
@settings(max_examples=20, deadline=None, derandomize=True)
@given(row=ROWS, shift=st.integers(-64, 64))
def test_a_shift_of_all_logits_changes_nothing(rule, row, shift):
    logits = torch.tensor([row], dtype=torch.float64)
    assert torch.equal(kept(logits, rule), kept(logits + shift, rule))


@pytest.mark.parametrize("rule", RULES, ids=repr)
@settings(max_examples=20, deadline=None, derandomize=True)
@given(row=st.lists(LOGITS, min_size=1, max_size=30, unique=True), data=st.data())
def test_token_ids_do_not_matter_without_ties(rule, row, data):
    order = torch.tensor(data.draw(st.permutations(range(len(row)))))
    logits = torch.tensor([row], dtype=torch.float64)
    assert torch.equal(kept(logits, rule)[:, order], kept(logits[:, order], rule))


@pytest.mark.parametrize("rule", RULES, ids=repr)
@settings(max_examples=20, deadline=None, derandomize=True)
@given(row=ROWS)
def test_something_is_kept_and_infinite_logits_stay(rule, row):
    logits = torch.tensor([row])
    masked = truncate(logits, rule)
    assert (masked > -torch.inf).any()
    assert torch.equal(masked[masked > -torch.inf], logits[masked > -torch.inf])


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_a_row_in_a_batch_equals_the_row_alone(rule):
    logits = torch.cat([row_of(kind, 8193) for kind in KINDS])
    alone = torch.cat([truncate(row[None], rule, temperature=1.4) for row in logits])
    assert torch.equal(truncate(logits, rule, temperature=1.4), alone)


@pytest.mark.parametrize(
    ("rule", "values"), MONOTONE, ids=lambda value: getattr(value, "__name__", "")
)
def test_tensor_parameters_equal_the_scalar_runs(rule, values):
    logits = torch.cat([row_of(KINDS[3], 1000, seed) for seed in range(len(values))])
    temperatures = (0.0, 0.5, 1.0, 2.0, 3.0)
    dtype = torch.int64 if rule is TopK else torch.float64
    together = truncate(
        logits,
        rule(torch.tensor(values, dtype=dtype)),
        temperature=torch.tensor(temperatures, dtype=torch.float64),
    )
    for row, value, temperature, masked in zip(logits, values, temperatures, together, strict=True):
        assert torch.equal(truncate(row[None], rule(value), temperature=temperature)[0], masked)


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_strides_do_not_matter_and_nothing_is_written_to(rule):
    logits = torch.cat([row_of(KINDS[3], 9000, seed) for seed in range(4)])
    expected = truncate(logits, rule)
    for view in (
        logits.T.contiguous().T,
        torch.stack([logits, logits], dim=-1)[..., 0],
        logits.flip(0).flip(0)[:],
        logits[0].expand(4, -1),
    ):
        before = view.clone()
        masked = truncate(view, rule)
        assert torch.equal(view, before)
        assert masked.data_ptr() != view.data_ptr()
        assert torch.equal(masked[0], expected[0])
        assert masked.is_contiguous()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_dtypes(rule, dtype):
    logits = torch.cat([row_of(kind, 8193).to(dtype) for kind in KINDS])
    masked = truncate(logits, rule)
    assert masked.dtype == dtype
    if dtype != torch.float64:
        # the same tokens as of the same numbers in float32
        assert torch.equal(masked.float(), truncate(logits.float(), rule))
    for row, row_masked in zip(logits, masked, strict=True):
        assert_right(row_masked, row, [rule])


def test_a_row_with_a_gradient_is_truncated_without_it():
    logits = torch.randn(2, 9, requires_grad=True)
    assert not truncate(logits, TopK(3)).requires_grad


def test_greedy_takes_the_lowest_id_and_ignores_the_rules():
    logits = torch.tensor([[0.0, 2.0, 2.0], [-0.0, 0.0, -1.0]])
    for rules in ([], TopK(3), [Typical(0.1)]):
        assert kept(logits, rules, 0.0).nonzero().tolist() == [[0, 1], [1, 0]]


def test_no_rules_keep_everything():
    logits = torch.randn(3, 50)
    assert torch.equal(truncate(logits, []), logits)


def test_the_least_finite_logit_is_cut_like_any_other():
    # what attention and suppression masks often write instead of -inf
    least = torch.finfo(torch.float32).min
    logits = torch.tensor([[least] * 6, [0.0, 1.0, *[least] * 4]])
    rules = [TopK(4), TopNSigma(3.0), TopK(3)]
    batch = mask(logits, Call.create(logits, rules, 1.0).resolve_batch().support)
    assert torch.equal(truncate(logits, rules), batch)
    assert torch.equal(kept(logits, rules).sum(-1), torch.tensor([3, 3]))
    assert torch.equal(kept(logits[:1], [TopK(4), TopP(0.5)]).sum(-1), torch.tensor([2]))


def test_an_empty_batch():
    assert truncate(torch.empty(0, 5), TopH(0.4)).shape == (0, 5)
    assert resolve(torch.empty(0, 5), TopH(0.4)).support.value.shape == (0,)


def test_the_support_says_what_truncate_does():
    logits = torch.cat([row_of(kind, 8193) for kind in KINDS])
    for rule in RULES:
        resolved = resolve(logits, rule, temperature=1.4)
        masked = truncate(logits, rule, temperature=1.4)
        assert torch.equal(contains(logits, resolved.support), masked > -torch.inf)
        assert torch.equal(mask(logits, resolved.support), masked)
        assert torch.equal(count(logits, resolved.support), (masked > -torch.inf).sum(-1))
        probs = (logits.double() / 1.4).softmax(-1)
        mass = torch.where(masked > -torch.inf, probs, 0.0).sum(-1)
        assert torch.allclose(kept_mass(logits, resolved.support, 1.4), mass, atol=1e-12)


BAD_ROWS = torch.tensor(
    [
        [0.0, 1.0, 2.0],
        [0.0, float("nan"), 1.0],
        [0.0, float("inf"), 1.0],
        [-float("inf")] * 3,
        [float("nan"), float("inf"), 1.0],
    ]
)


def test_bad_rows_have_a_status_and_an_empty_support():
    expected = [0, NAN, POSITIVE_INFINITY, EMPTY, NAN]
    for form in (Call.resolve_rows, Call.resolve_batch):
        resolved = form(Call.create(BAD_ROWS, [TopH(0.4), MinP(0.1), Typical(0.5)], 1.0))
        assert resolved.status.tolist() == expected
        assert count(BAD_ROWS, resolved.support).bool().tolist() == [True, *[False] * 4]


def test_bad_tensor_parameters_have_a_status():
    logits = torch.randn(4, 30)
    for rule, temperature in (
        (MinP(torch.tensor([0.1, -0.1, 0.2, 0.3])), torch.tensor([1.0, 1.0, -1.0, float("nan")])),
        (TopK(torch.tensor([3, 0, 2, 1])), torch.tensor([1.0, 1.0, float("inf"), -0.5])),
    ):
        for form in (Call.resolve_rows, Call.resolve_batch):
            status = form(Call.create(logits, rule, temperature)).status
            assert status.tolist() == [0, *[BAD_PARAMETER] * 3]
        with pytest.raises(ValueError, match="row 1 has a parameter outside its range"):
            truncate(logits, rule, temperature=temperature)


def test_truncate_names_the_bad_rows():
    with pytest.raises(ValueError, match=r"row 1 has a NaN.*row 2 has.*\+inf.*row 3 has no finite"):
        truncate(BAD_ROWS, TopH(0.4))


@pytest.mark.parametrize(
    ("logits", "error", "message"),
    [
        (torch.zeros(3), ValueError, r"\[batch, vocab\], got \[3\]"),
        (torch.zeros(1, 2, 3), ValueError, r"got \[1, 2, 3\]"),
        (torch.zeros(2, 0), ValueError, "empty vocabulary"),
        (torch.zeros(2, 3, dtype=torch.int64), TypeError, "torch.int64"),
        (torch.zeros(2, 3, dtype=torch.complex64), TypeError, "torch.complex64"),
        ([[1.0]], TypeError, "logits must be a tensor, got list"),
        (torch.zeros(2, 3).to_sparse(), TypeError, "logits must be a dense tensor, got layout"),
        (torch.tensor(0.0), ValueError, r"\[batch, vocab\], got \[\]"),
    ],
)
def test_bad_logits(logits, error, message):
    with pytest.raises(error, match=message):
        truncate(logits, TopH(0.4))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: TopH(0.0), ValueError, r"alpha must be in \(0, inf\], got 0.0"),
        (lambda: TopH(float("nan")), ValueError, "got nan"),
        (lambda: TopH(1.5, variant="transformers"), ValueError, r"\(0, 1\], got 1.5"),
        (lambda: TopH(0.4, variant="other"), ValueError, "'other'"),
        (lambda: TopH(2.0, variant="other"), ValueError, "'other'"),
        (
            lambda: TopK(min_tokens_to_keep=-(10**5000)),
            ValueError,
            "at least 1, got one of 16610 bits",
        ),
        (lambda: TopH("0.4"), TypeError, "'0.4'"),
        (lambda: TopH(True), TypeError, "True"),
        (lambda: MinP(-0.1), ValueError, r"min_p must be in \[0, 1\], got -0.1"),
        (lambda: MinP(1.1), ValueError, "got 1.1"),
        (lambda: TopK(0), ValueError, r"top_k must be in \[1, inf\], got 0"),
        (lambda: TopK(2.0), TypeError, "an integer"),
        (lambda: TopK(torch.tensor([2.0])), TypeError, "float32"),
        (lambda: TopP(1.01), ValueError, "got 1.01"),
        (lambda: TopNSigma(-1), ValueError, "got -1"),
        (lambda: Epsilon(1.0), ValueError, r"\[0, 1\), got 1.0"),
        (lambda: Eta(-1e-9), ValueError, "eta_cutoff"),
        (lambda: TopA(2), ValueError, "top_a"),
        (lambda: PLess(normalized=1), TypeError, "normalized"),
        (lambda: Typical(0.0), ValueError, r"typical_p must be in \(0, 1\], got 0.0"),
        (lambda: MinP(torch.tensor([[0.1]])), ValueError, r"\[1, 1\]"),
        (lambda: MinP(torch.tensor([True])), TypeError, "torch.bool"),
        (lambda: MinP(0.1, ties="some"), ValueError, "'some'"),
        (lambda: MinP(0.1, min_tokens_to_keep=0), ValueError, "at least 1, got 0"),
        (lambda: MinP(0.1, min_tokens_to_keep=True), TypeError, "True"),
        (lambda: MinP(0.1, min_tokens_to_keep=1 << 63), ValueError, "at most|in \\[1, 9223"),
        (lambda: TopK(10**400), ValueError, "top_k must be in .* got an integer of 1329 bits"),
        (lambda: TopH(10**400), ValueError, "alpha must be in .* got an integer of 1329 bits"),
    ],
)
def test_bad_parameters(make, error, message):
    with pytest.raises(error, match=message):
        make()


class Neither(Rule):
    """It narrows no support by a threshold and is no temperature rule."""

    parameters = ()

    def apply_row(self, row, temperature, values):
        return 2 * temperature

    def apply(self, logits, support, temperature, values):
        return support, 2 * temperature


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"temperature": -1.0}, ValueError, "temperature must be in .*got -1.0"),
        ({"temperature": float("nan")}, ValueError, "got nan"),
        ({"temperature": float("inf")}, ValueError, "got inf"),
        ({"temperature": "1"}, TypeError, "'1'"),
        ({"temperature": torch.ones(3)}, ValueError, r"\[2\], got \[3\]"),
        ({"rules": MinP(torch.ones(3))}, ValueError, r"min_p must have shape \[2\]"),
        ({"rules": [0.4]}, TypeError, "0.4"),
        ({"rules": TopH}, TypeError, "TopH"),
        ({"rules": ""}, TypeError, "rules must be truncation rules"),
        ({"rules": Neither()}, TypeError, "rules must be truncation rules"),
        ({"temperature": 10**400}, ValueError, "temperature must be in .* an integer of 1329 bits"),
        ({"row_indices": [0]}, TypeError, "row_indices must be a tensor, got list"),
        ({"token_bitmask": [[1]]}, TypeError, "token_bitmask must be a tensor, got list"),
        ({"out": [[0.0] * 4] * 2}, TypeError, "out must be a tensor, got list"),
        ({"backend": "triton"}, ValueError, "triton"),
        ({"backend": "cuda"}, ValueError, "cuda"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        truncate(torch.zeros(2, 4), **{"rules": TopH(0.4), **arguments})


def test_out_may_be_the_logits_or_other_memory_alone():
    both = torch.tensor([[9.0, 1.0], [3.0, 4.0], [5.0, 7.0], [0.0, 2.0]])
    expected = truncate(both, TopK(1))
    with pytest.raises(ValueError, match="logits itself, or share no memory"):
        truncate(both[:-1], TopK(1), out=both[1:])
    with pytest.raises(ValueError, match="logits itself, or share no memory"):
        truncate(both[:1].expand(2, 2), TopK(1), out=both[:2])
    with pytest.raises(ValueError, match=r"rows that do not overlap, got strides \(0, 1\)"):
        truncate(both[:2], TopK(1), out=torch.zeros(1, 2).expand(2, 2))
    # the halves of one buffer, and a buffer in place
    assert torch.equal(truncate(both[:2], TopK(1), out=both[2:]), expected[:2])
    assert torch.equal(truncate(both[:2], TopK(1), out=both[:2]), expected[:2])
    assert torch.equal(both, expected[:2].repeat(2, 1))


@pytest.mark.parametrize("vocab", [8, 5000, 20_000])
def test_a_cut_at_zero_where_denormal_numbers_are_flushed(vocab):
    logits = torch.zeros(1, vocab)
    logits[0, 3] = 1.0
    expected = truncate(logits, TopK(vocab // 2))
    torch.set_flush_denormal(True)
    try:
        assert torch.equal(truncate(logits, TopK(vocab // 2)), expected)
    finally:
        torch.set_flush_denormal(False)
    assert int(expected.isfinite().sum()) == vocab // 2


def test_rules_are_values():
    assert TopH(0.4) == TopH(alpha=0.4, variant="paper", ties="lowest_id", min_tokens_to_keep=1)
    assert hash(TopH(0.4)) == hash(TopH(0.4))
    with pytest.raises(AttributeError):
        TopH(0.4).alpha = 0.5
    assert not hasattr(TopH(0.4), "__dict__")
