"""The choice between plain torch and Triton that every public function offers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from warpdraft.kernels._triton import interpreted, triton_available
from warpdraft.kernels.top_h import TRANSFORMERS_HEAD

from .rules import (
    Epsilon,
    Eta,
    MinP,
    PLess,
    Rule,
    TopA,
    TopH,
    TopK,
    TopNSigma,
    TopP,
    Typical,
)

if TYPE_CHECKING:
    from warpdraft.kernels.truncation_triton import Operation

Backend = Literal["auto", "torch", "triton"]

KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# ids of tokens are names of the noise, and counts must be exact in float32
KERNEL_VOCAB = 1 << 24
# a threshold rule finds its first tokens among the candidates, which hold at least 128
KERNEL_TOKENS_TO_KEEP = 127
# operations of five bits in an int64; transformers' top-H is two
KERNEL_OPERATIONS = 12


def check_backend(backend: str) -> None:
    """ValueError unless `backend` is one that plain torch serves."""
    if backend == "triton":
        raise ValueError(
            "backend='triton' is not part of this function yet: use 'auto' or 'torch', which run everywhere"
        )
    _check_name(backend)


def takes_triton(backend: str, logits: Tensor, rules: Sequence[Rule]) -> bool:
    """Whether the kernels run a call: only on request, until they have run on a chip.

    Args:
        backend: "auto", "torch" or "triton".
        logits: `[batch, vocab]`.
        rules: of the call.

    Raises:
        ValueError: the name is another one, or it is "triton" and the kernels cannot run the call.
    """
    _check_name(backend)
    if backend != "triton":
        return False
    reason = _why_not(logits, rules)
    if reason:
        raise ValueError(f"backend='triton' cannot run this call: {reason}; use 'auto' or 'torch'")
    return True


def operations_of(rules: Sequence[Rule]) -> tuple[Operation, ...]:
    """The rules as the kernels' program."""
    # imports Triton, so only when a kernel is launched
    from warpdraft.kernels import prefix_search_triton as search
    from warpdraft.kernels.truncation_triton import Operation

    codes = {
        MinP: search.MIN_P,
        TopNSigma: search.N_SIGMA,
        Epsilon: search.EPSILON,
        Eta: search.ETA,
        TopA: search.TOP_A,
        PLess: search.P_LESS,
        TopK: search.TOP_K,
        TopP: search.TOP_P,
        TopH: search.TOP_H,
    }
    program = []
    for rule in rules:
        code, keep = codes[type(rule)].value, rule.min_tokens_to_keep
        if isinstance(rule, PLess) and rule.normalized:
            code = search.P_LESS_NORMALIZED.value
        if isinstance(rule, TopH) and rule.variant == "transformers":
            # its sums run over the first 100 tokens of the support
            program.append(Operation(search.TOP_K.value, TRANSFORMERS_HEAD, 1, False))
            code = search.PARTIAL_ENTROPY.value
        program.append(Operation(code, rule.value, keep, rule.ties == "all"))
    return tuple(program)


def _check_name(backend: str) -> None:
    if backend not in get_args(Backend):
        raise ValueError(f"backend must be 'auto', 'torch' or 'triton', got {backend!r}")


def _why_not(logits: Tensor, rules: Sequence[Rule]) -> str | None:
    """Why the kernels cannot run a call; None if they can."""
    if not triton_available():
        return "Triton is not installed"
    if logits.device.type == "cpu" and not interpreted():
        return (
            "the logits are on the CPU, where kernels only run in Triton's interpreter "
            "(TRITON_INTERPRET=1, set before Triton is imported)"
        )
    if logits.device.type not in ("cpu", "cuda"):
        return f"the logits are on {logits.device}"
    if logits.dtype not in KERNEL_DTYPES:
        return f"the logits are {logits.dtype}, the kernels take float32, bfloat16 and float16"
    if logits.shape[1] > KERNEL_VOCAB:
        return f"the vocabulary has {logits.shape[1]} tokens, the kernels take {KERNEL_VOCAB}"
    steps = 0
    for rule in rules:
        steps += 2 if isinstance(rule, TopH) and rule.variant == "transformers" else 1
        if isinstance(rule, Typical):
            return "Typical keeps an interval, which the kernels do not search for"
        head = isinstance(rule, TopH) and rule.variant == "transformers"
        searched = isinstance(rule, TopH | TopK | TopP) and not head
        most = TRANSFORMERS_HEAD if head else KERNEL_TOKENS_TO_KEEP
        if rule.min_tokens_to_keep > most and not searched:
            return f"{type(rule).__name__} keeps min_tokens_to_keep={rule.min_tokens_to_keep}, over {most}"
    if steps > KERNEL_OPERATIONS:
        return f"{len(rules)} rules are {steps} operations, the kernels take {KERNEL_OPERATIONS}"
    return None
