"""The sums that an entropy-adaptive temperature needs, of whole rows on a GPU.

One launch of `row_stats_kernel`, a program for every 8,192 tokens, and the merge of its slices, a few
numbers a row, in torch. Nothing waits for the device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .row_stats import LEAST_LEVEL
from .truncation_call import TruncationCall


@dataclass(frozen=True, slots=True)
class RowSums:
    """The sums of rows over their finite logits, float64 `[rows]`; any numbers for rows without a law.

    Attributes:
        maximum: the largest logit.
        excess: S - 1, S the sum of exp(z), z = (x - maximum) / T.
        moment: the sum of exp(z) * z.
        count: of finite logits.
    """

    maximum: Tensor
    excess: Tensor
    moment: Tensor
    count: Tensor

    @property
    def log_total(self) -> Tensor:
        """The logarithm of S."""
        return torch.log1p(self.excess)

    @property
    def entropy(self) -> Tensor:
        """H of the row's law, in nats."""
        return self.log_total - self.moment / (1.0 + self.excess)


def row_sums_triton(
    logits: Tensor, temperature: Tensor, *, token_bitmask: Tensor | None = None
) -> RowSums:
    """The sums of every row at its temperature.

    Args:
        logits: `[rows, vocab]` float32, bfloat16 or float16, any row stride.
        temperature: float64 `[rows]`; a greedy row counts as one of temperature 1.
        token_bitmask: int32 `[rows, ceil(vocab / 32)]`; tokens whose bit is 0 count as -inf.
    """
    call = TruncationCall(logits, (), temperature, None, token_bitmask, None)
    if call.rows:
        # Triton launches on the current device, which need not be that of the logits
        with torch.cuda.device_of(logits):
            call.row_stats(restricted=False, raw=False)
    maxima, excesses, moments, _, counts = call.stats[:5].double()
    maximum = maxima.amax(-1)
    anchor = torch.where(maximum.isfinite(), maximum, 0.0)[:, None]
    heat = torch.where(temperature > 0, temperature, 1.0)[:, None]
    shift = ((maxima - anchor) / heat).clamp(min=LEAST_LEVEL)
    share = torch.where(counts > 0, shift.exp(), 0.0)
    # each slice leaves out a token at its maximum, the row one in all: that of a leading slice
    left_out = torch.ones_like(share).scatter_(1, maxima.argmax(-1, keepdim=True), 0.0)
    excess = (share * (excesses + left_out)).sum(-1)
    moment = (share * (math.log(2.0) * moments + (1.0 + excesses) * shift)).sum(-1)
    return RowSums(maximum, excess, moment, counts.sum(-1))
