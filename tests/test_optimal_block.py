"""Optimal transport along a path: exact laws of whole blocks, mutations that must show, and draws from real noise."""

from functools import cache
from typing import ClassVar

import numpy as np
import pytest
import torch
from enumeration import TabledBlock, Tables, block_law, text_probability, tuples
from path_enumeration import path_law
from scipy.stats import chisquare

import warpdraft
import warpdraft.verifiers.optimal_block as optimal_block
from warpdraft.kernels.noise import Noise, Role
from warpdraft.kernels.optimal import Selection, plan_selection
from warpdraft.verifiers.block import Block
from warpdraft.verifiers.k_seq import KSeq
from warpdraft.verifiers.optimal import Optimal
from warpdraft.verifiers.optimal_block import OptimalBlock

# vocabulary, K, L
SIZES = [(2, 2, 2), (3, 2, 2), (2, 3, 2), (2, 2, 3), (4, 2, 1), (3, 3, 1), (3, 1, 3), (5, 1, 2)]
on_sizes = pytest.mark.parametrize(("vocab", "num_drafts", "length"), SIZES)
on_seeds = pytest.mark.parametrize("seed", [0, 1], ids="seed={}".format)


def tables_of(vocab, length, seed, *, equal=False):
    """Random laws, with zeros at every second seed and at least three tokens, or equal ones."""
    tables = Tables.random(vocab, length, seed, zeros=seed % 2 == 1 and vocab > 2)
    if equal:
        return Tables(tables.target, tables.target[:length], tables.target[:length])
    return tables


# ---- exact laws


@pytest.mark.parametrize("num_bins", [None, 1, 64], ids="bins={}".format)
@on_seeds
@on_sizes
def test_block_has_the_target_law(vocab, num_drafts, length, seed, num_bins):
    tables = tables_of(vocab, length, seed)
    found = path_law(OptimalBlock(num_bins, "clip"), tables, num_drafts)
    assert found.deviation < 1e-12
    assert 1 <= found.expected_tokens <= length + 1


@on_seeds
@on_sizes
def test_block_of_the_lex_selector_has_the_target_law(vocab, num_drafts, length, seed):
    tables = tables_of(vocab, length, seed)
    for num_bins in (None, 4):
        options = {"num_bins": num_bins, "selector": "lex"}
        found = path_law(OptimalBlock(**options), tables, num_drafts)
        assert found.deviation < 1e-12
    if num_drafts == 1 or length == 1:
        clip = path_law(OptimalBlock(None, "clip"), tables, num_drafts)
        lex = path_law(OptimalBlock(None, "lex"), tables, num_drafts)
        assert lex.expected_tokens == pytest.approx(clip.expected_tokens, abs=1e-7)


def test_the_lex_selector_yields_more_where_the_clip_wastes_weight():
    gains = []
    for seed in range(8):
        tables = Tables.random(3, 2, seed, zeros=False)
        clip, lex = (
            path_law(OptimalBlock(None, selector), tables, 2).expected_tokens
            for selector in ("clip", "lex")
        )
        gains.append(lex - clip)
    assert np.mean(gains) > 1e-4
    assert max(gains) > 1e-3


def survival_of_every_draft(verifier, tables, num_drafts):
    """Mean of `survival` over all sets of paths, `[L]`."""
    vocab, length = tables.target[0].shape[1], len(tables.draft)
    every = tuples(vocab, length)
    numbers = tuples(len(every), num_drafts)
    weight = text_probability(tables.draft, every).prod(1)[numbers].prod(1)
    drafted = weight > 0
    survival = verifier.survival(TabledBlock(tables, every[numbers[drafted]]))
    return weight[drafted] @ survival


@pytest.mark.parametrize("selector", ["clip", "lex"])
@pytest.mark.parametrize(
    ("vocab", "num_drafts", "length"), [(2, 2, 2), (2, 3, 2), (3, 2, 1), (3, 1, 3)]
)
def test_mean_survival_is_what_the_enumeration_yields(vocab, num_drafts, length, selector):
    for seed in (0, 1):
        tables = tables_of(vocab, length, seed)
        options = {"num_bins": 4, "selector": selector}
        found = path_law(OptimalBlock(**options), tables, num_drafts)
        survival = survival_of_every_draft(OptimalBlock(**options), tables, num_drafts)
        assert 1 + float(survival.sum()) == pytest.approx(found.expected_tokens, abs=1e-7)
        assert bool((survival.diff() <= 0).all())


