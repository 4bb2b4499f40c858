from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

from warpdraft.bench import synthetic_pair as pairs
from warpdraft.bench.pair_speed import main, seconds_to_read
from warpdraft.first_layers import FirstLayers

CPU = torch.device("cpu")


def first_layers(model, kept):
    return FirstLayers(kept).model_for(model)


def tiny_pair(**options):
    settings = {"shape": "tiny", "kept": 2, "overlap": 0.59, **options}
    return pairs.synthetic_pair(
        settings["shape"],
        settings["kept"],
        settings["overlap"],
        first_layers=first_layers,
        device=CPU,
        dtype=torch.float32,
    )


def test_the_laws_overlap_as_asked_on_other_texts_too():
    pair = tiny_pair()
    assert pair.overlap == pytest.approx(0.59, abs=0.02)
    other = pairs.calibration_texts(pair.target, seed=5)
    draft = first_layers(pair.target, 2)
    assert pairs.mean_overlap(pair.target, draft, other) == pytest.approx(0.59, abs=0.03)


def test_the_first_layers_keep_their_weights():
    made = pairs.random_target("tiny", CPU, torch.float32, seed=0)
    scaled = tiny_pair().target
    for number, (before, after) in enumerate(
        zip(made.model.layers, scaled.model.layers, strict=True)
    ):
        equal = torch.equal(before.mlp.down_proj.weight, after.mlp.down_proj.weight)
        assert equal == (number < 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": "huge"}, "llama-8b, tiny"),
        ({"kept": 0}, r"\[1, 7\]"),
        ({"kept": 8}, r"\[1, 7\]"),
        ({"overlap": 1.0}, r"\(0, 1\)"),
    ],
    ids=str,
)
def test_bad_numbers_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        tiny_pair(**options)


def test_an_overlap_that_no_scale_reached_is_refused(monkeypatch):
    monkeypatch.setattr(pairs, "HALVINGS", 1)
    with pytest.raises(ValueError, match="no scale"):
        tiny_pair()


def test_reading_counts_every_weight_but_the_embeddings():
    model = pairs.random_target("tiny", CPU, torch.float32, seed=0)
    weights = sum(each.numel() for each in model.parameters())
    assert seconds_to_read(model, 4.0) == weights - model.get_input_embeddings().weight.numel()


def test_the_speeds_of_a_tiny_pair_are_written_down(tmp_path: Path):
    app = typer.Typer()
    app.command()(main)
    file = tmp_path / "pair.json"
    small = "--shape tiny --kept 2 --device cpu --num-drafts 2 --draft-length 2 --new-tokens 6 --repeats 1"
    result = CliRunner().invoke(app, [*small.split(), "--json", str(file)])
    assert result.exit_code == 0, result.output
    assert "2.13 times plain sampling" in result.output
    figures = json.loads(file.read_text())
    assert abs(figures["overlap"] - 0.59) < 0.02
    names = [line["name"] for line in figures["lines"]]
    assert names == ["generate", "fused sampling", "one path", "k_seq", "optimal_block"]
    assert all(line["seconds"] > 0 for line in figures["lines"])
