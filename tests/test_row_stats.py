"""The sums of one row: how exact they are, and what the support says of itself."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from reference import assert_right

from warpdraft import Epsilon, MinP, TopH, TopK, TopP, truncate
from warpdraft.kernels.row_stats import Row
from warpdraft.kernels.top_h import RECHECKED

VOCAB = 262_144


def spike_over_equal_tail(level: float, maximum: float) -> np.ndarray:
    """The worst case of a float32 sum: all rounding errors of equal terms have one sign."""
    row = np.full(VOCAB, np.float32(maximum + level), np.float32)
    row[100] = np.float32(maximum)
    return row


def sums_in_float64(row: np.ndarray, temperature: float) -> tuple[float, float]:
    """S - 1 and the entropy."""
    levels = (row.astype(np.float64) - float(row.max())) / temperature
    weights = np.exp(levels)
    excess = math.fsum(np.delete(weights, levels.argmax()))
    return excess, math.log1p(excess) - math.fsum(weights * levels) / (1 + excess)


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3, 2.0])
@pytest.mark.parametrize("level", [-9.1, -11.3, -12.7, -14.9])
def test_float32_sums_are_good_to_what_is_rechecked(level, temperature):
    row = spike_over_equal_tail(level, maximum=17.3)
    excess, entropy = sums_in_float64(row, temperature)
    found = Row(row).stats(temperature)
    assert found.entropy == pytest.approx(entropy, rel=0, abs=RECHECKED)
    assert found.excess == pytest.approx(excess, rel=RECHECKED)


@pytest.mark.parametrize("vocab", [1, 63, 64, 65, 32768, 32769, 100_001])
def test_exact_sums_take_the_differences_in_float64_too(vocab):
    row = np.random.default_rng(vocab).normal(0, 3, vocab).astype(np.float32)
    row[vocab // 2] = 19.3
    excess, entropy = sums_in_float64(row, 1.7)
    found = Row(row).exact_stats(1.7)
    assert found.entropy == pytest.approx(entropy, rel=1e-12, abs=1e-12)
    assert found.excess == pytest.approx(excess, rel=1e-12)


@pytest.mark.parametrize("temperature", [1e-300, 1e-40, 1e40, 1e300])
def test_temperatures_beyond_float32_are_not_zero_or_infinite(temperature):
    row = np.array([0.0, -np.inf, 0.0, -1e-3], np.float32)
    share = math.exp(-min(1e-3 / temperature, 800.0))
    assert Row(row).stats(temperature).excess == pytest.approx(1 + share)
    assert math.isfinite(Row(row).stats(temperature).entropy)


def test_a_cut_between_the_least_finite_logits_restricts_the_row():
    least = np.finfo(np.float32).min
    row = Row(np.array([0.0, least, least, least], np.float32))
    assert not row.restricted
    row.narrow(float(least), 1)
    assert row.restricted
    assert row.count() == 2
    assert row.tokens().ids.tolist() == [0, 1]


@pytest.mark.parametrize(
    "rule", [TopK(9), TopH(0.4), TopP(0.7), MinP(0.1), Epsilon(1e-3)], ids=repr
)
@pytest.mark.parametrize("where", [slice(-63, None), slice(-3, None), slice(125, 131)], ids=str)
def test_large_logits_are_found_wherever_they_are(rule, where):
    # 8,255 tokens are 64 lines of 128 columns, and 63 tokens more
    row = torch.randn(8255, generator=torch.Generator().manual_seed(3))
    row[where] += 9.0
    assert_right(truncate(row[None], rule)[0], row, [rule])
    assert_right(truncate(row[None], [TopP(0.95), rule])[0], row, [TopP(0.95), rule])
