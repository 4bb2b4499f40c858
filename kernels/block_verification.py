r"""Block verification of one draft path: how many of its tokens are accepted, and which token follows them.

    w_0 = 1,  w_{i+1} = min(1, w_i target_i(x_i) / draft_i(x_i))            i = 0 .. L - 1
    R_i = sum_y (w_i target_i(y) - draft_i(y))+
    h_i = R_i / (1 - w_i + R_i),  h_0 = 1,  h_L = w_L
    a   = the largest i with u_i < h_i                                      u_i uniform
    the next token ~ target_L where a = L, else ~ (w_a target_a - draft_a)+

Source: Sun et al., ICLR 2025, arXiv 2403.10444, Algorithm 2; facts of the law stand in `verifiers/optimal_block.py`,
which is this rule behind a selection among several paths. Here all depths are computed at once, in a fixed number of
operations and without a look at any number: the form that compiled code and CUDA graphs run.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .draw import draw
from .noise import Noise, Role


def verify_path(
    target_probs: Tensor, draft_probs: Tensor, token_ids: Tensor, noise: Noise
) -> tuple[Tensor, Tensor]:
    """Verify one path a row.

    Args:
        target_probs: `[batch, L + 1, vocab]` float32 or float64, each law sums to 1.
        draft_probs: `[batch, L, vocab]` of the same dtype, the laws that the path was drawn from.
        token_ids: `[batch, L]` int64, the path, L >= 1.
        noise: one stream a row, at the block's step.

    Returns:
        `[batch, L + 1]` int64, the accepted tokens, the one that follows, then -1; `[batch]` int64, how many are
        accepted.
    """
    length = token_ids.shape[1]
    weight = _weights(target_probs, draft_probs, token_ids)
    scaled = weight[:, :length, None].to(target_probs.dtype) * target_probs[:, :length]
    residual = (scaled - draft_probs).clamp_min(0)
    total = residual.sum(2, dtype=torch.float64)

    depth = torch.arange(length + 1, device=token_ids.device).expand(len(token_ids), -1)
    uniform = noise.uniform(Role.ACCEPT, torch.zeros_like(depth), depth=depth)
    # `u < R / (1 - w + R)`, also where both are 0
    stops = uniform[:, :length] * (1 - weight[:, :length] + total) < total
    stops = torch.cat([stops, uniform[:, length:] < weight[:, length:]], dim=1) | (depth == 0)
    accepted = torch.where(stops, depth, 0).amax(1)

    stop = accepted.clamp_max(length - 1)
    recovered = _recovered(residual, total, target_probs, stop, noise)
    bonus = draw(target_probs[:, length], noise, Role.BONUS, depth=length)
    following = torch.where(accepted == length, bonus, recovered)
    drafted = torch.cat([token_ids, following[:, None]], dim=1)
    output = torch.where(depth < accepted[:, None], drafted, -1)
    return torch.where(depth == accepted[:, None], following[:, None], output), accepted


def _weights(target_probs: Tensor, draft_probs: Tensor, token_ids: Tensor) -> Tensor:
    """w at every depth, `[batch, L + 1]` float64."""
    chosen = token_ids[:, :, None]
    draft = draft_probs.gather(2, chosen).squeeze(2).double()
    target = target_probs[:, : chosen.shape[1]].gather(2, chosen).squeeze(2).double()
    weights = [torch.ones(len(token_ids), dtype=torch.float64, device=token_ids.device)]
    for depth in range(chosen.shape[1]):
        wanted = weights[-1] * target[:, depth]
        below = wanted / draft[:, depth]
        weights.append(torch.where(wanted >= draft[:, depth], (wanted > 0).to(below), below))
    return torch.stack(weights, dim=1)


def _recovered(
    residual: Tensor, total: Tensor, target_probs: Tensor, stop: Tensor, noise: Noise
) -> Tensor:
    """A token of the residual at each row's depth `stop`, of the target's law where rounding left nothing."""
    at = stop[:, None, None].expand(-1, -1, residual.shape[2])
    mass = residual.gather(1, at).squeeze(1)
    exhausted = total.gather(1, stop[:, None]) <= 0
    mass = torch.where(exhausted, target_probs.gather(1, at).squeeze(1), mass)
    return draw(mass, noise, Role.RESIDUAL, depth=stop)
