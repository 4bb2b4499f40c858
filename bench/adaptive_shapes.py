"""Adaptive block shapes against fixed ones: tokens a second on the same prompts, the settings taking turns.

python bench/adaptive_shapes.py                              # the built-in pair
python bench/adaptive_shapes.py --model FOLDER --skip 12     # a model and itself without a layer
"""

from __future__ import annotations

import statistics
from typing import Annotated, Any

import typer


def main(
    model: str | None = None,
    draft: str | None = None,
    skip: Annotated[list[int] | None, typer.Option(help="A layer the draft leaves out.")] = None,
    prompts: int = 8,
    max_new_tokens: int = 64,
    num_drafts: int = 1,
    temperature: float = 1.0,
) -> None:
    """Print block efficiency and speed of each setting, and the shapes that were chosen."""
    from warpdraft.adaptive_shape import AdaptiveShape
    from warpdraft.bench.console import stdout, table
    from warpdraft.bench.model_pair import load_pair, own_verifier
    from warpdraft.bench.prompts import prompts_for
    from warpdraft.bench.strategies import Sampling
    from warpdraft.integrations.transformers import SpeculativeOutput, generate

    pair = load_pair(model, draft, skip=skip or ())
    texts = [pair.encode([prompt], raw=True) for prompt in prompts_for(pair.name, None, prompts)]
    settings: dict[str, dict[str, Any]] = {
        f"L = {length}": {"draft_length": length} for length in (2, 4, 8)
    }
    settings["adaptive L"] = {"adaptive": AdaptiveShape((1, 2, 4, 8))}
    settings["adaptive K and L"] = {"adaptive": AdaptiveShape((1, 2, 4, 8), (1, 2, 4))}
    runs: dict[str, list[Any]] = {name: [] for name in settings}
    for number, inputs in enumerate([texts[0], *texts]):
        for name, options in settings.items():
            output = generate(
                pair.target,
                pair.source,
                **inputs,
                **Sampling((), temperature, max_new_tokens, number).generate_arguments(),
                num_drafts=num_drafts,
                **options,
                verifier=own_verifier(draft),
                seed=number,
                return_dict_in_generate=True,
            )
            assert isinstance(output, SpeculativeOutput)
            # the first round warms up
            if number > 0:
                runs[name].append(output.stats)
    rows = table("", "block efficiency", "tokens/s", "median of the texts", "most chosen (K, L)")
    for name, stats in runs.items():
        tokens = sum(each.emitted_tokens for each in stats)
        shapes: dict[tuple[int, int], int] = {}
        for each in stats:
            for (paths, length), count in each.blocks_by_shape.items():
                shapes[paths, length] = shapes.get((paths, length), 0) + count
        rows.add_row(
            name,
            f"{tokens / sum(each.target_calls for each in stats):.2f}",
            f"{tokens / sum(each.total_seconds for each in stats):.1f}",
            f"{statistics.median(each.emitted_tokens / each.total_seconds for each in stats):.1f}",
            ", ".join(map(str, sorted(shapes, key=shapes.__getitem__, reverse=True)[:3])),
        )
    stdout.print(f"{pair.name}, K = {num_drafts}, temperature {temperature:g}")
    stdout.print(rows)


if __name__ == "__main__":
    typer.run(main)
