"""Whole blocks: their exact laws through the verifier's own walk, and the public door `verify_block`."""

from dataclasses import replace

import pytest
import torch
from enumeration import (
    ScriptedVerifier,
    TabledBlock,
    Tables,
    block_law,
    draft_sets,
    independent,
    node_law,
    optimum_of_drafts,
    random_laws,
    without_token,
)
from path_enumeration import path_law
from test_k_seq import NODES

import warpdraft.verifiers.k_seq as k_seq
from warpdraft.kernels.k_seq import k_seq_plan
from warpdraft.kernels.noise import Noise
from warpdraft.kernels.support import BAD_PARAMETER, EMPTY, NAN, POSITIVE_INFINITY
from warpdraft.laws import Law
from warpdraft.rules import MinP, TopH, TopP
from warpdraft.truncation import truncate
from warpdraft.verification import VERIFIERS, NodeVerifier, get_verifier, verify_block
from warpdraft.verifiers.k_seq import KSeq
from warpdraft.verifiers.optimal import Optimal

# vocabulary, K, L
SIZES = [(2, 2, 2), (3, 2, 2), (2, 3, 2), (2, 2, 3), (4, 2, 1), (3, 3, 1), (3, 1, 3)]
on_sizes = pytest.mark.parametrize(("vocab", "num_drafts", "length"), SIZES)


# every verifier that settles node by node, and hybrid drafts
NODE_VERIFIERS = {
    **{name: rule for name in VERIFIERS if isinstance(rule := get_verifier(name), NodeVerifier)},
    "optimal, one top token": get_verifier("optimal", num_top=1),
    "optimal, two top tokens": get_verifier("optimal", num_top=2),
    "optimal, lex": get_verifier("optimal", selector="lex"),
}
on_verifiers = pytest.mark.parametrize("rule", NODE_VERIFIERS.values(), ids=NODE_VERIFIERS.keys())
on_verifiers_of_iid_drafts = pytest.mark.parametrize(
    "rule",
    [rule for rule in NODE_VERIFIERS.values() if rule.drafts == "iid" and rule.num_top(3) == 0],
    ids=lambda rule: rule.name,
)


def rollover(paths):
    """Two draws at the root, three at the level below, shared out by what the root drew.

    Equal root tokens: all three at their node, one more than paths came there. Else the larger token takes two of them;
    where it came first it takes all, and the other one is a leaf.
    """
    if paths == ((),):
        return [0, 0]
    if len(paths[0]) > 1:
        return list(range(len(paths)))
    first, second = paths
    if first == second:
        return [0, 1, 0]
    return [0, 0, 0] if first > second else [0, 1, 1]


def branching(paths):
    """Two draws at the root; below the first of them two, below the other none where its token is 0."""
    if paths == ((),):
        return [0, 0]
    return [0, 0] if len(paths) == 1 or paths[1] == (0,) else [0, 0, 1]


# ---- one node of every verifier


# every kind of node; the tests of each verifier have more
KINDS = ("random", "zeros in both", "equal", "disjoint", "one-hot target", "one-hot draft")


@pytest.mark.parametrize("node", [NODES[kind] for kind in KINDS], ids=KINDS)
@on_verifiers
def test_emitted_token_has_the_target_law_and_its_drafts_bound_it(rule, node):
    num_drafts = 3
    target, draft = node
    law, acceptance = node_law(rule, target, draft, num_drafts)
    torch.testing.assert_close(law, target, rtol=0, atol=1e-12)
    expected = float(rule.expected_acceptance(target[None], draft[None], num_drafts))
    # the grid of `optimal` can recover a candidate, which is not expected; the others' formulas are exact
    if isinstance(rule, Optimal):
        assert acceptance - 3e-2 < expected < acceptance + 1e-12
    else:
        assert expected == pytest.approx(acceptance, abs=1e-12)
    assert acceptance < optimum_of_drafts(rule, target, draft, num_drafts) + 1e-12


