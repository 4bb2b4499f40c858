"""Rules that change the temperature by the Triton kernels, in Triton's interpreter, against float64 and plain torch.

Run by test_entropy_temperature.py in a process of its own, because Triton decides at its import whether it
interprets; `TRITON_INTERPRET=1 python -m pytest -n 0 tests/interpreted_temperature.py` runs it alone.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from heated_reference import law_of_row
from reference import bf16_ties, gaussian, masked_tail, one_hot, row_of, spike, two_values, uniform

from warpdraft import (
    DynamicTemperature,
    EntropyDependentTemperature,
    HapoTemperature,
    MinP,
    TopH,
    TopK,
    TopNSigma,
    TopP,
    Typical,
    sample,
    truncate,
    verify_block,
    warmup,
)
from warpdraft.heated_rules import nodes_heated, sample_heated, truncate_heated
from warpdraft.kernels.entropy_temperature_triton import row_sums_triton
from warpdraft.kernels.noise import Noise
from warpdraft.kernels.support import BAD_PARAMETER, EMPTY, NAN, OK, POSITIVE_INFINITY

# NumPy interprets: -inf - -inf and log(0) are meant
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

DYNAMIC = DynamicTemperature(0.5, 1.5)
DEPENDENT = EntropyDependentTemperature(0.5, 1.4)
HAPO = HapoTemperature(-0.5, 1.2, 0.7, 0.9, 0.4)
LISTS = {
    "alone": [DYNAMIC],
    "dependent": [DEPENDENT],
    "HAPO": [HAPO],
    "before": [DYNAMIC, MinP(0.1)],
    "behind": [MinP(0.1), DYNAMIC],
    "between": [TopK(20), DEPENDENT, TopP(0.8), HAPO, TopNSigma(1.5)],
    "twice": [TopH(0.9), DYNAMIC, DYNAMIC],
}
on_lists = pytest.mark.parametrize("rules", LISTS.values(), ids=LISTS.keys())
HOSTILE = (one_hot, spike, uniform, gaussian, bf16_ties, two_values, masked_tail)

# three slices, the last one ragged
SLICED = 20_001


def rows_of(kinds, vocab):
    return torch.cat([row_of(kind, vocab) for kind in kinds])


def assert_law(masked, logits, rules, temperature):
    """Every row has the law of the reference."""
    for found, row in zip(masked, logits, strict=True):
        expected, _ = law_of_row(row.float().numpy(), rules, temperature)
        probs = (found.double() / temperature).softmax(-1)
        torch.testing.assert_close(probs, torch.from_numpy(expected), rtol=3e-4, atol=1e-9)


@pytest.mark.parametrize("vocab", [1, 127, SLICED])
def test_sums_of_rows(vocab):
    logits = rows_of(HOSTILE if vocab < SLICED else [gaussian, two_values, spike], vocab)
    temperature = torch.linspace(0.3, 2.0, len(logits), dtype=torch.float64)
    sums = row_sums_triton(logits, temperature)
    for number, row in enumerate(logits.double().numpy()):
        x = row[row > -np.inf]
        z = (x - x.max()) / float(temperature[number])
        weights = np.exp(z)
        excess = np.delete(weights, x.argmax()).sum()
        assert float(sums.maximum[number]) == x.max()
        assert float(sums.count[number]) == len(x)
        assert float(sums.excess[number]) == pytest.approx(excess, rel=1e-5, abs=1e-30)
        entropy = np.log1p(excess) - (weights * z).sum() / (1 + excess)
        assert float(sums.entropy[number]) == pytest.approx(entropy, rel=1e-5, abs=1e-30)


@on_lists
def test_laws_of_hostile_rows(rules):
    # what lies within rounding of a bound of top-p or top-H is left to the rows without ties
    kinds = HOSTILE if rules in (LISTS["alone"], LISTS["dependent"], LISTS["HAPO"]) else [gaussian]
    logits = rows_of(kinds, 127)
    before = logits.clone()
    for temperature in (0.7, 1.3):
        masked = truncate(logits, rules, temperature=temperature, backend="triton")
        assert_law(masked, logits, rules, temperature)
    assert torch.equal(logits, before)


@pytest.mark.parametrize("rules", [LISTS["before"], LISTS["between"]], ids=["before", "between"])
def test_rows_of_several_slices(rules):
    logits = rows_of([gaussian], SLICED)
    assert_law(truncate(logits, rules, temperature=0.8, backend="triton"), logits, rules, 0.8)


def test_an_interval_before():
    logits = rows_of([gaussian, masked_tail], 127)
    for rules in ([Typical(0.6), DYNAMIC], [DYNAMIC, Typical(0.6)]):
        found = truncate(logits, rules, temperature=1.2, backend="triton")
        torch.testing.assert_close(
            found, truncate(logits, rules, temperature=1.2), rtol=1e-5, atol=1e-5
        )
        ours, theirs = (
            sample(logits, rules, temperature=1.2, seed=3, backend=name)
            for name in ("triton", "torch")
        )
        torch.testing.assert_close(ours.kept_mass, theirs.kept_mass, rtol=1e-5, atol=1e-6)


def test_halves():
    logits = rows_of([gaussian, bf16_ties], 300).bfloat16()
    rules = [DYNAMIC, TopK(30)]
    found, expected = (truncate(logits, rules, backend=name) for name in ("triton", "torch"))
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=2**-7, atol=0)


def test_bitmask_rows_and_out():
    logits = rows_of([gaussian, two_values, spike, uniform], 100)
    words = torch.full((4, 4), -1, dtype=torch.int32)
    words[:, 1] = 0b1011
    rows = torch.tensor([3, 0])
    for rules in (LISTS["alone"], LISTS["before"]):
        for options in (
            {"token_bitmask": words},
            {"row_indices": rows, "token_bitmask": words[:2]},
            {"row_indices": rows, "out": torch.zeros(4, 128)[:, :100]},
            {"out": logits.clone()},
        ):
            calls = []
            for backend in ("triton", "torch"):
                own = {
                    name: value.clone() if name == "out" else value
                    for name, value in options.items()
                }
                calls.append(truncate(logits, rules, temperature=1.2, backend=backend, **own))
                assert "out" not in own or calls[-1] is own["out"]
            torch.testing.assert_close(*calls, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("rules", "raw"),
    [(rules, name in ("alone", "behind", "between")) for name, rules in LISTS.items()],
    ids=LISTS.keys(),
)
def test_draws(rules, raw):
    logits = rows_of([gaussian], 127).expand(4, -1) + torch.arange(4)[:, None]
    words = torch.full((4, 4), -1, dtype=torch.int32)
    words[:, 2] = 0
    options = {"seed": 5, "logprobs_mode": "raw" if raw else "processed", "token_bitmask": words}
    heat = torch.tensor([0.0, 0.6, 1.0, 1.5])
    found, expected = (
        sample(logits, rules, temperature=heat, backend=name, **options)
        for name in ("triton", "torch")
    )
    assert torch.equal(found.token_ids, expected.token_ids)
    assert torch.equal(found.status, expected.status)
    torch.testing.assert_close(found.logprobs, expected.logprobs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.kept_mass, expected.kept_mass, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rules", [[DYNAMIC], [TopK(9), DYNAMIC]], ids=["alone", "behind"])
def test_a_greedy_row_of_ties_stays_greedy(rules):
    logits = rows_of([two_values], 40).expand(5, -1)
    drawn = sample(logits, rules, temperature=0.0, seed=2, backend="triton")
    assert drawn.token_ids.tolist() == [int(logits[0].argmax())] * 5
    assert drawn.logprobs.tolist() == [0.0] * 5
    assert drawn.kept_mass.tolist() == [1.0] * 5
    masked = truncate(logits, rules, temperature=0.0, backend="triton")
    assert torch.equal(masked, truncate(logits, TopK(1)))


def test_draws_from_several_slices():
    logits = rows_of([gaussian, gaussian], SLICED)
    for rules in ([DYNAMIC], [MinP(1e-3), HAPO]):
        found, expected = (
            sample(logits, rules, temperature=1.2, seed=8, backend=name)
            for name in ("triton", "torch")
        )
        assert torch.equal(found.token_ids, expected.token_ids)
        torch.testing.assert_close(found.logprobs, expected.logprobs, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found.kept_mass, expected.kept_mass, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "rules",
    [[DYNAMIC], [TopK(5), DYNAMIC], [DYNAMIC, TopK(5), HAPO]],
    ids=["alone", "behind", "between"],
)
def test_rows_without_a_law(rules):
    logits = rows_of([gaussian] * 6, 50)
    logits[0, 3], logits[1, 4], logits[2] = math.nan, math.inf, -math.inf
    heat = torch.tensor([1.0, 1.0, 1.0, -1.0, math.nan, 1.0])
    wanted = [NAN, POSITIVE_INFINITY, EMPTY, BAD_PARAMETER, BAD_PARAMETER, OK]
    truncated, status = truncate_heated(logits, rules, heat)
    assert status.tolist() == wanted
    assert (truncated[:5] == -math.inf).all()
    valid = torch.tensor([True, True, True, False, False, True])
    noise = Noise.create(6, seed=1, device="cpu")
    for raw in (False, True):
        drawn = sample_heated(logits, rules, heat, noise, raw=raw, valid=valid, token_bitmask=None)
        assert drawn.status.tolist() == wanted
        assert (drawn.token_ids[:5] == -1).all()
        assert drawn.token_ids[5] >= 0
        assert drawn.logprobs[:5].isnan().all()
        assert drawn.kept_mass[:5].isnan().all()
        assert drawn.logprobs[5:].isfinite().all()
    with pytest.raises(ValueError, match="row 0 has a NaN logit"):
        truncate(logits, rules, backend="triton")


def test_tensors_outside_their_range_set_the_status():
    logits = rows_of([gaussian] * 3, 50)
    rule = DynamicTemperature(torch.tensor([0.5, 0.0, 2.0]), 1.5)
    _, status = truncate_heated(logits, [TopK(9), rule, MinP(0.1)], 1.0)
    assert status.tolist() == [OK, BAD_PARAMETER, BAD_PARAMETER]


def test_an_empty_batch():
    assert truncate(torch.zeros(0, 9), DYNAMIC, backend="triton").shape == (0, 9)
    assert sample(
        torch.zeros(0, 9), [TopK(3), DYNAMIC], backend="triton", seed=1
    ).token_ids.shape == (0,)


def test_blocks():
    batch, vocab = 2, 40
    generator = torch.Generator().manual_seed(2)
    target, other = (torch.randn(batch, 5, vocab, generator=generator) * 2 for _ in range(2))
    draft = 0.7 * target + 0.3 * other
    # leaves need no row of the draft
    draft[:, [2, 4]] = math.nan
    rules = [TopK(20), DynamicTemperature(torch.linspace(0.3, 1.0, batch), 1.5), MinP(0.05), HAPO]
    heat = torch.tensor([0.0, 1.3])
    nodes = torch.tensor([[0, 1, 2], [0, 3, 4]]).repeat(batch, 1, 1)
    shape = {"node_index": nodes, "temperature": heat, "backend": "triton"}
    laws = []
    for logits in (target, draft):
        rows = logits.flatten(0, 1).nan_to_num(0.0)
        numbers = torch.arange(batch).repeat_interleave(5)
        per_row = [
            DynamicTemperature(rule.minimum[numbers], 1.5)
            if isinstance(rule, DynamicTemperature)
            else rule
            for rule in rules
        ]
        laws.append(truncate(rows, per_row, temperature=heat[numbers]).view_as(logits))
    heated = nodes_heated(target, rules, heat)
    torch.testing.assert_close(heated, laws[0], rtol=1e-5, atol=1e-5)
    assert nodes_heated(draft, rules, heat)[:, [2, 4]].isnan().all()
    probs = (laws[1] / heat.clamp(min=1e-3)[:, None, None]).softmax(-1)
    first = torch.multinomial(probs[:, 0], 2, replacement=True, generator=generator)
    second = [torch.multinomial(probs[:, node], 1, generator=generator) for node in (1, 3)]
    paths = torch.stack([first, torch.cat(second, 1)], 2)
    found = verify_block(target, draft, paths, rules=rules, seed=4, **shape)
    expected = verify_block(*laws, paths, seed=4, **shape)
    for name in ("output_token_ids", "num_accepted", "survivor_path", "status"):
        assert torch.equal(getattr(found, name), getattr(expected, name))
    assert found.status.tolist() == [OK] * batch


def test_warm_up_takes_them():
    warmup([(1, 40)], rules=[TopK(5), DYNAMIC], blocks=[(2, 1)], device="cpu")
