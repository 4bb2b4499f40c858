"""Traversal verification: exact laws of whole blocks, its chain of leaves, mutations that must show, real noise."""

from unittest.mock import patch

import pytest
import torch
from enumeration import (
    DraftSets,
    TabledBlock,
    Tables,
    add_continued,
    block_law,
    draft_sets,
    independent,
    prefix_number,
    text_probability,
    tuples,
)
from scipy.stats import chisquare
from test_verification import rollover

import warpdraft.laws as laws_module
import warpdraft.verifiers.traversal as traversal
from warpdraft.kernels.noise import Noise, Role
from warpdraft.laws import NodeLaws
from warpdraft.verifiers.k_seq import KSeq
from warpdraft.verifiers.recursive_without_replacement import RecursiveWithoutReplacement
from warpdraft.verifiers.traversal import Node, Traversal, after_rejection

# vocabulary, K, L
SIZES = [(2, 2, 2), (3, 2, 2), (2, 3, 2), (2, 2, 3), (4, 2, 1), (3, 3, 1), (3, 1, 3)]
on_sizes = pytest.mark.parametrize(("vocab", "num_drafts", "length"), SIZES)
on_zeros = pytest.mark.parametrize("zeros", [False, True], ids=["full support", "zeros"])


class TraversalLaw:
    """Every set of paths and every leaf at which the walk can stop.

    Attributes:
        law: `[vocab ** (L + 1)]`, of the emitted tokens continued by plain sampling to L + 1 tokens.
        target: the same of plain sampling alone.
        survival: `[L]`, P(at least i drafted tokens are accepted).
    """

    def __init__(self, tables: Tables, drafts: DraftSets) -> None:
        vocab, length = tables.target[0].shape[1], len(tables.draft)
        stops = int((drafts.paths >= 0).sum((1, 2)).max()) + 1
        stop = torch.arange(stops).repeat(len(drafts.weight))
        self._weight = drafts.weight.repeat_interleave(stops)
        self._left = stop.tolist()
        paths = drafts.paths.repeat_interleave(stops, dim=0)
        drawn = drafts.drawn.repeat_interleave(stops, dim=0)
        self._next = torch.zeros(len(stop), vocab, dtype=torch.float64)
        noise = Noise.create(len(stop), seed=0, device="cpu")
        # a method, so that it gets its node
        with (
            patch.object(Node, "accepted", lambda node, noise: self._stops(node, noise)),
            patch.object(laws_module, "draw", self._draw),
        ):
            block = TabledBlock(tables, paths, drawn)
            verified = Traversal().verify(block, noise)

        self.law = torch.zeros(vocab ** (length + 1), dtype=torch.float64)
        accepted = verified.num_accepted
        for depth in range(length + 1):
            here = accepted == depth
            prefixes = verified.output_token_ids[here, :depth]
            add_continued(self.law, tables, prefixes, self._next[here], self._weight[here])
        self.target = text_probability(tables.target, tuples(vocab, length + 1)).prod(1)
        depths = torch.arange(1, length + 1)
        self.survival = self._weight @ (accepted[:, None] >= depths).double()

    @property
    def deviation(self) -> float:
        return float((self.law - self.target).abs().max())

    def _stops(self, leaf: Node, noise: Noise) -> bool:
        """Go on from as many leaves as the row's number says; a row of more than there are has no weight."""
        row = int(noise.sequence)
        self._left[row] -= 1
        stops = self._left[row] < 0
        self._weight[row] *= leaf.weight if stops else 1 - leaf.weight
        if leaf.parent is None and not stops:
            self._weight[row] = 0
        return stops or leaf.parent is None

    def _draw(self, mass, noise, role, *, depth, path, token_ids):
        assert role in (Role.BONUS, Role.RESIDUAL)
        self._next[noise.sequence] = mass / mass.sum(1, keepdim=True)
        return torch.zeros(len(mass), dtype=torch.int64)


def law_of(tables, num_drafts):
    return TraversalLaw(tables, draft_sets(Traversal(), tables, independent(num_drafts)))


# ---- exact laws


@on_zeros
@on_sizes
def test_block_has_the_target_law(vocab, num_drafts, length, zeros):
    tables = Tables.random(vocab, length, seed=1, zeros=zeros)
    drafts = draft_sets(Traversal(), tables, independent(num_drafts))
    found = TraversalLaw(tables, drafts)
    assert float(found.law.sum()) == pytest.approx(1, abs=1e-12)
    assert found.deviation < 1e-12
    survival = drafts.survival(Traversal(), tables)
    torch.testing.assert_close(survival, found.survival, rtol=0, atol=1e-12)