@on_verifiers
def test_a_support_alone_gives_the_same_token(rule):
    rows, vocab, width = 200, 40, 6
    generator = torch.Generator().manual_seed(3)
    token_ids = torch.rand(rows, vocab, generator=generator).argsort(1)[:, :width].sort(1).values
    laws = [random_laws(rows, width, seed=seed, spread=0.7) for seed in (1, 2)]
    whole = [torch.zeros(rows, vocab).double().scatter(1, token_ids, law) for law in laws]
    num_top = rule.num_top(3)
    order = laws[1].argsort(dim=1, descending=True, stable=True)
    candidates = torch.cat([order[:, :num_top], order[:, num_top:3].flip(1)], dim=1)
    alive = torch.ones_like(candidates, dtype=torch.bool)
    noise = Noise.create(rows, seed=1, device="cpu")
    column = rule.select(*laws, candidates, alive, noise, 0, token_ids)
    token = rule.select(*whole, token_ids.gather(1, candidates), alive, noise, 0)
    assert torch.equal(token_ids.gather(1, column[:, None]).squeeze(1), token)


# ---- a block of every verifier


def check_block(rule, tables, drafts, num_drafts=0):
    """The law of the block, and its acceptance by depth from `survival`."""
    block = block_law(rule, tables, num_drafts, drafts)
    assert float(block.chance.sum()) == pytest.approx(1, abs=1e-12)
    assert block.deviation < 1e-12
    survival = drafts.survival(rule, tables)
    torch.testing.assert_close(survival, block.survival, rtol=0, atol=1e-12)


@pytest.mark.parametrize("zeros", [False, True], ids=["full support", "zeros in both laws"])
@pytest.mark.parametrize(
    ("vocab", "num_drafts", "length"), [(3, 2, 2), (2, 3, 2), (2, 2, 3), (3, 3, 1)]
)
@on_verifiers
def test_block_of_independent_paths_has_the_law_of_plain_sampling(
    rule, vocab, num_drafts, length, zeros
):
    # where candidates are distinct, each of them is continued by a single path
    tables = Tables.random(vocab, length, seed=3, zeros=zeros)
    check_block(rule, tables, draft_sets(rule, tables, independent(num_drafts)))


@pytest.mark.parametrize("seed", [0, 1], ids=["full support", "zeros in both laws"])
@on_verifiers
def test_block_with_branches_and_early_leaves_has_the_law_of_plain_sampling(rule, seed):
    tables = Tables.random(3, 2, seed, zeros=seed == 1)
    check_block(rule, tables, draft_sets(rule, tables, branching))


@pytest.mark.parametrize("seed", [0, 1], ids=["full support", "zeros in both laws"])
@on_verifiers_of_iid_drafts
def test_block_of_a_rollover_tree_has_the_law_of_plain_sampling(rule, seed):
    tables = Tables.random(3, 2, seed, zeros=seed == 1)
    check_block(rule, tables, draft_sets(rule, tables, rollover))


@pytest.mark.parametrize("seed", [0, 1], ids=["full support", "zeros in both laws"])
@pytest.mark.parametrize("tree", [rollover, branching], ids=["rollover", "branching"])
@pytest.mark.parametrize("selector", ["clip", "lex"])
def test_block_verification_of_a_tree_has_the_law_of_plain_sampling(selector, tree, seed):
    tables = Tables.random(3, 2, seed, zeros=seed == 1)
    rule = get_verifier("optimal_block", selector=selector)
    drafts = draft_sets(rule, tables, tree)
    found = path_law(rule, tables, 0, drafts)
    assert found.deviation < 1e-12
    expected = 1 + float(drafts.survival(rule, tables).sum())
    assert found.expected_tokens == pytest.approx(expected, abs=1e-7)


def test_draws_that_look_at_themselves_are_noticed():
    # a further draw at the root until two differ: the number of draws depends on the draws
    tables = Tables.random(3, 1, seed=0, zeros=False)
    drafts = draft_sets(KSeq(), tables, independent(3))
    first, second = drafts.paths[:, 0, 0], drafts.paths[:, 1, 0]
    drawn = drafts.drawn.clone()
    drawn[first != second, 2] = False
    paths = drafts.paths.masked_fill(~drawn, -1)
    stopped = replace(drafts, paths=paths, drawn=drawn)
    assert block_law(KSeq(), tables, 3, stopped).deviation > 1e-3


# ---- the law of a block, exactly


