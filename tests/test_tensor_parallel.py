"""Two gloo ranks on the CPU share sharded models: one text, whatever differs between them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from sharded_generation import CALL, PROMPTS
from tiny_models import tiny_model

import warpdraft.same_text as same_text
from warpdraft.first_layers import FirstLayers
from warpdraft.integrations.transformers import FusedSampling, SpeculativeDecoding

RANKS = 2


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A target and a draft with heads for two ranks, and the folder that they are saved in."""
    folder = tmp_path_factory.mktemp("models")
    pair = [tiny_model(seed=0, kv_heads=2), tiny_model(seed=1, layers=1, kv_heads=2)]
    for name, model in zip(("target", "draft"), pair, strict=True):
        model.save_pretrained(folder / name)
    return pair, folder


@pytest.fixture(scope="module")
def ranks(models):
    """What each rank wrote."""
    _, folder = models
    script = Path(__file__).with_name("sharded_generation.py")
    command = [sys.executable, str(script), str(folder)]
    names = {"WORLD_SIZE": str(RANKS), "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            command,
            env={**os.environ, **names, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(RANKS)
    ]
    try:
        for rank, process in enumerate(started):
            output, _ = process.communicate(timeout=150)
            assert process.returncode == 0, f"rank {rank}:\n{output}"
    finally:
        # one that failed leaves the other waiting
        for process in started:
            process.kill()
            process.wait()
    return [torch.load(folder / f"texts-{rank}.pt") for rank in range(RANKS)]


def test_every_rank_writes_the_same_text(ranks):
    """With a seed and without; the clocks of the ranks, their generators and their logits differ."""
    first, second = ranks
    for part, cases in (("texts", 12), ("unlike", 4)):
        assert len(first[part]) == cases
        for name, written in first[part].items():
            assert torch.equal(written, second[part][name]), f"{part}: {name}"
    assert first["texts"]["stopped"].shape[1] == 8
    # what is different without the agreement
    assert not torch.equal(first["alone"], second["alone"])


def test_a_sharded_pair_writes_what_the_whole_one_writes(models, ranks):
    """With the same seed, where the logits differ by rounding only."""
    (target, draft), _ = models
    torch.testing.assert_close(ranks[0]["logits"], target(PROMPTS).logits, rtol=1e-4, atol=1e-4)
    whole = {
        "seeded, sharded draft": SpeculativeDecoding(draft, num_drafts=3, seed=5),
        "seeded, whole draft": SpeculativeDecoding(draft, num_drafts=3, seed=5),
        "seeded, own layers": SpeculativeDecoding(FirstLayers(1), seed=5),
        "seeded, fused": FusedSampling(seed=5),
    }
    for name, custom_generate in whole.items():
        expected = target.generate(**CALL, custom_generate=custom_generate)
        assert torch.equal(ranks[0]["texts"][name], expected), name


def test_models_sharded_over_different_ranks_are_refused(models, monkeypatch):
    (target, draft), _ = models
    groups = {id(target): ["all"], id(draft): ["some"]}
    monkeypatch.setattr(same_text, "_groups", lambda model: groups[id(model)])
    members = {"all": [0, 1], "some": [1, 2]}
    monkeypatch.setattr(
        torch.distributed, "get_process_group_ranks", lambda group: members[group], raising=False
    )
    with pytest.raises(ValueError, match=r"the same ranks, got \[\(0, 1\), \(1, 2\)\]"):
        target.generate(**CALL, custom_generate=SpeculativeDecoding(draft))
