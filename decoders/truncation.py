"""Truncation: the rules in their order, and the logits that are left."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor

from warpdraft.kernels.entropy_temperature import rescaled
from warpdraft.kernels.row_stats import Row
from warpdraft.kernels.support import (
    BAD_PARAMETER,
    EMPTY,
    NAN,
    OK,
    POSITIVE_INFINITY,
    STATUS_MESSAGES,
    Support,
    compute_dtype,
    mask,
)
from warpdraft.kernels.top_k import top_k_reference

from .abstract_rules import Rule, TruncationRule, values_of
from .arguments import (
    TEMPERATURES,
    allowed,
    check_bitmask,
    check_out,
    check_row_indices,
    validity,
)
from .backend import Backend, operations_of, takes_triton
from .checks import check_tensor
from .parameters import check_parameter, rows_of
from .temperature_rules import TemperatureRule, change_temperature

LOGITS_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@dataclass(frozen=True, slots=True)
class Resolved:
    """The supports of a batch.

    Attributes:
        support: what the rules keep of each row; nothing where `status` is not 0.
        status: int8 `[batch]`, see `warpdraft.kernels.support`: 0 is fine.
        temperature: float64 `[batch]`, that of the draw: of the call, unless a rule has changed it.
    """

    support: Support
    status: Tensor
    temperature: Tensor


def truncate(
    logits: Tensor,
    rules: Rule | Sequence[Rule],
    *,
    temperature: float | Tensor = 1.0,
    token_bitmask: Tensor | None = None,
    row_indices: Tensor | None = None,
    out: Tensor | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """The logits with -inf outside the support that the rules leave.

    Where a rule changes the temperature, the logits that are left are spread about the largest of
    their row, so that dividing by `temperature` still gives the law of the rules. They are rounded
    to their dtype: hand over float32 where that matters.

    Args:
        logits: `[batch, vocab]` float32, bfloat16, float16 or float64, any strides.
        rules: applied in order, each on the law renormalised to the support so far, at the
            temperature so far.
        temperature: at least 0, a number or a tensor `[batch]`; the rules see `logits /
            temperature`, 0 keeps the lowest token id with the largest logit.
        token_bitmask: int32 `[rows, ceil(vocab / 32)]`, token i allowed where bit i % 32 of word
            i // 32 is 1: the layout of xgrammar and vLLM. Other tokens count as -inf.
        row_indices: int64 `[rows]`, each at most once: truncate these rows only, to which the
            parameters and the bitmask belong. The other rows stay as they are in `out`.
        out: where to write, like `logits`, rows side by side or further apart; `logits` itself truncates in
            place, anything else shares no memory with it.
        backend: "torch" takes plain torch; "triton" the kernels, which no chip has run yet, on a GPU
            or in Triton's interpreter; "auto" the kernels for calls on a GPU that they can run.

    Returns:
        `out`, or a new tensor like `logits`, not divided by the temperature; on a GPU a row without a law is all
        -inf.

    Raises:
        ValueError: a shape or parameter is outside its range, the backend cannot run the call, or
            (on the CPU) a row holds NaN, +inf or nothing finite.
        TypeError: something else than a tensor, logits that are not floating point, a rule that is
            not a rule.
    """
    check_logits(logits)
    listed = check_rules(rules)
    if torch.compiler.is_compiling():
        # registers the operators, so only when one is compiled
        from .library import truncate_in_graph

        return truncate_in_graph(
            logits,
            listed,
            temperature=temperature,
            token_bitmask=token_bitmask,
            row_indices=row_indices,
            out=out,
            backend=backend,
        )
    rows = check_row_indices(row_indices, logits)
    check_bitmask(token_bitmask, rows, logits)
    check_out(out, logits)
    if takes_triton(backend, logits, listed):
        return _truncate_triton(logits, listed, temperature, token_bitmask, row_indices, out)
    if row_indices is None:
        truncated = _truncate(allowed(logits, token_bitmask), listed, temperature)
        return truncated if out is None else out.copy_(truncated)
    chosen = allowed(logits.detach().index_select(0, row_indices), token_bitmask)
    if out is None:
        out = logits.detach().clone()
    return out.index_copy_(0, row_indices, _truncate(chosen, listed, temperature))


def _truncate_triton(
    logits: Tensor,
    rules: tuple[Rule, ...],
    temperature: float | Tensor,
    token_bitmask: Tensor | None,
    row_indices: Tensor | None,
    out: Tensor | None,
) -> Tensor:
    # imports Triton, so only when a kernel is launched
    if change_temperature(rules):
        from .heated_rules import truncate_heated

        truncated, status = truncate_heated(
            logits.detach(),
            rules,
            temperature,
            token_bitmask=token_bitmask,
            row_indices=row_indices,
            out=out,
        )
    else:
        from warpdraft.kernels.truncation_triton import truncate_triton

        rows = len(logits) if row_indices is None else len(row_indices)
        truncated, status = truncate_triton(
            logits.detach(),
            operations_of(rules),
            temperature,
            valid=validity(rules, temperature, rows, logits.device),
            token_bitmask=token_bitmask,
            row_indices=row_indices,
            out=out,
        )
    if logits.device.type == "cpu":
        check_status(status.tolist())
    return truncated


def _truncate(logits: Tensor, rules: tuple[Rule, ...], temperature: float | Tensor) -> Tensor:
    """The plain-torch form: row after row on the CPU, all rows at once elsewhere."""
    call = Call.create(logits, rules, temperature)
    if logits.device.type != "cpu":
        resolved = call.resolve_batch()
        truncated = mask(logits, resolved.support)
        return call.respread(truncated, resolved.temperature)
    truncated = _nothing_kept(logits)
    status, heats = [], []
    for number, (row, heat) in enumerate(call.rows()):
        status.append(row.status)
        heats.append(heat)
        if row.status == OK:
            row.write(truncated[number])
    check_status(status)
    return call.respread(truncated, torch.tensor(heats, dtype=torch.float64))


def resolve(
    logits: Tensor, rules: Rule | Sequence[Rule], *, temperature: float | Tensor = 1.0
) -> Resolved:
    """The support of every row; what `truncate` and `sample` share.

    Rows that cannot be resolved get a status and an empty support, never an exception.

    Args:
        logits: `[batch, vocab]` float32, bfloat16, float16 or float64, any strides.
        rules: applied in order, each on the law renormalised to the support so far.
        temperature: at least 0, a number or a tensor `[batch]`.

    Returns:
        supports, statuses and temperatures, one a row, on the device of the logits.

    Raises:
        ValueError: a shape or host parameter is outside its range.
        TypeError: something else than a tensor, logits that are not floating point, a rule that is
            not a rule.
    """
    call = Call.create(logits, rules, temperature)
    return call.resolve_rows() if logits.device.type == "cpu" else call.resolve_batch()


def check_status(status: Sequence[int]) -> None:
    """ValueError naming every row whose status is not 0."""
    problems = [
        f"row {number} {STATUS_MESSAGES[code]}" for number, code in enumerate(status) if code != OK
    ]
    if problems:
        raise ValueError("logits cannot be sampled from: " + "; ".join(problems))


def check_logits(logits: Tensor) -> None:
    """TypeError or ValueError unless `logits` is `[batch, vocab]` with a supported dtype."""
    check_logits_dtype("logits", logits)
    if logits.ndim != 2:
        raise ValueError(f"logits must have shape [batch, vocab], got {list(logits.shape)}")
    if logits.shape[1] == 0:
        raise ValueError(
            "logits have an empty vocabulary: they must have shape [batch, vocab] with vocab >= 1, "
            f"got {list(logits.shape)}"
        )


def check_logits_dtype(name: str, logits: Tensor) -> None:
    """TypeError unless `logits` is a tensor of a supported dtype."""
    check_tensor(name, logits)
    if logits.dtype not in LOGITS_DTYPES:
        raise TypeError(f"{name} must be float32, bfloat16, float16 or float64, got {logits.dtype}")


def check_rules(rules: Rule | Sequence[Rule]) -> tuple[Rule, ...]:
    """The rules as a tuple; TypeError for anything that is neither a truncation nor a temperature rule."""
    is_list = isinstance(rules, Sequence) and not isinstance(rules, str)
    listed = tuple(cast(Sequence[Rule], rules)) if is_list else (cast(Rule, rules),)
    for rule in listed:
        if not isinstance(rule, TruncationRule | TemperatureRule):
            raise TypeError(
                "rules must be truncation rules such as TopH(0.4), or temperature rules, "
                f"got {rule!r}"
            )
    return listed


def check_rules_of_all_rows(rules: Rule | Sequence[Rule]) -> tuple[Rule, ...]:
    """The same for generations, whose laws are asked for other rows than those of the batch.

    Raises:
        ValueError: a parameter is a tensor `[batch]`.
    """
    listed = check_rules(rules)
    for rule in listed:
        for name, value, *_ in rule.parameters:
            if isinstance(value, Tensor) and value.ndim > 0:
                raise ValueError(
                    f"{name} must be one number for all rows of a generation, "
                    f"got a tensor {list(value.shape)}"
                )
    return listed


def check_rules_of_numbers(rules: Rule | Sequence[Rule]) -> tuple[Rule, ...]:
    """The same for callers whose rows come and go: TypeError where a parameter is a tensor."""
    listed = check_rules(rules)
    for rule in listed:
        if rule.has_tensors:
            raise TypeError(f"the parameters of these rules must be numbers, got {rule!r}")
    return listed


@dataclass(frozen=True, slots=True)
class Call:
    """The checked arguments of one call.

    Attributes:
        logits: `[batch, vocab]`, without gradient.
        rules: in their order.
        temperature: `[batch]` float64.
        values: the parameters of each rule, `[batch]` float64.
        valid: bool `[batch]`, whether temperature and parameters lie in their ranges.
    """

    logits: Tensor
    rules: tuple[Rule, ...]
    temperature: Tensor
    values: tuple[tuple[Tensor, ...], ...]
    valid: Tensor

    @classmethod
    def create(
        cls, logits: Tensor, rules: Rule | Sequence[Rule], temperature: float | Tensor
    ) -> Call:
        """Check the arguments of `truncate` and `sample`; see there for the errors."""
        check_logits(logits)
        listed = check_rules(rules)
        check_parameter("temperature", temperature, TEMPERATURES)
        batch, device = logits.shape[0], logits.device
        heat = rows_of("temperature", temperature, batch, device)
        values = tuple(values_of(rule, batch, device) for rule in listed)
        valid = TEMPERATURES.holds_tensor(heat)
        for rule, own in zip(listed, values, strict=True):
            if rule.has_tensors:
                valid = valid & rule.validity(own)
        return cls(logits.detach(), listed, heat, values, valid)

    def rows(self) -> Iterator[tuple[Row, float]]:
        """The rows of a CPU batch, each narrowed by the rules, and the temperature of its draw.

        One row at a time stays in the cache.
        """
        dtype = compute_dtype(self.logits.dtype)
        numbers = [value for own in self.values for value in own]
        parameters = torch.stack([self.temperature, *numbers], dim=-1).tolist()
        counts = [len(own) for own in self.values]
        for logits, valid, (temperature, *values) in zip(
            self.logits, self.valid.tolist(), parameters, strict=True
        ):
            row = Row(logits.to(dtype).contiguous().numpy())
            if not valid:
                row.status = BAD_PARAMETER
            elif row.status == OK and temperature == 0:
                row.narrow(row.maximum, row.argmax())
            elif row.status == OK:
                start = 0
                for rule, count in zip(self.rules, counts, strict=True):
                    own = values[start : start + count]
                    temperature = rule.apply_row(row, temperature, own)
                    start += count
            yield row, temperature

    def resolve_rows(self) -> Resolved:
        """The supports of a CPU batch, row after row."""
        found = [(row.value, row.index, row.upper, row.status, heat) for row, heat in self.rows()]
        columns = zip(*found, strict=True) if found else ((), (), (), (), ())
        value, index, upper, status, heat = columns
        dtype = compute_dtype(self.logits.dtype)
        support = Support(
            torch.tensor(value, dtype=dtype),
            torch.tensor(index, dtype=torch.int64),
            torch.tensor(upper, dtype=dtype),
        )
        temperature = torch.tensor(heat, dtype=torch.float64)
        return _without_law(support, torch.tensor(status, dtype=torch.int8), temperature)

    def resolve_batch(self) -> Resolved:
        """The supports of a batch on any device, all rows at once, without synchronising."""
        maximum = self.logits.amax(-1)
        status = torch.full_like(maximum, OK, dtype=torch.int8)
        status = status.masked_fill(maximum == -torch.inf, EMPTY)
        status = status.masked_fill(maximum == torch.inf, POSITIVE_INFINITY)
        status = status.masked_fill(maximum.isnan(), NAN)
        status = status.masked_fill(~self.valid, BAD_PARAMETER)

        greedy = self.temperature == 0
        # rows without a law and greedy rows follow the others through the rules
        logits = self.logits.masked_fill((status != OK)[:, None], 0.0)
        heat = torch.where(self.valid & ~greedy, self.temperature, 1.0)
        support = Support.everything(logits)
        for rule, own in zip(self.rules, self.values, strict=True):
            support, heat = rule.apply(logits, support, heat, own)

        argmax = top_k_reference(logits, Support.everything(logits), torch.ones_like(heat))
        support = Support(
            torch.where(greedy, argmax.value.to(support.value.dtype), support.value),
            torch.where(greedy, argmax.index, support.index),
            torch.where(greedy, torch.inf, support.upper),
        )
        return _without_law(support, status, torch.where(greedy, 0.0, heat))

    def respread(self, truncated: Tensor, temperature: Tensor) -> Tensor:
        """Truncated logits whose law at the temperature of the call is that of the rules.

        Args:
            truncated: `[batch, vocab]`.
            temperature: float64 `[batch]`, that of the draw.
        """
        if not change_temperature(self.rules):
            return truncated
        greedy = self.temperature == 0
        return rescaled(truncated, torch.where(greedy, 1.0, self.temperature / temperature))


def _nothing_kept(logits: Tensor) -> Tensor:
    """A contiguous CPU tensor like `logits`, full of -inf.

    NumPy asks for huge pages and torch does not: filling 64 rows of 262,144 logits, which is mostly
    page faults, took 12 ms instead of 30.
    """
    words = np.empty(logits.shape, np.dtype(f"i{logits.element_size()}"))
    return torch.from_numpy(words).view(logits.dtype).fill_(-torch.inf)


def _without_law(support: Support, status: Tensor, temperature: Tensor) -> Resolved:
    """The supports, empty where the status is not 0; the temperature is 1 there."""
    fine = status == OK
    return Resolved(
        Support(
            torch.where(fine, support.value, torch.inf),
            torch.where(fine, support.index, -1),
            torch.where(fine, support.upper, -torch.inf),
        ),
        status,
        torch.where(fine, temperature, 1.0),
    )
