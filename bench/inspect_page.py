"""The record of a generation as one HTML file, which loads nothing."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .inspection import Inspection

DIGITS = 5
"""Significant digits of the page's numbers: it shows fewer, and the file is half as large."""

PLACE = '<script type="application/json" id="record">RECORD</script>'


def page(inspection: Inspection) -> str:
    """The page: the template with the record in it."""
    template = Path(__file__).with_name("inspect_page.html").read_text(encoding="utf-8")
    before, after = template.split(PLACE)
    opening, closing = PLACE.split("RECORD")
    return f"{before}{opening}{embedded(inspection)}{closing}{after}"


def embedded(inspection: Inspection) -> str:
    """The record as JSON that an HTML parser reads as nothing but text.

    Inside a script element only `<` could begin something, an end tag or a comment; JSON has it in strings alone.
    """
    record = asdict(inspection) | {"block_efficiency": inspection.block_efficiency}
    written = json.dumps(rounded(record), ensure_ascii=True, separators=(",", ":"))
    return written.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def rounded(value: Any) -> Any:
    """The same, every float with as many digits as the page needs."""
    match value:
        case float():
            return float(f"{value:.{DIGITS}g}")
        case dict():
            return {name: rounded(each) for name, each in value.items()}
        case list() | tuple():
            return [rounded(each) for each in value]
    return value