@pytest.mark.parametrize("zeros", [False, True], ids=["full support", "zeros in both laws"])
@on_sizes
def test_block_has_the_law_of_plain_sampling(vocab, num_drafts, length, zeros):
    for seed in range(2):
        tables = Tables.random(vocab, length, seed, zeros=zeros)
        block = block_law(KSeq(), tables, num_drafts)
        assert float(block.law.sum()) == pytest.approx(1, abs=1e-12)
        assert block.deviation < 1e-12


@on_sizes
def test_walk_reports_what_it_accepted(vocab, num_drafts, length):
    block = block_law(KSeq(), Tables.random(vocab, length, seed=2, zeros=False), num_drafts)
    verified = block.verified
    rows = zip(
        block.paths.tolist(),
        verified.output_token_ids.tolist(),
        verified.num_accepted.tolist(),
        verified.survivor_path.tolist(),
        strict=True,
    )
    for paths, output, accepted, survivor in rows:
        tokens = [token for token in output if token >= 0]
        assert output == tokens + [-1] * (length + 1 - len(tokens))
        # as long as some path agrees with what is emitted; then comes one more token
        longest = max(
            depth
            for depth in range(length + 1)
            if any(path[:depth] == output[:depth] for path in paths)
        )
        assert accepted == longest
        assert len(tokens) == longest + 1
        assert paths[survivor][:accepted] == output[:accepted]


def test_acceptance_matches_the_closed_form_at_the_root():
    tables = Tables.random(3, 1, seed=3, zeros=False)
    block = block_law(KSeq(), tables, 3)
    # each outcome of the root is scripted once for every bonus token that could follow an acceptance
    first = block.verified.num_accepted >= 1
    expected = KSeq().expected_acceptance(tables.target[0], tables.draft[0], 3)
    assert float(block.weight[first].sum()) == pytest.approx(float(expected), abs=1e-12)


# ---- mutations that the enumeration must notice


def plan_for_all_paths(num_drafts):
    """k is not reduced to the survivors."""
    return lambda target, draft, count: k_seq_plan(
        target, draft, torch.full_like(count, num_drafts)
    )


def plan_from_below(target, draft, count):
    """rho a little below its root, where the residual turns negative and is clamped."""
    plan = k_seq_plan(target, draft, count)
    rho = plan.rho * 0.98
    beta = torch.minimum(draft, target / rho[:, None]).sum(1)
    return replace(plan, rho=rho, beta=beta, acceptance=1 - (1 - beta) ** count)


def residual_without_factor(plan, target, draft):
    """The accepted part enters the residual without p_acc / beta."""
    return (target - torch.minimum(draft, target / plan.rho[:, None])).clamp_min(0)


def deviation(tables, num_drafts):
    return block_law(KSeq(), tables, num_drafts).deviation


@pytest.fixture
def tables():
    return Tables.random(3, 2, seed=0, zeros=False)


def test_number_of_candidates_not_reduced_is_noticed(tables, monkeypatch):
    monkeypatch.setattr(k_seq, "k_seq_plan", plan_for_all_paths(2))
    assert deviation(tables, 2) > 1e-4


def test_rho_below_its_root_is_noticed(tables, monkeypatch):
    monkeypatch.setattr(k_seq, "k_seq_plan", plan_from_below)
    assert deviation(tables, 2) > 1e-4


def test_rho_above_its_root_is_harmless(tables, monkeypatch):
    # the other half of the claim: the upper end of any bracket gives a valid plan
    def plan_from_above(target, draft, count):
        plan = k_seq_plan(target, draft, count)
        rho = torch.minimum(plan.rho * 1.2, count.to(plan.rho.dtype))
        beta = torch.minimum(draft, target / rho[:, None]).sum(1)
        return replace(plan, rho=rho, beta=beta, acceptance=1 - (1 - beta) ** count)

    monkeypatch.setattr(k_seq, "k_seq_plan", plan_from_above)
    assert deviation(tables, 2) < 1e-12


@pytest.mark.parametrize("num_drafts", [2, 3])
def test_residual_without_its_factor_is_noticed(monkeypatch, num_drafts):
    monkeypatch.setattr(k_seq, "residual_mass", residual_without_factor)
    assert deviation(Tables.random(3, 1, seed=0, zeros=False), num_drafts) > 1e-4


