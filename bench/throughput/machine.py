"""What the numbers were measured on: device, driver, clocks, versions and commit."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

LIBRARIES = ("torch", "triton", "transformers")
NOT_MEASURED = "not measured"


def machine_line(device: torch.device) -> str:
    """One line with all of it."""
    versions = ", ".join(f"{name} {_version(name)}" for name in LIBRARIES)
    return "; ".join(
        (
            device_name(device),
            f"driver {_queried('driver_version', device)}",
            f"clocks {clock(device)}",
            f"Python {platform.python_version()}, {versions}",
            f"commit {commit()}",
        )
    )


def device_name(device: torch.device) -> str:
    """The GPU, or the processor and its threads."""
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        return f"{found.name} (sm_{found.major}{found.minor}, {found.multi_processor_count} SMs)"
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} of {os.cpu_count()} threads"


def peak_bandwidth(device: torch.device) -> float | None:
    """The memory's data rate in GB/s, from its clock and width; None where torch does not know them."""
    if device.type != "cuda":
        return None
    found = torch.cuda.get_device_properties(device)
    kilohertz = getattr(found, "memory_clock_rate", 0)
    bits = getattr(found, "memory_bus_width", 0)
    # two transfers a clock
    return 2 * kilohertz * 1e3 * bits / 8 / 1e9 or None


def clock(device: torch.device) -> str:
    """The clocks of the multiprocessors and the memory now, by NVML or nvidia-smi."""
    if device.type != "cuda":
        return NOT_MEASURED
    handle = _nvml_handle(device)
    if handle is not None:
        nvml = importlib.import_module("pynvml")
        sm = nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)
        memory = nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM)
        return f"{sm}/{memory} MHz"
    found = _queried("clocks.sm,clocks.mem", device)
    return found if found == NOT_MEASURED else found.replace(" MHz", "").replace(", ", "/") + " MHz"


def commit() -> str:
    """The commit of the sources and whether they have changed since.

    Where they are no git repository, the variable WARPDRAFT_COMMIT names it.
    """
    given = os.environ.get("WARPDRAFT_COMMIT")
    if given:
        return given
    # through links, as an editable install has them
    folder = Path(__file__).resolve().parent
    if not shutil.which("git"):
        return "unknown"

    def git(*arguments: str) -> str | None:
        found = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False
        )
        return None if found.returncode else found.stdout.strip()

    name = git("rev-parse", "--short", "HEAD")
    if name is None:
        return "unknown"
    return f"{name} with changes" if git("status", "--porcelain") else name


def _version(library: str) -> str:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return "not installed"


def _nvml_handle(device: torch.device) -> Any:
    """NVML's name of a CUDA device; None without NVML."""
    try:
        nvml = importlib.import_module("pynvml")
        nvml.nvmlInit()
        # NVML numbers the machine's devices, torch those that it may see
        uuid = str(torch.cuda.get_device_properties(device).uuid)
        return nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid.removeprefix('GPU-')}")
    except Exception:
        return None


def _queried(fields: str, device: torch.device) -> str:
    """What nvidia-smi says; "not measured" where it says nothing."""
    if device.type != "cuda" or not shutil.which("nvidia-smi"):
        return NOT_MEASURED
    uuid = str(torch.cuda.get_device_properties(device).uuid)
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    command.append(f"--id=GPU-{uuid.removeprefix('GPU-')}")
    found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    return found.stdout.strip() if found.returncode == 0 else NOT_MEASURED
