"""64 recorded rows of logits of Gemma 3 270M, rebuilt from a compact form.

    x[ids[i]] = max - codes[i] * step            the 2,048 most likely tokens, in their places
    x[others] = interpolated quantiles           1,024 points of the ordered rest, in seeded places

`bench/record_rows.py` writes the file. At temperatures 1, 1.5 and 2 every rebuilt row keeps as many
tokens under TopH(0.4) as the true one, and its entropy is off by at most 5e-4 nats (measured by that script).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

FILE = Path(__file__).with_name("recorded_rows.npz")
NUM_ROWS = 64
VOCAB = 262_144
TOP_TOKENS = 2048
QUANTILES = 1024
CODES = 65_535


def load(*, seed: int = 0) -> Tensor:
    """The rows, float32 `[64, 262144]`; the seed places the tokens below the 2,048 most likely."""
    with np.load(FILE) as arrays:
        return rebuild(dict(arrays), seed=seed)


def compact(rows: Tensor) -> dict[str, NDArray[Any]]:
    """What is kept of rows `[n, vocab]`."""
    ordered, ids = torch.sort(rows.float(), dim=-1, descending=True, stable=True)
    maximum, least = ordered[:, :1], ordered[:, TOP_TOKENS - 1 : TOP_TOKENS]
    codes = (maximum - ordered[:, :TOP_TOKENS]) / (maximum - least) * CODES
    places = _places(rows.shape[1] - TOP_TOKENS)
    return {
        "maximum": maximum.numpy(),
        "least": least.numpy(),
        "codes": codes.round().numpy().astype(np.uint16),
        "ids": ids[:, :TOP_TOKENS].numpy().astype(np.int32),
        "quantiles": ordered[:, TOP_TOKENS:][:, torch.from_numpy(places)].numpy(),
        "vocab": np.array(rows.shape[1]),
    }


def rebuild(arrays: Mapping[str, NDArray[Any]], *, seed: int = 0) -> Tensor:
    """The rows of a compact form, float32 `[n, vocab]`."""
    maximum, least = arrays["maximum"].astype(np.float64), arrays["least"].astype(np.float64)
    top = maximum - arrays["codes"] * (maximum - least) / CODES
    vocab = int(arrays["vocab"])
    places, every = _places(vocab - TOP_TOKENS), np.arange(vocab - TOP_TOKENS)
    rng = np.random.default_rng(seed)
    rows = np.empty((len(top), vocab), np.float32)
    for row, logits, ids, quantiles in zip(
        rows, top, arrays["ids"], arrays["quantiles"], strict=True
    ):
        others = np.ones(vocab, bool)
        others[ids] = False
        row[ids] = logits
        row[others] = rng.permutation(np.interp(every, places, quantiles))
    return torch.from_numpy(rows)


def _places(rest: int) -> NDArray[np.int64]:
    """The ranks of the rest that are kept."""
    return np.linspace(0, rest - 1, QUANTILES).round().astype(np.int64)