def test_bonus_from_the_draft_is_noticed(tables, monkeypatch):
    real = TabledBlock.target
    bonus = random_laws(9, 3, seed=8)

    def target(self, rows, path, depth):
        law = real(self, rows, path, depth)
        return Law.of_probs(bonus[self._prefix(rows, path, depth)]) if depth == 2 else law

    monkeypatch.setattr(TabledBlock, "target", target)
    assert deviation(tables, 2) > 1e-4


def test_raw_draft_law_is_noticed(tables):
    # the paths come from the truncated law, the verifier is told the law before truncation
    truncated = [without_token(laws, slice(None), 0) for laws in tables.draft]
    assert deviation(Tables(tables.target, truncated, truncated), 2) < 1e-12
    assert deviation(Tables(tables.target, truncated, tables.draft), 2) > 1e-4


def test_dead_paths_among_the_candidates_are_noticed(tables, monkeypatch):
    real = ScriptedVerifier.select

    def with_all_paths(self, target, draft, candidates, alive, *rest):
        return real(self, target, draft, candidates, torch.ones_like(alive), *rest)

    monkeypatch.setattr(ScriptedVerifier, "select", with_all_paths)
    assert deviation(tables, 2) > 1e-4


# ---- verify_block

BATCH, PATHS, LENGTH, VOCAB = 5, 3, 2, 11


def drafted(dtype=torch.float32, seed=0):
    """Arguments of `verify_block`: a node for every prefix of every path, equal prefixes with equal logits."""
    generator = torch.Generator().manual_seed(seed)
    token_ids = torch.randint(0, 3, (BATCH, PATHS, LENGTH), generator=generator)
    shared = trie(token_ids)
    nodes = PATHS * (LENGTH + 1)
    node_index = torch.arange(nodes).view(1, PATHS, LENGTH + 1).expand(BATCH, -1, -1)
    by_prefix = torch.randn(2, BATCH, nodes, VOCAB, generator=generator) * 2
    rows = torch.arange(BATCH)[:, None]
    target, draft = (logits[rows, shared.flatten(1)].to(dtype) for logits in by_prefix)
    return target, draft, token_ids, node_index


def trie(token_ids):
    """Node index `[batch, K, L + 1]` in which equal prefixes share a node."""
    index = torch.zeros(*token_ids.shape[:2], token_ids.shape[2] + 1, dtype=torch.int64)
    for row, paths in enumerate(token_ids.tolist()):
        seen = {}
        for path, tokens in enumerate(paths):
            for depth in range(len(tokens) + 1):
                index[row, path, depth] = seen.setdefault(tuple(tokens[:depth]), len(seen))
    return index


