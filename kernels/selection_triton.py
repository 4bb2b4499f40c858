# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
"""Optimal selection among n candidates at one node, on a GPU: a lane for every knot, float64.

    m_j   = (C_j - C_(j-1)) / (rho_j - rho_(j-1)) - (C_(j+1) - C_j) / (rho_(j+1) - rho_j)    m_0 = the rest
    g_j   = min(w rho_j, n) m_j;   D_j, G_j sums of m, g before j;   F_j = D_j**n
    clip  phi = clip(g / m, c_lo, c_hi) about the minimum cut of G - F            optimal_transport.py
    lex   phi = g / m * slope of the concave majorant of F over G                 concave_majorant.py
    y_j   = mean of n u**(n-1) over I_j = [D_j, D_(j+1)];   e = m (phi - y);   P, N sums of max(e, 0), max(-e, 0)
    s_ik  = length of [P_i, P_(i+1)] n [N_k, N_(k+1)] / (y_k - y_i), cut to the masses       ranks.py
A rank of atom i lies in I_k with probability s_ik / m_i, of atom k in I_i with s_ik / m_k, else at home.
phi is what the s realise: rounding costs acceptance, never correctness. The majorant is found by Jarvis's
march, a segment a step; everything else is parallel over the knots or over their pairs.
"""

from __future__ import annotations

from ._triton import jit, tl
from .ratio_sums_triton import KNOTS


@jit
def pick(vector, lanes):
    """The entries of a vector over the knots at some lanes."""
    knot = tl.arange(0, KNOTS)
    return tl.sum(tl.where(knot[None, :] == lanes[:, None], vector[None, :], 0.0), 1)


@jit
def at(vector, lane):
    """One entry of a vector over the knots, 0 outside."""
    return tl.sum(tl.where(tl.arange(0, KNOTS) == lane, vector, 0.0), 0)


@jit
def power(base, n):
    """base**n for a whole n >= 0."""
    total = 0.0 * base + 1.0
    number = n
    while number > 0:
        total = total * base
        number -= 1
    return total


@jit
def mean_over(start, end, n):
    """The mean of n u**(n-1) over [start, end], by Horner's rule."""
    total = 0.0 * start + 1.0
    below = total
    number = n
    while number > 1:
        below = below * start
        total = total * end + below
        number -= 1
    return total


@jit
def knot_masses(before, sums, after, knots_ptr, knots):
    """m, of mass 1, from C at the knots and at their neighbours."""
    knot = tl.arange(0, KNOTS)
    last = knot == KNOTS - 1
    rho_before = tl.load(knots_ptr + knot - 1, mask=knot > 0, other=-1.0).to(tl.float64)
    rho_after = tl.load(knots_ptr + knot + 1, mask=knot < KNOTS - 1, other=0.0).to(tl.float64)
    rise = (sums - before) / (knots - rho_before)
    rise_after = (after - sums) / tl.where(last, 1.0, rho_after - knots)
    masses = tl.maximum(rise - tl.where(last, 0.0, rise_after), 0.0)
    others = tl.sum(tl.where(knot > 0, masses, 0.0), 0)
    masses = tl.where(knot == 0, tl.maximum(1.0 - others, 0.0), masses)
    return masses / tl.sum(masses, 0)