def test_survival_looks_at_no_deeper_token_and_at_draws_only():
    tables, paths = random_block(20, 3, 3, 3, 9)
    block = TabledBlock(tables, paths)
    survival = OptimalBlock().survival(block)
    last = paths.clone()
    last[:, :, 2] = 0
    assert torch.equal(OptimalBlock().survival(TabledBlock(tables, last))[:, :2], survival[:, :2])
    assert not torch.equal(OptimalBlock().survival(TabledBlock(tables, last)), survival)
    # path 1 only repeats the first two tokens of path 0: one candidate less on the way
    paths = paths.clone()
    paths[:, 1, :2] = paths[:, 0, :2]
    block = TabledBlock(tables, paths)
    block.drawn[:, 1, :2] = False
    fewer = TabledBlock(tables, paths[:, [0, 2]])
    torch.testing.assert_close(
        OptimalBlock().survival(block)[:, :2],
        OptimalBlock().survival(fewer)[:, :2],
        rtol=0,
        atol=1e-15,
    )
    # below a leaf nothing is accepted
    block.drawn[:, :, 2] = False
    assert not OptimalBlock().survival(block)[:, 2].any()


def test_selector_is_checked():
    with pytest.raises(ValueError, match=r"selector must be one of \['clip', 'lex'\], got 'best'"):
        OptimalBlock(selector="best")


@pytest.mark.parametrize(("vocab", "num_drafts", "length"), [(3, 2, 2), (2, 3, 2), (3, 1, 3)])
def test_equal_models_accept_everything(vocab, num_drafts, length):
    found = path_law(OptimalBlock(), tables_of(vocab, length, 0, equal=True), num_drafts)
    assert found.deviation < 1e-12
    assert found.expected_tokens == pytest.approx(length + 1, abs=1e-7)


def expected_tokens(verifier, tables, num_drafts):
    """Tokens a block of a node verifier, from the enumeration of its scripts."""
    found = block_law(verifier, tables, num_drafts)
    vocab, depths = tables.target[0].shape[1], len(tables.target)
    emitted = (found.verified.output_token_ids >= 0).sum(1)
    # a block that ends early stands there once for every way in which its script goes on
    repeats = float(vocab) ** (depths - emitted)
    return float((found.weight * emitted / repeats).sum())


@on_seeds
@on_sizes
def test_yields_at_least_as_much_as_verification_node_by_node(vocab, num_drafts, length, seed):
    tables = tables_of(vocab, length, seed)
    tokens = path_law(OptimalBlock(None), tables, num_drafts).expected_tokens
    by_node = expected_tokens(Optimal(None), tables, num_drafts)
    assert tokens >= by_node - 1e-7
    assert by_node >= expected_tokens(KSeq(), tables, num_drafts) - 1e-7
    if length == 1:
        assert tokens == pytest.approx(by_node, abs=1e-7)


@on_seeds
def test_more_paths_yield_more(seed):
    tables = tables_of(2, 2, 2 * seed)
    tokens = [path_law(OptimalBlock(None), tables, k).expected_tokens for k in (1, 2, 3)]
    assert tokens[0] < tokens[1] < tokens[2]


# ---- mutations


def with_count_of_all_paths(target, draft, count, **options):
    return plan_selection(target, draft, torch.full_like(count, 3), **options)


def with_weight_of_the_root(target, draft, count, weight, **options):
    return plan_selection(target, draft, count, weight=torch.ones_like(weight), **options)


def without_weight(plan):
    return (plan.target_probs - plan.law()).clamp_min(0)


def against_the_draft(plan):
    return (plan.weight[:, None] * plan.target_probs - plan.draft_probs).clamp_min(0)


MUTATIONS = {
    "survivors of the root": (optimal_block, "plan_selection", with_count_of_all_paths),
    "weight of the root": (optimal_block, "plan_selection", with_weight_of_the_root),
    "residual without its weight": (Selection, "residual", without_weight),
    "residual against the draft": (Selection, "residual", against_the_draft),
}


@pytest.mark.parametrize(("owner", "name", "wrong"), MUTATIONS.values(), ids=MUTATIONS.keys())
def test_mutations_are_noticed(monkeypatch, owner, name, wrong):
    # the lex selector leaves these paths no weight below 1 to be wrong about
    tables, rule = tables_of(2, 2, 0), OptimalBlock(selector="clip")
    assert path_law(rule, tables, 3).deviation < 1e-12
    monkeypatch.setattr(owner, name, wrong)
    assert path_law(rule, tables, 3).deviation > 1e-3