HOT, FLAT = [[0.0, 1.0, 0.0]], [[0.5, 0.25, 0.25]]
EDGES = {
    "equal": (FLAT, FLAT),
    "disjoint": ([[0.0, 0.0, 1.0]], [[0.5, 0.5, 0.0]]),
    "one-hot target": (HOT, FLAT),
    "one-hot draft": (FLAT, HOT),
    "one hot for both": (HOT, HOT),
    "ties": ([[0.25, 0.5, 0.25]], FLAT),
}


@pytest.mark.parametrize(("target", "draft"), EDGES.values(), ids=EDGES.keys())
def test_block_of_laws_at_the_edge_has_the_target_law(target, draft):
    target, draft = (torch.tensor(law, dtype=torch.float64) for law in (target, draft))
    by_depth = [[law.expand(3**depth, -1) for depth in range(3)] for law in (target, draft)]
    tables = Tables(by_depth[0], by_depth[1][:2], by_depth[1][:2])
    found = law_of(tables, 2)
    assert found.deviation < 1e-12
    if torch.equal(target, draft):
        assert found.survival.tolist() == pytest.approx([1, 1], abs=1e-12)


@pytest.mark.parametrize("seed", [0, 1], ids=["full support", "zeros"])
def test_trees_with_branches_and_early_leaves_have_the_target_law(seed):
    # its drafts are told apart by their tokens alone: further draws at a node only add children
    tables = Tables.random(3, 2, seed, zeros=seed == 1)
    assert TraversalLaw(tables, draft_sets(Traversal(), tables, rollover)).deviation < 1e-12


# ---- theorems


def survival_of(rule, tables, num_drafts):
    return draft_sets(rule, tables, independent(num_drafts)).survival(rule, tables)


@pytest.mark.parametrize("seed", range(3), ids="seed={}".format)
def test_one_path_is_block_verification(seed):
    # Sun et al., arXiv 2403.10444: sum over the prefixes of draft probability times weight
    tables = Tables.random(3, 3, seed, zeros=seed == 1)
    tokens = tuples(3, 3)
    ratio = text_probability(tables.target, tokens) / text_probability(tables.draft, tokens)
    weight, expected = torch.ones(27, dtype=torch.float64), 1.0
    chance = text_probability(tables.draft, tokens).prod(1)
    for depth in range(3):
        weight = (weight * ratio[:, depth]).clamp_max(1)
        expected += float((chance * weight)[chance > 0].sum())
    by_block = float(survival_of(Traversal(), tables, 1).sum()) + 1
    assert by_block == pytest.approx(expected, abs=1e-12)
    # block verification accepts the most of one path
    assert by_block >= 1 + float(block_law(KSeq(), tables, 1).survival.sum()) - 1e-12


@pytest.mark.parametrize("vocab", [3, 4])
def test_one_level_is_recursive_rejection_of_the_distinct_draws(vocab):
    tables = Tables.random(vocab, 1, seed=5, zeros=True)
    expected = torch.zeros(())
    for drawn in tuples(vocab, 3):
        distinct = torch.tensor(list(dict.fromkeys(drawn.tolist())))
        chance = tables.draft[0][0, drawn].prod()
        if chance > 0:
            law = RecursiveWithoutReplacement().law(
                tables.target[0][0], tables.draft[0][0], distinct
            )
            expected = expected + chance * law[distinct].sum()
    found = survival_of(Traversal(), tables, 3)
    # a recovered token is never a rejected candidate there
    assert float(found) == pytest.approx(float(expected), abs=1e-12)


# ---- the walk


def test_a_leaf_is_accepted_as_often_as_its_weight_says():
    node = Node(path=2, depth=3, parent=Node(0, 0), weight=0.37)

    class Number:
        seed = torch.zeros(1)

        def uniform(self, role, index, *, depth, path):
            assert (role, index.tolist(), depth, path) == (Role.ACCEPT, [[0]], 3, 2)
            return torch.tensor([[self.number]], dtype=torch.float64)

    noise = Number()
    for noise.number, accepted in ((0.37 - 1e-12, True), (0.37, False), (0.9, False)):
        assert node.accepted(noise) == accepted
    noise.number = 0.5
    node.weight = 0.0
    assert not node.accepted(noise)


