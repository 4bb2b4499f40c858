"""Warm-up: the kernels compiled before a graph is captured or a request is served."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor

from .arguments import TEMPERATURES
from .backend import KERNEL_DTYPES
from .checks import check_device
from .parameters import Parameter, check_parameter
from .rules import Rule
from .sampling import sample
from .truncation import check_rules, truncate
from .verification import DEFAULT_VERIFIER, verify_block


def warmup(
    shapes: Iterable[tuple[int, int]],
    dtypes: Iterable[torch.dtype] = (torch.float32,),
    *,
    rules: Rule | Sequence[Rule] = (),
    temperature: float | Tensor = 1.0,
    logprobs_mode: Literal["processed", "raw"] = "processed",
    token_bitmask: bool = False,
    row_indices: bool = False,
    blocks: Iterable[tuple[int, int]] = (),
    verifier: str = DEFAULT_VERIFIER,
    device: torch.device | str = "cuda",
) -> None:
    """Compile every kernel that calls on logits of these shapes launch.

    A kernel is compiled at its first launch, which takes seconds and cannot be captured in a CUDA
    graph. What it is compiled for is the width and the dtype of the logits, the rules that have
    sums of their own, and which of the other arguments there are: one that is compiled serves every
    batch, and every number or every tensor in the place of a parameter. Logits must begin at a
    multiple of 16 bytes, as torch's allocations do, with rows one behind the other.

    Calls of `truncate` and `sample` are covered for every shape, and those of `verify_block` for
    every one of `blocks` beside it.

    Args:
        shapes: `(batch, vocab)` of the calls, both at least 1.
        dtypes: of the logits: float32, bfloat16, float16.
        rules: those of the calls, with tensors of any batch where they have tensors.
        temperature: that of the calls, likewise.
        logprobs_mode: that of the calls of `sample`.
        token_bitmask: whether the calls have a bitmask.
        row_indices: whether the calls of `truncate` have row indices.
        blocks: `(num_drafts, draft_length)` of the calls of `verify_block`, whose models share a dtype.
        verifier: theirs, "k_seq", "optimal" or "optimal_block".
        device: a GPU; or the CPU in Triton's interpreter, which has nothing to compile and runs them.

    Raises:
        ValueError: torch sees no GPU, a shape or block is not two positive ints, or the kernels
            cannot run such a call.
        TypeError: a rule is not a rule.
    """
    device = check_device("device", device)
    dtypes = _dtypes(dtypes)
    blocks = _pairs("blocks", "(num_drafts, draft_length)", blocks)
    widths = sorted({vocab for _, vocab in _pairs("shapes", "(batch, vocab)", shapes)})
    check_parameter("temperature", temperature, TEMPERATURES)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("warmup compiles kernels for a GPU, and torch sees none")
    temperature = _one_row(temperature, device)
    listed = tuple(
        rule.with_parameters([_one_row(value, device) for _, value, *_ in rule.parameters])
        for rule in check_rules(rules)
    )
    for vocab in widths:
        words = torch.full((1, -(-vocab // 32)), -1, dtype=torch.int32, device=device)
        bitmask = words if token_bitmask else None
        rows = torch.zeros(1, dtype=torch.int64, device=device) if row_indices else None
        for dtype in dtypes:
            # no launch depends on data, and no kernel on the batch
            logits = torch.zeros(1, vocab, dtype=dtype, device=device)
            truncate(
                logits,
                listed,
                temperature=temperature,
                token_bitmask=bitmask,
                row_indices=rows,
                backend="triton",
            )
            sample(
                logits,
                listed,
                temperature=temperature,
                seed=0,
                logprobs_mode=logprobs_mode,
                token_bitmask=bitmask,
                backend="triton",
            )
            for num_drafts, length in blocks:
                paths = torch.zeros(1, num_drafts, length + 1, dtype=torch.int64, device=device)
                verify_block(
                    logits[None],
                    logits[None],
                    paths[:, :, 1:],
                    paths,
                    verifier=verifier,
                    rules=listed,
                    temperature=temperature,
                    seed=0,
                    backend="triton",
                )


def _one_row(value: Parameter, device: torch.device) -> Parameter:
    """A number, or the first of a tensor as the parameter of a batch of one."""
    return value.reshape(-1)[:1].to(device) if isinstance(value, Tensor) else value


def _pairs(name: str, meaning: str, pairs: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The pairs in a list; ValueError unless each is two ints, both at least 1."""
    listed = list(pairs) if isinstance(pairs, Iterable) else [pairs]
    for pair in listed:
        if not isinstance(pair, Sequence) or [type(number) for number in pair] != [int, int]:
            raise ValueError(f"{name} must hold pairs of ints {meaning}, got {pair!r}")
        if min(pair) < 1:
            raise ValueError(f"{name} must hold pairs {meaning}, both at least 1, got {pair}")
    return listed


def _dtypes(dtypes: Iterable[torch.dtype]) -> list[torch.dtype]:
    listed = list(dtypes) if isinstance(dtypes, Iterable) else [dtypes]
    for dtype in listed:
        if dtype not in KERNEL_DTYPES:
            raise ValueError(f"dtypes must be float32, bfloat16 or float16, got {dtype!r}")
    return listed
