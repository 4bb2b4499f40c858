"""`warpdraft bench quality`: what the rules keep of human text, and what they write at equal diversity."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import progress_bar, stderr, stdout, table, working
from .options import Device, Dtype, Model, check_folder, names_in
from .prompts import prompts_for

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table as Screen

    from .model_pair import ModelPair
    from .quality_coverage import CoverageLine
    from .quality_frontier import Difference
    from .quality_judge import Judge
    from .quality_results import Protocol, Table, TextLine

# the fewest windows and prompts that a bootstrap can draw from
FEWEST = 2


def quality(
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            help="Beginning of the names of all files; a run that was stopped goes on there.",
            metavar="PREFIX",
        ),
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(
            help="A larger model of another family, which says how likely the texts are.",
            show_default="no texts are written",
            metavar="NAME",
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(help="all, or methods separated by commas.", show_default="the main ones"),
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(
            help="Human text for the coverage.",
            show_default="held-out Python or the language reference",
        ),
    ] = None,
    windows: Annotated[int, typer.Option(min=FEWEST, help="Pieces of the text.", metavar="N")] = 32,
    window_tokens: Annotated[int, typer.Option(help="Length of a piece.", metavar="N")] = 128,
    prompts: Annotated[
        int | None, typer.Option(min=FEWEST, help="So many of the prompts.", show_default="all")
    ] = None,
    prompt_file: Annotated[
        Path | None, typer.Option(help="Prompts of your own instead, one a line.")
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option(min=4, help="Length of each text.", metavar="N")
    ] = 40,
    seeds: Annotated[
        int, typer.Option(min=2, help="Texts of each prompt by each setting.", metavar="N")
    ] = 5,
    batch_size: Annotated[int, typer.Option(min=1, help="Most texts a batch.", metavar="N")] = 400,
    model: Model = None,
    device: Device = "cpu",
    dtype: Dtype = None,
) -> None:
    """Compare the rules by coverage of human text, and by likelihood under a judge at equal diversity.

    Every method has the same number of settings, a parameter's values times temperatures, and is compared at its best
    ones. The tables give the difference of two methods in bits a character at the same diversity, with a 95 %
    bootstrap interval over prompts and, as a star, Holm-corrected p-values below 0.05.
    """
    check_folder("--output", output)
    with working("Loading torch and the models"):
        from .model_pair import load_pair
        from .quality_coverage import CONTEXT, CoverageLine, text_for, windows_of
        from .quality_methods import CORE, METHODS
        from .quality_results import Protocol, Table, TextLine, begin, path_of

        methods = list(CORE) if method is None else names_in("--method", method, METHODS)
        pair = load_pair(model, device=device, dtype=dtype)
        protocol = Protocol(
            pair.name,
            judge,
            "built-in" if text is None else text.name,
            windows,
            window_tokens,
            prompts_for(pair.name, prompt_file, prompts),
            max_new_tokens,
            seeds,
            {name: [[*each.values], [*each.temperatures]] for name, each in METHODS.items()},
        )
        human = text_for(pair.name, text)
        pieces = windows_of(pair, human, windows, window_tokens)
        begin(output, protocol)
        coverage = Table(CoverageLine, path_of(output, "_coverage.csv"))
        texts = Table(TextLine, path_of(output, "_texts.csv"))
        reader = None if judge is None else load_judge(judge, device, dtype)

    start = time.perf_counter()
    measure_coverage(pair, pieces, methods, coverage)
    notes: dict[str, float] = {"windows": windows, "positions": windows * (window_tokens - CONTEXT)}
    if reader is None:
        stderr.print("no --judge: no texts are written")
    else:
        measure_texts(pair, reader, protocol, methods, texts, batch_size)
        notes |= fitness(pair, reader, pieces)
    stderr.print(f"{time.perf_counter() - start:.0f} s")
    report(protocol, coverage.lines, texts.lines, notes, output)


def load_judge(name: str, device: str, dtype: str | None) -> Judge:
    """The model that reads the texts."""
    from .model_pair import find_device, load_model, load_tokenizer
    from .quality_judge import Judge

    return Judge(load_model(name, find_device(device), dtype).eval(), load_tokenizer(name))


def measure_coverage(
    pair: ModelPair, pieces: Any, methods: Sequence[str], results: Table[CoverageLine]
) -> None:
    """The lines of all rules that have none yet, a rule at a time."""
    from .quality_coverage import coverage_of, laws_of
    from .quality_methods import METHODS, settings_of

    rules = [method for method in methods if METHODS[method].rule is not None]
    whole = {method: len(settings_of(method)) * len(pieces) for method in rules}
    found = [line.method for line in results.lines]
    done = {method for method in rules if found.count(method) == whole[method]}
    results.keep([line for line in results.lines if line.method not in set(rules) - done])
    missing = [method for method in rules if method not in done]
    if not missing:
        return
    logits, following = laws_of(pair, pieces)
    with progress_bar() as progress:
        task = progress.add_task("", total=len(missing))
        for method in missing:
            progress.update(task, description=f"coverage, {METHODS[method].label}")
            results.add(coverage_of(logits, following, settings_of(method)))
            progress.advance(task)


def measure_texts(
    pair: ModelPair,
    judge: Judge,
    protocol: Protocol,
    methods: Sequence[str],
    results: Table[TextLine],
    batch_size: int,
) -> None:
    """The texts of all methods that have none yet, each method with one seed at a time."""
    from .quality_methods import GREEDY, METHODS, settings_of
    from .quality_writing import judged_texts

    # greedy stands in every comparison
    plan = [
        (method, seed)
        for seed in range(protocol.seeds)
        for method in dict.fromkeys([GREEDY, *methods])
    ]
    prompts = protocol.prompts
    found = [(line.method, line.seed) for line in results.lines]
    done = {part for part in plan if found.count(part) == len(settings_of(part[0])) * len(prompts)}
    results.keep([line for line in results.lines if (line.method, line.seed) not in {*plan} - done])
    missing = [part for part in plan if part not in done]
    with progress_bar() as progress:
        task = progress.add_task("", total=len(missing))
        for method, seed in missing:
            progress.update(task, description=f"texts, {METHODS[method].label}, seed {seed}")
            results.add(
                judged_texts(
                    pair,
                    judge,
                    prompts,
                    settings_of(method),
                    max_new_tokens=protocol.max_new_tokens,
                    seed=seed,
                    batch_size=batch_size,
                )
            )
            progress.advance(task)


def fitness(pair: ModelPair, judge: Judge, pieces: Any) -> dict[str, float]:
    """Bits a character of the human text's second halves, under the judge and under the model itself."""
    from .quality_judge import Judge

    own = Judge(pair.target, pair.tokenizer)
    half = pieces.shape[1] // 2
    heads, tails = (
        pair.tokenizer.batch_decode(part, skip_special_tokens=True)
        for part in (pieces[:, :half], pieces[:, half:])
    )
    characters = sum(map(len, tails))
    parts = list(zip(heads, tails, strict=True))
    return {
        f"{name}_bits_per_character_of_human_text": sum(
            reader.bits(head, [tail])[0] for head, tail in parts
        )
        / characters
        for name, reader in (("judge", judge), ("model", own))
    }