@jit
def clip_ratio(masses, ratio, n):
    """phi of the clip."""
    knot = tl.arange(0, KNOTS)
    wanted = ratio * masses
    ends, wanted_ends = tl.cumsum(masses, 0), tl.cumsum(wanted, 0)
    starts, wanted_starts = ends - masses, wanted_ends - wanted
    gaps = wanted_starts - power(tl.minimum(tl.maximum(starts, 0.0), 1.0), n)
    whole = tl.sum(wanted, 0) - 1.0
    least = tl.min(gaps, 0)
    cut = tl.min(tl.where(gaps == least, knot, KNOTS), 0)
    cut = tl.where(whole < least, KNOTS, cut)
    is_low = knot < cut
    mass_below = tl.sum(tl.where(is_low, masses, 0.0), 0)
    wanted_below = tl.sum(tl.where(is_low, wanted, 0.0), 0)
    level = power(tl.minimum(mass_below, 1.0), n)

    # the atoms below the cut up to `raised` get c_lo
    reached = ratio * starts + (wanted_below - wanted_starts)
    raised = tl.maximum(tl.sum((is_low & (reached <= level)).to(tl.int32), 0), 1)
    raised_mass = at(ends, raised - 1)
    low = (level - (wanted_below - at(wanted_ends, raised - 1))) / tl.where(
        raised_mass > 0.0, raised_mass, 1.0
    )
    low = tl.minimum(low, tl.where(raised < cut, at(ratio, raised), float("inf")))
    low = tl.maximum(low, at(ratio, raised - 1))
    # those above it from `capped` on get c_hi
    above = tl.cumsum(masses, 0, reverse=True)
    reached = (wanted_starts - wanted_below) + ratio * above
    rest = 1.0 - level
    capped = cut + tl.sum(((knot >= cut) & (reached < rest)).to(tl.int32), 0)
    capped_mass = at(above, capped)
    high = (rest - (at(wanted_starts, capped) - wanted_below)) / tl.where(
        capped_mass > 0.0, capped_mass, 1.0
    )
    high = tl.minimum(
        tl.maximum(high, tl.where(capped > cut, at(ratio, capped - 1), 0.0)), at(ratio, capped)
    )
    high = tl.where(capped == KNOTS, float("inf"), high)
    return tl.where(is_low, tl.maximum(ratio, low), tl.minimum(ratio, high))


@jit
def lex_ratio(masses, ratio, n):
    """phi of the lex-optimal law."""
    knot = tl.arange(0, KNOTS)
    widths = ratio * masses
    ends = tl.minimum(tl.cumsum(masses, 0), 1.0)
    rises = masses * mean_over(tl.maximum(ends - masses, 0.0), ends, n)
    width_ends, rise_ends = tl.cumsum(widths, 0), tl.cumsum(rises, 0)
    # the first knot, of ratio 0, rises without width
    phi = tl.where(knot == 0, mean_over(0.0 * masses, masses, n), 0.0)
    first = tl.full((), 1, tl.int32)
    while first < KNOTS:
        width = width_ends - at(width_ends, first - 1)
        rise = rise_ends - at(rise_ends, first - 1)
        ahead = (knot >= first) & (width > 0.0)
        slopes = tl.where(ahead, rise / tl.where(ahead, width, 1.0), -1.0)
        slope = tl.max(slopes, 0)
        last = tl.max(tl.where(slopes == slope, knot, 0), 0)
        # no mass is left where every slope is -1
        last = tl.where(slope < 0.0, KNOTS - 1, last)
        inside = (knot >= first) & (knot <= last)
        phi = tl.where(inside, ratio * tl.maximum(slope, 0.0), phi)
        first = last + 1
    return phi


@jit
def swap_of(raised_start, raised_end, lowered_start, lowered_end, raised_mean, lowered_mean):
    """The rank mass that a raised and a lowered atom swap."""
    length = tl.minimum(raised_end, lowered_end) - tl.maximum(raised_start, lowered_start)
    lift = lowered_mean - raised_mean
    meets = (length > 0.0) & (lift > 0.0)
    return tl.where(meets, length / tl.where(meets, lift, 1.0), 0.0)


