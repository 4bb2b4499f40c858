"""CUDA graphs of the public calls; tests/interpreted_graphs.py runs the same steps without."""

from __future__ import annotations

import pytest
import torch
from graph_replays import (
    BATCH,
    BLOCK_VOCAB,
    RULES,
    VOCAB,
    Step,
    check_truncation,
    check_verification,
)

from warpdraft import MinP, TopH, sample, truncate, warmup

pytestmark = pytest.mark.gpu


def capture(step: Step) -> Step:
    """A graph of one step, which the warm-up alone has compiled."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()

    def repeat() -> tuple[torch.Tensor, ...]:
        graph.replay()
        return results

    return repeat


@pytest.mark.parametrize("rules", RULES)
def test_replays_differ_and_equal_the_eager_calls(rules):
    heat = torch.ones(1, device="cuda")
    warmup([(BATCH, VOCAB)], rules=RULES[rules]("cuda"), temperature=heat)
    check_truncation(capture, rules, "cuda")


@pytest.mark.parametrize("verifier", ["k_seq", "optimal", "optimal_block"])
def test_replayed_verification_differs_and_equals_the_eager_one(verifier):
    heat = torch.ones(1, device="cuda")
    warmup(
        [(BATCH, BLOCK_VOCAB)],
        rules=[MinP(0.01)],
        temperature=heat,
        blocks=[(2, 2)],
        verifier=verifier,
    )
    check_verification(capture, verifier, "cuda")


def test_a_graph_with_numbers_that_were_not_warmed_up():
    logits = torch.randn(BATCH, VOCAB, device="cuda")
    warmup([(BATCH, VOCAB)], rules=[TopH(0.3)])
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        masked = truncate(logits, TopH(0.55), temperature=1.25)
    graph.replay()
    assert torch.equal(masked, truncate(logits, TopH(0.55), temperature=1.25))


def test_a_graph_outlives_the_tables_of_other_calls():
    logits = torch.randn(BATCH, VOCAB, device="cuda")
    expected = truncate(logits, TopH(0.35))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        masked = truncate(logits, TopH(0.35))
    for number in range(400):
        truncate(logits, TopH(0.4 + number / 1000))
    graph.replay()
    assert torch.equal(masked, expected)


def test_a_draw_without_a_seed_is_refused_while_a_graph_is_captured():
    logits = torch.zeros(1, 8, device="cuda")
    warmup([(1, 8)])
    with (
        pytest.raises(RuntimeError, match="seed=None takes a number from the host"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        sample(logits, backend="triton")


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_calls_equal_eager_ones(mode):
    logits = torch.randn(BATCH, VOCAB, device="cuda")
    step = torch.zeros(BATCH, dtype=torch.int64, device="cuda")

    def call(logits, step):
        drawn = sample(logits, [TopH(0.6)], seed=5, step=step)
        return truncate(logits, [TopH(0.6)]), drawn.token_ids, drawn.logprobs

    torch.compiler.reset()
    compiled = torch.compile(call, fullgraph=True, mode=mode)
    for number in range(4):
        torch.compiler.cudagraph_mark_step_begin()
        for result, same in zip(
            compiled(logits, step + number), call(logits, step + number), strict=True
        ):
            assert torch.equal(result, same)
