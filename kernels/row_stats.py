"""One row of logits on the CPU, the support so far, and what the rules ask about it.

With the tokens of the support so far, M their largest logit and z_i = (x_i - M) / T:

    excess    S - 1,  S = sum_i exp(z_i)      (one token at M is left out of the sum, not subtracted)
    moment    L = sum_i exp(z_i) * z_i
    entropy   H = ln S - L / S = log1p(S - 1) - L / S        (no cancellation: both terms >= 0)

A CPU takes the rows one at a time: a row of 262,144 float32 logits is 1 MB and stays in the
second-level cache from its first pass to its last. All passes are NumPy's, which run on the calling
thread: a batch of rows would meet more barriers than it gains, and the sums of a row never depend
on the number of threads or on the rows around it.
"""

from __future__ import annotations

import math
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .support import EMPTY, NAN, OK, POSITIVE_INFINITY

Array: TypeAlias = NDArray[np.floating]
Ids: TypeAlias = NDArray[np.int64]

# a row is seen as a matrix with this many lines: the maxima of its columns tell where large logits are
LINES = 64
# below this vocabulary one plain pass is as fast
PRUNED_VOCAB = 8192
# columns are gathered while they are at most this share of the row; a plain pass beats more
GATHERED_SHARE = 8
# a float32 chunk of weights and one of levels fit the second-level cache, a call is worth its overhead
CHUNK = 32768
# so many terms are summed in the row's dtype, the sums of blocks in float64: float32 terms that are all
# equal, a flat tail, would lose 1e-4 nats of entropy in one long sum
BLOCK = 64
# exp of less is 0, also in float64; -inf would make 0 * -inf of a moment
LEAST_LEVEL = -800.0
# and of more overflows
LARGEST_LEVEL = 700.0


class RowStats(NamedTuple):
    """The sums of a row over its support, at one temperature."""

    excess: float
    moment: float

    @property
    def total(self) -> float:
        """S, the sum of exp((x - max) / T)."""
        return 1.0 + self.excess

    @property
    def log_total(self) -> float:
        """The logarithm of S: the most likely token has the log-probability -ln S."""
        return math.log1p(self.excess)

    @property
    def entropy(self) -> float:
        """H of the row's law, in nats."""
        return math.log1p(self.excess) - self.moment / self.total


class Tokens(NamedTuple):
    """Some tokens of a row, in ascending id."""

    logits: Array
    ids: Ids


