"""Tables in Markdown: written a line at a time, by benchmarks that print rows as they come, and read from a page."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

Row = dict[str, str]
"""Heading without its arrow -> what the cell says."""


def header(titles: Collection[str]) -> str:
    """The first two lines of a table."""
    return f"{line(titles)}\n{line(['---'] * len(titles))}"


def line(cells: Iterable[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def table_of(text: str, *columns: str) -> dict[str, Row]:
    """Method -> its row, of the widest table with all these columns. Raises ValueError where there is none."""
    tables = [rows for block in re.findall(r"(?:^\|.*\n?)+", text, re.MULTILINE) if (rows := _rows(block))]
    fitting = [rows for rows in tables if set(columns) <= set(next(iter(rows.values())))]
    if not fitting:
        there = sorted({heading for rows in tables for row in rows.values() for heading in row})
        raise ValueError(f"no table with the columns {', '.join(columns)}; there are {', '.join(there) or 'none'}")
    return max(fitting, key=lambda rows: len(next(iter(rows.values()))))


def _rows(block: str) -> dict[str, Row]:
    first, *others = ([cell.strip(" *") for cell in line.strip().strip("|").split("|")] for line in block.splitlines())
    headings = [heading.rstrip(" ↑↓") for heading in first[1:]]
    return {
        re.sub(r" \(.* seeds\)$", "", name): dict(zip(headings, cells, strict=False))
        for name, *cells in others
        if not set(name) <= set("- ")
    }


def value(cell: str) -> tuple[float, float]:
    """Mean and spread of a cell; 0 is no spread told."""
    mean, _, spread = cell.replace(",", "").partition("±")
    return float(mean), float(spread or 0)
