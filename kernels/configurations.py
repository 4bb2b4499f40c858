"""How the kernels are launched: warps of a program, by kernel and by the dtype of the logits.

A committed table, never a search at run time: a captured graph must not compile, and one row's sums
must be the same bits in every process. The numbers follow from registers (.ci/compiled_kernels.csv):
no entry spills on sm_80, sm_90 or sm_100. No chip has timed them yet.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class Warps(NamedTuple):
    """Warps of a program.

    Attributes:
        wide: for float32 logits.
        narrow: for bfloat16 and float16 logits.
    """

    wide: int
    narrow: int


CONFIGURATIONS = {
    # a slice of 8,192 tokens is 32 a thread
    "row_stats_kernel": Warps(8, 8),
    "round_kernel": Warps(8, 8),
    "collect_kernel": Warps(8, 8),
    "mask_kernel": Warps(8, 8),
    "slice_masses_kernel": Warps(8, 8),
    # 4,096 candidates are 16 a thread, about 200 registers: with 16 warps and their 128 they spill on sm_100
    "support_kernel": Warps(8, 8),
    # at most 2,048 slices, 256 groups or 32 tokens
    "staged_draw_kernel": Warps(4, 4),
    # two rows of a slice stay in registers through all knots
    "ratio_sums_kernel": Warps(8, 8),
    # 32 lanes for the knots; selection works on pairs of knots, 1,024 float64: the clip spills with 8 warps
    "walk_kernel": Warps(16, 16),
    "walk_kernel k_seq": Warps(1, 1),
    # both rows, a search among the knots and a race: 32 tokens a thread would take 242 registers
    "residual_masses_kernel": Warps(16, 16),
    "residual_draw_kernel": Warps(4, 4),
}


def num_warps(kernel: str, dtype: torch.dtype) -> int:
    """The warps of a kernel for logits of a dtype."""
    warps = CONFIGURATIONS[kernel]
    return warps.wide if dtype == torch.float32 else warps.narrow
