"""What a captured step of decoding must do, on a GPU by replays and elsewhere by plain calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from warpdraft import MinP, TopH, TopK, TopP, sample, truncate, verify_block

Results: TypeAlias = tuple[Tensor, ...]
Step: TypeAlias = Callable[[], Results]

BATCH = 2
VOCAB = 5000
BLOCK_VOCAB = 300
FIRST_STEP = 2**31 - 1
RULES = {
    "numbers": lambda _: [TopK(50), TopP(0.9), MinP(0.02)],
    "search": lambda _: [TopH(0.8)],
    "tensors": lambda device: [TopH(torch.tensor([0.4, 0.8], device=device)), MinP(0.01)],
}


def check_truncation(record: Callable[[Step], Step], rules: str, device: str) -> None:
    """`check_replays` of a step that truncates and draws, by a list of RULES."""
    logits = 3 * rows(BATCH, VOCAB).to(device)
    listed = RULES[rules](device)

    def calls(step: Tensor, heat: Tensor) -> Results:
        masked = truncate(logits, listed, temperature=heat, backend="triton")
        drawn = sample(logits, listed, temperature=heat, **streams(step, device), backend="triton")
        return masked, drawn.token_ids, drawn.logprobs, drawn.kept_mass, drawn.status

    first, second = check_replays(record, calls, device)
    assert not torch.equal(first[0], second[0])
    assert not torch.equal(first[1], second[1])


def check_verification(record: Callable[[Step], Step], verifier: str, device: str) -> None:
    """`check_replays` of a step that verifies a block."""
    target, draft = rows(2, BATCH, 5, BLOCK_VOCAB).to(device)
    paths = (torch.arange(BATCH * 4, device=device) % BLOCK_VOCAB).view(BATCH, 2, 2)
    nodes = torch.tensor([[0, 1, 2], [0, 3, 4]], device=device).repeat(BATCH, 1, 1)

    def calls(step: Tensor, heat: Tensor) -> Results:
        block = verify_block(
            target,
            draft,
            paths,
            nodes,
            verifier=verifier,
            rules=[MinP(0.01)],
            temperature=heat,
            **streams(step, device),
            backend="triton",
        )
        return block.output_token_ids, block.num_accepted, block.survivor_path, block.status

    first, second = check_replays(record, calls, device)
    assert not torch.equal(first[0], second[0])


def check_replays(
    record: Callable[[Step], Step], calls: Callable[[Tensor, Tensor], Results], device: str
) -> list[Results]:
    """Two runs of a recorded step equal the eager calls at their steps.

    Args:
        record: makes a function that repeats a step, and hands out its results.
        calls: the step's results, the status last, given the noise's step and the temperature.
        device: where all of it happens.
    """
    step = torch.tensor(FIRST_STEP, device=device)
    heat = torch.ones(BATCH, dtype=torch.float64, device=device)

    def decoding_step() -> Results:
        results = calls(step, heat)
        # the next replay stands at the next step, and its law is flatter
        step.add_(1)
        heat.mul_(1.5)
        return results

    repeat = record(decoding_step)
    replays = [tuple(result.clone() for result in repeat()) for _ in range(2)]
    for number, replay in enumerate(replays):
        expected = calls(
            torch.tensor(FIRST_STEP + number, device=device), torch.ones_like(heat) * 1.5**number
        )
        for result, same in zip(replay, expected, strict=True):
            assert torch.equal(result, same)
        assert not replay[-1].any()
    return replays


def streams(step: Tensor, device: str) -> dict[str, Tensor]:
    """Noise that is named on the device."""
    return {
        "seed": torch.full((BATCH,), 7, device=device),
        "sequence": torch.arange(BATCH, device=device) + 40,
        "step": step,
    }


def rows(*shape: int) -> Tensor:
    """Gaussian logits."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(11))
