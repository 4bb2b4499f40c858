"""The documentation runs: every python block, every command's options, every link.

The python blocks of a page are one program, in their order. `PRELUDE` makes the names that they take
for granted, as docs/index.md says. A comment before the first block of a page,

    <!-- in a process of its own: TRITON_INTERPRET=1 -->

runs it in one, with that environment. Commands of ours are parsed, not run: `warpdraft` and the scripts
of bench/ and .ci/. Any other is one that the script named in a comment before the block runs:

    <!-- run by tests/engines/vllm.sh -->
"""

from __future__ import annotations

import functools
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from tiny_models import tiny_model

import warpdraft

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
API = sorted((ROOT / "docs" / "api").glob("*.md"))

BLOCK = re.compile(
    r"(?:^<!-- run by (?P<script>\S+) -->\n+)?^```(?P<language>\w*)\n(?P<code>.*?)^```$",
    flags=re.DOTALL | re.MULTILINE,
)
OWN_PROCESS = re.compile(r"^<!-- in a process of its own: (?P<settings>.*) -->$", re.MULTILINE)
LANGUAGES = {"python", "bash", "text", "json"}

# what the README's commands need that no page names: a fresh environment, an engine
RUN_BY = {
    "python3": ".ci/run",
    "pip": ".ci/run",
    "python": ".ci/run",
    "vllm": "tests/engines/vllm.sh",
    "curl": "tests/engines/vllm.sh",
}

by_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


class Block(NamedTuple):
    """A block of code, the line where its code begins, and the script that runs it elsewhere."""

    language: str
    code: str
    line: int
    script: str | None


@functools.cache
def blocks(page: Path) -> tuple[Block, ...]:
    text = page.read_text(encoding="utf-8")
    return tuple(
        Block(
            found["language"],
            found["code"],
            text.count("\n", 0, found.start("code")) + 1,
            found["script"],
        )
        for found in BLOCK.finditer(text)
    )


def program(page: Path) -> str:
    """The python blocks of a page, each on the lines where it stands there."""
    lines: list[str] = []
    for block in blocks(page):
        if block.language == "python":
            lines += [""] * (block.line - 1 - len(lines)) + block.code.splitlines()
    return "\n".join(lines) + "\n"


def prelude() -> dict[str, object]:
    """The names that the pages take for granted."""
    return {
        "model": tiny_model(seed=1, layers=8),
        "draft_model": tiny_model(seed=2, layers=1),
        "inputs": {"input_ids": torch.tensor([[1, 5, 9]])},
        "logits": torch.randn(2, 64, generator=torch.Generator().manual_seed(0)),
    }


with_python = [page for page in PAGES if program(page).strip()]


