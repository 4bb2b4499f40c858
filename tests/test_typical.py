"""Locally typical sampling."""

from __future__ import annotations

import pytest
import torch
from own_process import run_tests
from reference import VOCABS, assert_right_on

from warpdraft import MinP, Typical, truncate


@pytest.mark.parametrize(
    "rule", [Typical(0.9), Typical(0.2), Typical(1.0), Typical(0.2, min_tokens_to_keep=5)], ids=repr
)
@pytest.mark.parametrize("vocab", VOCABS)
def test_agrees_with_sort_and_scan(vocab, rule):
    assert_right_on(vocab, rule, temperatures=(1.0, 1.7))


def kept(logits, rule, temperature=1.0):
    return (
        (truncate(logits, rule, temperature=temperature) > -torch.inf)[0].nonzero()[:, 0].tolist()
    )


def test_the_most_likely_token_may_go():
    probs = torch.tensor([[0.4, *[0.06] * 10]])
    assert kept(probs.log(), Typical(0.5)) == list(range(1, 11))


def test_a_rule_after_it_measures_from_the_largest_kept_logit():
    logits = torch.tensor([[0.4, *[0.06] * 9, 0.03, 0.03]]).log()
    assert kept(logits, [Typical(0.5), MinP(0.9)]) == list(range(1, 10))
    assert kept(logits, [MinP(0.9), Typical(0.5)]) == [0]


def test_tokens_without_mass_keep_their_distances():
    # at this temperature the weights of all but the first token are 0
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0, -1.0]])
    assert kept(logits, Typical(0.9, min_tokens_to_keep=2), 1e-6) == [0, 1]


def test_only_whole_groups():
    with pytest.raises(ValueError, match="ties='all'"):
        Typical(0.9, ties="lowest_id")


@pytest.mark.timeout(600)
def test_the_kernels_agree_with_the_reference_in_the_interpreter():
    run_tests("interpreted_typical.py", interpret=True)
