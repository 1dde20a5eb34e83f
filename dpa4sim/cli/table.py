"""Text tables."""

from __future__ import annotations

import math
from collections.abc import Sequence


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Aligned columns under their headers; the first `left` of them to the left."""
    widths = [max(map(len, column)) for column in zip(headers, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "  ".join(padded).rstrip()

    return "\n".join([line(headers), line(["-" * width for width in widths]), *map(line, rows)])


def fixed(value: float, digits: int) -> str:
    """A number with so many decimals, or `-` where there is none."""
    return f"{value:.{digits}f}" if math.isfinite(value) else "-"


def properties(rows: Sequence[tuple[str, str]]) -> str:
    """Two columns, names and values; further lines of a value are indented under the first."""
    width = max(len(name) for name, _ in rows)
    indent = "\n" + " " * (width + 2)
    return "\n".join(
        f"{name.ljust(width)}  {value.replace(chr(10), indent)}" for name, value in rows
    )
