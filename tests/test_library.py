"""The operators of torch, and compiled functions that call warpdraft, on the CPU in plain torch."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest
import torch
from operator_calls import CHAIN, check_operator
from own_process import run_tests

import warpdraft
from warpdraft import (
    DynamicTemperature,
    EntropyDependentTemperature,
    Epsilon,
    Eta,
    HapoTemperature,
    MinP,
    PLess,
    TopA,
    TopH,
    TopK,
    TopNSigma,
    TopP,
    Typical,
    rule_codes,
)
from warpdraft.library import sample_in_graph

RULES = [
    TopH(0.3),
    TopH(torch.tensor([0.2, 0.4, 0.9]), min_tokens_to_keep=3),
    TopH(0.5, variant="transformers", ties="all"),
    MinP(0.02, ties="all"),
    TopK(7),
    TopK(torch.tensor([3, 20, 1])),
    TopP(0.8),
    TopNSigma(1.5),
    Epsilon(0.02),
    Eta(0.05),
    TopA(0.3),
    PLess(),
    PLess(normalized=True),
    Typical(0.7),
    DynamicTemperature(0.5, 1.5),
    EntropyDependentTemperature(torch.tensor([0.1, 1.0, 2.0]), 1.2),
    HapoTemperature(-1.0, torch.tensor([0.5, 1.0, 2.0]), 1.0, 0.8, 0.3),
]


@pytest.fixture
def logits():
    return torch.randn(3, 60, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_rules_survive_their_numbers(rule):
    rules, temperature = rule_codes.decode(*rule_codes.encode([rule], 1.5))
    assert temperature == 1.5
    assert [repr(found) for found in rules] == [repr(rule)]


def test_a_count_that_a_float_would_round_stays_a_count():
    rules, _ = rule_codes.decode(*rule_codes.encode([TopK((1 << 63) - 1)], 1.0))
    assert rules[0].top_k == 1 << 53
    rules, _ = rule_codes.decode(*rule_codes.encode([TopNSigma(1 << 60)], 1.0))
    assert rules[0].n_sigma == 1 << 60


def test_every_rule_has_a_number():
    kinds = {kind for kind, _ in rule_codes.KINDS}
    assert kinds == {type(rule) for rule in RULES}
    assert len(rule_codes.KINDS) <= rule_codes.TIES_ALL


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        (([0], [1, 1], [1.0, 0.4], [None, None]), "got 1, 2, 2 and 2"),
        (([0], [1], [1.0], [None]), "one more for the temperature"),
        (([15], [1], [1.0, 0.4], [None, None]), "operation 15 is no rule"),
        (([-1], [1], [1.0, 0.4], [None, None]), "operation -1 is no rule"),
        (([2], [1], [1.0, 1.4], [None, None]), r"min_p must be in \[0, 1\]"),
        (([32], [1], [1.0, 1.4], [None, None]), "operation 32 is no rule"),
        (([2, 32], [1, 1], [1.0, 0.1, 0.1], [None] * 3), "MinP has 1$"),
        (([12], [1], [1.0, 0.5], [None, None]), "DynamicTemperature has 3 and no ties"),
        (([28, 32, 32], [1] * 3, [1.0, 0.5, 1.5, 1.0], [None] * 4), "operation 28 with 3"),
    ],
    ids=["keeps", "numbers", "unknown", "negative", "range", "alone", "many", "few", "ties"],
)
def test_lists_that_name_no_rules(lists, message):
    with pytest.raises(ValueError, match=message):
        rule_codes.decode(*lists)


@pytest.mark.parametrize("name", ["truncate", "truncate_out", "sample", "verify_block"])
def test_operators_are_sound(name):
    check_operator(name, "auto")


# Inductor writes C++, which not every machine can compile
COMPILERS = ["eager", "aot_eager", *(["inductor"] if shutil.which("g++") else [])]


@pytest.mark.parametrize("compiler", COMPILERS)
def test_compiled_calls_equal_eager_ones(compiler, logits):
    alpha, heat = torch.tensor([0.2, 0.5, 0.9]), torch.tensor([0.7, 1.0, 0.0])

    def call(logits, alpha, heat, step):
        rules = [TopK(40), TopH(alpha), MinP(0.02, ties="all"), Typical(0.9)]
        masked = warpdraft.truncate(logits, rules, temperature=heat)
        drawn = warpdraft.sample(masked, CHAIN, temperature=1.3, seed=7, step=step)
        return masked, drawn

    torch.compiler.reset()
    compiled = torch.compile(call, fullgraph=True, backend=compiler)
    tokens = set()
    for step in range(5):
        (masked, drawn), (same, expected) = (
            function(logits, alpha, heat, step) for function in (compiled, call)
        )
        assert torch.equal(masked, same)
        assert type(drawn) is type(expected)
        for name in ("token_ids", "logprobs", "kept_mass", "status"):
            assert torch.equal(getattr(drawn, name), getattr(expected, name))
        tokens.add(tuple(drawn.token_ids.tolist()))
    assert len(tokens) > 1


def test_a_step_that_changes_is_compiled_twice_at_most(logits):
    graphs = []

    def count(graph, _):
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    compiled = torch.compile(
        lambda step: warpdraft.sample(logits, seed=7, step=step), fullgraph=True, backend=count
    )
    for step in range(9):
        compiled(step)
    # once for the number, once for any number
    assert len(graphs) <= 2


def test_compiled_calls_write_where_they_are_told(logits):
    words = torch.full((3, 2), -1, dtype=torch.int32)
    words[:, 0] = 0b1011
    rows = torch.tensor([2, 0])

    def call(logits, out):
        masked = warpdraft.truncate(logits, TopH(0.7), token_bitmask=words)
        returned = warpdraft.truncate(logits, TopH(0.5), row_indices=rows, out=out)
        in_place = warpdraft.truncate(logits, MinP(0.3), out=logits)
        return masked, returned, in_place

    torch.compiler.reset()
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    ours, theirs = logits.clone(), logits.clone()
    out, expected_out = torch.zeros_like(logits), torch.zeros_like(logits)
    found, expected = compiled(ours, out), call(theirs, expected_out)
    assert found[1] is out
    assert found[2] is ours
    for tensor, same in zip((*found, out, ours), (*expected, expected_out, theirs), strict=True):
        assert torch.equal(tensor, same)


def test_compiled_draws_without_a_seed_take_one_from_torch():
    logits = torch.zeros(4, 1000)
    torch.compiler.reset()

    @torch.compile(fullgraph=True, backend="aot_eager")
    def call(logits):
        # two nodes alike, and two draws
        return warpdraft.sample(logits).token_ids, warpdraft.sample(logits).token_ids

    torch.manual_seed(3)
    first, second = call(logits)
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    again = call(logits)
    assert torch.equal(torch.stack(again), torch.stack([first, second]))


def test_compiled_calls_raise_what_eager_calls_raise(logits):
    torch.compiler.reset()
    compiled = torch.compile(warpdraft.truncate, fullgraph=True, backend="aot_eager")
    with pytest.raises(ValueError, match="row 0 has a NaN logit"):
        compiled(logits * float("nan"), MinP(0.1))
    with pytest.raises(ValueError, match=r"temperature must be in \[0, "):
        compiled(logits, MinP(0.1), temperature=-1.0)


@pytest.mark.parametrize("verifier", ["k_seq", "optimal_block", "traversal"])
def test_compiled_verification_equals_the_eager_one(verifier):
    generator = torch.Generator().manual_seed(4)
    target, draft = (torch.randn(2, 5, 30, generator=generator) for _ in range(2))
    paths = torch.randint(30, (2, 2, 2), generator=generator)
    nodes = torch.tensor([[0, 1, 2], [0, 3, 4]]).repeat(2, 1, 1)

    def call(target, draft, step):
        return warpdraft.verify_block(
            target, draft, paths, nodes, verifier=verifier, rules=CHAIN, seed=3, step=step
        )

    torch.compiler.reset()
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    for step in range(3):
        found, expected = (function(target, draft, step) for function in (compiled, call))
        for name in ("output_token_ids", "num_accepted", "survivor_path", "status"):
            assert torch.equal(getattr(found, name), getattr(expected, name))


def test_compiled_calls_take_no_gradient(logits):
    torch.compiler.reset()
    compiled = torch.compile(warpdraft.truncate, fullgraph=True, backend="aot_eager")
    assert not compiled(logits.requires_grad_(), MinP(0.1)).requires_grad


def test_the_operators_are_registered_at_their_first_use():
    code = "import torch, warpdraft; from warpdraft import *; assert not hasattr(torch.ops.warpdraft, 'sample')"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.timeout(600)
def test_operators_steps_and_warm_up_in_the_interpreter():
    run_tests("interpreted_graphs.py", interpret=True)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"seed": 1.5}, TypeError, "seed must be an int, got 1.5"),
        ({"step": True}, TypeError, "step must be an int, got True"),
        ({"seed": 1 << 63}, ValueError, "seed must be in"),
        ({"step": -1}, ValueError, "step must be in"),
    ],
    ids=["float_seed", "bool_step", "large_seed", "negative_step"],
)
def test_streams_of_a_compiled_call_are_checked(logits, change, error, message):
    options = {"seed": 1, "step": 0, **change}
    names = {"temperature": 1.0, "sequence": None, "generator": None}
    with pytest.raises(error, match=message):
        sample_in_graph(
            logits, (), **names, **options, raw=False, token_bitmask=None, backend="auto"
        )
