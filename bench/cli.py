"""The command line: `warpdraft generate`, `inspect`, `verify`, `env`, and the benchmarks under `bench`.

torch and transformers are imported inside the commands, so that `warpdraft --help` answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer

from .console import stderr
from .env_command import env
from .generate_command import generate
from .inspect_command import inspect
from .kernels_command import kernels
from .quality_command import quality
from .speculation_command import speculation
from .verifiers_command import verifiers
from .verify_command import verify

USAGE_ERROR = 2

app = typer.Typer(
    name="warpdraft",
    help="Exact truncation sampling and multi-draft speculative decoding.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
bench_app = typer.Typer(help="Benchmarks that print how they were run.")
app.add_typer(bench_app, name="bench")
app.command("generate")(generate)
app.command("inspect")(inspect)
app.command("verify")(verify)
app.command("env")(env)
bench_app.command("kernels")(kernels)
bench_app.command("quality")(quality)
bench_app.command("spec")(speculation)
bench_app.command("verifiers")(verifiers)


def run(arguments: Sequence[str]) -> int:
    """Run one command and turn every foreseeable failure into one line on stderr.

    Returns:
        The exit code: 0, 1 for a failed certificate, 2 for bad input, 130 for Ctrl-C. Anything unforeseen keeps its
        traceback.
    """
    # typer returns 130 for Ctrl-C and 0 after the help, which is also the answer to no command
    arguments = list(arguments)
    if arguments in ([], ["bench"]):
        arguments.append("--help")
    try:
        return app(arguments, prog_name="warpdraft", standalone_mode=False) or 0
    except typer.TyperException as error:
        message = error.format_message()
    except (ValueError, TypeError, OSError) as error:
        message = str(error)
    stderr.print(f"error: {one_line(message)}", markup=False, soft_wrap=True)
    return USAGE_ERROR


def one_line(message: str) -> str:
    """The first paragraph of a message, on one line: transformers' messages run over several."""
    return " ".join(message.strip().split("\n\n")[0].split())


def main() -> None:
    """The console script."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
