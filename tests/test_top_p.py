"""top-p."""

from __future__ import annotations

import pytest
import torch
from reference import VOCABS, assert_right_on

from warpdraft import TopP, truncate
from warpdraft.kernels.support import mask
from warpdraft.truncation import Call


@pytest.mark.parametrize(
    "rule", [TopP(0.0), TopP(0.3), TopP(0.9), TopP(1.0), TopP(0.5, ties="all")], ids=repr
)
@pytest.mark.parametrize("vocab", VOCABS)
def test_agrees_with_sort_and_scan(vocab, rule):
    assert_right_on(vocab, rule, temperatures=(1.0, 1.7))


def kept(logits, rule, temperature=1.0):
    return (
        (truncate(logits, rule, temperature=temperature) > -torch.inf)[0].nonzero()[:, 0].tolist()
    )


def test_a_prefix_that_reaches_the_mass_exactly_is_enough():
    assert kept(torch.zeros(1, 8), TopP(0.5)) == [0, 1, 2, 3]


def test_the_token_that_crosses_is_kept():
    logits = torch.tensor([[0.5, 0.25, 0.25]]).log()
    assert kept(logits, TopP(0.5000001)) == [0, 1]
    assert kept(logits, TopP(0.7)) == [0, 1]
    assert kept(logits, TopP(0.7, ties="all")) == [0, 1, 2]


def test_the_batched_form_of_one_keeps_tokens_that_the_running_sum_does_not_see():
    # 1 + exp(-50) is 1 in float64
    logits = torch.tensor([[0.0, -50.0, -60.0]])
    resolved = Call.create(logits, TopP(1.0), 1.0).resolve_batch()
    assert torch.equal(mask(logits, resolved.support), logits)


@pytest.mark.parametrize("vocab", range(126, 132))
def test_a_prefix_of_all_tokens_beside_what_is_read_at_first(vocab):
    # 128 tokens are read first
    assert len(kept(torch.zeros(1, vocab), TopP(0.9999))) == vocab
