"""The page of `warpdraft inspect` in a real headless Chromium, which `.ci/look_at_page` makes sure is there.

The browser is driven as a person would: with the mouse, with keys, in a light and a dark setting, on a phone.
"""

from __future__ import annotations

import pytest
from chromium import Browser
from inspected_pages import HOSTILE, hostile, inspection_of

from warpdraft.bench.inspect_page import page

DESKTOP, PHONE, NARROW = 1280, 390, 320
SCHEMES = {"light": False, "dark": True}
# WCAG 2.2, 1.4.3 and 1.4.11
TEXT_CONTRAST, SHAPE_CONTRAST = 4.5, 3.0

# text against what is painted behind it: pairs below the limit, and how many were looked at
CONTRASTS = """
(() => {
  const number = (colour) => { const parts = colour.match(/[\\d.]+/g).map(Number);
    return parts.length === 3 ? [...parts, 1] : parts; };
  const luminance = (rgb) => rgb.slice(0, 3).map((part) => part / 255)
    .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
    .reduce((sum, part, index) => sum + part * [0.2126, 0.7152, 0.0722][index], 0);
  const over = (front, back) => front.slice(0, 3).map((part, index) => part * front[3] + back[index] * (1 - front[3]));
  const behind = (element) => {
    const layers = [];
    for (let each = element; each; each = each.parentElement)
      layers.push(number(getComputedStyle(each).backgroundColor));
    return layers.reverse().reduce((back, front) => over(front, back), [255, 255, 255]);
  };
  const poor = [];
  let looked = 0;
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !element.getClientRects().length) continue;
    if (element.closest("script, noscript, .hidden, svg, :disabled")) continue;
    if (getComputedStyle(element).visibility === "hidden") continue;
    const back = behind(element), ink = over(number(getComputedStyle(element).color), back);
    const [dark, bright] = [luminance(ink), luminance(back)].sort((one, other) => one - other);
    const ratio = (bright + 0.05) / (dark + 0.05);
    looked += 1;
    if (ratio < LIMIT) poor.push(`${ratio.toFixed(2)}: ${element.className} ${walker.currentNode.data.slice(0, 30)}`);
  }
  return [looked, poor];
})()
"""
# colours that say something against the card that they stand on
SHAPES = """
(() => {
  const style = getComputedStyle(document.documentElement);
  const luminance = (hex) => [1, 3, 5].map((start) => parseInt(hex.slice(start, start + 2), 16) / 255)
    .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
    .reduce((sum, part, index) => sum + part * [0.2126, 0.7152, 0.0722][index], 0);
  const card = luminance(style.getPropertyValue("--card").trim());
  return [...Array(8).keys()].map((rule) => `--rule-${rule}`)
    .concat(["--accepted", "--recovered", "--bonus", "--drawn", "--focus"])
    .map((name) => [name, luminance(style.getPropertyValue(name).trim())])
    .map(([name, own]) => [name, (Math.max(own, card) + 0.05) / (Math.min(own, card) + 0.05)]);
})()
"""


@pytest.fixture(scope="module")
def inspections():
    usual = inspection_of()
    return {"usual": usual, "hostile": hostile(usual), "plain": inspection_of(speculate=False)}


