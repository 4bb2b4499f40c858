"""The options that commands share, and the order in which their rules apply.

temperature -> top-H -> top-k -> top-p -> min-p: transformers' own order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from warpdraft.rules import Rule

MODELS = "Models"
DRAFTS = "Drafts"
SAMPLING = "Sampling, applied in this order"

Model = Annotated[
    str | None,
    typer.Option(
        help="Target: a Hugging Face folder or name.",
        show_default="the built-in pair",
        metavar="NAME",
        rich_help_panel=MODELS,
    ),
]
DraftModel = Annotated[
    str | None,
    typer.Option(
        "--draft",
        "--draft-model",
        help="Draft: likewise, or first-layers:N of the target, or prompt-lookup:N tokens that agree.",
        show_default="none beside --model",
        metavar="NAME",
        rich_help_panel=MODELS,
    ),
]
SkippedLayers = Annotated[
    list[int] | None,
    typer.Option(
        "--skip",
        help="Draft with the target without this layer; may be repeated.",
        metavar="LAYER",
        rich_help_panel=MODELS,
    ),
]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:N or mps.", rich_help_panel=MODELS)]
Dtype = Annotated[
    str | None,
    typer.Option(
        help="float32, bfloat16 or float16.",
        show_default="float32 on a CPU, else the checkpoint's",
        rich_help_panel=MODELS,
    ),
]

SelectorName = Annotated[
    Literal["clip", "lex"] | None,
    typer.Option(
        "--selector",
        help="Selection law of the optimal verifiers.",
        show_default="the verifier's own",
        rich_help_panel=DRAFTS,
    ),
]
NumTop = Annotated[
    int | None,
    typer.Option(
        help="So many of the root's candidates are the draft's most likely tokens.",
        metavar="M",
        show_default="the verifier's own",
        rich_help_panel=DRAFTS,
    ),
]
StructureName = Annotated[
    Literal["paths", "rollover"],
    typer.Option(
        "--structure",
        help="Separate paths, or a tree whose duplicates buy further draws.",
        rich_help_panel=DRAFTS,
    ),
]
NodeBudget = Annotated[
    int | None,
    typer.Option(
        help="The most nodes of a rollover tree.",
        metavar="N",
        show_default="K L",
        rich_help_panel=DRAFTS,
    ),
]
LayoutName = Annotated[
    Literal["auto", "paths", "tree"],
    typer.Option(
        "--layout", help="How the models hold the drafts of a text.", rich_help_panel=DRAFTS
    ),
]

Temperature = Annotated[
    float, typer.Option(help="0 is greedy.", metavar="T", rich_help_panel=SAMPLING)
]
TopHAlpha = Annotated[
    float | None,
    typer.Option(
        "--top-h",
        help="Keep the longest prefix with at most this share of the entropy.",
        metavar="ALPHA",
        rich_help_panel=SAMPLING,
    ),
]
TopHVariant = Annotated[
    Literal["paper", "transformers"],
    typer.Option(
        help="Top-H as the paper's Algorithm 1 or as transformers' TopHLogitsWarper.",
        rich_help_panel=SAMPLING,
    ),
]
TopKTokens = Annotated[
    int | None,
    typer.Option(
        "--top-k",
        help="Keep the K most likely tokens.",
        metavar="K",
        rich_help_panel=SAMPLING,
    ),
]
TopPMass = Annotated[
    float | None,
    typer.Option(
        "--top-p",
        help="Keep the most likely tokens that hold this mass.",
        metavar="MASS",
        rich_help_panel=SAMPLING,
    ),
]
MinPShare = Annotated[
    float | None,
    typer.Option(
        "--min-p",
        help="Keep tokens of at least this share of the largest probability.",
        metavar="SHARE",
        rich_help_panel=SAMPLING,
    ),
]


def rules_in_order(
    top_h: float | None,
    top_h_variant: Literal["paper", "transformers"],
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
) -> tuple[Rule, ...]:
    """The rules of a command line, in one order whatever the order of the options.

    Raises:
        ValueError: a parameter outside its range.
    """
    from warpdraft import MinP, TopH, TopK, TopP

    asked = (
        None if top_h is None else TopH(top_h, variant=top_h_variant),
        None if top_k is None else TopK(top_k),
        None if top_p is None else TopP(top_p),
        None if min_p is None else MinP(min_p),
    )
    return tuple(rule for rule in asked if rule is not None)


def check_folder(option: str, file: Path | None) -> None:
    """Refuse a results file that could not be written, before anything is measured.

    Raises:
        ValueError: its folder does not exist.
    """
    if file is not None and not file.parent.is_dir():
        raise ValueError(f"{option}: there is no folder {file.parent} to write {file.name} into")


def names_in(option: str, text: str, known: Iterable[str]) -> list[str]:
    """A comma-separated list of known names; "all" is every one of them.

    Raises:
        ValueError: a name that is not known; lists those that are.
    """
    listed = list(known)
    names = listed if text == "all" else [part.strip() for part in text.split(",")]
    for name in names:
        if name not in listed:
            raise ValueError(f"{option} takes {', '.join(listed)} or all, got {name!r}")
    return names


def whole_numbers(option: str, text: str) -> list[int]:
    """A comma-separated list of positive whole numbers.

    Raises:
        ValueError: anything else.
    """
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(f"{option} takes positive whole numbers separated by commas, got {text!r}")
    return [int(part) for part in parts]
