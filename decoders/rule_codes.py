"""Rules as lists of numbers and tensors, which the schema of an operator can name.

Four lists, of one entry a rule:

    operations           the rule's number in `KINDS`, plus `TIES_ALL` for ties="all"
    min_tokens_to_keep   at least 1
    numbers              the parameter where all rows share it
    parameters           None there, or a tensor `[batch]` on the device of the logits

`numbers` and `parameters` have the temperature in front, as one entry more. What is no tensor is
a constant of a compiled graph: the launches follow from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from .rules import (
    Epsilon,
    Eta,
    MinP,
    Parameter,
    PLess,
    Rule,
    TopA,
    TopH,
    TopK,
    TopNSigma,
    TopP,
    Typical,
)

KINDS: tuple[tuple[type[Rule], dict[str, Any]], ...] = (
    (TopH, {"variant": "paper"}),
    (TopH, {"variant": "transformers"}),
    (MinP, {}),
    (TopK, {}),
    (TopP, {}),
    (TopNSigma, {}),
    (Epsilon, {}),
    (Eta, {}),
    (TopA, {}),
    (PLess, {"normalized": False}),
    (PLess, {"normalized": True}),
    (Typical, {}),
)
"""The rules by their numbers, which graphs that are saved hold: new ones go to the end."""

TIES_ALL = 16


class Program(NamedTuple):
    """A temperature and rules as lists, see the module."""

    operations: list[int]
    min_tokens_to_keep: list[int]
    numbers: list[float]
    parameters: list[Tensor | None]


def encode(rules: Sequence[Rule], temperature: Parameter) -> Program:
    """The lists of a temperature and rules."""
    program = Program([], [], [], [])
    for value in (temperature, *[rule.value for rule in rules]):
        if isinstance(value, Tensor):
            program.numbers.append(0.0)
            program.parameters.append(value.detach())
        else:
            program.numbers.append(float(value))
            program.parameters.append(None)
    for rule in rules:
        program.operations.append(_number_of(rule) + (TIES_ALL if rule.ties == "all" else 0))
        program.min_tokens_to_keep.append(rule.min_tokens_to_keep)
    return program


def decode(
    operations: Sequence[int],
    min_tokens_to_keep: Sequence[int],
    numbers: Sequence[float],
    parameters: Sequence[Tensor | None],
) -> tuple[tuple[Rule, ...], Parameter]:
    """The rules and the temperature of such lists.

    Raises:
        ValueError: the lists have different lengths, a number names no rule, or a parameter is
            outside its range.
    """
    lengths = [len(operations) + 1, len(min_tokens_to_keep) + 1, len(numbers), len(parameters)]
    if len(set(lengths)) > 1:
        raise ValueError(
            "operations and min_tokens_to_keep need an entry a rule, numbers and parameters one "
            f"more for the temperature; got {lengths[0] - 1}, {lengths[1] - 1}, {lengths[2]} and "
            f"{lengths[3]}"
        )
    values = [
        number if parameter is None else parameter
        for number, parameter in zip(numbers, parameters, strict=True)
    ]
    rules = [
        _rule_of(*entry) for entry in zip(operations, min_tokens_to_keep, values[1:], strict=True)
    ]
    return tuple(rules), values[0]


def _number_of(rule: Rule) -> int:
    for number, (kind, options) in enumerate(KINDS):
        if type(rule) is kind and all(
            getattr(rule, name) == value for name, value in options.items()
        ):
            return number
    raise ValueError(f"{type(rule).__name__} has no number in warpdraft.rule_codes.KINDS")


def _rule_of(operation: int, min_tokens_to_keep: int, value: Parameter) -> Rule:
    if not 0 <= operation < 2 * TIES_ALL or operation % TIES_ALL >= len(KINDS):
        raise ValueError(f"operation {operation} is no rule, see warpdraft.rule_codes.KINDS")
    kind, options = KINDS[operation % TIES_ALL]
    ties = "all" if operation >= TIES_ALL else "lowest_id"
    fields = {**options, "ties": ties, "min_tokens_to_keep": min_tokens_to_keep}
    if kind.parameter is not None:
        is_count = kind.integer and not isinstance(value, Tensor)
        fields[kind.parameter] = int(value) if is_count else value
    return kind(**fields)