@pytest.fixture(scope="module")
def files(inspections, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    written = {name: folder / f"{name}.html" for name in inspections}
    for name, file in written.items():
        file.write_text(page(inspections[name]), encoding="utf-8")
    return written


@pytest.fixture(scope="module")
def opened():
    with Browser() as browser:
        yield browser


@pytest.fixture
def browser(opened):
    """The browser; afterwards nothing may have been complained about, and nothing asked for but the pages."""
    opened.errors.clear()
    opened.requests.clear()
    yield opened
    # answers bring the events before them
    opened.run("1")
    assert opened.errors == []
    assert all(address.startswith(("file:", "about:")) for address in opened.requests)


def selected(browser) -> list[int]:
    """Numbers of the selected tokens, and that of the step that is shown."""
    numbers = browser.run(
        "[...document.querySelectorAll('[aria-selected=true]')].map((each) => Number(each.id.slice(6)))"
    )
    title = browser.run("document.getElementById('step-title').textContent")
    return [*numbers, int(title.split()[1]) - 1]


def test_the_page_opens_at_the_most_uncertain_token(browser, files, inspections):
    browser.show(files["usual"])
    expected = inspections["usual"].most_uncertain
    assert selected(browser) == [expected, expected]
    text = browser.run(
        "[...document.querySelectorAll('#text .token')].map((each) => each.textContent).join('')"
    )
    written = "".join(step.piece for step in inspections["usual"].steps)
    assert text.replace("↵", "").replace("⇥", "") == written


def test_a_click_selects_a_token(browser, files, inspections):
    browser.show(files["usual"])
    for number in (3, 17, 0):
        browser.click(f"#token-{number}")
        assert selected(browser) == [number, number]
    step = inspections["usual"].steps[0]
    rows = browser.run("document.querySelectorAll('#law tbody tr').length")
    assert rows == len(step.candidates)
    shown = browser.run("document.querySelector('#law tr.here .name').title")
    assert f"rank {step.rank}," in shown
    counts = browser.run(
        "[...document.querySelectorAll('#rules tbody tr')].map((row) => row.cells[1].textContent)"
    )
    assert counts == [f"{reading.count:,}" for reading in step.readings]


def test_keys_move_through_the_text(browser, files, inspections):
    last = len(inspections["usual"].steps) - 1
    browser.show(files["usual"])
    browser.click("#token-5")
    moves = {"ArrowRight": 6, "ArrowDown": 7, "ArrowLeft": 6, "ArrowUp": 5, "Home": 0, "End": last}
    for key, expected in moves.items():
        browser.press(key)
        assert selected(browser) == [expected, expected], key
        assert browser.run("document.activeElement.id") == f"token-{expected}"
    browser.press("ArrowRight")
    assert selected(browser) == [last, last]


def test_the_keyboard_reaches_everything(browser, files, inspections):
    browser.show(files["usual"])
    order = []
    for _ in range(40):
        browser.press("Tab")
        stop = "document.activeElement.closest('#rules') ? 'rule' : document.activeElement.id"
        order.append(browser.run(stop))
    current = inspections["usual"].most_uncertain
    for stop in ("by-role", "by-surprise", f"token-{current}", "drafts", "before", "after"):
        assert stop in order
    # of the tokens only the selected one
    assert len({stop for stop in order if stop.startswith("token-")}) == 1
    first = order.index("rule")
    assert order[first : first + 6] == ["rule"] * len(inspections["usual"].rules)


def test_buttons_step_and_an_address_names_a_token(browser, files):
    browser.show(files["usual"], hash="#10")
    assert selected(browser) == [9, 9]
    browser.click("#after")
    assert selected(browser) == [10, 10]
    browser.click("#before")
    browser.click("#before")
    assert selected(browser) == [8, 8]
    assert browser.run("location.hash") == "#9"


def test_bars_reach_the_line_of_a_rule_that_keeps_their_token(browser, files, inspections):
    browser.show(files["usual"])
    edges = """
[...document.querySelectorAll('#law tbody tr')].map((row) => [
  row.querySelector('.bar').getBoundingClientRect().right,
  ...[...row.querySelectorAll('.plot .cut:not(.upper)')].map((line) => {
    const box = line.getBoundingClientRect(); return (box.left + box.right) / 2; })])
"""
    step = inspections["usual"].steps[inspections["usual"].most_uncertain]
    drawn = browser.run(
        "[...document.querySelectorAll('#law thead .axis .cut')].map((line) => line.style.getPropertyValue('--rule'))"
    )
    rules = [int(name[len("var(--rule-") : -1]) for name in drawn]
    assert rules
    for (right, *lines), candidate in zip(browser.run(edges), step.candidates, strict=True):
        for rule, line in zip(rules, lines, strict=True):
            # a pixel where a bar ends at the line
            if rule in candidate.kept_by:
                assert right >= line - 1
            else:
                assert right <= line + 1


def test_a_rule_can_be_looked_at_alone(browser, files, inspections):
    browser.show(files["usual"])
    browser.click("#rules tbody tr:nth-child(3) button")
    pressed = "[...document.querySelectorAll('#rules button')].map((each) => each.getAttribute('aria-pressed'))"
    assert browser.run(pressed) == ["false", "false", "true", "false", "false", "false"]
    inspection = inspections["usual"]
    step = inspection.steps[inspection.most_uncertain]
    pale = browser.run("document.querySelectorAll('#law tr.off').length")
    assert pale == sum(2 not in candidate.kept_by for candidate in step.candidates) > 0
    browser.click("#rules tbody tr:nth-child(3) button")
    assert "true" not in browser.run(pressed)
    assert browser.run("document.querySelectorAll('#law tr.off').length") == 0


def test_the_drafts_of_the_block_are_shown(browser, files, inspections):
    inspection = inspections["usual"]
    browser.show(files["usual"])
    for block in inspection.blocks:
        browser.click(f"#token-{block.first}")
        cells = browser.run(
            "document.querySelectorAll('.drafts tr:not(.emitted) .role-accepted').length"
        )
        assert cells == sum(drafted.accepted for path in block.paths for drafted in path)
        assert browser.run("document.querySelectorAll('.drafts tr').length") == len(block.paths) + 1


def test_without_drafts_there_is_no_block(browser, files):
    browser.show(files["plain"])
    assert not browser.run("document.getElementById('block').checkVisibility()")
    assert browser.run("document.querySelectorAll('#law .draft').length") == 0


@pytest.mark.parametrize("dark", SCHEMES.values(), ids=SCHEMES)
@pytest.mark.parametrize("name", ["usual", "plain"])
def test_text_is_legible(browser, files, dark, name):
    browser.show(files[name], dark=dark)
    paper = browser.run("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, paper[4:-1].split(","))) < 128) == dark
    for surprise in (False, True):
        browser.click("#by-surprise" if surprise else "#by-role")
        looked, poor = browser.run(CONTRASTS.replace("LIMIT", str(TEXT_CONTRAST)))
        assert looked > 100
        assert poor == []
    for colour, ratio in browser.run(SHAPES):
        assert ratio >= SHAPE_CONTRAST, colour


@pytest.mark.parametrize("width", [DESKTOP, PHONE, NARROW])
@pytest.mark.parametrize("name", ["usual", "hostile", "plain"])
def test_nothing_is_wider_than_the_window(browser, files, width, name):
    browser.show(files[name], width=width)
    tokens = browser.run("document.querySelectorAll('#text .token').length")
    box = "document.getElementById('whole')"
    assert browser.run(f"{box}.scrollWidth <= {box}.clientWidth")
    for number in range(0, tokens, 5):
        browser.run(f"select({number}, false)")
        # a phone widens its window to what does not fit
        assert browser.run("document.documentElement.scrollWidth") == width
        assert browser.run("innerWidth") == width


def test_hostile_tokens_are_text_and_nothing_else(browser, files):
    browser.show(files["hostile"])
    for number in range(len(HOSTILE)):
        browser.click(f"#token-{number}")
        assert selected(browser) == [number, number]
    assert browser.run("document.title") == "warpdraft inspect"
    assert browser.run("document.querySelectorAll('script').length") == 2
    assert browser.run("document.querySelectorAll('img, main b b, header b b').length") == 0
    body = browser.run("document.getElementById('text').textContent")
    for shown in (
        "</script>",
        "<!--",
        "onerror",
        "U+202E",
        "U+2028",
        "U+0000",
        "U+001B",
        "bytes E2 82",
    ):
        assert shown in body
    assert not set("\x00\x1b\u202e\u2066\u2028") & set(body)


def test_what_a_screen_reader_hears(browser, files):
    browser.show(files["usual"])
    box = "document.getElementById('text')"
    assert browser.run(f"{box}.getAttribute('role')") == "listbox"
    nameless = browser.run(
        "[...document.querySelectorAll('button, [role=option], [role=listbox], [role=img], table th[scope]')]"
        ".filter((each) => !(each.getAttribute('aria-label') || each.textContent.trim())).length"
    )
    assert nameless == 0
    kept = browser.run("document.querySelector('#law tbody tr .dot').textContent")
    assert kept in ("kept", "cut")
    assert browser.run("document.documentElement.lang") == "en"
    levels = browser.run(
        "[...document.querySelectorAll('h1, h2')].map((each) => each.tagName).join(' ')"
    )
    assert levels.startswith("H1 H2") and levels.count("H1") == 1
