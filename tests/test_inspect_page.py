"""The page of `warpdraft inspect` as a file; `browsed_inspect_page.py` looks at it in a browser."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from html.parser import HTMLParser

import pytest
from inspected_pages import HOSTILE, hostile, inspection_of

from warpdraft.bench.cli import run
from warpdraft.bench.inspect_page import DIGITS, embedded, page, rounded


class Elements(HTMLParser):
    """The start tags of a page, and what stands in its script elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data):
        if self.lasttag == "script":
            self.scripts[-1] += data


@pytest.fixture(scope="module")
def inspection():
    return inspection_of()


@pytest.fixture(scope="module")
def worst(inspection):
    return hostile(inspection)


def test_the_page_loads_nothing(inspection):
    written = page(inspection)
    # the namespace of SVG is a name, no address
    without = written.replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?:|//[a-z]|url\(|@import|fetch\(|XMLHttp|WebSocket", without)
    for tag, attributes in Elements(written).tags:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base")
        assert not {"src", "href", "srcset", "action"} & set(attributes)
    policy = next(
        attributes["content"]
        for tag, attributes in Elements(written).tags
        if attributes.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none'")


def test_the_record_comes_back_as_it_was(worst):
    elements = Elements(page(worst))
    assert [tag for tag, _ in elements.tags].count("script") == 2
    expected = json.loads(json.dumps(rounded(asdict(worst))))
    found = json.loads(elements.scripts[0])
    efficiency = found.pop("block_efficiency")
    assert found == expected
    assert efficiency == pytest.approx(worst.block_efficiency, rel=10.0**-DIGITS)
    assert {step["token"]["text"] for step in found["steps"]} == {token.text for token in HOSTILE}


def test_hostile_tokens_add_no_markup(inspection, worst):
    tags = [
        [(tag, sorted(attributes)) for tag, attributes in Elements(page(each)).tags]
        for each in (inspection, worst)
    ]
    assert tags[0] == tags[1]
    assert not set("<>&") & set(embedded(worst))
    assert embedded(worst).isascii()


def test_the_template_never_reads_a_token_as_html():
    template = page(inspection_of(tokens=2))
    for way in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval("):
        assert way not in template


def test_numbers_are_rounded_and_nothing_else():
    assert rounded({"a": [0.123456789, 7], "b": (None, "0.123456789", True)}) == {
        "a": [0.12346, 7],
        "b": [None, "0.123456789", True],
    }
    assert rounded(1.23456789e-12) == 1.2346e-12


def test_the_command_writes_the_page(tmp_path, capsys):
    file = tmp_path / "page.html"
    options = ["--max-new-tokens", "8", "--seed", "1", "--html", str(file)]
    assert run(["inspect", "def add(a, b):", *options]) == 0
    assert "one file" in capsys.readouterr().err
    text = file.read_text(encoding="utf-8")
    assert len(json.loads(Elements(text).scripts[0])["steps"]) == 8
    assert len(text) < 150_000