@jit
def selection(before, sums, after, knots_ptr, knots, weight, n, ratios, uniform, LEX: tl.constexpr):
    """The selection law of a node, and the ranks that it gives the candidates.

    Returns:
        m and psi at the knots, ranks [paths], psi(r) / phi(r) [paths].
    """
    knot = tl.arange(0, KNOTS)
    count = n.to(tl.float64)
    masses = knot_masses(before, sums, after, knots_ptr, knots)
    phi = tl.zeros((KNOTS,), tl.float64) + 1.0
    ranks = 0.0 * uniform
    lower = tl.sum((knots[None, :] <= ratios[:, None]).to(tl.int32), 1) - 1
    lower = tl.minimum(lower, KNOTS - 2)
    rho = pick(knots, lower)
    share = tl.minimum((ratios - rho) / (pick(knots, lower + 1) - rho), 1.0)
    if n > 1:
        ratio = tl.minimum(weight * knots, count)
        if LEX:
            phi = lex_ratio(masses, ratio, n)
        else:
            phi = clip_ratio(masses, ratio, n)
        ends = tl.minimum(tl.cumsum(masses, 0), 1.0)
        starts = tl.maximum(ends - masses, 0.0)
        means = mean_over(starts, ends, n)
        missing = masses * (phi - means)
        up, down = tl.maximum(missing, 0.0), tl.maximum(-missing, 0.0)
        up_ends, down_ends = tl.cumsum(up, 0), tl.cumsum(down, 0)
        up_starts, down_starts = up_ends - up, down_ends - down
        swaps = swap_of(
            up_starts[:, None],
            up_ends[:, None],
            down_starts[None, :],
            down_ends[None, :],
            means[:, None],
            means[None, :],
        )
        # no atom gives more than its mass
        swaps = tl.minimum(swaps, tl.minimum(masses[:, None], masses[None, :]))
        given = tl.sum(swaps, 1)
        raised_room = tl.where(given > masses, masses / tl.where(given > 0.0, given, 1.0), 1.0)
        swaps = swaps * raised_room[:, None]
        taken = tl.sum(swaps, 0)
        lowered_room = tl.where(taken > masses, masses / tl.where(taken > 0.0, taken, 1.0), 1.0)
        swaps = swaps * lowered_room[None, :]
        gains = swaps * (means[None, :] - means[:, None])
        change = tl.sum(gains, 1) - tl.sum(gains, 0)
        phi = means + tl.where(masses > 0.0, change / tl.where(masses > 0.0, masses, 1.0), 0.0)

        # the candidate's atom: the knot below it or the one above
        is_upper = uniform >= 1.0 - share
        atom = tl.where(is_upper, lower + 1, lower)
        chance = tl.where(is_upper, share, 1.0 - share)
        number = tl.where(is_upper, uniform - (1.0 - share), uniform) / chance
        mass, mean = pick(masses, atom), pick(means, atom)
        is_raised = pick(up, atom) > 0.0
        rows = swap_of(
            pick(up_starts, atom)[:, None],
            pick(up_ends, atom)[:, None],
            down_starts[None, :],
            down_ends[None, :],
            mean[:, None],
            means[None, :],
        )
        columns = swap_of(
            up_starts[None, :],
            up_ends[None, :],
            pick(down_starts, atom)[:, None],
            pick(down_ends, atom)[:, None],
            means[None, :],
            mean[:, None],
        )
        own = tl.where(is_raised, pick(raised_room, atom), pick(lowered_room, atom))
        others = tl.where(is_raised[:, None], lowered_room[None, :], raised_room[None, :])
        away = tl.where(is_raised[:, None], rows, columns)
        away = tl.minimum(away, tl.minimum(mass[:, None], masses[None, :]))
        away = away * own[:, None] * others
        # its interval, then the place in it
        point = (number * mass)[:, None]
        away_ends = tl.cumsum(away, 1)
        here = (away > 0.0) & (point < away_ends) & (point >= away_ends - away)
        interval = tl.max(tl.where(here, knot[None, :], -1), 1)
        gone = tl.sum(away, 1)
        inside = tl.sum(
            tl.where(here, (point - (away_ends - away)) / tl.where(here, away, 1.0), 0.0), 1
        )
        home = mass - gone
        at_home = (number * mass - gone) / tl.where(home > 0.0, home, 1.0)
        inside = tl.where(interval < 0, at_home, inside)
        inside = tl.minimum(tl.maximum(inside, 0.0), 1.0)
        interval = tl.where(interval < 0, atom, interval)
        ranks = pick(starts, interval) + inside * pick(masses, interval)
    psi = tl.minimum(phi, weight * knots)
    accepted = (1.0 - share) * pick(psi, lower) + share * pick(psi, lower + 1)
    selected = (1.0 - share) * pick(phi, lower) + share * pick(phi, lower + 1)
    weights = tl.where(selected > 0.0, accepted / tl.where(selected > 0.0, selected, 1.0), 0.0)
    return masses, psi, ranks, tl.minimum(weights, 1.0)
