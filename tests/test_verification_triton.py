"""Verification by the Triton kernels: what must hold on a machine without a GPU, and the law of their walk."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from scipy.stats import chi2
from spline_walk import Laws, SplineWalk

from warpdraft import verify_block
from warpdraft.kernels.noise import Noise
from warpdraft.kernels.ratio_splines import knots
from warpdraft.verifiers.optimal import Optimal

# 8 comparisons: less than one false alarm in a million runs with other seeds
ALARM = 1e-6 / 8
BLOCKS = 40_000
VOCAB, PATHS, LENGTH = 3, 3, 2


@pytest.mark.timeout(600)
def test_the_kernels_agree_with_the_walk_in_float64_in_the_interpreter():
    # a process of its own, because Triton decides at its import whether it interprets
    file = Path(__file__).with_name("interpreted_verification.py")
    command = [sys.executable, "-m", "pytest", str(file), "-n", "0", "-q", "-p", "no:cacheprovider"]
    run = subprocess.run(
        command,
        cwd=file.parent.parent,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert " passed" in run.stdout


def prefix_laws(seed, spread):
    """A law after every prefix of at most LENGTH tokens, the prefixes numbered level by level."""
    count = sum(VOCAB**depth for depth in range(LENGTH + 1))
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, VOCAB, generator=generator, dtype=torch.float64) * spread
    return torch.softmax(logits, -1)


def child(node, token):
    return node * VOCAB + 1 + token


@pytest.mark.parametrize("drafts", ["near", "far"])
@pytest.mark.parametrize(
    ("verifier", "selector"),
    [("k_seq", "clip"), ("optimal", "clip"), ("optimal_block", "lex"), ("optimal_block", "clip")],
)
def test_the_walk_has_the_law_of_plain_sampling(verifier, selector, drafts):
    # with so many blocks a probability of 0.1 that is off by 0.01 lies 7 standard deviations away
    target = prefix_laws(1, 1.0)
    draft = prefix_laws(2, 2.0)
    if drafts == "near":
        draft = 0.7 * target + 0.3 * draft
    generator = torch.Generator().manual_seed(3)
    nodes = torch.zeros(BLOCKS, PATHS, LENGTH + 1, dtype=torch.int64)
    tokens = torch.zeros(BLOCKS, PATHS, LENGTH, dtype=torch.int64)
    for depth in range(LENGTH):
        laws = draft[nodes[:, :, depth]].flatten(0, 1)
        tokens[:, :, depth] = torch.multinomial(laws, 1, generator=generator).view(BLOCKS, PATHS)
        nodes[:, :, depth + 1] = child(nodes[:, :, depth], tokens[:, :, depth])
    sound = torch.zeros(BLOCKS, len(target), dtype=torch.int8)
    wide = [law.expand(BLOCKS, -1, -1) for law in (target, draft)]
    emitted = SplineWalk(
        Laws(wide[0], sound, wide[1], sound),
        tokens,
        nodes,
        torch.ones_like(tokens, dtype=torch.bool),
        Noise.create(BLOCKS, seed=4, device="cpu"),
        knots(PATHS, verifier=verifier),
        verifier,
        selector,
    ).run()
    assert emitted.num_accepted.float().mean() > 0.8 * LENGTH if drafts == "near" else 0.5
    # texts of LENGTH + 1 tokens: plain sampling from the target goes on where a block ends
    node, expected = torch.zeros(BLOCKS, dtype=torch.int64), torch.ones(1, dtype=torch.float64)
    number = torch.zeros(BLOCKS, dtype=torch.int64)
    level = torch.zeros(1, dtype=torch.int64)
    for depth in range(LENGTH + 1):
        more = torch.multinomial(target[node], 1, generator=generator).squeeze(1)
        token = emitted.output_token_ids[:, depth]
        token = torch.where(token >= 0, token, more)
        number = number * VOCAB + token
        expected = (expected[:, None] * target[level]).flatten()
        if depth < LENGTH:
            node, level = (
                child(node, token),
                child(level[:, None], torch.arange(VOCAB)).flatten(),
            )
    counts = torch.bincount(number, minlength=len(expected)).double()
    wanted = expected * BLOCKS
    assert wanted.min() > 10
    statistic = float(((counts - wanted) ** 2 / wanted).sum())
    assert chi2.sf(statistic, len(wanted) - 1) > ALARM


TARGET = torch.zeros(1, 3, 5)
TOKENS = torch.zeros(1, 2, 1, dtype=torch.int64)
NODES = torch.tensor([[[0, 1], [0, 2]]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"verifier": "recursive"}, "none of their verifiers, k_seq, optimal, optimal_block"),
        ({"verifier": Optimal(num_bins=None)}, "with num_bins=64, got None"),
        ({"verifier": Optimal(num_top=1)}, "with most_top=0, got 1"),
        ({"draft_logits": TARGET.double()}, "draft's logits are torch.float64"),
        ({"target_logits": TARGET.double()}, "logits are torch.float64"),
        (
            {
                "draft_token_ids": TOKENS[:, :1].expand(1, 65, 1),
                "node_index": NODES[:, :1].expand(1, 65, 2),
            },
            "65 draft paths, the kernels take 64",
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_what_the_kernels_cannot_verify(arguments, message, monkeypatch):
    monkeypatch.setattr("warpdraft.backend.interpreted", lambda: True)
    block = {
        "target_logits": TARGET,
        "draft_logits": TARGET,
        "draft_token_ids": TOKENS,
        "node_index": NODES,
        "seed": 1,
    } | arguments
    with pytest.raises(ValueError, match=f"backend='triton' cannot run this call: .*{message}"):
        verify_block(**block, backend="triton")
    verify_block(**block, backend="auto")


def test_triton_is_refused_for_cpu_tensors_outside_the_interpreter(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match=r"on the CPU, .*TRITON_INTERPRET=1"):
        verify_block(TARGET, TARGET, TOKENS, NODES, seed=1, backend="triton")