# ---- real noise

# a chi-square test rejects a sound verifier with probability 1e-6; the seeds are fixed
FALSE_ALARM = 1e-6
ROWS = 10_000


def drawn_p_value(tables, num_drafts, seed, noise=None):
    """Chi-square of the first L + 1 tokens of ROWS blocks against plain sampling."""
    vocab, length = tables.target[0].shape[1], len(tables.draft)
    generator = torch.Generator().manual_seed(seed)
    every = tuples(vocab, length)
    weights = text_probability(tables.draft, every).prod(1)
    numbers = torch.multinomial(weights, ROWS * num_drafts, replacement=True, generator=generator)
    block = TabledBlock(tables, every[numbers].view(ROWS, num_drafts, length))
    noise = noise or Noise.create(ROWS, seed=seed, device="cpu")
    output = OptimalBlock().verify(block, noise).output_token_ids
    number = torch.zeros(ROWS, dtype=torch.int64)
    for depth in range(length + 1):
        law = tables.target[depth][number]
        plain = torch.multinomial(law, 1, generator=generator).squeeze(1)
        number = number * vocab + torch.where(output[:, depth] >= 0, output[:, depth], plain)
    expected = text_probability(tables.target, tuples(vocab, length + 1)).prod(1)
    return chisquare(number.bincount(minlength=len(expected)), ROWS * expected).pvalue


@pytest.mark.parametrize(("vocab", "num_drafts", "length"), [(3, 2, 2), (2, 3, 2), (4, 4, 1)])
def test_drawn_blocks_have_the_target_law(vocab, num_drafts, length):
    tables = tables_of(vocab, length, 2)
    assert drawn_p_value(tables, num_drafts, seed=vocab) > FALSE_ALARM


class SharedByPaths(Noise):
    """Noise that hands one number to all paths."""

    def select(self, rows):
        return SharedByPaths(self.seed[rows], self.sequence[rows], self.step[rows])

    def words(self, role, index, *, depth=0, path=0):
        return super().words(role, index, depth=depth)


def test_ranks_that_paths_share_are_noticed():
    noise = Noise.create(ROWS, seed=2, device="cpu")
    shared = SharedByPaths(noise.seed, noise.sequence, noise.step)
    assert drawn_p_value(tables_of(2, 2, 2), 3, seed=2, noise=shared) < FALSE_ALARM


class Watching(Noise):
    """Noise that records the name of every word."""

    names: ClassVar[list] = []

    def select(self, rows):
        return Watching(self.seed[rows], self.sequence[rows], self.step[rows])

    def words(self, role, index, *, depth=0, path=0):
        columns = [
            torch.as_tensor(column).view(-1, 1) if torch.as_tensor(column).ndim == 1 else column
            for column in (self.sequence, depth, path)
        ]
        grid = torch.broadcast_tensors(index, *map(torch.as_tensor, columns))
        Watching.names += [
            (role, *name) for name in zip(*(c.flatten().tolist() for c in grid), strict=True)
        ]
        return super().words(role, index, depth=depth, path=path)


def test_no_number_is_read_twice_and_ranks_are_those_of_their_depth():
    tables, paths = random_block(300, 3, 3, 3, 8)
    noise = Noise.create(len(paths), seed=1, device="cpu")
    Watching.names.clear()
    watching = Watching(noise.seed, noise.sequence, noise.step)
    OptimalBlock().verify(TabledBlock(tables, paths), watching)
    assert len(set(Watching.names)) == len(Watching.names)
    ranks = {name[3:] for name in Watching.names if name[0] is Role.RANK}
    assert ranks == {(depth, path) for depth in range(3) for path in range(3)}


# ---- the walk


@cache
def random_block(rows, vocab, num_drafts, length, seed):
    generator = torch.Generator().manual_seed(seed)
    tables = Tables.random(vocab, length, seed, zeros=True)
    paths = torch.randint(vocab, (rows, num_drafts, length), generator=generator)
    return tables, paths


