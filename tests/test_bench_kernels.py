"""The throughput profiler on a CPU: what its gate finds, its files, its exit codes."""

from __future__ import annotations

import csv
import json
from dataclasses import fields, replace

import pytest
import torch

import warpdraft
from warpdraft import MinP, TopH, TopK, TopP
from warpdraft.bench.baselines.library import Library
from warpdraft.bench.baselines.provider import NotMeasured
from warpdraft.bench.baselines.registry import PROVIDERS
from warpdraft.bench.baselines.torch_forms import HEAD, prefix
from warpdraft.bench.cli import run
from warpdraft.bench.rows import llm
from warpdraft.bench.throughput.gate import GateFailure, check
from warpdraft.bench.throughput.inputs import make_inputs
from warpdraft.bench.throughput.kernels import KERNELS, Cell
from warpdraft.bench.throughput.launches import (
    launch_text,
    ncu_command,
    short_name,
    summed,
    walk_time,
)
from warpdraft.bench.throughput.reference import kept_counts
from warpdraft.bench.throughput.results import Result, compare, load, save
from warpdraft.bench.throughput.run import Plan, measure, moved_bytes
from warpdraft.bench.throughput.timers import ClockTimer, Effort

CPU = torch.device("cpu")
TINY = Effort(least_runs=2, most_runs=3, seconds=0.0, copied_bytes=1 << 16)
HERE = ("warpdraft", "torch", "hand", "transformers")


def cell_of(name, vocab=500, batch=3, dtype="float32", rows=None):
    kernel = KERNELS[name]
    return Cell(kernel, rows or kernel.rows, vocab, batch, dtype)


def measured(cells, providers, **options):
    timer = ClockTimer(TINY, flushed_bytes=1 << 12)
    return measure(Plan(cells, providers, CPU, **options), timer)


class Wrong:
    """The library with one thing changed in what it returns."""

    def __init__(self, change, name="wrong"):
        self.change, self.name = change, name

    def prepare(self, kernel, inputs, most_kept):
        call = Library().prepare(kernel, inputs, most_kept)
        return replace(call, run=lambda rows: self.change(call.run(rows), rows))


def one_more(masked, rows):
    """The best of the dropped tokens is kept in the last row."""
    masked, dropped = masked.clone(), torch.where(masked == -torch.inf, rows.logits, -torch.inf)
    masked[-1, dropped[-1].argmax()] = dropped[-1].max()
    return masked


def one_less(masked, rows):
    masked = masked.clone()
    masked[-1, torch.where(masked == -torch.inf, torch.inf, masked)[-1].argmin()] = -torch.inf
    return masked


def another(masked, rows):
    """As many tokens, one of them not among the most likely."""
    masked = one_less(masked, rows)
    worst = rows.logits[-1].argmin()
    masked[-1, worst] = rows.logits[-1, worst]
    return masked


MASKS = {
    "one more": one_more,
    "one less": one_less,
    "another": another,
    "nothing masked": lambda masked, rows: rows.logits,
    "finite mask": lambda masked, rows: masked.clamp(min=-1e4),
    "tempered": lambda masked, rows: masked / 2,
}
DRAWS = {
    "another token": lambda drawn, _: replace(drawn, token_ids=drawn.token_ids.roll(1)),
    "no token": lambda drawn, _: replace(drawn, token_ids=torch.full_like(drawn.token_ids, -1)),
    "another logprob": lambda drawn, _: replace(drawn, logprobs=drawn.logprobs - 0.01),
    "another mass": lambda drawn, _: replace(drawn, kept_mass=drawn.kept_mass * 0.99),
    "a status": lambda drawn, _: replace(drawn, status=drawn.status + 1),
}
BLOCKS = {
    "one more accepted": lambda found, _: replace(found, num_accepted=found.num_accepted + 1),
    "another path": lambda found, _: replace(found, survivor_path=7 - found.survivor_path),
    "another token": lambda found, _: replace(found, output_token_ids=found.output_token_ids + 1),
}


@pytest.mark.parametrize(
    ("kernel", "change"),
    [
        *((name, change) for name in ("top-h-mask", "min-p-mask") for change in MASKS.values()),
        *((name, change) for name in ("top-h", "four-rules") for change in DRAWS.values()),
        *(("k-seq", change) for change in BLOCKS.values()),
    ],
    ids=[
        *(f"{name}-{change}" for name in ("top-h-mask", "min-p-mask") for change in MASKS),
        *(f"{name}-{change}" for name in ("top-h", "four-rules") for change in DRAWS),
        *(f"k-seq-{change}" for change in BLOCKS),
    ],
)
def test_a_wrong_kernel_is_never_timed(kernel, change):
    report = measured([cell_of(kernel)], [Wrong(change), Library()])
    assert len(report.failures) == 1
    assert report.failures[0].startswith(f"wrong: {kernel}, ")
    assert all(line.median_us is None for line in report.results)


