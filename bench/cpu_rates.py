"""What this computer's processor reaches, with as many threads as torch has.

    bandwidth       a matrix of half a gigabyte times a vector: what a call of a model on one token does
    matrix rate     a product of two matrices of float32 that stay in the cache
    vector rate     products and sums of numbers that stay in the cache

    passes          the first product again with four vectors: a library packs the matrix before it multiplies, so it
                    moves about twice, and what it multiplies comes on top (measured on one core: x 1.9, and no overlap)

Processor time counts, divided by the threads, and of several runs the fastest: what else runs on the machine only takes
time away.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from .machines import Machine

RUNS = 5
PACKED = 4
MATRIX_ROWS, MATRIX_COLUMNS = 32768, 4096
PRODUCT = 768
CACHED = 1 << 16
REPEATS = 50


def measured_cpu() -> Machine:
    """This computer's processor in float32; its memory is not asked."""
    import torch

    weights, vector = torch.ones(MATRIX_ROWS, MATRIX_COLUMNS), torch.ones(MATRIX_COLUMNS)
    vectors = torch.ones(PACKED, MATRIX_COLUMNS)
    square = torch.ones(PRODUCT, PRODUCT)
    numbers = torch.ones(CACHED)
    out = torch.empty(CACHED)

    def repeated() -> None:
        for _ in range(REPEATS):
            torch.addcmul(numbers, numbers, numbers, out=out)

    moving = _fastest(lambda: weights @ vector)
    packing = _fastest(lambda: torch.nn.functional.linear(vectors, weights))
    multiplying = _fastest(lambda: square @ square)
    adding = _fastest(repeated)
    rate = 2 * PRODUCT**3 / multiplying
    return Machine(
        name=f"this CPU, {torch.get_num_threads()} threads, float32",
        bandwidth=4 * weights.numel() / moving,
        matrix_flops=rate,
        vector_flops=2 * CACHED * REPEATS / adding,
        memory=float("inf"),
        is_measured=True,
        matrix_passes=max(1.0, (packing - 2 * PACKED * weights.numel() / rate) / moving),
        overlap=0.0,
    )


def _fastest(work: Callable[[], object]) -> float:
    """Seconds of the fastest run; the first one warms up."""
    import torch

    work()
    times = []
    for _ in range(RUNS):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times) / torch.get_num_threads()
