"""top-k."""

from __future__ import annotations

import pytest
import torch
from reference import VOCABS, assert_right_on

from warpdraft import TopK, truncate
from warpdraft.kernels.support import mask
from warpdraft.truncation import Call


@pytest.mark.parametrize(
    "rule",
    [TopK(1), TopK(50), TopK(50, ties="all"), TopK(5000), TopK(2, min_tokens_to_keep=9)],
    ids=repr,
)
@pytest.mark.parametrize("vocab", VOCABS)
def test_agrees_with_sort_and_scan(vocab, rule):
    assert_right_on(vocab, rule)


def kept(logits, rule, temperature=1.0):
    return (
        (truncate(logits, rule, temperature=temperature) > -torch.inf)[0].nonzero()[:, 0].tolist()
    )


def test_ties_go_to_the_lowest_ids_or_are_all_kept():
    logits = torch.tensor([[0.0, 1.0, 0.0, 1.0, 1.0, -1.0]])
    assert kept(logits, TopK(2)) == [1, 3]
    assert kept(logits, TopK(2, ties="all")) == [1, 3, 4]
    assert kept(logits, TopK(4)) == [0, 1, 3, 4]


def test_minus_zero_is_zero():
    logits = torch.tensor([[-0.0, 0.0, -0.0, 0.0, -1.0]])
    assert kept(logits, TopK(3)) == [0, 1, 2]
    assert kept(logits, TopK(1)) == [0]


def test_infinite_logits_do_not_count():
    logits = torch.tensor([[-torch.inf, 1.0, -torch.inf, 0.0]])
    assert kept(logits, TopK(3)) == [1, 3]


@pytest.mark.parametrize("batch", [1, 2, 9])
def test_the_batched_form_counts_tokens_and_not_rows(batch):
    logits = torch.randn(batch, 9, generator=torch.Generator().manual_seed(0))
    resolved = Call.create(logits, TopK(5), 1.0).resolve_batch()
    assert mask(logits, resolved.support).isfinite().sum(-1).tolist() == [5] * batch
