"""What the library launches: calls are made without a GPU, and their kernels bound instead of run.

A new kernel or flag needs no entry of its own: it is compiled once a call of CALLS launches it. What
Triton itself takes for the key of a compilation (types, divisibility, constants) makes a variant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple, TypeAlias
from unittest.mock import patch

import torch
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend
from triton.runtime.jit import JITFunction, create_function_from_signature

from warpdraft import (
    MinP,
    PLess,
    TopH,
    TopK,
    TopNSigma,
    TopP,
    Typical,
    sample,
    truncate,
    verify_block,
)
from warpdraft.kernels.row_stats_triton import SLICE

VOCAB = 128_256
ROWS = 3
BITMASK = torch.zeros(ROWS, -(-VOCAB // 32), dtype=torch.int32)
CHAIN = (TopK(50), TopP(0.9), TopH(0.4), MinP(0.05))
WAITING = (TopK(50, ties="all"), TopP(0.9), PLess(), TopNSigma(1.0))
PATHS, LENGTH = 8, 8


class Variant(NamedTuple):
    """One compiled form of a kernel.

    Attributes:
        kernel: the function.
        name: the dtype of the logits, the flags that are set and the numbers that are constants.
        signature: the type of every argument.
        constants: the arguments that are constants, by their place.
        attributes: what Triton knows of the others, by their place.
        num_warps: warps of a program.
        elements: tokens that a program handles; None where its work does not grow with the tokens.
    """

    kernel: Any
    name: str
    signature: dict[str, str]
    constants: dict[tuple[int, ...], Any]
    attributes: dict[tuple[int, ...], Any]
    num_warps: int
    elements: int | None


def _verify(logits: torch.Tensor, verifier: str, rules: tuple[Any, ...]) -> None:
    nodes = 1 + PATHS * LENGTH
    trees = [logits.new_zeros(1, nodes, logits.shape[1]) for _ in range(2)]
    paths = torch.zeros(1, PATHS, LENGTH, dtype=torch.int64)
    node_index = torch.zeros(1, PATHS, LENGTH + 1, dtype=torch.int64)
    verify_block(
        *trees, paths, node_index, verifier=verifier, rules=rules, seed=1, backend="triton"
    )


Calls: TypeAlias = dict[str, Callable[[torch.Tensor], object]]

# by a name that says what each call is there for
QUICK: Calls = {
    "masked": lambda logits: truncate(logits, TopH(0.4), backend="triton"),
    "drawn": lambda logits: sample(logits, TopH(0.4), seed=1, backend="triton"),
}
COMMON: Calls = {
    **QUICK,
    "verified": lambda logits: _verify(logits, "k_seq", (TopH(0.4),)),
}
OTHERS: Calls = {
    "sums of supports": lambda logits: truncate(logits, WAITING, backend="triton"),
    "intervals": lambda logits: truncate(logits, (Typical(0.9), TopP(0.9)), backend="triton"),
    "everything": lambda logits: sample(
        logits,
        TopH(torch.full((ROWS,), 0.4)),
        seed=1,
        logprobs_mode="raw",
        token_bitmask=BITMASK,
        backend="triton",
    ),
    "bitmask": lambda logits: truncate(logits, MinP(0.1), token_bitmask=BITMASK, backend="triton"),
    "large vocabulary": lambda logits: truncate(
        logits.new_zeros(ROWS, 262_144), MinP(0.1), backend="triton"
    ),
    "optimal": lambda logits: _verify(logits, "optimal", ()),
    "optimal_block": lambda logits: _verify(logits, "optimal_block", CHAIN),
}


@contextmanager
def _recording(bind: Callable[..., None]) -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(patch.object(JITFunction, "run", bind))
        for name in ("interpreted", "triton_available"):
            stack.enter_context(patch(f"warpdraft.backend.{name}", lambda: True))
        for module in ("truncation", "sampling"):
            stack.enter_context(patch(f"warpdraft.{module}.check_status"))
        yield


def variants_of(calls: Calls, dtype: torch.dtype = torch.float32) -> list[Variant]:
    """What calls launch for logits of a dtype, each variant once."""
    backend = CUDABackend(GPUTarget("cuda", 90, 32))
    found: dict[tuple[str, str], Variant] = {}
    label = {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]

    def bind(kernel: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> None:
        binder = create_function_from_signature(kernel.signature, kernel.params, backend)
        bound, specialization, rest = binder(*arguments, **options)
        _, signature, constants, attributes = kernel._pack_args(
            backend, options, bound, specialization, rest
        )
        flags = {flag: options[flag] for flag in kernel.signature.parameters if flag in options}
        spelled = [label]
        spelled += [flag.lower() for flag, value in flags.items() if value is True]
        spelled += [
            f"{flag.lower()}={value}" for flag, value in flags.items() if type(value) is int
        ]
        given = {kernel.arg_names[place[0]] for place, value in constants.items() if value is None}
        variant = Variant(
            kernel,
            " ".join(spelled),
            signature,
            constants,
            attributes,
            options["num_warps"],
            SLICE.value if len(grid) == 2 else None,
        )
        found.setdefault((kernel.__name__, f"{variant.name} {sorted(given)}"), variant)

    with _recording(bind):
        for call in calls.values():
            call(torch.zeros(ROWS, VOCAB, dtype=dtype))
    return list(found.values())
