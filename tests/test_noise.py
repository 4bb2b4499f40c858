from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from no_synchronisation import NoSynchronisation
from pretended_device import DEVICE, pretended_device

from warpdraft.kernels.noise import (
    MAX_DEPTH,
    MAX_INDEX,
    MAX_PATH,
    MAX_SEQUENCE,
    MAX_STEP,
    Noise,
    Role,
    _layout,
)
from warpdraft.kernels.philox import philox_reference, philox_torch


def one_word(role=Role.DRAFT, seed=1, sequence=2, step=3, index=4, depth=5, path=6):
    noise = Noise.create(1, seed=seed, sequence=sequence, step=step, device="cpu")
    return int(noise.words(role, torch.tensor([[index]]), depth=depth, path=path))


FIELDS = {
    "index": st.integers(0, MAX_INDEX),
    "depth": st.integers(0, MAX_DEPTH),
    "path": st.integers(0, MAX_PATH),
    "sequence": st.integers(0, MAX_SEQUENCE),
    "step": st.integers(0, MAX_STEP),
    "seed": st.integers(-(2**63), 2**63 - 1),
    "role": st.sampled_from(list(Role)),
}


@settings(deadline=None, derandomize=True)
@given(st.fixed_dictionaries(FIELDS))
def test_words_follow_the_published_layout(name):
    counter = (
        name["index"] + name["depth"] * 2**24,
        name["step"],
        name["sequence"] % 2**32,
        name["sequence"] // 2**32 + name["path"] * 2**16 + name["role"] * 2**28,
    )
    key = (name["seed"] % 2**32, name["seed"] // 2**32 % 2**32)
    assert one_word(**name) == philox_reference(counter, key)[0]


@settings(derandomize=True)
@given(st.fixed_dictionaries(FIELDS))
def test_every_name_can_be_read_back_from_its_counter(name):
    # what has an inverse cannot send two names to one counter
    (c0, c1, c2, c3), (k0, k1) = _layout(**name)
    assert all(0 <= word < 2**32 for word in (c0, c1, c2, c3, k0, k1))
    seed = k0 | k1 << 32
    assert name == {
        "index": c0 & 0xFFFFFF,
        "depth": c0 >> 24,
        "step": c1,
        "sequence": c2 | (c3 & 0xFFFF) << 32,
        "path": c3 >> 16 & 0xFFF,
        "role": c3 >> 28,
        "seed": seed - 2**64 if seed >= 2**63 else seed,
    }


@pytest.mark.parametrize(
    "change",
    [
        {"role": Role.RESIDUAL},
        {"seed": 1 + 2**32},
        {"seed": 0},
        {"sequence": 2 + 2**40},
        {"sequence": 3},
        {"step": 2},
        {"index": 5},
        {"depth": 4},
        {"path": 7},
    ],
    ids=lambda change: "-".join(f"{field}={value!r}" for field, value in change.items()),
)
def test_every_field_changes_the_word(change):
    assert one_word(**change) != one_word()


def test_roles_are_distinct_and_fit_four_bits():
    assert len(set(Role)) == len(Role.__members__)
    assert all(0 <= role < 16 for role in Role)


@pytest.mark.parametrize("name", ["DRAFT", "RESIDUAL", "BONUS", "PLAIN"])
def test_stages_follow_their_role(name):
    assert Role[f"{name}_SLICE"] == Role[name] + 1
    assert Role[f"{name}_GROUP"] == Role[name] + 2


def test_rows_read_their_own_streams():
    seed, sequence = torch.tensor([-9, 2**62]), torch.tensor([2**47 + 1, 12])
    step, depth, path = torch.tensor([0, 2**32 - 1]), torch.tensor([3, 255]), torch.tensor([9, 0])
    index = torch.tensor([[0, 5, 9], [5, 2**24 - 1, 0]])
    noise = Noise.create(2, seed=seed, sequence=sequence, step=step, device="cpu")
    words = noise.words(Role.BONUS, index, depth=depth, path=path)
    assert words.dtype == torch.int64
    for row in range(2):
        for column in range(3):
            assert words[row, column] == one_word(
                Role.BONUS,
                *(int(field[row]) for field in (seed, sequence, step)),
                int(index[row, column]),
                int(depth[row]),
                int(path[row]),
            )


def test_depth_and_path_may_differ_within_a_row():
    noise = Noise.create(1, seed=1, sequence=2, step=3, device="cpu")
    depth, path = torch.tensor([[0, 1, 255]]), torch.tensor([[4095, 0, 7]])
    words = noise.words(Role.RANK, torch.zeros(1, 3, dtype=torch.int64), depth=depth, path=path)
    expected = [
        one_word(Role.RANK, index=0, depth=d, path=p) for d, p in [(0, 4095), (1, 0), (255, 7)]
    ]
    assert words.tolist() == [expected]


def test_torch_form_reads_the_same_words():
    noise = Noise.create(3, seed=-(2**63), sequence=torch.tensor([0, 1, 2**48 - 1]), device="cpu")
    index, depth = torch.arange(300).view(3, 100), torch.tensor([[0], [7], [255]])
    fields = noise.seed[:, None], noise.sequence[:, None], noise.step[:, None], index, depth, 4095
    words = philox_torch(*_layout(Role.ACCEPT, *fields))[0]
    assert words.equal(noise.words(Role.ACCEPT, index, depth=depth[:, 0], path=4095))


def test_a_row_never_depends_on_the_batch():
    noise, index = Noise.create(9, seed=4, device="cpu"), torch.arange(9 * 33).view(9, 33)
    numbers = noise.exponential(Role.PLAIN, index)
    for row in range(9):
        alone = torch.tensor([row])
        for width in (1, 7, 33):
            few = noise.select(alone).exponential(Role.PLAIN, index[alone, :width])
            assert few.equal(numbers[alone, :width])


def test_default_sequence_is_the_row_number():
    assert Noise.create(4, seed=0, device="cpu").sequence.tolist() == [0, 1, 2, 3]


def test_one_integer_serves_all_rows():
    noise = Noise.create(3, seed=-5, step=7, device="cpu")
    assert noise.seed.tolist() == [-5] * 3
    assert noise.step.tolist() == [7] * 3
    assert len(noise) == 3


def test_missing_seed_is_replayed_by_manual_seed():
    torch.manual_seed(11)
    first, second = Noise.create(2, device="cpu"), Noise.create(2, device="cpu")
    torch.manual_seed(11)
    assert Noise.create(2, device="cpu").seed.equal(first.seed)
    assert not second.seed.equal(first.seed)
    assert first.seed[0] == first.seed[1]


def test_missing_seed_takes_one_number_from_the_generator():
    generator = torch.Generator().manual_seed(3)
    state = torch.random.get_rng_state()
    seeds = [Noise.create(1, generator=generator, device="cpu").seed.item() for _ in range(64)]
    assert torch.random.get_rng_state().equal(state)
    assert len(set(seeds)) == 64
    # all 64 bits take part: a bit that never changes shows by chance with probability 2**-63
    assert all(len({seed >> bit & 1 for seed in seeds}) == 2 for bit in range(64))
    generator.manual_seed(3)
    assert Noise.create(1, generator=generator, device="cpu").seed.item() == seeds[0]


def test_select_repeats_and_reorders_rows():
    noise = Noise.create(3, seed=torch.tensor([5, 6, 7]), step=torch.arange(3), device="cpu")
    chosen = noise.select(torch.tensor([2, 0, 0]))
    assert chosen.seed.tolist() == [7, 5, 5]
    assert chosen.sequence.tolist() == [2, 0, 0]
    assert chosen.step.tolist() == [2, 0, 0]


def test_at_moves_to_another_step_only():
    noise = Noise.create(2, seed=1, device="cpu")
    assert noise.at(2**32 - 1).step.tolist() == [2**32 - 1] * 2
    assert noise.at(torch.tensor([4, 9])).step.tolist() == [4, 9]
    assert noise.at(5).seed is noise.seed
    assert noise.step.tolist() == [0, 0]


def test_numbers_at_the_ends_of_the_words(monkeypatch):
    ends = torch.tensor([[0, 2**32 - 1]])
    monkeypatch.setattr(Noise, "words", lambda *_, **__: ends)
    noise = Noise.create(1, seed=1, device="cpu")
    uniform = noise.uniform(Role.ACCEPT, ends)
    assert uniform.dtype == torch.float64
    assert uniform.tolist() == [[2.0**-33, 1 - 2.0**-33]]
    numbers = noise.exponential(Role.ACCEPT, ends)[0].tolist()
    assert numbers == pytest.approx([2.0**-33, 33 * math.log(2)], rel=1e-9)


LIMITS = [
    pytest.param("sequence", 0, MAX_SEQUENCE, id="sequence"),
    pytest.param("step", 0, MAX_STEP, id="step"),
    pytest.param("index", 0, MAX_INDEX, id="index"),
    pytest.param("depth", 0, MAX_DEPTH, id="depth"),
    pytest.param("path", 0, MAX_PATH, id="path"),
]


@pytest.mark.parametrize(("field", "low", "high"), LIMITS)
def test_limits(field, low, high):
    for value in (low, high):
        one_word(**{field: value})
    for value in (low - 1, high + 1):
        with pytest.raises(ValueError, match=rf"{field} must be in \[{low}, {high}\], got {value}"):
            one_word(**{field: value})
        if field != "index":
            with pytest.raises(ValueError, match=f"{field} must be in"):
                one_word(**{field: torch.tensor([value])})


@pytest.mark.parametrize("seed", [2**63, -(2**63) - 1])
def test_seed_must_fit_64_bits(seed):
    with pytest.raises(ValueError, match="seed must be in"):
        one_word(seed=seed)


@pytest.mark.parametrize("field", ["seed", "sequence", "step"])
def test_streams_must_be_int64_of_the_rows(field):
    with pytest.raises(ValueError, match=rf"{field} must be one number or \[2\], got \[3\]"):
        Noise.create(2, **{field: torch.arange(3)}, device="cpu")
    with pytest.raises(TypeError, match=f"{field} must be an int64 tensor, got torch.int32"):
        Noise.create(2, **{field: torch.arange(2).int()}, device="cpu")
    for wrong in (1.5, "1", [1]):
        with pytest.raises(TypeError, match=f"{field} must be an integer or an int64 tensor"):
            Noise.create(1, **{field: wrong}, device="cpu")


@pytest.mark.parametrize("sequence", [5, torch.tensor(5)], ids=["int", "tensor"])
def test_one_sequence_for_several_rows_is_refused(sequence):
    with pytest.raises(ValueError, match=r"one sequence \(5\) for 2 rows"):
        Noise.create(2, seed=0, sequence=sequence, device="cpu")


def test_seed_and_generator_together_are_refused():
    with pytest.raises(ValueError, match="seed or generator"):
        Noise.create(1, seed=0, generator=torch.Generator(), device="cpu")


def test_index_must_be_int64_of_the_rows():
    noise = Noise.create(2, seed=0, device="cpu")
    with pytest.raises(TypeError, match="index must be int64"):
        noise.words(Role.DRAFT, torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"index must be \[2, n\], got \[3, 1\]"):
        noise.words(Role.DRAFT, torch.zeros(3, 1, dtype=torch.int64))


@pytest.mark.parametrize("field", ["depth", "path"])
def test_depth_and_path_must_be_int64_of_the_rows(field):
    noise, index = Noise.create(2, seed=0, device="cpu"), torch.zeros(2, 3, dtype=torch.int64)
    with pytest.raises(TypeError, match=f"{field} must be an int64 tensor"):
        noise.words(Role.DRAFT, index, **{field: torch.zeros(2)})
    with pytest.raises(ValueError, match=rf"{field} must be one number, \[2\] or \[2, 3\]"):
        noise.words(Role.DRAFT, index, **{field: torch.zeros(3, dtype=torch.int64)})


def test_a_missing_seed_is_no_copy_to_a_device():
    with pretended_device(), NoSynchronisation():
        noise = Noise.create(3, seed=None, device=DEVICE)
    assert noise.seed.device == DEVICE
    torch.manual_seed(11)
    here = Noise.create(3, seed=None, device=torch.device("cpu")).seed
    torch.manual_seed(11)
    with pretended_device():
        assert torch.equal(Noise.create(3, seed=None, device=DEVICE).seed.cpu(), here)


def test_values_on_a_device_are_never_read():
    # a meta tensor has no values: reading one raises
    rows = torch.empty(2, dtype=torch.int64, device="meta")
    noise = Noise.create(2, seed=rows, sequence=rows, step=rows, device="meta").at(rows)
    index = torch.empty(2, 5, dtype=torch.int64, device="meta")
    numbers = noise.select(rows).exponential(Role.DRAFT, index, depth=rows, path=index)
    assert numbers.shape == (2, 5)
    assert numbers.dtype == torch.float64


def test_a_missing_seed_is_refused_while_a_graph_is_captured(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="captured CUDA graph would freeze; pass seed"):
        Noise.create(1, sequence=0, device="cuda")