def assert_same(one, other):
    for name in ("output_token_ids", "num_accepted", "survivor_path", "status"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name


class GivenLaws:
    """A block of laws made here, with `truncate` and a softmax, for all nodes at once."""

    def __init__(self, target, draft, token_ids, node_index, rules, temperature):
        self.draft_token_ids = token_ids
        self.drawn = torch.ones_like(token_ids, dtype=torch.bool)
        self.status = torch.zeros(len(token_ids), dtype=torch.int8)
        self.node_index = node_index
        self.laws = [self.of(logits, rules, temperature) for logits in (target, draft)]

    @staticmethod
    def of(logits, rules, temperature):
        heat = torch.as_tensor(temperature, dtype=torch.float32).reshape(-1, 1).expand(BATCH, -1)
        columns = []
        for node in logits.unbind(1):
            kept = truncate(node, rules, temperature=temperature)
            columns.append(torch.softmax(kept.float() / torch.where(heat == 0, 1.0, heat), dim=-1))
        return torch.stack(columns, dim=1)

    def target(self, rows, path, depth):
        return Law.of_probs(self.laws[0][rows, self.node_index[rows, path, depth]])

    def draft(self, rows, path, depth):
        return Law.of_probs(self.laws[1][rows, self.node_index[rows, path, depth]])


SETTINGS = {
    "plain": ([], 1.0),
    "temperature": ([], 0.6),
    "greedy": ([], 0.0),
    "one rule, not listed": (TopH(0.9), 1.0),
    "min-p, hot": ([MinP(0.05)], 1.7),
    "two rules": ([TopP(0.9), MinP(0.02)], 1.2),
    "temperature of each row": ([TopH(0.8)], torch.tensor([0.5, 1.0, 0.0, 2.0, 1.3])),
    "temperature as a tensor": ([], torch.tensor(0.8)),
    "parameter of each row": ([MinP(torch.tensor([0.0, 0.1, 0.02, 0.5, 1.0]))], 1.5),
}


@pytest.mark.parametrize(("rules", "temperature"), SETTINGS.values(), ids=SETTINGS.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_verify_block_weighs_the_processed_laws(dtype, rules, temperature):
    arguments = drafted(dtype)
    for seed in range(4):
        block = verify_block(
            *arguments, verifier="k_seq", rules=rules, temperature=temperature, seed=seed
        )
        assert block.output_token_ids.shape == (BATCH, LENGTH + 1)
        assert block.output_token_ids.dtype == torch.int64
        assert (
            block.num_accepted.shape == block.survivor_path.shape == block.status.shape == (BATCH,)
        )
        assert not block.status.any()
        noise = Noise.create(BATCH, seed=seed, device="cpu")
        assert_same(block, KSeq().verify(GivenLaws(*arguments, rules, temperature), noise))


def drafted_for(name):
    """Arguments of `verify_block` that the verifier takes."""
    target, draft, token_ids, node_index = drafted()
    paths = 1 if name == "block" else PATHS
    return target, draft, token_ids[:, :paths], node_index[:, :paths]


@pytest.mark.parametrize("name", VERIFIERS)
def test_supports_alone_give_what_whole_laws_give(name):
    arguments, rules = drafted_for(name), [TopH(0.9)]
    for seed in range(10):
        block = verify_block(*arguments, verifier=name, rules=rules, seed=seed)
        noise = Noise.create(BATCH, seed=seed, device="cpu")
        assert_same(block, get_verifier(name).verify(GivenLaws(*arguments, rules, 1.0), noise))


@pytest.mark.parametrize("name", VERIFIERS)
def test_a_row_without_a_law_is_alone_for_every_verifier(name):
    arguments = drafted_for(name)
    sound = verify_block(*arguments, verifier=name, seed=5)
    broken = arguments[0].clone()
    broken[2, :, 3] = torch.nan
    block = verify_block(broken, *arguments[1:], verifier=name, seed=5)
    assert block.status.tolist() == [0, 0, NAN, 0, 0]
    assert block.output_token_ids[2].tolist() == [-1] * (LENGTH + 1)
    others = torch.tensor([0, 1, 3, 4])
    assert torch.equal(block.output_token_ids[others], sound.output_token_ids[others])


def test_shared_nodes_give_what_separate_nodes_give():
    target, draft, token_ids, node_index = drafted()
    shared = trie(token_ids)
    assert int(shared.max()) < PATHS * (LENGTH + 1) - 1, "no node is shared"
    merged = []
    for logits in (target, draft):
        nodes = torch.full_like(logits, torch.nan)
        nodes.scatter_(1, shared.flatten(1)[:, :, None].expand(-1, -1, VOCAB), logits)
        merged.append(nodes)
    for seed in range(20):
        one = verify_block(target, draft, token_ids, node_index, seed=seed)
        assert_same(one, verify_block(*merged, token_ids, shared, seed=seed))


def test_rows_are_named_by_their_sequence():
    arguments = drafted()
    whole = verify_block(*arguments, seed=3, step=2, sequence=torch.tensor([9, 4, 7, 2**40, 0]))
    order = torch.tensor([3, 0, 4])
    some = verify_block(
        *(tensor[order] for tensor in arguments),
        seed=3,
        step=2,
        sequence=torch.tensor([2**40, 9, 0]),
    )
    assert torch.equal(some.output_token_ids, whole.output_token_ids[order])
    later = verify_block(*arguments, seed=3, step=3, sequence=torch.tensor([9, 4, 7, 2**40, 0]))
    assert not torch.equal(later.output_token_ids, whole.output_token_ids)


def test_a_block_of_no_drafted_tokens_is_the_bonus_alone():
    target, draft, token_ids, node_index = drafted()
    block = verify_block(target, draft, token_ids[:, :, :0], node_index[:, :, :1], temperature=0.0)
    assert torch.equal(block.output_token_ids[:, 0], target[:, 0].argmax(-1))


def test_inputs_are_left_as_they_were():
    arguments = drafted()
    before = [tensor.clone() for tensor in arguments]
    verify_block(*arguments, rules=[MinP(0.1)], seed=0)
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(arguments, before, strict=True))


@pytest.mark.parametrize("model", [0, 1], ids=["target", "draft"])
@pytest.mark.parametrize(
    ("value", "status"),
    [(torch.nan, NAN), (torch.inf, POSITIVE_INFINITY), (-torch.inf, EMPTY)],
    ids=["nan", "inf", "empty"],
)
def test_a_row_without_a_law_is_marked_and_alone(model, value, status):
    arguments = drafted()
    sound = verify_block(*arguments, rules=[TopH(0.9)], seed=5)
    broken = arguments[model].clone()
    # one such logit is a fault, but -inf must fill the row
    broken[2, :, slice(None) if status == EMPTY else slice(3, 4)] = value
    block = verify_block(
        *(broken if place == model else tensor for place, tensor in enumerate(arguments)),
        rules=[TopH(0.9)],
        seed=5,
    )
    assert block.status.tolist() == [0, 0, status, 0, 0]
    assert block.output_token_ids[2].tolist() == [-1] * (LENGTH + 1)
    assert (int(block.num_accepted[2]), int(block.survivor_path[2])) == (0, 0)
    others = torch.tensor([0, 1, 3, 4])
    assert torch.equal(block.output_token_ids[others], sound.output_token_ids[others])


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": torch.tensor([1.0, -1.0, 1.0, 1.0, 1.0])},
        {"rules": [MinP(torch.tensor([0.1, 1.5, 0.1, 0.1, 0.1]))]},
    ],
    ids=["temperature", "min_p"],
)
def test_a_parameter_out_of_range_in_one_row_marks_that_row(options):
    block = verify_block(*drafted(), seed=0, **options)
    assert block.status.tolist() == [0, BAD_PARAMETER, 0, 0, 0]
    assert block.output_token_ids[1].tolist() == [-1] * (LENGTH + 1)


