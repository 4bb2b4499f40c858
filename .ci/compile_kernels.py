"""Compiles every Triton kernel for sm_80, sm_90 and sm_100 and compares what it costs with a table.

    python .ci/compile_kernels.py            compare with .ci/compiled_kernels.csv, exit 1 on a difference
    python .ci/compile_kernels.py --quick    the same for float32 logits on sm_90 only
    python .ci/compile_kernels.py --write    write the table of this Triton version

No GPU is needed: Triton's wheel brings the assembler. A row is a kernel, its variant and an
architecture: registers a thread, bytes of spilled registers (which must be 0), bytes of stack, bytes of
shared memory. Another Triton version allocates registers differently, so its rows are not compared,
only its spills.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import csv
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

TABLE = Path(__file__).with_name("compiled_kernels.csv")
COLUMNS = ["triton", "kernel", "variant", "architecture", "registers", "spills", "stack", "shared"]
ARCHITECTURES = (80, 90, 100)
WARP = 32

VOCAB = 128256
SLICES = 16
GROUPS = 4096

# every pointer of a kernel by its name; logits_ptr and out_ptr follow the variant
POINTERS = {
    "rows_ptr": "*i64",
    "bitmask_ptr": "*i32",
    "parameters_ptr": "*fp64",
    "valid_ptr": "*i1",
    "chosen_ptr": "*i32",
    "collected_ptr": "*i32",
    "integers_ptr": "*i32",
    "index_ptr": "*i64",
    "status_ptr": "*i8",
    "seed_ptr": "*i64",
    "sequence_ptr": "*i64",
    "step_ptr": "*i64",
    "token_ids_ptr": "*i64",
}
ABSENT = {"HAS_ROWS": "rows_ptr", "HAS_BITMASK": "bitmask_ptr", "HAS_VALID": "valid_ptr"}
SIXTEENS = {"row_stride", "out_stride", "vocab"}


class Variant(NamedTuple):
    """One compiled form of a kernel."""

    module: str
    kernel: str
    name: str
    logits: str
    flags: dict[str, Any]
    warps: int


def variants() -> list[Variant]:
    """What a call launches for a vocabulary of 128,256."""
    from warpdraft.kernels.truncation_triton import DRAW_WARPS, SUPPORT_WARPS, WARPS

    plain = {"HAS_ROWS": False, "HAS_BITMASK": False}
    sums = {"SQUARES": False, "DEVIATION": False, "LEAST": False}
    every = {"SQUARES": True, "DEVIATION": True, "LEAST": True}
    stats = {"RESTRICTED": False, "RAW": False, **sums, **plain}
    support = {
        "FIRST": True,
        "BRACKETED": False,
        "SAMPLE": False,
        "RAW": False,
        "HAS_VALID": False,
        "SLICES": SLICES,
        "GROUPS": GROUPS,
        **sums,
        **plain,
    }
    masked = {**plain, "HAS_BITMASK": True}
    rounds = {"ROUND": 1, "ROUNDS": 2, "SLICES": SLICES, **plain}
    collect = {"ROUNDS": 2, "SLICES": SLICES, **plain}
    found = []

    def add(module: str, kernel: str, name: str, flags: dict[str, Any]) -> None:
        warps = {"support_kernel": SUPPORT_WARPS, "staged_draw_kernel": DRAW_WARPS}
        # the dtype changes how logits are loaded: that matters where a program loads a slice
        for logits in ("fp32",) if kernel in warps and name != "first-draw" else ("fp32", "bf16"):
            found.append(Variant(module, kernel, name, logits, flags, warps.get(kernel, WARPS)))

    add("row_stats_triton", "row_stats_kernel", "first", stats)
    add("row_stats_triton", "row_stats_kernel", "bitmask", {**stats, **masked})
    add("row_stats_triton", "row_stats_kernel", "all-sums", {**stats, **every, "RAW": True})
    add(
        "row_stats_triton", "row_stats_kernel", "restricted", {**stats, **every, "RESTRICTED": True}
    )
    add("support_triton", "support_kernel", "first", support)
    add("support_triton", "support_kernel", "first-draw", {**support, "SAMPLE": True})
    add(
        "support_triton",
        "support_kernel",
        "first-draw-all",
        {**support, **every, **masked, "SAMPLE": True, "RAW": True, "HAS_VALID": True},
    )
    add("support_triton", "support_kernel", "262144", {**support, "SLICES": 32})
    add("support_triton", "support_kernel", "sums", {**support, **every, "FIRST": False})
    bracketed = {**support, "FIRST": False, "BRACKETED": True}
    add("support_triton", "support_kernel", "bracket", bracketed)
    add("support_triton", "support_kernel", "bracket-draw", {**bracketed, "SAMPLE": True})
    add("prefix_search_triton", "round_kernel", "second", rounds)
    add("prefix_search_triton", "collect_kernel", "", collect)
    add("support_triton", "mask_kernel", "", plain)
    add("support_triton", "mask_kernel", "bitmask", masked)
    add("draw_triton", "slice_masses_kernel", "", {"HAS_BITMASK": False})
    draw = {"WHOLE": False, "RAW": False, "SLICES": SLICES, "HAS_BITMASK": False}
    add("draw_triton", "staged_draw_kernel", "", draw)
    return found


def compile_variant(number: int, architecture: int) -> list[str]:
    """A row of the table, without the version."""
    import importlib

    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    variant = variants()[number]
    kernel = getattr(importlib.import_module(f"warpdraft.kernels.{variant.module}"), variant.kernel)
    constants: dict[str, Any] = dict(variant.flags)
    for flag, pointer in ABSENT.items():
        if not variant.flags.get(flag, False):
            constants[pointer] = None
    if not variant.flags.get("SAMPLE", True):
        constants |= dict.fromkeys(
            [
                "seed_ptr",
                "sequence_ptr",
                "step_ptr",
                "token_ids_ptr",
                "logprobs_ptr",
                "kept_mass_ptr",
            ]
        )
    signature, values, attributes = {}, {}, {}
    for place, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
            values[(place,)] = constants[name]
            continue
        if name in ("logits_ptr", "out_ptr"):
            signature[name] = f"*{variant.logits}"
        elif name.endswith("_ptr"):
            signature[name] = POINTERS.get(name, "*fp32")
        else:
            signature[name] = "i64" if name == "program" else "i32"
        if name.endswith("_ptr") or name in SIXTEENS:
            attributes[(place,)] = [["tt.divisibility", 16]]
    compiled = triton.compile(
        ASTSource(kernel, signature=signature, constexprs=values, attrs=attributes),
        target=GPUTarget("cuda", architecture, WARP),
        options={"num_warps": variant.warps},
    )
    usage = resource_usage(compiled.asm["cubin"])
    name = f"{variant.name}-{variant.logits}".strip("-")
    label = f"sm_{architecture}"
    shared = str(compiled.metadata.shared)
    return [
        variant.kernel,
        name,
        label,
        usage["REG"],
        str(spills(compiled)),
        usage["STACK"],
        shared,
    ]


def tool(name: str) -> str:
    """A program that Triton's wheel brings."""
    import triton

    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name)


