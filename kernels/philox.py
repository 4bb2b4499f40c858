"""Philox4x32-10, the counter-based random generator behind every draw.

    (c0, c1, c2, c3), (k0, k1)  ->  four words of 32 bits, by ten rounds of
        c0, c1, c2, c3 = hi(M1 * c2) ^ c1 ^ k0,  lo(M1 * c2),
                         hi(M0 * c0) ^ c3 ^ k1,  lo(M0 * c0)
        k0, k1         = k0 + W0,  k1 + W1                              (mod 2**32)

Source: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011,
section 3.3. The three forms below agree bit for bit, and with `tl.philox` in Triton.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from torch import Tensor

Array: TypeAlias = npt.NDArray[Any]

ROUNDS = 10

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
"""M0 and M1, the constants of the paper for four words."""

WEYL = (0x9E3779B9, 0xBB67AE85)
"""W0 and W1: the golden ratio and the square root of 3 less one, as fractions of 2**32."""

MASK = 0xFFFFFFFF

# the numpy form reads the halves of a product in place, so the byte order is part of the type
_PRODUCT = np.dtype("<u8")
_WORD = np.dtype("<u4")
_MULTIPLIERS = np.array(MULTIPLIERS, _PRODUCT)
_KEY_STEPS = np.array([[(i * weyl) & MASK for weyl in WEYL] for i in range(ROUNDS)], _WORD)


def philox_reference(
    counter: tuple[int, int, int, int], key: tuple[int, int]
) -> tuple[int, int, int, int]:
    """The four words of one counter, in Python integers.

    Args:
        counter: four integers in [0, 2**32).
        key: two integers in [0, 2**32).

    Returns:
        Four integers in [0, 2**32).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        high0, low0 = divmod(MULTIPLIERS[0] * c0, 1 << 32)
        high1, low1 = divmod(MULTIPLIERS[1] * c2, 1 << 32)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + WEYL[0]) & MASK, (k1 + WEYL[1]) & MASK
    return c0, c1, c2, c3


def philox_numpy(
    counter: tuple[Array, Array, Array, Array], key: tuple[Array, Array]
) -> tuple[Array, Array, Array, Array]:
    """The four words of every counter, for small arrays on the CPU.

    Args:
        counter: four integer arrays that broadcast to one shape; each counts modulo 2**32.
        key: two int64 arrays of one shape that broadcasts to the counter's; modulo 2**32.

    Returns:
        Four uint32 arrays of the counter's shape.
    """
    shape = np.broadcast(*counter).shape
    # words 0 and 2 are multiplied, words 1 and 3 are only mixed in: one array for each pair halves
    # the number of numpy calls, which is what a short draw costs
    even, odd = np.empty((2, *shape), _WORD), np.empty((2, *shape), _WORD)
    even[0], odd[0], even[1], odd[1] = counter

    trailing = (1,) * len(shape)
    multipliers = _MULTIPLIERS.reshape(2, *trailing)
    key_steps = _KEY_STEPS.reshape(ROUNDS, 2, *(1,) * key[0].ndim)
    round_keys = np.stack(key).astype(_WORD) + key_steps

    product = np.empty((2, *shape), _PRODUCT)
    # reversed: the product of word 0 feeds words 2 and 3, and the other way round
    halves = product.view(_WORD).reshape(2, *shape, 2)[::-1]
    low, high = halves[..., 0], halves[..., 1]
    for round_key in round_keys:
        np.multiply(even, multipliers, out=product)
        np.bitwise_xor(high, odd, out=even)
        np.bitwise_xor(even, round_key, out=even)
        odd[...] = low
    return even[0], odd[0], even[1], odd[1]


def philox_torch(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four words of every counter, on any device and without synchronisation.

    Args:
        counter: four int64 tensors that broadcast to one shape, values in [0, 2**32).
        key: two int64 tensors that broadcast to the counter's shape, values in [0, 2**32).

    Returns:
        Four int64 tensors with values in [0, 2**32).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        high0, low0 = _multiply(c0, MULTIPLIERS[0])
        high1, low1 = _multiply(c2, MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + WEYL[0]) & MASK, (k1 + WEYL[1]) & MASK
    return c0, c1, c2, c3


def _multiply(word: Tensor, multiplier: int) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of `word * multiplier`, both factors below 2**32."""
    # a whole product needs 64 unsigned bits; with a half of the multiplier it stays below 2**48
    upper = word * (multiplier >> 16)
    lower = word * (multiplier & 0xFFFF)
    return (upper + (lower >> 16)) >> 16, (((upper & 0xFFFF) << 16) + lower) & MASK
