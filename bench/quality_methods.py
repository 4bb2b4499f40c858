"""The methods whose quality is compared, each with the same number of settings.

A rule is swept over six values of its parameter at each of three temperatures; temperature alone is swept over
eighteen temperatures. Rules see the law at the temperature of the setting, and nothing else runs: no top-k of 50.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

    from warpdraft.rules import Rule

TEMPERATURES = (1.0, 1.5, 2.0)
GREEDY = "greedy"
TEMPERATURE = "temperature"
CORE = ("top_h", "top_h_transformers", "min_p", "top_p", TEMPERATURE)


class Setting(NamedTuple):
    """One way to draw: a method, its parameter, a temperature; 0 stands for no parameter."""

    method: str
    value: float
    temperature: float


class Method(NamedTuple):
    """One method.

    Attributes:
        label: its name in tables and figures.
        rule: makes the rule of rows from their parameters, float64 `[batch]`; None for no rule.
        values: of the parameter; (0.0,) for none.
        temperatures: each is combined with each of the values.
        is_compared: whether it has as many settings as the others; without, it is only shown.
    """

    label: str
    rule: Callable[[Tensor], Rule] | None
    values: tuple[float, ...]
    temperatures: tuple[float, ...] = TEMPERATURES
    is_compared: bool = True


def _top_h(values: Tensor) -> Rule:
    from warpdraft import TopH

    return TopH(values)


def _top_h_transformers(values: Tensor) -> Rule:
    from warpdraft import TopH

    return TopH(values, variant="transformers")


def _min_p(values: Tensor) -> Rule:
    from warpdraft import MinP

    return MinP(values)


def _top_p(values: Tensor) -> Rule:
    from warpdraft import TopP

    return TopP(values)


def _top_k(values: Tensor) -> Rule:
    from warpdraft import TopK

    return TopK(values.long())


def _top_n_sigma(values: Tensor) -> Rule:
    from warpdraft import TopNSigma

    return TopNSigma(values)


def _typical(values: Tensor) -> Rule:
    from warpdraft import Typical

    return Typical(values)


def _p_less(_: Tensor) -> Rule:
    from warpdraft import PLess

    return PLess()


# every sweep reaches from nearly greedy to nearly everything, and holds the published default
METHODS = {
    "top_h": Method("top-H, paper", _top_h, (0.1, 0.25, 0.4, 0.55, 0.7, 0.85)),
    "top_h_transformers": Method(
        "top-H, transformers", _top_h_transformers, (0.1, 0.25, 0.4, 0.6, 0.8, 1.0)
    ),
    "min_p": Method("min-p", _min_p, (0.005, 0.02, 0.05, 0.1, 0.2, 0.5)),
    "top_p": Method("top-p", _top_p, (0.1, 0.3, 0.5, 0.7, 0.9, 0.95)),
    "top_k": Method("top-k", _top_k, (2, 5, 10, 20, 50, 100)),
    "top_n_sigma": Method("top-n-sigma", _top_n_sigma, (0.3, 0.5, 0.75, 1.0, 1.5, 2.0)),
    "typical": Method("typical", _typical, (0.2, 0.4, 0.6, 0.8, 0.9, 0.95)),
    "p_less": Method("p-less", _p_less, (0.0,), is_compared=False),
    TEMPERATURE: Method(
        "temperature alone",
        None,
        (0.0,),
        # close together where the diversity changes most
        (
            0.1,
            0.2,
            0.3,
            0.4,
            0.5,
            0.55,
            0.6,
            0.65,
            0.7,
            0.75,
            0.8,
            0.85,
            0.9,
            0.95,
            1,
            1.1,
            1.25,
            1.5,
        ),
    ),
    GREEDY: Method("greedy", None, (0.0,), (0.0,), is_compared=False),
}


def settings_of(method: str) -> list[Setting]:
    """All settings of a method."""
    found = METHODS[method]
    return [
        Setting(method, float(value), float(temperature))
        for temperature in found.temperatures
        for value in found.values
    ]


def rules_of(settings: Sequence[Setting], repeats: int) -> list[Rule]:
    """The rules of `len(settings) * repeats` rows, each setting for `repeats` rows in a row.

    Args:
        settings: of one method.
        repeats: rows that share a setting.
    """
    import torch

    rule = METHODS[settings[0].method].rule
    if rule is None:
        return []
    values = torch.tensor([setting.value for setting in settings], dtype=torch.float64)
    return [rule(values.repeat_interleave(repeats))]
