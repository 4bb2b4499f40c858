"""Arguments that truncation and sampling share beside logits, rules and temperature."""

from __future__ import annotations

import functools
import operator

import torch
from torch import Tensor

from .abstract_rules import Rule, values_of
from .checks import check_tensor
from .parameters import Range, check_parameter, rows_of

TEMPERATURES = Range(0.0, torch.finfo(torch.float64).max)
# tokens in a word of a bitmask
WORD = 32


def check_row_indices(row_indices: Tensor | None, logits: Tensor) -> int:
    """The number of rows of a call; TypeError or ValueError unless its indices fit the logits."""
    if row_indices is None:
        return logits.shape[0]
    check_tensor("row_indices", row_indices)
    if row_indices.dtype != torch.int64:
        raise TypeError(f"row_indices must be int64, got {row_indices.dtype}")
    if row_indices.ndim != 1 or row_indices.device != logits.device:
        raise ValueError(
            f"row_indices must be [rows] on {logits.device}, "
            f"got {list(row_indices.shape)} on {row_indices.device}"
        )
    if row_indices.device.type == "cpu" and len(row_indices):
        low, high = int(row_indices.min()), int(row_indices.max())
        if low < 0 or high >= len(logits) or len(row_indices.unique()) < len(row_indices):
            raise ValueError(
                f"row_indices must be distinct numbers in [0, {len(logits) - 1}], "
                f"got {row_indices.tolist()}"
            )
    return len(row_indices)


def check_bitmask(token_bitmask: Tensor | None, rows: int, logits: Tensor) -> None:
    """TypeError or ValueError unless the bitmask has a word for every 32 tokens of every row."""
    if token_bitmask is None:
        return
    check_tensor("token_bitmask", token_bitmask)
    if token_bitmask.dtype != torch.int32:
        raise TypeError(f"token_bitmask must be int32, got {token_bitmask.dtype}")
    shape = [rows, -(-logits.shape[1] // WORD)]
    if list(token_bitmask.shape) != shape or token_bitmask.device != logits.device:
        raise ValueError(
            f"token_bitmask must be {shape} on {logits.device}, "
            f"got {list(token_bitmask.shape)} on {token_bitmask.device}"
        )
    if token_bitmask.stride(1) != 1 and shape[1] > 1:
        raise ValueError(
            "token_bitmask must have words side by side: stride 1 in its last dimension, "
            f"got {token_bitmask.stride(1)}"
        )


def check_out(out: Tensor | None, logits: Tensor) -> None:
    """TypeError or ValueError unless `out` can take the truncated logits."""
    if out is None:
        return
    check_tensor("out", out)
    same = out.shape == logits.shape and out.dtype == logits.dtype and out.device == logits.device
    if not same or (out.stride(1) != 1 and out.shape[1] > 1):
        raise ValueError(
            f"out must be {logits.dtype} {list(logits.shape)} on {logits.device} with stride 1 in "
            f"its last dimension, got {out.dtype} {list(out.shape)} on {out.device}, "
            f"stride {out.stride(1) if out.ndim == 2 else out.stride()}"
        )
    if len(out) > 1 and out.stride(0) < out.shape[1]:
        raise ValueError(f"out must have rows that do not overlap, got strides {out.stride()}")
    if not torch.compiler.is_compiling() and _overlap(out, logits):
        raise ValueError("out must be logits itself, or share no memory with it")


def _overlap(out: Tensor, logits: Tensor) -> bool:
    """Whether some row of `out` may lie in another row of the logits; no number is read."""
    if out.numel() == 0 or out.untyped_storage()._cdata != logits.untyped_storage()._cdata:
        return False
    first, second = _span(out), _span(logits)
    same_rows = len(out) == 1 or out.stride() == logits.stride()
    if first.start == second.start and same_rows:
        return False
    return first.start < second.stop and second.start < first.stop


def _span(rows: Tensor) -> range:
    """From the first element of a storage that rows `[batch, vocab]` take to the last."""
    last = sum((size - 1) * stride for size, stride in zip(rows.shape, rows.stride(), strict=True))
    return range(rows.storage_offset(), rows.storage_offset() + last + 1)


def allowed(logits: Tensor, token_bitmask: Tensor | None) -> Tensor:
    """The logits with -inf where the bitmask forbids a token."""
    if token_bitmask is None:
        return logits
    bits = torch.arange(WORD, device=logits.device, dtype=torch.int32)
    words = (token_bitmask[:, :, None] >> bits) & 1
    return logits.detach().masked_fill(words.flatten(1)[:, : logits.shape[1]] == 0, -torch.inf)


def validity(
    rules: tuple[Rule, ...], temperature: float | Tensor, rows: int, device: torch.device
) -> Tensor | None:
    """Which rows have all parameters in range, bool `[rows]`; None where numbers were checked."""
    check_parameter("temperature", temperature, TEMPERATURES)
    held = []
    if isinstance(temperature, Tensor):
        held.append(TEMPERATURES.holds_tensor(rows_of("temperature", temperature, rows, device)))
    held += [rule.validity(values_of(rule, rows, device)) for rule in rules if rule.has_tensors]
    return functools.reduce(operator.and_, held) if held else None
