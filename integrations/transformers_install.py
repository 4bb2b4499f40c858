"""`install`: plain `generate(top_h=..., min_p=..., top_k=...)` by our kernels, until it is undone.

`generate` builds its truncation warpers from names in `transformers.generation.utils`, which has no
registry of warpers; `install` puts subclasses of the same warpers there. Their order, temperature,
beams and continuous batching (`generate_batch`) stay transformers' own.
"""

from __future__ import annotations

import math
import threading
from types import TracebackType
from typing import Any, Literal

import transformers.generation.utils as generation_utils
from torch import Tensor

from warpdraft.processors import CONVERSIONS
from warpdraft.rules import Rule, TopH
from warpdraft.truncation import truncate

# not typical and eta: the edges of their supports move with the rounding of transformers' own float32
# sums, eta's by up to 6e-5 at 262,144 logits, which only those sums repeat
_INSTALLED = (
    "TopHLogitsWarper",
    "TopKLogitsWarper",
    "TopPLogitsWarper",
    "MinPLogitsWarper",
    "EpsilonLogitsWarper",
)

Variant = Literal["paper", "transformers"]


class _KernelWarper:
    """Comes before a warper of transformers, which keeps its constructor and attributes."""

    context_free = True
    supports_continuous_batching = True
    filter_value: float

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.truncation_rule = self._rule()

    def _rule(self) -> Rule:
        return CONVERSIONS[type(self).__name__](self)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self.filter_value != -math.inf:
            return super().__call__(input_ids, scores)  # type: ignore[misc, no-any-return]
        return truncate(scores, self.truncation_rule)


class _PaperTopH(_KernelWarper):
    """`TopHLogitsWarper` with the paper's rule over the full vocabulary."""

    top_h: float

    def _rule(self) -> Rule:
        return TopH(self.top_h, variant="paper")


class Installation:
    """What `install` returns: `uninstall()` undoes it, and so does the end of a `with` block.

    Attributes:
        top_h_variant: "paper" or "transformers", what `top_h=` means while this installation decides.
    """

    def __init__(self, top_h_variant: Variant) -> None:
        self.top_h_variant: Variant = top_h_variant

    def uninstall(self) -> None:
        """Undo this installation; a second call does nothing."""
        with _lock:
            if self in _active:
                _active.remove(self)
                _apply()

    def __enter__(self) -> Installation:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.uninstall()


def install(top_h_variant: Variant = "paper") -> Installation:
    """Let plain `generate` truncate by our kernels, in the whole process, until `uninstall()`.

    Installations nest: the latest of those not undone decides, in whatever order they are undone,
    and after the last one transformers' own classes stand where they stood. Calls of `generate`
    that have built their warpers keep them. Threads may install and uninstall at any time, but
    share the effect: there is one `transformers.generation.utils`.

    Of exactly equal scores at a cut, top-p and top-H keep the lowest token ids; transformers' own keep
    whichever its sort puts first. `typical_p` and `eta_cutoff` stay transformers' own.

    Args:
        top_h_variant: what `top_h=` means: "paper" (arXiv 2509.02510, Algorithm 1) or
            "transformers" (`TopHLogitsWarper`: over the 100 most likely tokens).

    Returns:
        the installation, to undo it.

    Raises:
        ValueError: for another variant.
    """
    if top_h_variant not in ("paper", "transformers"):
        raise ValueError(f"top_h_variant must be 'paper' or 'transformers', got {top_h_variant!r}.")
    installation = Installation(top_h_variant)
    with _lock:
        if not _active:
            _originals.update({name: getattr(generation_utils, name) for name in _INSTALLED})
        _active.append(installation)
        _apply()
    return installation


_lock = threading.RLock()
_active: list[Installation] = []
_originals: dict[str, type] = {}


def _apply() -> None:
    """Put the latest installation's classes, or the originals, in their places."""
    for name, original in _originals.items():
        cls = original
        if _active:
            paper = name == "TopHLogitsWarper" and _active[-1].top_h_variant == "paper"
            first = _PaperTopH if paper else _KernelWarper
            cls = type(name, (first, original), {"__module__": __name__})
        setattr(generation_utils, name, cls)
