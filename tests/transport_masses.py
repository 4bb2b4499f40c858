"""Masses of drafts and targets, and the selection laws that the tests of optimal transport ask for."""

import itertools

import numpy as np
import pytest
import torch

from warpdraft.kernels.optimal import SELECTORS

# their masses lie below the tolerances of the linear programme, and beside the margins of scripted numbers
NEARLY = ["nearly equal", "nearly disjoint"]
on_selectors = pytest.mark.parametrize("selector", ["clip", "lex"])
on_bins = pytest.mark.parametrize("num_bins", [None, 1, 4, 64], ids="bins={}".format)


def atoms(size, seed, spread, weight=1.0, tiny=0.0):
    """Draft and target masses in ascending order of their ratio."""
    generator = np.random.default_rng(seed)
    draft = np.maximum(generator.dirichlet(np.full(size, spread)), 1e-300) + tiny
    draft /= draft.sum()
    target = weight * generator.dirichlet(np.full(size, spread))
    order = np.argsort(target / draft, kind="stable")
    return draft[order], target[order]


def selection_law(selector, draft, target, n):
    """p / draft of one row of masses."""
    masses = (torch.from_numpy(each)[None] for each in (draft, target))
    return SELECTORS[selector](*masses, torch.tensor([n]))[0].numpy()


def subsets(size):
    return [list(each) for k in range(size + 1) for each in itertools.combinations(range(size), k)]
