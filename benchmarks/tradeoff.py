"""Draw rows of a table in a page as dots, one column against another. The rows may come from several runs and machines.

    python -m benchmarks.tradeoff docs/results/hundred_classes.md OUT.svg \\
        --x "PSNR, dB" --y gFD --rows matched detailed_split ssl vavae_split kl_1e-2_split kl_3e-1_split

Takes the widest table of the page that has both columns; their headings are given without the arrow. Of "mean ± spread"
the mean is drawn. Methods that share the first part of their name share a colour.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.pictures import write_svg
from benchmarks.tables import Row, table_of, value
from dmvae.report import charts
from dmvae.report.run import COLOURS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path, help="a file with a table as benchmarks.results prints it")
    parser.add_argument("file", type=Path, help="the picture, .svg")
    parser.add_argument("--x", default="PSNR, dB", help="column across (%(default)s)")
    parser.add_argument("--y", default="gFD", help="column upwards (%(default)s)")
    parser.add_argument("--rows", nargs="+", metavar="METHOD", help="these alone")
    known = parser.parse_args()
    try:
        shown = dots(table_of(known.page.read_text(), known.x, known.y), known.x, known.y, known.rows)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    write_svg(known.file, charts.scatter(shown, known.x, known.y))


def dots(rows: dict[str, Row], x: str, y: str, wanted: list[str] | None) -> list[charts.Dot]:
    """Raises ValueError for a method that has no row, or no number in it."""
    if missing := [name for name in wanted or () if name not in rows]:
        raise ValueError(f"--rows: no row of {', '.join(missing)}; there are {', '.join(rows)}")
    chosen = {name: row for name, row in rows.items() if name in (wanted or rows) and row.get(x) and row.get(y)}
    if unlike := [name for name in wanted or () if name not in chosen]:
        raise ValueError(f"--rows: {', '.join(unlike)} lack {x} or {y}")
    families = list(dict.fromkeys(name.partition("_")[0] for name in chosen))
    colours = {family: COLOURS[i % len(COLOURS)] for i, family in enumerate(families)}
    return [
        charts.Dot(name, colours[name.partition("_")[0]], value(row[x])[0], value(row[y])[0])
        for name, row in chosen.items()
    ]


if __name__ == "__main__":
    main()
