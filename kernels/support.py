"""The support of a row: the tokens that truncation keeps, as a threshold.

Order the tokens of a row by logit descending, then by token id ascending (-0.0 equals 0.0). A
prefix rule keeps a prefix of that order, so three numbers a row say everything:

    keep token i  <=>  (x_i > value  or  (x_i == value and i <= index))  and  x_i <= upper

`value` and `upper` live in the domain of the untempered logits. `upper` is +inf unless a rule keeps
an interval (locally typical sampling). A logit of -inf is never kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# what may be wrong with a row; the values of every `.status` tensor
OK = 0
NAN = 1
POSITIVE_INFINITY = 2
EMPTY = 3
BAD_PARAMETER = 4

STATUS_MESSAGES = {
    NAN: "has a NaN logit",
    POSITIVE_INFINITY: "has a logit of +inf",
    EMPTY: "has no finite logit",
    BAD_PARAMETER: "has a parameter outside its range",
}


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which the logits of `dtype` are compared: float32, or float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@dataclass(frozen=True, slots=True)
class Support:
    """The kept tokens of every row, as `(value, index)` and `upper`.

    Attributes:
        value: `[batch]` float32 (float64 for float64 logits), the logit of the last kept token or
            any number between it and the next one.
        index: `[batch]` int64, the last kept token id among the logits that equal `value`;
            `vocab - 1` keeps all of them.
        upper: `[batch]` like `value`, the largest kept logit; +inf for prefix rules.
    """

    value: Tensor
    index: Tensor
    upper: Tensor

    @classmethod
    def everything(cls, logits: Tensor) -> Support:
        """The support of all finite logits of `[batch, vocab]`."""
        batch, vocab = logits.shape
        dtype = compute_dtype(logits.dtype)
        value = torch.full((batch,), torch.finfo(dtype).min, dtype=dtype, device=logits.device)
        index = torch.full((batch,), vocab - 1, dtype=torch.int64, device=logits.device)
        return cls(value, index, torch.full_like(value, torch.inf))


def contains(logits: Tensor, support: Support) -> Tensor:
    """Which tokens of `[batch, vocab]` are kept: bool `[batch, vocab]`."""
    ids = torch.arange(logits.shape[-1], device=logits.device)
    value, index, upper = support.value[:, None], support.index[:, None], support.upper[:, None]
    kept = (logits > value) | ((logits == value) & (ids <= index))
    return kept & (logits <= upper)


def mask(logits: Tensor, support: Support) -> Tensor:
    """A new tensor like `logits` with -inf outside the support."""
    return logits.masked_fill(~contains(logits, support), -torch.inf)


def count(logits: Tensor, support: Support) -> Tensor:
    """The number of kept tokens: int64 `[batch]`."""
    return contains(logits, support).sum(-1)


def kept_mass(logits: Tensor, support: Support, temperature: float | Tensor = 1.0) -> Tensor:
    """The probability of the support before truncation: float64 `[batch]`.

    Args:
        logits: `[batch, vocab]`, untempered.
        support: what is kept of them.
        temperature: above 0, a number or `[batch]`.
    """
    scale = torch.as_tensor(temperature, dtype=torch.float64, device=logits.device)
    probs = torch.softmax(logits.double() / scale.reshape(-1, 1), dim=-1)
    return torch.where(contains(logits, support), probs, 0.0).sum(-1)


def intersect(first: Support, second: Support) -> Support:
    """The tokens that both supports keep."""
    stricter = (first.value > second.value) | (
        (first.value == second.value) & (first.index <= second.index)
    )
    return Support(
        torch.where(stricter, first.value, second.value),
        torch.where(stricter, first.index, second.index),
        torch.minimum(first.upper, second.upper),
    )


def union(first: Support, second: Support) -> Support:
    """The looser of two prefixes."""
    stricter = (first.value > second.value) | (
        (first.value == second.value) & (first.index <= second.index)
    )
    return Support(
        torch.where(stricter, second.value, first.value),
        torch.where(stricter, second.index, first.index),
        torch.maximum(first.upper, second.upper),
    )


def supported_logits(logits: Tensor, support: Support) -> Tensor:
    """The logits of the support in float64, -inf outside: `[batch, vocab]`."""
    return mask(logits, support).double()


def sorted_tokens(logits: Tensor, support: Support) -> tuple[Tensor, Tensor]:
    """The logits in order, -inf after the support: float64 and token ids, `[batch, vocab]` both."""
    ordered, ids = supported_logits(logits, support).sort(dim=-1, descending=True, stable=True)
    return ordered, ids


def prefix_support(ordered: Tensor, ids: Tensor, count: Tensor) -> Support:
    """The support of the first `count` tokens of rows in order; at least one is kept.

    Args:
        ordered: `[batch, vocab]` float64, from `sorted_tokens`.
        ids: `[batch, vocab]` int64, the token ids.
        count: `[batch]` int64.
    """
    vocab = ordered.shape[-1]
    finite = (ordered > -torch.inf).sum(-1)
    last = (torch.minimum(count, finite) - 1).clamp_(min=0)[:, None]
    value, following = (
        ordered.gather(-1, last),
        ordered.gather(-1, (last + 1).clamp_(max=vocab - 1)),
    )
    # a tie group that is kept whole is named by the last token id there is
    split = (following == value) & (last + 1 < vocab)
    index = torch.where(split, ids.gather(-1, last), vocab - 1)
    return Support(value[:, 0], index[:, 0], torch.full_like(value[:, 0], torch.inf))


def threshold_support(value: Tensor, vocab: int) -> Support:
    """The support of all logits at or above `value`, float64 `[batch]`."""
    return Support(
        value,
        torch.full_like(value, vocab - 1, dtype=torch.int64),
        torch.full_like(value, torch.inf),
    )
