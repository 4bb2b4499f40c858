from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from warpdraft.kernels.philox import philox_numpy, philox_reference, philox_torch

# the known-answer file of Random123, the authors' own library: kat_vectors, "philox4x32 10"
ONES = 0xFFFFFFFF
KNOWN_ANSWERS = [
    pytest.param(
        (0, 0, 0, 0),
        (0, 0),
        (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
        id="zeros",
    ),
    pytest.param(
        (ONES, ONES, ONES, ONES),
        (ONES, ONES),
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        id="ones",
    ),
    pytest.param(
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        id="digits-of-pi",
    ),
]


def by_reference(counters, keys):
    columns = [
        philox_reference(tuple(counter), tuple(key))
        for counter, key in zip(counters.T.tolist(), keys.T.tolist(), strict=True)
    ]
    return np.array(columns).T


def by_numpy(counters, keys):
    return np.stack(philox_numpy(tuple(counters), tuple(keys)))


def by_torch(counters, keys):
    words = philox_torch(
        tuple(torch.from_numpy(counters).unbind()), tuple(torch.from_numpy(keys).unbind())
    )
    return torch.stack(words).numpy()


FORMS = [pytest.param(form, id=form.__name__[3:]) for form in (by_reference, by_numpy, by_torch)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_known_answers(form, counter, key, words):
    counters, keys = np.array(counter)[:, None], np.array(key)[:, None]
    assert form(counters, keys)[:, 0].tolist() == list(words)


word = st.one_of(
    st.integers(0, 2**32 - 1),
    st.sampled_from([0, 1, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, ONES]),
)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.lists(st.tuples(*[word] * 6), min_size=1, max_size=9))
def test_forms_agree_bit_for_bit(columns):
    table = np.array(columns, dtype=np.int64).T
    counters, keys = table[:4], table[4:]
    expected = by_reference(counters, keys)
    assert (by_numpy(counters, keys) == expected).all()
    assert (by_torch(counters, keys) == expected).all()


def test_forms_broadcast_a_row_over_its_numbers():
    index = np.arange(15).reshape(3, 5)
    rows = np.array([[7], [8], [9]])
    counter, key = (index, rows, rows + 1, rows * 5), (rows, rows * 2**20)
    full = [np.broadcast_to(part, index.shape).reshape(-1) for part in (*counter, *key)]
    expected = by_reference(np.stack(full[:4]), np.stack(full[4:])).reshape(4, 3, 5)

    assert (np.stack(philox_numpy(counter, key)) == expected).all()
    words = philox_torch(
        tuple(torch.from_numpy(part) for part in counter),
        tuple(torch.from_numpy(part) for part in key),
    )
    assert (torch.stack(words).numpy() == expected).all()


def test_numpy_form_counts_modulo_two_to_the_32():
    counters, keys = np.array([[-1], [2**40 + 5], [3], [4]]), np.array([[-2], [2**33]])
    assert (by_numpy(counters, keys) == by_reference(counters % 2**32, keys % 2**32)).all()


def test_inputs_are_not_changed():
    counters, keys = np.arange(8).reshape(4, 2), np.arange(4).reshape(2, 2)
    for form in (by_numpy, by_torch):
        form(counters, keys)
    assert (counters == np.arange(8).reshape(4, 2)).all()
    assert (keys == np.arange(4).reshape(2, 2)).all()


def test_triton_agrees_bit_for_bit():
    random = np.random.default_rng(5)
    counters = random.integers(0, 2**32, (4, 61))
    seeds = random.integers(-(2**63), 2**63 - 1, 61)
    counters[:, 0], seeds[0] = 0, 0
    counters[:, 1], seeds[1] = ONES, -1

    # a process of its own, because Triton decides at its import whether it interprets
    helper = Path(__file__).with_name("philox_in_triton.py")
    run = subprocess.run(
        [sys.executable, str(helper)],
        input=json.dumps({"counters": counters.tolist(), "seeds": seeds.tolist()}),
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    keys = np.stack([seeds & ONES, (seeds >> 32) & ONES])
    assert (np.array(json.loads(run.stdout)) == by_numpy(counters, keys)).all()
