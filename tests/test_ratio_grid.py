"""Ratios on a grid and in sorted order: places, knots, interpolation."""

import pytest
import torch

from warpdraft.kernels.ratio_grid import GridPlaces, SortedPlaces, interpolate, knot_masses


def test_places_on_the_grid_are_ratios():
    target = torch.tensor([[0.5, 0.2, 0.0, 0.3, 0.0, 0.0]], dtype=torch.float64)
    draft = torch.tensor([[0.1, 0.4, 0.2, 0.3, 0.0, 0.0]], dtype=torch.float64)
    weight, count = torch.tensor([0.5], dtype=torch.float64), torch.tensor([4])
    places = GridPlaces.create(target, draft, weight, count, 8)
    place = places.of(slice(None))
    assert torch.equal(places.at(torch.tensor([[3, 1]])), place[:, [3, 1]])
    assert place[0, :4].tolist() == pytest.approx([5.0, 0.5, 0.0, 1.0])
    assert bool(((place >= 0) & (place <= 8)).all())
    mass = knot_masses(draft, places)
    assert mass[0].tolist() == pytest.approx([0.4, 0.5, 0, 0, 0, 0.1, 0, 0, 0])
    # a linear function is interpolated exactly
    ratio = interpolate(torch.arange(9, dtype=torch.float64)[None] / 2, place)
    assert ratio[0, :4].tolist() == pytest.approx([2.5, 0.25, 0.0, 0.5])


def test_ratios_beyond_the_grid_stand_on_its_last_knot():
    target = torch.tensor([[0.9, 0.1, 0.0]], dtype=torch.float64)
    draft = torch.tensor([[1e-3, 0.0, 0.999]], dtype=torch.float64)
    places = GridPlaces.create(target, draft, torch.ones(1), torch.tensor([2]), 4)
    assert places.of(slice(None))[0].tolist() == [4.0, 4.0, 0.0]
    assert knot_masses(draft, places)[0].tolist() == pytest.approx([0.999, 0, 0, 0, 1e-3])


def test_sorted_places_put_tokens_that_are_never_drafted_last():
    target = torch.tensor([[0.2, 0.0, 0.5, 0.0, 0.3]], dtype=torch.float64)
    draft = torch.tensor([[0.4, 0.3, 0.0, 0.0, 0.3]], dtype=torch.float64)
    assert SortedPlaces.create(target, draft).place.tolist() == [[1, 0, 3, 4, 2]]