def test_the_gate_finds_draws_from_another_law():
    hotter = Library().prepare(
        replace(KERNELS["top-k"], temperature=2.0), make_inputs(cell_of("top-k"), CPU), 0
    )
    with pytest.raises(GateFailure):
        check(KERNELS["top-k"], hotter, make_inputs(cell_of("top-k"), CPU))


def test_keeping_going_measures_what_passes():
    report = measured([cell_of("min-p-mask")], [Wrong(one_more), Library()], keep_going=True)
    assert {line.provider: line.median_us is None for line in report.results} == {
        "wrong": True,
        "warpdraft": False,
    }
    assert report.results[0].note.startswith("gate failed: row 2 ")


def test_the_command_prints_no_times_and_exits_with_1(monkeypatch, capsys):
    monkeypatch.setitem(PROVIDERS, "warpdraft", Wrong(one_more, "warpdraft"))
    small = ("--kernel", "min-p-mask", "--vocab", "500", "--device", "cpu")
    assert run(["bench", "kernels", *small, "--provider", "torch,warpdraft"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "keeps too few or too many tokens" in captured.err


@pytest.mark.parametrize("name", KERNELS)
def test_every_provider_passes_on_every_kernel(name):
    providers = [PROVIDERS[provider] for provider in HERE]
    report = measured([cell_of(name, vocab=300, batch=2)], providers)
    assert not report.failures
    for line in report.results:
        assert line.mode == "clock"
        assert line.p20_us <= line.median_us <= line.p80_us
        assert line.floor_percent == pytest.approx(line.copy_percent)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("rows", ["llm", "flat", "gaussian", "one-hot"])
def test_halves_have_ties_and_pass(rows, dtype):
    names = ("top-h-mask", "min-p-mask", "top-p-mask", "top-k-mask", "four-rules")
    cells = [cell_of(name, 2000, 4, dtype, rows) for name in names]
    report = measured(cells, [PROVIDERS[name] for name in HERE], check_only=True, keep_going=True)
    assert not report.failures


def test_hand_written_forms_refuse_rows_that_their_head_does_not_hold():
    cell = cell_of("top-h-hot", vocab=20_000, batch=1)
    inputs = make_inputs(cell, CPU)
    with pytest.raises(NotMeasured, match="largest logits"):
        PROVIDERS["hand"].prepare(cell.kernel, inputs, HEAD + 1)


@pytest.mark.parametrize("provider", ["flashinfer", "vllm"])
def test_what_cannot_be_imported_is_not_measured(provider, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, provider, None)
    report = measured([cell_of("top-p")], [PROVIDERS[provider]])
    assert [line.note for line in report.results] == [
        f"not measured: {provider} cannot be imported (ModuleNotFoundError)"
    ]


def test_cells_after_the_time_are_not_measured():
    report = measured([cell_of("min-p")], [Library()], seconds=0.0)
    assert [line.note for line in report.results] == ["not measured: out of time"]


@pytest.mark.parametrize(
    "rules",
    [(TopH(0.4),), (MinP(0.1),), (TopP(0.9),), (TopK(50),), KERNELS["four-rules"].rules],
    ids=str,
)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_references_agree_with_truncate(rules, temperature):
    logits = llm(8, 3000, seed=3).double()
    kept = kept_counts(logits, rules, temperature, band=1e-9)
    assert torch.equal(kept.least, kept.most)
    masked = warpdraft.truncate(logits, rules, temperature=temperature)
    assert torch.equal((masked > -torch.inf).sum(-1), kept.least)
    ordered = logits.sort(dim=-1, descending=True).values
    levels = (ordered - ordered[:, :1]) / temperature
    assert torch.equal(prefix(rules, levels, levels).sum(-1), kept.least)


def test_bytes_that_must_move():
    cells = {name: cell_of(name, vocab=100, batch=2) for name in ("top-h", "top-h-mask", "k-seq")}
    moved = {name: moved_bytes(cell, make_inputs(cell, CPU)) for name, cell in cells.items()}
    assert (moved["top-h"], moved["top-h-mask"]) == (800, 1600)
    # of the target at most 65 nodes and of the draft 57, read twice
    assert 0 < moved["k-seq"] <= 2 * 2 * (65 + 57) * 400


def line_of(**changes):
    report = measured([cell_of("min-p-mask")], [Library()])
    return replace(report.results[0], **changes)


def test_lines_survive_the_csv(tmp_path):
    line = line_of(median_us=12.5, p20_us=12.0, p80_us=13.0, gb_s=1.5, walk_us=None)
    numbers = {
        field.name: 2.5 for field in fields(Result) if isinstance(getattr(line, field.name), float)
    }
    line = replace(line, **numbers)
    save([line], tmp_path / "lines.csv")
    assert load(tmp_path / "lines.csv") == [line]
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="other columns"):
        load(tmp_path / "other.csv")


def test_a_regression_is_slower_beyond_the_noise():
    old = line_of(median_us=10.0, p20_us=9.0, p80_us=11.0)
    slower = replace(old, median_us=12.0, p20_us=11.5, p80_us=13.0)
    noisy = replace(slower, p20_us=10.5)
    barely = replace(old, median_us=10.2, p20_us=11.1)
    found = [compare([old], [new])[0].regression for new in (slower, noisy, barely, old)]
    assert found == [True, False, False, False]
    assert compare([old], [slower])[0].ratio == pytest.approx(1.2)
    for changes, message in (
        ({"rows_sha256": "0"}, "sha256"),
        ({"machine": "another; driver"}, "another"),
        ({"batch": 4}, "no measured cell in common"),
    ):
        with pytest.raises(ValueError, match=message):
            compare([old], [replace(slower, **changes)])


def test_the_command_writes_its_files_and_compares(tmp_path, capsys):
    small = ("--kernel", "min-p-mask", "--vocab", "500", "--batch", "2", "--device", "cpu")
    small = ("bench", "kernels", *small, "--cell-seconds", "0", "--provider", "warpdraft")
    files = {name: tmp_path / f"out.{name}" for name in ("csv", "json", "png", "trace")}
    options = zip(("--csv", "--json", "--plot", "--trace"), map(str, files.values()), strict=True)
    assert run([*small, *(part for option in options for part in option)]) == 0
    with files["csv"].open() as file:
        lines = list(csv.DictReader(file))
    assert [(line["cache"], line["provider"]) for line in lines] == [
        ("cold", "warpdraft"),
        ("hot", "warpdraft"),
    ]
    assert list(lines[0]) == [field.name for field in fields(Result)]
    for part in ("torch 2", "triton ", "transformers ", "commit ", "driver ", "clocks "):
        assert part in lines[0]["machine"]
    assert json.loads(files["json"].read_text())[0]["kernel"] == "min-p-mask"
    assert files["png"].read_bytes().startswith(b"\x89PNG")
    assert json.loads(files["trace"].read_text())["traceEvents"]

    def rewritten(factor):
        old = [
            replace(line, **{name: getattr(line, name) * factor for name in ("median_us", "p20_us", "p80_us")})
            for line in load(files["csv"])
        ]  # fmt: skip
        save(old, tmp_path / "old.csv")
        return ("--compare", str(tmp_path / "old.csv"))

    capsys.readouterr()
    assert run([*small, *rewritten(1e-3)]) == 3
    assert "REGRESSION" in capsys.readouterr().out
    assert run([*small, *rewritten(1e3)]) == 0


def test_the_gate_alone_times_nothing(capsys):
    small = ("--kernel", "all", "--vocab", "200", "--batch", "2", "--device", "cpu")
    assert run(["bench", "kernels", "--check", *small, "--provider", "warpdraft"]) == 0
    assert "passes the gate" in capsys.readouterr().out


def test_the_command_for_nsight_compute(capsys):
    small = ("--kernel", "min-p", "--vocab", "1000", "--batch", "4", "--device", "cpu")
    assert run(["bench", "kernels", "--ncu", *small]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("ncu ")
    assert "--nvtx-include gate-warpdraft/" in printed
    assert "dram__bytes_read.sum" in printed
    # 1.08 times four rows of a thousand float32
    assert "at most 1.08 x 16,000 = 17,280 bytes" in printed
    cell = cell_of("top-h", vocab=1000, batch=4)
    assert "16,000" in ncu_command(cell, "warpdraft", make_inputs(cell, CPU), reads=1)


def test_launches_in_one_field():
    names = {"row_stats": 9.14, "walk_kernel": 40.0}
    events = [(name, names[name]) for _ in range(10) for name in (*names, "walk_kernel")]
    launches = summed(events)
    assert launch_text(launches) == "row_stats=9.14 walk_kernel=2x40"
    assert walk_time(launches) == 80.0
    assert walk_time(launches[:1]) is None
    assert short_name("void at::native::reduce<512, float>(int)") == "reduce"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--kernel", "magic"), "magic"),
        (("--provider", "magic"), "magic"),
        (("--dtype", "int8"), "int8"),
        (("--rows", "magic"), "magic"),
        (("--device", "mps"), "mps"),
        (("--device", "cuda:99"), "cuda:99"),
        (("--vocab", "0"), "--vocab"),
        (("--csv", "no/such/folder/out.csv"), "no/such/folder"),
        (("--compare", "no/such/file.csv"), "no/such/file.csv"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_bad_input_is_one_line(options, named, capsys):
    assert run(["bench", "kernels", "--kernel", "min-p", *options]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert named in error
