"""`warpdraft inspect`: the text is that of `generate`, and every number of the record is right."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from reference import in_order, supports

from warpdraft import MinP, TopH, TopK, TopP, truncate
from warpdraft.bench import model_pair
from warpdraft.bench.inspector import StepLaw, inspect_generation, role_of, trimmed
from warpdraft.bench.model_pair import load_pair
from warpdraft.bench.rule_names import DEFAULT_RULES, NAMES, rules_named
from warpdraft.bench.strategies import Sampling, Speculation, run_warpdraft
from warpdraft.bench.token_texts import Token, Vocabulary, label, legible, pieces
from warpdraft.bench.watched_generation import WatchedBlock, watch

PROMPT = "def add(a, b):"
SPECULATION = Speculation(4, 4, "optimal_block")
COMPARED = [
    rules_named(name)
    for name in (*DEFAULT_RULES, "top-n-sigma=1", "epsilon=0.01", "eta", "top-a=0.3", "p-less")
]
CHAIN = rules_named("top-k=20+top-h=0.6")


pytestmark = pytest.mark.usefixtures("no_network")


@pytest.fixture(scope="module")
def pair():
    return load_pair()


@pytest.fixture(autouse=True)
def loaded_once(monkeypatch, pair):
    """The built-in pair is read from its files once: nothing here changes a model."""
    monkeypatch.setattr(model_pair, "built_in", lambda *_: pair)


def inspect(pair, sampling, speculation=SPECULATION, compared=COMPARED, prompt=PROMPT, top=8):
    watched = watch(pair, pair.encode([prompt]), sampling, speculation)
    return watched, inspect_generation(pair, watched, sampling, speculation, compared, top=top)


@pytest.fixture(scope="module")
def hot(pair):
    """A run at temperature 1.3, and what was kept of it."""
    return inspect(pair, Sampling((), 1.3, 24, 5), compared=[*COMPARED, CHAIN])


RUNS = {
    "the defaults": (),
    "the paper's top-H, hot": ("--temperature", "1.5", "--top-h", "0.4"),
    "several rules": ("--top-k", "40", "--top-p", "0.9", "--min-p", "0.02"),
    "greedy": ("--temperature", "0"),
    "SpecTr": ("--verifier", "k_seq", "--num-drafts", "2", "--draft-length", "3"),
    "without replacement": ("--verifier", "recursive_without_replacement"),
    "beams": ("--verifier", "greedy_drafts"),
    "one path": ("--verifier", "block", "--num-drafts", "1"),
    "rollover": ("--structure", "rollover"),
    "first layers": ("--draft", "first-layers:3"),
    "a layer left out": ("--skip", "3"),
    "prompt look-up": ("--draft", "prompt-lookup:2"),
}


@pytest.mark.parametrize("options", RUNS.values(), ids=RUNS)
def test_the_text_is_that_of_generate(call, tmp_path, options):
    record = tmp_path / "record.json"
    common = (PROMPT, "--max-new-tokens", "16", "--seed", "11", *options)
    generated = call("generate", *common)
    inspected = call("inspect", *common, "--json", str(record))
    assert generated[0] == inspected[0] == 0
    written = json.loads(record.read_text())
    assert written["text"] + "\n" == generated[1]
    assert "".join(step["piece"] for step in written["steps"]) == written["text"][len(PROMPT) :]


def test_without_drafts_the_text_is_that_of_a_target_alone(call, tmp_path):
    record = tmp_path / "record.json"
    common = (PROMPT, "--max-new-tokens", "12", "--seed", "2")
    assert call("inspect", *common, "--plain", "--json", str(record))[0] == 0
    written = json.loads(record.read_text())
    assert written["speculation"] is None
    assert {step["role"] for step in written["steps"]} == {"drawn"}
    from warpdraft.builtin_pair import builtin_pair_folders

    alone = call("generate", *common, "--model", str(builtin_pair_folders().target))
    assert written["text"] + "\n" == alone[1]


def test_a_text_that_ends_early_has_no_drafts_behind_its_end(pair):
    # of this seed the last block accepts the drafted end, and what is drafted behind it
    sampling, usual = Sampling((), 1.0, 64, 2), pair.target.generation_config
    stop = pair.tokenizer(".", add_special_tokens=False)["input_ids"][-1]
    ended = type(usual)(**{**usual.to_dict(), "eos_token_id": [usual.eos_token_id, stop]})
    pair.target.generation_config = ended
    try:
        watched, inspection = inspect(pair, sampling)
        written = run_warpdraft(pair, pair.encode([PROMPT]), sampling, SPECULATION)
    finally:
        pair.target.generation_config = usual
    assert len(inspection.steps) == written.tokens < 64
    assert watched.token_ids[-1] == stop
    assert stop not in watched.token_ids[:-1]
    assert inspection.steps[-1].role == "accepted"
    assert inspection.blocks[-1].accepted == inspection.blocks[-1].emitted
    for number, block in enumerate(inspection.blocks):
        for path in block.paths:
            assert stop not in [drafted.token.id for drafted in path[:-1]]
            assert number + 1 < len(inspection.blocks) or len(path) <= block.emitted


def test_a_chat_model_answers_a_message(call, pair, tmp_path, monkeypatch):
    template = "# {{ messages[0]['content'] }}\ndef"
    monkeypatch.setattr(pair.tokenizer, "chat_template", template)
    record = tmp_path / "record.json"
    common = ("add two numbers", "--max-new-tokens", "12", "--seed", "5")
    generated = call("generate", *common)
    assert call("inspect", *common, "--json", str(record))[0] == 0
    written = json.loads(record.read_text())
    assert (written["message"], written["prompt"]) == ("add two numbers", "")
    assert written["text"] + "\n" == generated[1]
    raw = call("generate", *common, "--raw")
    assert call("inspect", *common, "--raw", "--json", str(record))[0] == 0
    written = json.loads(record.read_text())
    assert (written["message"], written["prompt"]) == (None, "add two numbers")
    assert written["text"] + "\n" == raw[1]


HELP = """
import sys
from warpdraft.bench.cli import run

