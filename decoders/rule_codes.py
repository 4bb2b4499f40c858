"""Rules as lists of numbers and tensors, which the schema of an operator can name.

Four lists, of one entry a rule, and one more for each of its parameters but the first:

    operations           the rule's number in `KINDS`, plus `TIES_ALL` for ties="all"; then `FURTHER`
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
    NamedParameter,
    Parameter,
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
from .temperature_rules import (
    DynamicTemperature,
    EntropyDependentTemperature,
    HapoTemperature,
    TemperatureRule,
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
    (DynamicTemperature, {}),
    (EntropyDependentTemperature, {}),
    (HapoTemperature, {}),
)
"""The rules by their numbers, which graphs that are saved hold: new ones go to the end."""

TIES_ALL = 16
EXACT = 1 << 53
"""Up to here every integer is a float."""

FURTHER = 32
"""A further parameter of the rule before."""


class Program(NamedTuple):
    """A temperature and rules as lists, see the module."""

    operations: list[int]
    min_tokens_to_keep: list[int]
    numbers: list[float]
    parameters: list[Tensor | None]


def encode(rules: Sequence[Rule], temperature: Parameter) -> Program:
    """The lists of a temperature and rules."""
    program = Program([], [], [], [])
    values = [temperature]
    for rule in rules:
        own = [_exact_as_float(parameter) for parameter in rule.parameters] or [0.0]
        values += own
        operation, keep = _number_of(rule), 1
        if isinstance(rule, TruncationRule):
            operation += TIES_ALL if rule.ties == "all" else 0
            keep = rule.min_tokens_to_keep
        program.operations.extend([operation, *[FURTHER] * (len(own) - 1)])
        program.min_tokens_to_keep.extend([keep, *[1] * (len(own) - 1)])
    for value in values:
        if isinstance(value, Tensor):
            program.numbers.append(0.0)
            program.parameters.append(value.detach())
        else:
            program.numbers.append(float(value))
            program.parameters.append(None)
    return program


def _exact_as_float(parameter: NamedParameter) -> Parameter:
    """Its value; one of tokens that a float would round is more than any vocabulary has."""
    value = parameter.value
    return min(value, EXACT) if parameter.integer and isinstance(value, int) else value


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
            "operations and min_tokens_to_keep need as many entries, numbers and parameters one "
            f"more for the temperature; got {lengths[0] - 1}, {lengths[1] - 1}, {lengths[2]} and "
            f"{lengths[3]}"
        )
    values = [
        number if parameter is None else parameter
        for number, parameter in zip(numbers, parameters, strict=True)
    ]
    own: list[list[Parameter]] = []
    starts = []
    for position, operation in enumerate(operations):
        if operation != FURTHER or not own:
            own.append([])
            starts.append(position)
        own[-1].append(values[1 + position])
    rules = [
        _rule_of(operations[start], min_tokens_to_keep[start], parameters)
        for start, parameters in zip(starts, own, strict=True)
    ]
    return tuple(rules), values[0]


def _number_of(rule: Rule) -> int:
    for number, (kind, options) in enumerate(KINDS):
        if type(rule) is kind and all(
            getattr(rule, name) == value for name, value in options.items()
        ):
            return number
    raise ValueError(f"{type(rule).__name__} has no number in warpdraft.rule_codes.KINDS")


def _rule_of(operation: int, min_tokens_to_keep: int, values: Sequence[Parameter]) -> Rule:
    if not 0 <= operation < 2 * TIES_ALL or operation % TIES_ALL >= len(KINDS):
        raise ValueError(f"operation {operation} is no rule, see warpdraft.rule_codes.KINDS")
    kind, options = KINDS[operation % TIES_ALL]
    has_ties = issubclass(kind, TruncationRule)
    wanted = len(kind.accepted) if issubclass(kind, TemperatureRule) else 1
    if len(values) != wanted or (operation >= TIES_ALL and not has_ties):
        raise ValueError(
            f"operation {operation} with {len(values)} parameters is no rule: {kind.__name__} has "
            f"{wanted}{'' if has_ties else ' and no ties'}"
        )
    if issubclass(kind, TemperatureRule):
        return kind(*values)
    assert issubclass(kind, TruncationRule)
    (value,) = values
    ties = "all" if operation >= TIES_ALL else "lowest_id"
    fields = {**options, "ties": ties, "min_tokens_to_keep": min_tokens_to_keep}
    if kind.parameter is not None:
        is_count = kind.integer and not isinstance(value, Tensor)
        fields[kind.parameter] = int(value) if is_count else value
    return kind(**fields)
