"""What calls compile and allocate, recorded without a GPU: kernels are bound to arguments, not run.

Run by test_warm_up.py in a process of its own, in which Triton does not interpret.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
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
    warmup,
)
from warpdraft.backend import operations_of
from warpdraft.kernels.configurations import CONFIGURATIONS
from warpdraft.kernels.noise import Noise
from warpdraft.kernels.truncation_triton import sample_triton, truncate_triton
from warpdraft.kernels.truncation_workspace import workspace_bytes
from warpdraft.kernels.verification_triton import verify_block_triton

BACKEND = CUDABackend(GPUTarget("cuda", 90, 32))
LISTS = {
    "none": [],
    "min-p": [MinP(0.1)],
    "top-h": [TopH(0.4)],
    "chain": [TopK(50), TopP(0.9), TopH(0.4), MinP(0.05)],
    "interval": [Typical(0.9), MinP(0.01)],
    "many-readings": [TopP(0.9), PLess(), TopNSigma(1.0), TopK(3000)],
}


@contextmanager
def recorded() -> Iterator[set[tuple[str, str]]]:
    """Kernels and the keys under which Triton compiles them, instead of launches."""
    keys = set()

    def bind(kernel, *arguments, grid, warmup, **options):
        binder = create_function_from_signature(kernel.signature, kernel.params, BACKEND)
        _, specialization, rest = binder(*arguments, **options)
        keys.add((kernel.__name__, f"{specialization} {rest}"))

    with (
        patch.object(JITFunction, "run", bind),
        patch("warpdraft.backend.interpreted", lambda: True),
        patch("warpdraft.truncation.check_status"),
        patch("warpdraft.sampling.check_status"),
    ):
        yield keys


def keys_of(call: Callable[..., object], *arguments: Any, **options: Any) -> set[tuple[str, str]]:
    with recorded() as keys:
        call(*arguments, **options)
    return keys


def call_both(logits, rules, temperature, **options):
    rows = torch.arange(len(logits) + 3)
    truncate(logits, rules, temperature=temperature, backend="triton", **options)
    # streams that begin anywhere in a tensor
    streams = {"seed": rows[3:], "sequence": rows[1:-2], "step": rows[2:-1]}
    sample(logits, rules, temperature=temperature, backend="triton", **streams, **options)


@pytest.mark.parametrize("vocab", [40, 1000, 4129, 32_000, 128_256])
@pytest.mark.parametrize("name", LISTS)
def test_a_warm_up_compiles_what_calls_of_any_batch_need(name, vocab):
    warm = keys_of(warmup, [(7, vocab)], rules=LISTS[name], device="cpu")
    assert {kernel for kernel, _ in warm} <= set(CONFIGURATIONS)
    for batch in (1, 2, 16, 17):
        logits = torch.zeros(batch, vocab)
        assert keys_of(call_both, logits, LISTS[name], 1.0) == warm


def test_a_warm_up_compiles_what_rows_with_parameters_of_their_own_need():
    def rules(batch):
        return [TopH(torch.full((batch,), 0.4)), MinP(0.1)]

    warm = keys_of(
        warmup,
        [(3, 20_001)],
        [torch.bfloat16],
        rules=rules(3),
        temperature=torch.tensor(0.5),
        token_bitmask=True,
        device="cpu",
    )
    for batch in (1, 16, 17):
        words = torch.zeros(batch, 626, dtype=torch.int32)
        logits = torch.zeros(batch, 20_001, dtype=torch.bfloat16)
        heat = torch.ones(batch)
        assert keys_of(call_both, logits, rules(batch), heat, token_bitmask=words) == warm


@pytest.mark.parametrize("vocab", [40, 20_001, 128_256])
@pytest.mark.parametrize("verifier", ["k_seq", "optimal_block"])
def test_a_warm_up_compiles_what_blocks_of_any_batch_need(verifier, vocab):
    def call(batch):
        shape = {"target": (batch, 5, vocab), "draft": (batch, 3, vocab)}
        target, draft = (torch.zeros(shape[model]) for model in shape)
        verify_block(
            target,
            draft,
            torch.zeros(batch, 2, 2, dtype=torch.int64),
            torch.tensor([[0, 1, 3], [0, 2, 4]]).repeat(batch, 1, 1),
            verifier=verifier,
            rules=[TopH(0.6)],
            seed=1,
            backend="triton",
        )

    warm = keys_of(
        warmup, [(1, vocab)], rules=[TopH(0.6)], blocks=[(2, 2)], verifier=verifier, device="cpu"
    )
    for batch in (1, 2, 16, 17):
        missing = keys_of(call, batch) - warm
        assert not missing


def test_numbers_of_a_rule_are_no_constants_of_a_kernel():
    logits = torch.zeros(2, 32_000)
    first, second = (
        keys_of(call_both, logits, [TopH(alpha)], heat) for alpha, heat in ((0.4, 1.0), (0.7, 1.3))
    )
    assert first == second


class Allocations(TorchDispatchMode):
    """The storages of all tensors that are made, as if none were freed."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, Any] = {}

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.storages[storage._cdata] = storage
        return result

    def bytes_beside(self, *tensors: torch.Tensor) -> int:
        """The bytes of all but the storages of these tensors."""
        others = {tensor.untyped_storage()._cdata for tensor in tensors}
        return sum(storage.nbytes() for key, storage in self.storages.items() if key not in others)


