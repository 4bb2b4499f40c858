"""The paired comparison: what is drafted for whom, what is read off a block, and what the summary makes of it."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from enumeration import random_laws
from scipy import stats
from tiny_models import tiny_model

import warpdraft.bench.bench_verifiers as bench_verifiers
from warpdraft.bench.bench_verifiers import BOUND, Context, Line, compare_at, contexts_of
from warpdraft.bench.cli import run
from warpdraft.bench.contest import (
    CheckedKSeq,
    Drafting,
    all_contenders,
    contenders_named,
    readings_by_drafting,
)
from warpdraft.bench.model_pair import ModelPair
from warpdraft.bench.paired_summary import holm, summarise
from warpdraft.bench.strategies import Sampling, law_pipeline
from warpdraft.loop import LoopOptions, generate_tokens
from warpdraft.verification import get_verifier

SAMPLING = Sampling((), 1.0, 8, 0)


@pytest.fixture(scope="module")
def pair():
    target = tiny_model(seed=1, vocab=12, layers=2, spread=1.5)
    draft = tiny_model(seed=2, vocab=12, layers=1, spread=1.5)
    return ModelPair(target, draft, None, torch.device("cpu"), "tiny")


def lines_at(pair, contexts, labels, num_drafts, draft_lengths):
    plan = readings_by_drafting(contenders_named(labels), num_drafts, draft_lengths)
    return [line for found in compare_at(pair, contexts, plan, SAMPLING) for line in found]


def test_blocks_are_shared_wherever_their_law_allows_it():
    plan = readings_by_drafting(all_contenders(), [1, 2, 4], [3, 5])
    assert set(plan) == {
        Drafting("iid", 4, 5, 0, "paths"),
        # hybrid drafts of every K, and greedy ones of K = 2
        Drafting("iid", 4, 5, 1, "paths"),
        Drafting("iid", 4, 5, 3, "paths"),
        *(Drafting("iid", paths, length, 0, "rollover") for paths in (2, 4) for length in (3, 5)),
        *(Drafting("without_replacement", paths, 5, 0, "paths") for paths in (2, 4)),
        *(Drafting("beam", paths, 5, 0, "paths") for paths in (1, 2, 4)),
    }


def test_every_contender_is_read_at_every_size_it_takes():
    plan = readings_by_drafting(all_contenders(), [1, 4], [3, 5])
    read = [
        (reading.contender.label, reading.num_drafts, length)
        for readings in plan.values()
        for reading in readings
        for length in reading.draft_lengths
    ]
    assert len(read) == len(set(read))
    sizes = {label: {cell[1:] for cell in read if cell[0] == label} for label, *_ in read}
    both = {(paths, length) for paths in (1, 4) for length in (3, 5)}
    assert sizes.pop("block") == {(1, 3), (1, 5)}
    for label, found in sizes.items():
        assert found == ({(4, 3), (4, 5)} if "rollover" in label else both), label


def test_a_run_that_is_stopped_has_seen_every_text():
    contexts = contexts_of([[7], [8, 8]], [[1, 2, 3, 4], [5]], 2)
    assert contexts == [Context(0, 0, (7,)), Context(1, 0, (8, 8)), Context(0, 2, (7, 1, 2))]


CONTEXTS = [Context(0, 0, (3, 5, 2)), Context(1, 0, (6,)), Context(0, 3, (3, 5, 2, 1, 7, 7))]


def by_cell(lines):
    return {
        (line.text, line.position, line.verifier, line.num_drafts, line.draft_length): line
        for line in lines
    }


def test_a_context_is_compared_alike_in_any_batch(pair):
    labels = ["k_seq", "optimal_block rollover", "recursive_without_replacement", "target_only"]
    together = by_cell(lines_at(pair, CONTEXTS, labels, [1, 2], [2, 3]))
    apart = by_cell(
        line for each in CONTEXTS for line in lines_at(pair, [each], labels, [1, 2], [2, 3])
    )
    assert together.keys() == apart.keys()
    for cell, line in together.items():
        assert line.tokens == pytest.approx(apart[cell].tokens, abs=1e-4), cell


def test_one_path_makes_the_verifiers_of_one_family_equal(pair):
    cells = by_cell(lines_at(pair, CONTEXTS, ["all"], [1], [3]))
    families = (
        ("k_seq", "recursive", "optimal", "optimal lex", "recursive_without_replacement"),
        ("block", "optimal_block", "optimal_block clip"),
    )
    for family in families:
        for context in CONTEXTS:
            found = [cells[context.text, context.position, name, 1, 3].tokens for name in family]
            assert found == pytest.approx([found[0]] * len(family), abs=1e-5)


def test_chances_given_the_drafts_have_the_mean_of_a_real_run(pair):
    """E[tokens] of the contest against blocks that were verified with random numbers, at one context."""
    context, rows = Context(0, 0, (3, 5, 2)), 500
    contexts = [dataclasses.replace(context, position=row) for row in range(60)]
    for label in ("k_seq", "optimal_block"):
        lines = lines_at(pair, contexts, [label], [2], [2])
        expected = np.array([line.tokens for line in lines if line.verifier == label])
        options = LoopOptions(
            max_length=6,
            pad_token_id=0,
            num_drafts=2,
            draft_length=2,
            verifier=get_verifier(label),
            stopping=(bench_verifiers.stop_at_once,),
            seed=1,
        )
        accepted = Accepted(options.verifier)
        generate_tokens(
            pair.target,
            pair.draft,
            torch.tensor([context.token_ids] * rows),
            None,
            law_pipeline(SAMPLING),
            dataclasses.replace(options, verifier=accepted),
        )
        counts = 1 + accepted.num_accepted.double().numpy()
        error = np.hypot(expected.std() / len(expected) ** 0.5, counts.std() / rows**0.5)
        # a false alarm in two million seeds
        assert abs(expected.mean() - counts.mean()) < 5 * error, label


class Accepted(bench_verifiers.BlockReader):
    """Remembers how many tokens a verifier accepted."""

    def __init__(self, inner):
        super().__init__(Drafting("iid", 2, 2, 0, "paths"), [], [])
        self.inner = inner

    def verify(self, block, noise):
        verified = self.inner.verify(block, noise)
        self.num_accepted = verified.num_accepted
        return verified


def test_the_bound_is_no_smaller_than_what_is_accepted(pair):
    contexts = [dataclasses.replace(CONTEXTS[0], position=row) for row in range(60)]
    lines = lines_at(pair, contexts, ["optimal"], [1, 4], [1])
    for paths in (1, 4):
        bounds = {
            line.tokens for line in lines if (line.verifier, line.num_drafts) == (BOUND, paths)
        }
        assert len({round(bound, 4) for bound in bounds}) == 1
        found = [
            line.tokens for line in lines if (line.verifier, line.num_drafts) == ("optimal", paths)
        ]
        # the optimum is attained: the mean differs by chance only, five standard errors at most
        assert abs(np.mean(found) - bounds.pop()) < 5 * np.std(found) / len(found) ** 0.5 + 1e-3


def test_every_plan_of_k_seq_is_checked():
    verifier = CheckedKSeq()
    target, draft = random_laws(2, 6, 0)
    candidates = torch.tensor([1, 2])
    assert torch.equal(
        verifier.law(target, draft, candidates),
        get_verifier("k_seq").law(target, draft, candidates),
    )
    assert 0 <= verifier.largest_error < 1e-11
    verifier.law(target.float(), draft.float(), candidates)
    assert 0 < verifier.largest_error < 1e-6


def test_an_unknown_contender_is_named():
    with pytest.raises(ValueError, match="'magic'"):
        contenders_named(["k_seq", "magic"])


# ---- the summary


def lines_of(tokens, label, **fields):
    return [
        Line(text, position, label, 2, 4, value, value - 1, **fields)
        for text, row in enumerate(tokens)
        for position, value in enumerate(row)
    ]


def test_the_summary_is_a_paired_t_test_over_texts():
    generator = np.random.default_rng(0)
    base = generator.uniform(1, 3, (6, 5))
    gain = base + generator.normal(0.2, 0.1, (6, 5))
    found = summarise(
        [*lines_of(base, "k_seq", k_seq_error=1e-8), *lines_of(gain, "optimal")], ["k_seq"]
    )
    best, reference = found.cells
    assert (best.verifier, best.texts, best.contexts) == ("optimal", 6, 30)
    assert best.tokens == pytest.approx(gain.mean())
    assert reference.against == {}
    difference = best.against["k_seq"]
    ours, theirs = gain.mean(1), base.mean(1)
    assert difference.percent == pytest.approx(100 * (ours.mean() / theirs.mean() - 1))
    assert difference.p_value == pytest.approx(stats.ttest_rel(ours, theirs).pvalue)
    assert difference.low < difference.percent < difference.high
    assert found.k_seq_error == 1e-8


def test_intervals_cover_the_ratio_as_often_as_stated():
    generator = np.random.default_rng(1)
    covered = []
    for _ in range(300):
        base = generator.uniform(1, 3, (12, 1)) + generator.normal(0, 0.1, (12, 2))
        gain = 1.1 * base + generator.normal(0, 0.1, (12, 2))
        found = summarise([*lines_of(base, "k_seq"), *lines_of(gain, "optimal")], ["k_seq"])
        difference = next(cell for cell in found.cells if cell.against).against["k_seq"]
        covered.append(difference.low < 10 < difference.high)
    # five standard errors below 0.95
    assert np.mean(covered) > 0.95 - 5 * (0.95 * 0.05 / 300) ** 0.5


def test_holm_steps_down():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_equal_verifiers_are_no_comparison():
    base = np.full((3, 2), 2.0)
    found = summarise([*lines_of(base, "k_seq"), *lines_of(base, "recursive")], ["k_seq"])
    assert [cell.against for cell in found.cells] == [{}, {}]


# ---- the command

SMALL = (
    *("--verifier", "k_seq,optimal_block,target_only", "--num-drafts", "1,2"),
    *("--draft-length", "2", "--max-new-tokens", "8", "--prompts", "2"),
)


def test_the_command_writes_shows_and_goes_on(capsys, tmp_path):
    results, summary = tmp_path / "contest.csv", tmp_path / "contest.json"
    command = ["bench", "verifiers", *SMALL, "--csv", str(results)]
    assert run([*command, "--json", str(summary)]) == 0
    out = capsys.readouterr().out
    for word in (
        "K = 2, L = 2",
        "optimal_block",
        "against k_seq",
        "alpha*",
        "4 contexts in 2 texts",
    ):
        assert word in out
    whole = results.read_text()
    (written,) = json.loads(summary.read_text())
    assert written["k_seq_error"] < 1e-6
    assert len(written["cells"]) == 6

    # killed in the middle of its last context, it goes on there
    results.write_text(whole[:-60])
    assert run(command) == 0
    # which is another batch, and rounds otherwise
    before, after = (
        {tuple(line.split(",")[:5]): line.split(",")[5] for line in text.splitlines()[1:]}
        for text in (whole, results.read_text())
    )
    assert before.keys() == after.keys()
    for cell, tokens in before.items():
        assert float(after[cell]) == pytest.approx(float(tokens), abs=1e-4)
    assert capsys.readouterr().out == out

    assert run(["bench", "verifiers", "--summarise", str(results)]) == 0
    assert capsys.readouterr().out == out

    # verifiers measured apart, on the same texts, stand in one table
    apart = []
    for label in ("k_seq", "optimal_block,target_only"):
        apart += ["--summarise", str(tmp_path / f"{label}.csv")]
        assert run([*command[:2], *SMALL, "--verifier", label, "--csv", apart[-1]]) == 0
    capsys.readouterr()
    assert run(["bench", "verifiers", *apart]) == 0
    assert capsys.readouterr().out == out

    assert run([*command, "--stride", "2"]) == 2
    assert "another stride" in capsys.readouterr().err
