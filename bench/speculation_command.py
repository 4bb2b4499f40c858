"""`warpdraft bench spec`: block efficiency of the verifiers, as a table, JSON or CSV."""

from __future__ import annotations

import csv
import itertools
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .console import progress_bar, stdout, table, working
from .options import (
    Device,
    DraftModel,
    Dtype,
    MinPShare,
    Model,
    Temperature,
    TopHAlpha,
    TopHVariant,
    TopKTokens,
    TopPMass,
    check_folder,
    rules_in_order,
    whole_numbers,
)

if TYPE_CHECKING:
    from rich.table import Table

    from .bench_speculation import Measurement


def speculation(
    verifier: Annotated[str, typer.Option(help="One or more, separated by commas.")] = "k_seq",
    num_drafts: Annotated[
        str, typer.Option(help="Draft paths a target call.", metavar="K,...")
    ] = "1,2,4,8",
    draft_length: Annotated[
        str, typer.Option(help="Tokens a draft path.", metavar="L,...")
    ] = "4,8",
    prompts: Annotated[
        int, typer.Option(min=1, help="So many of the built-in held-out prompts.", metavar="N")
    ] = 50,
    prompt_file: Annotated[
        Path | None, typer.Option(help="Prompts of your own instead, one a line.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts a call.", metavar="N")] = 1,
    max_new_tokens: Annotated[int, typer.Option(help="Longest continuation.", metavar="N")] = 64,
    seed: Annotated[int, typer.Option(help="The i-th call takes this plus i.")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write JSON here.")] = None,
    csv_file: Annotated[Path | None, typer.Option("--csv", help="Also write CSV here.")] = None,
    model: Model = None,
    draft_model: DraftModel = None,
    device: Device = "cpu",
    dtype: Dtype = None,
    temperature: Temperature = 1.0,
    top_h: TopHAlpha = None,
    top_h_variant: TopHVariant = "paper",
    top_k: TopKTokens = None,
    top_p: TopPMass = None,
    min_p: MinPShare = None,
) -> None:
    """Measure block efficiency over verifiers, draft paths and draft lengths.

    Every setting continues the same prompts; plain sampling comes first.
    """
    drafts, lengths = (
        whole_numbers("--num-drafts", num_drafts),
        whole_numbers("--draft-length", draft_length),
    )
    check_folder("--json", json_file)
    check_folder("--csv", csv_file)
    with working("Loading torch and the models"):
        from .bench_speculation import measure
        from .model_pair import load_pair
        from .strategies import Sampling, Speculation

        rules = rules_in_order(top_h, top_h_variant, top_k, top_p, min_p)
        sampling = Sampling(rules, temperature, max_new_tokens, seed)
        settings = [
            Speculation(paths, length, name)
            for name, length, paths in itertools.product(verifier.split(","), lengths, drafts)
        ]
        pair = load_pair(model, draft_model, device=device, dtype=dtype)
        if pair.draft is None:
            raise ValueError("the benchmark needs a draft model: --draft-model")
        texts = read_prompts(prompt_file, prompts)

    measurements = []
    calls = (1 + len(settings)) * math.ceil(len(texts) / batch_size)
    with progress_bar() as progress:
        task = progress.add_task("warming up", total=calls)
        for measurement in measure(
            pair,
            texts,
            sampling,
            settings,
            batch_size=batch_size,
            on_call=lambda strategy: progress.update(task, advance=1, description=strategy),
        ):
            measurements.append(measurement)
    title = f"{pair.name}, {len(texts)} prompts, {max_new_tokens} new tokens, {sampling}"
    stdout.print(result_table(measurements, title))
    if json_file is not None:
        json_file.write_text(json.dumps([asdict(line) for line in measurements], indent=1) + "\n")
    if csv_file is not None:
        with csv_file.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, fieldnames=list(asdict(measurements[0])))
            writer.writeheader()
            writer.writerows(asdict(line) for line in measurements)


def read_prompts(file: Path | None, count: int) -> list[str]:
    """The first `count` built-in held-out prompts, or every line of a file that is not blank.

    Raises:
        ValueError: fewer prompts than asked for.
    """
    if file is not None:
        return [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    from warpdraft.builtin_pair import held_out_prompts

    prompts = held_out_prompts()
    if count > len(prompts):
        raise ValueError(f"there are {len(prompts)} held-out prompts, got --prompts {count}")
    return prompts[:count]


def result_table(measurements: list[Measurement], title: str) -> Table:
    """One line a setting."""
    rows = table(
        "verifier",
        "K",
        "L",
        "block efficiency",
        "acceptance rate",
        "tokens/s",
        "ratio to plain",
        title=title,
    )
    for line in measurements:
        drafted = line.num_drafts > 0
        rows.add_row(
            line.verifier,
            str(line.num_drafts) if drafted else "",
            str(line.draft_length) if drafted else "",
            f"{line.block_efficiency:.3f} ± {line.block_efficiency_error:.3f}",
            "" if line.acceptance_rate is None else f"{line.acceptance_rate:.3f}",
            f"{line.tokens_per_second:.1f}",
            f"{line.ratio_to_plain:.2f}",
        )
    return rows
