"""The file of a paired comparison: a CSV that grows context by context, and beside it what was measured."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .bench_verifiers import Context, Line


@dataclass(frozen=True, slots=True)
class Settings:
    """What a comparison measures; a file goes on only with the same."""

    pair: str
    sampling: str
    stride: int
    verifiers: list[str]
    num_drafts: list[int]
    draft_length: list[int]
    prompts: list[str]


class Results:
    """The lines of one comparison, in memory and, if it has a file, on disk.

    Attributes:
        settings: what is measured.
        lines: of all contexts so far.
        heads: token ids of the prompts.
        tails: token ids of the texts; empty before `begin`.

    Raises:
        ValueError: the file was begun with other settings.
    """

    def __init__(self, file: Path | None, settings: Settings) -> None:
        self.settings = settings
        self.lines: list[Line] = []
        self.heads: list[list[int]] = []
        self.tails: list[list[int]] = []
        self._file = file
        if file is not None and file.exists():
            begun, self.heads, self.tails = _read_settings(file)
            if begun != settings:
                theirs, ours = asdict(begun), asdict(settings)
                names = ", ".join(name for name in ours if ours[name] != theirs[name])
                raise ValueError(f"{file} was begun with another {names}: take another file")
            self.lines = _read_lines(file)
            self._write(self.lines, "w")

    @classmethod
    def read(cls, file: Path) -> Results:
        """The results of a file, finished or not."""
        return cls(file, _read_settings(file)[0])

    @property
    def texts(self) -> str:
        """What the contexts are: files that agree in it were measured on the same ones."""
        settings = self.settings
        return json.dumps([settings.pair, settings.sampling, self.heads, self.tails])

    def begin(self, heads: list[list[int]], tails: list[list[int]]) -> None:
        """Write down the texts, and the CSV's head."""
        self.heads, self.tails = heads, tails
        if self._file is not None:
            texts = {"settings": asdict(self.settings), "heads": heads, "tails": tails}
            _settings_file(self._file).write_text(json.dumps(texts) + "\n")
            self._write([], "w")

    def add(self, lines: Sequence[Line]) -> None:
        """Keep the lines of some contexts, complete."""
        self.lines += lines
        if self._file is not None:
            self._write(lines, "a")

    def missing(self, contexts: Sequence[Context]) -> list[Context]:
        """Those that have no lines yet."""
        done = {(line.text, line.position) for line in self.lines}
        return [each for each in contexts if (each.text, each.position) not in done]

    def _write(self, lines: Sequence[Line], mode: str) -> None:
        from .bench_verifiers import Line

        assert self._file is not None
        with self._file.open(mode, newline="") as stream:
            writer = csv.DictWriter(stream, [field.name for field in fields(Line)])
            if mode == "w":
                writer.writeheader()
            writer.writerows(asdict(line) for line in lines)


def _settings_file(file: Path) -> Path:
    return file.with_suffix(".settings.json")


def _read_settings(file: Path) -> tuple[Settings, list[list[int]], list[list[int]]]:
    """Settings, prompts and texts."""
    begun = json.loads(_settings_file(file).read_text())
    return Settings(**begun["settings"]), begun["heads"], begun["tails"]


def _read_lines(file: Path) -> list[Line]:
    """The lines of complete contexts: a run that was killed may have left a part of its last ones."""
    with file.open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["k_seq_error"] is not None]
    lines = [_line(row) for row in rows]
    count = Counter((line.text, line.position) for line in lines)
    most = max(count.values(), default=0)
    return [line for line in lines if count[line.text, line.position] == most]


def _line(row: dict[str, Any]) -> Line:
    from .bench_verifiers import Line

    return Line(
        int(row["text"]),
        int(row["position"]),
        row["verifier"],
        int(row["num_drafts"]),
        int(row["draft_length"]),
        float(row["tokens"]),
        float(row["root_acceptance"]),
        float(row["k_seq_error"]) if row["k_seq_error"] else None,
    )
