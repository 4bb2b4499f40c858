"""The certificate: passes for sound verifiers, and fails for wrong ones with exit code 1.

Seeds are fixed; the false-alarm rate of each certificate is 1e-6.
"""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from tiny_models import tiny_model

import warpdraft.bench.losslessness as losslessness
from warpdraft.bench.cli import run
from warpdraft.bench.losslessness import certify, texts_of
from warpdraft.bench.model_pair import ModelPair
from warpdraft.bench.strategies import Sampling, Speculation
from warpdraft.kernels.noise import Role
from warpdraft.laws import Law
from warpdraft.rules import MinP
from warpdraft.verifiers.k_seq import KSeq
from warpdraft.verifiers.optimal_block import OptimalBlock

ALARM = 1e-6
PROMPT = torch.tensor([[3, 5, 2, 6]])


@pytest.fixture(scope="module")
def pair():
    target = tiny_model(seed=1, vocab=8, layers=2, spread=1.5)
    draft = tiny_model(seed=2, vocab=8, layers=1, spread=1.5)
    return ModelPair(target, draft, None, torch.device("cpu"), "tiny")


def certificate(pair, verifier, *, samples=400, rules=(), temperature=1.0, tokens=3, **options):
    speculation = Speculation(
        **{"num_drafts": 3, "draft_length": 3, "verifier": "k_seq", **options}
    )
    if isinstance(verifier, str):
        speculation = dataclasses.replace(speculation, verifier=verifier)
        verifier = speculation.make_verifier()
    return certify(
        pair,
        PROMPT,
        Sampling(tuple(rules), temperature, tokens, 0),
        verifier,
        speculation.loop_arguments(),
        samples=samples,
        false_alarm=ALARM,
    )


SOUND = {
    "k_seq": {},
    "optimal": {"selector": "lex"},
    "optimal, hybrid": {"num_top": 1},
    "optimal_block": {"structure": "rollover", "node_budget": 7},
    "traversal": {"rules": [MinP(0.1)], "temperature": 1.3},
    "recursive_without_replacement": {"layout": "paths"},
    "target_only": {"tokens": 2},
    "block": {"num_drafts": 1},
}


@pytest.mark.parametrize(("name", "options"), SOUND.items(), ids=SOUND)
def test_sound_verifiers_pass(pair, name, options):
    found = certificate(pair, name.split(",")[0], samples=120, **options)
    assert found.failed == []
    assert len(found.checks) == options.get("tokens", 3) + 2
    for check in found.checks:
        assert check.samples == 120
        assert check.degrees > 0
        assert 0 < check.smallest_deviation < 1
    # the drafts are accepted often enough to test something, and not always
    assert 0.3 < found.acceptance < 0.99


def test_acceptance_stands_beside_its_closed_form_and_the_bound(pair):
    found = certificate(pair, "k_seq", samples=600, tokens=1)
    assert found.num_candidates == 3
    assert found.acceptance == pytest.approx(found.expected_acceptance, abs=0.05)
    assert found.expected_acceptance < found.optimal_acceptance <= 1
    best = certificate(pair, "optimal", samples=100, tokens=1)
    assert best.expected_acceptance == pytest.approx(best.optimal_acceptance, abs=2e-3)


def test_greedy_decoding_has_one_text(pair):
    assert certificate(pair, "optimal_block", temperature=0.0, samples=200).failed == []


class AlwaysAccepts(KSeq):
    """Emits the first survivor's token."""

    def select(self, target_probs, draft_probs, candidates, alive, noise, depth, token_ids=None):
        first = alive.to(torch.int8).argmax(1, keepdim=True)
        return candidates.gather(1, first).squeeze(1)


class NeverAccepts(KSeq):
    """Draws from the target, whatever was drafted: lossless, but not k-SEQ's acceptance."""

    def select(self, target_probs, draft_probs, candidates, alive, noise, depth, token_ids=None):
        return Law.of_probs(target_probs).draw(noise, Role.RESIDUAL, depth=depth)


class WrongBonus(OptimalBlock):
    """Repeats the last drafted token behind a leaf."""

    def verify(self, block, noise):
        verified = super().verify(block, noise)
        output = verified.output_token_ids.clone()
        length = output.shape[1] - 1
        leaf = verified.num_accepted == length
        output[leaf, length] = output[leaf, length - 1]
        return dataclasses.replace(verified, output_token_ids=output)


def test_a_verifier_that_always_accepts_fails_everywhere(pair):
    found = certificate(pair, AlwaysAccepts())
    assert len(found.failed) == 5


def test_a_wrong_rate_of_acceptance_fails_alone(pair):
    found = certificate(pair, NeverAccepts(), samples=800, tokens=1)
    assert [check.name for check in found.failed] == ["first drafted token accepted"]


def test_a_wrong_bonus_fails_where_it_stands(pair):
    found = certificate(pair, WrongBonus(), draft_length=2, num_drafts=2, samples=250)
    names = [check.name for check in found.failed]
    assert "token 3 after tokens 1-2" in names
    assert "token 1" not in names
    assert "token 2 after token 1" not in names


def test_a_wrong_law_of_ours_is_found_by_the_other_sample(pair, monkeypatch):
    """Both our loop and our expected law at a wrong temperature agree; transformers' samples do not."""
    law_pipeline = losslessness.law_pipeline
    monkeypatch.setattr(
        losslessness,
        "law_pipeline",
        lambda sampling: law_pipeline(dataclasses.replace(sampling, temperature=1.4)),
    )
    found = certificate(pair, "k_seq")
    assert [check.name for check in found.failed] == ["first 3 tokens, two samples"]


def test_texts_end_with_their_first_end_token():
    token_ids = torch.tensor([[4, 1, 0], [1, 1, 1], [2, 3, 4]])
    assert texts_of(token_ids, (1,)) == [(4, 1), (1,), (2, 3, 4)]


def test_rare_prefixes_are_pooled_and_still_tested(pair, monkeypatch):
    monkeypatch.setattr(losslessness, "one_sample", few_degrees(losslessness.one_sample))
    found = certificate(pair, "k_seq")
    assert "pooled by rank" in found.checks[1].note
    assert found.failed == []
    wrong = certificate(pair, AlwaysAccepts())
    assert "token 2 after token 1" in [check.name for check in wrong.failed]


def few_degrees(one_sample):
    """No chi-square for single prefixes: as if all were rare."""

    def test(counts, probs):
        whole = len(counts) == 8
        return losslessness.ChiSquare() if whole else one_sample(counts, probs)

    return test


# ---- the command


def test_verify_prints_a_table_and_writes_json(capsys, tmp_path):
    file = tmp_path / "certificate.json"
    options = ("--samples", "100", "--tokens", "2", "--draft-length", "2", "--num-drafts", "2")
    assert run(["verify", *options, "--verifier", "optimal_block", "--json", str(file)]) == 0
    out = capsys.readouterr().out
    for word in ("token 1", "two samples", "alpha*", "finds from", "passed"):
        assert word in out
    written = json.loads(file.read_text())
    assert written["passed"] is True
    assert len(written["checks"]) == 4


def test_a_failed_certificate_is_exit_code_1(capsys, monkeypatch):
    monkeypatch.setattr(Speculation, "make_verifier", lambda self: AlwaysAccepts())
    options = ("--samples", "100", "--tokens", "2", "--draft-length", "2", "--num-drafts", "2")
    assert run(["verify", *options]) == 1
    out = capsys.readouterr().out
    assert "FAILED: " in out
    assert "passed" not in out
