"""Tokens a second of speculation on a synthetic pair of real size, beside SpecTr's published ratios.

    python bench/pair_speed.py --device cuda --json pair.json

The target has Llama 3's shape of 8 billion parameters in bfloat16, the draft is its first 4 of 32 layers, and the two
laws overlap by 0.59 at temperature 1 (synthetic_pair.py). Every line is the median of the repeats of one run. Beside
each stands what is left if verification cost nothing, and if the models' calls took only the time in which the device
reads their weights: where the rest of the gap lies, in kernels, in launches or in arithmetic.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

SPECTR = {"plain": 2.13, "one path": 1.37}
"""Wall-clock ratios of SpecTr with K = L = 8 to plain sampling and to one path (Sun et al., NeurIPS 2023)."""

WARM_UP_TOKENS = 24
"""Enough for every shape of a call to be seen, compiled or captured."""


@dataclass(frozen=True, slots=True)
class Line:
    """One way to write the same number of tokens.

    Attributes:
        name: of the way.
        seconds: median of the repeats, prompt included.
        spread: the fastest and the slowest of them.
        block_efficiency: emitted tokens per target call.
        acceptance_rate: of the drafted tokens of one path; None where nothing is drafted.
        stages: seconds of the loop's stages in the median repeat.
        calls: target calls in it.
    """

    name: str
    tokens: int
    seconds: float
    spread: tuple[float, float]
    block_efficiency: float
    acceptance_rate: float | None
    stages: dict[str, float]
    calls: int

    @property
    def tokens_per_second(self) -> float:
        """Of the median repeat."""
        return self.tokens / self.seconds


def measure(name: str, run: Callable[[int], Any], tokens: int, repeats: int) -> Line:
    """Warm up, then repeat; `run` writes so many tokens and returns the loop's statistics, or None for `generate`."""
    run(WARM_UP_TOKENS)
    timed = []
    for _ in range(repeats):
        start = time.perf_counter()
        stats = run(tokens)
        timed.append((time.perf_counter() - start, stats))
    timed.sort(key=lambda each: each[0])
    seconds, stats = timed[len(timed) // 2]
    return Line(
        name,
        tokens,
        seconds,
        (timed[0][0], timed[-1][0]),
        1.0 if stats is None else stats.block_efficiency,
        None if stats is None or not stats.drafted_tokens else stats.acceptance_rate,
        {} if stats is None else dict(stats.seconds),
        tokens if stats is None else stats.target_calls,
    )


def seconds_to_read(model: PreTrainedModel, bandwidth: float) -> float:
    """Time in which the device reads the weights once, embeddings left out: of those a call reads a few rows."""
    embeddings: Any = model.get_input_embeddings()
    counted = {id(weight): weight for weight in model.parameters()}
    head: Any = model.get_output_embeddings()
    if head.weight is not embeddings.weight:
        counted.pop(id(embeddings.weight), None)
    return sum(weight.numel() * weight.element_size() for weight in counted.values()) / bandwidth


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second that the device reads and writes in a large copy, the best of ten."""
    import torch

    size = 1 << (30 if device.type == "cuda" else 26)
    source = torch.empty(size, dtype=torch.uint8, device=device).zero_()
    copy = torch.empty_like(source)
    best = float("inf")
    for _ in range(10):
        _wait(device)
        start = time.perf_counter()
        copy.copy_(source)
        _wait(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size / best


def step_seconds(model: PreTrainedModel, text: Tensor) -> float:
    """Median time of reading one token behind a cached text, as plain generation does."""
    import torch
    from transformers import DynamicCache

    cache = DynamicCache()
    with torch.no_grad():
        model(input_ids=text, past_key_values=cache, logits_to_keep=1)
        times = []
        for _ in range(20):
            _wait(text.device)
            start = time.perf_counter()
            model(input_ids=text[:, -1:], past_key_values=cache, logits_to_keep=1)
            _wait(text.device)
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def main(
    shape: Annotated[str, typer.Option(help="llama-8b or tiny.")] = "llama-8b",
    kept: Annotated[int, typer.Option(help="Layers of the draft.")] = 4,
    overlap: Annotated[float, typer.Option(help="1 - total variation at temperature 1.")] = 0.59,
    device: str = "cuda",
    num_drafts: int = 8,
    draft_length: int = 8,
    new_tokens: int = 128,
    repeats: int = 3,
    compiled: Annotated[bool, typer.Option(help="Static caches, compiled calls too.")] = False,
    output: Annotated[Path | None, typer.Option("--json", help="Write all figures.")] = None,
) -> None:
    """Measure plain sampling, one path and K paths on a synthetic pair."""
    import torch

    from warpdraft.bench.synthetic_pair import calibration_texts, synthetic_pair
    from warpdraft.first_layers import FirstLayers
    from warpdraft.integrations.transformers import FusedSampling, SpeculativeDecoding

    place = torch.device(device)
    dtype = torch.bfloat16 if place.type == "cuda" else torch.float32
    pair = synthetic_pair(
        shape,
        kept,
        overlap,
        first_layers=lambda target, layers: FirstLayers(layers).model_for(target),
        device=place,
        dtype=dtype,
    )
    target, draft = pair.target, FirstLayers(kept).model_for(pair.target)
    text = calibration_texts(target, seed=1)[:1]

    def sampled(way: Any) -> Callable[[int], Any]:
        def run(tokens: int) -> Any:
            generate: Any = target.generate
            output = generate(
                text,
                attention_mask=torch.ones_like(text),
                do_sample=True,
                top_k=0,
                max_new_tokens=tokens,
                return_dict_in_generate=True,
                **({} if way is None else {"custom_generate": way}),
            )
            _wait(place)
            return getattr(output, "stats", None)

        return run

    def speculation(paths: int, verifier: str, *, fast: bool) -> Any:
        return SpeculativeDecoding(
            FirstLayers(kept),
            num_drafts=paths,
            draft_length=draft_length,
            verifier=verifier,
            compile=fast,
            seed=0,
        )

    ways: dict[str, Any] = {"generate": None, "fused sampling": FusedSampling(seed=0)}
    for fast in (False, True) if compiled else (False,):
        mode = ", compiled" if fast else ""
        ways[f"one path{mode}"] = speculation(1, "optimal_block", fast=fast)
        ways[f"k_seq{mode}"] = speculation(num_drafts, "k_seq", fast=fast)
        ways[f"optimal_block{mode}"] = speculation(num_drafts, "optimal_block", fast=fast)
    bandwidth = copy_bandwidth(place)
    read = {
        name: seconds_to_read(model, bandwidth)
        for name, model in (("target", target), ("draft", draft))
    }
    step = {
        name: step_seconds(model, text) for name, model in (("target", target), ("draft", draft))
    }
    lines = [measure(name, sampled(way), new_tokens, repeats) for name, way in ways.items()]

    typer.echo(
        f"{shape}, {dtype}, {place}: overlap {pair.overlap:.3f}, scale {pair.scale:.4f}; K = {num_drafts}, "
        f"L = {draft_length}; copy {bandwidth / 1e9:.0f} GB/s; one token: target {1e3 * step['target']:.2f} ms "
        f"(its weights {1e3 * read['target']:.2f}), draft {1e3 * step['draft']:.2f} ms "
        f"({1e3 * read['draft']:.2f}), cost ratio {step['draft'] / step['target']:.3f}"
    )
    plain = lines[0]
    for line in lines:
        typer.echo(_described(line, plain, read, draft_length))
    typer.echo(
        f"SpecTr (PaLM-2, K = L = 8): {SPECTR['plain']} times plain sampling, {SPECTR['one path']} times one path"
    )
    if output is not None:
        figures = {
            "shape": shape,
            "device": str(place),
            "torch": torch.__version__,
            "overlap": pair.overlap,
            "copy_bandwidth": bandwidth,
            "seconds_to_read": read,
            "step_seconds": step,
            "lines": [asdict(line) for line in lines],
        }
        output.write_text(json.dumps(figures, indent=1) + "\n")


def _described(line: Line, plain: Line, read: dict[str, float], draft_length: int) -> str:
    """The line's figures, and its ratio if kernels, then launches too, cost nothing."""
    words = (
        f"{line.name:24} {line.tokens_per_second:8.1f} tokens/s  {plain.seconds / line.seconds:5.2f} x generate  "
        f"block efficiency {line.block_efficiency:.2f}"
    )
    if not line.stages:
        return words
    kernels = line.stages.get("verify", 0.0) + line.stages.get("commit", 0.0)
    models = line.stages.get("draft", 0.0) + line.stages.get("target", 0.0)
    drafted = draft_length if line.acceptance_rate is not None else 0
    arithmetic = line.calls * (read["target"] + drafted * read["draft"])
    return (
        f"{words}  without kernels {plain.seconds / (line.seconds - kernels):5.2f} x, "
        f"without launches too {plain.seconds / (line.seconds - kernels - models + arithmetic):5.2f} x"
    )


def _wait(device: torch.device) -> None:
    """Until the device has done what it was asked."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    typer.run(main)
