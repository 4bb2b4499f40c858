"""The cost model beside measurements: what others published, and calls of a model on this processor.

    python bench/plan_check.py                           # published speeds and ratios
    python bench/plan_check.py --write                   # the same into docs/plan.md, between its marks
    python bench/plan_check.py --cpu                     # the built-in target here, on one thread
    python bench/plan_check.py --cpu --model FOLDER      # another model

On the processor the rates are measured first (cpu_rates.py), and so is what an operation costs by itself: in a model
that has nothing to compute. A model's operations are counted in one call. Processor time counts, not time on the
wall, and of several calls the fastest.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from warpdraft.bench.console import stdout, table
from warpdraft.bench.cpu_rates import measured_cpu
from warpdraft.bench.machines import GPUS
from warpdraft.bench.marks import between, marks
from warpdraft.bench.model_shape import count_model, shape_named
from warpdraft.bench.published_speeds import DRAFTED_RATIOS, PLAIN_SPEEDS
from warpdraft.bench.report_tables import markdown
from warpdraft.bench.roofline import Assumptions, CostModel, assumptions_for

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CALLS = ((1, 1), (4, 1), (16, 1), (1, 5), (1, 17), (4, 17))
"""Texts and new tokens of the calls that are timed."""

CONTEXT = 64
# through links, as an editable install has them
PAGE = Path(__file__).resolve().parent.parent / "docs" / "plan.md"
RUNS = 5


def plain_rows() -> Iterator[tuple[str, str, int, float, float]]:
    """Source, machine, batch, published and predicted tokens a second."""
    for line in PLAIN_SPEEDS:
        cost = CostModel(GPUS[line.machine], Assumptions())
        shape = shape_named(line.model)
        seconds = cost.plain(shape, line.batch, line.context).seconds
        if line.prompt_share:
            # a prompt is read by one call over all of it, once for as many new tokens
            prompt = round(line.context / 1.5)
            seconds += (
                line.batch * line.prompt_share * cost.call_seconds(shape, 1, prompt, 0) / prompt
            )
        yield line.source, line.machine, line.batch, line.tokens_per_second, line.batch / seconds


def drafted_rows() -> Iterator[tuple[str, str, int, float, float]]:
    """Source, machine, batch, published and predicted ratio to plain sampling."""
    for line in DRAFTED_RATIOS:
        cost = CostModel(GPUS[line.machine], Assumptions())
        target = shape_named(line.model)
        draft = target.first_layers(1)
        length = len(line.acceptance)
        for batch, ratio in line.ratios.items():
            block = cost.speculative(
                target, draft, batch, line.context, 1, length, line.block_efficiency
            )
            plain = cost.plain(target, batch, line.context)
            yield (
                line.source,
                line.machine,
                batch,
                ratio,
                block.tokens_per_second / plain.tokens_per_second,
            )


def published_tables() -> str:
    """Both tables as Markdown, of the ratios a line a source."""
    plain = [
        [
            source,
            GPUS[machine].name,
            str(batch),
            f"{published:,.1f}",
            f"{predicted:,.1f}",
            error(published, predicted),
        ]
        for source, machine, batch, published, predicted in plain_rows()
    ]
    ratios: dict[tuple[str, str], dict[int, str]] = {}
    for source, machine, batch, published, predicted in drafted_rows():
        cells = ratios.setdefault((source, GPUS[machine].name), {})
        cells[batch] = f"{published:.2f} / {predicted:.2f}"
    sizes = sorted({batch for cells in ratios.values() for batch in cells})
    drafted = [
        [", on ".join(key), *(cells.get(size, "") for size in sizes)]
        for key, cells in ratios.items()
    ]
    return "\n\n".join(
        (
            markdown(
                ["source", "machine", "batch", "published tokens/s", "predicted", "error"], plain
            ),
            markdown(["ratio, published / predicted", *(f"B = {size}" for size in sizes)], drafted),
        )
    )


def with_published(page: str) -> str:
    """docs/plan.md with the tables between its marks.

    Raises:
        ValueError: a mark is missing.
    """
    start, end = marks("published speeds", "bench/plan_check.py")
    return between(page, start, end, f"\n\n{published_tables()}\n\n", file=PAGE.name)


def error(published: float, predicted: float) -> str:
    """Of a prediction, in percent."""
    return f"{100 * (predicted / published - 1):+.0f} %"


def cpu_rows(model: PreTrainedModel, cost: CostModel) -> Iterator[tuple[int, int, float, float]]:
    """Texts, new tokens, measured and predicted seconds of a call."""
    shape = count_model(model, "the model")
    for batch, tokens in CALLS:
        seconds = call_seconds(model, batch, tokens)
        yield batch, tokens, seconds, cost.call_seconds(shape, batch, tokens, CONTEXT)


def call_seconds(model: PreTrainedModel, batch: int, tokens: int) -> float:
    """Of the fastest call on new tokens behind a cache of `CONTEXT`."""
    import torch
    from transformers import DynamicCache

    ids = torch.ones(batch, CONTEXT + tokens, dtype=torch.int64)
    times = []
    with torch.no_grad():
        for _ in range(RUNS + 1):
            cache = DynamicCache(config=model.config)
            model(input_ids=ids[:, :CONTEXT], past_key_values=cache)
            start = time.process_time()
            model(input_ids=ids[:, CONTEXT:], past_key_values=cache)
            times.append(time.process_time() - start)
    # the first one warms up
    return min(times[1:])


def operations_of(model: PreTrainedModel) -> int:
    """Torch operations that a call on one token dispatches, views left out: they launch nothing."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    class Launches(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if not func.is_view:
                launched.append(func)
            return func(*args, **(kwargs or {}))

    launched: list[Any] = []
    launches: Any = Launches
    with torch.no_grad(), launches():
        model(input_ids=torch.ones(1, 1, dtype=torch.int64))
    return len(launched)


