"""The README's figures are those of the committed results."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from warpdraft.bench import plan_check, report
from warpdraft.bench.marks import between, marks
from warpdraft.bench.report_tables import look_up_sentence, markdown, verifiers_table

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results"
README = (ROOT / "README.md").read_text(encoding="utf-8")
by_table = pytest.mark.parametrize("table", report.TABLES, ids=lambda table: table.name)


@pytest.fixture
def results(tmp_path) -> Path:
    return Path(shutil.copytree(RESULTS, tmp_path / "results"))


@by_table
def test_the_readme_holds_what_the_results_say(table):
    assert table.put_into(README, RESULTS) == README


def test_the_check_passes():
    assert report.check(README, RESULTS) == []
    assert report.with_tables(README, RESULTS) == README


@by_table
def test_a_changed_figure_is_found(table):
    start, end = marks(table.name, report.SCRIPT)
    before, _, rest = README.partition(start)
    made, _, after = rest.partition(end)
    digit = next(position for position, letter in enumerate(made) if letter in "2345678")
    changed = made[:digit] + str(int(made[digit]) + 1) + made[digit + 1 :]
    wrong = f"{before}{start}{changed}{end}{after}"
    assert report.check(wrong, RESULTS) == [table.name]
    assert report.with_tables(wrong, RESULTS) == README


def test_a_changed_result_is_found(results):
    file = results / "verifiers_gemma_iid_T1.json"
    (summary,) = json.loads(file.read_text())
    for cell in summary["cells"]:
        cell["tokens"] += 0.1
    file.write_text(json.dumps([summary]))
    assert report.check(README, results) == ["verifiers on Gemma"]


def test_missing_files_and_marks_are_named(results):
    table = report.TABLES[0]
    with pytest.raises(ValueError, match="has no line '<!-- first layers: made by"):
        table.put_into("# no marks", results)
    (results / table.made[0].file).unlink()
    with pytest.raises(ValueError, match=r"first layers: there is no .*first_layers_1\.json"):
        table.text(results)


def test_the_script_rewrites_and_checks(monkeypatch, tmp_path):
    page = tmp_path / "README.md"
    page.write_text(README.replace("| K = 4 | 1.", "| K = 4 | 9."), encoding="utf-8")
    monkeypatch.setattr(report, "README", page)
    monkeypatch.setattr(report, "RESULTS", RESULTS)
    typer_app = typer.Typer()
    typer_app.command()(report.main)
    call = CliRunner().invoke
    wrong = call(typer_app, ["--check"])
    assert wrong.exit_code == 1
    assert "README.md differs from the results: first layers" in wrong.output
    assert call(typer_app, []).exit_code == 0
    assert page.read_text(encoding="utf-8") == README
    assert call(typer_app, ["--check"]).exit_code == 0
    listed = call(typer_app, ["--list"]).output
    assert all(made.file in listed for made in report.all_made())


def test_every_results_file_has_a_command_that_can_be_parsed(monkeypatch):
    # an installed package has no scripts beside it
    monkeypatch.setattr(report, "ROOT", ROOT)
    from typer.main import get_command

    from warpdraft.bench.cli import app

    for made in report.all_made():
        for quick in (False, True):
            words = made.words(Path("out.json"), Path("gemma"), quick=quick)[1:]
            if words[0] != "-c":
                assert Path(words[0]).is_file()
                continue
            command = get_command(app).commands["bench"].commands[words[3]]
            command.make_context(made.file, words[4:])


def test_a_measurement_writes_its_file(tmp_path):
    made = dict(report.measure(tmp_path, None, quick=True, only=["first_layers_1.json"]))
    assert [(each.file, code) for each, code in made.items()] == [("first_layers_1.json", 0)]
    lines = json.loads((tmp_path / "first_layers_1.json").read_text())
    assert [line["num_drafts"] for line in lines] == [0, 1, 4]
    # without a folder of Gemma its measurements are left out
    gemma = [each for each in report.all_made() if each.needs_gemma]
    assert gemma and not list(
        report.measure(tmp_path, None, quick=True, only=[each.file for each in gemma])
    )


def test_gains_carry_interval_and_stars(tmp_path):
    gain = {"percent": 8.64, "low": 6.71, "high": 10.5, "p_value": 0.004}
    cells = [
        {"verifier": label, "num_drafts": paths, "draft_length": length, "tokens": 2.345}
        | {"against": {} if label == "k_seq" else {"k_seq": gain}}
        for label in ("k_seq", "traversal")
        for paths in (2, 4)
        for length in (4, 8)
    ]
    file = tmp_path / "one.json"
    file.write_text(json.dumps([{"cells": cells}]))
    lines = verifiers_table([file]).splitlines()
    cell = r"2.35 (+8.6 % [+6.7, +10.5]\*\*)"
    assert lines[2] == f"| `traversal` | {' | '.join([cell] * 4)} |"
    assert lines[3] == "| `k_seq` | 2.35 | 2.35 | 2.35 | 2.35 |"


def test_the_printed_look_up_table_is_read(tmp_path):
    rows = {
        "assisted look-up, L = 10": ("2.12", "1.30"),
        "look-up, K = 1, L = 4": ("2.36", "1.16"),
        "look-up, K = 1, L = 10": ("2.80", "1.15"),
        "look-up, K = 3, L = 10": ("3.03", "1.05"),
    }
    text = "\n".join(
        f"│ {name} │ 288 │ 99 │ {tokens} │ │ 80.0 │ {ratio} │"
        for name, (tokens, ratio) in rows.items()
    )
    (tmp_path / "look_up.txt").write_text(text, encoding="utf-8")
    sentence = look_up_sentence([tmp_path / "look_up.txt"])
    assert sentence.startswith("2.36 tokens a target call with K = 1, L = 4, 2.80 with")
    assert "look-up with 10 tokens 2.12." in sentence
    assert sentence.endswith("theirs 1.30, ours 1.16, 1.15, 1.05")


def test_tables_and_marks_are_plain_markdown():
    assert markdown(["", "a"], [["x", "1"]]) == "| | a |\n|---|---|\n| x | 1 |"
    start, end = marks("name", "script.py")
    page = f"before\n{start}old{end}\nafter"
    assert between(page, start, end, "new") == f"before\n{start}new{end}\nafter"


def test_the_page_of_the_cost_model_holds_what_its_check_makes():
    page = (ROOT / "docs" / "plan.md").read_text(encoding="utf-8")
    assert plan_check.with_published(page) == page
    # what the page says of it: plain sampling within 11 %, speculation never faster than predicted
    for _, _, _, published, predicted in plan_check.plain_rows():
        assert abs(predicted / published - 1) < 0.115
    assert all(published < predicted for *_, published, predicted in plan_check.drafted_rows())
