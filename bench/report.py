"""The figures of the README, made from the committed results.

    python bench/report.py                      rewrites every marked table of README.md
    python bench/report.py --check              exits with 1 where README.md is not what the results say
    python bench/report.py --list               prints by which command each results file is made
    python bench/report.py --measure            runs those commands first, and writes bench/results/
    python bench/report.py --measure --quick    the same, small, into a temporary folder: whether all commands run

What is made stands between `<!-- NAME: made by bench/report.py -->` and `<!-- end of NAME -->`: a further table is one
more entry of `TABLES`, with the function that makes it in report_tables.py, and its two marks in the README. A
measurement that needs Gemma 3 270M wants its folder, `--gemma FOLDER`, and is left out without it; what needs a GPU is
`bash bench/gpu.sh`.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from warpdraft.bench import kernel_table
from warpdraft.bench.marks import between, marks
from warpdraft.bench.report_tables import (
    Render,
    first_layers_table,
    gains_table,
    look_up_sentence,
    overhead_table,
    printed_table,
    speed_table,
    truncation_table,
    verification_table,
    verifiers_table,
)

# through links, as an editable install has them
ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
README = ROOT / "README.md"
SCRIPT = "bench/report.py"
GEMMA = "FOLDER"
"""Stands in commands for the folder of Gemma 3 270M."""


@dataclass(frozen=True, slots=True)
class Made:
    """A results file and what makes it.

    Attributes:
        file: its name in bench/results/.
        command: of `warpdraft`, or a script of bench/; {out} is the file, and where it is missing, what the command
            prints is the file.
        quick: options behind the command that make it small.
    """

    file: str
    command: str
    quick: str = ""

    @property
    def needs_gemma(self) -> bool:
        """Whether the command names its folder."""
        return GEMMA in self.command.split()

    def words(self, out: Path, gemma: Path | None, *, quick: bool) -> list[str]:
        """The command line, this interpreter in front."""
        words = shlex.split(f"{self.command} {self.quick}" if quick else self.command)
        named = [str(gemma) if word == GEMMA else word.format(out=out) for word in words]
        if named[0] != "warpdraft":
            return [sys.executable, str(ROOT / named[0]), *named[1:]]
        start = "from warpdraft.bench.cli import main; main()"
        return [sys.executable, "-c", start, *named[1:]]


@dataclass(frozen=True, slots=True)
class ReadmeTable:
    """One marked table.

    Attributes:
        name: in its marks.
        render: makes it from the files.
        made: the files, in the order that `render` takes.
        is_inline: it stands inside a paragraph.
    """

    name: str
    render: Render
    made: tuple[Made, ...]
    is_inline: bool = False

    def text(self, results: Path) -> str:
        """The table, with the line breaks around it.

        Raises:
            ValueError: a results file is missing.
        """
        files = [results / each.file for each in self.made]
        for file in files:
            if not file.is_file():
                raise ValueError(f"{self.name}: there is no {file}: python {SCRIPT} --measure")
        made = self.render(files)
        return made if self.is_inline else f"\n\n{made}\n\n"

    def put_into(self, readme: str, results: Path) -> str:
        """The README with this table.

        Raises:
            ValueError: a results file or a mark is missing.
        """
        return between(readme, *marks(self.name, SCRIPT), self.text(results))


def _verifiers(file: str, options: str) -> Made:
    return Made(
        f"verifiers_{file}.json",
        f"warpdraft bench verifiers {options} --json {{out}}",
        "--prompts 2 --max-new-tokens 8 --num-drafts 1,2,4,8 --draft-length 4,8",
    )


IID = "--verifier 'block,k_seq,optimal,optimal lex,optimal_block,optimal_block clip,recursive,traversal'"
TRIPLED = (
    "--verifier 'block,k_seq,k_seq rollover,optimal,optimal lex,optimal_block,optimal_block clip,"
    "optimal_block rollover,optimal_block clip rollover,recursive,traversal'"
)
SHORT = "--verifier 'block,k_seq,optimal,optimal_block,optimal_block clip,recursive,traversal'"
SKIPPED = f"--model {GEMMA} --skip 12"

GEMMA_1 = _verifiers("gemma_iid_T1", f"{SKIPPED} --stride 5 {IID}")
GEMMA_07 = _verifiers("gemma_iid_T0.7", f"{SKIPPED} --stride 5 --temperature 0.7 {IID}")
BUILT_IN_1 = _verifiers("builtin_all_T1", "--stride 16")
BUILT_IN_07 = _verifiers("builtin_iid_T0.7", f"--stride 16 --temperature 0.7 {TRIPLED}")
BUILT_IN_TOP_H = _verifiers("builtin_iid_T1_toph", f"--stride 16 --top-h 0.4 {SHORT}")
BUILT_IN_MIN_P = _verifiers("builtin_iid_T1_minp", f"--stride 16 --min-p 0.1 {SHORT}")


def _first_layers(layers: int) -> Made:
    return Made(
        f"first_layers_{layers}.json",
        f"warpdraft bench spec --draft first-layers:{layers} --num-drafts 1,4 --draft-length 4 --prompts 6 "
        "--max-new-tokens 32 --json {out}",
        "--prompts 2 --max-new-tokens 4",
    )


SPEED = Made(
    "speed_cpu.json",
    "bench/speed.py --json {out}",
    "--prompts 1 --batch 2 --max-new-tokens 8 --rounds 1 --no-compile",
)

TABLES = (
    ReadmeTable("first layers", first_layers_table, tuple(map(_first_layers, range(1, 8)))),
    ReadmeTable(
        "look-up",
        look_up_sentence,
        (
            Made(
                "look_up.txt",
                "bench/repeating_texts.py --texts 6 --max-new-tokens 48",
                "--texts 1 --max-new-tokens 8",
            ),
        ),
        is_inline=True,
    ),
    ReadmeTable(
        "speed of install()",
        printed_table,
        (Made("install_speed.md", "bench/install_speed.py"),),
    ),
    ReadmeTable(
        "top-H variants",
        printed_table,
        (Made("top_h_variants.md", "bench/top_h_variants.py"),),
    ),
    ReadmeTable(
        "identical draft",
        printed_table,
        (Made("identical_draft.md", "bench/identical_draft.py", "--prompts 2 --new-tokens 8"),),
    ),
    ReadmeTable("speed of speculation", speed_table, (SPEED,)),
    ReadmeTable("cost of a block", overhead_table, (SPEED,)),
    ReadmeTable("verifiers on Gemma", verifiers_table, (GEMMA_1,)),
    ReadmeTable("verifiers on the built-in pair", verifiers_table, (BUILT_IN_1,)),
    ReadmeTable(
        "gains of the default",
        gains_table,
        (GEMMA_1, GEMMA_07, BUILT_IN_1, BUILT_IN_07, BUILT_IN_TOP_H, BUILT_IN_MIN_P),
    ),
    ReadmeTable(
        "share of verification",
        verification_table,
        (
            Made(
                "verification_share.json",
                f"bench/verification_share.py --model {GEMMA} --skip 12 --json {{out}}",
                "--prompts 2 --max-new-tokens 4 --rounds 1",
            ),
        ),
    ),
    ReadmeTable(
        "speed of truncation",
        truncation_table,
        (
            Made(
                "cpu_truncation.csv",
                "bench/bench_truncation.py --out {out}",
                "--vocab 4096 --repeats 1",
            ),
        ),
    ),
)


def with_tables(readme: str, results: Path) -> str:
    """The README with every table as the results say.

    Raises:
        ValueError: a results file or a mark is missing.
    """
    for each in TABLES:
        readme = each.put_into(readme, results)
    return kernel_table.with_table(
        readme, kernel_table.table_of(sorted(results.glob("kernels_*.csv")))
    )


def all_made() -> list[Made]:
    """Every results file once."""
    return list(dict.fromkeys(made for each in TABLES for made in each.made))


def measure(
    results: Path, gemma: Path | None, *, quick: bool, only: Sequence[str] = ()
) -> Iterator[tuple[Made, int]]:
    """Make the results files, one command after the other.

    Args:
        results: folder of the files.
        gemma: folder of Gemma 3 270M; None leaves its measurements out.
        quick: small runs.
        only: names of files; all where none is given.

    Yields:
        What was made, and the exit code.
    """
    for made in all_made():
        if (made.needs_gemma and gemma is None) or (only and made.file not in only):
            continue
        out = results / made.file
        words = made.words(out, gemma, quick=quick)
        prints = "{out}" not in made.command
        run = subprocess.run(words, stdout=subprocess.PIPE if prints else None, check=False)
        if prints and run.returncode == 0:
            out.write_bytes(run.stdout)
        yield made, run.returncode


def check(readme: str, results: Path) -> list[str]:
    """Names of the tables that are not what the results say."""
    wrong = [each.name for each in TABLES if each.put_into(readme, results) != readme]
    kernels = kernel_table.table_of(sorted(results.glob("kernels_*.csv")))
    if kernel_table.with_table(readme, kernels) != readme:
        wrong.append("kernels on a GPU")
    return wrong


def main(
    check_only: Annotated[
        bool, typer.Option("--check", help="Change nothing; exit with 1 where README.md differs.")
    ] = False,
    list_only: Annotated[bool, typer.Option("--list", help="Print the commands only.")] = False,
    measured: Annotated[
        bool, typer.Option("--measure", help="Make the results files first.")
    ] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Small measurements, which are thrown away.")
    ] = False,
    gemma: Annotated[Path | None, typer.Option(help="Folder of Gemma 3 270M.")] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Measure this results file; may be repeated.")
    ] = None,
) -> None:
    """Rewrite the README's figures from the committed results."""
    if list_only:
        for made in all_made():
            typer.echo(f"bench/results/{made.file}: {made.command.format(out=made.file)}")
        return
    if measured:
        with tempfile.TemporaryDirectory() as thrown_away:
            folder = Path(thrown_away) if quick else RESULTS
            for made, code in measure(folder, gemma, quick=quick, only=only or ()):
                typer.echo(f"{made.file}: {'made' if code == 0 else f'exit code {code}'}", err=True)
                if code:
                    raise typer.Exit(code)
        if quick:
            return
    try:
        rewrite(README, RESULTS, check_only=check_only)
    except ValueError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None


def rewrite(page: Path, results: Path, *, check_only: bool) -> None:
    """Put all tables into the page, or only say which are not what the results say.

    Raises:
        ValueError: a results file or a mark is missing.
        typer.Exit: with 1, where a checked page differs.
    """
    readme = page.read_text(encoding="utf-8")
    if not check_only:
        page.write_text(with_tables(readme, results), encoding="utf-8")
        return
    wrong = check(readme, results)
    for name in wrong:
        typer.echo(f"{page.name} differs from the results: {name}", err=True)
    if wrong:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
