"""`warpdraft bench quality`: each measure by hand, equal budgets, planted differences found and none invented."""

from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest
import torch
from scipy import stats
from tiny_models import tiny_model

from warpdraft.bench import quality_judge
from warpdraft.bench.cli import run
from warpdraft.bench.model_pair import load_pair
from warpdraft.bench.quality_coverage import (
    CONTEXT,
    measure_rows,
    text_for,
    total_weight,
    windows_of,
)
from warpdraft.bench.quality_frontier import (
    Points,
    bands,
    common_grid,
    compare,
    cost_at,
    drawn_weights,
    front,
    two_sided,
)
from warpdraft.bench.quality_judge import Judge, linear_head
from warpdraft.bench.quality_measures import bleu, distinct_n, self_bleu
from warpdraft.bench.quality_methods import METHODS, Setting, rules_of, settings_of
from warpdraft.bench.quality_results import TextLine
from warpdraft.bench.quality_summary import diversity_of, points_of_diversity
from warpdraft.bench.quality_writing import judged_texts, write
from warpdraft.builtin_pair import builtin_pair_folders, held_out_prompts
from warpdraft.integrations.transformers import FusedSampling

COMPARED = [name for name, method in METHODS.items() if method.is_compared]
RULES = [name for name, method in METHODS.items() if method.rule is not None]


@pytest.fixture(scope="module")
def pair():
    return load_pair()


# methods


def test_every_compared_method_has_as_many_settings():
    assert {len(settings_of(method)) for method in COMPARED} == {18}
    assert len(COMPARED) == len(METHODS) - 2  # greedy and p-less have nothing to tune


@pytest.mark.parametrize("method", METHODS)
def test_settings_of_a_method_differ_and_make_rules(method):
    settings = settings_of(method)
    assert len(set(settings)) == len(settings)
    rules = rules_of(settings, 2)
    assert len(rules) == (METHODS[method].rule is not None)
    for rule in rules:
        for parameter in rule.parameters:
            twice = [setting.value for setting in settings for _ in range(2)]
            assert parameter.value.tolist() == twice


# measures


def test_distinct_n_by_hand():
    # pairs: (1 2) (2 1) (1 2), (1 2) (2 3): three different of five
    texts = [[1, 2, 1, 2], [1, 2, 3]]
    assert distinct_n(texts, 1) == 3 / 7
    assert distinct_n(texts, 2) == 3 / 5
    assert distinct_n([[5, 5, 5]], 2) == 1 / 2
    with pytest.raises(ValueError, match="at least 4"):
        distinct_n(texts[1:], 4)


