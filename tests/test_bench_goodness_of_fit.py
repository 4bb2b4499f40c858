"""The chi-square tests of the certificate: calibrated, and able to fail."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from scipy import stats

from warpdraft.bench.goodness_of_fit import (
    ChiSquare,
    one_sample,
    pooled,
    smallest_deviation,
    two_samples,
)

# cells of every size, so that some are pooled
LAW = np.random.default_rng(0).dirichlet(np.full(60, 0.3))
RUNS = 2000


def false_alarms(level, test):
    """How often a test at this level fails for sound samples."""
    return np.mean([test() < level for _ in range(RUNS)])


@pytest.mark.parametrize("level", [0.1, 0.01])
def test_sound_counts_fail_as_often_as_stated(level):
    generator = np.random.default_rng(1)
    rate = false_alarms(level, lambda: one_sample(generator.multinomial(500, LAW), LAW).p_value)
    # five standard errors: a false alarm in two million seeds
    assert abs(rate - level) < 5 * math.sqrt(level * (1 - level) / RUNS)


def test_sound_pairs_of_samples_fail_no_more_often_than_stated():
    generator = np.random.default_rng(2)

    def p_value():
        counts = [Counter(), Counter()]
        for sample in counts:
            for token, count in enumerate(generator.multinomial(500, LAW)):
                if count:
                    sample[token, token % 3] = int(count)
        return two_samples(*counts).p_value

    assert false_alarms(0.05, p_value) < 0.05 + 5 * math.sqrt(0.05 * 0.95 / RUNS)


def test_the_statistic_is_pearsons_with_its_moments():
    counts, law = [30, 50, 20], [0.25, 0.5, 0.25]
    found = one_sample(counts, law)
    expected = stats.chisquare(counts, [25, 50, 25])
    assert found.statistic == pytest.approx(expected.statistic)
    # var = 2 (m - 1) + (sum 1 / p - m^2 - 2 m + 2) / N
    assert (found.mean, found.variance) == (2, pytest.approx(4 + (10 - 9 - 6 + 2) / 100))
    assert found.p_value == pytest.approx(expected.pvalue, rel=0.05)


def test_small_cells_are_pooled_and_large_ones_are_not():
    assert one_sample([40, 50, 4, 4, 2], [0.4, 0.5, 0.04, 0.04, 0.02]).degrees == 2
    # a rest too small for a cell of its own joins the smallest
    assert one_sample([48, 50, 2], [0.48, 0.5, 0.02]).degrees == 1


def test_a_draw_of_probability_zero_fails_at_once():
    assert one_sample([500, 499, 1], [0.5, 0.5, 0.0]).p_value == 0


def test_no_choice_is_no_test():
    assert one_sample([100, 0], [1.0, 0.0]).p_value == 1
    assert ChiSquare().p_value == 1


def test_statistics_of_independent_samples_add_up():
    one, other = one_sample([60, 40], [0.5, 0.5]), one_sample([10, 20], [0.5, 0.5])
    both = one + other
    assert (both.statistic, both.degrees, both.samples) == (
        one.statistic + other.statistic,
        2,
        130,
    )


def test_rare_texts_share_the_cell_of_their_common_prefix():
    totals = {(1, 1): 20, (1, 2): 6, (1, 3): 5, (2, 1): 3, (3, 1): 9}
    cell = pooled(totals)
    assert cell[1, 1] != cell[1, 2] == cell[1, 3]
    assert cell[2, 1] == cell[3, 1] != cell[1, 2]


def test_a_last_rest_joins_the_smallest_cell():
    assert len(set(pooled({(1,): 50, (2,): 20, (3,): 4}).values())) == 2


def test_the_stated_deviation_is_found_as_often_as_stated():
    cells, samples, level = 10, 2000, 1e-2
    generator = np.random.default_rng(3)
    law = np.full(cells, 1 / cells)
    sound = one_sample(generator.multinomial(samples, law), law)
    deviation = smallest_deviation(sound, level)
    wrong = law * np.where(np.arange(cells) % 2, 1 - 2 * deviation, 1 + 2 * deviation)
    assert abs(wrong - law).sum() / 2 == pytest.approx(deviation)
    found = np.mean(
        [
            one_sample(generator.multinomial(samples, wrong), law).p_value < level
            for _ in range(RUNS)
        ]
    )
    assert 0.93 < found < 0.97


def test_two_samples_find_a_shifted_law():
    generator = np.random.default_rng(4)
    shifted = np.roll(LAW, 1)
    samples = [
        {(token,): int(count) for token, count in enumerate(generator.multinomial(500, law))}
        for law in (LAW, shifted)
    ]
    assert two_samples(*samples).p_value < 1e-9
