r"""Random ranks that make the largest of n i.i.d. drafts follow a given law: the exchange coupling.

A draft whose token belongs to atom i gets a rank u in [0, 1]; the draft of largest rank is selected. Over all tokens
ranks are uniform, so the largest of n has density n u^(n-1), and the selected token's law is

    p(x) = d(x) * mean of n u^(n-1) over the ranks of x's atom

Atoms, of mass m_i and wanted mean phi_i ascending, begin with intervals of their own and then exchange rank mass:

    D_i     = m_0 + .. + m_(i-1);    I_i = [D_i, D_(i+1)];    y_i = mean of n u^(n-1) over I_i            mean_over
    e_i     = m_i (phi_i - y_i)      > 0: atom i must be raised, < 0: lowered; sums of e over prefixes are >= 0
    P_i, N_i = sums before i of max(e, 0), of max(-e, 0);      P_i >= N_i
    E_ik    = length of [P_i, P_(i+1)] n [N_k, N_(k+1)]        what raised i takes over from lowered k: only k > i
    s_ik    = E_ik / (y_k - y_i)                               the rank mass that they swap

Atom i has its rank in I_k with probability s_ik / m_i, atom k has it in I_i with probability s_ik / m_k, each uniform
there; else it stays at home. What leaves an interval is what arrives, so ranks stay uniform; a swap moves
s_ik (y_k - y_i) = E_ik, so the means become phi. There is mass enough, for y_i < phi_i <= phi_k < y_k:
sum_k s_ik <= sum_k E_ik / (phi_i - y_i) = m_i, and the same for k.

Such ranks exist for every law with p(S) >= d(S)^n. The s that are used are cut to the masses, and `phi` is what they
realise, the law to verify with: rounding costs acceptance (about 1e-16 an atom), never correctness.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad


@dataclass(frozen=True, slots=True)
class Exchange:
    """The ranks of some atoms, a row each.

    Swaps stand in the order in which P and N run through them, so those of one atom are neighbours. There are as many
    as the two have steps; those of no length swap nothing.

    Attributes:
        mass: `[rows, atoms]` float64, m; the length of the atoms' intervals.
        start: `[rows, atoms]` float64, D.
        phi: `[rows, atoms]` float64: the means of n u^(n-1), as the swaps realise them.
        is_raised: `[rows, atoms]` bool.
        first: `[rows, atoms]` int64, an atom's first swap.
        last: `[rows, atoms]` int64, its last one.
        raised: `[rows, 2 atoms]` int64, a swap's atom i.
        lowered: `[rows, 2 atoms]` int64, its atom k.
        swapped: `[rows, 2 atoms]` float64, s_ik.
    """

    mass: Tensor
    start: Tensor
    phi: Tensor
    is_raised: Tensor
    first: Tensor
    last: Tensor
    raised: Tensor
    lowered: Tensor
    swapped: Tensor

    def rank(self, atoms: Tensor, uniform: Tensor) -> Tensor:
        """Ranks of atoms `[rows, n]` from uniform numbers `[rows, n]` in (0, 1): first the interval, then the place.

        Shares are told apart to 1e-16 of the row's mass, as ranks are.
        """
        below = sums_before(self.swapped)
        mass, first, last = (each.gather(1, atoms) for each in (self.mass, self.first, self.last))
        begin, end = below.gather(1, first), below.gather(1, last + 1)
        point = begin + uniform * mass
        away = point < end
        swap = torch.searchsorted(below[:, 1:].contiguous(), point, right=True)
        swap = torch.minimum(torch.maximum(swap, first), last)
        interval = torch.where(away, self._partners(atoms, swap), atoms)
        base = torch.where(away, below.gather(1, swap), end)
        share = torch.where(away, self.swapped.gather(1, swap), mass - (end - begin))
        inside = ((point - base) / share).nan_to_num_(0.0).clamp_(0, 1)
        return self.start.gather(1, interval) + inside * self.mass.gather(1, interval)

    def laws(self, atoms: Tensor) -> Tensor:
        """The chance of atoms `[rows, n]` to have their rank in each atom's interval, `[rows, n, atoms]`."""
        number = torch.arange(self.swapped.shape[1], device=atoms.device)
        first, last = (each.gather(1, atoms)[..., None] for each in (self.first, self.last))
        mass = self.mass.gather(1, atoms)[..., None]
        away = torch.where((first <= number) & (number <= last), self.swapped[:, None], 0.0)
        away = (away / mass).nan_to_num_(0.0)
        partners = torch.where(
            self.is_raised.gather(1, atoms)[..., None],
            self.lowered[:, None],
            self.raised[:, None],
        )
        laws = away.new_zeros(*atoms.shape, self.mass.shape[1])
        laws.scatter_add_(2, atoms[..., None], (1 - away.sum(2, keepdim=True)).clamp_min_(0))
        return laws.scatter_add_(2, partners, away)

    def only(self, kept: Tensor) -> Exchange:
        """The ranks of some rows, given by bool `[rows]` or by int64 row numbers."""
        return Exchange(*(getattr(self, field.name)[kept] for field in fields(self)))

    def _partners(self, atoms: Tensor, swaps: Tensor) -> Tensor:
        """Whom atoms `[rows, n]` meet in swaps `[rows, n]` of theirs."""
        return torch.where(
            self.is_raised.gather(1, atoms),
            self.lowered.gather(1, swaps),
            self.raised.gather(1, swaps),
        )


