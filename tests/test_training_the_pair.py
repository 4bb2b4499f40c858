"""Training of the built-in pair, on a few files and for a few steps: does it still make a pair?"""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from warpdraft.bench import (
    pair_corpus,
    pair_figures,
    pair_lessons,
    pair_training,
    train_pair,
)
from warpdraft.bench.pair_corpus import Corpus
from warpdraft.bench.pair_training import Run, Stage, stage_at

FILES = ("ast.py", "base64.py", "bisect.py", "calendar.py", "cmd.py", "copy.py", "csv.py", "dis.py")
TINY = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


class Ticks:
    """A clock that moves on by a second whenever it is looked at: a step of training takes one."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        self.now += 1.0
        return self.now


@pytest.fixture
def ticks(monkeypatch):
    """How fast this machine is does not say how many steps are made."""
    clock = SimpleNamespace(monotonic=Ticks())
    for module in (pair_training, pair_lessons):
        monkeypatch.setattr(module, "time", clock)


@pytest.fixture
def small(monkeypatch):
    """Eight files, one of them held out; one layer; windows of 32 and 64 tokens."""
    found = [each for each in pair_corpus.collect_documents() if each.name in FILES]
    assert len(found) == len(FILES)
    monkeypatch.setattr(pair_corpus, "collect_documents", lambda: found)
    monkeypatch.setattr(
        pair_corpus, "is_held_out", lambda document, seed: document.name == "calendar.py"
    )
    for module in (train_pair, pair_lessons, pair_figures):
        monkeypatch.setattr(module, "CONTEXT", 64)
        monkeypatch.setattr(module, "LESSON_LENGTH", 32)
    monkeypatch.setattr(train_pair, "STEP_TOKENS", 512)
    for name in ("TARGET_SHAPE", "DRAFT_SHAPE"):
        monkeypatch.setattr(train_pair, name, TINY)
    monkeypatch.setattr(train_pair, "PROMPT_COUNT", 3)
    monkeypatch.setattr(pair_figures, "SAMPLE_PROMPT", 8)
    monkeypatch.setattr(pair_figures, "SAMPLE_LENGTH", 12)
    # a compilation takes longer than the run
    monkeypatch.setattr(torch, "compile", lambda loss, **options: loss)


def train(folder, monkeypatch, seconds):
    command = [
        "train_pair.py",
        "--output",
        str(folder / "pair"),
        "--work-dir",
        str(folder / "work"),
    ]
    for name, number in seconds.items():
        command += [f"--{name}-minutes", str(number / 60)]
    monkeypatch.setattr("sys.argv", command)
    train_pair.main()
    return folder / "pair"


def test_a_pair_is_trained_written_and_measured(small, ticks, tmp_path, monkeypatch, capsys):
    seconds = {"target": 60, "draft": 30, "lesson": 4}
    pair = train(tmp_path, monkeypatch, seconds)
    record = json.loads((pair / "training.json").read_text())
    assert record["corpus"]["held_out_files"] == ["calendar.py"]
    assert record["corpus"]["files"] == len(FILES)
    # uniform guessing costs ln 2048 = 7.62 nats
    losses = record["held_out"]["loss"]
    assert losses["target"] < 7.3
    assert all(0 < share <= 1 for share in record["held_out"]["overlap"].values())
    for name in ("target", "draft"):
        assert losses[name] == pytest.approx(record["held_out_loss_before_float16"][name], abs=0.01)
        assert record[name]["steps"] == seconds[name]
        assert record[name]["losses"][-1]["held_out"] > 0
    assert set(record["lessons"]) == {
        pair_lessons.TEXT,
        pair_lessons.SAMPLES,
        f"corpus text in windows of {pair_corpus.CONTEXT}",
    }
    prompts = json.loads((pair / "held_out_prompts.json").read_text())
    assert [prompt["file"] for prompt in prompts] == ["calendar.py"] * 3
    card = (pair / "MODEL_CARD.md").read_text()
    assert "{" not in card.replace("{number", ""), "every figure is filled in"
    assert record["corpus"]["sha256"] in card
    target = AutoModelForCausalLM.from_pretrained(pair / "target")
    tokenizer = AutoTokenizer.from_pretrained(pair / "target")
    assert target.dtype == torch.float16
    token_ids = tokenizer("def f(x):", return_tensors="pt").input_ids
    assert token_ids[0, 0] == tokenizer.bos_token_id
    assert tokenizer.decode(token_ids[0, 1:]) == "def f(x):"

    # everything is in the work folder: a second run goes on where the first one stopped, at its end
    capsys.readouterr()
    monkeypatch.setattr(train_pair, "MAX_BYTES", 1000)
    with pytest.raises(ValueError, match="at most 1000 fit the package"):
        train(tmp_path, monkeypatch, seconds)
    assert "resumed target.pt at step 60" in capsys.readouterr().out


def test_a_run_goes_on_from_its_checkpoint(ticks, tmp_path):
    """Stages by their share of the time; a loss that falls; the same weights after a resumption."""
    model = train_pair.build_model({**TINY, "hidden_size": 16}, seed=1)
    rows = torch.randint(2048, (4, 16), generator=torch.Generator().manual_seed(0))
    file = tmp_path / "run.pt"
    run = Run(model, 1e-2, 40.0, file)
    stages = [
        Stage(name, share, lambda generator: (rows,), train_pair.language_loss)
        for name, share in (("first", 0.5), ("second", 0.5))
    ]
    before = train_pair.language_loss(model, rows).item()
    run.train(stages, 3, lambda: 0.25)
    assert run.tokens == {"first": 20 * rows.numel(), "second": 20 * rows.numel()}
    assert train_pair.language_loss(model, rows).item() < before - 0.1
    assert run.summary()["losses"][-1]["held_out"] == 0.25
    again = Run(train_pair.build_model({**TINY, "hidden_size": 16}, seed=2), 1e-2, 40.0, file)
    assert again.step == run.step
    for ours, theirs in zip(again.model.parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    again.train(stages, 3, lambda: 0.25)
    assert again.step == run.step, "its time is over"


def test_stages_end_at_their_share():
    stages = [
        Stage(name, share, lambda generator: (), train_pair.language_loss)
        for name, share in (("a", 0.25), ("b", 0.5), ("c", 0.25))
    ]
    names = [stage_at(stages, progress).name for progress in (0.0, 0.2499, 0.25, 0.74, 0.76, 1.5)]
    assert names == ["a", "a", "b", "b", "c", "c"]


def test_losses_of_the_draft_are_zero_for_the_target_itself():
    model = train_pair.build_model(TINY, seed=4)
    tokens = torch.randint(2048, (2, 12), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        states = model.model(input_ids=tokens).last_hidden_state
        head = model.lm_head.weight
        for loss in (train_pair.divergence, train_pair.total_variation):
            assert loss(model, tokens, states, head).item() == pytest.approx(0, abs=1e-5)
            other = train_pair.build_model(TINY, seed=5)
            assert loss(other, tokens, states, head).item() > 1e-3
        assert pair_figures.overlap(model, model, tokens) == pytest.approx(1, abs=1e-5)


def test_losses_by_position_stand_in_buckets_that_double():
    losses = torch.arange(300.0)[None]
    found = pair_figures.by_position(losses)
    assert found == {"0-63": 31.5, "64-127": 95.5, "128-255": 191.5, "256-511": 277.5}


def test_the_corpus_leaves_out_tables_and_tests():
    names = [document.name for document in pair_corpus.collect_documents()]
    assert "argparse.py" in names
    assert not [name for name in names if "/tests/" in name or name == "encodings/cp1252.py"]
    assert any(name.startswith("pydoc_data/") for name in names)


def test_too_few_prompts_are_an_error(small):
    corpus = Corpus.prepare(1)
    with pytest.raises(ValueError, match=r"give \d+ prompts, 10000 are needed"):
        pair_corpus.cut_prompts(corpus.held_out_documents, corpus.tokenizer, 10_000, 1)