def many_paths(paths, length):
    """Arguments for K paths of L tokens over a vocabulary of 2, all at one node."""
    logits = torch.zeros(1, 1, 2)
    token_ids = torch.zeros(1, paths, length, dtype=torch.int64)
    return logits, logits, token_ids, torch.zeros(1, paths, length + 1, dtype=torch.int64)


WRONG = {
    "token ids of another dtype": (
        TypeError,
        "draft_token_ids must be int64",
        lambda t, d, i, n: (t, d, i.int(), n),
    ),
    "nodes of another dtype": (
        TypeError,
        "node_index must be int64",
        lambda t, d, i, n: (t, d, i, n.float()),
    ),
    "integer logits": (
        TypeError,
        "float32, bfloat16",
        lambda t, d, i, n: (t.long(), d.long(), i, n),
    ),
    "token ids of one path": (
        ValueError,
        r"\[batch, K, L\]",
        lambda t, d, i, n: (t, d, i[:, 0], n),
    ),
    "no path": (ValueError, "K = 0", lambda t, d, i, n: (t, d, i[:, :0], n[:, :0])),
    "too many paths": (ValueError, "K = 4097", lambda *_: many_paths(4097, 1)),
    "paths too long": (ValueError, "L = 256", lambda *_: many_paths(1, 256)),
    "nodes without leaves": (
        ValueError,
        r"\[batch, K, L \+ 1\]",
        lambda t, d, i, n: (t, d, i, n[:, :, :-1]),
    ),
    "target of another batch": (
        ValueError,
        "target_logits must be",
        lambda t, d, i, n: (t[1:], d, i, n),
    ),
    "draft without nodes": (
        ValueError,
        "draft_logits must be",
        lambda t, d, i, n: (t, d[:, 0], i, n),
    ),
    "two widths": (ValueError, "got 11 and 7", lambda t, d, i, n: (t, d[:, :, :7], i, n)),
    "empty vocabulary": (
        ValueError,
        "empty vocabulary",
        lambda t, d, i, n: (t[:, :, :0], d[:, :, :0], i, n),
    ),
    "token id too large": (
        ValueError,
        r"draft_token_ids must be in \[0, 10\]",
        lambda t, d, i, n: (t, d, i + 10, n),
    ),
    "negative token id": (
        ValueError,
        "draft_token_ids must be in",
        lambda t, d, i, n: (t, d, i - 1, n),
    ),
    "node too large": (
        ValueError,
        r"node_index must be in \[0, 8\]",
        lambda t, d, i, n: (t, d, i, n + 1),
    ),
    "negative node": (ValueError, "node_index must be in", lambda t, d, i, n: (t, d, i, n - 1)),
    "list of target logits": (
        TypeError,
        "target_logits must be a tensor, got list",
        lambda t, d, i, n: (t.tolist(), d, i, n),
    ),
    "list of draft logits": (
        TypeError,
        "draft_logits must be a tensor, got list",
        lambda t, d, i, n: (t, d.tolist(), i, n),
    ),
    "list of token ids": (
        TypeError,
        "draft_token_ids must be a tensor, got list",
        lambda t, d, i, n: (t, d, i.tolist(), n),
    ),
    "list of nodes": (
        TypeError,
        "node_index must be a tensor, got list",
        lambda t, d, i, n: (t, d, i, n.tolist()),
    ),
    "complex target logits": (
        TypeError,
        "target_logits must be float32, .* got torch.complex64",
        lambda t, d, i, n: (t.to(torch.complex64), d, i, n),
    ),
    "int draft logits": (
        TypeError,
        "draft_logits must be float32, .* got torch.int64",
        lambda t, d, i, n: (t, d.long(), i, n),
    ),
    "no nodes": (ValueError, "target_logits have no nodes", lambda t, d, i, n: (t[:, :0], d, i, n)),
    "target elsewhere": (
        ValueError,
        "target_logits must be on the device of draft_token_ids, cpu, got meta",
        lambda t, d, i, n: (t.to("meta"), d, i, n),
    ),
    "draft elsewhere": (
        ValueError,
        "draft_logits must be on the device of draft_token_ids, cpu, got meta",
        lambda t, d, i, n: (t, d.to("meta"), i, n),
    ),
    "inner node without draft": (ValueError, "inner nodes", lambda t, d, i, n: (t, d[:, :7], i, n)),
}


