"""k-SEQ at one node: the solver, the closed law, and the code that draws from it."""

import itertools

import pytest
import torch
from enumeration import (
    ScriptedUniform,
    node_law,
    optimal_acceptance,
    random_laws,
    transport_optimum,
    tuples,
    without_token,
)
from scipy.optimize import brentq

import warpdraft.kernels.k_seq as solver
import warpdraft.verifiers.k_seq as k_seq
from warpdraft.kernels.k_seq import (
    acceptance_ratio,
    k_seq_plan,
    k_seq_plan_reference,
    residual_mass,
)
from warpdraft.kernels.noise import Role
from warpdraft.verifiers.k_seq import KSeq


def pair(target, draft):
    return tuple(torch.tensor(law, dtype=torch.float64) for law in (target, draft))


def random_pair(vocab, seed, spread=1.0):
    return (
        random_laws(1, vocab, seed, spread=spread)[0],
        random_laws(1, vocab, seed + 1000, spread=spread)[0],
    )


def with_zeros(vocab, seed, target_token=None, draft_token=None):
    target, draft = random_pair(vocab, seed)
    if target_token is not None:
        target = without_token(target[None], slice(None), target_token)[0]
    if draft_token is not None:
        draft = without_token(draft[None], slice(None), draft_token)[0]
    return target, draft


NODES = {
    "random": random_pair(4, 0),
    "peaked": random_pair(4, 1, spread=0.2),
    "flat": random_pair(4, 2, spread=30.0),
    "five tokens": random_pair(5, 3),
    "two tokens": random_pair(2, 4),
    "one token": pair([1.0], [1.0]),
    "target without a token": with_zeros(4, 5, target_token=1),
    "draft without a token": with_zeros(4, 6, draft_token=2),
    "zeros in both": with_zeros(4, 7, target_token=0, draft_token=3),
    "the same token missing": with_zeros(4, 8, target_token=2, draft_token=2),
    "equal": (random_pair(4, 9)[0],) * 2,
    "nearly equal": pair([0.25, 0.25, 0.5 - 1e-9, 1e-9], [0.25, 0.25, 0.5, 0.0]),
    "disjoint": pair([0.3, 0.7, 0.0, 0.0], [0.0, 0.0, 0.6, 0.4]),
    "nearly disjoint": pair([0.3, 0.7 - 1e-6, 1e-6, 0.0], [1e-7, 0.0, 0.6, 0.4 - 1e-7]),
    "one-hot target": pair([0.0, 1.0, 0.0, 0.0], [0.2, 0.3, 0.4, 0.1]),
    "one-hot draft": pair([0.2, 0.3, 0.4, 0.1], [0.0, 1.0, 0.0, 0.0]),
    "one hot for both": pair([0.0, 1.0, 0.0], [0.0, 1.0, 0.0]),
    "two hot tokens": pair([0.0, 1.0, 0.0], [1.0, 0.0, 0.0]),
}
COUNTS = (1, 2, 3, 4)
on_nodes = pytest.mark.parametrize("node", NODES.values(), ids=NODES.keys())
on_counts = pytest.mark.parametrize("count", COUNTS, ids="n={}".format)


def plan_rows(rows, vocab, spread, seed):
    """Random rows with every number of candidates from 1 to 8."""
    target = random_laws(rows, vocab, seed, spread=spread)
    draft = random_laws(rows, vocab, seed + 1, spread=spread)
    return target, draft, torch.arange(rows) % 8 + 1


def solved_independently(target, draft, count):
    """rho* and p_acc of one row, by another method than the code's."""

    def excess(rho):
        beta = torch.minimum(draft, target / rho).sum()
        return float(1 - (1 - beta) ** count - rho * beta)

    # the signs at the ends are known, and rounding may hide them
    ends = excess(1.0) > 1e-15 and excess(count) < 0
    rho = brentq(excess, 1.0, count, xtol=1e-15, rtol=1e-15) if ends else 1.0
    return rho, float(1 - (1 - torch.minimum(draft, target / rho).sum()) ** count)


