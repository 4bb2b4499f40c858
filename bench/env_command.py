"""`warpdraft env`: what runs here, in the lines that a bug report needs."""

from __future__ import annotations

import platform
from importlib import metadata
from math import prod
from typing import TYPE_CHECKING

from .console import stdout, table, working

if TYPE_CHECKING:
    from pathlib import Path

    from rich.table import Table

LIBRARIES = ("torch", "transformers", "triton", "accelerate", "numpy", "safetensors", "tokenizers")
# with kernels that ours are compared with, or grammars that ours go together with
COMPANIONS = {"flashinfer": "flashinfer-python", "xgrammar": "xgrammar"}


def env() -> None:
    """Print versions, devices, engines and the built-in pair's sizes."""
    with working("Reading the environment"):
        devices = device_rows()
        pair = pair_rows()
    rows = table("environment", "", title=None)
    rows.columns[1].justify = "left"
    add_section(rows, {"warpdraft": version("warpdraft"), "python": platform.python_version()})
    add_section(rows, {library: version(library) for library in LIBRARIES})
    add_section(rows, {"platform": platform.platform(), **devices})
    add_section(rows, {name: version(distribution) for name, distribution in COMPANIONS.items()})
    add_section(rows, engine_rows())
    add_section(rows, pair)
    stdout.print(rows)


def add_section(rows: Table, section: dict[str, str]) -> None:
    """Add one line a fact and a rule below them."""
    for name, value in section.items():
        rows.add_row(name, value)
    rows.add_section()


def version(distribution: str) -> str:
    """The installed version of a distribution, read without importing it."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"


def engine_rows() -> dict[str, str]:
    """The engines that have plugins: version, usable or why not, and how the plugin was tested."""
    from warpdraft.integrations import available

    return {
        f"for {engine.name}": f"{engine.version}, usable; tested with {engine.tested}"
        if engine.usable
        else f"{engine.reason}; tested with {engine.tested}"
        for engine in available()
    }


def device_rows() -> dict[str, str]:
    """The processor's threads and every accelerator that torch sees."""
    import torch

    rows = {"cpu": f"{torch.get_num_threads()} threads"}
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        capability = f"sm_{device.major}{device.minor}"
        rows[f"cuda:{index}"] = (
            f"{device.name}, {device.total_memory / 2**30:.0f} GiB, {capability}"
        )
    if torch.backends.mps.is_available():
        rows["mps"] = "available"
    return rows


def pair_rows() -> dict[str, str]:
    """Parameters and bytes of the built-in models."""
    from warpdraft.builtin_pair import builtin_pair_folders

    folders = builtin_pair_folders()._asdict()
    return {f"built-in {name}": weights_of(folder) for name, folder in folders.items()}


def weights_of(folder: Path) -> str:
    """The size of a model, read from the head of its file."""
    from safetensors import safe_open

    file = folder / "model.safetensors"
    if not file.exists():
        return "missing"
    with safe_open(file, framework="numpy") as tensors:
        shapes = [tensors.get_slice(name).get_shape() for name in tensors.keys()]  # noqa: SIM118
    parameters = sum(prod(shape) for shape in shapes)
    return f"{parameters / 1e6:.2f} million parameters, {file.stat().st_size / 1e6:.1f} MB"