def test_bleu_by_hand():
    # matched 1- to 4-grams: 4 of 5, 3 of 4, 2 of 3, 1 of 2
    score = bleu([1, 2, 3, 4, 9], [[1, 2, 3, 4, 5], [9, 8, 7, 6, 0]])
    # the 9 stands in the second reference: 5 of 5
    assert score == pytest.approx((1 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)
    # counts are clipped by the largest of one reference; 4-grams: none, counted as 0.1 of 1
    clipped = bleu([1, 1, 1, 2], [[1, 1, 2, 7], [1, 5, 5, 5]])
    assert clipped == pytest.approx((3 / 4 * 2 / 3 * 1 / 2 * 0.1) ** 0.25)
    # a text of 4 against references of 6 and 9: the brevity penalty takes the closest
    short = bleu([1, 2, 3, 4], [[1, 2, 3, 4, 5, 6], [1] * 9])
    assert short == pytest.approx(math.exp(1 - 6 / 4))


def test_self_bleu_by_hand():
    assert self_bleu([[1, 2, 3, 4]] * 3) == pytest.approx(1)
    # of 1- to 4-grams: 2 of 4, 1 of 3, then none of 2 and of 1
    one = (2 / 4 * 1 / 3 * 0.1 / 2 * 0.1 / 1) ** 0.25
    assert self_bleu([[1, 2, 3, 4], [1, 2, 8, 9]]) == pytest.approx(one)
    with pytest.raises(ValueError, match="two texts"):
        self_bleu([[1, 2]])


# coverage


def measured(logits, following, setting):
    return measure_rows(logits, following, setting, total_weight(logits, setting.temperature))


def test_measures_of_a_law_by_hand():
    probs = torch.tensor([[0.5, 0.25, 0.125, 0.125], [0.5, 0.25, 0.125, 0.125]])
    following = torch.tensor([1, 3])
    kept, mass, entropy, coverage = measured(probs.log(), following, Setting("top_k", 2, 1.0))
    assert kept.tolist() == [2, 2]
    assert mass.tolist() == pytest.approx([0.75, 0.75])
    law = stats.entropy([2 / 3, 1 / 3])
    assert entropy.tolist() == pytest.approx([law, law])
    assert coverage.tolist() == [1, 0]


def test_measures_are_at_the_temperature_of_the_setting():
    logits = 2 * torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log()
    _, mass, entropy, _ = measured(logits, torch.tensor([0]), Setting("top_k", 2, 2.0))
    assert mass.item() == pytest.approx(0.75)
    assert entropy.item() == pytest.approx(stats.entropy([2 / 3, 1 / 3]))


def test_keeping_everything_covers_everything():
    torch.manual_seed(0)
    logits, following = torch.randn(8, 50), torch.randint(50, (8,))
    for setting in (Setting("top_h", 1.0, 1.5), Setting("min_p", 0.0, 1.5)):
        kept, mass, entropy, coverage = measured(logits, following, setting)
        assert kept.tolist() == [50] * 8
        assert coverage.tolist() == [1] * 8
        assert mass.tolist() == pytest.approx([1] * 8)
        full = torch.distributions.Categorical(logits=logits / 1.5).entropy()
        assert entropy.tolist() == pytest.approx(full.tolist(), rel=1e-5)


@pytest.mark.parametrize("method", RULES)
def test_every_rule_covers_what_its_mask_keeps(method):
    from warpdraft import truncate

    torch.manual_seed(1)
    logits, following = 3 * torch.randn(16, 40), torch.randint(40, (16,))
    setting = settings_of(method)[len(settings_of(method)) // 2]
    left = truncate(logits, rules_of([setting], 16), temperature=setting.temperature)
    kept, _, entropy, coverage = measured(logits, following, setting)
    assert kept.tolist() == left.isfinite().sum(-1).tolist()
    assert coverage.bool().tolist() == left.gather(-1, following[:, None])[:, 0].isfinite().tolist()
    law = torch.distributions.Categorical(logits=left / setting.temperature)
    assert entropy.tolist() == pytest.approx(law.entropy().tolist(), abs=1e-5)


def test_windows_begin_with_the_first_token_and_tell_a_short_text(pair):
    windows = windows_of(pair, "x = 1\n" * 200, 3, CONTEXT + 1)
    assert windows.shape == (3, CONTEXT + 1)
    assert windows[:, 0].tolist() == [pair.tokenizer.bos_token_id] * 3
    with pytest.raises(ValueError, match="windows need"):
        windows_of(pair, "x = 1\n", 3, CONTEXT + 1)
    with pytest.raises(ValueError, match="context"):
        windows_of(pair, "x = 1\n" * 200, 3, CONTEXT)


def test_texts_of_people_are_there_without_a_file(pair):
    assert "def " in text_for(pair.name, None)
    assert "The following" in text_for("another", None)


# writing and judging


@pytest.mark.parametrize("method", ["top_h", "temperature", "greedy"])
def test_texts_are_those_of_fused_sampling(pair, method):
    prompts = held_out_prompts()[3:6]
    settings = settings_of(method)[-2:]
    ours = write(pair, prompts, settings, max_new_tokens=6, seed=5, first=3)
    inputs = pair.encode(prompts, raw=True)
    width = inputs["input_ids"].shape[1]
    for setting, texts in zip(settings, ours, strict=True):
        drawn = {"do_sample": False}
        if setting.temperature > 0:
            drawn = {"do_sample": True, "temperature": setting.temperature, "top_k": 0}
        rules = [
            rule.with_parameters([float(values[0]) for _, values, *_ in rule.parameters])
            for rule in rules_of([setting], 1)
        ]
        theirs = pair.target.generate(
            **inputs,
            **drawn,
            max_new_tokens=6,
            suppress_tokens=pair.tokenizer.all_special_ids,
            custom_generate=FusedSampling(rules, seed=5, sequence=torch.arange(3, 6)),
        )
        assert texts.tolist() == theirs[:, width:].tolist()


def test_special_tokens_are_never_drawn(pair, monkeypatch):
    monkeypatch.setattr(type(pair.tokenizer), "all_special_ids", property(lambda _: [*range(1024)]))
    hot = [Setting("temperature", 0.0, 1e6)] * 3
    texts = write(pair, held_out_prompts()[:2], hot, max_new_tokens=8, seed=0)
    assert texts.min() >= 1024


def test_batches_of_prompts_do_not_change_a_text(pair):
    class Silent:
        def bits(self, prompt, texts):
            return [float(len(text)) for text in texts]

    call = {"max_new_tokens": 4, "seed": 1}
    prompts, settings = held_out_prompts()[:3], settings_of("min_p")[:2]
    together = judged_texts(pair, Silent(), prompts, settings, batch_size=6, **call)
    apart = judged_texts(pair, Silent(), prompts, settings, batch_size=1, **call)
    assert together == apart
    assert [line.prompt for line in together] == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt2"])
def test_bits_are_those_of_each_text_read_alone(pair, architecture, monkeypatch):
    monkeypatch.setattr(quality_judge, "HEAD_TOKENS", 100)
    monkeypatch.setattr(quality_judge, "BATCH_TOKENS", 12)
    model = tiny_model(architecture, vocab=2048).eval()
    prompt, texts = "def f(x):\n    if x:\n", ["return 1", "", " y", "\n" * 9, "return 1"]
    expected = []
    for text in texts:
        head = pair.tokenizer(prompt, return_tensors="pt").input_ids[0]
        tail = pair.tokenizer.encode(text, add_special_tokens=False)
        both = torch.cat([head, torch.tensor(tail, dtype=torch.int64)])
        with torch.no_grad():
            logprobs = model(both[None]).logits[0].double().log_softmax(-1)
        places = range(len(head) - 1, len(both) - 1)
        expected.append(-sum(logprobs[at, both[at + 1]].item() for at in places) / math.log(2))
    judge = Judge(model, pair.tokenizer)
    assert judge.bits(prompt, texts) == pytest.approx(expected, rel=1e-5, abs=1e-4)
    judge._head = None
    assert judge.bits(prompt, texts) == pytest.approx(expected, rel=1e-5, abs=1e-4)


def test_a_head_that_is_more_than_a_matrix_is_not_taken_for_one():
    model = tiny_model("gemma3").eval()
    assert linear_head(model) is model.get_output_embeddings().weight
    model.config.final_logit_softcapping = 5.0
    assert linear_head(model) is None


# comparison


def test_front_by_hand():
    merit = np.array([1.0, 1.0, 2.0, 2.0, 3.0, 0.5, 4.0])
    cost = np.array([1.0, 1.5, 3.0, 2.0, 2.5, 1.0, 6.0])
    # 0.5 costs as much as 1; of equal merits the cheaper one stays
    found = front(merit, cost)
    assert found[0].tolist() == [1, 2, 3, 4]
    assert found[1].tolist() == [1, 2, 2.5, 6]
    grid = np.array([0.0, 1.5, 3.5, 9.0])
    assert cost_at(merit, cost, grid).tolist() == pytest.approx([1, 1.5, 4.25, 6])


def test_two_sided_p_values_by_hand():
    assert two_sided(np.array([1.0, 2.0, 3.0])) == 2 * 1 / 4
    assert two_sided(np.array([-1.0, 2.0, 3.0])) == 1.0
    assert two_sided(np.zeros(5)) == 1.0


def simulated(generator, units, shift=0.0):
    """A method of 18 settings near one curve, with units that differ and noise of each setting."""
    merit = np.linspace(0.1, 0.9, 18)[:, None] + 0.02 * generator.standard_normal((18, units))
    noise = 0.1 * generator.standard_normal((18, units))
    return Points(merit, 1 + np.linspace(0.1, 0.9, 18)[:, None] ** 2 + shift + noise)


def test_a_planted_difference_is_recovered():
    generator = np.random.default_rng(3)
    own = 0.3 * generator.standard_normal(20)
    first, second = simulated(generator, 20, -0.2), simulated(generator, 20)
    # what a unit costs everyone cancels
    methods = {
        name: Points(points.merit, points.cost + own)
        for name, points in (("first", first), ("second", second))
    }
    differences = compare(methods, [("first", "second")], resamples=400)
    assert [each.region for each in differences] == ["all", "low", "middle", "high"]
    for each in differences:
        assert each.difference == pytest.approx(-0.2, abs=0.06)
        assert each.low < -0.2 < each.high < 0
        assert each.p_value < 0.05


def test_methods_of_one_law_differ_no_more_often_than_they_should():
    # at a rate of 5 % more than 18 of 200 have a chance of 0.7 %; the bootstrap of 20 units errs a little more often
    generator = np.random.default_rng(11)
    alarms = 0
    for _ in range(200):
        methods = {name: simulated(generator, 20) for name in ("first", "second")}
        whole = compare(methods, [("first", "second")], resamples=200)[0]
        alarms += whole.low > 0 or whole.high < 0
    assert stats.binom.sf(18, 200, 0.05) < 0.007
    assert 1 <= alarms <= 18


def test_equal_methods_do_not_differ_at_all():
    points = simulated(np.random.default_rng(0), 5)
    for each in compare({"a": points, "b": points}, [("a", "b")], resamples=50):
        assert (each.difference, each.low, each.high, each.p_value) == (0, 0, 0, 1)


def test_bands_are_the_differences_on_the_grid():
    generator = np.random.default_rng(5)
    methods = {name: simulated(generator, 12) for name in ("a", "b")}
    grid, found = bands(methods, "b", resamples=100)
    assert set(found) == {"a"}
    middle, low, high = found["a"]
    assert (low <= high).all() and (low <= middle).mean() > 0.8
    whole = compare(methods, [("a", "b")], resamples=100)[0]
    assert middle.mean() == pytest.approx(whole.difference)
    assert (grid[0], grid[-1]) == (whole.start, whole.end)
    at_ends = [
        cost_at(points.merit.mean(1), points.cost.mean(1), grid[[0, -1]])
        for points in methods.values()
    ]
    assert middle[[0, -1]] == pytest.approx(at_ends[0] - at_ends[1])


def test_fronts_without_a_common_merit_are_not_compared():
    low = Points(np.array([[0.1, 0.1], [0.2, 0.2]]), np.array([[1.0, 1.0], [2.0, 2.0]]))
    high = Points(low.merit + 1, low.cost)
    assert common_grid({"low": low, "high": high}) is None
    assert compare({"low": low, "high": high}, [("low", "high")]) == []
    with pytest.raises(ValueError, match="same units"):
        drawn_weights({"low": low, "high": Points(high.merit[:, :1], high.cost[:, :1])}, 0, 1)


def test_diversity_of_texts_by_hand():
    texts = [("1 2 3 4", 8.0, 4), ("1 2 3 4", 4.0, 2)]
    lines = [
        TextLine("min_p", 0.1, 1.0, 7, seed, bits, characters, token_ids)
        for seed, (token_ids, bits, characters) in enumerate(texts)
    ]
    (found,) = diversity_of(lines)
    assert (found.prompt, found.texts, found.self_bleu) == (7, 2, pytest.approx(1))
    assert (found.distinct_1, found.distinct_2, found.distinct_3) == (1 / 2, 1 / 2, 1 / 2)
    assert (found.bits_per_character, found.bits_per_token) == (12 / 6, 12 / 8)
    points = points_of_diversity([found], "distinct_2")["min_p"]
    assert (points.merit.tolist(), points.cost.tolist()) == ([[0.5]], [[2.0]])
    points = points_of_diversity([found], "self_bleu_tokens")["min_p"]
    assert (points.merit.item(), points.cost.item()) == (pytest.approx(0), 1.5)
    assert points_of_diversity([found], "distinct_2", temperature=2.0) == {}


# the command


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quality")
    text = folder / "text.txt"
    text.write_text("".join(held_out_prompts()))
    return [
        *("bench", "quality", "--output", str(folder / "run"), "--text", str(text)),
        *("--judge", str(builtin_pair_folders().draft), "--method", "top_h,min_p,temperature"),
        *("--windows", "3", "--window-tokens", "40", "--prompts", "3", "--max-new-tokens", "6"),
        *("--seeds", "2"),
    ], folder


def rows_of(file):
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_the_command_writes_everything_and_goes_on_where_it_stopped(small, capsys):
    command, folder = small
    assert run(command) == 0
    assert "bits a character, at equal" in capsys.readouterr().out
    texts = rows_of(folder / "run_texts.csv")
    assert len(texts) == (3 * 18 + 1) * 3 * 2
    assert {len(row["token_ids"].split()) for row in texts} == {6}
    assert len(rows_of(folder / "run_coverage.csv")) == 2 * 18 * 3
    assert len(rows_of(folder / "run_diversity.csv")) == (3 * 18 + 1) * 3
    for kind in ("coverage", "diversity"):
        assert (folder / f"run_{kind}.png").read_bytes().startswith(b"\x89PNG")
    written = (folder / "run.json").read_text()
    summary = json.loads(written)
    assert summary["settings"]["seeds"] == 2
    assert summary["notes"]["positions"] == 3 * (40 - CONTEXT)
    assert set(summary["differences"]) == {
        "self_bleu",
        "distinct_2",
        "self_bleu_tokens",
        "coverage",
    }

    # killed in the last number of the last line of a part
    kept = (folder / "run_texts.csv").read_text()
    lines = kept.splitlines(keepends=True)
    first_parts = "".join(lines[: 1 + 3 + 18 * 3])
    (folder / "run_texts.csv").write_text(first_parts[: first_parts.rindex(" ") + 1])
    assert run(command) == 0
    assert sorted((folder / "run_texts.csv").read_text().splitlines()) == sorted(kept.splitlines())
    assert json.loads((folder / "run.json").read_text())["means"] == summary["means"]

    assert run([*command, "--seeds", "3"]) == 2
    assert "begun with another seeds" in capsys.readouterr().err


def test_the_command_refuses_bad_input(small, capsys, tmp_path):
    for options, named in [
        (["--method", "top_q"], "top_q"),
        (["--windows", "1"], "'--windows'"),
        (["--output", str(tmp_path / "no" / "run")], "no folder"),
        (["--judge", "/no/such/model"], "no model folder"),
    ]:
        assert run(["bench", "quality", *options]) == 2
        assert named in capsys.readouterr().err
