"""Rules request by request, in the batch of an engine.

Each request of a batch has a slot, rules of its own and a temperature. Requests whose rules differ
in their parameters only share one call of `truncate`, which takes the parameters as tensors. They go
to the device when requests or rows change, never in between, and nothing waits for the device.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple, SupportsIndex, cast

import torch
from torch import Tensor

from .arguments import TEMPERATURES
from .checks import check_device, check_integer
from .parameters import check_number
from .rules import Rule
from .truncation import check_logits, check_rules_of_numbers, truncate


class _Request(NamedTuple):
    rules: tuple[Rule, ...]
    temperature: float


@dataclasses.dataclass(frozen=True, slots=True)
class _Group:
    """Rows whose rules are the same but for their parameters.

    Attributes:
        rows: int64 `[rows]`, ascending: of the logits, or slots where only the device knows the rows.
        rules: with parameters `[rows]`.
        temperature: float64 `[rows]`.
    """

    rows: Tensor
    rules: tuple[Rule, ...]
    temperature: Tensor

    @classmethod
    def create(cls, requests: dict[int, _Request], device: torch.device) -> _Group:
        """The group of requests of one kind, by row."""
        rows = sorted(requests)
        columns = zip(*(requests[row].rules for row in rows), strict=True)
        rules = tuple(column[0].with_parameters(_staged(column, device)) for column in columns)
        temperature = [requests[row].temperature for row in rows]
        return cls(
            _to_device(torch.tensor(rows), device),
            rules,
            _to_device(torch.tensor(temperature, dtype=torch.float64), device),
        )

    def select(self, index: Tensor) -> _Group:
        """The rows at these places, int64 `[places]`, which may repeat."""
        return _Group(
            self.rows.index_select(0, index),
            tuple(
                rule.with_parameters(
                    [cast(Tensor, value).index_select(0, index) for _, value, *_ in rule.parameters]
                )
                for rule in self.rules
            ),
            self.temperature.index_select(0, index),
        )


class PerRequestRules:
    """The rules of every request in a batch, by slot.

    Args:
        device: where the logits will be.

    Raises:
        ValueError: torch knows no such device.
    """

    def __init__(self, device: torch.device | str) -> None:
        self._device = check_device("device", device)
        self._requests: dict[int, _Request] = {}
        self._groups: list[_Group] | None = None
        self._slots: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self._requests)

    def add(self, slot: int, rules: Rule | Sequence[Rule], temperature: float = 1.0) -> bool:
        """Put a request into a slot, in the place of any other; whether its rows will be truncated.

        Args:
            slot: at least 0.
            rules: of the request, with numbers for parameters; none leaves its rows alone.
            temperature: what the engine divides the logits by afterwards, so 1 where it has done so
                before; at 0 it takes the largest logit, which no rule needs to find.

        Raises:
            ValueError: the slot is negative, or the temperature negative or not finite.
            TypeError: the slot is no integer, a rule is not a rule, or a parameter is a tensor.
        """
        slot = _slot_of("slot", slot)
        check_number("temperature", temperature, TEMPERATURES)
        listed = check_rules_of_numbers(rules)
        truncated = bool(listed) and temperature > 0
        self._put(slot, _Request(listed, temperature) if truncated else None)
        return truncated

    def remove(self, slot: int) -> None:
        """Empty a slot, which may be empty already; errors as `add`, here and below."""
        self._put(_slot_of("slot", slot), None)

    def move(self, source: int, target: int) -> None:
        """Move a request, or nothing, over whatever is in another slot."""
        source, target = _slot_of("source", source), _slot_of("target", target)
        self._put(target, self._requests.get(source))
        if source != target:
            self._put(source, None)

    def swap(self, first: int, second: int) -> None:
        """Exchange what two slots hold."""
        first, second = _slot_of("first", first), _slot_of("second", second)
        held = self._requests.get(first), self._requests.get(second)
        self._put(second, held[0])
        self._put(first, held[1])

    def reorder(self, order: Sequence[int]) -> None:
        """Slot i takes what slot `order[i]` held; what is in no place of the order is removed.

        Args:
            order: slots, each at most once.

        Raises:
            ValueError: a slot is negative, or stands twice in the order.
            TypeError: `order` is no sequence of integers.
        """
        listed = [_slot_of("order's slot", slot) for slot in _slots_of("order", order)]
        if len(set(listed)) < len(listed):
            raise ValueError(f"order must hold different slots, got {order!r}")
        held = {new: self._requests.get(old) for new, old in enumerate(listed)}
        self._requests = {slot: request for slot, request in held.items() if request is not None}
        self._groups = None

    def apply_inplace(self, logits: Tensor, slots: Sequence[int] | Tensor | None = None) -> Tensor:
        """Write what `truncate` returns for every row that has rules, in place.

        Other rows stay as they are; on the CPU so do rows of NaN, +inf or nothing but -inf, for
        which a server must not stop.

        Args:
            logits: `[rows, vocab]`, one of `truncate`'s dtypes, the tokens of a row side by side.
            slots: the slot of every row; row i has slot i by default, and one that holds no request
                leaves its row alone. A tensor `[rows]` on the GPU is for an engine that does not
                know them on the host: every row is then truncated by every kind of rules, and
                keeps what its own kind leaves.

        Returns:
            `logits`.

        Raises:
            ValueError: the logits have another shape or device, or there is not one slot a row.
            TypeError: the logits are no tensor of these dtypes, the slots no integers.
        """
        if not self._requests:
            return logits
        check_logits(logits)
        if logits.device.type != self._device.type:
            raise ValueError(f"logits must be on {self._device}, got {logits.device}")
        if isinstance(slots, Tensor) and slots.device.type != "cpu":
            _check_device_slots(slots, logits)
            for group in self._grouped(None):
                _truncate_slots(logits, group, slots)
            return logits
        by_row = tuple(range(len(logits))) if slots is None else _slots_of("slots", slots)
        if len(by_row) != len(logits):
            raise ValueError(f"slots must be one a row, {len(logits)}, got {len(by_row)}")
        if logits.stride(1) != 1 and logits.shape[1] > 1:
            raise ValueError(
                f"logits must have stride 1 in their last dimension, got {logits.stride(1)}"
            )
        for group in self._grouped(by_row):
            _truncate_rows(logits, group)
        return logits

    def _put(self, slot: int, request: _Request | None) -> None:
        if request == self._requests.get(slot):
            return
        if request is None:
            del self._requests[slot]
        else:
            self._requests[slot] = request
        self._groups = None

    def _grouped(self, slots: tuple[int, ...] | None) -> list[_Group]:
        """The groups of a batch with these slots by row, or of the slots; kept until they change."""
        if self._groups is None or slots != self._slots:
            rows = enumerate(slots) if slots is not None else ((s, s) for s in self._requests)
            kinds: dict[tuple[object, ...], dict[int, _Request]] = {}
            for row, slot in rows:
                if request := self._requests.get(slot):
                    kind = tuple(map(_kind_of, request.rules))
                    kinds.setdefault(kind, {})[row] = request
            self._groups = [_Group.create(kind, self._device) for kind in kinds.values()]
            self._slots = slots
        return self._groups


def _slot_of(name: str, slot: SupportsIndex) -> int:
    """A slot as an int, which may be numpy's; TypeError or ValueError for anything else."""
    if isinstance(slot, bool) or not hasattr(slot, "__index__"):
        raise TypeError(f"{name} must be an int, got {slot!r}")
    number = operator.index(slot)
    check_integer(name, number, low=0)
    return number