def test_one_path_is_block_verification_token_for_token():
    tables, paths = random_block(2000, 4, 1, 3, 5)
    noise = Noise.create(len(paths), seed=1, device="cpu")
    ours = OptimalBlock().verify(TabledBlock(tables, paths), noise)
    block = Block().verify(TabledBlock(tables, paths), noise)
    assert torch.equal(ours.output_token_ids, block.output_token_ids)
    assert torch.equal(ours.num_accepted, block.num_accepted)


def test_output_holds_the_accepted_tokens_of_the_survivor_path():
    tables, paths = random_block(500, 3, 3, 3, 6)
    noise = Noise.create(len(paths), seed=1, device="cpu")
    verified = OptimalBlock().verify(TabledBlock(tables, paths), noise)
    assert set(verified.num_accepted.tolist()) == {0, 1, 2, 3}
    rows = zip(
        verified.output_token_ids.tolist(),
        verified.num_accepted.tolist(),
        paths[torch.arange(len(paths)), verified.survivor_path].tolist(),
        strict=True,
    )
    for output, accepted, path in rows:
        assert output[:accepted] == path[:accepted]
        assert output[accepted] >= 0
        assert output[accepted + 1 :] == [-1] * (3 - accepted)


class Watched(TabledBlock):
    """A block that records which laws were asked for."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.asked = []

    def target(self, rows, path, depth):
        self.asked.append((depth, rows.tolist()))
        return super().target(rows, path, depth)


def test_nothing_is_read_below_a_token_that_the_target_never_emits():
    certain = torch.eye(3, dtype=torch.float64)
    target = [certain[[0]].expand(3**depth, 3) for depth in range(4)]
    draft = [torch.full((3**depth, 3), 1 / 3, dtype=torch.float64) for depth in range(3)]
    paths = torch.tensor([[[0, 0, 0]], [[0, 1, 0]], [[2, 0, 0]]])
    block = Watched(Tables(target, draft, draft), paths)
    verified = OptimalBlock().verify(block, Noise.create(3, seed=0, device="cpu"))
    assert block.asked == [(0, [0, 1, 2]), (1, [0, 1]), (2, [0]), (3, [0])]
    assert verified.num_accepted.tolist() == [3, 1, 0]
    assert verified.output_token_ids.tolist() == [[0] * 4, [0, 0, -1, -1], [0, -1, -1, -1]]


def test_a_block_of_no_tokens_is_plain_sampling():
    tables = Tables([torch.eye(3, dtype=torch.float64)[[1]]], [], [])
    block = TabledBlock(tables, torch.zeros(2, 3, 0, dtype=torch.int64))
    verified = OptimalBlock().verify(block, Noise.create(2, seed=0, device="cpu"))
    assert verified.output_token_ids.tolist() == [[1], [1]]
    assert verified.num_accepted.tolist() == [0, 0]


def test_rows_do_not_depend_on_their_batch():
    tables, paths = random_block(40, 3, 3, 3, 7)
    noise = Noise.create(len(paths), seed=1, device="cpu")
    whole = OptimalBlock().verify(TabledBlock(tables, paths), noise)
    for row in range(0, len(paths), 5):
        one = torch.tensor([row])
        alone = OptimalBlock().verify(TabledBlock(tables, paths[one]), noise.select(one))
        assert torch.equal(alone.output_token_ids[0], whole.output_token_ids[row])
        assert int(alone.survivor_path[0]) == int(whole.survivor_path[row])


@pytest.mark.parametrize("verifier", ["optimal", "optimal_block"])
def test_the_door_for_engines_takes_it(verifier):
    logits = torch.randn(3, 9, 50, generator=torch.Generator().manual_seed(0))
    nodes = torch.tensor([[0, 1, 2, 3, 4], [0, 5, 6, 7, 8]]).expand(3, 2, 5)
    tokens = torch.arange(24).view(3, 2, 4)
    logits[1] = torch.nan
    found = warpdraft.verify_block(
        logits, logits + 0.3, tokens, nodes, verifier=verifier, seed=1, rules=warpdraft.MinP(0.01)
    )
    assert found.status.tolist() == [0, 1, 0]
    assert found.output_token_ids[1].tolist() == [-1] * 5
    assert bool((found.output_token_ids[[0, 2], 0] >= 0).all())
    assert np.all(found.num_accepted.numpy() <= 4)


def test_number_of_bins_is_checked():
    with pytest.raises(ValueError, match=r"num_bins must be at least 1, or None .* got -1"):
        OptimalBlock(-1)
