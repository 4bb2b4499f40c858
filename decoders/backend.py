"""The choice between plain torch and Triton that every public function offers."""

from __future__ import annotations

import functools
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
    TruncationRule,
    Typical,
)

if TYPE_CHECKING:
    from warpdraft.kernels.truncation_plan import Operation

Backend = Literal["auto", "torch", "triton"]

KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# ids of tokens are names of the noise, and counts must be exact in float32
KERNEL_VOCAB = 1 << 24
# operations of five bits in an int64; transformers' top-H is two
KERNEL_OPERATIONS = 12
KERNEL_RULES = (MinP, TopNSigma, Epsilon, Eta, TopA, PLess, TopK, TopP, TopH, Typical)


def takes_triton(
    backend: str, logits: Tensor, rules: Sequence[Rule], *, refusal: str | None = None
) -> bool:
    """Whether the kernels run a call.

    "auto" takes them for every call on a GPU (CUDA or ROCm) that they can run, and plain torch for
    all others. In Triton's interpreter they run on the CPU too, where only "triton" asks for them.

    Args:
        backend: "auto", "torch" or "triton".
        logits: `[..., vocab]`.
        rules: of the call.
        refusal: a reason of the caller's own why the kernels cannot run the call.

    Raises:
        ValueError: the name is another one, or it is "triton" and the kernels cannot run the call.
    """
    _check_name(backend)
    if backend == "torch" or (backend == "auto" and logits.device.type != "cuda"):
        return False
    reason = _why_not(logits, rules) or refusal
    if reason and backend == "triton":
        raise ValueError(f"backend='triton' cannot run this call: {reason}; use 'auto' or 'torch'")
    return reason is None


def operations_of(rules: Sequence[Rule]) -> tuple[Operation, ...]:
    """Truncation rules as the kernels' program."""
    # imports Triton, so only when a kernel is launched
    from warpdraft.kernels import prefix_score_triton as search
    from warpdraft.kernels.truncation_plan import Operation

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
        Typical: search.TYPICAL,
    }
    program = []
    for rule in rules:
        assert isinstance(rule, TruncationRule)
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
    if logits.device.type == "cuda" and not _is_served(logits.device):
        return "the GPU is older than compute capability 8.0, the least that Triton supports"
    if logits.dtype not in KERNEL_DTYPES:
        return f"the logits are {logits.dtype}, the kernels take float32, bfloat16 and float16"
    if logits.shape[-1] > KERNEL_VOCAB:
        return f"the vocabulary has {logits.shape[-1]} tokens, the kernels take {KERNEL_VOCAB}"
    steps = 0
    for rule in rules:
        if not isinstance(rule, TruncationRule):
            # between two launches
            continue
        if type(rule) not in KERNEL_RULES:
            return f"{type(rule).__name__} is none of the rules that the kernels know"
        has_head = isinstance(rule, TopH) and rule.variant == "transformers"
        steps += 2 if has_head else 1
        if has_head and rule.min_tokens_to_keep > TRANSFORMERS_HEAD:
            return (
                f"TopH(variant='transformers') has min_tokens_to_keep={rule.min_tokens_to_keep}, "
                f"over the {TRANSFORMERS_HEAD} tokens of its sums"
            )
    if steps > KERNEL_OPERATIONS:
        return f"{len(rules)} rules are {steps} operations, the kernels take {KERNEL_OPERATIONS}"
    return None


@functools.cache
def _is_served(device: torch.device) -> bool:
    """Whether Triton compiles for a GPU; every one that ROCm serves counts."""
    return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (8, 0)
