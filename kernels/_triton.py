"""The only place that looks for Triton.

Modules that hold kernels end in `_triton` and take `jit` and `tl` from here. They are imported when
a kernel is launched and never before, so that everything else works where Triton is not installed.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import triton.language as tl

__all__ = ["interpreted", "jit", "tl", "triton_available"]


def triton_available() -> bool:
    """Whether Triton is installed; it is looked up, never imported, by this question."""
    try:
        return importlib.util.find_spec("triton") is not None
    except (ImportError, ValueError):
        # a blocked import or a half-initialised module counts as absent
        return False


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on CPU tensors; fixed when Triton is imported."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def jit(function: Callable[..., Any]) -> Any:
    """`triton.jit`, with a type."""
    return importlib.import_module("triton").jit(function)


def __getattr__(name: str) -> Any:
    if name == "tl":
        return importlib.import_module("triton.language")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
