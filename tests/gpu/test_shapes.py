"""Real shapes against the reference in float64, and how many tokens equal those of the CPU.

In a dry run the shapes are tiny, and the rates are those of the interpreter.
"""

from __future__ import annotations

import pytest
import torch
from device import DRY_RUN
from reference import assert_right

from warpdraft import MinP, TopH, TopK, TopP, sample, truncate
from warpdraft.backend import operations_of
from warpdraft.kernels.truncation_call import TruncationCall

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore::RuntimeWarning")]

BATCHES = (1, 3) if DRY_RUN else (1, 8, 64, 512)
VOCABS = (300, 8200) if DRY_RUN else (32_000, 128_256, 151_936, 262_144)
DTYPES = (torch.float32, torch.bfloat16)
RULES = {
    "top-h": [TopH(0.4)],
    "min-p": [MinP(0.1)],
    "chain": [TopK(50), TopP(0.9), TopH(0.4), MinP(0.05)],
}

COMPARED = 8
"""Rows of a batch that are compared; the others hold the same kinds of rows."""

DRAWS = 200 if DRY_RUN else 100_000

LEAST_EQUAL = 0.999
"""Draws that must be equal: a float32 sum in another order parts those within rounding of a bound."""


def rows(batch, vocab, dtype, device):
    """Confident rows and flat ones in turn: few tokens kept, and thousands."""
    generator = torch.Generator().manual_seed(vocab)
    logits = torch.randn(batch, vocab, generator=generator)
    logits *= torch.tensor([3.0, 1.0]).repeat(batch)[:batch, None]
    logits[::2, 7] += 9.0
    return logits.to(device, dtype)


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vocab", VOCABS)
@pytest.mark.parametrize("batch", BATCHES)
def test_supports_of_real_shapes(batch, vocab, dtype, rules, device):
    logits = rows(batch, vocab, dtype, device)
    temperature = 1.3
    masked = truncate(logits, RULES[rules], temperature=temperature, backend="triton")
    chosen = torch.linspace(0, batch - 1, min(batch, COMPARED)).long().unique()
    for row in chosen.tolist():
        assert_right(masked[row].cpu(), logits[row].cpu(), RULES[rules], temperature)


@pytest.mark.parametrize("vocab", VOCABS)
def test_flat_rows_keep_thousands(vocab, device):
    logits = rows(2, vocab, torch.float32, device)[1:].expand(3, vocab)
    masked = truncate(logits, TopH(0.9), temperature=2.0, backend="triton")
    assert int((masked[0] > -torch.inf).sum()) > vocab // 10
    assert torch.equal(masked[0], masked[2])
    assert_right(masked[0].cpu(), logits[0].cpu(), [TopH(0.9)], 2.0)


@pytest.mark.parametrize("rules", [[], [TopH(0.4)], RULES["chain"]], ids=["none", "top-h", "chain"])
def test_tokens_equal_those_of_the_cpu(rules, device, record_property, capsys):
    batch, vocab = (4, VOCABS[0]) if DRY_RUN else (100, VOCABS[0])
    logits = rows(batch, vocab, torch.float32, "cpu")
    there = logits.to(device)
    equal = 0
    for step in range(DRAWS // batch):
        sequence = torch.arange(batch)
        found = sample(
            there, rules, seed=5, sequence=sequence.to(device), step=step, backend="triton"
        )
        expected = sample(logits, rules, seed=5, sequence=sequence, step=step, backend="torch")
        equal += int((found.token_ids.cpu() == expected.token_ids).sum())
    rate = equal / (DRAWS // batch * batch)
    record_property("equal tokens", rate)
    with capsys.disabled():
        print(f"\n{rate:.5%} of {DRAWS} tokens equal those of the CPU")
    assert rate >= LEAST_EQUAL


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_is_the_same_bits_alone_and_in_a_batch(dtype, device):
    logits = rows(BATCHES[-1], VOCABS[1], dtype, device)
    last = BATCHES[-1] - 1
    sums, maxima = [], []
    for part in (logits, logits[last:]):
        call = TruncationCall(part, operations_of([TopH(0.9)]), 1.1, None, None, None)
        call.resolve()
        sums.append(call.stats[:5, -1].clone())
        maxima.append(call.group_maxima[-1].clone())
    # sum 4**z is written for p-less alone
    written = [0, 1, 2, 4]
    assert torch.equal(sums[0][written], sums[1][written])
    assert torch.equal(maxima[0], maxima[1])
    options = {"temperature": 1.1, "seed": 3, "step": 7, "backend": "triton"}
    number = torch.arange(len(logits), device=device)
    together = sample(logits, TopH(0.9), sequence=number, **options)
    alone = sample(logits[last:], TopH(0.9), sequence=number[last:], **options)
    for name in ("token_ids", "logprobs", "kept_mass", "status"):
        assert torch.equal(getattr(together, name)[last:], getattr(alone, name))
    again = sample(logits, TopH(0.9), sequence=number, **options)
    assert torch.equal(together.token_ids, again.token_ids)
    assert torch.equal(together.logprobs, again.logprobs)
