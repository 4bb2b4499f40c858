"""The canonical draw.

The statistical tests use fixed seeds and fail below p = 1e-4: a right implementation would fail one
of them at an unlucky choice of seed with probability below 2e-3, all of them together.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2_contingency, chisquare

from warpdraft.kernels import draw as module
from warpdraft.kernels.draw import DIRECT, GROUP, SLICE, draw, draw_reference
from warpdraft.kernels.noise import Noise, Role

P_FLOOR = 1e-4

# what a mutation must reach: far from any chance, so that the floor above is no accident
P_CAUGHT = 1e-12


def both_ways(mass, noise, role, *, depth=0, path=0):
    """The form for other devices, on the CPU."""
    return module._draw_both_ways(mass, noise, role, depth, path)


FORMS = [pytest.param(draw, id="cpu"), pytest.param(both_ways, id="device")]


def noise_of(rows, seed=0, **fields):
    return Noise.create(rows, seed=seed, **fields, device="cpu")


def masses(rows, vocab, support, dtype=torch.float32, seed=0):
    """Random masses of very different sizes on `support` random tokens a row."""
    generator = torch.Generator().manual_seed(seed)
    mass = torch.randn(rows, vocab, generator=generator, dtype=dtype).mul(2).exp()
    ranks = torch.rand(rows, vocab, generator=generator).argsort(dim=1).argsort(dim=1)
    return mass.where(ranks < support, 0)


SHAPES = [
    (1, 1),
    (31, 31),
    (1000, 3),
    (DIRECT, DIRECT),
    (DIRECT + 1, DIRECT),
    (DIRECT + 1, DIRECT + 1),
    (2048, 2000),
    (2079, 1500),
    (SLICE, SLICE),
    (SLICE + 1, SLICE + 1),
    (2 * SLICE - 1, 1024),
    (2 * SLICE + 33, 2 * SLICE),
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(("vocab", "support"), SHAPES)
def test_equals_the_definition(vocab, support, dtype, form):
    mass, noise = masses(3, vocab, support, dtype), noise_of(3, seed=-(2**40), step=2**31)
    depth, path = torch.tensor([0, 9, 255]), torch.tensor([4095, 1, 0])
    expected = draw_reference(mass, noise, Role.RESIDUAL, depth=depth, path=path)
    tokens = form(mass, noise, Role.RESIDUAL, depth=depth, path=path)
    assert tokens.dtype == torch.int64
    assert tokens.tolist() == expected.tolist()
    assert (mass.gather(1, tokens[:, None]) > 0).all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("role", [Role.DRAFT, Role.RESIDUAL, Role.BONUS, Role.PLAIN])
def test_every_role_equals_the_definition(role, form):
    mass, noise = masses(8, 3000, 2500), noise_of(8)
    expected = draw_reference(mass, noise, role, depth=3, path=2)
    assert form(mass, noise, role, depth=3, path=2).tolist() == expected.tolist()


def mixed_rows():
    """Direct and staged rows, one without mass, in turn."""
    return torch.cat([masses(2, 20_000, support) for support in (7, 5000, 0, 1024, 1025, 20_000)])


@pytest.mark.parametrize("form", FORMS)
def test_direct_and_staged_rows_mix(form):
    mass, noise = mixed_rows(), noise_of(12)
    depth, path = torch.arange(12), torch.arange(12).flip(0)
    expected = draw_reference(mass, noise, Role.DRAFT, depth=depth, path=path)
    assert form(mass, noise, Role.DRAFT, depth=depth, path=path).tolist() == expected.tolist()
    assert (expected == -1).tolist() == [False] * 4 + [True] * 2 + [False] * 6


@pytest.mark.parametrize("form", FORMS)
def test_a_row_never_depends_on_the_batch(form):
    mass, noise = mixed_rows(), noise_of(12)
    tokens = form(mass, noise, Role.PLAIN)
    for row in range(12):
        alone = torch.tensor([row])
        assert form(mass[alone], noise.select(alone), Role.PLAIN) == tokens[row]
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    shuffled = form(mass[order], noise.select(order), Role.PLAIN)
    assert shuffled.tolist() == tokens[order].tolist()


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    st.integers(1, 3000),
    st.floats(0, 1),
    st.integers(-(2**63), 2**63 - 1),
    st.integers(-60, 60),
)
def test_properties(vocab, share, seed, power):
    mass, noise = masses(2, vocab, round(share * vocab), seed=seed % 2**40), noise_of(2, seed=seed)
    tokens = draw(mass, noise, Role.PLAIN)
    has_mass = mass.any(dim=1)
    assert ((tokens >= 0) == has_mass).all()
    assert (mass.gather(1, tokens.clamp(min=0)[:, None])[:, 0] > 0).equal(has_mass)
    # masses need not be normalised: a power of two changes no rounding
    assert draw(mass * 2.0**power, noise, Role.PLAIN).equal(tokens)
    # tokens without mass do not matter, as long as the stages keep their borders
    assert draw(torch.nn.functional.pad(mass, (0, 100)), noise, Role.PLAIN).equal(tokens)
    assert both_ways(mass, noise, Role.PLAIN).equal(tokens)


LAYOUTS = {
    "column-major": lambda mass: mass.T.contiguous().T,
    "every-second-column": lambda mass: mass.repeat_interleave(2, dim=1)[:, ::2],
    "inside-a-wider-tensor": lambda mass: torch.nn.functional.pad(mass, (5, 9))[:, 5:-9],
    "requires-grad": lambda mass: mass.clone().requires_grad_(),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_any_layout(layout, form):
    mass, noise = mixed_rows(), noise_of(12)
    view = layout(mass).detach() if form is both_ways else layout(mass)
    assert form(view, noise, Role.DRAFT).equal(draw(mass, noise, Role.DRAFT))


@pytest.mark.parametrize("form", FORMS)
def test_masses_are_not_changed(form):
    mass = mixed_rows()
    form(mass, noise_of(12), Role.DRAFT)
    assert mass.equal(mixed_rows())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("support", [0, 5, 1024, 9000])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), -1e-30])
def test_bad_masses_are_not_drawn_silently(bad, support, form):
    mass = masses(3, 9001, support)
    expected = draw_reference(mass, noise_of(3), Role.DRAFT)
    mass[1, 4321], expected[1] = bad, -1
    assert draw_reference(mass, noise_of(3), Role.DRAFT).tolist() == expected.tolist()
    assert form(mass, noise_of(3), Role.DRAFT).tolist() == expected.tolist()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("total", [2.0**-900, 2.0**900])
def test_total_mass_has_limits(total, form):
    mass, noise = torch.zeros(1, 5, dtype=torch.float64), noise_of(1)
    mass[0, 3] = total
    assert form(mass, noise, Role.DRAFT).tolist() == [3]
    mass[0, 3] *= total
    assert form(mass, noise, Role.DRAFT).tolist() == [-1]


@pytest.mark.parametrize("form", [*FORMS, pytest.param(draw_reference, id="reference")])
@pytest.mark.parametrize("vocab", [500, 3 * SLICE - 7])
def test_equal_keys_go_to_the_lowest_id(vocab, form, monkeypatch):
    monkeypatch.setattr(
        Noise, "exponential", lambda _, role, index, **__: torch.ones_like(index).double()
    )
    mass = torch.ones(2, vocab)
    mass[0, :3] = 0
    # row 0: slice 1 holds more than slice 0, and its groups and tokens are equal
    lowest = 3 if vocab <= DIRECT else SLICE
    assert form(mass, noise_of(2), Role.DRAFT).tolist() == [lowest, 0]


def test_no_rows():
    noise = noise_of(0)
    assert draw(torch.zeros(0, 50), noise, Role.DRAFT).shape == (0,)
    assert both_ways(torch.zeros(0, 9000), noise, Role.DRAFT).shape == (0,)


def test_bad_input_is_refused():
    noise, mass = noise_of(2), torch.ones(2, 5)
    with pytest.raises(TypeError, match=r"float32 or float64, got torch\.bfloat16"):
        draw(mass.bfloat16(), noise, Role.DRAFT)
    with pytest.raises(ValueError, match=r"1 <= vocab <= 16777216, got \[2, 0\]"):
        draw(mass[:, :0], noise, Role.DRAFT)
    with pytest.raises(ValueError, match=r"got \[1, 16777217\]"):
        draw(torch.ones(1, 1).expand(1, 2**24 + 1), noise, Role.DRAFT)
    with pytest.raises(ValueError, match=r"got \[5\]"):
        draw(mass[0], noise, Role.DRAFT)
    with pytest.raises(ValueError, match="mass has 2 rows, noise has 3"):
        draw(mass, noise_of(3), Role.DRAFT)
    with pytest.raises(ValueError, match=r"role must be one of .*DRAFT.*DRAFT_SLICE"):
        draw(mass, noise, Role.DRAFT_SLICE)
    with pytest.raises(ValueError, match="depth must be in"):
        draw(mass, noise, Role.DRAFT, depth=256)


@pytest.mark.parametrize("vocab", [40, 20_000])
def test_values_on_a_device_are_never_read(vocab):
    # a meta tensor has no values: reading one raises
    rows = torch.empty(2, dtype=torch.int64, device="meta")
    noise = Noise.create(2, seed=rows, device="meta")
    tokens = draw(torch.empty(2, vocab, device="meta"), noise, Role.DRAFT, depth=rows)
    assert tokens.shape == (2,)
    assert tokens.device.type == "meta"


# goodness of fit


def sample(mass, size, *, role=Role.PLAIN, seed=0, step=0, chunk=64):
    """`size` draws from one row of masses `[vocab]`, by as many sequences."""
    sequences = torch.arange(size).split(chunk)
    return torch.cat(
        [
            draw(
                mass.expand(len(sequence), -1),
                noise_of(len(sequence), seed=seed, sequence=sequence, step=step),
                role,
            )
            for sequence in sequences
        ]
    )


def p_of_fit(tokens, mass, cells):
    """Chi-square p-value of the drawn tokens against the masses, in the cells `[vocab]`."""
    assert (mass[tokens] > 0).all()
    number = int(cells.max()) + 1
    expected = torch.zeros(number).double().index_add_(0, cells, mass.double())
    expected *= len(tokens) / expected.sum()
    drawn = cells[tokens].bincount(minlength=number)
    possible = expected > 0
    assert expected[possible].min() >= 5
    return chisquare(drawn[possible], expected[possible]).pvalue


@pytest.mark.parametrize("form", [*FORMS, pytest.param(draw_reference, id="reference")])
@pytest.mark.parametrize("vocab", [1, 5000, 9000])
def test_support_of_one_token(vocab, form):
    mass = torch.zeros(50, vocab)
    mass[:, vocab // 2] = 1e-30
    assert form(mass, noise_of(50), Role.DRAFT).tolist() == [vocab // 2] * 50


@pytest.mark.parametrize(
    ("support", "vocab", "size"), [(32, 1000, 30_000), (1024, 1024, 12_000), (1024, 9000, 9000)]
)
def test_direct_race_has_the_law_of_the_masses(support, vocab, size):
    generator = torch.Generator().manual_seed(support)
    mass = torch.zeros(vocab)
    tokens = torch.randperm(vocab, generator=generator)[:support]
    mass[tokens] = torch.rand(support, generator=generator) * 0.8 + 0.6
    assert p_of_fit(sample(mass, size), mass, torch.arange(vocab)) > P_FLOOR


def hot_masses(vocab, groups):
    """Masses with cells inside single groups and slices, and the cells.

    Every token has mass. Half of a hot slice lies in its hot group, and half of that in the group's
    first token, whose number the slice and the group share where all three are 0. Cells: the tokens
    of the hot groups, every 8 other groups of their slices, the other slices.
    """
    generator = torch.Generator().manual_seed(vocab)
    tokens = torch.arange(vocab)
    mass = torch.rand(vocab, generator=generator) + 0.5
    cells = (tokens // SLICE) << 32
    for group in groups:
        in_slice, in_group = tokens // SLICE == group * GROUP // SLICE, tokens // GROUP == group
        mass[group * GROUP] = mass[in_group].sum()
        mass[in_group] *= mass[in_slice].sum() / mass[in_group].sum()
        cells[in_slice] += (tokens[in_slice] // (8 * GROUP) + 1) << 16
        cells[in_group] += tokens[in_group] + 1
    for group in groups:
        in_slice = tokens // SLICE == group * GROUP // SLICE
        mass[in_slice] /= mass[in_slice].sum()
    others = cells & 0xFFFFFFFF == 0
    mass[others] *= 0.5 / mass[others].sum()
    return mass, cells.unique(return_inverse=True)[1]


@pytest.mark.parametrize(
    ("vocab", "groups", "size"),
    [
        (SLICE - 5, [0], 4000),
        (SLICE + 1, [0], 4000),
        (262_144, [0, 17 * 256 + 40], 3000),
        (151_936 + 7, [1], 2000),
    ],
)
def test_staged_race_has_the_law_of_the_masses(vocab, groups, size):
    mass, cells = hot_masses(vocab, groups)
    assert mass.count_nonzero() > DIRECT
    assert p_of_fit(sample(mass, size), mass, cells) > P_FLOOR


@pytest.mark.parametrize(
    ("stage", "read_as"),
    [
        pytest.param(Role.PLAIN_SLICE, Role.PLAIN, id="slice-as-token"),
        pytest.param(Role.PLAIN_GROUP, Role.PLAIN, id="group-as-token"),
        pytest.param(Role.PLAIN_GROUP, Role.PLAIN_SLICE, id="group-as-slice"),
    ],
)
def test_stages_that_share_noise_are_caught(stage, read_as, monkeypatch):
    right = Noise.exponential

    def shared(noise, role, index, **place):
        return right(noise, read_as if role == stage else role, index, **place)

    monkeypatch.setattr(Noise, "exponential", shared)
    mass, cells = hot_masses(SLICE + 1, [0])
    assert p_of_fit(sample(mass, 8000), mass, cells) < P_CAUGHT


# independence

PAIRS = {
    "role": ({"role": Role.DRAFT}, {"role": Role.RESIDUAL}),
    "neighbouring-role": ({"role": Role.DRAFT}, {"role": Role.BONUS}),
    "seed": ({"seed": 1}, {"seed": 2}),
    "seed-high-bits": ({"seed": 1}, {"seed": 1 + 2**32}),
    "sequence": ({"first": 0}, {"first": 1}),
    "sequence-high-bits": ({"first": 0}, {"first": 2**32}),
    "step": ({"step": 0}, {"step": 1}),
    "depth": ({"depth": 0}, {"depth": 1}),
    "path": ({"path": 0}, {"path": 1}),
}


def p_of_independence(vocab, one, other, size):
    """Contingency chi-square p-value of two draws a row from one law of 8 cells."""

    def drawn(role=Role.DRAFT, seed=0, first=0, step=0, depth=0, path=0):
        # every second sequence, so that neighbours are never in both samples
        noise = noise_of(size, seed=seed, sequence=first + 2 * torch.arange(size), step=step)
        return draw(mass, noise, role, depth=depth, path=path) * 8 // vocab

    mass = torch.ones(1, vocab).expand(size, -1)
    table = (drawn(**one) * 8 + drawn(**other)).bincount(minlength=64).view(8, 8)
    return chi2_contingency(table.numpy()).pvalue


@pytest.mark.parametrize(("vocab", "size"), [(8, 20_000), (1200, 3000)], ids=["direct", "staged"])
@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_equal_rows_draw_independently(pair, vocab, size):
    assert p_of_independence(vocab, *pair, size) > P_FLOOR


@pytest.mark.parametrize("field", ["sequence", "step", "depth", "path"])
def test_a_field_missing_from_the_counter_is_caught(field, monkeypatch):
    from warpdraft.kernels import noise as noise_module

    right = noise_module._layout

    def without(role, seed, sequence, step, index, depth, path):
        fields = {"sequence": sequence, "step": step, "depth": depth, "path": path}
        fields[field] = fields[field] // 2
        return right(role, seed, index=index, **fields)

    monkeypatch.setattr(noise_module, "_layout", without)
    assert p_of_independence(8, *PAIRS[field], 2000) < P_CAUGHT


# ---- the support alone


def support_of(mass, extra=0):
    """Masses and token ids of each row's support, ascending, with columns of mass 0 behind it."""
    width = int((mass != 0).sum(1).max()) + extra
    token_ids = torch.full((len(mass), width), mass.shape[1] - 1)
    few = mass.new_zeros(len(mass), width)
    for row, values in enumerate(mass):
        found = values.nonzero().squeeze(1)
        token_ids[row, : len(found)] = found
        few[row, : len(found)] = values[found]
    return few, token_ids


