"""The record of a generation in a terminal: the coloured text, a line for every token, some tokens in full."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, median
from typing import TYPE_CHECKING

from rich.text import Text

from .console import table
from .token_texts import label, legible

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from .inspection import Block, Candidate, Inspection, Step

ROLES = {
    "accepted": ("green", "drafted, and accepted by the target"),
    "recovered": ("yellow", "no drafted token was accepted: drawn by the target instead"),
    "bonus": ("magenta", "a whole draft path was accepted: one more from the same target call"),
    "drawn": ("cyan", "drawn by the target, nothing was drafted"),
}
RULE_COLOURS = (
    *("dark_orange", "deep_sky_blue1", "green3", "hot_pink"),
    *("medium_purple1", "gold3", "cyan", "grey70"),
)
BAR_WIDTH = 40
MOST_DECADES = 6
KEPT, CUT = "■", "·"


def show(console: Console, inspection: Inspection, numbers: Sequence[int] | None) -> None:
    """Print the record.

    Args:
        console: where to.
        inspection: the record.
        numbers: of tokens to show in full, from 1; those behind the end of the text are left out. None for the most
            uncertain one.
    """
    console.print(coloured_text(inspection), soft_wrap=True)
    console.print()
    console.print(legend(inspection), soft_wrap=True)
    console.print(rule_table(inspection))
    console.print(step_table(inspection))
    if numbers is None:
        numbers = [inspection.most_uncertain + 1]
    for number in numbers:
        if number > len(inspection.steps):
            continue
        step = inspection.steps[number - 1]
        console.print()
        console.print(headline(inspection, number, step), soft_wrap=True)
        console.print(law_table(inspection, step))
        block = inspection.blocks[step.block]
        if block.paths:
            console.print(draft_table(inspection, step.block, block))


def letter(rule: int) -> str:
    """The name of a rule in the tables."""
    return chr(ord("A") + rule % 26)


def colour(rule: int) -> str:
    """The colour of a rule."""
    return RULE_COLOURS[rule % len(RULE_COLOURS)]


def percent(share: float) -> str:
    """A probability in percent, with three digits."""
    return f"{100 * share:.3g} %" if share >= 1e-6 else f"{100 * share:.0e} %"


def coloured_text(inspection: Inspection) -> Text:
    """The text: the colour says where a token came from, every second one is underlined."""
    text = Text(legible(inspection.prompt), style="dim")
    for number, step in enumerate(inspection.steps):
        style = ROLES[step.role][0] + (" underline" if number % 2 else "")
        text.append(legible(step.piece), style=f"not dim {style}")
    return text


def legend(inspection: Inspection) -> Text:
    """What the colours mean, and how the run went."""
    lines = []
    for role, (style, meaning) in ROLES.items():
        count = sum(step.role == role for step in inspection.steps)
        if count:
            lines.append(Text.assemble((f"{role} {count}", style), f": {meaning}"))
    run = (
        f"{inspection.models}, {inspection.sampling}: {len(inspection.steps)} tokens in "
        f"{inspection.target_calls} target calls"
    )
    if inspection.speculation is not None:
        run += f" ({inspection.speculation}), {inspection.block_efficiency:.2f} a call"
    return Text("\n").join([*lines, Text(run)])


def rule_table(inspection: Inspection) -> Table:
    """What each rule keeps over the whole text."""
    columns = ["rule", "tokens kept (median)", "mass kept (mean)", "tokens of the text cut"]
    rows = table(*columns, title="The compared rules, over the whole text")
    for rule, name in enumerate(inspection.rules):
        readings = [step.readings[rule] for step in inspection.steps]
        cut = sum(not reading.keeps_drawn for reading in readings)
        rows.add_row(
            Text.assemble((letter(rule), f"bold {colour(rule)}"), f"  {name}"),
            f"{median(reading.count for reading in readings):,.0f}",
            percent(fmean(reading.kept_mass for reading in readings)),
            f"{cut} of {len(readings)}",
        )
    return rows


def step_table(inspection: Inspection) -> Table:
    """A line a token: what came, how uncertain the model was, how many tokens each rule keeps."""
    columns = [
        "",
        "token",
        "probability",
        "rank",
        "entropy",
        *map(letter, range(len(inspection.rules))),
    ]
    rows = table(*columns, title=f"Tokens kept by each rule; {CUT} where the drawn token is cut")
    rows.columns[1].justify = "left"
    for rule in range(len(inspection.rules)):
        rows.columns[5 + rule].header_style = f"bold {colour(rule)}"
    for number, step in enumerate(inspection.steps, start=1):
        kept = [
            f"{reading.count:,}" if reading.keeps_drawn else f"{CUT} {reading.count:,}"
            for reading in step.readings
        ]
        rows.add_row(
            str(number),
            Text(label(step.token), style=ROLES[step.role][0]),
            percent(step.probability),
            f"{step.rank:,}",
            f"{step.entropy:.2f}",
            *kept,
        )
        if number == len(inspection.steps) or inspection.steps[number].block != step.block:
            rows.add_section()
    return rows


def headline(inspection: Inspection, number: int, step: Step) -> Text:
    """A token that is shown in full."""
    style, meaning = ROLES[step.role]
    facts = [
        f"{percent(step.probability)}, rank {step.rank:,}",
        f"entropy {step.entropy:.2f} nats, as uncertain as {math.exp(step.entropy):,.1f} equal tokens",
    ]
    for rule, reading in enumerate(step.readings):
        if reading.bound is not None:
            facts.append(
                f"{letter(rule)}: its {reading.count:,} tokens have {reading.kept_entropy:.2f} nats, the bound "
                f"is {reading.bound:.2f}"
            )
    if step.drawable < inspection.vocabulary:
        facts.append(f"drawn from {step.drawable:,} tokens, with {percent(step.drawn_probability)}")
    return Text.assemble(
        (f"Token {number} of {len(inspection.steps)} ", "bold"),
        (label(step.token), f"bold {style}"),
        f"  {step.role}: {meaning}\n",
        "; ".join(facts),
    )


def law_table(inspection: Inspection, step: Step) -> Table:
    """The most likely tokens as logarithmic bars with the rules' thresholds, and which rules keep them."""
    scale = Scale(step.candidates)
    drafted = any(candidate.draft_probability is not None for candidate in step.candidates)
    columns = ["token", f"{percent(scale.least)} to {percent(scale.most)}", "probability"]
    columns += ["draft"] * drafted
    rows = table(*columns, *map(letter, range(len(inspection.rules))))
    rows.columns[1].justify = "left"
    for rule in range(len(inspection.rules)):
        rows.columns[len(columns) + rule].header_style = f"bold {colour(rule)}"
    for candidate in step.candidates:
        here = candidate.token.id == step.token.id
        style = ROLES[step.role][0] if here else ""
        cells: list[Text | str] = [
            Text(label(candidate.token), style=f"bold {style}" if here else ""),
            bar(scale, step, candidate, style or "grey50"),
            percent(candidate.probability),
        ]
        if drafted:
            cells.append(percent(candidate.draft_probability or 0.0))
        kept = [
            Text(KEPT, style=colour(rule)) if rule in candidate.kept_by else Text(CUT, style="dim")
            for rule in range(len(inspection.rules))
        ]
        rows.add_row(*cells, *kept)
    return rows


