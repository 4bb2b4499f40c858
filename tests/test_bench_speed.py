"""bench/speed.py: what is counted, and the tables that are made of it."""

import json

import pytest
from typer.testing import CliRunner

from warpdraft.bench import speed
from warpdraft.bench.report_tables import overhead_table, speed_table
from warpdraft.bench.strategies import Run
from warpdraft.statistics import GenerationStats


class Ticks:
    """A clock that moves on only when a way writes."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_rounds_are_timed_by_turns_and_the_median_counts():
    clock, order = Ticks(), []

    def way(name, seconds):
        def write(inputs, seed):
            order.append((name, seed))
            clock.now += seconds[seed]
            return Run(name, [12], [4], 0.0)

        return write

    ways = {
        ("plain", ""): way("plain", [9.0, 1.0, 2.0, 4.0]),
        ("ours", "K = 1, L = 2"): way("ours", [9.0, 3.0, 0.5, 1.0]),
    }
    plain, ours = speed.timed(ways, ["first", "second"], 1, 3, clock)
    assert [name for name, seed in order if seed == 2] == ["plain", "plain", "ours", "ours"]
    assert plain.tokens_per_second == 24 / 4
    assert plain.spread == (24 / 8, 24 / 2)
    assert ours.tokens_per_second == 24 / 2
    assert ours.block_efficiency == 3


def test_stages_are_milliseconds_a_block():
    stats = GenerationStats(target_calls_by_row=[3, 5], seconds={"draft": 0.1, "verify": 0.02})
    run = Run("ours", [9, 9], [3, 5], 1.0, stats)
    assert speed.stages_of([run, run]) == pytest.approx({"draft": 20.0, "verify": 4.0})
    assert speed.stages_of([Run("plain", [9], [9], 1.0)]) == {}


def line(name, batch, drafts, tokens, stages=None):
    return {
        "name": name,
        "batch": batch,
        "drafts": drafts,
        "tokens_per_second": tokens,
        "spread": [tokens - 1, tokens + 1],
        "block_efficiency": 2.0,
        "stages": stages or {},
    }


def test_the_table_takes_the_fastest_draft_length_of_each_way(tmp_path):
    lines = [
        line("plain", 1, "", 100.0),
        line("plain", 8, "", 400.0),
        line("plain", 1, "compiled", 150.0),
        line("plain", 8, "compiled", 500.0),
        line("assisted", 1, "4 tokens", 80.0),
        line("assisted", 1, "8 tokens", 50.0),
    ]
    for batch in (1, 8):
        for drafts, tokens in (("L = 2", 120.0), ("L = 4", 160.0)):
            for paths in (1, 4):
                lines.append(line("ours", batch, f"K = {paths}, {drafts}", tokens / paths))
                lines.append(line("ours", batch, f"K = {paths}, {drafts}, compiled", 2 * tokens))
    file = tmp_path / "speed.json"
    file.write_text(json.dumps({"lines": lines}))
    rows = {
        row.split("|")[1].strip(): row.split("|")[2:-1] for row in speed_table([file]).splitlines()
    }
    cells = {name: [cell.strip() for cell in row] for name, row in rows.items()}
    assert cells["plain `generate`"] == ["100 [99, 101]", "400 [399, 401]", "1.00", "1.00", "1.25"]
    compiled = cells["plain `generate`, static cache, compiled"]
    assert compiled[::2] == ["150 [149, 151]", "1.50", "1.88"]
    assert cells["assisted generation"] == [
        "80 [79, 81], 4 tokens",
        "one text at a time only",
        "0.80",
        "",
        "1.00",
    ]
    assert cells["ours, K = 1"][::2] == ["160 [159, 161], L = 4", "1.60", "2.00"]
    assert cells["ours, K = 4, compiled"][1] == "320 [319, 321], L = 4"
    assert cells["ours, K = 4, compiled"][3] == "0.80"


def test_what_is_not_a_models_call_is_ours(tmp_path):
    overhead = speed.Overhead("compiled", 2, 3.0, 1.0, 4.0, 3.5, 1.0, 0.5)
    assert overhead.ours == pytest.approx(4.0)
    file = tmp_path / "speed.json"
    file.write_text(json.dumps({"overheads": [speed.asdict(overhead)]}))
    assert overhead_table([file]).splitlines()[-1].endswith("| 4.00 (47 %) |")


def test_the_command_writes_what_it_prints(tmp_path):
    import typer

    app = typer.Typer()
    app.command()(speed.main)
    file = tmp_path / "speed.json"
    arguments = "--prompts 1 --batch 2 --max-new-tokens 8 --rounds 1 --no-compile --json"
    result = CliRunner().invoke(app, [*arguments.split(), str(file)])
    assert result.exit_code == 0, result.output
    record = json.loads(file.read_text())
    assert {line["batch"] for line in record["lines"]} == {1, 2}
    assert [each["way"] for each in record["overheads"]] == ["dynamic"]
    fastest = max(record["lines"], key=lambda each: each["tokens_per_second"])
    assert f"{fastest['tokens_per_second']:.1f}" in result.output