code = run(["inspect", "--help"])
assert not {"torch", "transformers"} & set(sys.modules)
sys.exit(code)
"""


def test_help_does_not_import_torch():
    shown = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, check=True)
    for name in NAMES:
        assert name in shown.stdout.replace("\n", " ")


def test_a_models_own_processors_are_in_the_record(pair):
    sampling = Sampling((), 1.0, 12, 3)
    usual = pair.target.generation_config
    pair.target.generation_config = type(usual)(**{**usual.to_dict(), "repetition_penalty": 1.5})
    try:
        watched, inspection = inspect(pair, sampling)
    finally:
        pair.target.generation_config = usual
    assert any("RepetitionPenalty" in name for name in watched.stats.rules)
    text = [*watched.prompt_ids, *watched.token_ids]
    with torch.no_grad():
        logits = pair.target(torch.tensor([text])).logits[0, len(watched.prompt_ids) - 1 : -1]
    for position, (row, step) in enumerate(zip(logits, inspection.steps, strict=True)):
        seen = torch.tensor(sorted(set(text[: len(watched.prompt_ids) + position])))
        penalised = row.double()
        penalised[seen] = torch.where(row[seen] < 0, row[seen] * 1.5, row[seen] / 1.5).double()
        expected = penalised.softmax(0)[watched.token_ids[position]]
        assert step.probability == pytest.approx(float(expected), rel=1e-4)


def test_a_step_is_the_law_of_the_target(pair, hot):
    watched, inspection = hot
    text = torch.tensor([[*watched.prompt_ids, *watched.token_ids]])
    with torch.no_grad():
        logits = pair.target(text).logits[0, len(watched.prompt_ids) - 1 : -1]
    for row, token, step in zip(logits, watched.token_ids, inspection.steps, strict=True):
        levels = row.double().numpy() / 1.3
        probs = np.exp(levels - levels.max())
        probs /= probs.sum()
        assert step.token.id == token
        assert step.probability == pytest.approx(probs[token], rel=1e-4)
        assert step.drawn_probability == pytest.approx(probs[token], rel=1e-4)
        assert step.entropy == pytest.approx(-(probs * np.log(probs)).sum(), rel=1e-5)
        assert step.rank == 1 + np.count_nonzero(probs > probs[token])
        assert step.drawable == len(probs)
        best = np.sort(probs)[::-1]
        for candidate in step.candidates:
            assert candidate.probability == pytest.approx(best[candidate.rank - 1], rel=1e-4)
        for rank, probability in step.curve:
            assert probability == pytest.approx(best[rank - 1], rel=1e-3)


def test_kept_sets_are_those_of_truncate(hot):
    watched, inspection = hot
    for row, step in zip(watched.logits, inspection.steps, strict=True):
        for rule, (named, reading) in enumerate(
            zip([*COMPARED, CHAIN], step.readings, strict=True)
        ):
            kept = truncate(row[None], named.rules, temperature=1.3)[0] > -torch.inf
            assert reading.count == int(kept.sum())
            assert reading.keeps_drawn == bool(kept[step.token.id])
            probs = (row.double() / 1.3).softmax(0)
            assert reading.kept_mass == pytest.approx(float(probs[kept].sum()), rel=1e-12)
            for candidate in step.candidates:
                assert (rule in candidate.kept_by) == bool(kept[candidate.token.id])


def test_counts_are_those_of_the_reference(hot):
    watched, inspection = hot
    for row, step in zip(watched.logits, inspection.steps, strict=True):
        ordered, _ = in_order(row)
        for named, reading in zip(COMPARED, step.readings, strict=False):
            start = reading.first_rank - 1
            right = supports(named.rules[0], ordered, 0, len(ordered), 1.3)
            assert (start, start + reading.count) in right, named.name


def test_a_bar_reaches_the_threshold_of_the_rules_that_keep_its_token(hot):
    for step in hot[1].steps:
        for candidate in step.candidates:
            for rule, reading in enumerate(step.readings):
                upper = np.inf if reading.upper is None else reading.upper
                # a hair for a threshold that is a token's own logit
                inside = reading.threshold * (1 - 1e-9) <= candidate.probability
                inside &= candidate.probability <= upper * (1 + 1e-9)
                assert inside == (rule in candidate.kept_by)


def test_the_bound_is_alpha_times_the_entropy_and_is_kept(hot):
    watched, inspection = hot
    for row, step in zip(watched.logits, inspection.steps, strict=True):
        paper, transformers, *_, chain = step.readings
        assert paper.bound == pytest.approx(0.4 * step.entropy, rel=1e-9)
        assert paper.kept_entropy <= paper.bound
        assert transformers.bound is None
        kept = truncate(row[None], TopK(20), temperature=1.3)[0] > -torch.inf
        probs = (row.double()[kept] / 1.3).softmax(0)
        assert chain.bound == pytest.approx(float(-0.6 * (probs * probs.log()).sum()), rel=1e-9)


def test_the_runs_own_rules_say_what_could_be_drawn(pair):
    rules = (TopK(30), TopP(0.8))
    watched, inspection = inspect(pair, Sampling(rules, 1.2, 16, 4))
    assert inspection.sampling == "temperature 1.2, top-k 30, top-p 0.8, seed 4"
    for row, step in zip(watched.logits, inspection.steps, strict=True):
        kept = truncate(row[None], rules, temperature=1.2)[0] > -torch.inf
        mass = float((row.double() / 1.2).softmax(0)[kept].sum())
        assert step.drawable == int(kept.sum())
        assert step.drawn_probability == pytest.approx(step.probability / mass, rel=1e-5)
        for candidate in step.candidates:
            assert candidate.drawable == bool(kept[candidate.token.id])


def test_greedy_draws_the_first_of_the_largest(pair):
    _, inspection = inspect(pair, Sampling((), 0.0, 8, 0))
    assert inspection.temperature == 1.0
    assert inspection.sampling.startswith("greedy")
    for step in inspection.steps:
        assert (step.rank, step.drawable, step.drawn_probability) == (1, 1, 1.0)


def test_blocks_hold_the_text_and_their_drafts(pair, hot):
    watched, inspection = hot
    first = 0
    for number, block in enumerate(inspection.blocks):
        steps = inspection.steps[first : first + block.emitted]
        assert block.first == first
        assert {step.block for step in steps} == {number}
        written = [step.token for step in steps]
        roles = [step.role for step in steps]
        assert roles[: block.accepted] == ["accepted"] * block.accepted
        assert set(roles[block.accepted :]) <= {"recovered", "bonus"}
        # somebody drafted what was accepted, and nobody drafted more of it
        agreeing = [[drafted.accepted for drafted in path] for path in block.paths]
        assert max(map(sum, agreeing)) == block.accepted
        for path, flags in zip(block.paths, agreeing, strict=True):
            assert flags == sorted(flags, reverse=True)
            for place, drafted in enumerate(path):
                if drafted.accepted:
                    assert drafted.token == written[place]
                reached = place <= sum(flags) and place < block.emitted
                assert (drafted.target_probability is not None) == reached
                if reached and drafted.token == written[place]:
                    expected = steps[place].drawn_probability
                    assert drafted.target_probability == pytest.approx(expected, rel=1e-9)
        first += block.emitted
    assert first == len(inspection.steps) == 24
    assert inspection.target_calls == len(inspection.blocks) == watched.stats.target_calls
    assert {step.role for step in inspection.steps} == {"accepted", "recovered", "bonus"}
    accepted = sum(step.role == "accepted" for step in inspection.steps)
    assert accepted == watched.stats.accepted_tokens


def test_the_drafts_law_is_the_draft_models(pair, hot):
    watched, inspection = hot
    text = torch.tensor([[*watched.prompt_ids, *watched.token_ids]])
    with torch.no_grad():
        logits = pair.draft(text).logits[0, len(watched.prompt_ids) - 1 : -1]
    probs = (logits.double() / 1.3).softmax(-1)
    for row, step in zip(probs, inspection.steps, strict=True):
        for candidate in step.candidates:
            assert (candidate.draft_probability is None) == (step.role == "bonus")
            if candidate.draft_probability is not None:
                expected = float(row[candidate.token.id])
                assert candidate.draft_probability == pytest.approx(expected, rel=1e-3, abs=1e-7)
    for block in inspection.blocks:
        for path in block.paths:
            expected = float(probs[block.first, path[0].token.id])
            assert path[0].draft_probability == pytest.approx(expected, rel=1e-3)


def test_the_drawn_token_is_listed_wherever_it_stands(hot):
    for step in hot[1].steps:
        listed = [candidate.rank for candidate in step.candidates]
        assert listed[:8] == list(range(1, 9))
        assert step.rank in listed
        assert len(listed) == 8 + (step.rank > 8)


def test_ties_and_forbidden_tokens():
    logits = torch.tensor([1.0, 3.0, -torch.inf, 3.0, 1.0, 1.0])
    law = StepLaw(logits, logits, None, 4, 1.0)
    assert law.order.tolist() == [1, 3, 0, 4, 5, 2]
    kept = law.kept(law.support((TopK(4),)))
    assert kept.tolist() == [True, True, False, True, True, False]
    reading = law.reading(law.support((TopK(4),)), kept, None)
    assert (reading.count, reading.first_rank, reading.upper) == (4, 1, None)
    assert [rank for rank, _ in law.curve()] == [1, 2, 3, 4, 5]


def test_nothing_is_shown_behind_the_end_of_a_path_or_of_the_text():
    whole = WatchedBlock(2, 1, ((5, 0, 9), (5, 6, 7)), ((0.1,) * 3, (0.2,) * 3))
    first, last = trimmed([whole, whole], ends=(0,))
    assert first.paths == ((5, 0), (5, 6, 7))
    assert last.paths == ((5, 0), (5, 6))
    assert [len(probs) for probs in last.path_probs] == [2, 2]
    assert role_of(WatchedBlock(1), 0) == "drawn"
    assert [role_of(whole, place) for place in (0, 1)] == ["accepted", "recovered"]
    assert role_of(replace(whole, is_bonus=True), 1) == "bonus"


TEXTS = ("naïve — 漢字 🙂🏽 \t tab", "a\n\n  b", "👨‍👩‍👧 שלום", "")


@pytest.mark.parametrize("text", TEXTS, ids=["scripts", "lines", "joined", "empty"])
def test_pieces_make_the_text_wherever_it_is_cut(pair, text):
    ids = pair.tokenizer("x = " + text)["input_ids"]
    whole = pair.tokenizer.decode(ids, skip_special_tokens=True)
    for cut in range(len(ids)):
        found = pieces(pair.tokenizer, ids[:cut], ids[cut:])
        assert len(found) == len(ids) - cut + 1
        assert "".join(found) == whole
        assert "\N{REPLACEMENT CHARACTER}" not in "".join(found)


class Rewriting:
    """A tokenizer whose second token changes what the first one wrote."""

    def decode(self, ids, **_):
        return {(): "", (1,): "do n", (1, 2): "do", (1, 2, 3): "do not"}[tuple(ids)]


def test_pieces_make_the_text_of_a_tokenizer_that_rewrites():
    assert pieces(Rewriting(), [], [1, 2, 3]) == ["", "do n", "", "ot"]


def test_tokens_say_what_they_are(pair):
    vocabulary = Vocabulary(pair.tokenizer)
    emoji = pair.tokenizer("🙂", add_special_tokens=False)["input_ids"]
    parts = [vocabulary[token] for token in emoji]
    assert {part.kind for part in parts} == {"bytes"}
    assert bytes.fromhex(" ".join(part.text for part in parts)).decode() == "🙂"
    assert vocabulary[pair.tokenizer.eos_token_id].kind == "special"
    word = pair.tokenizer(" return", add_special_tokens=False)["input_ids"]
    assert [vocabulary[token] for token in word] == [Token(word[0], " return", "text")]


def test_what_cannot_be_seen_is_named():
    assert legible("a\x1b[2J\u202eb\n") == "a[U+001B][2J[U+202E]b\n"
    assert label(Token(1, " \n\t", "text")) == "␣↵⇥"
    assert label(Token(1, "E2 82", "bytes")) == "[bytes E2 82]"


def test_every_rule_has_a_name_and_a_default():
    made = {name: rules_named(name) for name in NAMES}
    assert made["top-h"].rules == (TopH(0.4),)
    assert made["top-h-transformers"].rules == (TopH(0.4, variant="transformers"),)
    assert made["top-h-transformers"].label == "top-H 0.4 (transformers)"
    assert len({named.rules for named in made.values()}) == len(NAMES)
    assert CHAIN.rules == (TopK(20), TopH(0.6))
    assert CHAIN.label == "top-k 20, then top-H 0.6 (paper)"
    assert rules_named("min-p=0.05").rules == (MinP(0.05),)


BAD = {
    "unknown rule": (["--rule", "top-q=1"], "top-q"),
    "rule without a number": (["--rule", "min-p=much"], "min-p=much"),
    "rule outside its range": (["--rule", "top-p=2"], "top_p"),
    "value of p-less": (["--rule", "p-less=1"], "p-less"),
    "half a token": (["--rule", "top-k=1.5"], "top-k=1.5"),
    "no such folder": (["--html", "no/such/folder/x.html"], "no/such/folder"),
    "no number of a token": (["--step", "last"], "--step"),
    "a token behind the end": (["--step", "99"], "[1, 8]"),
    "no tokens to list": (["--top", "0"], "--top"),
    "block of two paths": (["--verifier", "block", "--num-drafts", "2"], "block"),
}


@pytest.mark.parametrize(("options", "named"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line(call, options, named):
    code, out, err = call("inspect", PROMPT, "--max-new-tokens", "8", *options)
    lines = [line for line in err.splitlines() if line != "Loading torch and the models"]
    assert (code, out, len(lines)) == (2, "", 1)
    assert named in lines[0]


def test_the_terminal_shows_text_rules_tokens_and_drafts(call):
    options = ("--max-new-tokens", "10", "--seed", "3", "--top", "5", "--step", "2,4,9")
    code, out, _ = call("inspect", PROMPT, *options, "--rule", "top-h", "--rule", "min-p=0.1")
    assert code == 0
    assert out.startswith(PROMPT)
    assert "A  top-H 0.4 (paper)" in out
    assert "B  min-p 0.1" in out
    assert [f"Token {number} of 10" in out for number in range(1, 11)] == [
        number in (2, 4, 9) for number in range(1, 11)
    ]
    assert "path 4" in out
    assert "the bound is" in out