@pytest.mark.parametrize("role", module.DRAWS)
@pytest.mark.parametrize(("vocab", "support"), [(1, 1), (31, 5), (5000, 40), (9000, DIRECT)])
def test_support_draws_the_tokens_of_the_whole_row(vocab, support, role):
    mass = masses(60, vocab, support)
    mass[:20] = mass[:20].where(torch.arange(vocab) % 2 == 0, 0)
    mass[0] = 0
    depth, path = torch.arange(60) % 5, torch.arange(60) % 4
    noise = noise_of(60)
    whole = draw(mass, noise, role, depth=depth, path=path)
    few, token_ids = support_of(mass, extra=min(3, DIRECT - support))
    column = draw(few, noise, role, depth=depth, path=path, token_ids=token_ids)
    assert int(column[0]) == int(whole[0]) == -1
    tokens = token_ids.gather(1, column.clamp_min(0)[:, None]).squeeze(1)
    assert torch.equal(tokens[whole >= 0], whole[whole >= 0])
    assert torch.equal(column < 0, whole < 0)


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
def test_support_with_a_bad_mass_has_no_token(bad):
    few = torch.tensor([[0.5, bad], [0.5, 0.5]])
    column = draw(few, noise_of(2), Role.PLAIN, token_ids=torch.tensor([[3, 9], [3, 9]]))
    assert int(column[0]) == -1
    assert int(column[1]) in (0, 1)


def test_support_of_too_many_columns_is_refused():
    few = torch.ones(1, DIRECT + 1)
    with pytest.raises(ValueError, match=f"at most {DIRECT} columns"):
        draw(few, noise_of(1), Role.PLAIN, token_ids=torch.arange(DIRECT + 1)[None])
    with pytest.raises(ValueError, match=r"like mass .* got \[1, 2\] and \[1, 3\]"):
        draw(few[:, :3], noise_of(1), Role.PLAIN, token_ids=torch.arange(2)[None])


@pytest.mark.parametrize("form", [*FORMS, pytest.param(draw_reference, id="reference")])
@pytest.mark.parametrize("total", [module.MIN_TOTAL, module.MAX_TOTAL], ids=["least", "most"])
def test_masses_at_the_ends_of_the_range_are_drawn(form, total):
    mass = torch.tensor([[0.0, total]], dtype=torch.float64)
    assert torch.as_tensor(form(mass, noise_of(1), Role.BONUS)).tolist() == [1]
