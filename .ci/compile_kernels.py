"""Compiles every Triton kernel for NVIDIA's sm_80, sm_90, sm_100 and AMD's gfx942, without a GPU.

    python .ci/compile_kernels.py            compare with .ci/compiled_kernels.csv, exit 1 on a regression
    python .ci/compile_kernels.py --quick    the same for masking and drawing float32 logits on sm_90
    python .ci/compile_kernels.py --write    renew the rows of the Triton version at hand

Triton's wheel brings the assemblers. Which variants there are follows from calls (launches.py). A row holds
registers a thread, spilled registers (which must be 0), bytes of shared memory, and for the kernels that
read slices the instructions an element (instructions.py). Every cost may fall and may not rise: registers
rise by what lowers no occupancy, instructions by at most SLACK. Each Triton version has rows of its own.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import csv
import functools
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from launches import Variant

TABLE = Path(__file__).with_name("compiled_kernels.csv")

SLACK = 1.03
"""Instructions an element that another order of the same work may cost."""

ARCHITECTURES = ("sm_90", "sm_80", "sm_100", "gfx942")

REGISTERS = 65_536
"""Registers of a multiprocessor: 512 of each lane of a SIMD on gfx942, which come to as many a wave slot."""


class Key(NamedTuple):
    """What a row of the table is about."""

    triton: str
    kernel: str
    variant: str
    architecture: str


class Cost(NamedTuple):
    """What a variant costs; instructions an element are None where a kernel reads no slices."""

    registers: int
    spills: int
    shared: int
    instructions: float | None


@functools.cache
def variants() -> list[Variant]:
    """All variants, those of common calls in float32 first."""
    import torch
    from launches import COMMON, OTHERS, variants_of

    found = [
        *variants_of(COMMON),
        *variants_of(OTHERS),
        # how logits are loaded matters where a program loads a slice of them
        *(variant for variant in variants_of(COMMON, torch.bfloat16) if variant.elements),
    ]
    return list({label(variant): variant for variant in found}.values())


def label(variant: Variant) -> tuple[str, str]:
    """Kernel and variant, as the table names them."""
    return variant.kernel.__name__, variant.name


def wanted(*, quick: bool) -> list[tuple[int, str]]:
    """Variants by their number, and architectures: all of these for common calls, else the first."""
    from launches import COMMON, QUICK, variants_of

    common = {label(variant) for variant in variants_of(QUICK if quick else COMMON)}
    return [
        (number, architecture)
        for number, variant in enumerate(variants())
        for architecture in (ARCHITECTURES if label(variant) in common else ARCHITECTURES[:1])
        if not quick or (label(variant) in common and architecture == ARCHITECTURES[0])
    ]


def compile_variant(number: int, architecture: str) -> tuple[Key, Cost]:
    """A row of the table."""
    import triton
    from instructions import instructions_per_element
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    variant = variants()[number]
    cuda = architecture.startswith("sm_")
    target = (
        GPUTarget("cuda", int(architecture[3:]), 32) if cuda else GPUTarget("hip", architecture, 64)
    )
    compiled = triton.compile(
        ASTSource(variant.kernel, variant.signature, variant.constants, variant.attributes),
        target=target,
        options={"num_warps": variant.num_warps},
    )
    name = variant.kernel.__name__
    text = disassembled(compiled.asm["cubin"]) if cuda else compiled.asm["amdgcn"]
    registers, spills = nvidia_registers(compiled, text) if cuda else amd_registers(text)
    instructions = None
    if variant.elements:
        elements = variant.elements / (variant.num_warps * target.warp_size)
        instructions = round(instructions_per_element(name, text, elements), 2)
    key = Key(triton.__version__, name, variant.name, architecture)
    return key, Cost(registers, spills, compiled.metadata.shared, instructions)


def tool(name: str, *arguments: str, binary: bytes) -> str:
    """What a program of Triton's wheel prints about a binary."""
    import triton

    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        # nvdisasm warns about every file of the newer format
        return subprocess.run(
            [str(program), *arguments, file.name], check=True, capture_output=True, text=True
        ).stdout


def disassembled(cubin: bytes) -> str:
    """The machine code of a kernel as text."""
    return tool("nvdisasm", "-c", binary=cubin)


