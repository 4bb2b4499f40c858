"""Rules that change the temperature, by the kernels.

A kernel resolves truncation rules at one temperature a row, so a list is cut where the temperature
changes: the rules before become -inf in a copy of the logits, the sums of that copy give the entropy,
and the rules behind see the copy at the new temperature. All on the device, without waiting for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from warpdraft.kernels.entropy_temperature import heated_reference, rescaled
from warpdraft.kernels.entropy_temperature_triton import row_sums_triton
from warpdraft.kernels.noise import Noise
from warpdraft.kernels.support import OK
from warpdraft.kernels.truncation_triton import Drawn, sample_triton, truncate_triton

from .abstract_rules import Rule, values_of
from .arguments import validity
from .backend import operations_of
from .parameters import Parameter, rows_of
from .temperature_rules import TemperatureRule


class _Rest(NamedTuple):
    """What is left of a call behind the last rule that changes the temperature.

    Attributes:
        logits: `[rows, vocab]`, -inf outside the support so far.
        rules: the truncation rules that follow.
        temperature: float64 `[rows]`, of all that follows.
        token_bitmask: that of the call, where no launch has applied it yet.
        status: int8 `[rows]`, what was wrong with a row so far.
    """

    logits: Tensor
    rules: list[Rule]
    temperature: Tensor
    token_bitmask: Tensor | None
    status: Tensor


def truncate_heated(
    logits: Tensor,
    rules: Sequence[Rule],
    temperature: Parameter,
    *,
    token_bitmask: Tensor | None = None,
    row_indices: Tensor | None = None,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """What `truncate` returns, whose arguments these are, and the status of the rows, int8."""
    chosen = logits if row_indices is None else logits.index_select(0, row_indices)
    rows, device = len(chosen), logits.device
    valid = validity(tuple(rules), temperature, rows, device)
    rest = _before_the_rest(chosen, rules, temperature, valid, token_bitmask)
    truncated, status = truncate_triton(
        rest.logits,
        operations_of(rest.rules),
        rest.temperature,
        valid=valid,
        token_bitmask=rest.token_bitmask,
    )
    heat = rows_of("temperature", temperature, rows, device)
    ratio = torch.where(heat == 0, 1.0, heat / rest.temperature)
    truncated, status = rescaled(truncated, ratio), _first(rest.status, status)
    if row_indices is not None:
        out = logits.clone() if out is None else out
        return out.index_copy_(0, row_indices, truncated), status
    return truncated if out is None else out.copy_(truncated), status


def sample_heated(
    logits: Tensor,
    rules: Sequence[Rule],
    temperature: Parameter,
    noise: Noise,
    *,
    raw: bool,
    valid: Tensor | None,
    token_bitmask: Tensor | None,
) -> Drawn:
    """What `sample_triton` writes; its arguments, with all the rules of the call."""
    rest = _before_the_rest(logits, rules, temperature, valid, token_bitmask)
    whole = rest.logits is logits
    drawn = sample_triton(
        rest.logits,
        operations_of(rest.rules),
        rest.temperature,
        noise,
        raw=raw and whole,
        valid=valid,
        token_bitmask=rest.token_bitmask,
    )
    status = _first(rest.status, drawn.status)
    if whole:
        return drawn
    # the rest knows nothing of the tokens that are gone
    heat = rest.temperature
    inside = row_sums_triton(rest.logits, heat, token_bitmask=rest.token_bitmask)
    outside = row_sums_triton(logits, heat, token_bitmask=token_bitmask)
    beyond = (inside.maximum - outside.maximum) / heat + inside.log_total - outside.log_total
    share = torch.where(heat == 0, 1.0, beyond.exp().clamp(max=1.0))
    logprobs = drawn.logprobs
    if raw:
        model = row_sums_triton(logits, torch.ones_like(heat), token_bitmask=token_bitmask)
        level = logits.gather(-1, drawn.token_ids.clamp(min=0)[:, None])[:, 0].double()
        logprobs = (level - model.maximum - model.log_total).float()
    fine = status == OK
    return Drawn(
        drawn.token_ids,
        torch.where(fine, logprobs, torch.nan),
        torch.where(fine, (drawn.kept_mass * share).float(), torch.nan),
        status,
    )


def nodes_heated(logits: Tensor, rules: Sequence[Rule], temperature: Parameter) -> Tensor:
    """Logits of nodes whose law at the temperature of the call, without rules, is that of the rules.

    Args:
        logits: `[batch, nodes, vocab]` float32, bfloat16 or float16; rows without a law stay.
        rules: with parameters for the batch.
        temperature: likewise.

    Returns:
        `[batch, nodes, vocab]` float32: halves would round the laws.
    """

    def of_nodes(value: Parameter) -> Parameter:
        several = isinstance(value, Tensor) and value.ndim > 0
        return value.repeat_interleave(logits.shape[1]) if several else value  # type: ignore[union-attr]

    rows = logits.detach().flatten(0, 1).float()
    of_rows = [
        rule.with_parameters([of_nodes(parameter.value) for parameter in rule.parameters])
        for rule in rules
    ]
    truncated, status = truncate_heated(rows, of_rows, of_nodes(temperature))
    return torch.where((status == OK)[:, None], truncated, rows).view(logits.shape)


def _before_the_rest(
    logits: Tensor,
    rules: Sequence[Rule],
    temperature: Parameter,
    valid: Tensor | None,
    token_bitmask: Tensor | None,
) -> _Rest:
    """Run the rules up to the last one that changes the temperature."""
    rows, device = len(logits), logits.device
    heat = rows_of("temperature", temperature, rows, device)
    status = torch.full((rows,), OK, dtype=torch.int8, device=device)
    pending: list[Rule] = []
    for rule in rules:
        if not isinstance(rule, TemperatureRule):
            pending.append(rule)
            continue
        if pending or token_bitmask is not None:
            logits, found = truncate_triton(
                logits, operations_of(pending), heat, valid=valid, token_bitmask=token_bitmask
            )
            status = _first(status, found)
            pending, token_bitmask = [], None
        sums = row_sums_triton(logits, heat)
        factor = rule.factor(sums.entropy, sums.count, values_of(rule, rows, device))
        changed = heated_reference(heat, factor)
        # a greedy row stays greedy; one without a law needs some number
        heat = torch.where(heat == 0, 0.0, torch.where(changed.isnan(), 1.0, changed))
    return _Rest(logits, pending, heat, token_bitmask, status)


def _first(earlier: Tensor, later: Tensor) -> Tensor:
    """The status of the first launch that found something wrong."""
    return torch.where(earlier == OK, later, earlier)
