"""The scripts of bench/ that measure one thing each: do they still run, and are their figures what they say?"""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from warpdraft import TopH
from warpdraft.bench import (
    adaptive_shapes,
    grid_loss,
    identical_draft,
    install_speed,
    peak_memory,
    record_rows,
    recorded_rows,
    repeating_texts,
    top_h_variants,
    verification_share,
)
from warpdraft.bench.recorded_rows import rebuild
from warpdraft.bench.report_tables import printed_table, verification_table
from warpdraft.builtin_pair import builtin_pair_folders


def cells(line):
    """The cells of a Markdown or a drawn row."""
    return [cell.strip() for cell in re.split("[|│┃]", line)[1:-1]]


def test_adaptive_shapes_are_compared_with_fixed_ones(capsys):
    adaptive_shapes.main(prompts=1, max_new_tokens=12)
    rows = [cells(line) for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    named = {row[0]: row[1:] for row in rows}
    assert list(named) == ["L = 2", "L = 4", "L = 8", "adaptive L", "adaptive K and L"]
    for name, (efficiency, speed, median, shapes) in named.items():
        # a block yields its accepted tokens and one more
        most = 1 + int(name[4:]) if name.startswith("L = ") else 9
        assert 1 <= float(efficiency) <= most
        assert float(speed) == pytest.approx(float(median), rel=0.01), "of one text they are one"
        # only what adapts has shapes to choose from
        chosen = re.fullmatch(r"\(\d, \d\)(, \(\d, \d\))*", shapes)
        assert bool(chosen) == name.startswith("adaptive")


def test_the_loss_of_a_grid_is_small_and_falls_with_its_bins(capsys, monkeypatch):
    monkeypatch.setattr(grid_loss, "ROWS", 6)
    monkeypatch.setattr(grid_loss, "SMALL_VOCABULARY", 500)
    grid_loss.main(builtin_pair_folders().target, [1])
    first, *lines = capsys.readouterr().out.splitlines()
    assert first.startswith("6 rows, vocabularies 500 and 2,048")
    found = [
        re.fullmatch(r"(\d+) bins: loses (\S+) on average, (\S+) at most", line) for line in lines
    ]
    assert [int(match[1]) for match in found] == list(grid_loss.BINS)
    means, largest = ([float(match[place]) for match in found] for place in (2, 3))
    assert all(-1e-9 <= mean <= most <= 1e-3 for mean, most in zip(means, largest, strict=True))
    assert means[0] >= means[-1] - 1e-9


def test_an_identical_draft_is_accepted(capsys, tmp_path):
    identical_draft.main(prompts=1, new_tokens=12)
    printed = capsys.readouterr().out
    rows = [cells(line) for line in printed.splitlines() if line.startswith("| float32")]
    assert [row[1] for row in rows] == ["1", "4"]
    assert all(float(rate) == 1 for row in rows for rate in row[2:])
    assert "| bfloat16 | 4 |" in printed
    assert int(re.search(r"([\d,]+) drafted tokens or more", printed)[1].replace(",", "")) >= 4
    file = tmp_path / "identical_draft.md"
    file.write_text(printed)
    assert "| float32 | 1 |" in printed_table([file])


def test_the_speed_of_installed_warpers_is_a_ratio(capsys, monkeypatch):
    monkeypatch.setattr(install_speed, "SHAPES", ((1, 300), (2, 300)))
    monkeypatch.setattr(install_speed, "RUNS", 1)
    ticks = iter(range(10_000))
    monkeypatch.setattr(install_speed.time, "perf_counter", lambda: next(ticks) ** 2)
    threads = torch.get_num_threads()
    try:
        install_speed.main()
    finally:
        torch.set_num_threads(threads)
    head, _, *rows = map(cells, capsys.readouterr().out.splitlines())
    assert head[1:] == ["V = 300, B = 1", "V = 300, B = 2"]
    assert [row[0] for row in rows] == list(install_speed.WARPERS)
    # the clock runs faster and faster, and ours is timed first
    assert all(0 < float(ratio) < 1 for row in rows for ratio in row[1:])


def test_memory_of_one_length_is_more_than_its_caches(capsys):
    peak_memory.main([6], num_drafts=2, draft_length=2, alone=True)
    found = json.loads(capsys.readouterr().out)
    assert found["new_tokens"] == 6
    # two models of float32: 8 and 2 layers, 2 and 5 heads of 64 and 32, keys and values
    assert peak_memory.bytes_of_slot(
        SimpleNamespace(num_hidden_layers=8, num_key_value_heads=2, head_dim=64)
    ) == pytest.approx(8 * 2 * 2 * 64 * 4 / 2**20)
    assert 0 < found["caches"] < 2 < 50 < found["peak"]


def test_growth_of_memory_is_that_of_what_is_no_cache(capsys, monkeypatch):
    made = {"10": (110, 10), "100": (199, 90)}

    def run(command, **options):
        peak, caches = made[command[command.index("--new-tokens") + 1]]
        found = {"new_tokens": 1, "peak": peak, "caches": caches}
        return SimpleNamespace(stdout=f"a warning\n{json.dumps(found)}\n")

    monkeypatch.setattr(peak_memory.subprocess, "run", run)
    peak_memory.main([10, 100])
    assert capsys.readouterr().out.splitlines()[-1] == "everything else grew by +9.0 %"


def test_recorded_rows_are_those_of_the_model(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(record_rows, "NEW_TOKENS", 7)
    monkeypatch.setattr(recorded_rows, "TOP_TOKENS", 512)
    file = tmp_path / "rows.npz"
    record_rows.main(builtin_pair_folders().target, file)
    first, *lines = capsys.readouterr().out.splitlines()
    with np.load(file) as arrays:
        rebuilt = rebuild(arrays)
    assert first == f"rows.npz: {file.stat().st_size:,} bytes, {len(rebuilt)} rows of 2,048"
    rows = record_rows.rows_of_model(builtin_pair_folders().target)
    assert rebuilt.shape == rows.shape
    assert torch.equal(rebuilt.argmax(-1), rows.argmax(-1))
    assert len(lines) == len(record_rows.TEMPERATURES)
    for line in lines:
        assert float(re.search(r"off by at most (\S+)", line)[1]) < 0.05


def test_entropy_of_a_row_without_preference():
    rows = torch.zeros(1, 8)
    assert record_rows.entropy(rows, 0.7).item() == pytest.approx(np.log(8))


def test_look_up_is_compared_on_a_text_that_repeats_itself(capsys):
    assert repeating_texts.again("a\nb\nc\n") == "# before\na\nb\nc\n\n# after\na\n"
    repeating_texts.main(texts=1, max_new_tokens=16)
    printed = capsys.readouterr().out
    rows = {row[0]: row for row in map(cells, printed.splitlines()) if len(row) > 2}
    names = ["plain sampling", "assisted look-up, L = 10", "look-up, K = 1, L = 4"]
    assert set(names) < set(rows)
    calls = {name: int(rows[name][2]) for name in names}
    assert calls["plain sampling"] == 16
    assert calls["look-up, K = 1, L = 4"] < 16, "the text stands there already"


def test_kept_tokens_of_the_authors_code():
    """The summands 0.35, 0.35, 0.3, .. of -p log p, nats, up to 0.4 of their sum."""
    probs = torch.tensor([0.5, 0.25, 0.125, 0.125])
    logits = torch.full((1, 120), -torch.inf)
    logits[0, 7:11] = probs.log()
    surprise = -probs * probs.log()
    counts = [1, 2, 3, 4]
    expected = max(n for n in counts if n == 1 or surprise[:n].sum() <= 0.4 * surprise.sum())
    assert top_h_variants.kept_by_released_code(logits, 1.0).tolist() == [expected]


def test_top_h_variants_are_counted_on_every_source(capsys, monkeypatch):
    monkeypatch.setattr(top_h_variants, "VOCAB", 3000)
    monkeypatch.setattr(top_h_variants, "ROWS", 3)
    top_h_variants.main()
    rows = [cells(line) for line in capsys.readouterr().out.splitlines()[2:]]
    assert len(rows) == 4 * 3
    medians = [[int(cell.split()[0].replace(",", "")) for cell in row[2:]] for row in rows]
    gaussian = dict(zip(("1", "1.5", "2"), medians, strict=False))
    assert gaussian["2"][0] > gaussian["1.5"][0] > gaussian["1"][0]
    assert all(theirs <= 100 for _, theirs, _ in medians), "it looks at 100 tokens"
    # 1000 ** 0.4 = 15.8
    assert top_h_variants.kept_by(TopH(0.4), torch.zeros(1, 1000), 1.0).item() == 15


def test_the_share_of_verification_is_written_for_the_report(tmp_path, capsys):
    file = tmp_path / "verification_share.json"
    verification_share.main(file, prompts=2, max_new_tokens=4, rounds=2)
    shares = json.loads(file.read_text())["shares"]
    assert list(shares) == ["untruncated", "`TopH(0.4)`", "`MinP(0.1)`"]
    for share in shares.values():
        assert list(share) == list(verification_share.VERIFIERS)
        assert all(0 < least <= middle <= most < 10 for middle, least, most in share.values())
    assert verification_table([file]).count("%") == 9
