"""p-less sampling."""

from __future__ import annotations

import pytest
import torch
from reference import VOCABS, assert_right_on

from warpdraft import PLess, truncate


@pytest.mark.parametrize("rule", [PLess(), PLess(normalized=True)], ids=repr)
@pytest.mark.parametrize("vocab", VOCABS)
def test_agrees_with_sort_and_scan(vocab, rule):
    assert_right_on(vocab, rule, temperatures=(1.0, 1.7))


def kept(logits, rule, temperature=1.0):
    return (
        (truncate(logits, rule, temperature=temperature) > -torch.inf)[0].nonzero()[:, 0].tolist()
    )


def test_the_bound_is_the_sum_of_squares():
    # the squares sum to 0.38, normalised (3 * 0.38 - 1) / 2 = 0.07
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log()
    assert kept(logits, PLess()) == [0]
    assert kept(logits, PLess(normalized=True)) == [0, 1, 2]


def test_a_uniform_row_is_kept():
    assert kept(torch.full((1, 1000), 0.3), PLess()) == list(range(1000))


def test_uniform_rows_of_every_size_are_kept():
    # Q / S is 1, and its logarithm a rounding above or below 0
    for vocab in range(1, 200):
        assert len(kept(torch.zeros(1, vocab), PLess())) == vocab
