"""The files of `warpdraft bench quality`, all with one prefix; a run that was stopped goes on there.

PREFIX.settings.json      what is measured; a prefix goes on only with the same
PREFIX_coverage.csv       a line a setting and window of text
PREFIX_texts.csv          a line a text, with its token ids and its bits under the judge
PREFIX_diversity.csv      a line a setting and prompt, from the texts
PREFIX.json               settings, tables and differences
PREFIX_coverage.png, PREFIX_diversity.png
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Generic, TypeVar, get_type_hints

from .quality_methods import Setting

Line = TypeVar("Line")


@dataclass(frozen=True, slots=True)
class TextLine:
    """One text: what it cost the judge, and what it says.

    Attributes:
        method: of the setting.
        value: of the setting.
        temperature: of the setting.
        prompt: its number.
        seed: of the noise.
        bits: under the judge, given the prompt.
        characters: of the text.
        token_ids: of the model that wrote it, separated by spaces.
    """

    method: str
    value: float
    temperature: float
    prompt: int
    seed: int
    bits: float
    characters: int
    token_ids: str

    @property
    def setting(self) -> Setting:
        """What wrote it."""
        return Setting(self.method, self.value, self.temperature)


@dataclass(frozen=True, slots=True)
class Protocol:
    """What is measured.

    Attributes:
        model: its name.
        judge: the name of the judge; None where nothing is judged.
        text: where the windows come from.
        windows: how many.
        window_tokens: their length.
        prompts: the texts that are continued.
        max_new_tokens: length of each continuation.
        seeds: continuations of each prompt by each setting.
        sweeps: values and temperatures of every method.
    """

    model: str
    judge: str | None
    text: str
    windows: int
    window_tokens: int
    prompts: list[str]
    max_new_tokens: int
    seeds: int
    sweeps: dict[str, list[list[float]]]


class Table(Generic[Line]):
    """Lines of one kind in memory and, if it has a file, in a CSV that grows.

    Args:
        kind: a dataclass of numbers and strings.
        file: where the lines are; None keeps them in memory.
    """

    def __init__(self, kind: type[Line], file: Path | None) -> None:
        self._kind = kind
        self._file = file
        self.lines: list[Line] = []
        if file is not None and file.exists():
            self.lines = self._read(file)

    def keep(self, lines: Iterable[Line]) -> None:
        """Keep these lines only: a run that was killed may have left a part of its last batch."""
        self.lines = []
        if self._file is not None:
            self._write([], "w")
        self.add(list(lines))

    def add(self, lines: Sequence[Line]) -> None:
        """Append lines, their numbers to six digits: a run that goes on reads the same."""
        lines = [replace(line, **rounded(asdict(line))) for line in lines]  # type: ignore[type-var, call-overload]
        self.lines += lines
        if self._file is not None:
            self._write(lines, "a")

    def _read(self, file: Path) -> list[Line]:
        types = get_type_hints(self._kind)
        text = file.read_text(encoding="utf-8")
        # behind the last line's end stands what a run that was killed could not finish
        whole = text[: text.rfind("\n") + 1]
        return [
            self._kind(**{name: types[name](value) for name, value in row.items()})
            for row in csv.DictReader(whole.splitlines())
        ]

    def _write(self, lines: Sequence[Line], mode: str) -> None:
        assert self._file is not None
        names = [field.name for field in fields(self._kind)]  # type: ignore[arg-type]
        with self._file.open(mode, newline="") as stream:
            writer = csv.DictWriter(stream, names, lineterminator="\n")
            if mode == "w":
                writer.writeheader()
            writer.writerows(asdict(line) for line in lines)  # type: ignore[call-overload]


def rounded(line: dict[str, Any]) -> dict[str, Any]:
    """A line with its measured numbers to six digits."""
    return {
        name: float(f"{value:.6g}") if isinstance(value, float) else value
        for name, value in line.items()
    }


def path_of(prefix: Path | None, ending: str) -> Path | None:
    """A file of the run; None for a run without files."""
    return None if prefix is None else prefix.with_name(prefix.name + ending)


def begin(prefix: Path | None, protocol: Protocol) -> None:
    """Write down what is measured, or see that the prefix was begun with the same.

    Raises:
        ValueError: it was begun with another protocol.
    """
    file = path_of(prefix, ".settings.json")
    if file is None:
        return
    ours = asdict(protocol)
    if file.exists():
        theirs = json.loads(file.read_text())
        names = ", ".join(name for name in ours if ours[name] != theirs.get(name))
        if names:
            raise ValueError(f"{prefix} was begun with another {names}: take another --output")
    file.write_text(json.dumps(ours, indent=1) + "\n")