def report(
    protocol: Protocol,
    coverage: Sequence[CoverageLine],
    texts: Sequence[TextLine],
    notes: dict[str, float],
    output: Path | None,
) -> None:
    """The tables on the screen, and all files."""
    from .quality_plots import plot_coverage, plot_diversity
    from .quality_results import Table, path_of
    from .quality_summary import (
        DiversityLine,
        differences_of,
        diversity_of,
        means_of,
        points_of_diversity,
    )

    lines = diversity_of(texts)
    means = means_of(lines, coverage)
    differences = differences_of(lines, coverage)
    for axes, by_temperature in differences.items():
        if by_temperature["all"]:
            stdout.print(difference_table(by_temperature["all"], axes, protocol))
    if output is None:
        return
    if lines:
        Table(DiversityLine, path_of(output, "_diversity.csv")).keep(lines)
    written = {
        "settings": asdict(protocol),
        "notes": notes,
        "means": means,
        "differences": {
            axes: {name: [asdict(each) for each in part] for name, part in parts.items()}
            for axes, parts in differences.items()
        },
    }
    file = output.with_name(output.name + ".json")
    file.write_text(json.dumps(written, indent=1) + "\n")
    if coverage:
        place = output.with_name(output.name + "_coverage.png")
        plot_coverage(means["coverage"], place, coverage_title(protocol, notes))
    points = points_of_diversity(lines, "self_bleu")
    if points:
        place = output.with_name(output.name + "_diversity.png")
        plot_diversity(means["diversity"], points, place, diversity_title(protocol))


def coverage_title(protocol: Protocol, notes: dict[str, float]) -> str:
    """What the first figure shows."""
    return (
        f"{protocol.model}: share of human tokens that each rule keeps, {notes['windows']} windows of "
        f"{protocol.window_tokens} tokens; up and left is better; bars are 95 % bootstrap intervals over windows"
    )


def diversity_title(protocol: Protocol) -> str:
    """What the second figure shows."""
    return (
        f"{protocol.model} judged by {Path(protocol.judge or '').name}: {len(protocol.prompts)} prompts, "
        f"{protocol.seeds} texts each of {protocol.max_new_tokens} tokens; down and right is better; "
        "a point is a setting, a line joins those that no setting of the same method beats"
    )


def difference_table(found: Sequence[Difference], axes: str, protocol: Protocol) -> Screen:
    """A line a pair of methods: the difference over the whole range and over its thirds."""
    from .quality_frontier import REGIONS
    from .quality_methods import METHODS
    from .quality_summary import AXES

    merit, cost = AXES[axes]
    parts = {(each.first, each.second, each.region): each for each in found}
    heads = []
    for region in REGIONS:
        ends = next(((each.start, each.end) for each in found if each.region == region), None)
        heads.append(region if ends is None else f"{region}\n{ends[0]:.2f} to {ends[1]:.2f}")
    result = table("", *heads, title=f"{protocol.model}: {cost}, at equal {merit}")
    for first, second in dict.fromkeys((each.first, each.second) for each in found):
        result.add_row(
            f"{METHODS[first].label}\nless {METHODS[second].label}",
            *(interval(parts[first, second, region]) for region in REGIONS),
        )
    return result


def interval(difference: Difference) -> str:
    """A difference with its interval, starred where it is significant after Holm's correction."""
    star = "*" if difference.p_value < 0.05 else " "
    low, high = f"{difference.low:+.3f}", f"{difference.high:+.3f}"
    return f"{difference.difference:+.3f}{star}\n[{low}, {high}]"
