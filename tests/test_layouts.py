"""Both layouts of the drafted tree: the same logits, the same caches afterwards, the same texts."""

from __future__ import annotations

import pytest
import torch
from test_loop import prompts, run
from tiny_models import ARCHITECTURES, tiny_model

from warpdraft.cached_model import CachedModel
from warpdraft.draft_tree import DraftTree, Draws
from warpdraft.layouts import PathRows, TreeRow
from warpdraft.tree_mask import PROVEN, choose_layout

# prefixes that are shared, a path that ends early, one that branches off; the second text drafts fewer nodes
GROWN = [
    ([[0, 0, 0], [0, 0, 0]], [[5, 5, 9], [7, 7, 7]]),
    ([[0, 1, 2], [0, 1, 2]], [[3, 4, -1], [2, 2, 2]]),
    ([[0, 1, 2, 0], [0, 1, 2, 0]], [[8, 6, -1, 1], [2, 3, 3, -1]]),
]


def grown(depth: int = 3) -> DraftTree:
    tree = DraftTree(2, torch.device("cpu"))
    for source, token_ids in GROWN[:depth]:
        tree.grow(Draws(torch.tensor(source), torch.tensor(token_ids)))
    return tree


def test_paths_that_agree_stand_at_one_node() -> None:
    tree = grown()
    assert tree.token_ids[0].tolist() == [[5, 3, 8], [5, 4, 6], [9, -1, -1], [5, 3, 1]]
    assert tree.drawn[0].tolist() == [
        [True] * 3,
        [True] * 3,
        [True, False, False],
        [False, False, True],
    ]
    assert tree.column[0].tolist() == [[0, 0, 0, 0], [0, 0, 1, 1], [0, 1, -1, -1], [0, 0, 0, 2]]
    assert tree.node()[0].tolist() == [[0, 1, 3, 5], [0, 1, 4, 6], [0, 2, 2, 2], [0, 1, 3, 7]]
    assert tree.token_ids[1].tolist() == [[7, 2, 2], [7, 2, 3], [7, 2, 3], [7, 2, -1]]
    assert [level.filled.sum(1).tolist() for level in tree.levels] == [[2, 1], [2, 1], [3, 2]]


def test_a_node_sees_its_ancestors_and_itself() -> None:
    tokens, depth, seen = grown().flat()
    assert tokens[0].tolist() == [5, 9, 3, 4, 8, 6, 1]
    assert depth[0].tolist() == [0, 0, 1, 1, 2, 2, 2]
    lines = [[place for place, sees in enumerate(row) if sees] for row in seen[0].tolist()]
    assert lines == [[0], [1], [0, 2], [0, 3], [0, 2, 4], [0, 3, 5], [0, 2, 6]]


def read_texts(model, lengths: list[int]) -> CachedModel:
    """A cache of texts of these lengths, longer than the sliding windows."""
    cached = CachedModel(model, len(lengths), torch.device("cpu"))
    width = max(lengths)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(2, 64, (len(lengths), width), generator=generator)
    cached.prefill(tokens, torch.tensor(lengths))
    return cached


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_are_equal_and_so_are_those_after_the_commit(architecture, attention) -> None:
    model = tiny_model(architecture, layers=3)
    model.set_attn_implementation(attention)
    assert model.config.model_type in PROVEN
    tree, pending = grown(), torch.tensor([[11], [12]])
    logits, states = [], []
    for layout in (PathRows, TreeRow):
        branches = layout(read_texts(model, [13, 10]))
        nodes, number = branches.score(pending, tree)
        drawn = tree.token_ids >= 0
        text = torch.arange(2)[:, None, None]
        of_paths = nodes[text, number]
        logits.append(of_paths[:, :, 1:][drawn])
        # text 0 keeps the pending token and two of path 3, text 1 the pending token only
        branches.commit(tree, torch.tensor([3, 1]), torch.tensor([3, 1]))
        assert branches.model.lengths.tolist() == [16, 11]
        states.append(branches.model.forward(torch.tensor([[4], [9]])))
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(states[0], states[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_tree_that_grows_level_by_level_has_the_same_logits(architecture) -> None:
    model = tiny_model(architecture, layers=3, dtype=torch.float64)
    found, states = [], []
    for layout in (PathRows, TreeRow):
        branches = layout(read_texts(model, [13, 10]))
        tree = DraftTree(2, torch.device("cpu"))
        levels = [branches.root(torch.tensor([[11], [12]]))[:, 0]]
        for source, token_ids in GROWN[:2]:
            level = tree.grow(Draws(torch.tensor(source), torch.tensor(token_ids)))
            levels.append(branches.extend(tree, level)[level.filled])
        found.append(torch.cat(levels))
        # the second text takes its last token back
        branches.commit(tree, torch.tensor([1, 0]), torch.tensor([2, -1]))
        assert branches.model.lengths.tolist() == [16, 10]
        states.append(branches.model.forward(torch.tensor([[4], [9]])))
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(states[0], states[1], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("structure", ["paths", "rollover"])
@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_texts_do_not_depend_on_the_layout(architecture, structure) -> None:
    target, draft = tiny_model(architecture), tiny_model(architecture, seed=1)
    token_ids, mask = prompts()
    written = [
        run(
            target,
            draft,
            token_ids,
            mask,
            24,
            num_drafts=3,
            verifier="optimal_block",
            structure=structure,
            layout=layout,
            seed=3,
        ).token_ids
        for layout in ("paths", "tree")
    ]
    assert torch.equal(*written)


def test_auto_takes_the_tree_where_it_is_proven_and_pays() -> None:
    model = tiny_model()
    assert choose_layout(model, "auto", one_path=False) == "tree"
    assert choose_layout(model, "auto", one_path=True) == "paths"
    model.config.model_type = "unheard_of"
    assert choose_layout(model, "auto", one_path=False) == "paths"
    assert choose_layout(model, "tree", one_path=False) == "tree"


def test_a_layout_that_the_attention_cannot_run_is_refused() -> None:
    model = tiny_model()
    model.config._attn_implementation = "flex_attention"
    assert choose_layout(model, "auto", one_path=False) == "paths"
    with pytest.raises(ValueError, match="flex_attention"):
        choose_layout(model, "tree", one_path=False)
    with pytest.raises(ValueError, match="layout must be one of"):
        choose_layout(model, "rows", one_path=False)


def test_a_layer_keeps_no_room_that_its_keys_left() -> None:
    cached = read_texts(tiny_model(), [13])
    layer = cached.cache.layers[0]
    cached.branch(4)
    cached.forward(torch.tensor([[5]] * 4))
    assert layer._rooms["keys"].shape[0] == 4
    cached.commit(torch.tensor([2]), torch.tensor([1]))
    assert layer._rooms == {}
    assert layer.keys.shape[0] == 1
