"""The paired comparison, computed from its lines: means, paired differences, intervals, corrected p-values.

Contexts of one text depend on each other, texts do not: the unit is the text. With m_t and r_t the mean E[tokens] of a
verifier and of the reference on text t, and R = mean(m) / mean(r),

    error(R)^2 = variance of (m_t - R r_t) / (n mean(r)^2)                      n texts, n - 1 degrees of freedom

gives a 95 % t interval of the ratio; the p-value is that of a paired t test of m_t - r_t. Holm's correction covers all
comparisons of a table with the same reference.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from .bench_verifiers import BOUND, Line

Cell = tuple[str, int, int]
"""A label, K and L."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A verifier against a reference of the same K and L.

    Attributes:
        percent: R - 1.
        low: end of the 95 % interval.
        high: end of the 95 % interval.
        p_value: Holm-corrected, of no difference.
    """

    percent: float
    low: float
    high: float
    p_value: float


@dataclass(frozen=True, slots=True)
class CellSummary:
    """One verifier at one K and L.

    Attributes:
        verifier: its label.
        num_drafts: K.
        draft_length: L.
        texts: how many.
        contexts: blocks, over all texts.
        tokens: mean block efficiency, every text with the same weight.
        tokens_error: its standard error.
        root_acceptance: mean chance that the first token is a drafted one.
        against: by reference; without the reference itself, and where nothing differs.
    """

    verifier: str
    num_drafts: int
    draft_length: int
    texts: int
    contexts: int
    tokens: float
    tokens_error: float
    root_acceptance: float
    against: dict[str, Difference]


@dataclass(frozen=True, slots=True)
class Summary:
    """One table.

    Attributes:
        cells: by L, K and falling block efficiency.
        optimal_acceptance: mean alpha* at the root for every K.
        k_seq_error: the largest difference of k-SEQ's acceptance to that at a bisected rho; None without k-SEQ.
    """

    cells: list[CellSummary]
    optimal_acceptance: dict[int, float]
    k_seq_error: float | None


def summarise(lines: Iterable[Line], references: Sequence[str]) -> Summary:
    """Everything that the lines say, against each of the references."""
    tokens: dict[Cell, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    roots: dict[Cell, list[float]] = defaultdict(list)
    bounds: dict[int, list[float]] = defaultdict(list)
    errors = []
    for line in lines:
        if line.verifier == BOUND:
            bounds[line.num_drafts].append(line.root_acceptance)
            continue
        cell = line.verifier, line.num_drafts, line.draft_length
        tokens[cell][line.text].append(line.tokens)
        roots[cell].append(line.root_acceptance)
        if line.k_seq_error is not None:
            errors.append(line.k_seq_error)
    means = {
        cell: {text: float(np.mean(values)) for text, values in texts.items()}
        for cell, texts in tokens.items()
    }
    against: dict[Cell, dict[str, Difference]] = defaultdict(dict)
    for reference in references:
        for cell, difference in differences(means, reference).items():
            against[cell][reference] = difference
    cells = []
    for cell, by_text in means.items():
        values = np.array(list(by_text.values()))
        cells.append(
            CellSummary(
                *cell,
                texts=len(values),
                contexts=len(roots[cell]),
                tokens=float(values.mean()),
                tokens_error=standard_error(values),
                root_acceptance=float(np.mean(roots[cell])),
                against=against[cell],
            )
        )
    cells.sort(key=lambda each: (each.draft_length, each.num_drafts, -each.tokens))
    optimal = {paths: float(np.mean(bound)) for paths, bound in sorted(bounds.items())}
    return Summary(cells, optimal, max(errors, default=None))


def differences(means: dict[Cell, dict[int, float]], reference: str) -> dict[Cell, Difference]:
    """Every cell against the reference of its K and L; cells that are the same number by number are left out."""
    raw: dict[Cell, tuple[float, float, float]] = {}
    for cell, by_text in means.items():
        other = means.get((reference, *cell[1:]))
        if other is None or cell[0] == reference:
            continue
        texts = sorted(by_text.keys() & other.keys())
        ours = np.array([by_text[text] for text in texts])
        theirs = np.array([other[text] for text in texts])
        if len(texts) > 1 and not np.allclose(ours, theirs, rtol=0, atol=1e-5):
            raw[cell] = ratio(ours, theirs)
    adjusted = holm([p_value for _, _, p_value in raw.values()])
    return {
        cell: Difference(percent, percent - half, percent + half, p_value)
        for (cell, (percent, half, _)), p_value in zip(raw.items(), adjusted, strict=True)
    }


def ratio(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float, float]:
    """Percent of gain, half of its 95 % interval, and the p-value of a paired t test."""
    quotient = float(ours.mean() / theirs.mean())
    error = standard_error(ours - quotient * theirs) / float(theirs.mean())
    half = float(stats.t.ppf(0.975, len(ours) - 1)) * error
    difference = ours - theirs
    t = float(difference.mean()) / max(standard_error(difference), 1e-300)
    p_value = 2 * float(stats.t.sf(abs(t), len(ours) - 1))
    return 100 * (quotient - 1), 100 * half, p_value


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (1979)."""
    adjusted = [1.0] * len(p_values)
    largest = 0.0
    for rank, place in enumerate(np.argsort(p_values)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def standard_error(values: np.ndarray) -> float:
    """Of the mean; 0 for a single value."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else 0.0
