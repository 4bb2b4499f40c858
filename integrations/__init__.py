"""The engines' plugins: `warpdraft.integrations.<engine>`, and which of them can work here.

Importing this package imports no engine and no plugin.
"""

from __future__ import annotations

from .registry import Engine, available

__all__ = ["Engine", "available"]