class Row:
    """One row of logits and the support that the rules so far have left of it.

    Args:
        logits: `[vocab]` float32 or float64. It is never written to.

    Attributes:
        value, index, upper: the support, as in `Support`.
        maximum: the largest logit of the support.
        status: what is wrong with the row, which its largest logit tells; 0 for nothing.
    """

    __slots__ = (
        "_columns",
        "_stats",
        "_tokens",
        "_whole",
        "_whole_maximum",
        "index",
        "logits",
        "maximum",
        "status",
        "upper",
        "value",
    )

    def __init__(self, logits: Array) -> None:
        self.logits = logits
        self.value = float(np.finfo(logits.dtype).min)
        self.index = len(logits) - 1
        self.upper = math.inf
        self._columns = _column_maxima(logits) if len(logits) >= PRUNED_VOCAB else None
        self._stats: dict[float, RowStats] = {}
        self._whole: dict[float, RowStats] = {}
        self._tokens: Tokens | None = None
        # NaN when the row holds one: NumPy's maximum hands it on
        self.maximum = float((logits if self._columns is None else self._columns).max())
        self._whole_maximum = self.maximum
        self.status = _status(self.maximum)

    @property
    def vocab(self) -> int:
        """The number of tokens of the vocabulary."""
        return len(self.logits)

    @property
    def restricted(self) -> bool:
        """Whether a rule has narrowed the support."""
        least = float(np.finfo(self.logits.dtype).min)
        return self.upper < math.inf or self.value > least or self.index < self.vocab - 1

    def narrow(self, value: float, index: int, upper: float = math.inf) -> None:
        """Keep only what the threshold keeps; a looser threshold changes nothing."""
        tighter = value > self.value or (value == self.value and index < self.index)
        if not tighter and upper >= self.upper:
            return
        if not self.restricted:
            self._whole = self._stats
        if tighter:
            self.value, self.index = value, index
        self.upper = min(upper, self.upper)
        self._stats = {}
        if self._tokens is not None:
            self._tokens = self._inside(self._tokens)
        if self.maximum > self.upper:
            self.maximum = float(self.tokens().logits.max())

    def tokens(self) -> Tokens:
        """The tokens of the support."""
        if self._tokens is None:
            self._tokens = self._inside(self._at_least(self.value))
        return self._tokens

    def top(self, count: int) -> Array:
        """The largest logits of the support, descending: `count` of them, or all if there are less."""
        logits = self._top_unsorted(count)
        logits.sort()
        return logits[::-1]

    def threshold(self, top: Array, kept: int) -> tuple[float, int]:
        """The threshold that keeps `kept` tokens, given the largest logits of the support."""
        value = float(top[kept - 1])
        if kept < len(top) and top[kept] != value:
            return value, self.vocab - 1
        tied = self._tied(value)
        wanted = kept - int(np.searchsorted(-top[:kept], -value))
        return value, self.vocab - 1 if wanted >= len(tied) else int(tied[wanted - 1])

    def argmax(self) -> int:
        """The lowest token id with the largest logit of the support."""
        return int(self._tied(self.maximum)[0])

    def count(self) -> int:
        """The number of tokens in the support."""
        if self.restricted:
            return len(self.tokens().ids)
        return int(np.count_nonzero(self.logits > -np.inf))

    def stats(self, temperature: float) -> RowStats:
        """The sums over the support, in the row's dtype."""
        if temperature not in self._stats:
            # float32 would take a temperature below its normal numbers for 0, above them for inf
            numbers = np.finfo(self.logits.dtype)
            normal = float(numbers.tiny) <= temperature <= float(numbers.max)
            dtype = self.logits.dtype if normal else np.dtype(np.float64)
            self._stats[temperature] = self._sums(temperature, dtype)
        return self._stats[temperature]

    def exact_stats(self, temperature: float) -> RowStats:
        """The sums over the support in float64."""
        return self._sums(temperature, np.dtype(np.float64))

    def whole_total(self, temperature: float) -> float:
        """The sum of exp((x - max) / T) over all finite logits, max that of the support."""
        if not self.restricted:
            return self.stats(temperature).total
        if temperature not in self._whole:
            self._whole[temperature] = Row(self.logits).stats(temperature)
        beyond = (self._whole_maximum - self.maximum) / temperature
        return self._whole[temperature].total * math.exp(min(beyond, LARGEST_LEVEL))

    def deviation(self) -> float:
        """The standard deviation of the logits of the support, divisor n - 1; 0 for one token."""
        logits = self.tokens().logits if self.restricted else self.logits
        mean = logits.mean(dtype=np.float64)
        if mean == -np.inf:
            logits = self.tokens().logits
            mean = logits.mean(dtype=np.float64)
        squares = np.square(np.subtract(logits, mean, dtype=np.float64))
        return math.sqrt(float(squares.sum()) / max(len(logits) - 1, 1))

    def round_up(self, value: float) -> float:
        """The least finite number of the row's dtype that is not below `value`."""
        dtype = self.logits.dtype.type
        with np.errstate(over="ignore"):
            rounded = dtype(max(value, float(np.finfo(dtype).min)))
        return float(np.nextafter(rounded, dtype(np.inf)) if float(rounded) < value else rounded)

    def write(self, truncated: Tensor) -> None:
        """Write the kept logits into `truncated` `[vocab]`, which is full of -inf."""
        if self._is_sparse():
            logits, ids = self.tokens()
            truncated[torch.from_numpy(ids)] = torch.from_numpy(logits).to(truncated.dtype)
            return
        row, dtype = torch.from_numpy(self.logits), self.logits.dtype.type
        with np.errstate(over="ignore"):
            below = float(np.nextafter(dtype(self.value), dtype(-np.inf)))
        if abs(self.value) < np.finfo(dtype).tiny:
            # the number below may be denormal, which a processor may be told to take for 0
            truncated.copy_(row.masked_fill(row < self.value, -torch.inf))
        elif truncated.dtype == row.dtype:
            torch.ops.aten.threshold.out(row, below, -torch.inf, out=truncated)
        else:
            truncated.copy_(torch.threshold(row, below, -torch.inf))
        if self.index < self.vocab - 1:
            after = self.index + 1
            truncated[after:].masked_fill_(row[after:] == self.value, -torch.inf)
        if self.upper < math.inf:
            truncated.masked_fill_(row > self.upper, -torch.inf)

    def _is_sparse(self) -> bool:
        if self._tokens is not None:
            return len(self._tokens.ids) <= self.vocab // LINES
        if self._columns is None:
            return False
        return self._share(self._columns >= self.value)

    def _share(self, columns: NDArray[np.bool_]) -> bool:
        """Whether few enough columns are meant to gather them."""
        return int(np.count_nonzero(columns)) <= len(columns) // GATHERED_SHARE

    def _matrix(self) -> tuple[Array, Array]:
        """The row as a matrix of `LINES` lines, and the tokens after its last whole line."""
        whole = self.vocab - self.vocab % LINES
        return self.logits[:whole].reshape(LINES, -1), self.logits[whole:]

    def _at_least(self, value: float) -> Tokens:
        """All tokens of the row with `x >= value`, whatever the support."""
        if self._columns is not None:
            chosen = self._columns >= value
            if self._share(chosen):
                matrix, rest = self._matrix()
                columns = np.flatnonzero(chosen)
                found = np.flatnonzero(matrix.take(columns, axis=1) >= value)
                lines, places = np.divmod(found, len(columns))
                ids = lines * matrix.shape[1] + columns[places]
                ids = np.append(ids, matrix.size + np.flatnonzero(rest >= value))
                return Tokens(self.logits[ids], ids)
        ids = np.flatnonzero(self.logits >= value)
        return Tokens(self.logits[ids], ids)

    def _top_unsorted(self, count: int) -> Array:
        """The values of `top` in any order, in a new array."""
        among = self.logits
        if self.restricted:
            among = self.tokens().logits
        elif self._columns is not None and count <= len(self._columns) // GATHERED_SHARE:
            least = np.partition(self._columns, -count)[-count]
            columns = np.flatnonzero(self._columns >= least)
            if len(columns) <= len(self._columns) // GATHERED_SHARE:
                matrix, rest = self._matrix()
                among = np.append(matrix.take(columns, axis=1), rest)
        among = np.partition(among, -count)[-count:] if count < len(among) else among.copy()
        return among[among > -np.inf] if among.min() == -np.inf else among

    def _tied(self, value: float) -> Ids:
        """The token ids of the support with this logit, ascending."""
        if self._tokens is not None:
            logits, ids = self._tokens
            tied: Ids = ids[logits == value]
            return tied
        if self._columns is not None and self._share(self._columns >= value):
            logits, ids = self._inside(self._at_least(value))
            tied = ids[logits == value]
            return tied
        tied = np.flatnonzero(self.logits == value)
        return tied[tied <= self.index] if value == self.value else tied

    def _inside(self, tokens: Tokens) -> Tokens:
        logits, ids = tokens
        kept = (logits > self.value) | ((logits == self.value) & (ids <= self.index))
        kept &= logits <= self.upper
        return tokens if kept.all() else Tokens(logits[kept], ids[kept])

    def _sums(self, temperature: float, dtype: np.dtype[np.floating]) -> RowStats:
        logits = self.tokens().logits if self.restricted else self.logits
        place = self._place_of_maximum(logits)
        width = min(CHUNK, -(-len(logits) // BLOCK) * BLOCK)
        buffers, ones = np.empty((2, width), dtype), np.ones(BLOCK, dtype)
        sums = np.zeros(2)
        with np.errstate(over="ignore", invalid="ignore"):
            for start in range(0, len(logits), CHUNK):
                chunk = logits[start : start + CHUNK]
                buffers[:, len(chunk) :] = 0.0
                weights, levels = buffers[:, : len(chunk)]
                np.subtract(chunk, self.maximum, out=levels, dtype=dtype)
                if temperature != 1.0:
                    np.divide(levels, temperature, out=levels)
                np.exp(levels, out=weights)
                if 0 <= place - start < CHUNK:
                    weights[place - start] = 0.0
                moments = np.multiply(weights, levels, out=levels)
                blocks = buffers.reshape(-1, BLOCK) @ ones
                if np.isnan(blocks).any():
                    # 0 * -inf: the tokens outside count for nothing
                    np.nan_to_num(moments, copy=False, nan=0.0)
                    blocks = buffers.reshape(-1, BLOCK) @ ones
                sums += blocks.reshape(2, -1).sum(axis=1, dtype=np.float64)
        return RowStats(float(sums[0]), float(sums[1]))

    def _place_of_maximum(self, logits: Array) -> int:
        """The position of one token with the largest logit."""
        if self._columns is None or logits is not self.logits:
            return int(np.argmax(logits))
        matrix, rest = self._matrix()
        column = int(self._columns.argmax())
        line = int(matrix[:, column].argmax())
        if matrix[line, column] == self.maximum:
            return int(line * matrix.shape[1] + column)
        return int(matrix.size) + int(rest.argmax())


def levels_of(logits: Array, maximum: float, temperature: float) -> NDArray[np.float64]:
    """z = (x - max) / T in float64, not below the level whose exp is 0."""
    with np.errstate(over="ignore"):
        levels = (logits.astype(np.float64) - maximum) / temperature
    return np.maximum(levels, LEAST_LEVEL, out=levels)


def _column_maxima(logits: Array) -> Array:
    width = len(logits) // LINES
    maxima: Array = logits[: LINES * width].reshape(LINES, width).max(axis=0)
    rest = logits[LINES * width :]
    # the tokens after the last whole line hang below the first column
    maxima[0] = np.max([maxima[0], rest.max(initial=-np.inf)])
    return maxima


def _status(maximum: float) -> int:
    if math.isnan(maximum):
        return NAN
    if maximum == math.inf:
        return POSITIVE_INFINITY
    return EMPTY if maximum == -math.inf else OK
