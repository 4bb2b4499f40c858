"""Sampling: temperature, rules and one draw of the canonical kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from warpdraft.kernels.draw import draw
from warpdraft.kernels.noise import Noise, Role
from warpdraft.kernels.row_stats import levels_of
from warpdraft.kernels.support import OK, compute_dtype, mask

from .arguments import allowed, check_bitmask, validity
from .backend import Backend, operations_of, takes_triton
from .rules import Rule
from .temperature_rules import change_temperature
from .truncation import Call, check_logits, check_rules, check_status


@dataclass(frozen=True, slots=True)
class Sampled:
    """One drawn token a row.

    Attributes:
        token_ids: int64 `[batch]`; -1 where `status` is not 0.
        logprobs: float32 `[batch]`, of the drawn token; NaN where `status` is not 0.
        kept_mass: float32 `[batch]`, the probability of the support before truncation, at the
            temperature of the draw (1 at temperature 0): of the call, unless a rule changes it; NaN
            where `status` is not 0.
        status: int8 `[batch]`, see `warpdraft.kernels.support`: 0 is fine.
    """

    token_ids: Tensor
    logprobs: Tensor
    kept_mass: Tensor
    status: Tensor


class HasStatus(Protocol):
    """Any result with a status a row."""

    @property
    def status(self) -> Tensor:
        """The status, int8 `[batch]`: 0 is fine."""
        ...


def sample(
    logits: Tensor,
    rules: Rule | Sequence[Rule] = (),
    *,
    temperature: float | Tensor = 1.0,
    seed: int | Tensor | None = None,
    sequence: int | Tensor | None = None,
    step: int | Tensor = 0,
    generator: torch.Generator | None = None,
    logprobs_mode: Literal["processed", "raw"] = "processed",
    token_bitmask: Tensor | None = None,
    backend: Backend = "auto",
) -> Sampled:
    """Draw one token a row from `softmax(logits / temperature)` over the support of the rules.

    Args:
        logits: `[batch, vocab]` float32, bfloat16, float16 or float64, any strides.
        rules: applied in order, each on the law renormalised to the support so far, at the
            temperature so far, which some of them change.
        temperature: at least 0, a number or a tensor `[batch]`; 0 takes the lowest token id with
            the largest logit.
        seed: any int64, a number or `[batch]`; None takes one number from `generator`, or from torch's
            default generator.
        sequence: int64 `[batch]` in [0, 2**48), or a number for a single row: names the rows, so that
            they draw independently; their numbers by default.
        step: int64 in [0, 2**32), a number or `[batch]`: counts the draws of a sequence.
        generator: where the seed comes from when there is none.
        logprobs_mode: "processed" gives the log-probability of the drawn token under the law it was
            drawn from (0 at temperature 0), "raw" under `softmax(logits)`, the model's own law:
            temperature 1, no rules.
        token_bitmask: int32 `[batch, ceil(vocab / 32)]`, token i allowed where bit i % 32 of word
            i // 32 is 1: the layout of xgrammar and vLLM. Other tokens count as -inf, also for
            "raw" and for the kept mass.
        backend: "torch" takes plain torch; "triton" the kernels, which no chip has run yet, on a GPU
            or in Triton's interpreter; "auto" the kernels for calls on a GPU that they can run.

    Returns:
        one token a row, its log-probability, the mass that the rules kept, and a status.

    Raises:
        ValueError: a shape or parameter is outside its range, the backend cannot run the call, or
            (on the CPU) a row holds NaN, +inf or nothing finite.
        TypeError: something else than a tensor, logits that are not floating point, a rule that is
            not a rule.
        RuntimeError: `seed=None` while a CUDA graph is captured.
    """
    if logprobs_mode not in ("processed", "raw"):
        raise ValueError(f"logprobs_mode must be 'processed' or 'raw', got {logprobs_mode!r}")
    check_logits(logits)
    listed = check_rules(rules)
    if torch.compiler.is_compiling():
        # registers the operators, so only when one is compiled
        from .library import sample_in_graph

        return sample_in_graph(
            logits,
            listed,
            temperature=temperature,
            seed=seed,
            sequence=sequence,
            step=step,
            generator=generator,
            raw=logprobs_mode == "raw",
            token_bitmask=token_bitmask,
            backend=backend,
        )
    check_bitmask(token_bitmask, logits.shape[0], logits)

    def stream() -> Noise:
        return Noise.create(
            logits.shape[0],
            seed=seed,
            sequence=sequence,
            step=step,
            generator=generator,
            device=logits.device,
        )

    if takes_triton(backend, logits, listed):
        valid = validity(listed, temperature, logits.shape[0], logits.device)
        raw = logprobs_mode == "raw"
        return _sample_triton(logits, listed, temperature, valid, stream(), raw, token_bitmask)
    logits = allowed(logits, token_bitmask)
    call = Call.create(logits, listed, temperature)
    law = _laws_of_rows(call) if logits.device.type == "cpu" else _laws_of_batch(call)
    noise = stream()
    token_ids = draw(law.weights, noise, Role.PLAIN)

    drawn = token_ids.clamp(min=0)[:, None]
    if logprobs_mode == "raw":
        levels = call.logits.to(compute_dtype(logits.dtype))
        levels = levels - levels.amax(-1, keepdim=True)
        log_total = torch.exp(levels).sum(-1, dtype=torch.float64).log()
        logprobs = levels.gather(-1, drawn)[:, 0].double() - log_total
    else:
        logprobs = law.weights.gather(-1, drawn)[:, 0].double().log() - law.kept_total.log()
    fine = law.status == OK
    return Sampled(
        torch.where(fine, token_ids, -1),
        torch.where(fine, logprobs, torch.nan).float(),
        torch.where(fine, (law.kept_total / law.total).clamp(max=1.0), torch.nan).float(),
        law.status,
    )


def _sample_triton(
    logits: Tensor,
    rules: tuple[Rule, ...],
    temperature: float | Tensor,
    valid: Tensor | None,
    noise: Noise,
    raw: bool,
    token_bitmask: Tensor | None,
) -> Sampled:
    # imports Triton, so only when a kernel is launched
    if change_temperature(rules):
        from .heated_rules import sample_heated

        drawn = sample_heated(
            logits.detach(),
            rules,
            temperature,
            noise,
            raw=raw,
            valid=valid,
            token_bitmask=token_bitmask,
        )
    else:
        from warpdraft.kernels.truncation_triton import sample_triton

        drawn = sample_triton(
            logits.detach(),
            operations_of(rules),
            temperature,
            noise,
            raw=raw,
            valid=valid,
            token_bitmask=token_bitmask,
        )
    if logits.device.type == "cpu":
        check_status(drawn.status.tolist())
    return Sampled(drawn.token_ids, drawn.logprobs, drawn.kept_mass, drawn.status)


def check(result: HasStatus) -> None:
    """ValueError naming every row of a result whose status is not 0; synchronises with the device.

    Args:
        result: what `sample` or `verify_block` returned.

    Raises:
        ValueError: some row has no token; it names every one and why.
        TypeError: the result has no status.
    """
    if not isinstance(getattr(result, "status", None), Tensor):
        raise TypeError(
            f"result must be what sample or verify_block returned, got {type(result).__name__}"
        )
    check_status(result.status.tolist())


class _Laws(NamedTuple):
    """The law of each row, relative to the largest logit of its support.

    Attributes:
        weights: `[batch, vocab]`, exp((x - max) / T) on the support, 0 outside.
        kept_total: float64 `[batch]`, the sum of the weights.
        total: float64 `[batch]`, the same sum over all finite logits.
        status: int8 `[batch]`.
    """

    weights: Tensor
    kept_total: Tensor
    total: Tensor
    status: Tensor


def _laws_of_rows(call: Call) -> _Laws:
    """The laws of a CPU batch: only the tokens of the support are weighed."""
    weights = torch.zeros_like(
        call.logits,
        dtype=compute_dtype(call.logits.dtype),
        memory_format=torch.contiguous_format,
    )
    totals, status = [], []
    for number, (row, temperature) in enumerate(call.rows()):
        status.append(row.status)
        if row.status != OK:
            totals.append((1.0, 1.0))
        elif temperature == 0:
            weights[number, row.index] = 1.0
            totals.append((1.0, 1.0))
        else:
            logits, ids = row.tokens()
            mass = torch.from_numpy(levels_of(logits, row.maximum, temperature)).exp_()
            weights[number, torch.from_numpy(ids)] = mass.to(weights.dtype)
            kept = float(mass.sum())
            # without a cut the two are one number, which the float32 sums of the row would blur
            totals.append((kept, row.whole_total(temperature) if row.restricted else kept))
    check_status(status)
    kept_total, total = torch.tensor(totals, dtype=torch.float64).reshape(-1, 2).unbind(-1)
    return _Laws(weights, kept_total, total, torch.tensor(status, dtype=torch.int8))


def _laws_of_batch(call: Call) -> _Laws:
    """The laws of a batch on any device, without synchronising."""
    resolved = call.resolve_batch()
    fine = (resolved.status == OK)[:, None]
    wide = call.logits.to(compute_dtype(call.logits.dtype)).masked_fill(~fine, 0.0)
    greedy = (call.temperature == 0)[:, None]
    # a temperature that float32 takes for 0 or inf would make NaN
    numbers = torch.finfo(wide.dtype)
    heat = resolved.temperature[:, None].clamp(numbers.tiny, numbers.max)
    heat = torch.where(fine & ~greedy, heat, 1.0).to(wide.dtype)
    inside = mask(wide, resolved.support)
    maximum = inside.amax(-1, keepdim=True)
    weights = torch.where(fine, torch.exp((inside - maximum) / heat), 0.0)
    kept_total = weights.sum(-1, dtype=torch.float64)
    total = torch.exp((wide - maximum) / heat).sum(-1, dtype=torch.float64)
    return _Laws(weights, kept_total, torch.where(greedy[:, 0], kept_total, total), resolved.status)
