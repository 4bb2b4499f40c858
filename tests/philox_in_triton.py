"""Prints what `tl.philox` makes of counters and keys read as JSON: run with TRITON_INTERPRET=1."""

from __future__ import annotations

import json
import sys

import torch
import triton
import triton.language as tl


@triton.jit
def _philox_kernel(
    counters_ptr,  # [4, n] int32
    seeds_ptr,  # [n] int64
    words_ptr,  # [4, n] int32
    n,
    BLOCK: tl.constexpr,
):
    i = tl.arange(0, BLOCK)
    inside = i < n
    seed = tl.load(seeds_ptr + i, mask=inside, other=0)
    c0 = tl.load(counters_ptr + i, mask=inside, other=0)
    c1 = tl.load(counters_ptr + n + i, mask=inside, other=0)
    c2 = tl.load(counters_ptr + 2 * n + i, mask=inside, other=0)
    c3 = tl.load(counters_ptr + 3 * n + i, mask=inside, other=0)
    w0, w1, w2, w3 = tl.philox(seed, c0, c1, c2, c3)
    tl.store(words_ptr + i, w0.to(tl.int32, bitcast=True), mask=inside)
    tl.store(words_ptr + n + i, w1.to(tl.int32, bitcast=True), mask=inside)
    tl.store(words_ptr + 2 * n + i, w2.to(tl.int32, bitcast=True), mask=inside)
    tl.store(words_ptr + 3 * n + i, w3.to(tl.int32, bitcast=True), mask=inside)


def main() -> None:
    request = json.load(sys.stdin)
    # int64 to int32 keeps the low 32 bits
    counters = torch.tensor(request["counters"], dtype=torch.int64).to(torch.int32)
    seeds = torch.tensor(request["seeds"], dtype=torch.int64)
    words = torch.zeros_like(counters)
    n = counters.shape[1]
    _philox_kernel[(1,)](counters, seeds, words, n, BLOCK=triton.next_power_of_2(n))
    json.dump((words.to(torch.int64) & 0xFFFFFFFF).tolist(), sys.stdout)


if __name__ == "__main__":
    main()
