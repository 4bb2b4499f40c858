"""The CPU table of truncation: every case is checked, timed and written."""

from __future__ import annotations

import json

import pytest
import torch

from warpdraft import MinP, TopH
from warpdraft.bench import bench_truncation


def test_every_case_is_timed_and_written(capsys, tmp_path):
    bench_truncation.main(1000, [1, 2], [1], 1, 0, tmp_path / "out.json")
    printed = capsys.readouterr().out
    for word in ("TopHLogitsWarper", "MinPLogitsWarper", "ratio"):
        assert word in printed
    written = json.loads((tmp_path / "out.json").read_text())
    assert {line["batch"] for line in written} == {1, 2}
    assert all(line["machine"] for line in written)


@pytest.mark.parametrize("rule", [TopH(0.4), MinP(0.1)], ids=repr)
def test_a_wrong_kept_set_is_found(rule, monkeypatch):
    logits = torch.randn(2, 500, generator=torch.Generator().manual_seed(0))
    assert len(bench_truncation.check_kept(rule, 1.0, logits)) == 2
    monkeypatch.setattr(bench_truncation.warpdraft, "truncate", lambda rows, *_, **__: rows.clone())
    with pytest.raises(AssertionError, match="keeps 500 tokens"):
        bench_truncation.check_kept(rule, 1.0, logits)
