"""No call waits for the device: torch raises where one does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from warpdraft import MinP, TopH, TopK, TopP, Typical, check, sample, truncate, verify_block
from warpdraft.backend import operations_of
from warpdraft.kernels.noise import Noise
from warpdraft.kernels.truncation_triton import sample_triton, truncate_triton
from warpdraft.per_request import PerRequestRules

pytestmark = pytest.mark.gpu

BATCH, VOCAB, PATHS, LENGTH = 4, 32_000, 4, 3
CHAIN = [TopK(50), TopP(0.9), TopH(0.4), MinP(0.05)]
RULES = {"top-h": [TopH(0.4)], "chain": CHAIN, "typical": [Typical(0.9)], "none": []}


@contextmanager
def no_waiting() -> Iterator[None]:
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_watch_sees_a_wait():
    total = torch.ones(3, device="cuda").sum()
    with pytest.raises(RuntimeError, match="synchroniz"), no_waiting():
        total.item()


@pytest.mark.parametrize("rules", RULES)
def test_masking_and_drawing(rules):
    logits = torch.randn(BATCH, VOCAB, device="cuda")
    operations = operations_of(RULES[rules])
    noise = Noise.create(BATCH, seed=1, device="cuda")
    for _ in range(2):
        # the first round compiles, which may wait
        truncate_triton(logits, operations, 0.8)
        sample_triton(logits, operations, 0.8, noise)
    with no_waiting():
        truncate_triton(logits, operations, 0.8)
        sample_triton(logits, operations, 0.8, noise)


def test_parameters_of_the_rows():
    logits = torch.randn(BATCH, VOCAB, device="cuda")
    rule = TopH(torch.linspace(0.2, 0.8, BATCH, device="cuda"))
    heat = torch.full((BATCH,), 0.9, device="cuda")
    operations = operations_of([rule])
    truncate_triton(logits, operations, heat)
    with no_waiting():
        truncate_triton(logits, operations, heat)


def test_rules_request_by_request():
    requests = PerRequestRules("cuda")
    for slot, rules in enumerate([TopH(0.4), MinP(0.1), TopH(0.8), CHAIN]):
        requests.add(slot, rules, 0.8)
    logits = torch.randn(BATCH, VOCAB, device="cuda")
    by_slot = torch.tensor([3, 3, 1, 0], device="cuda")
    for slots in ([3, 2, 1, 0], by_slot):
        requests.apply_inplace(logits.clone(), slots)
        requests.add(1, MinP(0.2), 0.8)
        fresh = logits.clone()
        with no_waiting():
            requests.apply_inplace(fresh, slots)


@pytest.mark.parametrize("verifier", ["k_seq", "optimal", "optimal_block"])
def test_verification(verifier):
    nodes = 1 + PATHS * LENGTH
    target, draft = (torch.randn(BATCH, nodes, VOCAB, device="cuda") for _ in range(2))
    tokens = torch.randint(VOCAB, (BATCH, PATHS, LENGTH), device="cuda")
    index = torch.arange(nodes - 1, device="cuda").view(PATHS, LENGTH) + 1
    index = torch.nn.functional.pad(index, (1, 0)).expand(BATCH, -1, -1).contiguous()
    seed, step = (torch.full((BATCH,), value, device="cuda") for value in (7, 1))
    sequence = torch.arange(BATCH, device="cuda")

    def call() -> None:
        verify_block(
            target,
            draft,
            tokens,
            index,
            verifier=verifier,
            rules=CHAIN,
            seed=seed,
            sequence=sequence,
            step=step,
            backend="triton",
        )

    call()
    with no_waiting():
        call()


def test_a_bad_row_keeps_nothing_and_is_named_by_check():
    logits = torch.randn(BATCH, VOCAB, device="cuda")
    logits[2, 5] = torch.nan
    truncated = truncate(logits, MinP(0.1))
    assert truncated[2].eq(-torch.inf).all() and truncated[1].isfinite().any()
    with pytest.raises(ValueError, match="row 2 has a NaN logit"):
        check(sample(logits, MinP(0.1), seed=1))
