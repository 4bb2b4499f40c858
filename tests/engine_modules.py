"""An engine's modules, where the engine is not installed: what its plugin imports, and nothing else."""

from __future__ import annotations

import sys
import types


def stand_in(monkeypatch, plugin, modules):
    """Modules of these names and contents, in the place of the engine's; its plugin is then imported anew."""
    monkeypatch.delitem(sys.modules, f"warpdraft.integrations.{plugin}", raising=False)
    for name, contents in modules.items():
        parts = name.split(".")
        for length in range(1, len(parts) + 1):
            package = ".".join(parts[:length])
            if package not in sys.modules:
                module = types.ModuleType(package)
                module.__path__ = []
                monkeypatch.setitem(sys.modules, package, module)
        sys.modules[name].__dict__.update(contents)