def resource_usage(cubin: bytes) -> dict[str, str]:
    """REG and STACK of a compiled kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.check_output([tool("cuobjdump"), "-res-usage", file.name], text=True)
    return dict(re.findall(r"(REG|STACK):(\d+)", text))


def spills(compiled: Any) -> int:
    """Loads and stores of local memory in the machine code: spilled registers."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        # it warns about every file of the newer format
        text = subprocess.run(
            [tool("nvdisasm"), "-c", file.name], check=True, capture_output=True, text=True
        ).stdout
    return len(re.findall(r"\b(?:LDL|STL)\b", text))


def main() -> int:
    """Compile, then write or compare."""
    parser = argparse.ArgumentParser(description="compile the Triton kernels without a GPU")
    parser.add_argument("--write", action="store_true", help="write the table")
    parser.add_argument("--quick", action="store_true", help="float32 logits on sm_90 only")
    arguments = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET") == "1":
        sys.exit("TRITON_INTERPRET=1 makes Triton interpret: unset it to compile")

    import triton

    wanted = [
        (number, architecture)
        for number, variant in enumerate(variants())
        for architecture in ARCHITECTURES
        if not arguments.quick or (variant.logits, architecture) == ("fp32", 90)
    ]
    # a kernel that the compiler cannot take may end its process
    with concurrent.futures.ProcessPoolExecutor() as pool:
        rows = list(pool.map(compile_variant, *zip(*wanted, strict=True)))
    rows = [[triton.__version__, *row] for row in rows]
    problems = [f"spills: {' '.join(row)}" for row in rows if row[COLUMNS.index("spills")] != "0"]
    if arguments.write:
        with TABLE.open("w", newline="") as file:
            csv.writer(file).writerows([COLUMNS, *rows])
    else:
        with TABLE.open(newline="") as file:
            known = {tuple(row[:4]): row[4:] for row in csv.reader(file)}
        versions = {key[0] for key in known}
        for row in rows:
            before = known.get(tuple(row[:4]))
            if row[0] in versions and before != row[4:]:
                problems.append(f"{' '.join(row[1:4])}: {row[4:]}, the table has {before}")
    print(*(problems or [f"{len(rows)} kernels compiled, no spills"]), sep="\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