def test_no_number_is_read_twice_and_no_law_before_its_time():
    tables = Tables.random(3, 3, seed=4, zeros=False)
    paths = tuples(3, 3)[torch.tensor([[5, 17, 4, 26, 5, 13]])]

    class Watched(TabledBlock):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.fetched = []

        def target(self, rows, path, depth):
            self.fetched.append(
                (int(prefix_number(self.draft_token_ids[0, path], depth, 3)), depth)
            )
            return super().target(rows, path, depth)

    names = []
    uniform = Noise.uniform

    def named(noise, role, index, *, depth, path):
        names.append((int(role), depth, path))
        return uniform(noise, role, index, depth=depth, path=path)

    farthest = 0
    with patch.object(Noise, "uniform", named):
        for seed in range(60):
            names.clear()
            block = Watched(tables, paths)
            verified = Traversal().verify(block, Noise.create(1, seed=seed, device="cpu"))
            leaves = [name for name in names if name[0] == Role.ACCEPT]
            assert len(set(leaves)) == len(leaves)
            # a leaf's law is fetched where it is accepted; the walk has been at the nodes above all leaves before
            assert len(set(block.fetched)) == len(block.fetched)
            if len(leaves) == 1:
                assert len(block.fetched) == int(verified.num_accepted) + 1
            farthest = max(farthest, len(leaves))
    assert farthest > 4


@pytest.mark.parametrize("behind", [-1, 0], ids=["no token", "any token"])
def test_ends_of_paths_are_leaves(behind):
    tables = Tables.random(3, 2, seed=1, zeros=False)
    equal = Tables(tables.target, tables.target[:2], tables.target[:2])
    paths = torch.tensor([[[1, behind], [2, 0], [behind, behind]]])
    drawn = torch.tensor([[[True, False], [True, True], [False, False]]])
    block = TabledBlock(equal, paths, drawn)
    verified = Traversal().verify(block, Noise.create(1, seed=0, device="cpu"))
    assert (int(verified.num_accepted), int(verified.survivor_path)) == (1, 0)
    assert verified.output_token_ids[0, 0] == 1
    assert verified.output_token_ids[0, 1] >= 0
    assert verified.output_token_ids[0, 2] == -1
    assert Traversal().survival(block).tolist() == [[1.0, 0.0]]


def test_verified_blocks_follow_their_closed_law():
    # false-alarm rate 1e-4 a test with any seed; the seed is fixed
    rows = 1200
    tables = Tables.random(3, 2, seed=4, zeros=False)
    drafts = draft_sets(Traversal(), tables, independent(2))
    generator = torch.Generator().manual_seed(0)
    which = torch.multinomial(drafts.weight, rows, replacement=True, generator=generator)
    noise = Noise.create(rows, seed=1, device="cpu")
    verified = Traversal().verify(TabledBlock(tables, drafts.paths[which]), noise)
    first = verified.output_token_ids[:, 0].bincount(minlength=3)
    assert chisquare(first, tables.target[0][0] * rows).pvalue > 1e-4
    survival = torch.cat([torch.ones(1).double(), drafts.survival(Traversal(), tables)])
    stops = survival - torch.cat([survival[1:], torch.zeros(1).double()])
    assert chisquare(verified.num_accepted.bincount(minlength=3), stops * rows).pvalue > 1e-4


# ---- mutations


def stale_weight(weight, laws, column):
    return weight, after_rejection(weight, laws, column)[1]


def weight_of_the_root(weight, laws, column):
    return after_rejection(1.0, laws, column)


def stale_target(weight, laws, column):
    left, moved = after_rejection(weight, laws, column)
    return left, NodeLaws(laws.target, moved.draft)


def draft_not_renormalised(weight, laws, column):
    left, moved = after_rejection(weight, laws, column)
    draft = laws.draft.clone()
    draft[0, column] = 0
    return left, NodeLaws(moved.target, draft)


def stale_draft(weight, laws, column):
    left, moved = after_rejection(weight, laws, column)
    return left, NodeLaws(moved.target, laws.draft)


def mutant_of(name, changed):
    return pytest.param(name, changed, id=getattr(changed, "__name__", name))


def by_token(paths, drawn, real=traversal.trie):
    return real(*zip(*sorted(zip(paths, drawn, strict=True)), strict=True))


def without_the_parent(weight, laws, column, real=traversal.child_weight):
    return real(1.0, laws, column)


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        mutant_of("after_rejection", stale_weight),
        mutant_of("after_rejection", weight_of_the_root),
        mutant_of("after_rejection", stale_target),
        mutant_of("after_rejection", draft_not_renormalised),
        mutant_of("after_rejection", stale_draft),
        mutant_of("child_weight", without_the_parent),
        mutant_of("trie", by_token),
    ],
)
def test_another_walk_is_noticed(monkeypatch, name, changed):
    tables = Tables.random(3, 2, seed=3, zeros=False)
    assert law_of(tables, 2).deviation < 1e-12
    monkeypatch.setattr(traversal, name, changed)
    assert law_of(tables, 2).deviation > 5e-3
