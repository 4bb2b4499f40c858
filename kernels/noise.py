"""Noise with a name: every random number is a Philox word at a known counter.

    key      k0, k1 = seed, low and high 32 bits
    counter  c0 = index | depth << 24                       what is drawn, how deep in the block
             c1 = step                                      the sequence's target call
             c2 = sequence, bits 0-31                       whose row it is
             c3 = sequence, bits 32-47 | path << 16 | role << 28
    w = philox4x32_10(counter, key)[0],   v = (w + 0.5) * 2**-32,   E = -log(1 - v)

A number depends on its name only, never on the batch around it or on the order of the calls, so a
draw can be replayed; and no two uses share a name, so nothing is drawn twice from one number.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any, SupportsIndex

import torch
from torch import Tensor

from .philox import MASK, philox_numpy, philox_torch

MAX_INDEX = (1 << 24) - 1
MAX_DEPTH = (1 << 8) - 1
MAX_PATH = (1 << 12) - 1
MAX_SEQUENCE = (1 << 48) - 1
MAX_STEP = (1 << 32) - 1


class Role(IntEnum):
    """What a number decides. A draw named `X` also uses `X_SLICE = X + 1` and `X_GROUP = X + 2`."""

    DRAFT = 0
    DRAFT_SLICE = 1
    DRAFT_GROUP = 2
    RESIDUAL = 3
    RESIDUAL_SLICE = 4
    RESIDUAL_GROUP = 5
    BONUS = 6
    BONUS_SLICE = 7
    BONUS_GROUP = 8
    PLAIN = 9
    PLAIN_SLICE = 10
    PLAIN_GROUP = 11
    RANK = 12
    ACCEPT = 13
    CLOCK = 14


@dataclass(frozen=True, slots=True)
class Noise:
    """One stream of random words a row.

    Rows with the same seed, sequence and step read the same numbers, on every device.

    Attributes:
        seed: int64 `[rows]`, any value.
        sequence: int64 `[rows]` in [0, 2**48): the name of the row's text.
        step: int64 `[rows]` in [0, 2**32): its target call, never used twice.
    """

    seed: Tensor
    sequence: Tensor
    step: Tensor

    @classmethod
    def create(
        cls,
        rows: int,
        *,
        seed: int | Tensor | None = None,
        sequence: int | Tensor | None = None,
        step: int | Tensor = 0,
        generator: torch.Generator | None = None,
        device: torch.device | str,
    ) -> Noise:
        """Name the streams of `rows` rows.

        Values of host integers and of CPU tensors are checked; tensors on another device by type
        and shape only, because reading them would synchronise.

        Args:
            rows: the number of rows.
            seed: any int64, one for all rows or a tensor `[rows]`. None takes one number from
                torch's default generator, so `torch.manual_seed` replays it and two calls differ.
            sequence: int64 `[rows]` in [0, 2**48), or one integer for a single row. None takes
                the row numbers, which change with the order of the batch.
            step: in [0, 2**32), one for all rows or a tensor `[rows]`.
            generator: where a missing seed is taken from instead.
            device: where the streams are used.

        Raises:
            ValueError: a value is out of its range, a tensor has another shape, both `seed` and
                `generator` are given, or one sequence is given for several rows.
            TypeError: a value is neither an integer nor an int64 tensor, or `generator` is none.
            RuntimeError: `seed=None` while a CUDA graph is captured.
        """
        device = torch.device(device)
        if sequence is None:
            sequence = torch.arange(rows, device=device)
        elif rows > 1 and not (isinstance(sequence, Tensor) and sequence.ndim):
            one = _host("sequence", sequence, 0, MAX_SEQUENCE)
            raise ValueError(
                f"one sequence ({one}) for {rows} rows would draw the same tokens in "
                f"each; pass an int64 tensor [{rows}]"
            )
        if generator is not None and not isinstance(generator, torch.Generator):
            raise TypeError(f"generator must be a torch.Generator, got {generator!r}")
        if seed is None:
            seed = _fresh_seed(generator, device)
        elif generator is not None:
            raise ValueError("pass seed or generator, not both")
        return cls(
            _per_row("seed", seed, rows, -(1 << 63), (1 << 63) - 1, device),
            _per_row("sequence", sequence, rows, 0, MAX_SEQUENCE, device),
            _per_row("step", step, rows, 0, MAX_STEP, device),
        )

    def __len__(self) -> int:
        return self.seed.shape[0]

    def select(self, rows: Tensor) -> Noise:
        """The streams of the given rows, int64 `[n]`, in that order; a row may repeat."""
        return Noise(
            self.seed.index_select(0, rows),
            self.sequence.index_select(0, rows),
            self.step.index_select(0, rows),
        )

    def at(self, step: int | Tensor) -> Noise:
        """The same streams at another step, in [0, 2**32): one for all rows or `[rows]`."""
        return replace(self, step=_per_row("step", step, len(self), 0, MAX_STEP, self.seed.device))

    def words(
        self, role: Role, index: Tensor, *, depth: int | Tensor = 0, path: int | Tensor = 0
    ) -> Tensor:
        """The named words.

        Values on another device than the CPU, and in compiled code, are not checked: reading them would synchronise.

        Args:
            role: what the numbers decide.
            index: int64 `[rows, n]` in [0, 2**24), such as token ids.
            depth: the position in the drafted block, in [0, 255]: one, `[rows]` or `[rows, n]`.
            path: the draft path, in [0, 4095]: one, `[rows]` or `[rows, n]`.

        Returns:
            int64 `[rows, n]` in [0, 2**32).

        Raises:
            ValueError: a host integer or a CPU tensor is out of its range, or a tensor has
                another shape.
            TypeError: a tensor is not int64.
        """
        rows = len(self)
        if index.dtype != torch.int64:
            raise TypeError(f"index must be int64, got {index.dtype}")
        if index.ndim != 2 or index.shape[0] != rows:
            raise ValueError(f"index must be [{rows}, n], got {list(index.shape)}")
        _check_range("index", index, 0, MAX_INDEX)
        depth = _beside("depth", depth, index, MAX_DEPTH)
        path = _beside("path", path, index, MAX_PATH)

        names = self.seed[:, None], self.sequence[:, None], self.step[:, None], index, depth, path
        if index.device.type != "cpu" or torch.compiler.is_compiling():
            return philox_torch(*_layout(role, *names))[0]
        arrays = (name.numpy() if isinstance(name, Tensor) else name for name in names)
        return torch.from_numpy(philox_numpy(*_layout(role, *arrays))[0].astype("int64"))

    def uniform(
        self, role: Role, index: Tensor, *, depth: int | Tensor = 0, path: int | Tensor = 0
    ) -> Tensor:
        """The named uniform numbers, float64 `[rows, n]`, never 0 or 1; arguments as `words`."""
        return (self.words(role, index, depth=depth, path=path).double() + 0.5) * 2.0**-32

    def exponential(
        self, role: Role, index: Tensor, *, depth: int | Tensor = 0, path: int | Tensor = 0
    ) -> Tensor:
        """The named exponential numbers, float64 `[rows, n]`, in [2**-33, 22.9].

        The range follows from that of `uniform`: the numbers are never 0 or infinite. Arguments
        as `words`.
        """
        return -torch.log1p(-self.uniform(role, index, depth=depth, path=path))


def _layout(
    role: Role, seed: Any, sequence: Any, step: Any, index: Any, depth: Any, path: Any
) -> tuple[tuple[Any, Any, Any, Any], tuple[Any, Any]]:
    """Counter and key of the named words, for tensors and for numpy arrays."""
    counter = (
        index | (depth << 24),
        step,
        sequence & MASK,
        (sequence >> 32) | (path << 16) | (int(role) << 28),
    )
    return counter, (seed & MASK, (seed >> 32) & MASK)


def _fresh_seed(generator: torch.Generator | None, device: torch.device) -> int | Tensor:
    """One int64 from the generator, or from torch's default one."""
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "seed=None takes a number from the host's generator, which a captured CUDA graph "
            "would freeze; pass seed"
        )
    source = torch.device("cpu") if generator is None else generator.device
    # from -2**63 with no upper end: every int64 is as likely
    drawn = torch.empty((), dtype=torch.int64, device=source).random_(
        -(1 << 63), None, generator=generator
    )
    # a device is filled with a number of the host without waiting; a copy of a tensor would wait
    return int(drawn) if source.type == "cpu" else drawn


