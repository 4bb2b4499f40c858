"""The canonical draw: one token a row from unnormalised masses, the same on every device.

    race(mass, names) = the name with the largest mass / E(name), E exponential;
                        it wins with probability mass / sum(mass)
    support = tokens with mass > 0
    at most 1,024 tokens:  token = race(mass[token],         names = the support's token ids)
    otherwise:             slice = race(sum of 8,192 masses, names = slices of the row)
                           group = race(sum of 32 masses,    names = groups of that slice)
                           token = race(mass[token],         names = tokens of that group)

By the chain rule P(slice) P(group | slice) P(token | group) is the token's share of the row. Each
stage has a role of its own, so the three races are independent. A row needs at most
V / 8192 + 256 + 32 numbers, or 1,024.

Accuracy: sums are taken in float64 (relative error below 1e-12). A number has 32 bits, which moves
the probability of any event by at most 2**-33 for each number of the races; a token with less than
about 2**-38 of a rival's mass is never drawn.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .noise import MAX_INDEX, Noise, Role
from .philox import Array

SLICE = 8192
"""Tokens in a slice: a row of 2**24 has 2,048 slices, and one slice fits a block's registers."""

GROUP = 32
"""Tokens in a group, one warp: a slice has 256 groups."""

DIRECT = 1024
"""The largest support that races its tokens directly: as many as one block holds in registers."""

MIN_TOTAL, MAX_TOTAL = 2.0**-900, 2.0**900
"""The total mass of a row: within these ends no key of a race overflows or vanishes."""

DRAWS = (Role.DRAFT, Role.RESIDUAL, Role.BONUS, Role.PLAIN)


