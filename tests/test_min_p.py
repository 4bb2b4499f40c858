"""min-p."""

from __future__ import annotations

import pytest
import torch
from reference import VOCABS, assert_right_on

from warpdraft import MinP, truncate


@pytest.mark.parametrize(
    "rule", [MinP(0.1), MinP(0.0), MinP(1.0), MinP(0.02, min_tokens_to_keep=20)], ids=repr
)
@pytest.mark.parametrize("vocab", VOCABS)
def test_agrees_with_sort_and_scan(vocab, rule):
    assert_right_on(vocab, rule, temperatures=(1.0, 2.0))


def kept(logits, rule, temperature=1.0):
    return (
        (truncate(logits, rule, temperature=temperature) > -torch.inf)[0].nonzero()[:, 0].tolist()
    )


def test_min_p_one_keeps_the_ties_of_the_maximum():
    assert kept(torch.tensor([[1.0, 2.0, 2.0, 0.0]]), MinP(1.0)) == [1, 2]


def test_min_p_of_the_tempered_law():
    # min-p after temperature T is min-p ** T before it
    logits = torch.randn(1, 5000, generator=torch.Generator().manual_seed(1)) * 3
    assert kept(logits, MinP(0.1), 2.0) == kept(logits, MinP(0.01))


def test_a_logit_at_the_threshold_is_kept():
    # exp(-0.5) in float64 is the min_p whose threshold is 0.5 below the maximum
    logits = torch.tensor([[1.0, 0.5, 0.5 - 2**-20]], dtype=torch.float64)
    assert kept(logits, MinP(0.6065306597126334 - 1e-15)) == [0, 1]
    assert kept(logits, MinP(0.6065306597126334 + 1e-15)) == [0]
