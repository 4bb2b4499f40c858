"""Decoding strategies for LLM inference engines: exact truncation and multi-draft speculation.

    import warpdraft
    from warpdraft import MinP, TopH

    masked = warpdraft.truncate(logits, [TopH(0.4)], temperature=1.5)
    drawn = warpdraft.sample(logits, [MinP(0.1)], temperature=1.0, seed=7)

The plugins of the engines live in `warpdraft.integrations.<engine>`.
"""

from __future__ import annotations

from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .acceptance import optimal_acceptance
    from .adaptive_shape import AdaptiveShape
    from .first_layers import FirstLayers
    from .prompt_lookup import PromptLookup
    from .rules import Epsilon, Eta, MinP, PLess, TopA, TopH, TopK, TopNSigma, TopP, Typical
    from .sampling import check, sample
    from .temperature_rules import (
        DynamicTemperature,
        EntropyDependentTemperature,
        HapoTemperature,
    )
    from .truncation import truncate
    from .verification import verify_block
    from .warm_up import warmup
    from .without_adapter import WithoutAdapter

__all__ = [
    "AdaptiveShape",
    "DynamicTemperature",
    "EntropyDependentTemperature",
    "Epsilon",
    "Eta",
    "FirstLayers",
    "HapoTemperature",
    "MinP",
    "PLess",
    "PromptLookup",
    "TopA",
    "TopH",
    "TopK",
    "TopNSigma",
    "TopP",
    "Typical",
    "WithoutAdapter",
    "__version__",
    "check",
    "optimal_acceptance",
    "sample",
    "truncate",
    "verify_block",
    "warmup",
]

try:
    __version__ = metadata.version("warpdraft")
except metadata.PackageNotFoundError:  # the source folders on sys.path, not installed
    __version__ = "0+uninstalled"

# names are imported on first use: `warpdraft --help` must not wait for torch
_HOMES = {
    "AdaptiveShape": "adaptive_shape",
    "DynamicTemperature": "temperature_rules",
    "EntropyDependentTemperature": "temperature_rules",
    "FirstLayers": "first_layers",
    "HapoTemperature": "temperature_rules",
    "PromptLookup": "prompt_lookup",
    "WithoutAdapter": "without_adapter",
    "check": "sampling",
    "optimal_acceptance": "acceptance",
    "sample": "sampling",
    "truncate": "truncation",
    "verify_block": "verification",
    "warmup": "warm_up",
}

# hidden from type checkers, which would take every misspelled name for Any
if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f".{_HOMES.get(name, 'rules')}", __name__), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
