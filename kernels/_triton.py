"""The only place that looks for Triton."""

from __future__ import annotations

import importlib.util


def triton_available() -> bool:
    """Whether Triton is installed; it is looked up, never imported, by this question."""
    try:
        return importlib.util.find_spec("triton") is not None
    except (ImportError, ValueError):
        # a blocked import or a half-initialised module counts as absent
        return False
