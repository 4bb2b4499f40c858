"""top-n-sigma."""

from __future__ import annotations

import pytest
import torch
from reference import VOCABS, assert_right_on

from warpdraft import TopNSigma, truncate


@pytest.mark.parametrize("rule", [TopNSigma(1.0), TopNSigma(0.0), TopNSigma(2.5)], ids=repr)
@pytest.mark.parametrize("vocab", VOCABS)
def test_agrees_with_sort_and_scan(vocab, rule):
    assert_right_on(vocab, rule, temperatures=(1.0, 3.0))


def kept(logits, rule, temperature=1.0):
    return (
        (truncate(logits, rule, temperature=temperature) > -torch.inf)[0].nonzero()[:, 0].tolist()
    )


def test_the_deviation_is_that_of_a_sample():
    # deviation sqrt(2) with divisor n - 1, 1 with divisor n
    assert kept(torch.tensor([[0.0, 2.0]]), TopNSigma(1.4)) == [1]
    assert kept(torch.tensor([[0.0, 2.0]]), TopNSigma(1.42)) == [0, 1]


def test_masked_tokens_do_not_widen_it():
    logits = torch.tensor([[0.0, 2.0, 1.0, -torch.inf, -torch.inf]])
    assert kept(logits, TopNSigma(1.01)) == [1, 2]
