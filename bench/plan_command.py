"""`warpdraft bench spec --plan`: the cost model as tables, CSV, JSON or plot."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from warpdraft.builtin_pair import builtin_pair_folders

from .console import stdout, table
from .cpu_rates import measured_cpu
from .machines import GPUS, Machine
from .model_pair import read_source
from .model_shape import ModelShape, shape_named
from .plan import MOST_TEXTS, Efficiencies, Limits, Plan, PlanLine, accepted_with, read_efficiencies
from .roofline import CostModel, assumptions_for

if TYPE_CHECKING:
    from rich.table import Table


CPU = "cpu"
"""The name of this computer's processor, measured when it is asked for."""


@dataclass(frozen=True, slots=True)
class Planned:
    """What a plan is asked about.

    Attributes:
        cost: the machine and what is assumed of it.
        target: scores.
        draft: proposes.
        is_tree: how the drafts of a text are held.
        batches: texts.
        contexts: cached tokens of each.
    """

    cost: CostModel
    target: ModelShape
    draft: ModelShape
    is_tree: bool
    batches: list[int]
    contexts: list[int]


def machine_named(name: str) -> Machine:
    """A GPU by its name in lower case, or this computer's processor, measured now.

    Raises:
        ValueError: an unknown name.
    """
    known = name.lower().replace(" ", "-").replace("_", "-")
    if known == CPU:
        return measured_cpu()
    if known not in GPUS:
        raise ValueError(f"--plan takes {', '.join([*GPUS, CPU])}, got {name!r}")
    return GPUS[known]


def planned(
    machine: str,
    model: str | None,
    draft: str | None,
    skip: Sequence[int],
    *,
    dtype: str | None,
    layout: str,
    assume: Sequence[str],
    batches: list[int],
    contexts: list[int],
) -> Planned:
    """Read the options of a plan; models are known by their configurations alone.

    Raises:
        ValueError: an unknown machine, model or assumption, no draft, or a number out of range.
        OSError: no such model.
    """
    found = machine_named(machine)
    if dtype == "float32" and not found.is_measured:
        raise ValueError("--plan knows GPUs in 16 bits: leave out --dtype float32")
    width = 2.0 if dtype in ("bfloat16", "float16") or not found.is_measured else 4.0
    changes = {"bytes_per_number": width, **_assumed(assume)}
    if max(batches) > MOST_TEXTS:
        raise ValueError(f"--batches must be at most {MOST_TEXTS}, got {max(batches)}")
    target, proposing = pair_of_shapes(model, draft, skip)
    return Planned(
        CostModel(found, assumptions_for(found, changes)),
        target,
        proposing,
        layout != "paths",
        batches,
        contexts,
    )


def _assumed(assume: Sequence[str]) -> dict[str, float]:
    changes = {}
    for text in assume:
        name, _, value = text.partition("=")
        try:
            changes[name.strip()] = float(value)
        except ValueError:
            raise ValueError(f"--assume takes NAME=NUMBER, got {text!r}") from None
    return changes


def pair_of_shapes(
    model: str | None, draft: str | None, skip: Sequence[int]
) -> tuple[ModelShape, ModelShape]:
    """The shapes of target and draft: the built-in pair without a model.

    Raises:
        ValueError: no draft, or one that no model makes.
    """
    source = read_source(draft)
    if source is not None and source[0] == "prompt-lookup":
        raise ValueError("--plan counts drafts that a model makes, not prompt look-up")
    if model is None and draft is None and not skip:
        folders = builtin_pair_folders()
        return (
            replace(shape_named(str(folders.target)), name="the built-in target"),
            replace(shape_named(str(folders.draft)), name="the built-in draft"),
        )
    if model is None:
        target = replace(
            shape_named(str(builtin_pair_folders().target)), name="the built-in target"
        )
    else:
        target = shape_named(model)
    if source is not None:
        return target, target.first_layers(source[1])
    if skip:
        return target, target.without_layers(skip)
    if draft is None:
        raise ValueError("the plan needs a draft: --draft or --skip")
    return target, shape_named(draft)


def known_efficiencies(
    efficiency: str | None,
    acceptance: str | None,
    drafts: Sequence[int],
    lengths: Sequence[int],
) -> Efficiencies | None:
    """Block efficiency where the options give it; None where it must be measured.

    Raises:
        ValueError: both are given, or one is wrong.
    """
    if efficiency is not None and acceptance is not None:
        raise ValueError("--efficiency and --acceptance say the same thing: give one of them")
    if efficiency is not None:
        return read_efficiencies(efficiency, drafts, lengths)
    if acceptance is None:
        return None
    try:
        rates = [float(part) for part in acceptance.split(",")]
    except ValueError:
        raise ValueError(
            f"--acceptance takes rates separated by commas, got {acceptance!r}"
        ) from None
    return accepted_with(rates, drafts, lengths)


