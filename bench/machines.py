"""Machines of the cost model: what their makers promise.

Dense numbers without sparsity, for one device, in decimal units, as in

    H100, PCIe      NVIDIA H100 Tensor Core GPU data sheet; vectors from the Hopper white paper
    H200            NVIDIA H200 Tensor Core GPU data sheet
    GH200           NVIDIA GH200 Grace Hopper Superchip data sheet, the model with 96 GB of HBM3
    A100            NVIDIA A100 Tensor Core GPU data sheet, 80 GB SXM
    L40S            NVIDIA L40S data sheet
    RTX 4090        NVIDIA Ada GPU architecture white paper, appendix A; matrices with sums in float32
    B200            NVIDIA HGX B200 (Blackwell architecture technical brief), one of the eight
    MI300X          AMD Instinct MI300X data sheet

None of them was measured here. This computer's processor is measured when it is asked for (cpu_rates.py).
"""

from __future__ import annotations

from dataclasses import dataclass

TERA = 1e12
GIGA = 1e9
THIN = 2
"""Rows of a product that no library packs a matrix for."""


@dataclass(frozen=True, slots=True)
class Machine:
    """One device.

    Attributes:
        name: for tables.
        bandwidth: of the memory, bytes a second.
        matrix_flops: of matrix products in 16 bits with sums in 32, operations a second; a product and a sum are two.
        vector_flops: of everything else in 32 bits.
        memory: bytes; infinite where it is not asked.
        is_measured: the rates were reached in a measurement, so no share of them is taken off.
        matrix_passes: how often a product with more than `THIN` rows moves its matrix: more than once where it is
            packed first.
        overlap: 1 where data move while the units compute, 0 where one waits for the other.
    """

    name: str
    bandwidth: float
    matrix_flops: float
    vector_flops: float
    memory: float
    is_measured: bool = False
    matrix_passes: float = 1.0
    overlap: float = 1.0


def _gpu(name: str, terabytes: float, matrix: float, vector: float, gigabytes: float) -> Machine:
    return Machine(name, terabytes * TERA, matrix * TERA, vector * TERA, gigabytes * GIGA)


GPUS: dict[str, Machine] = {
    "h100": _gpu("H100 SXM", 3.35, 989.4, 66.9, 80),
    "h100-pcie": _gpu("H100 PCIe", 2.0, 756, 51, 80),
    "h200": _gpu("H200 SXM", 4.8, 989.4, 66.9, 141),
    "gh200": _gpu("GH200 96 GB", 4.0, 989.4, 66.9, 96),
    "a100": _gpu("A100 SXM 80 GB", 2.039, 312, 19.5, 80),
    "l40s": _gpu("L40S", 0.864, 362.05, 91.6, 48),
    "rtx-4090": _gpu("RTX 4090", 1.008, 165.2, 82.6, 24),
    "b200": _gpu("B200 SXM", 8.0, 2250, 80, 180),
    "mi300x": _gpu("MI300X", 5.3, 1307.4, 163.4, 192),
}
