"""The library's own kernels: Triton on a GPU, plain torch elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import warpdraft
from warpdraft.backend import Backend
from warpdraft.bench.throughput.inputs import Block, Inputs, Rows
from warpdraft.bench.throughput.kernels import Kernel
from warpdraft.bench.throughput.reference import BAND
from warpdraft.kernels._triton import interpreted

from .provider import Call

SEED = 20_261_123


def backend_of(logits: Tensor) -> Backend:
    """Triton on a GPU and in Triton's interpreter, else plain torch."""
    return "triton" if logits.device.type == "cuda" or interpreted() else "torch"


class Library:
    """`warpdraft.sample`, `truncate` and `verify_block`."""

    name = "warpdraft"

    def prepare(self, kernel: Kernel, inputs: Inputs, most_kept: int) -> Call | None:
        """The public functions, with noise that is already on the device."""
        logits = inputs.logits if isinstance(inputs, Rows) else inputs.target_logits
        backend = backend_of(logits)
        # numbers from the host would be copied at every call, which a graph cannot hold
        seed = torch.full((len(logits),), SEED, device=logits.device)
        sequence = torch.arange(len(logits), device=logits.device)
        step = torch.zeros_like(sequence)
        heat = kernel.temperature

        def sample(rows: Rows) -> object:
            return warpdraft.sample(
                rows.logits,
                kernel.rules,
                temperature=heat,
                seed=seed,
                sequence=sequence,
                step=step,
                backend=backend,
            )

        def truncate(rows: Rows) -> object:
            return warpdraft.truncate(rows.logits, kernel.rules, temperature=heat, backend=backend)

        def verify(block: Block) -> object:
            return warpdraft.verify_block(
                block.target_logits,
                block.draft_logits,
                block.draft_token_ids,
                block.node_index,
                verifier=kernel.verifier,
                rules=kernel.rules,
                temperature=heat,
                seed=seed,
                sequence=sequence,
                step=step,
                backend=backend,
            )

        runs: dict[str, Callable[[Any], object]] = {
            "tokens": sample,
            "logits": truncate,
            "block": verify,
        }
        run = runs[kernel.output]
        return Call(run, kernel.rules, any_ties=False, canonical=True, band=BAND)