def raw_residual(plan, target, draft):
    """The residual before it is clamped, from the formula."""
    share = torch.where(plan.beta > 0, plan.acceptance / plan.beta, 0.0)[:, None]
    return target - torch.minimum(draft, target / plan.rho[:, None]) * share


ROWS = {
    "V=3": (400, 3, 1.0),
    "V=5, peaked": (400, 5, 0.1),
    "V=100": (200, 100, 0.5),
    "V=5000, peaked": (24, 5000, 0.01),
}
on_rows = pytest.mark.parametrize(("rows", "vocab", "spread"), ROWS.values(), ids=[*ROWS.keys()])


@on_rows
def test_plan_equals_bisection_and_an_independent_solution(rows, vocab, spread):
    target, draft, count = plan_rows(rows, vocab, spread, seed=1)
    plan = k_seq_plan(target, draft, count)
    reference = k_seq_plan_reference(target, draft, count)
    torch.testing.assert_close(plan.acceptance, reference.acceptance, rtol=0, atol=2e-12)
    for row in range(0, rows, max(1, rows // 100)):
        rho, acceptance = solved_independently(target[row], draft[row], int(count[row]))
        assert float(plan.acceptance[row]) == pytest.approx(acceptance, abs=2e-12)
        assert float(reference.acceptance[row]) == pytest.approx(acceptance, abs=2e-12)
        assert float(plan.rho[row]) == pytest.approx(rho, rel=1e-6)


@pytest.mark.parametrize("solve", [k_seq_plan, k_seq_plan_reference])
@on_rows
def test_plan_is_the_upper_end_of_the_bracket(rows, vocab, spread, solve):
    target, draft, count = plan_rows(rows, vocab, spread, seed=2)
    plan = solve(target, draft, count)
    assert bool(((plan.rho >= 1) & (plan.rho <= count)).all())
    torch.testing.assert_close(
        plan.beta, torch.minimum(draft, target / plan.rho[:, None]).sum(1), rtol=1e-12, atol=1e-15
    )
    torch.testing.assert_close(plan.acceptance, 1 - (1 - plan.beta) ** count, rtol=0, atol=1e-14)
    assert float((plan.acceptance - plan.rho * plan.beta).max()) <= 1e-15
    assert float(raw_residual(plan, target, draft).min()) >= -1e-15


@on_rows
def test_float32_plan_accepts_as_often_as_float64(rows, vocab, spread):
    target, draft, count = plan_rows(rows, vocab, spread, seed=3)
    single = k_seq_plan(target.float(), draft.float(), count)
    torch.testing.assert_close(
        single.acceptance, k_seq_plan(target, draft, count).acceptance, rtol=0, atol=1e-6
    )
    assert bool(((single.rho >= 1) & (single.rho <= count)).all())
    assert float(raw_residual(single, target, draft).min()) >= -1e-6


@pytest.mark.parametrize("distance", [0.0, 1e-15, 1e-9, 1e-3])
def test_laws_that_hardly_differ_are_accepted_nearly_always(distance):
    # the excess is flat at its root there: a solver that waits for a clear sign ends at rho = n
    target, draft = random_laws(64, 50, seed=5), random_laws(64, 50, seed=6)
    draft = (1 - distance) * target + distance * draft
    count = torch.arange(64) % 16 + 1
    plan = k_seq_plan(target, draft, count)
    reference = k_seq_plan_reference(target, draft, count)
    torch.testing.assert_close(plan.acceptance, reference.acceptance, rtol=0, atol=2e-12)
    assert float(plan.acceptance.min()) >= 1 - 2 * distance - 1e-15
    single = k_seq_plan(target.float(), draft.float(), count)
    assert float(single.acceptance.min()) >= 1 - 2 * distance - 1e-6


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("likeness", [0.0, 0.5, 0.999, 1 - 1e-7], ids="likeness={}".format)
def test_the_root_is_found_in_few_reads(monkeypatch, likeness, dtype):
    reads = []
    split = solver._split
    monkeypatch.setattr(solver, "_split", lambda *rows: reads.append(1) or split(*rows))
    for vocab, spread, n in itertools.product([50, 2000], [0.05, 0.5, 5.0], [2, 8, 64, 1000]):
        target, draft = (random_laws(20, vocab, seed, spread=spread) for seed in (1, 2))
        draft = likeness * target + (1 - likeness) * draft
        k_seq_plan(target.to(dtype), draft.to(dtype), torch.full((20,), n))
        # 22 is the most that was ever seen; a stall takes 66
        assert 1 <= len(reads) <= 24
        reads.clear()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_rows_of_a_batch_are_solved_as_if_alone(dtype):
    laws = [node for node in NODES.values() if len(node[0]) == 4]
    target = torch.stack([node[0] for node in laws]).to(dtype).repeat_interleave(4, dim=0)
    draft = torch.stack([node[1] for node in laws]).to(dtype).repeat_interleave(4, dim=0)
    count = torch.tensor(COUNTS).repeat(len(laws))
    plan = k_seq_plan(target, draft, count)
    for row in range(len(count)):
        alone = k_seq_plan(*(column[row : row + 1] for column in (target, draft, count)))
        assert float(plan.acceptance[row]) == pytest.approx(float(alone.acceptance), abs=1e-12)
        assert float(plan.rho[row]) == pytest.approx(float(alone.rho), rel=1e-12)


@on_counts
@pytest.mark.parametrize(
    ("name", "expected"),
    [("equal", 1.0), ("disjoint", 0.0), ("one hot for both", 1.0), ("two hot tokens", 0.0)],
)
def test_acceptance_at_the_extremes(name, expected, count):
    target, draft = NODES[name]
    plan = k_seq_plan(target[None], draft[None], torch.tensor([count]))
    assert float(plan.acceptance) == pytest.approx(expected, abs=1e-15)
    # what cannot be accepted is recovered from the target; where all is accepted any law will do
    torch.testing.assert_close(residual_mass(plan, target[None], draft[None])[0], target)


def test_one_candidate_is_standard_speculative_sampling():
    target, draft, _ = plan_rows(50, 6, 0.5, seed=4)
    plan = k_seq_plan(target, draft, torch.ones(50, dtype=torch.int64))
    assert bool((plan.rho == 1).all())
    torch.testing.assert_close(plan.acceptance, torch.minimum(target, draft).sum(1))
    torch.testing.assert_close(residual_mass(plan, target, draft), (target - draft).clamp_min(0))
    every_token = torch.arange(6).expand(50, 6)
    torch.testing.assert_close(
        acceptance_ratio(plan, target, draft, every_token), (target / draft).clamp_max(1)
    )


@on_counts
@on_nodes
def test_emitted_token_has_the_target_law(node, count):
    law, acceptance = node_law(KSeq(), *node, count)
    torch.testing.assert_close(law, node[0], rtol=0, atol=1e-12)
    target, draft = node
    expected = KSeq().expected_acceptance(target[None], draft[None], count)
    assert acceptance == pytest.approx(float(expected), abs=1e-12)


@on_counts
@on_nodes
def test_acceptance_lies_between_its_guarantee_and_the_optimum(node, count):
    target, draft = node
    acceptance = float(KSeq().expected_acceptance(target[None], draft[None], count))
    optimum = optimal_acceptance(target, draft, count)
    assert acceptance <= optimum + 1e-12
    assert acceptance >= (1 - (1 - 1 / count) ** count) * optimum - 1e-12
    # the solver's own tolerances are 1e-7: masses of that size are beyond it
    if len(target) <= 4 and count <= 3 and not 0 < float(draft[draft > 0].min()) < 1e-6:
        assert optimum == pytest.approx(transport_optimum(target, draft, count), abs=1e-6)


def enumerated_selection(monkeypatch, target, draft, candidates, alive):
    """Law of `KSeq.select` at one node, over all patterns of accepted and rejected candidates.

    The numbers lie 1e-9 on either side of the acceptance probability as computed here, which
    therefore must be the code's own.
    """
    rho = float(k_seq_plan(target[None], draft[None], alive.sum()[None]).rho)
    ratio = [min(1.0, float(target[token] / (rho * draft[token]))) for token in candidates]
    patterns = list(itertools.product([True, False], repeat=len(candidates)))
    numbers = [
        [
            r * (1 - 1e-9) if accept else r + (1 - r) * 1e-9
            for r, accept in zip(ratio, pattern, strict=True)
        ]
        for pattern in patterns
    ]
    weights = [
        [r if accept else 1 - r for r, accept in zip(ratio, pattern, strict=True)]
        for pattern in patterns
    ]
    recovered = []

    def draw(mass, noise, role, *, depth, token_ids=None):
        assert role is Role.RESIDUAL
        assert depth == 2
        recovered.extend(mass / mass.sum(1, keepdim=True))
        return torch.full((len(mass),), -1)

    monkeypatch.setattr(k_seq, "draw", draw)
    rows = len(patterns)
    tokens = KSeq().select(
        *(column.expand(rows, -1) for column in (target, draft, candidates, alive)),
        ScriptedUniform(torch.tensor(numbers, dtype=torch.float64)),
        depth=2,
    )
    law = torch.zeros_like(target)
    laws = iter(recovered)
    for token, weight in zip(
        tokens.tolist(), torch.tensor(weights, dtype=torch.float64), strict=True
    ):
        law += weight.prod() * (
            next(laws) if token < 0 else torch.eye(len(target), dtype=torch.float64)[token]
        )
    return law


SELECTED = [
    name for name in NODES if name not in ("five tokens", "nearly equal", "nearly disjoint")
]


@pytest.mark.parametrize("name", SELECTED)
def test_select_follows_the_closed_law(monkeypatch, name):
    target, draft = NODES[name]
    for candidates in tuples(len(target), 3):
        if float(draft[candidates].prod()) == 0:
            continue
        for alive in ([True, True, True], [False, True, True], [True, False, False]):
            alive = torch.tensor(alive)
            law = enumerated_selection(monkeypatch, target, draft, candidates, alive)
            closed = KSeq().law(target, draft, candidates[alive])
            torch.testing.assert_close(law, closed, rtol=0, atol=1e-12)


def test_select_with_the_number_of_all_paths_is_noticed(monkeypatch):
    target, draft = NODES["random"]
    candidates, alive = torch.tensor([0, 1, 2]), torch.tensor([True, False, True])
    closed = KSeq().law(target, draft, candidates[alive])
    monkeypatch.setattr(
        k_seq, "k_seq_plan", lambda t, d, count: k_seq_plan(t, d, torch.full_like(count, 3))
    )
    law = enumerated_selection(monkeypatch, target, draft, candidates, alive)
    assert float((law - closed).abs().max()) > 1e-2


@pytest.mark.parametrize("rows", [0, 70_000], ids=["none", "more than are read at once"])
def test_any_number_of_rows_is_planned(rows):
    target = torch.tensor([[0.7, 0.3]], dtype=torch.float64).expand(rows, 2)
    draft = torch.tensor([[0.2, 0.8]], dtype=torch.float64).expand(rows, 2)
    plan = k_seq_plan(target, draft, torch.full((rows,), 2))
    one = k_seq_plan(
        target.new_tensor([[0.7, 0.3]]), draft.new_tensor([[0.2, 0.8]]), torch.tensor([2])
    )
    assert torch.equal(plan.rho, one.rho.expand(rows))
