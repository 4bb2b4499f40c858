"""epsilon sampling."""

from __future__ import annotations

import pytest
import torch
from reference import VOCABS, assert_right_on

from warpdraft import Epsilon, truncate


@pytest.mark.parametrize(
    "rule",
    [Epsilon(3e-4), Epsilon(0.0), Epsilon(0.05), Epsilon(0.2, min_tokens_to_keep=4)],
    ids=repr,
)
@pytest.mark.parametrize("vocab", VOCABS)
def test_agrees_with_sort_and_scan(vocab, rule):
    assert_right_on(vocab, rule, temperatures=(1.0, 1.7))


def kept(logits, rule, temperature=1.0):
    return (
        (truncate(logits, rule, temperature=temperature) > -torch.inf)[0].nonzero()[:, 0].tolist()
    )


def test_a_probability_at_the_cutoff_is_kept():
    assert kept(torch.zeros(1, 4), Epsilon(0.25)) == [0, 1, 2, 3]


def test_the_most_likely_token_is_always_kept():
    logits = torch.zeros(1, 4)
    logits[0, 2] = 1e-3
    assert kept(logits, Epsilon(0.9)) == [2]
