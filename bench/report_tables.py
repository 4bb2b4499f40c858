"""The README's tables, each from the results that its command wrote."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Cell = dict[str, Any]

SETTINGS = ((2, 4), (4, 4), (2, 8), (4, 8))
ALL_SETTINGS = tuple((paths, length) for length in (4, 8) for paths in (1, 2, 4, 8))
"""K and L."""

DEFAULT = "optimal_block"
REFERENCE = "k_seq"
ROWS = {
    DEFAULT: "**`optimal_block`**",
    "optimal_block rollover": '`optimal_block`, `structure="rollover"`',
    "optimal_block clip": '`optimal_block`, `selector="clip"`',
    "traversal": "`traversal`",
    "optimal": "`optimal`",
    "optimal lex": '`optimal`, `selector="lex"`',
    "optimal hybrid 1": "`optimal`, `num_top=1`",
    "greedy_drafts": "`greedy_drafts`",
    REFERENCE: "`k_seq`",
    "k_seq rollover": '`k_seq`, `structure="rollover"`',
    "recursive": "`recursive`",
    "recursive_without_replacement": "`recursive_without_replacement`",
    "target_only": "`target_only`",
}
"""Labels of `bench verifiers`, in the order of the README."""


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "|" + "|".join(line) + "|" if line[0] == "---" else "| " + " | ".join(line) + " |"
        for line in (list(each) for each in lines)
    ).replace("|  |", "| |")


def _cells(file: Path) -> dict[tuple[str, int, int], Cell]:
    """By label, K and L."""
    (summary,) = json.loads(file.read_text(encoding="utf-8"))
    return {
        (cell["verifier"], cell["num_drafts"], cell["draft_length"]): cell
        for cell in summary["cells"]
    }


def _columns(settings: Sequence[tuple[int, int]]) -> list[str]:
    return [f"K = {paths}, L = {length}" for paths, length in settings]


def verifiers_table(files: Sequence[Path]) -> str:
    """Every verifier's block efficiency and gain over `k_seq`, of one file of `bench verifiers --json`."""
    cells = _cells(files[0])
    rows = [
        [name, *(_gain(cells[label, paths, length]) for paths, length in SETTINGS)]
        for label, name in ROWS.items()
        if (label, *SETTINGS[0]) in cells
    ]
    return markdown(["", *_columns(SETTINGS)], rows)


def _gain(cell: Cell) -> str:
    """Block efficiency; the gain over `k_seq` with its interval and stars."""
    against = cell["against"].get(REFERENCE)
    if against is None:
        return f"{cell['tokens']:.2f}"
    stars = r"\*" * sum(against["p_value"] < level for level in (0.05, 0.01, 0.001))
    interval = f"[{against['low']:+.1f}, {against['high']:+.1f}]{stars}"
    return f"{cell['tokens']:.2f} ({against['percent']:+.1f} % {interval})"


GAIN_ROWS = (
    "Gemma, temperature 1",
    "Gemma, temperature 0.7",
    "built-in pair, temperature 1",
    "built-in pair, temperature 0.7",
    "built-in pair, temperature 1, `TopH(0.4)`",
    "built-in pair, temperature 1, `MinP(0.1)`",
)


def gains_table(files: Sequence[Path]) -> str:
    """The default's gain over `k_seq` in every setting, a file a row of `GAIN_ROWS`."""
    rows = []
    for name, file in zip(GAIN_ROWS, files, strict=True):
        cells = _cells(file)
        found = (cells[_default(paths), paths, length] for paths, length in ALL_SETTINGS)
        rows.append([name, *(f"{cell['against'][REFERENCE]['percent']:+.1f} %" for cell in found)])
    return markdown(["`optimal_block` over `k_seq`", *_columns(ALL_SETTINGS)], rows)


def _default(num_drafts: int) -> str:
    """The default's label; with one path it is block verification."""
    return "block" if num_drafts == 1 else DEFAULT