def _slots_of(name: str, slots: Sequence[int] | Tensor) -> tuple[int, ...]:
    """Slots that the host knows, numpy's and those of CPU tensors too; TypeError for anything else."""
    try:
        return tuple(map(operator.index, slots))
    except TypeError:
        raise TypeError(f"{name} must be a sequence of ints, got {slots!r}") from None


def _check_device_slots(slots: Tensor, logits: Tensor) -> None:
    if slots.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"slots must be int32 or int64, got {slots.dtype}")
    if slots.shape != logits.shape[:1] or slots.device != logits.device:
        raise ValueError(
            f"slots must be [{len(logits)}] on {logits.device}, "
            f"got {list(slots.shape)} on {slots.device}"
        )


def _truncate_rows(logits: Tensor, group: _Group) -> None:
    if logits.device.type == "cpu":
        lawful = logits.amax(-1).isfinite().index_select(0, group.rows)
        if not lawful.all():
            group = group.select(lawful.nonzero().flatten())
    truncate(
        logits,
        group.rules,
        temperature=group.temperature,
        # saves copies where the rows are all rows
        row_indices=None if len(group.rows) == len(logits) else group.rows,
        out=logits,
    )


def _truncate_slots(logits: Tensor, group: _Group, slots: Tensor) -> None:
    """The same for rows whose slots only the device knows: those of other groups keep their logits."""
    nearest = torch.searchsorted(group.rows, slots.long()).clamp_(max=len(group.rows) - 1)
    by_row = group.select(nearest)
    truncated = truncate(logits, by_row.rules, temperature=by_row.temperature)
    logits.copy_(torch.where((by_row.rows == slots)[:, None], truncated, logits))


def _kind_of(rule: Rule) -> tuple[object, ...]:
    """The class of a rule and its choices: equal for rules that one call can take together."""
    parameters = {parameter.name for parameter in rule.parameters}
    fields = dataclasses.fields(cast(Any, rule))
    choices = (getattr(rule, field.name) for field in fields if field.name not in parameters)
    return type(rule), *choices


def _staged(column: Sequence[Rule], device: torch.device) -> list[Tensor]:
    """The parameters of one rule, row by row."""
    staged = []
    for rows in zip(*(rule.parameters for rule in column), strict=True):
        dtype = torch.int64 if rows[0].integer else torch.float64
        values = torch.tensor([parameter.value for parameter in rows], dtype=dtype)
        staged.append(_to_device(values, device))
    return staged


def _to_device(values: Tensor, device: torch.device) -> Tensor:
    """A copy that the host does not wait for."""
    if device.type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)