def draw_reference(
    mass: Tensor, noise: Noise, role: Role, *, depth: int | Tensor = 0, path: int | Tensor = 0
) -> Tensor:
    """The definition of `draw`, a row and a token at a time."""

    def race(row: int, role: Role, masses: dict[int, float]) -> int:
        stream = noise.select(torch.tensor([row], device=noise.seed.device))
        names = torch.tensor([list(masses)], device=mass.device)
        numbers = stream.exponential(role, names, depth=at(depth, row), path=at(path, row))
        keys = dict(zip(masses, numbers[0].tolist(), strict=True))
        return max(masses, key=lambda name: (masses[name] / keys[name], -name))

    def at(value: int | Tensor, row: int) -> int:
        return int(value[row]) if isinstance(value, Tensor) else value

    def blocks(masses: dict[int, float], size: int) -> dict[int, float]:
        sums: dict[int, float] = {}
        for token, value in masses.items():
            sums[token // size] = sums.get(token // size, 0.0) + value
        return sums

    tokens = []
    for row, values in enumerate(mass.double().tolist()):
        support = {token: value for token, value in enumerate(values) if value > 0}
        valid = all(value >= 0 for value in values) and MIN_TOTAL <= sum(values) <= MAX_TOTAL
        if not valid:
            tokens.append(-1)
            continue
        if len(support) > DIRECT:
            chosen = race(row, Role(role + 1), blocks(support, SLICE))
            support = {token: value for token, value in support.items() if token // SLICE == chosen}
            chosen = race(row, Role(role + 2), blocks(support, GROUP))
            support = {token: value for token, value in support.items() if token // GROUP == chosen}
        tokens.append(race(row, role, support))
    return torch.tensor(tokens, device=mass.device)


def draw(
    mass: Tensor,
    noise: Noise,
    role: Role,
    *,
    depth: int | Tensor = 0,
    path: int | Tensor = 0,
    token_ids: Tensor | None = None,
) -> Tensor:
    """Draw one token a row, each with probability proportional to its mass.

    A row's token depends on its masses and the name of its noise only, never on the rows around
    it. Equal keys: the lowest id. On a CPU the work follows the size of each row's support; other
    devices run a fixed number of launches and never synchronise.

    Args:
        mass: `[rows, vocab]` float32 or float64, at least 0, not necessarily normalised.
        noise: the streams of the rows.
        role: the role of the draw: DRAFT, RESIDUAL, BONUS or PLAIN.
        depth: the position in the drafted block, in [0, 255]: one for all rows or int64 `[rows]`.
        path: the draft path, in [0, 4095]: one for all rows or int64 `[rows]`.
        token_ids: int64 `[rows, width]` ascending where `mass` holds a support only, of at most 1,024 columns: the
            tokens that they stand for. The draw is that of the whole row.

    Returns:
        Token ids, or columns where `token_ids` are given, int64 `[rows]`; -1 where a row has no mass, a negative, NaN
        or infinite one, or a total outside 2**-900 to 2**900 (only float64 can be).

    Raises:
        ValueError: a shape, the role or a host integer is out of its range; more than 1,024 columns with `token_ids`.
        TypeError: `mass` is neither float32 nor float64.
    """
    if mass.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"mass must be float32 or float64, got {mass.dtype}")
    if mass.ndim != 2 or not 1 <= mass.shape[1] <= MAX_INDEX + 1:
        raise ValueError(
            f"mass must be [rows, vocab] with 1 <= vocab <= {MAX_INDEX + 1}, got {list(mass.shape)}"
        )
    if len(noise) != mass.shape[0]:
        raise ValueError(f"mass has {mass.shape[0]} rows, noise has {len(noise)}")
    if role not in DRAWS:
        raise ValueError(f"role must be one of {[r.name for r in DRAWS]}, got {role!r}")

    mass = mass.detach()
    if token_ids is not None:
        return _race_columns(mass.double(), token_ids, noise, role, depth, path)
    # compiled code cannot look at a row, on a CPU either
    if mass.device.type == "cpu" and not torch.compiler.is_compiling():
        return _draw_by_support(mass, noise, role, depth, path)
    return _draw_both_ways(mass, noise, role, depth, path)


def _race_columns(
    masses: Tensor,
    token_ids: Tensor,
    noise: Noise,
    role: Role,
    depth: int | Tensor,
    path: int | Tensor,
) -> Tensor:
    """The direct race of tokens that are known by name; a column without mass never wins."""
    if token_ids.shape != masses.shape or masses.shape[1] > DIRECT:
        raise ValueError(
            f"token_ids must be like mass with at most {DIRECT} columns, "
            f"got {list(token_ids.shape)} and {list(masses.shape)}"
        )
    column = _race(masses, token_ids, noise, role, depth, path)[:, 0]
    return torch.where(_valid(masses.amin(1), masses.sum(1)), column, -1)


def _draw_both_ways(
    mass: Tensor, noise: Noise, role: Role, depth: int | Tensor, path: int | Tensor
) -> Tensor:
    """Every row both ways, then the one its support needs: nothing that runs depends on values."""
    direct = _race_support(*_compact(mass), noise, role, depth, path)
    staged = _race_stages(mass, noise, role, depth, path)
    return torch.where(torch.count_nonzero(mass, dim=1) <= DIRECT, direct, staged)


def _draw_by_support(
    mass: Tensor, noise: Noise, role: Role, depth: int | Tensor, path: int | Tensor
) -> Tensor:
    """Each row of a CPU tensor by the way its support needs, and no other."""
    supports: list[Array] = []
    direct, staged = [], []
    for number, row in enumerate(mass.numpy()):
        # not `> 0`: a negative or NaN mass must reach the check of its row
        present = row != 0
        if np.count_nonzero(present) <= DIRECT:
            direct.append(number)
            supports.append(np.flatnonzero(present))
        else:
            staged.append(number)

    if not staged:
        return _race_support(*_pad(mass, direct, supports), noise, role, depth, path)
    if not direct:
        return _race_stages(mass, noise, role, depth, path)

    tokens = torch.empty(mass.shape[0], dtype=torch.int64)
    rows = torch.tensor(direct)
    names = noise.select(rows), role, _of_rows(depth, rows), _of_rows(path, rows)
    ids, masses = _pad(mass, direct, supports)
    tokens[rows] = _race_support(ids, masses, *names)
    rows = torch.tensor(staged)
    names = noise.select(rows), role, _of_rows(depth, rows), _of_rows(path, rows)
    tokens[rows] = _race_stages(mass.index_select(0, rows), *names)
    return tokens


def _pad(mass: Tensor, rows: list[int], supports: list[Array]) -> tuple[Tensor, Tensor]:
    """Ids and float64 masses of the rows' supports, as wide as the largest, filled with zeros."""
    width = max((support.size for support in supports), default=0)
    ids = np.zeros((len(rows), max(width, 1)), np.int64)
    masses = np.zeros(ids.shape)
    values = mass.numpy()
    for place, (row, support) in enumerate(zip(rows, supports, strict=True)):
        ids[place, : support.size] = support
        masses[place, : support.size] = values[row, support]
    return torch.from_numpy(ids), torch.from_numpy(masses)


def _race_support(
    ids: Tensor,  # [rows, n] int64, ascending
    masses: Tensor,  # [rows, n] float64, zero beyond a row's support
    noise: Noise,
    role: Role,
    depth: int | Tensor,
    path: int | Tensor,
) -> Tensor:
    """The direct race of at most 1,024 tokens a row; -1 for an invalid row."""
    winner = ids.gather(1, _race(masses, ids, noise, role, depth, path))
    return torch.where(_valid(masses.amin(1), masses.sum(1)), winner[:, 0], -1)


def _race_stages(
    mass: Tensor, noise: Noise, role: Role, depth: int | Tensor, path: int | Tensor
) -> Tensor:
    """Slice, then group, then token; -1 for an invalid row."""
    slices = _sums(mass, SLICE)
    if slices.shape[1] == 1:
        # one slice: nothing to choose, and no window to cut out
        first_group = torch.zeros_like(slices, dtype=torch.int64)
        groups = _sums(mass, GROUP)
    else:
        names = torch.arange(slices.shape[1], device=mass.device).expand_as(slices)
        slice_number = _race(slices, names, noise, Role(role + 1), depth, path)
        first_group = slice_number * (SLICE // GROUP)
        groups = _sums(_window(mass, slice_number * SLICE, SLICE)[1], GROUP)

    names = first_group + torch.arange(groups.shape[1], device=mass.device)
    group = names.gather(1, _race(groups, names, noise, Role(role + 2), depth, path))

    ids, masses = _window(mass, group * GROUP, GROUP)
    token = ids.gather(1, _race(masses, ids, noise, role, depth, path))
    return torch.where(_valid(mass.amin(1), slices.sum(1)), token[:, 0], -1)


def _race(
    masses: Tensor, names: Tensor, noise: Noise, role: Role, depth: int | Tensor, path: int | Tensor
) -> Tensor:
    """The position of the largest mass / E, the first of equal ones: int64 `[rows, 1]`."""
    keys = masses / noise.exponential(role, names, depth=depth, path=path)
    return keys.argmax(dim=1, keepdim=True)


def _sums(mass: Tensor, size: int) -> Tensor:
    """Float64 sums of consecutive blocks of `size` tokens, the last one possibly shorter."""
    vocab = mass.shape[1]
    whole = vocab // size
    blocks = mass[:, : whole * size].view(mass.shape[0], whole, size)
    sums = blocks.sum(2, dtype=torch.float64)
    if whole * size == vocab:
        return sums
    rest = mass[:, whole * size :].sum(1, keepdim=True, dtype=torch.float64)
    return torch.cat((sums, rest), dim=1)


def _window(mass: Tensor, first: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Ids and float64 masses of the `size` tokens from `first` `[rows, 1]` on."""
    vocab = mass.shape[1]
    ids = first + torch.arange(size, device=mass.device)
    masses = mass.gather(1, ids.clamp(max=vocab - 1)).double()
    return ids, torch.where(ids < vocab, masses, 0.0)


def _compact(mass: Tensor) -> tuple[Tensor, Tensor]:
    """Ids and float64 masses of each row's first 1,024 tokens with mass, without synchronising."""
    rows, vocab = mass.shape
    present = mass != 0
    rank = present.cumsum(1) - 1
    # everything without a place lands in one more column, which is dropped
    place = torch.where(present & (rank < DIRECT), rank, DIRECT)
    ids = torch.zeros((rows, DIRECT + 1), dtype=torch.int64, device=mass.device)
    ids.scatter_(1, place, torch.arange(vocab, device=mass.device).expand(rows, vocab))
    masses = torch.zeros((rows, DIRECT + 1), dtype=torch.float64, device=mass.device)
    masses.scatter_(1, place, mass.double())
    return ids[:, :DIRECT], masses[:, :DIRECT]


def _valid(smallest: Tensor, total: Tensor) -> Tensor:
    """Whether a row can be drawn from; NaN fails every comparison."""
    return (smallest >= 0) & (total >= MIN_TOTAL) & (total <= MAX_TOTAL)


def _of_rows(value: int | Tensor, rows: Tensor) -> int | Tensor:
    """A depth or path of the given rows only."""
    return value.index_select(0, rows) if isinstance(value, Tensor) else value
