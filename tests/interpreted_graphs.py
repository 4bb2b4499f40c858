"""Operators, recorded steps and warm-up with the kernels in Triton's interpreter.

Run by test_library.py in a process of its own;
`TRITON_INTERPRET=1 python -m pytest -n 0 tests/interpreted_graphs.py` runs it alone.
"""

from __future__ import annotations

import pytest
import torch
from graph_replays import RULES, check_truncation, check_verification
from operator_calls import CHAIN, check_operator

import warpdraft
from warpdraft import MinP, TopH
from warpdraft.kernels import truncation_triton, verification_triton

CALLS = {
    "truncate_triton": truncation_triton,
    "sample_triton": truncation_triton,
    "verify_block_triton": verification_triton,
}

# NumPy interprets: -inf - -inf and log(0) are meant
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.mark.parametrize("name", ["truncate", "truncate_out", "sample", "verify_block"])
def test_operators_are_sound(name):
    check_operator(name, "triton", quick=True)


def test_compiled_calls_equal_eager_ones():
    logits = torch.randn(3, 300, generator=torch.Generator().manual_seed(5))
    alpha = torch.tensor([0.2, 0.5, 0.9])

    def call(logits, alpha, step):
        masked = warpdraft.truncate(logits, [TopH(alpha), MinP(0.02)], backend="triton")
        drawn = warpdraft.sample(masked, CHAIN, seed=7, step=step, backend="triton")
        return masked, drawn.token_ids, drawn.logprobs

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    for step in range(3):
        for result, same in zip(
            compiled(logits, alpha, step), call(logits, alpha, step), strict=True
        ):
            assert torch.equal(result, same)


@pytest.mark.parametrize("rules", RULES)
def test_steps_differ_and_equal_the_eager_calls(rules):
    check_truncation(lambda step: step, rules, "cpu")


def test_verified_steps_differ_and_equal_the_eager_calls():
    check_verification(lambda step: step, "k_seq", "cpu")


def test_warm_up_launches_every_call_of_every_width_and_dtype(monkeypatch):
    launched = []

    def record(name, launch):
        def recorded(logits, *arguments, **options):
            launched.append((name, logits.shape[-1], logits.dtype))
            return launch(logits, *arguments, **options)

        return recorded

    for name, home in CALLS.items():
        monkeypatch.setattr(home, name, record(name, getattr(home, name)))
    dtypes = [torch.float32, torch.bfloat16]
    warpdraft.warmup(
        [(1, 40), (17, 40), (4, 70)],
        dtypes,
        rules=[TopH(torch.tensor([0.4, 0.5])), MinP(0.1)],
        temperature=torch.tensor(0.7),
        token_bitmask=True,
        row_indices=True,
        blocks=[(2, 1)],
        verifier="k_seq",
        device="cpu",
    )
    assert launched == [
        (name, vocab, dtype) for vocab in (40, 70) for dtype in dtypes for name in CALLS
    ]
