"""Block verification of one path: its exact law, its optimality, its errors."""

import pytest
import torch
from enumeration import TabledBlock, Tables, block_law, text_probability, tuples
from path_enumeration import path_law

import warpdraft
from warpdraft.kernels.noise import Noise
from warpdraft.verifiers.block import Block
from warpdraft.verifiers.k_seq import KSeq

SIZES = [(2, 1), (2, 3), (3, 3), (5, 2)]
on_seeds = pytest.mark.parametrize("seed", range(4), ids="seed={}".format)


def tables_of(vocab, length, seed):
    return Tables.random(vocab, length, seed, zeros=seed % 2 == 1 and vocab > 2)


def best_expected_tokens(tables):
    """1 + sum of the weights of all prefixes, by the recursion of Sun et al., arXiv 2403.10444.

    w of a prefix = min(1, w of the one before * target / draft); a prefix is accepted with draft probability times w.
    """
    vocab, length = tables.target[0].shape[1], len(tables.draft)
    total = 1.0
    for depth in range(1, length + 1):
        prefixes = tuples(vocab, depth)
        target = text_probability(tables.target, prefixes)
        draft = text_probability(tables.draft, prefixes)
        weight = torch.ones(len(prefixes), dtype=torch.float64)
        for column in range(depth):
            weight = (weight * target[:, column] / draft[:, column]).clamp_max(1)
        drafted = draft.prod(1)
        total += float((drafted * weight)[drafted > 0].sum())
    return total


@on_seeds
@pytest.mark.parametrize(("vocab", "length"), SIZES)
def test_block_has_the_target_law_and_yields_the_most(vocab, length, seed):
    tables = tables_of(vocab, length, seed)
    found = path_law(Block(), tables, 1)
    assert found.deviation < 1e-12
    assert found.expected_tokens == pytest.approx(best_expected_tokens(tables), abs=1e-7)


@on_seeds
def test_yields_more_than_token_level_verification(seed):
    tables = tables_of(3, 3, seed)
    found = block_law(KSeq(), tables, 1)
    emitted = (found.verified.output_token_ids >= 0).sum(1)
    token_level = float((found.weight * emitted / 3.0 ** (4 - emitted)).sum())
    assert best_expected_tokens(tables) > token_level + 1e-3


def test_a_residual_against_the_full_target_is_noticed(monkeypatch):
    from warpdraft.kernels.optimal import Selection

    tables = tables_of(3, 3, 0)
    monkeypatch.setattr(
        Selection, "residual", lambda plan: (plan.target_probs - plan.law()).clamp_min(0)
    )
    assert path_law(Block(), tables, 1).deviation > 1e-3


def test_more_than_one_path_is_refused():
    block = TabledBlock(tables_of(2, 2, 0), torch.zeros(1, 2, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match='"block" takes num_drafts=1, got 2: use "optimal_block"'):
        Block().verify(block, Noise.create(1, seed=0, device="cpu"))


def test_the_door_for_engines_takes_it():
    logits = torch.randn(2, 4, 30, generator=torch.Generator().manual_seed(0))
    tokens, nodes = torch.arange(6).view(2, 1, 3), torch.arange(4).expand(2, 1, 4)
    found = warpdraft.verify_block(logits, logits, tokens, nodes, verifier="block", seed=1)
    # equal models: every drafted token is accepted, up to the rounding of float32 laws
    assert found.num_accepted.tolist() == [3, 3]
    assert torch.equal(found.output_token_ids[:, :3], tokens[:, 0])
