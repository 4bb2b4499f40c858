"""eta sampling."""

from __future__ import annotations

import pytest
import torch
from reference import VOCABS, assert_right_on

from warpdraft import Epsilon, Eta, truncate


@pytest.mark.parametrize(
    "rule", [Eta(3e-4), Eta(0.0), Eta(0.3), Eta(0.3, min_tokens_to_keep=4)], ids=repr
)
@pytest.mark.parametrize("vocab", VOCABS)
def test_agrees_with_sort_and_scan(vocab, rule):
    assert_right_on(vocab, rule, temperatures=(1.0, 1.7))


def kept(logits, rule, temperature=1.0):
    return (
        (truncate(logits, rule, temperature=temperature) > -torch.inf)[0].nonzero()[:, 0].tolist()
    )


def test_the_cutoff_falls_with_the_entropy():
    # sqrt(0.25) * exp(-ln 4) is 1 / 8
    logits = torch.tensor([[0.25, 0.25, 0.25, 0.125, 0.125]]).log()
    entropy = 2.25 * 0.6931471805599453
    assert 0.5 * 2.718281828459045**-entropy < 0.125
    assert kept(logits, Eta(0.25)) == [0, 1, 2, 3, 4]
    assert kept(logits, Epsilon(0.25)) == [0, 1, 2]