def first_layers_table(files: Sequence[Path]) -> str:
    """Block efficiency by the number of layers that draft, a file of `bench spec --json` for each."""
    runs = {int(file.stem.rpartition("_")[2]): _measured(file) for file in files}
    rows = [
        [f"K = {paths}", *(_with_error(run[paths]) for _, run in sorted(runs.items()))]
        for paths in (1, 4)
    ]
    return markdown(["n", *map(str, sorted(runs))], rows)


def _measured(file: Path) -> dict[int, Cell]:
    """The lines of a measurement, by K."""
    return {line["num_drafts"]: line for line in json.loads(file.read_text(encoding="utf-8"))}


def _with_error(line: Cell) -> str:
    return f"{line['block_efficiency']:.2f} ± {line['block_efficiency_error']:.2f}"


RULE_NAMES = {"gaussian": "Gaussian(2.5)", "llm_like": "LLM-like"}
BASELINES = {"TopH(0.4) keeping few": "`TopH(0.4)` on LLM-like rows"}


def truncation_table(files: Sequence[Path]) -> str:
    """Time of `truncate` as a ratio, one thread / two, of a file of `bench_truncation.py`."""
    with files[0].open(newline="", encoding="utf-8") as stream:
        lines = list(csv.DictReader(stream))
    ratios = {(*_case(line), int(line["batch"]), int(line["threads"])): line for line in lines}
    batches = (1, 8, 64)
    rows = []
    for case in dict.fromkeys(_case(line) for line in lines):
        rule, temperature, kind, baseline = case
        single = ratios[*case, 1, 1]
        heated = "" if float(temperature) == 1 else f", T = {float(temperature):g}"
        rows.append(
            [
                f"`{rule}`",
                RULE_NAMES[kind] + heated,
                f"{float(single['kept']):,.0f}",
                *(
                    " / ".join(
                        f"{float(ratios[*case, batch, threads]['ratio']):.2f}" for threads in (1, 2)
                    )
                    for batch in batches
                ),
                BASELINES.get(baseline, f"`{baseline}`"),
            ]
        )
    return markdown(
        ["rule", "rows", "kept", *(f"B = {batch}" for batch in batches), "beside"], rows
    )


def _case(line: dict[str, str]) -> tuple[str, str, str, str]:
    return line["rule"], line["temperature"], line["rows"], line["baseline"]


def printed_table(files: Sequence[Path]) -> str:
    """The table that a script printed as Markdown, without the lines around it.

    Raises:
        ValueError: it printed none.
    """
    text = files[0].read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("|")]
    if not lines:
        raise ValueError(f"{files[0].name} holds no table")
    return "\n".join(lines)


def look_up_sentence(files: Sequence[Path]) -> str:
    """Block efficiency of look-up, of the table that `repeating_texts.py` printed."""
    rows, speeds = {}, {}
    for line in files[0].read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.split("│")]
        if len(cells) > 7:
            rows[cells[1]], speeds[cells[1]] = cells[4], cells[7]
    shapes = ("K = 1, L = 4", "K = 1, L = 10", "K = 3, L = 10")
    found = [rows[f"look-up, {shape}"] for shape in shapes]
    times = [speeds[f"look-up, {shape}"] for shape in shapes]
    theirs = "assisted look-up, L = 10"
    return (
        f"{found[0]} tokens a target call with K = 1, L = 4, {found[1]} with K = 1, L = 10 and {found[2]} with "
        f"K = 3, L = 10; transformers' own look-up with 10 tokens {rows[theirs]}. In time, as a ratio to plain "
        f"sampling on a CPU: theirs {speeds[theirs]}, ours {', '.join(times)}"
    )


