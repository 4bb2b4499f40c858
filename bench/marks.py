"""Text that a script makes, between two comments of a page.

<!-- NAME: made by SCRIPT -->
what it made
<!-- end of NAME -->
"""

from __future__ import annotations


def marks(name: str, script: str) -> tuple[str, str]:
    """The comments before and behind what a script makes."""
    return f"<!-- {name}: made by {script} -->", f"<!-- end of {name} -->"


def between(page: str, start: str, end: str, made: str, *, file: str = "README.md") -> str:
    """The page with another text between its marks, line breaks included.

    Raises:
        ValueError: a mark is missing.
    """
    before, found_start, rest = page.partition(start)
    _, found_end, after = rest.partition(end)
    if not found_start or not found_end:
        raise ValueError(f"{file} has no line {start!r} or {end!r}")
    return f"{before}{start}{made}{end}{after}"