def bytes_of(logits, operations, *, drawn):
    """What a call allocates beside tokens, their numbers and masked logits."""
    rows = len(logits)
    noise = Noise(*(torch.empty(rows, dtype=torch.int64, device="meta") for _ in range(3)))
    out = torch.empty_like(logits)
    with recorded(), Allocations() as allocations:
        if drawn:
            found = sample_triton(logits, operations, 1.0, noise)
            others = (found.token_ids, found.logprobs, found.kept_mass)
        else:
            others = truncate_triton(logits, operations, 1.0, out=out)[:1]
    return allocations.bytes_beside(*others, logits, noise.seed, noise.sequence, noise.step)


@pytest.mark.parametrize("drawn", [False, True], ids=["truncate", "sample"])
@pytest.mark.parametrize("name", LISTS)
def test_workspace_is_a_small_share_of_the_logits(name, drawn):
    operations = operations_of(LISTS[name])
    shapes = [
        (rows, vocab, dtype)
        for rows in (1, 64)
        for vocab in (1, 33, 1000, 4097, 8193, 32_000, 128_256, 151_936, 262_144, 458_752)
        for dtype in (torch.float32, torch.bfloat16)
    ]
    for rows, vocab, dtype in [*shapes, (2, 1 << 24, torch.float32)]:
        logits = torch.empty(rows, vocab, dtype=dtype, device="meta")
        allocated = bytes_of(logits, operations, drawn=drawn)
        # the parameters and a few scalars come on top
        assert 0 <= allocated - workspace_bytes(rows, vocab, operations) <= 1024
        assert allocated <= 0.08 * logits.nbytes + 16 * 1024 * rows


@pytest.mark.parametrize("name", LISTS)
def test_workspace_of_a_block_is_a_small_share_of_both_models_logits(name):
    def empty(*shape, dtype=torch.int64):
        return torch.empty(shape, dtype=dtype, device="meta")

    for batch, paths, length in ((1, 1, 1), (3, 1, 4), (1, 2, 1), (1, 4, 4), (8, 8, 8)):
        for vocab in (33, 4097, 32_000, 128_256, 262_144):
            for dtype in (torch.float32, torch.bfloat16):
                nodes = 1 + paths * length
                target, draft = (empty(batch, nodes, vocab, dtype=dtype) for _ in range(2))
                with recorded(), Allocations() as allocations:
                    verify_block_triton(
                        target,
                        draft,
                        empty(batch, paths, length),
                        empty(batch, paths, length + 1),
                        empty(batch, paths, length, dtype=torch.bool),
                        operations_of(LISTS[name]),
                        1.0,
                        Noise(*(empty(batch) for _ in range(3))),
                        "optimal_block",
                    )
                rows = 2 * batch * nodes
                allocated = allocations.bytes_beside(target, draft)
                assert allocated <= 0.08 * (target.nbytes + draft.nbytes) + 16 * 1024 * rows
