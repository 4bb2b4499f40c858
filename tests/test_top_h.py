"""top-H, both variants."""

from __future__ import annotations

import pytest
import torch
from reference import VOCABS, assert_right_on

from warpdraft import TopH, truncate
from warpdraft.kernels.support import mask
from warpdraft.truncation import Call, resolve


@pytest.mark.parametrize(
    "rule", [TopH(0.4), TopH(0.8), TopH(0.97), TopH(0.4, variant="transformers")], ids=repr
)
@pytest.mark.parametrize("vocab", VOCABS)
def test_agrees_with_sort_and_scan(vocab, rule):
    assert_right_on(vocab, rule, temperatures=(1.0, 1.7))


def kept(logits, rule, temperature=1.0):
    return (
        (truncate(logits, rule, temperature=temperature) > -torch.inf)[0].nonzero()[:, 0].tolist()
    )


@pytest.mark.parametrize(
    ("vocab", "alpha", "count"), [(4, 0.5, 2), (16, 0.5, 4), (5, 0.4, 1), (6, 0.4, 2)]
)
def test_a_uniform_row_keeps_vocab_to_the_alpha(vocab, alpha, count):
    # 4 ** 0.5 and 16 ** 0.5 meet the bound exactly: it belongs to the prefix
    assert kept(torch.zeros(1, vocab), TopH(alpha)) == list(range(count))


def test_the_prefix_is_renormalised():
    # a spike over a flat tail: partial sums that are not renormalised would keep fewer tokens
    logits = torch.zeros(1, 1000)
    logits[0, 7] = 6.0
    paper = kept(logits, TopH(0.4))
    probs = logits.double().softmax(-1)[0]
    order = [7, *range(7), *range(8, 1000)]
    bound = 0.4 * -(probs * probs.log()).sum()
    count = 1
    while True:
        prefix = probs[order[: count + 1]]
        prefix = prefix / prefix.sum()
        if -(prefix * prefix.log()).sum() > bound:
            break
        count += 1
    assert sorted(order[:count]) == paper
    partial = (-(probs * probs.log())[order]).cumsum(0) <= bound
    assert partial.sum() != count


def test_an_almost_certain_row_is_measured_exactly():
    # S - 1 is 1e-26 here: computed as a difference it would be 0, and everything would be kept
    logits = torch.zeros(1, 64)
    logits[0, 3] = 60.0
    assert kept(logits, TopH(0.4)) == [0, 1, 2, 3, *range(4, 4 + len(kept(logits, TopH(0.4))) - 4)]
    assert 1 < len(kept(logits, TopH(0.4))) < 64
    assert len(kept(logits, TopH(0.4))) == 1 + round(0.4 * 63)


@pytest.mark.parametrize("maximum", [2.3, 17.3, 30.1])
def test_next_to_the_bound_float64_decides(maximum):
    # float32 sums are off by about 1e-6 here; the bound passes 1e-8 beside a score
    row = torch.full((1, 20_000), maximum - 11.7)
    row[0, 5] = maximum
    levels = (row[0].double() - row[0].double().max()).sort(descending=True).values
    weights = levels.exp()
    entropy = weights.cumsum(0).log() - (weights * levels).cumsum(0) / weights.cumsum(0)
    for count in (10, 500, 3000):
        alpha = float(entropy[count - 1] / entropy[-1])
        assert len(kept(row, TopH(alpha * (1 + 1e-8)))) == count
        assert len(kept(row, TopH(alpha * (1 - 1e-8)))) == count - 1


@pytest.mark.parametrize("temperature", [1.0, 0.02, 0.0134, 0.01, 1e-6])
def test_what_has_no_mass_is_not_kept(temperature):
    # below 0.0134 every mass but the first is 0, and so is the entropy
    logits = torch.tensor([[10.0, 0.0, -1.0, -2.0]])
    call = Call.create(logits, TopH(0.4), temperature)
    for support in (
        resolve(logits, TopH(0.4), temperature=temperature).support,
        call.resolve_batch().support,
    ):
        assert mask(logits, support)[0].isfinite().tolist() == [True, False, False, False]
    tied = torch.tensor([[10.0, 0.0, 10.0]])
    assert kept(tied / temperature, TopH(0.4)) == [0]


@pytest.mark.parametrize("alpha", [1.0, 1.5, float("inf")])
def test_alpha_one_keeps_everything_finite(alpha):
    logits = torch.randn(1, 9000)
    logits[0, ::3] = -torch.inf
    assert torch.equal(truncate(logits, TopH(alpha)), logits)


def test_the_transformers_variant_looks_at_100_tokens():
    assert len(kept(torch.randn(1, 5000), TopH(1.0, variant="transformers"))) == 100
    assert kept(torch.zeros(1, 200), TopH(0.405, variant="transformers")) == list(range(40))
    assert kept(torch.zeros(1, 200), TopH(0.4)) == list(range(8))


@pytest.mark.parametrize("variant", ["paper", "transformers"])
def test_the_batched_form_of_alpha_one_keeps_all_of_100_tokens(variant):
    # running sums may end above the sum by rounding: at 1 they are not compared
    logits = torch.randn(200, 100, generator=torch.Generator().manual_seed(0))
    resolved = Call.create(logits, TopH(1.0, variant=variant), 1.0).resolve_batch()
    assert torch.equal(mask(logits, resolved.support), logits)


def kept_of_batch(logits, rule):
    """The tokens of the batched form, which a GPU takes where Triton does not run."""
    resolved = Call.create(logits, rule, 1.0).resolve_batch()
    return mask(logits, resolved.support)[0].isfinite().nonzero()[:, 0].tolist()


def test_transformers_bound_belongs_to_the_prefix():
    # two of four equal summands are half of the sum exactly
    logits, rule = torch.zeros(1, 4), TopH(0.5, variant="transformers")
    assert kept(logits, rule) == kept_of_batch(logits, rule) == [0, 1]


def test_transformers_rule_leaves_out_tokens_without_mass_at_alpha_one():
    # exp(-800) is 0 in float64
    logits, rule = torch.tensor([[0.0, -1.0, -800.0]]), TopH(1.0, variant="transformers")
    assert kept(logits, rule) == kept_of_batch(logits, rule) == [0, 1]
