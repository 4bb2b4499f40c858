"""Truncation rules as a command line names them: `top-h=0.4`, and `top-k=50+top-p=0.9` for one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from warpdraft.rules import Rule

# name -> what people read, with the parameter's place
NAMES = {
    "top-h": "top-H {} (paper)",
    "top-h-transformers": "top-H {} (transformers)",
    "min-p": "min-p {}",
    "top-p": "top-p {}",
    "top-k": "top-k {}",
    "typical": "typical {}",
    "top-n-sigma": "top-n-sigma {}",
    "epsilon": "epsilon {}",
    "eta": "eta {}",
    "top-a": "top-a {}",
    "p-less": "p-less",
}
DEFAULT_RULES = (
    "top-h=0.4",
    "top-h-transformers=0.4",
    "min-p=0.1",
    "top-p=0.9",
    "top-k=50",
    "typical=0.9",
)


@dataclass(frozen=True, slots=True)
class NamedRules:
    """Rules that run one after the other, under one name.

    Attributes:
        name: as it was asked for.
        label: for people.
        rules: in their order.
    """

    name: str
    label: str
    rules: tuple[Rule, ...]


def rules_named(text: str) -> NamedRules:
    """The rules of one `--rule`; a name without a value takes the rule's own default.

    Raises:
        ValueError: an unknown name, which lists those there are; a value that is no number or outside its range.
    """
    steps = [named_rule(part.strip()) for part in text.split("+")]
    labels, rules = zip(*steps, strict=True)
    return NamedRules(text, ", then ".join(labels), rules)


def named_rule(text: str) -> tuple[str, Rule]:
    """The label of one rule, and the rule."""
    name, equals, value = text.partition("=")
    if name not in NAMES:
        raise ValueError(f"--rule takes {', '.join(NAMES)}, got {text!r}")
    if equals and name == "p-less":
        raise ValueError(f"--rule p-less takes no value, got {text!r}")
    rule = make_rule(name, [number(text, value, whole=name == "top-k")] if equals else [])
    return label_of(rule), rule


def label_of(rule: Rule) -> str:
    """What people read for a rule that has a name here."""
    value = f"{float(rule.value):g}" if rule.parameters else ""
    variant = getattr(rule, "variant", None)
    for name, label in NAMES.items():
        default = make_rule(name, ())
        if type(default) is type(rule) and getattr(default, "variant", None) == variant:
            return label.format(value)
    raise AssertionError(f"{rule} has no name")


def make_rule(name: str, arguments: Sequence[Any]) -> Rule:
    """The rule of that name."""
    from warpdraft import Epsilon, Eta, MinP, PLess, TopA, TopH, TopK, TopNSigma, TopP, Typical

    makers: dict[str, Callable[..., Rule]] = {
        "top-h": TopH,
        "top-h-transformers": partial(TopH, variant="transformers"),
        "min-p": MinP,
        "top-p": TopP,
        "top-k": TopK,
        "typical": Typical,
        "top-n-sigma": TopNSigma,
        "epsilon": Epsilon,
        "eta": Eta,
        "top-a": TopA,
        "p-less": PLess,
    }
    return makers[name](*arguments)


def number(text: str, value: str, *, whole: bool) -> Any:
    """The value of a rule.

    Raises:
        ValueError: it is none.
    """
    try:
        return int(value) if whole else float(value)
    except ValueError:
        kind = "a whole number" if whole else "a number"
        raise ValueError(f"--rule {text.partition('=')[0]}= takes {kind}, got {text!r}") from None