class Scale:
    """Whole decades around the probabilities of some tokens, at most six."""

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        logs = [math.log10(max(candidate.probability, 1e-12)) for candidate in candidates]
        self._top = math.ceil(max(logs))
        self._bottom = max(min(math.floor(min(logs)), self._top - 1), self._top - MOST_DECADES)

    @property
    def least(self) -> float:
        """The probability at the left end."""
        return float(10**self._bottom)

    @property
    def most(self) -> float:
        """The probability at the right end."""
        return float(10**self._top)

    def place(self, probability: float) -> float:
        """Where a probability stands, in cells; below 0 for less than the scale has."""
        share = (math.log10(max(probability, 1e-300)) - self._bottom) / (self._top - self._bottom)
        return share * BAR_WIDTH


def bar(scale: Scale, step: Step, candidate: Candidate, style: str) -> Text:
    """One bar, crossed by the thresholds: it reaches those of the rules that keep its token."""
    filled = max(scale.place(candidate.probability), 0.2)
    cells = [("█" if cell < filled else " ", style) for cell in range(BAR_WIDTH)]
    for rule, reading in enumerate(step.readings):
        for threshold in (reading.threshold, reading.upper):
            cell = -1 if threshold is None else math.floor(scale.place(threshold))
            if 0 <= cell < BAR_WIDTH:
                cells[cell] = ("│", colour(rule))
    return Text.assemble(*cells)


def draft_table(inspection: Inspection, number: int, block: Block) -> Table:
    """What was drafted in a block, with the probabilities of draft and target, and what came of it."""
    length = max(block.emitted, *(len(path) for path in block.paths))
    title = (
        f"Block {number + 1} of {len(inspection.blocks)}: {block.accepted} drafted tokens accepted; "
        "draft's probability > target's"
    )
    rows = table("", *map(str, range(1, length + 1)), title=title)
    for column in rows.columns:
        column.justify = "left"
    for place, path in enumerate(block.paths, start=1):
        cells = []
        for drafted in path:
            style = ROLES["accepted"][0] if drafted.accepted else "dim strike"
            target = drafted.target_probability
            shares = f" {percent(drafted.draft_probability)}"
            shares += "" if target is None else f" > {percent(target)}"
            cells.append(Text.assemble((label(drafted.token), style), (shares, "dim")))
        rows.add_row(f"path {place}", *cells)
    rows.add_section()
    written = inspection.steps[block.first : block.first + block.emitted]
    rows.add_row(
        "written", *(Text(label(step.token), style=ROLES[step.role][0]) for step in written)
    )
    return rows
