"""What the profiler times: the kernels by name, and the cells of its table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from warpdraft import MinP, TopH, TopK, TopP
from warpdraft.rules import Rule

Output = Literal["tokens", "logits", "block"]

NUM_DRAFTS = 8
DRAFT_LENGTH = 8

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class Kernel:
    """One operation of the table.

    Attributes:
        name: on the command line.
        output: a token a row, masked logits, or a verified block.
        rules: in their order.
        temperature: of the rules.
        rows: the kind of rows that it is meant for.
        verifier: of a block.
    """

    name: str
    output: Output
    rules: tuple[Rule, ...] = ()
    temperature: float = 1.0
    rows: str = "llm"
    verifier: str = ""

    @property
    def law(self) -> str:
        """The rules and the temperature, for the table."""
        if self.output == "block":
            return f'"{self.verifier}", K = {NUM_DRAFTS}, L = {DRAFT_LENGTH}'
        listed = ", ".join(f"{type(rule).__name__}({rule.value:g})" for rule in self.rules)
        return listed if self.temperature == 1 else f"{listed} at T = {self.temperature:g}"


FOUR_RULES = (TopK(50), TopP(0.9), TopH(0.4), MinP(0.05))

KERNELS = {
    kernel.name: kernel
    for kernel in (
        Kernel("top-h", "tokens", (TopH(0.4),)),
        Kernel("top-h-mask", "logits", (TopH(0.4),)),
        Kernel("min-p", "tokens", (MinP(0.1),)),
        Kernel("min-p-mask", "logits", (MinP(0.1),)),
        Kernel("four-rules", "tokens", FOUR_RULES),
        Kernel("top-h-hot", "tokens", (TopH(0.4),), temperature=2.0, rows="flat"),
        Kernel("top-p", "tokens", (TopP(0.9),)),
        Kernel("top-p-mask", "logits", (TopP(0.9),)),
        Kernel("top-k", "tokens", (TopK(50),)),
        Kernel("top-k-mask", "logits", (TopK(50),)),
        Kernel("k-seq", "block", verifier="k_seq"),
        Kernel("optimal", "block", verifier="optimal"),
        Kernel("optimal-block", "block", verifier="optimal_block"),
    )
}


@dataclass(frozen=True, slots=True)
class Cell:
    """A kernel on one shape of rows.

    Attributes:
        kernel: what is timed.
        rows: a name in `warpdraft.bench.rows.GENERATORS`.
        vocab: tokens in a row.
        batch: rows, or blocks.
        dtype: a name in `DTYPES`.
        seed: of the rows.
    """

    kernel: Kernel
    rows: str
    vocab: int
    batch: int
    dtype: str
    seed: int = 0

    def __str__(self) -> str:
        return f"{self.kernel.name}, {self.rows} rows, {self.batch} x {self.vocab:,} {self.dtype}"