def _per_row(
    name: str, value: int | Tensor, rows: int, low: int, high: int, device: torch.device
) -> Tensor:
    """The value as int64 `[rows]` on the device, checked."""
    if not isinstance(value, Tensor):
        return torch.full((rows,), _host(name, value, low, high), device=device)
    if value.dtype != torch.int64:
        raise TypeError(f"{name} must be an int64 tensor, got {value.dtype}")
    if value.shape not in ((), (rows,)):
        raise ValueError(f"{name} must be one number or [{rows}], got {list(value.shape)}")
    _check_range(name, value, low, high)
    return value.to(device).expand(rows)


def _beside(name: str, value: int | Tensor, index: Tensor, high: int) -> int | Tensor:
    """The value in a form that broadcasts against `index` `[rows, n]`, checked."""
    if not isinstance(value, Tensor):
        return _host(name, value, 0, high)
    if value.dtype != torch.int64:
        raise TypeError(f"{name} must be an int64 tensor, got {value.dtype}")
    if value.shape not in (index.shape[:1], index.shape):
        raise ValueError(
            f"{name} must be one number, [{index.shape[0]}] or {list(index.shape)}, "
            f"got {list(value.shape)}"
        )
    _check_range(name, value, 0, high)
    return value[:, None] if value.ndim == 1 else value


def _host(name: str, value: SupportsIndex, low: int, high: int) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer or an int64 tensor, got {value!r}") from None
    if not low <= number <= high:
        # Python refuses to write very long integers out
        is_long = number.bit_length() > 128
        shown = f"one of {number.bit_length()} bits" if is_long else number
        raise ValueError(f"{name} must be in [{low}, {high}], got {shown}")
    return number


def _check_range(name: str, value: Tensor, low: int, high: int) -> None:
    """Refuse a CPU tensor with a value out of its range; reading another one would synchronise."""
    if value.device.type == "cpu" and not torch.compiler.is_compiling() and value.numel():
        for bound in value.aminmax():
            _host(name, int(bound), low, high)
