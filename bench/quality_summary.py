"""From lines to tables: the diversity of every setting, and the methods against each other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np

from .quality_coverage import CoverageLine
from .quality_frontier import Difference, Points, compare, mean_interval
from .quality_measures import distinct_n, self_bleu
from .quality_methods import METHODS, TEMPERATURE, TEMPERATURES, Setting
from .quality_results import TextLine

ORDERS = (1, 2, 3)
# what is held equal in each comparison, and what is compared
AXES = {
    "self_bleu": ("1 - self-BLEU", "bits a character"),
    "distinct_2": ("distinct-2", "bits a character"),
    "self_bleu_tokens": ("1 - self-BLEU", "bits a token"),
    "coverage": ("mean entropy", "share of human tokens lost"),
}


@dataclass(frozen=True, slots=True)
class DiversityLine:
    """One setting on one prompt: its texts, one a seed.

    Attributes:
        method: of the setting.
        value: of the setting.
        temperature: of the setting.
        prompt: its number.
        texts: how many.
        distinct_1: different tokens / tokens.
        distinct_2: different pairs / pairs.
        distinct_3: and so on.
        self_bleu: of each text against the others.
        bits_per_character: under the judge, of all texts together.
        bits_per_token: likewise, over tokens of the model that wrote.
    """

    method: str
    value: float
    temperature: float
    prompt: int
    texts: int
    distinct_1: float
    distinct_2: float
    distinct_3: float
    self_bleu: float
    bits_per_character: float
    bits_per_token: float


def diversity_of(lines: Sequence[TextLine]) -> list[DiversityLine]:
    """A line for each setting and prompt."""
    groups: dict[tuple[Setting, int], list[TextLine]] = defaultdict(list)
    for line in lines:
        groups[line.setting, line.prompt].append(line)
    found = []
    for (setting, prompt), group in sorted(groups.items()):
        texts = [[int(token) for token in line.token_ids.split()] for line in group]
        bits = sum(line.bits for line in group)
        found.append(
            DiversityLine(
                *setting,
                prompt,
                len(texts),
                distinct_n(texts, 1),
                distinct_n(texts, 2),
                distinct_n(texts, 3),
                self_bleu(texts),
                bits / sum(line.characters for line in group),
                bits / sum(map(len, texts)),
            )
        )
    return found


def points_of_diversity(
    lines: Sequence[DiversityLine], axes: str, temperature: float | None = None
) -> dict[str, Points]:
    """The settings of every compared method, over prompts.

    Args:
        lines: of all methods.
        axes: a name in `AXES` but "coverage".
        temperature: only rules at it; None takes all settings.
    """
    cells = [
        (
            Setting(line.method, line.value, line.temperature),
            line.prompt,
            line.distinct_2 if axes == "distinct_2" else 1 - line.self_bleu,
            line.bits_per_token if axes == "self_bleu_tokens" else line.bits_per_character,
        )
        for line in lines
    ]
    return _points(cells, temperature)


def points_of_coverage(
    lines: Sequence[CoverageLine], temperature: float | None = None
) -> dict[str, Points]:
    """The same over windows of text: less entropy is the merit, lost tokens are the cost."""
    cells = [
        (
            Setting(line.method, line.value, line.temperature),
            line.window,
            -line.entropy,
            1 - line.coverage,
        )
        for line in lines
    ]
    return _points(cells, temperature)


def _points(
    cells: Sequence[tuple[Setting, int, float, float]], temperature: float | None
) -> dict[str, Points]:
    methods: dict[str, dict[Setting, dict[int, tuple[float, float]]]] = defaultdict(
        lambda: defaultdict(dict)
    )
    for setting, unit, merit, cost in cells:
        # at one temperature a rule has six settings left, temperature alone would have all of its own
        is_meant = temperature is None or (
            setting.temperature == temperature and setting.method != TEMPERATURE
        )
        if METHODS[setting.method].is_compared and is_meant:
            methods[setting.method][setting][unit] = merit, cost
    found = {}
    for method in sorted(methods, key=list(METHODS).index):
        settings = methods[method].values()
        both = np.array([[units[unit] for unit in sorted(units)] for units in settings])
        found[method] = Points(both[..., 0], both[..., 1])
    return found


def differences_of(
    lines: Sequence[DiversityLine], coverage: Sequence[CoverageLine]
) -> dict[str, dict[str, list[Difference]]]:
    """Every pair of methods: by axes, then by the temperatures that the settings may take."""
    found: dict[str, dict[str, list[Difference]]] = {}
    for axes in AXES:
        if not (coverage if axes == "coverage" else lines):
            continue
        found[axes] = {}
        for temperature in (None, *TEMPERATURES):
            points = (
                points_of_coverage(coverage, temperature)
                if axes == "coverage"
                else points_of_diversity(lines, axes, temperature)
            )
            name = "all" if temperature is None else f"{temperature:g}"
            pairs = list(combinations(points, 2))
            differences = compare(points, pairs) if pairs else []
            found[axes][name] = (
                [by_entropy(each) for each in differences] if axes == "coverage" else differences
            )
    return found


def by_entropy(difference: Difference) -> Difference:
    """A difference at equal -entropy, told in terms of entropy."""
    region = {"low": "high", "high": "low"}.get(difference.region, difference.region)
    return replace(difference, region=region, start=-difference.end, end=-difference.start)


def means_of(
    lines: Sequence[DiversityLine], coverage: Sequence[CoverageLine]
) -> dict[str, list[dict[str, Any]]]:
    """Means of every setting; the figure's two axes with their intervals."""
    return {
        "coverage": _means(
            coverage,
            ["kept_tokens", "kept_mass", "entropy", "coverage"],
            ["entropy", "coverage"],
        ),
        "diversity": _means(
            lines,
            [
                *(f"distinct_{n}" for n in ORDERS),
                "self_bleu",
                "bits_per_character",
                "bits_per_token",
            ],
            ["self_bleu", "bits_per_character"],
        ),
    }


def _means(
    lines: Sequence[DiversityLine] | Sequence[CoverageLine],
    names: Sequence[str],
    with_intervals: Sequence[str],
) -> list[dict[str, Any]]:
    groups: dict[Setting, list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        groups[Setting(line.method, line.value, line.temperature)].append(asdict(line))
    found = []
    for setting, group in sorted(groups.items(), key=lambda item: _place(item[0])):
        means: dict[str, Any] = {**setting._asdict(), "units": len(group)}
        for name in names:
            values = np.array([line[name] for line in group], dtype=np.float64)
            mean, low, high = mean_interval(values)
            means[name] = round(mean, 5)
            if name in with_intervals:
                means[f"{name}_interval"] = [round(low, 5), round(high, 5)]
        found.append(means)
    return found


def _place(setting: Setting) -> tuple[int, float, float]:
    """Methods in the order of `METHODS`, by temperature, then by value."""
    return list(METHODS).index(setting.method), setting.temperature, setting.value
