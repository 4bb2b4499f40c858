"""top-a."""

from __future__ import annotations

import pytest
import torch
from reference import VOCABS, assert_right_on

from warpdraft import TopA, truncate


@pytest.mark.parametrize("rule", [TopA(0.2), TopA(0.0), TopA(1.0)], ids=repr)
@pytest.mark.parametrize("vocab", VOCABS)
def test_agrees_with_sort_and_scan(vocab, rule):
    assert_right_on(vocab, rule, temperatures=(1.0, 1.7))


def kept(logits, rule, temperature=1.0):
    return (
        (truncate(logits, rule, temperature=temperature) > -torch.inf)[0].nonzero()[:, 0].tolist()
    )


def test_the_bound_is_the_square_of_the_largest_probability():
    logits = torch.tensor([[0.5, 0.26, 0.24]]).log()
    assert kept(logits, TopA(1.0)) == [0, 1]
    assert kept(logits, TopA(0.9)) == [0, 1, 2]