@pytest.mark.parametrize(("error", "message", "change"), WRONG.values(), ids=WRONG.keys())
def test_wrong_tensors_are_refused(error, message, change):
    with pytest.raises(error, match=message):
        verify_block(*change(*drafted()), seed=0)


@pytest.mark.parametrize(
    ("error", "message", "options"),
    [
        (ValueError, "verifier must be one of", {"verifier": "spectr"}),
        (ValueError, "backend", {"backend": "cuda"}),
        (TypeError, "rules must be", {"rules": [0.9]}),
        (ValueError, "temperature must be in", {"temperature": -0.5}),
        (TypeError, "temperature must be a number", {"temperature": "1"}),
        (TypeError, "drawn must be a tensor, got list", {"drawn": [True]}),
        (TypeError, "generator must be a torch.Generator, got 3", {"generator": 3}),
        (
            ValueError,
            r"temperature must be a number or \[5\], got \[6\]",
            {"temperature": torch.ones(6)},
        ),
        (
            ValueError,
            r"min_p must be a number or \[5\], got \[4\]",
            {"rules": MinP(torch.full((4,), 0.1))},
        ),
        (ValueError, "seed or generator", {"seed": 1, "generator": torch.Generator()}),
        (ValueError, "step must be in", {"step": -1}),
        (ValueError, "sequence must be", {"sequence": torch.arange(4)}),
        (TypeError, "sequence must be", {"sequence": torch.arange(5).float()}),
    ],
)
def test_wrong_options_are_refused(error, message, options):
    with pytest.raises(error, match=message):
        verify_block(*drafted(), **options)


def test_every_verifier_has_its_name():
    for name in VERIFIERS:
        assert get_verifier(name).name == name
