"""The part of `mlx_lm.sh` that runs the engine: python mlx_lm_engine.py PAGE RESULTS.json."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import platform
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import torch
from engine_page import run_example
from mlx_lm import load
from mlx_lm.generate import BatchGenerator, generate_step, speculative_generate_step
from mlx_lm.sample_utils import make_sampler

from warpdraft import DynamicTemperature, MinP, TopH, TopK, TopNSigma, TopP, Typical, truncate
from warpdraft.builtin_pair import builtin_pair_folders
from warpdraft.integrations import available
from warpdraft.integrations.mlx_lm import Truncation

CASES = {
    "top-H": TopH(0.4),
    "top-H of transformers": TopH(0.4, variant="transformers"),
    "min-p": MinP(0.1),
    "top-n-sigma": TopNSigma(1.0),
    "typical": Typical(0.9),
    "top-k, then top-p": (TopK(50), TopP(0.9)),
    "min-p at a temperature by entropy": (DynamicTemperature(0.5, 1.5), MinP(0.1)),
}
PROMPT = "def add(a, b):"
TOKENS = 12


class Recorder(Truncation):
    """Our processor, which also keeps the rows that it was given and those that it gave back."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.calls = []

    def __call__(self, tokens, logits):
        truncated = super().__call__(tokens, logits)
        assert truncated.shape == logits.shape and len(logits) == 1
        given = np.array(logits.astype(mx.float32))
        self.calls.append((given, np.array(truncated)))
        return truncated

    def check(self, drawn):
        """Every row is that of truncate, and every token stands inside its support."""
        assert len(self.calls) >= len(drawn) > 0
        for token, (given, truncated) in zip(drawn, self.calls, strict=False):
            expected = truncate(torch.from_numpy(given), self.rules, temperature=self.temperature)
            assert np.array_equal(truncated, expected.numpy()), self.rules
            assert np.isfinite(truncated).sum() < given.size
            assert np.isfinite(truncated[0, token]), f"{self.rules}: drew outside the support"
        return len(drawn)


def draw(model, prompt, processor, temperature):
    """The tokens of one generation."""
    steps = generate_step(
        prompt,
        model,
        max_tokens=TOKENS,
        sampler=make_sampler(temp=temperature),
        logits_processors=[processor],
    )
    return [token for token, _ in steps]


def draw_batch(model, prompt, recorders, temperature):
    """The tokens of a batch whose requests have rules of their own, and leave at different steps."""
    generator = BatchGenerator(model)
    uids = generator.insert(
        [prompt.tolist()] * len(recorders),
        max_tokens=[TOKENS - 2 * (row % 3) for row in range(len(recorders))],
        samplers=[make_sampler(temp=temperature)] * len(recorders),
        logits_processors=[[recorder] for recorder in recorders],
    )
    drawn = {uid: [] for uid in uids}
    while found := generator.next_generated():
        for answer in found:
            drawn[answer.uid].append(answer.token)
    generator.close()
    return [drawn[uid] for uid in uids]


def main(page, results):
    folders = builtin_pair_folders()
    model, tokenizer = load(str(folders.target))
    draft, _ = load(str(folders.draft))
    prompt = mx.array(tokenizer.encode(PROMPT))
    mx.random.seed(0)

    rows, texts = 0, set()
    for rules in CASES.values():
        for temperature in (0.7, 1.5):
            recorder = Recorder(rules, temperature=temperature)
            tokens = draw(model, prompt, recorder, temperature)
            texts.add(tuple(tokens))
            rows += recorder.check(tokens)
    assert len(texts) > 2

    recorders = [Recorder(rules, temperature=1.5) for rules in CASES.values()]
    batch_rows = sum(map(Recorder.check, recorders, draw_batch(model, prompt, recorders, 1.5)))

    # a support of one token, whatever the temperature: greedy text, by speculation too
    greedy = draw(model, prompt, Truncation((), temperature=1.0), 0.0)
    alone = Truncation(TopH(1e-9), temperature=2.0)
    assert draw(model, prompt, alone, 2.0) == greedy
    steps = speculative_generate_step(
        prompt,
        model,
        draft,
        max_tokens=TOKENS,
        sampler=make_sampler(temp=2.0),
        logits_processors=[alone],
    )
    assert [int(token) for token, *_ in steps] == greedy

    # half the bits, and the same support of the same numbers
    model.set_dtype(mx.bfloat16)
    recorder = Recorder(MinP(0.1), temperature=1.5)
    half_rows = recorder.check(draw(model, prompt, recorder, 1.5))

    answer = run_example(page, "mlx-lm")
    (ours,) = (engine for engine in available() if engine.name == "mlx_lm")
    assert ours.usable, ours
    named = ("mlx-lm", "mlx", "torch", "transformers", "numpy")
    summary = {
        "command": "bash tests/engines/mlx_lm.sh",
        "date": datetime.date.today().isoformat(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in named},
        "model": f"the built-in target, {model.args.vocab_size} tokens, on a CPU",
        "rules": list(CASES),
        "rows equal to truncate, their tokens drawn inside the support": rows,
        "rows of a batch, each request with its own rules, likewise": batch_rows,
        "rows in bfloat16, likewise": half_rows,
        "tokens equal to greedy ones with a support of one, plain and speculative": len(greedy),
        "the example of docs/engines.md": f"{len(answer)} characters",
    }
    print(json.dumps(summary, indent=2))
    Path(results).write_text(json.dumps(summary, indent=2) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
