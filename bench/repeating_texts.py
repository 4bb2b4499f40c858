"""Prompt look-up on texts that repeat themselves: code that is written out again.

    python bench/repeating_texts.py                    # the built-in pair's target
    python bench/repeating_texts.py --model FOLDER

Every text holds a held-out piece of code and, after a heading, the first third of it once more.
"""

from __future__ import annotations

import typer


def again(code: str) -> str:
    """A piece of code, and its beginning a second time."""
    lines = code.strip("\n").splitlines()
    # a beginning of one line is a line all the same
    start = "\n".join(lines[: max(1, len(lines) // 3)])
    body = "\n".join(lines)
    return f"# before\n{body}\n\n# after\n{start}\n"


def main(
    model: str | None = None,
    texts: int = 8,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    max_ngram: int = 3,
) -> None:
    """Print block efficiency and speed beside plain sampling and transformers' own prompt look-up."""
    from warpdraft.bench.console import stdout
    from warpdraft.bench.generate_command import cost_table
    from warpdraft.bench.model_pair import load_pair
    from warpdraft.bench.strategies import (
        Run,
        Sampling,
        Speculation,
        run_assisted,
        run_plain,
        run_warpdraft,
    )
    from warpdraft.builtin_pair import held_out_prompts

    pair = load_pair(model, f"prompt-lookup:{max_ngram}")
    runs: dict[str, list[Run]] = {}
    prompts = [pair.encode([again(code)], raw=True) for code in held_out_prompts()[:texts]]
    for number, inputs in enumerate([prompts[0], *prompts]):
        sampling = Sampling((), temperature, max_new_tokens, number)
        made = {"plain sampling": run_plain(pair, inputs, sampling)}
        made["assisted look-up, L = 10"] = run_assisted(pair, inputs, sampling, 10)
        for paths, length in ((1, 4), (1, 10), (3, 10)):
            speculation = Speculation(paths, length, "target_only")
            made[f"look-up, K = {paths}, L = {length}"] = run_warpdraft(
                pair, inputs, sampling, speculation
            )
        # the first round warms up
        if number > 0:
            for name, run in made.items():
                runs.setdefault(name, []).append(run)
    summed = [
        Run(
            name,
            [sum(run.tokens for run in each)],
            [sum(run.target_calls for run in each)],
            sum(run.seconds for run in each),
        )
        for name, each in runs.items()
    ]
    title = f"{pair.name}, {texts} texts, {max_new_tokens} new tokens, temperature {temperature:g}"
    stdout.print(cost_table(summed, title))


if __name__ == "__main__":
    typer.run(main)