def exchange(mass: Tensor, phi: Tensor, num_drafts: Tensor) -> Exchange:
    """Ranks whose means are `phi`.

    Args:
        mass: `[rows, atoms]` float64, >= 0, a row sums to 1.
        phi: `[rows, atoms]` float64, ascending, p / d with p(S) >= d(S)^n; nothing hangs on atoms without mass.
        num_drafts: `[rows]` int64, n >= 1.
    """
    start = sums_before(mass)[:, :-1]
    mean = mean_over(start, mass, num_drafts[:, None])
    missing = mass * (phi - mean)
    raised, lowered, height, first, last = _staircases(missing)
    lift = mean.gather(1, lowered) - mean.gather(1, raised)
    swapped = torch.where(lift > 0, height / lift, 0.0)
    swapped = _within(swapped, mass, raised, lowered)
    gain = swapped * lift
    change = torch.zeros_like(mass).scatter_add_(1, raised, gain).scatter_add_(1, lowered, -gain)
    phi = torch.where(mass > 0, mean + change / mass, mean)
    return Exchange(mass, start, phi, missing > 0, first, last, raised, lowered, swapped)


def mean_over(start: Tensor, length: Tensor, n: Tensor) -> Tensor:
    """Mean of n u^(n-1) over [a, b] of that start and length: (b^n - a^n) / (b - a), without a difference of powers.

    With x = (b - a) / b it is b^(n-1) (1 - (1 - x)^n) / x, whose second factor is n where x is 0, and 1 for n = 1.
    """
    end = start + length
    part = (length / end).nan_to_num(0.0).clamp_max(1)
    factor = -torch.expm1(n * torch.log1p(-part)) / part
    return end ** (n - 1) * torch.where((part > 0) & (n > 1), factor, n)


def win_probabilities(laws: Tensor) -> list[float]:
    """For each candidate the chance that its rank is the largest: an exact integral.

    Within an interval densities are constant and distribution functions linear, so their product is a polynomial of
    degree n - 1, for which Gauss's rule is exact.

    Args:
        laws: `[n, atoms]`, the chance of each candidate's rank to lie in each interval, uniform there.
    """
    nodes, weights = (
        torch.from_numpy(each).to(laws)
        for each in np.polynomial.legendre.leggauss(len(laws) // 2 + 1)
    )
    below = sums_before(laws)[:, :-1, None] + laws[:, :, None] * ((nodes + 1) / 2)
    chances = []
    for path, law in enumerate(laws):
        others = torch.cat([below[:path], below[path + 1 :]]).prod(0)
        chances.append(float(law @ (others @ weights)) / 2)
    return chances


def sums_before(mass: Tensor) -> Tensor:
    """`[rows, atoms + 1]`: the mass of the first 0, 1, .. atoms."""
    return pad(_cumulated(mass), (1, 0))


def _cumulated(mass: Tensor) -> Tensor:
    """Sums of the first 1, 2, .. atoms, ascending also where they are summed in parallel."""
    return mass.cumsum(1).cummax(1).values


def _staircases(missing: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """P and N, merged: every step of either, whether an atom is raised or lowered, ends one swap.

    Returns:
        Of the swaps atom i, atom k and E_ik, `[rows, 2 atoms]`; of the atoms the first and last swap, `[rows, atoms]`.
    """
    raised_ends, lowered_ends = (
        _cumulated(missing.clamp_min(0)),
        _cumulated((-missing).clamp_min(0)),
    )
    number = torch.arange(2 * missing.shape[1], device=missing.device)
    atoms = number[: missing.shape[1]]
    raised_last = atoms + torch.searchsorted(lowered_ends, raised_ends)
    lowered_last = atoms + torch.searchsorted(raised_ends, lowered_ends, right=True)
    ends = torch.cat([raised_ends, lowered_ends], 1)
    ends = torch.empty_like(ends).scatter_(1, torch.cat([raised_last, lowered_last], 1), ends)
    height = ends.diff(dim=1, prepend=torch.zeros_like(ends[:, :1]))
    ended = torch.zeros_like(ends, dtype=torch.int64).scatter_(1, raised_last, 1)
    raised = ended.cumsum(1) - ended
    lowered = number - raised
    # the heights of P and of N differ by rounding: what is left of the higher one has no partner
    height = torch.where(torch.maximum(raised, lowered) <= atoms[-1], height, 0.0)
    raised, lowered = (torch.minimum(each, atoms[-1]) for each in (raised, lowered))
    last = torch.where(missing > 0, raised_last, lowered_last)
    before = torch.where(missing > 0, _shifted(raised_last), _shifted(lowered_last))
    return raised, lowered, height, before + 1, last


def _within(swapped: Tensor, mass: Tensor, raised: Tensor, lowered: Tensor) -> Tensor:
    """The swaps, none larger than its atoms, together none larger than any atom."""
    for atoms in (raised, lowered):
        swapped = torch.minimum(swapped, mass.gather(1, atoms))
    for atoms in (raised, lowered):
        total = torch.zeros_like(mass).scatter_add_(1, atoms, swapped)
        room = torch.where(total > mass, mass / total, 1.0)
        swapped = swapped * room.gather(1, atoms)
    return swapped


def _shifted(last: Tensor) -> Tensor:
    """The last swap of the atom before."""
    return pad(last[:, :-1], (1, 0), value=-1)