def operation_seconds() -> float:
    """What an operation of a model costs where it has nothing to compute: those of a llama sixteen numbers wide."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
    )
    small = LlamaForCausalLM(config).eval()
    return call_seconds(small, 1, 1) / operations_of(small)


def main(
    write: Annotated[bool, typer.Option("--write", help="Change docs/plan.md.")] = False,
    cpu: Annotated[bool, typer.Option("--cpu", help="Measure calls on this processor.")] = False,
    model: Annotated[
        str | None, typer.Option(help="A folder in place of the built-in target.")
    ] = None,
) -> None:
    """Print measured beside predicted numbers."""
    if write:
        PAGE.write_text(with_published(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
        return
    if not cpu:
        show("plain sampling, tokens a second", plain_rows(), "{:,.1f}")
        show("ratio to plain sampling", drafted_rows(), "{:.2f}")
        return
    import torch

    from warpdraft.bench.model_pair import load_pair

    torch.set_num_threads(1)
    target = load_pair(model).target
    machine = measured_cpu()
    operations = operations_of(target)
    changes = {
        "bytes_per_number": 4.0,
        "launch_seconds": operation_seconds(),
        "launches_per_layer": operations / target.config.num_hidden_layers,
    }
    cost = CostModel(machine, assumptions_for(machine, changes))
    rows = table("texts", "new tokens", "measured ms", "predicted ms", "predicted / measured")
    for batch, tokens, measured, predicted in cpu_rows(target, cost):
        rows.add_row(
            str(batch),
            str(tokens),
            f"{1e3 * measured:.2f}",
            f"{1e3 * predicted:.2f}",
            f"{predicted / measured:.2f}",
        )
    stdout.print(
        f"{model or 'the built-in target'} on {machine.name}: {machine.bandwidth / 1e9:.1f} GB/s, "
        f"{machine.matrix_flops / 1e9:.0f} GFLOP/s, {operations} operations of "
        f"{1e6 * changes['launch_seconds']:.2f} us"
    )
    stdout.print(rows)


def show(title: str, lines: Iterator[tuple[str, str, int, float, float]], number: str) -> None:
    """One table."""
    rows = table("source", "machine", "batch", "published", "predicted", "error", title=title)
    for source, machine, batch, published, predicted in lines:
        rows.add_row(
            source,
            machine,
            str(batch),
            number.format(published),
            number.format(predicted),
            error(published, predicted),
        )
    stdout.print(rows)


if __name__ == "__main__":
    typer.run(main)
