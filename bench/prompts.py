"""The texts that benchmarks continue: Python for the built-in pair, English for any other, or a file of one's own."""

from __future__ import annotations

from pathlib import Path

from .model_pair import BUILT_IN


def prompts_for(pair: str, file: Path | None, count: int | None) -> list[str]:
    """The first prompts for a pair of that name, or the first lines of a file that are not blank; all for None.

    Raises:
        ValueError: fewer prompts than asked for.
    """
    prompts = lines_of(file) if file is not None else default_prompts(pair)
    if count is not None and count > len(prompts):
        source = "the built-in prompts" if file is None else str(file)
        raise ValueError(f"{source} are {len(prompts)}, got --prompts {count}")
    return prompts[:count]


def default_prompts(pair: str) -> list[str]:
    """Held-out Python for the built-in pair, openings of English texts for others."""
    if pair != BUILT_IN:
        return lines_of(Path(__file__).with_name("english_prompts.txt"))
    from warpdraft.builtin_pair import held_out_prompts

    return held_out_prompts()


def lines_of(file: Path) -> list[str]:
    """Every line that is not blank."""
    return [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