@pytest.mark.parametrize("page", with_python, ids=lambda page: page.stem)
def test_python_blocks_run_in_order(page, tmp_path, monkeypatch, capsys):
    # a file, because Triton and dataclasses read the source of what they are given
    file = tmp_path / f"{page.stem.lower()}_page.py"
    file.write_text(program(page), encoding="utf-8")
    own = OWN_PROCESS.search(page.read_text(encoding="utf-8"))
    if own is not None:
        settings = dict(setting.split("=") for setting in own["settings"].split())
        run = subprocess.run(
            [sys.executable, str(file)],
            env={**os.environ, **settings},
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 0, run.stderr
        return
    # the default compiler needs one for C++
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    names = runpy.run_path(str(file), init_globals=prelude())
    if page.name == "README.md":
        check_readme(names, capsys.readouterr().out)


def check_readme(names, output):
    """What the README's examples must come to."""
    efficiency, acceptance = map(float, output.split())
    assert 1 <= efficiency <= 9
    assert 0 <= acceptance <= 1
    assert (names["masked"] > -torch.inf).any(dim=1).all()
    drawn = warpdraft.sample(names["logits"], names["rules"], seed=7)
    assert names["tokens"].tolist() == drawn.token_ids.tolist()
    assert names["drawn"].token_ids.shape == names["drawn"].kept_mass.shape == (2,)


@by_page
def test_every_block_says_its_language(page):
    text = page.read_text(encoding="utf-8")
    # a fence that is not closed would hide the blocks behind it
    assert len(blocks(page)) * 2 == len(re.findall(r"^```", text, flags=re.MULTILINE))
    assert {block.language for block in blocks(page)} <= LANGUAGES


def commands(code: str) -> list[list[str]]:
    """The commands of a block of bash, as words."""
    found = []
    for line in code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words:
            end = words.index("&&") if "&&" in words else len(words)
            found.append(words[:end])
            words = words[end + 1 :]
    return found


def plain(text: str) -> str:
    return " ".join(text.replace("\\\n", " ").replace(".venv/bin/", "").split())


@by_page
def test_commands_have_the_options_that_they_are_given(page):
    for block in blocks(page):
        if block.language != "bash":
            continue
        if block.script is not None:
            check_run_by(block.script, block.code)
            continue
        for words in commands(block.code):
            name = words[0].removeprefix(".venv/bin/")
            if name == "warpdraft":
                parse_ours(words[1:])
            elif name in ("python", "bash") and len(words) > 1 and (ROOT / words[1]).is_file():
                check_script(ROOT / words[1], words[2:])
            elif name in RUN_BY:
                check_run_by(RUN_BY[name], block.code)
            else:
                raise AssertionError(f"{page.name}: nothing runs {' '.join(words)}")


def check_run_by(script: str, code: str) -> None:
    """The script holds these commands, or names a page that holds them, to read them there.

    So do the modules beside it that it names, and those that they name.
    """
    path = ROOT / script
    text, waiting = path.read_text(encoding="utf-8"), set(path.parent.glob("*.py"))
    while named := {file for file in waiting if re.search(rf"\b{file.stem}\b", text)}:
        text += "".join(file.read_text(encoding="utf-8") for file in named)
        waiting -= named
    sources = [text] + [each.read_text(encoding="utf-8") for each in PAGES if each.name in text]
    assert any(plain(code) in plain(source) for source in sources), f"{script} does not run {code}"


def parse_ours(words: list[str]) -> None:
    """Parse a command line of `warpdraft` down to its last option; nothing runs."""
    from typer.main import get_command

    from warpdraft.bench.cli import app

    command, info = get_command(app), "warpdraft"
    while hasattr(command, "commands"):
        assert words[0] in command.commands, f"{info} has no command {words[0]!r}"
        info = f"{info} {words[0]}"
        command, words = command.commands[words[0]], words[1:]
    # in capitals stands what the reader fills in; shells take comments away
    command.make_context(info, list(words))


def check_script(script: Path, words: list[str]) -> None:
    """Every option that a script is given is one that it reads."""
    source = script.read_text(encoding="utf-8")
    for word in words:
        if word.startswith("--"):
            assert f'"{word.split("=")[0]}"' in source or word in source, (script.name, word)


@pytest.mark.parametrize("page", [*PAGES, *API], ids=lambda page: f"{page.parent.name}-{page.stem}")
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", BLOCK.sub("", text)):
        if "://" in target:
            continue
        name, _, heading = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), f"{page.name} links to {target}"
        if heading:
            assert heading in headings(file), f"{page.name} links to {target}"


@functools.cache
def headings(page: Path) -> set[str]:
    """The anchors of a page, as GitHub makes them."""
    found = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in found}


def test_the_index_names_every_page():
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    pages = [page.relative_to(ROOT / "docs").as_posix() for page in [*PAGES[1:], *API]]
    missing = [page for page in pages if page != "index.md" and f"]({page})" not in index]
    assert not missing


def test_the_reference_is_not_stale():
    script = ROOT / ".ci" / "reference.py"
    command = [sys.executable, str(script), "--check"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


def test_the_reference_holds_every_public_name():
    import warpdraft.integrations.transformers as plugin

    for module, page in ((warpdraft, "warpdraft"), (plugin, "transformers")):
        text = (ROOT / "docs" / "api" / f"{page}.md").read_text(encoding="utf-8")
        for name in set(module.__all__) - {"__version__"}:
            assert f"### `{module.__name__}.{name}`" in text


def test_inline_commands_and_options_of_the_readme_exist():
    from typer.main import get_command

    from warpdraft.bench.cli import app

    readme = PAGES[0].read_text(encoding="utf-8")
    ours = {
        f"{name} {below}".strip(): command
        for name, group in get_command(app).commands.items()
        for below, command in getattr(group, "commands", {"": group}).items()
    }
    named = set(re.findall(r"warpdraft ((?:bench )?[a-z]+)(?=[`\s])", readme))
    commands_named = {name for name in named if name.split()[0] in {key.split()[0] for key in ours}}
    assert commands_named - {"bench"} <= set(ours)
    known = {option for command in ours.values() for each in command.params for option in each.opts}
    assert set(re.findall(r"`(--[a-z-]+)", readme)) <= known


@pytest.mark.parametrize("page", [*PAGES, *API], ids=lambda page: f"{page.parent.name}-{page.stem}")
def test_tables_have_as_many_cells_in_every_row(page):
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    for table in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        # a bar that is not escaped begins a cell, also between backticks
        cells = {len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}
        assert len(cells) == 1, table[:200]
