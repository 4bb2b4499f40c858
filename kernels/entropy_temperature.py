"""Entropy-adaptive temperature: what the temperature is multiplied by, row by row.

    p = softmax(x / T) over the n tokens of the support so far,  H its entropy in nats
    T' = T * factor

    dynamic            factor = minimum + (maximum - minimum) * (H / ln n) ** exponent
    entropy-dependent  factor = maximum * base ** (theta / H)
    HAPO               factor = 1 + strength * clamp(h * scale, -1, 1),
                       h = (ln max(H, 1e-6) - median) / (std + 1e-6),  scale the positive one where h > 0

The first is the entropy form of dynamic temperature in llama.cpp and text-generation-webui, the
second that of Zhang et al., arXiv 2403.14541, the third HAPO's adaptive temperature sampling, arXiv
2509.16591. One token has H = 0 = ln n: its share of the entropy counts as 0, and the power's limit is 0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .row_stats import LEAST_LEVEL, Row
from .support import Support, contains, supported_logits

LEAST_ENTROPY = 1e-6
"""Under HAPO's logarithm, and its addend to the standard deviation."""

# no logit below 3e8 overflows a float32 when it is divided by that; what lies apart stays apart
LEAST_TEMPERATURE = 1e-30
LARGEST_TEMPERATURE = 1e30

# what H may be divided by: theta / H is then inf at worst, and the power 0
_LEAST_DIVISOR = torch.finfo(torch.float64).tiny

# a distance of inf would make NaN of a scale of 0
_LARGEST_DISTANCE = torch.finfo(torch.float64).max


def entropy_reference(logits: Tensor, support: Support, temperature: Tensor) -> Tensor:
    """The entropy of the law over the support in nats, float64 `[batch]`, on any device.

    Args:
        logits: `[batch, vocab]`.
        support: that so far.
        temperature: `[batch]` float64, above 0.
    """
    inside = supported_logits(logits, support)
    maximum, place = inside.max(-1, keepdim=True)
    levels = ((inside - maximum) / temperature[:, None]).clamp(min=LEAST_LEVEL)
    weights = levels.exp()
    moment = (weights * levels).sum(-1)
    excess = weights.scatter(-1, place, 0.0).sum(-1)
    return torch.log1p(excess) - moment / (1.0 + excess)


def count_reference(logits: Tensor, support: Support) -> Tensor:
    """The number of tokens with a finite logit in the support, float64 `[batch]`."""
    return (contains(logits, support) & (logits > -torch.inf)).sum(-1).double()


def heated_reference(temperature: Tensor, factor: Tensor) -> Tensor:
    """The temperatures of what follows, float64 `[batch]`."""
    return (temperature * factor).clamp(LEAST_TEMPERATURE, LARGEST_TEMPERATURE)


def heated(temperature: float, factor: float) -> float:
    """The temperature of what follows in one row."""
    return min(max(temperature * factor, LEAST_TEMPERATURE), LARGEST_TEMPERATURE)


def dynamic_reference(
    entropy: Tensor, count: Tensor, minimum: Tensor, maximum: Tensor, exponent: Tensor
) -> Tensor:
    """The factors of dynamic temperature, all arguments and the result float64 `[batch]`."""
    largest = torch.log(count)
    share = torch.where(largest > 0, entropy / largest, 0.0).clamp(0.0, 1.0)
    return minimum + (maximum - minimum) * share**exponent


def dynamic(row: Row, temperature: float, minimum: float, maximum: float, exponent: float) -> float:
    """The factor of dynamic temperature for one row."""
    largest = math.log(row.count())
    # rounding may put the entropy of a uniform law above the largest
    share = min(row.stats(temperature).entropy / largest, 1.0) if largest > 0 else 0.0
    power: float = max(share, 0.0) ** exponent
    return minimum + (maximum - minimum) * power


def entropy_dependent_reference(
    entropy: Tensor, theta: Tensor, maximum: Tensor, base: Tensor
) -> Tensor:
    """The factors of entropy-dependent temperature, all float64 `[batch]`."""
    return maximum * base ** (theta / entropy.clamp(min=_LEAST_DIVISOR))


def entropy_dependent(
    row: Row, temperature: float, theta: float, maximum: float, base: float
) -> float:
    """The factor of entropy-dependent temperature for one row."""
    entropy = max(row.stats(temperature).entropy, _LEAST_DIVISOR)
    power: float = base ** (theta / entropy)
    return maximum * power


def hapo_reference(
    entropy: Tensor,
    median: Tensor,
    std: Tensor,
    positive_scale: Tensor,
    negative_scale: Tensor,
    strength: Tensor,
) -> Tensor:
    """The factors of HAPO's temperature, all float64 `[batch]`."""
    above = (entropy.clamp(min=LEAST_ENTROPY).log() - median) / (std + LEAST_ENTROPY)
    above = above.clamp(-_LARGEST_DISTANCE, _LARGEST_DISTANCE)
    scale = torch.where(above > 0, positive_scale, negative_scale)
    return 1.0 + strength * (above * scale).clamp(-1.0, 1.0)


def hapo(
    row: Row,
    temperature: float,
    median: float,
    std: float,
    positive_scale: float,
    negative_scale: float,
    strength: float,
) -> float:
    """The factor of HAPO's temperature for one row."""
    entropy = max(row.stats(temperature).entropy, LEAST_ENTROPY)
    above = (math.log(entropy) - median) / (std + LEAST_ENTROPY)
    above = min(max(above, -_LARGEST_DISTANCE), _LARGEST_DISTANCE)
    scale = positive_scale if above > 0 else negative_scale
    return 1.0 + strength * min(max(above * scale, -1.0), 1.0)


def rescaled(logits: Tensor, ratio: Tensor) -> Tensor:
    """Masked logits with the distances to their maxima multiplied: a new tensor.

    The largest logit of a row stays where it is, so that nothing overflows upwards; a finite logit
    stays finite. Computed in the dtype of the laws and rounded to that of the logits.

    Args:
        logits: `[rows, vocab]` float, -inf outside the support, of which every row has some.
        ratio: `[rows]` float64, at least 0; 1 leaves a row as it is.
    """
    wide = logits if logits.dtype == torch.float64 else logits.float()
    maximum = wide.amax(-1, keepdim=True)
    # a ratio of inf would make NaN of the largest logit
    factor = ratio.clamp(max=torch.finfo(wide.dtype).max).to(wide.dtype)[:, None]
    stretched = maximum + (wide - maximum) * factor
    stretched = stretched.clamp(min=torch.finfo(logits.dtype).min).to(logits.dtype)
    moved = (logits > -torch.inf) & (ratio != 1)[:, None]
    return torch.where(moved, stretched, logits)
