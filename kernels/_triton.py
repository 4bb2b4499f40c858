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

__all__ = ["interpreted", "jit", "kernel", "tl", "triton_available"]

UNSPECIALIZED = (
    "bitmask_stride",
    "draft_nodes",
    "draft_parameter_stride",
    "draft_plane",
    "first_rows",
    "length",
    "num_paths",
    "num_rules",
    "parameter_stride",
    "program",
    "rule_stride",
    "target_nodes",
    "target_parameter_stride",
    "target_plane",
)
"""Numbers that follow the batch or the rules: constants of a kernel, they would compile it anew."""

UNALIGNED = (
    "draft_floats_ptr",
    "draft_integers_ptr",
    "draft_maxima_ptr",
    "draft_parameters_ptr",
    "draft_stats_ptr",
    "draft_status_ptr",
    "draft_token_ids_ptr",
    "drawn_ptr",
    "group_masses_ptr",
    "node_index_ptr",
    "rows_ptr",
    "seed_ptr",
    "sequence_ptr",
    "step_ptr",
)
"""Tensors that are read a few numbers at a time, and may begin anywhere: views of the caller, or
what one call found for the second of two models."""


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


def kernel(function: Callable[..., Any]) -> Any:
    """`triton.jit` for a kernel that is launched: the same machine code serves every batch."""
    return importlib.import_module("triton").jit(
        function,
        do_not_specialize=UNSPECIALIZED,
        do_not_specialize_on_alignment=UNALIGNED,
    )


def __getattr__(name: str) -> Any:
    if name == "tl":
        return importlib.import_module("triton.language")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
