"""The soak: does its law see a wrong draw, and does it say what went wrong?"""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest
import torch
import typer
from scipy import stats
from transformers import GenerationConfig
from typer.testing import CliRunner

from warpdraft import MinP, TopK
from warpdraft.bench import soak, soak_groups
from warpdraft.bench.soak_law import Tally

VOCAB = soak_groups.VOCAB


def random_laws(rows, generator):
    """`[rows, VOCAB]` float64, none like another, half of the tokens rare."""
    logits = torch.randn(rows, VOCAB, dtype=torch.float64, generator=generator)
    return torch.softmax(logits - 2.0 * (torch.arange(VOCAB) % 2), dim=-1)


def tally_of(drawn_from, laws, generator):
    tally = Tally()
    # in parts, as a run adds them
    for probs, law in zip(drawn_from.split(97), laws.split(97), strict=True):
        tally.add(torch.multinomial(probs, 1, generator=generator)[:, 0], law)
    return tally.p_value()


def test_draws_from_their_own_laws_pass():
    """The p-values of 200 lossless runs are uniform: a Kolmogorov-Smirnov test, false-alarm rate 1e-3."""
    generator = torch.Generator().manual_seed(3)
    found = []
    for _ in range(200):
        laws = random_laws(400, generator)
        found.append(tally_of(laws, laws, generator))
    assert stats.kstest(found, "uniform").pvalue > 1e-3


def test_draws_that_lean_a_tenth_towards_the_draft_are_seen():
    generator = torch.Generator().manual_seed(4)
    laws = random_laws(4000, generator)
    draft = torch.softmax(torch.randn(VOCAB, dtype=torch.float64, generator=generator), dim=-1)
    assert tally_of(0.9 * laws + 0.1 * draft, laws, generator) < 1e-6


def test_too_few_tokens_have_no_p_value():
    tally = Tally()
    assert tally.p_value() is None
    tally.add(torch.zeros(4, dtype=torch.int64), torch.full((4, VOCAB), 1 / VOCAB).double())
    assert tally.p_value() is None


def test_one_hot_laws_have_no_p_value():
    tally = Tally()
    tokens = torch.tensor([1, 2] * 20)
    tally.add(tokens, torch.nn.functional.one_hot(tokens, VOCAB).double())
    assert tally.p_value() is None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_laws_are_those_of_transformers(dtype):
    """With left padding, a penalty, a temperature and min-p: the scores of plain `generate`."""
    group = next(
        group
        for group in soak_groups.groups_of(random.Random(5), 200)
        if group.rules == (MinP(0.1),) and group.penalty > 1 and group.temperature == 1.5
    )
    target = soak_groups.pairs()[dtype].target
    prompts, seen = soak.padded([(1, 5, 9), (1, 7)])
    torch.manual_seed(0)
    plain = target.generate(
        prompts,
        attention_mask=seen,
        generation_config=GenerationConfig(
            do_sample=True,
            temperature=1.5,
            min_p=0.1,
            top_k=0,
            repetition_penalty=group.penalty,
            max_new_tokens=5,
            pad_token_id=soak_groups.PAD,
            output_scores=True,
            return_dict_in_generate=True,
        ),
    )
    expected = torch.stack([score.softmax(-1) for score in plain.scores], dim=1).double()
    tolerance = 1e-5 if dtype == "float32" else 0.02
    laws = group.laws(target, plain.sequences, seen)
    torch.testing.assert_close(laws, expected, rtol=0, atol=tolerance)
    assert (laws == 0).any(), "min-p must leave something out"


def test_groups_differ_and_take_every_option():
    groups = soak_groups.groups_of(random.Random(1), 100)
    assert len(set(groups)) == 100
    for name in soak_groups.Group.__dataclass_fields__:
        assert len({getattr(group, name) for group in groups}) >= 2, name


def found_in(new_tokens, **options):
    """What is wrong with a prompt and new tokens, by the rules and the ends of `options`."""
    run = soak.Soak(seed=2, groups=1)
    plain = {"dtype": "float32", "rules": (), "ends": (), "temperature": 1.0, "penalty": 1.0}
    run.groups = [replace(run.groups[0], **plain | options)]
    text = torch.tensor([[1, 5, 9, *new_tokens]])
    run.count(0, text, torch.ones(1, 3, dtype=torch.int64))
    return dict(run.errors)


def test_a_token_after_the_end_is_an_error():
    assert found_in([4, 3, soak_groups.PAD], ends=(3,)) == {}
    assert found_in([4, 3, 5], ends=(3,)) == {"a token after the end": 1}
    assert found_in([4, 3, 5]) == {}


def test_a_token_that_the_rules_leave_out_is_an_error():
    [likely, *_, rare] = most_likely_first([1, 5, 9])
    assert found_in([likely], rules=(TopK(1),)) == {}
    assert found_in([rare], rules=(TopK(1),)) == {"a token that the rules do not allow": 1}
    assert found_in([rare]) == {}


def most_likely_first(prompt):
    """All tokens, as the target of the soak orders them after a prompt."""
    target = soak_groups.pairs()["float32"].target
    with torch.no_grad():
        return target(torch.tensor([prompt])).logits[0, -1].argsort(descending=True).tolist()


def small_soak():
    """10 generations of 6 groups."""
    return soak.soak(10, seed=2, groups=6)


def test_a_small_soak_finds_nothing():
    found = small_soak()
    assert found["errors"] == {}
    assert found["tokens"] > found["rows"] > 10
    assert found["law_holds"]
    assert len(found["resident_MiB"]) == 10


def test_a_soak_counts_what_is_raised_and_goes_on(monkeypatch):
    def refuse(*options):
        raise IndexError("nothing there")

    monkeypatch.setattr(soak, "text_of", refuse)
    assert small_soak()["errors"] == {"IndexError: nothing there": 10}


@pytest.mark.parametrize(("law_holds", "code"), [(True, 0), (False, 1)])
def test_the_command_writes_its_result_and_says_by_its_exit_code(
    tmp_path, monkeypatch, law_holds, code
):
    file = tmp_path / "soak.json"
    monkeypatch.setattr(
        soak, "soak", lambda *options: {"asked": options, "errors": {}, "law_holds": law_holds}
    )
    app = typer.Typer()
    app.command()(soak.main)
    result = CliRunner().invoke(app, ["--generations", "9", "--groups", "3", "--json", str(file)])
    assert result.exit_code == code
    assert json.loads(file.read_text())["asked"] == [9, 1, 3]


def test_a_slope_is_that_of_the_second_half():
    grown = [(100 * step, 50.0 + max(0, step - 10) * 0.3) for step in range(21)]
    slope, low, high = soak.slope(grown)
    assert slope == pytest.approx(3.0)
    assert low <= slope <= high
    assert soak.slope([(step, 7.0) for step in range(9)]) == (0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="8 points, got 3"):
        soak.slope(grown[:3])
