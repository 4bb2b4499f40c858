"""What every provider of the benchmark offers: a call for a kernel, and the law that it claims to follow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from warpdraft.bench.throughput.inputs import Inputs
from warpdraft.bench.throughput.kernels import Kernel
from warpdraft.rules import Rule

BASELINE_BAND = 1e-3
"""Nats by which a baseline's bound may be off: float32 sums over a whole row, one after another."""


class NotMeasured(Exception):
    """Why a provider cannot run a kernel here; its line of the table says so."""


@dataclass(frozen=True, slots=True)
class Call:
    """One way of running a kernel.

    Attributes:
        run: from the inputs to masked logits, token ids, a `Sampled` or a `VerifiedBlock`; it may
            change the logits that it is given.
        rules: the law that it follows, not always the kernel's: transformers' top-H is a rule of its own.
        any_ties: whether it may keep other tokens of the last group of equal logits, or more of them.
        canonical: whether its draws are the library's own, to be compared token by token.
        band: nats by which its bound may be off.
        note: for the table.
    """

    run: Callable[[Any], object]
    rules: tuple[Rule, ...] = ()
    any_ties: bool = True
    canonical: bool = False
    band: float = BASELINE_BAND
    note: str = field(default="")


class Provider(Protocol):
    """A family of kernels."""

    @property
    def name(self) -> str:
        """On the command line and in the table."""
        ...

    def prepare(self, kernel: Kernel, inputs: Inputs, most_kept: int) -> Call | None:
        """The call for a kernel on inputs like these.

        Args:
            kernel: what to run.
            inputs: rows or a block, which stay as they are.
            most_kept: the largest number of tokens that a row keeps.

        Returns:
            None where the provider has no such kernel.

        Raises:
            NotMeasured: it has one, which cannot run here.
        """
        ...