def nvidia_registers(compiled: Any, text: str) -> tuple[int, int]:
    """Registers, and loads and stores of local memory: spilled registers and arrays alike."""
    usage = tool("cuobjdump", "-res-usage", binary=compiled.asm["cubin"])
    return int(re.findall(r"REG:(\d+)", usage)[0]), len(re.findall(r"\b(?:LDL|STL)\b", text))


def amd_registers(text: str) -> tuple[int, int]:
    """Vector registers, with the accumulation ones that they share a file with, and spilled ones.

    Scalar registers spill to lanes of vector ones, not to memory.
    """
    metadata = dict(re.findall(r"\.(\w+_(?:count|spill_count)):\s+(\d+)", text))
    return int(metadata["vgpr_count"]), int(metadata["vgpr_spill_count"])


def programs_at_once(registers: int, num_warps: int, architecture: str) -> int:
    """Programs whose registers a multiprocessor holds, by the chip's granules of 8 a thread."""
    lanes = 32 if architecture.startswith("sm_") else 128
    return REGISTERS // (-(-registers // 8) * 8 * lanes * num_warps)


def regressions(key: Key, cost: Cost, before: Cost | None, num_warps: int) -> list[str]:
    """What got worse, one line each."""
    place = " ".join(key[1:])
    found = []
    if cost.spills:
        found.append(f"{place}: {cost.spills} spills")
    if before is None:
        return found
    held, held_before = (
        programs_at_once(registers, num_warps, key.architecture)
        for registers in (cost.registers, before.registers)
    )
    if held < held_before:
        found.append(
            f"{place}: {cost.registers} registers leave room for {held} programs, "
            f"{before.registers} left it for {held_before}"
        )
    if cost.shared > before.shared:
        found.append(f"{place}: {cost.shared} bytes of shared memory, {before.shared} before")
    if (
        cost.instructions
        and before.instructions
        and cost.instructions > SLACK * before.instructions
    ):
        found.append(
            f"{place}: {cost.instructions} instructions an element, {before.instructions} before"
        )
    return found


def read_table() -> dict[Key, Cost]:
    """The committed rows."""
    with TABLE.open(newline="") as file:
        return {
            Key(*row[:4]): Cost(
                int(row[4]), int(row[5]), int(row[6]), float(row[7]) if row[7] else None
            )
            for row in list(csv.reader(file))[1:]
        }


def write_table(table: dict[Key, Cost]) -> None:
    """All rows, in the order of their names."""
    with TABLE.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*Key._fields, *Cost._fields])
        writer.writerows([*key, *cost] for key, cost in sorted(table.items()))


def main() -> int:
    """Compile, then write or compare."""
    parser = argparse.ArgumentParser(description="compile the Triton kernels without a GPU")
    parser.add_argument("--write", action="store_true", help="renew this Triton version's rows")
    parser.add_argument(
        "--quick", action="store_true", help=f"masking and drawing on {ARCHITECTURES[0]} only"
    )
    arguments = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET") == "1":
        sys.exit("TRITON_INTERPRET=1 makes Triton interpret: unset it to compile")
    if arguments.write and arguments.quick:
        parser.error("--write writes all rows, --quick compiles only some")

    import triton

    start = time.perf_counter()
    chosen = wanted(quick=arguments.quick)
    # a kernel that the compiler cannot take may end its process
    with concurrent.futures.ProcessPoolExecutor(
        mp_context=multiprocessing.get_context("fork")
    ) as pool:
        compiled = list(pool.map(compile_variant, *zip(*chosen, strict=True)))
    elapsed = time.perf_counter() - start

    table = read_table()
    problems = [
        problem
        for (number, _), (key, cost) in zip(chosen, compiled, strict=True)
        for problem in regressions(
            key,
            cost,
            None if arguments.write else table.get(key),
            variants()[number].num_warps,
        )
    ]
    known = [key for key in table if key.triton == triton.__version__]
    if arguments.write:
        others = {key: cost for key, cost in table.items() if key.triton != triton.__version__}
        write_table(others | dict(compiled))
    elif known:
        # a change of the kernels is to be seen in the table
        problems += [
            f"{' '.join(key[1:])}: not in the table, renew it with --write"
            for key, _ in compiled
            if key not in table
        ]
    checked = "no regressions" if known else "no spills; no rows of this version to compare with"
    summary = f"{len(compiled)} compilations in {elapsed:.0f} s, {checked}"
    print(*(problems or [summary]), sep="\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