def show_plan(
    asked: Planned,
    efficiencies: Efficiencies,
    *,
    json_file: Path | None = None,
    csv_file: Path | None = None,
    plot_file: Path | None = None,
) -> None:
    """Print a table a context and where speculation stops paying; write all settings to the files."""
    plan = Plan(asked.cost, asked.target, asked.draft, efficiencies, asked.is_tree)
    limits = [plan.limits(context) for context in asked.contexts]
    for context in asked.contexts:
        lines = until_memory_ends([plan.best(context, batch) for batch in sorted(asked.batches)])
        stdout.print(plan_table(lines, f"{title(plan)}, context {context:,}"))
    stdout.print("\n".join(advice(each) for each in limits), markup=False, soft_wrap=True)
    stdout.print(assumed(plan), markup=False, soft_wrap=True)
    if json_file is None and csv_file is None and plot_file is None:
        return
    lines = list(plan.lines(asked.contexts, asked.batches))
    if json_file is not None:
        written = {
            # JSON has no infinity
            "machine": asdict(plan.cost.machine) | {"memory": finite(plan.cost.machine.memory)},
            "assumptions": asdict(plan.cost.assumptions),
            "target": plan.target.name,
            "draft": plan.draft.name,
            "limits": [asdict(each) for each in limits],
            "lines": [asdict(line) for line in lines],
        }
        json_file.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    if csv_file is not None:
        with csv_file.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, fieldnames=list(asdict(lines[0])))
            writer.writeheader()
            writer.writerows(asdict(line) for line in lines)
    if plot_file is not None:
        from .plan_plot import plot_plan

        plot_plan(plan, asked.contexts, plot_file, title(plan))


def finite(number: float) -> float | None:
    """The number; None for one without end."""
    return number if math.isfinite(number) else None


def title(plan: Plan) -> str:
    """What was planned, in a line."""
    return f"{plan.cost.machine.name}: {plan.target.name} with {plan.draft.name}"


def until_memory_ends(lines: Sequence[PlanLine]) -> list[PlanLine]:
    """Growing batches up to the first for which neither way has memory."""
    kept = []
    for line in lines:
        kept.append(line)
        if line.tokens_per_second is None and line.plain_tokens_per_second is None:
            break
    return kept


def plan_table(lines: Sequence[PlanLine], heading: str) -> Table:
    """A line a batch size, with its fastest setting."""
    rows = table(
        "batch",
        "plain tokens/s",
        "tokens/s",
        "ratio to plain",
        "K",
        "L",
        "block efficiency",
        "draft/target/truncate/verify, %",
        "GB",
        title=heading,
    )
    for line in lines:
        shares = (line.draft_share, line.target_share, line.truncate_share, line.verify_share)
        rows.add_row(
            str(line.batch),
            speed(line.plain_tokens_per_second),
            speed(line.tokens_per_second),
            "" if line.ratio is None else f"{line.ratio:.2f}",
            str(line.num_drafts),
            str(line.draft_length),
            f"{line.block_efficiency:.2f}",
            "/".join(f"{100 * share:.0f}" for share in shares),
            f"{line.gigabytes:.1f}",
        )
    return rows


def speed(tokens_per_second: float | None) -> str:
    """Tokens a second, or why there are none."""
    return "no memory" if tokens_per_second is None else f"{tokens_per_second:,.0f}"


def advice(limits: Limits) -> str:
    """Where something ends, in a line."""
    if limits.plain_fits == 0:
        return f"context {limits.context:,}: not even one text fits into the memory"
    memory = f"memory ends at {limits.plain_fits} texts, with drafts at {limits.fits}"
    if limits.plain_fits == MOST_TEXTS == limits.fits:
        memory = f"memory holds {MOST_TEXTS} texts"
    if limits.pays == 0:
        return f"context {limits.context:,}: plain sampling is faster at every batch size; {memory}"
    if limits.pays == limits.fits:
        return f"context {limits.context:,}: speculation can pay at every batch size that fits with drafts; {memory}"
    return (
        f"context {limits.context:,}: speculation can pay up to {limits.pays} texts, from "
        f"{limits.pays + 1} on plain sampling is faster; {memory}"
    )


def assumed(plan: Plan) -> str:
    """The assumptions, as `--assume` takes them."""
    machine = plan.cost.machine
    given = ", ".join(f"{name}={value:g}" for name, value in asdict(plan.cost.assumptions).items())
    return (
        f"{machine.name}: {machine.bandwidth / 1e9:,.0f} GB/s, {machine.matrix_flops / 1e12:,.4g} TFLOP/s, "
        f"vectors {machine.vector_flops / 1e12:,.4g} TFLOP/s; {given}"
    )