def verification_table(files: Sequence[Path]) -> str:
    """Shares of verification in the target call's time, of a file of `verification_share.py`."""
    shares = json.loads(files[0].read_text(encoding="utf-8"))["shares"]
    verifiers = list(next(iter(shares.values())))
    rows = [
        [
            rules,
            *(
                "{:.0f} % [{:.0f}, {:.0f}]".format(*(100 * x for x in found[each]))
                for each in verifiers
            ),
        ]
        for rules, found in shares.items()
    ]
    return markdown(["", *(f"`{verifier}`" for verifier in verifiers)], rows)


Render = Callable[[Sequence[Path]], str]


SPEED_ROWS = {
    "plain `generate`": ("plain", "", False),
    "assisted generation": ("assisted", "", None),
    "plain `generate`, static cache, compiled": ("plain", "", True),
    "ours, K = 1": ("ours", "K = 1,", False),
    "ours, K = 1, compiled": ("ours", "K = 1,", True),
    "ours, K = 4": ("ours", "K = 4,", False),
    "ours, K = 4, compiled": ("ours", "K = 4,", True),
}
"""Ways of bench/speed.py: their name, how their drafts begin, and whether they are compiled."""


def speed_table(files: Sequence[Path]) -> str:
    """Tokens a second of bench/speed.py, of every way the fastest draft length, with ratios."""
    lines = json.loads(files[0].read_text(encoding="utf-8"))["lines"]
    batches = sorted({line["batch"] for line in lines})
    fastest = {
        (name, batch): max(
            (line for line in lines if line["batch"] == batch and _is_way(line, *way)),
            key=lambda line: float(line["tokens_per_second"]),
            default=None,
        )
        for name, way in SPEED_ROWS.items()
        for batch in batches
    }
    plain, assisted = list(SPEED_ROWS)[:2]
    head = ["", *(f"batch {batch}, tokens a second" for batch in batches)]
    head += [f"x plain, batch {batch}" for batch in batches] + ["x assisted, batch 1"]
    rows = []
    for name in SPEED_ROWS:
        speeds = [_speed(fastest[name, batch]) for batch in batches]
        ratios = [_ratio(fastest[name, batch], fastest[plain, batch]) for batch in batches]
        rows.append([name, *speeds, *ratios, _ratio(fastest[name, 1], fastest[assisted, 1])])
    return markdown(head, rows)


def overhead_table(files: Sequence[Path]) -> str:
    """Milliseconds of a block of bench/speed.py, and which of them are no model's call."""
    overheads = json.loads(files[0].read_text(encoding="utf-8"))["overheads"]
    head = [
        "",
        "draft",
        "its model's calls",
        "target",
        "its call",
        "verify",
        "prompt, commit",
        "not a model's",
    ]
    rows = []
    for each in overheads:
        values = [
            each[key]
            for key in ("draft", "draft_model", "target", "target_model", "verify", "rest")
        ]
        whole = each["draft"] + each["target"] + each["verify"] + each["rest"]
        rest = whole - each["draft_model"] - each["target_model"]
        share = f"{rest:.2f} ({100 * rest / whole:.0f} %)"
        name = f"{each['way']}, L = {each['draft_length']}"
        rows.append([name, *(f"{value:.2f}" for value in values), share])
    return markdown(head, rows)


def _is_way(line: Cell, name: str, drafts: str, compiled: bool | None) -> bool:
    fits = line["name"] == name and line["drafts"].startswith(drafts)
    return fits and compiled in (None, "compiled" in line["drafts"])


def _speed(line: Cell | None) -> str:
    """The median with its spread, and the draft length."""
    if line is None:
        return "one text at a time only"
    low, high = line["spread"]
    length = line["drafts"].split("L = ")[-1].split(",")[0] if line["name"] == "ours" else ""
    shown = line["drafts"] if line["name"] == "assisted" else ""
    how = f", L = {length}" if length else f", {shown}" if shown else ""
    return f"{line['tokens_per_second']:.0f} [{low:.0f}, {high:.0f}]{how}"


def _ratio(line: Cell | None, other: Cell | None) -> str:
    if line is None or other is None:
        return ""
    return f"{line['tokens_per_second'] / other['tokens_per_second']:.2f}"
