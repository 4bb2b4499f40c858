"""The part of `sglang.sh` that runs: python sglang_source.py SGLANG.whl RESULTS.json.

Of the wheel it runs `srt/sampling/custom_logit_processor.py` as it stands, and by themselves what calls
a processor and what ends a request; importing their modules would import the engine.
"""

from __future__ import annotations

import ast
import datetime
import importlib.metadata
import inspect
import json
import logging
import platform
import sys
import types
import weakref
import zipfile
from pathlib import Path
from types import SimpleNamespace

import torch

from warpdraft import DynamicTemperature, MinP, TopH, TopK, truncate

VOCAB = 500


def definitions(source, *names):
    """These functions and classes of a module, without the rest of it."""
    wanted = [node for node in ast.parse(source).body if getattr(node, "name", None) in names]
    assert len(wanted) == len(names), names
    found = {"torch": torch, "logger": logging.getLogger(__name__)}
    module = ast.Module([*ast.parse("from __future__ import annotations").body, *wanted], [])
    exec(compile(module, "sglang", "exec"), found)
    return [found[name] for name in names]


def put_in_place(name, **contents):
    """A module of this name, and packages above it that hold nothing else."""
    parts = name.split(".")
    for length in range(1, len(parts) + 1):
        package = types.ModuleType(".".join(parts[:length]))
        package.__path__ = []
        sys.modules.setdefault(package.__name__, package)
    sys.modules[name].__dict__.update(contents)


def load(wheel):
    """Our class on SGLang's base class, what calls it, and what ends a request."""
    archive = zipfile.ZipFile(wheel)

    def source(path):
        return archive.read(f"sglang/srt/{path}").decode()

    processors = "sglang.srt.sampling.custom_logit_processor"
    put_in_place(processors)
    exec(source("sampling/custom_logit_processor.py"), sys.modules[processors].__dict__)
    _, abort = definitions(source("managers/schedule_batch.py"), "BaseFinishReason", "FINISH_ABORT")
    put_in_place("sglang.srt.managers.schedule_batch", FINISH_ABORT=abort)
    (apply,) = definitions(source("layers/sampler.py"), "apply_custom_logit_processor")

    from warpdraft.integrations.sglang import Truncation

    return sys.modules[processors].CustomLogitProcessor, Truncation, apply, abort


class Request(SimpleNamespace):
    """What a processor sees of a request; SGLang hands over a weak reference."""


class Batch(SimpleNamespace):
    """What SGLang keeps of a batch, as far as processors see it."""

    def __len__(self):
        return len(self.custom_params)


def main(wheel, results):
    base, ours, apply, abort = load(wheel)
    assert issubclass(ours, base)
    called = list(inspect.signature(ours.__call__).parameters)
    assert called == list(inspect.signature(base.__call__).parameters)
    # as it travels in a request
    processor = base.from_str(ours.to_str())
    assert type(processor) is ours

    asked = [
        ({"top_h": 0.4}, 1.5, TopH(0.4)),
        (None, 1.0, ()),
        ({"rules": [{"top_k": 20}, {"min_p": 0.2}]}, 0.7, (TopK(20), MinP(0.2))),
        ({"top_h": -1}, 1.0, ()),
        ({"min_p": 0.1, "of_another_plugin": 1}, 1.5, MinP(0.1)),
        (
            {"rules": [{"dynamic_temperature": [0.5, 1.5]}, {"min_p": 0.1}]},
            1.2,
            (DynamicTemperature(0.5, 1.5), MinP(0.1)),
        ),
    ]
    requests, params = [], []
    for parameters, temperature, _ in asked:
        sampling = SimpleNamespace(temperature=temperature, top_k=1 << 30)
        requests.append(Request(sampling_params=sampling, to_finish=None))
        params.append(parameters and parameters | {"__req__": weakref.proxy(requests[-1])})
    # request 1 has no processor of ours
    rows = [0, 2, 3, 4, 5]
    entry = SimpleNamespace(rows=rows, indices=torch.tensor(rows), processor=processor)
    batch = Batch(custom_params=params, custom_logit_processor={1: entry}, device="cpu")
    equal = 0
    # one token a request, and three, as speculative verification has
    for tokens in (1, 3):
        shape = (len(asked) * tokens, VOCAB)
        logits = 3 * torch.randn(shape, generator=torch.Generator().manual_seed(tokens))
        expected = logits.clone()
        for row, (_, temperature, rules) in enumerate(asked):
            if rules:
                at = slice(row * tokens, (row + 1) * tokens)
                expected[at] = truncate(logits[at], rules, temperature=temperature)
        apply(logits, batch, tokens)
        assert torch.equal(logits, expected)
        equal += len(logits)
    ended = [request.to_finish for request in requests]
    assert [row for row, finish in enumerate(ended) if finish is not None] == [3]
    assert isinstance(ended[3], abort)
    assert ended[3].to_json()["status_code"] == 400
    assert ended[3].to_json()["message"] == "top_h: alpha must be in (0, inf], got -1"

    summary = {
        "command": "bash tests/engines/sglang.sh",
        "date": datetime.date.today().isoformat(),
        "python": platform.python_version(),
        "versions": {
            "sglang": Path(wheel).name.split("-")[1],
            **{name: importlib.metadata.version(name) for name in ("torch", "dill")},
        },
        "ran": "SGLang's own code for processors out of the released wheel; no engine, no model",
        "rows equal to truncate": equal,
        "requests ended for their parameters, alone": 1,
    }
    print(json.dumps(summary, indent=2))
    Path(results).write_text(json.dumps(summary, indent=2) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
