"""Tables and sentences wrapped to the width of a terminal. In a pipe or file lines are not wrapped, so that they can be searched."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Sequence
from itertools import zip_longest
from typing import TextIO

NARROWEST = 40


def columns_of(stream: TextIO | None = None) -> int | None:
    """Width of the terminal behind a stream (standard output when left out); None where it is not a terminal."""
    stream = sys.stdout if stream is None else stream
    try:
        return max(NARROWEST, shutil.get_terminal_size().columns) if stream is not None and stream.isatty() else None
    except ValueError:  # it was closed
        return None


def table(rows: Sequence[Sequence[str]], columns: int | None = None) -> list[str]:
    """Rows of text as aligned columns; the first column and wrapped cells are aligned left, all others right.

    Args:
        rows: the first one is the header.
        columns: width of a line; None: no limit. A cell that is wider is wrapped inside its column. Columns that do not fit beside the
            first one follow in another table below, with the first column repeated.
    """
    first = max(len(row[0]) for row in rows) if columns is None else min(columns * 5 // 8, max(len(row[0]) for row in rows))
    limits = [None if columns is None else first if i == 0 else columns - first - 2 for i in range(len(rows[0]))]
    cells = [[_lines_of(cell, limit) for cell, limit in zip(row, limits, strict=True)] for row in rows]
    widths = [max(len(line) for row in cells for line in row[i]) for i in range(len(limits))]
    to_the_left = {0, *(i for row in cells for i, cell in enumerate(row) if len(cell) > 1)}
    lines: list[str] = []
    for part in _parts(widths, columns):
        if lines:
            lines.append("")
        for k, row in enumerate(cells):
            for each in zip_longest(*(row[i] for i in part), fillvalue=""):
                aligned = (text.ljust(widths[i]) if i in to_the_left else text.rjust(widths[i]) for i, text in zip(part, each, strict=True))
                lines.append("  ".join(aligned).rstrip())
            if k == 0:
                lines.append("  ".join("─" * widths[i] for i in part))
    return lines


def _lines_of(cell: str, limit: int | None) -> list[str]:
    return [cell] if limit is None or len(cell) <= limit else textwrap.wrap(cell, limit, break_on_hyphens=False)


def _parts(widths: Sequence[int], columns: int | None) -> list[list[int]]:
    """The indices of the columns of each table: the first column, and as many others as fit."""
    parts = [[0]]
    for i in range(1, len(widths)):
        taken = sum(widths[j] + 2 for j in parts[-1]) + widths[i]
        if columns is not None and taken > columns and len(parts[-1]) > 1:
            parts.append([0])
        parts[-1].append(i)
    return parts


def wrap(text: str, columns: int | None) -> str:
    """Wrap lines that are too long; continuation lines are indented by four more columns, and long words are not broken."""
    if columns is None:
        return text
    lines = []
    for line in text.split("\n"):
        margin = " " * (len(line) - len(line.lstrip()) + 4)
        whole = len(line) <= columns or not line.strip()
        lines += (
            [line]
            if whole
            else textwrap.wrap(
                line, columns, subsequent_indent=margin, break_long_words=False, break_on_hyphens=False, drop_whitespace=True
            )
        )
    return "\n".join(lines)


def clock(seconds: float) -> str:
    """`1h02m` or `3m20s`."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s"
