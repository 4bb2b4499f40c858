"""The rules of one request, by the names that its client sends to an engine.

    {"top_h": 0.4}                                  one rule
    {"top_h": 0.4, "top_h_variant": "transformers"} with an option
    {"rules": [{"top_k": 50}, {"top_h": 0.4}]}      several, in this order
    {"rules": '[{"top_k": 50}, {"top_h": 0.4}]'}    the same as JSON, for fields that take no lists
    {"p_less": true}                                the rule that has no parameter
    {"dynamic_temperature": [0.5, 1.5]}             several parameters, of which the last may be left out

Names that are none of ours belong to somebody else, except inside `rules`.
"""

from __future__ import annotations

import dataclasses
import json
import reprlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

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
from .temperature_rules import DynamicTemperature, EntropyDependentTemperature, HapoTemperature

RULES: dict[str, type[Rule]] = {
    "top_h": TopH,
    "top_k": TopK,
    "top_p": TopP,
    "min_p": MinP,
    "typical_p": Typical,
    "epsilon_cutoff": Epsilon,
    "eta_cutoff": Eta,
    "top_n_sigma": TopNSigma,
    "top_a": TopA,
    "p_less": PLess,
    "dynamic_temperature": DynamicTemperature,
    "entropy_dependent_temperature": EntropyDependentTemperature,
    "hapo_temperature": HapoTemperature,
}
OPTIONS = {
    "ties": "ties",
    "min_tokens_to_keep": "min_tokens_to_keep",
    "top_h_variant": "variant",
    "p_less_normalized": "normalized",
}
"""The field of a rule that each option sets; the options of one rule begin with its name."""

COMMON_OPTIONS = frozenset({"ties", "min_tokens_to_keep"})
EXAMPLE = '{"top_h": 0.4}'

# what the kernels take in one call
MOST_RULES = 12
# the largest vocabulary; larger numbers say nothing and do not fit a tensor
MOST_TOKENS = 1 << 24


def rules_of_request(parameters: Mapping[str, object] | None) -> tuple[Rule, ...]:
    """The rules that a request asks for, in their order; none where it asks for none.

    Args:
        parameters: by name, see the module; None counts as absent, of a value too.

    Returns:
        the rules with numbers for parameters.

    Raises:
        ValueError: a value is outside its range or of the wrong type, an option has no rule, or
            several rules come without an order. One line that names the parameter.
    """
    if parameters is not None and not isinstance(parameters, Mapping):
        raise ValueError(
            f"parameters must be a mapping such as {EXAMPLE}, got {reprlib.repr(parameters)}"
        )
    given = {name: value for name, value in (parameters or {}).items() if value is not None}
    listed = given.pop("rules", None)
    ours = {name: value for name, value in given.items() if name in RULES or name in OPTIONS}
    if listed is None:
        # options of all rules have names that others may use too
        return _rule_of(ours) if ours.keys() - COMMON_OPTIONS else ()
    if ours:
        raise ValueError(f"{', '.join(ours)} must stand inside rules, where the order is stated")
    return tuple(rule for entry in _entries(listed) for rule in _rule_of(entry))


def _entries(listed: object) -> Sequence[Mapping[str, object]]:
    """The entries of `rules`, each a mapping of known names."""
    if isinstance(listed, str):
        try:
            listed = json.loads(listed)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"rules is not JSON: {error}") from None
    if not isinstance(listed, list | tuple) or len(listed) > MOST_RULES:
        raise ValueError(
            f"rules must be a list of at most {MOST_RULES} entries such as {EXAMPLE}, "
            f"got {reprlib.repr(listed)}"
        )
    for entry in listed:
        if not isinstance(entry, Mapping) or not entry:
            raise ValueError(
                f"rules must hold entries such as {EXAMPLE}, got {reprlib.repr(entry)}"
            )
        unknown = [name for name in entry if name not in RULES and name not in OPTIONS]
        if unknown:
            raise ValueError(
                f"rules has no {reprlib.repr(unknown[0])}; its names are "
                f"{', '.join([*RULES, *OPTIONS])}"
            )
    return listed


def _rule_of(entry: Mapping[str, object]) -> tuple[Rule, ...]:
    """The rule of an entry; none where a rule without a parameter is switched off."""
    names = [name for name in entry if name in RULES]
    if not names:
        raise ValueError(f"{', '.join(entry)} without a rule, such as {EXAMPLE}")
    if len(names) > 1:
        raise ValueError(f'{", ".join(names)} without an order: give "rules": [{EXAMPLE}, ...]')
    (name,) = names
    rule, value = RULES[name], entry[name]
    if not issubclass(rule, TruncationRule):
        return (_rule_of_list(name, value, entry),)
    fields = {OPTIONS[option]: entry[option] for option in entry if option in OPTIONS}
    for option in entry:
        if option in OPTIONS and option not in COMMON_OPTIONS and not option.startswith(name):
            raise ValueError(f"{option} is no option of {name}")
    if "normalized" in fields:
        fields["normalized"] = _flag("p_less_normalized", fields["normalized"])
    if rule.parameter is not None:
        fields[rule.parameter] = value
    elif not _flag(name, value):
        return ()
    for field, number in fields.items():
        if isinstance(number, int) and number > MOST_TOKENS:
            raise ValueError(f"{name}: {field} must be at most {MOST_TOKENS}, got a larger number")
    try:
        return (cast(Callable[..., Rule], rule)(**fields),)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: {error}") from None


def _rule_of_list(name: str, value: object, entry: Mapping[str, object]) -> Rule:
    """The rule whose parameters are a list, or one number, and that has no options."""
    for option in entry:
        if option in OPTIONS:
            raise ValueError(f"{option} is no option of {name}")
    fields = dataclasses.fields(cast(Any, RULES[name]))
    needed = sum(field.default is dataclasses.MISSING for field in fields)
    values = list(value) if isinstance(value, list | tuple) else [value]
    if not needed <= len(values) <= len(fields):
        raise ValueError(
            f"{name} must be a list of {', '.join(field.name for field in fields)}, at least the "
            f"first {needed}, got {reprlib.repr(value)}"
        )
    for field, number in zip(fields, values, strict=False):
        if isinstance(number, int) and abs(number) > MOST_TOKENS:
            raise ValueError(f"{name}: {field.name} must be at most {MOST_TOKENS} in magnitude")
    try:
        return cast(Callable[..., Rule], RULES[name])(*values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: {error}") from None


def _flag(name: str, value: object) -> bool:
    """A boolean, which some engines hand over as 0 or 1."""
    if not isinstance(value, int) or value not in (0, 1):
        is_long = isinstance(value, int) and value.bit_length() > 128
        shown = "a longer integer" if is_long else reprlib.repr(value)
        raise ValueError(f"{name} must be true or false, got {shown}")
    return bool(value)
