"""Compare pairs of rows of a table in a page, the first over the second. Rows may come from several runs and machines.

    python -m benchmarks.beside docs/results/hundred_classes.md ssl/ssl_late matched_1e-1/detailed_late

PSNR is the difference, distances are ratios, and what is in percent stands as it is in both rows. A ratio's ± is that
of independent errors, from the spreads of both rows, where both have one. Takes the widest table of the page that has
PSNR and gFD.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from benchmarks.tables import Row, header, line, table_of, value

PSNR = "PSNR, dB"
RATIOS = ("rFD", "gFD", "gFD w=1.5", "gFD w=2")
AS_THEY_ARE = ("class agreement, %", "kNN, %")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path, help="a file with a table as benchmarks.results prints it")
    parser.add_argument("pairs", nargs="+", metavar="METHOD/METHOD")
    known = parser.parse_args()
    try:
        print(beside(table_of(known.page.read_text(), PSNR, "gFD"), known.pairs))
    except (OSError, ValueError) as error:
        parser.error(str(error))


def beside(rows: dict[str, Row], pairs: list[str]) -> str:
    """A table in Markdown, a row a pair. Raises ValueError for a pair that is none, and for a method without a row."""
    there = next(iter(rows.values()))
    ratios, both = ([name for name in names if name in there] for names in (RATIOS, AS_THEY_ARE))
    lines = [header(["method / method", f"{PSNR} more", *ratios, *both])]
    for pair in pairs:
        names = pair.split("/")
        if len(names) != 2:
            raise ValueError(f"{pair}: give two methods with a / between them")
        if missing := [name for name in names if name not in rows]:
            raise ValueError(f"{pair}: no row of {', '.join(missing)}; there are {', '.join(rows)}")
        one, other = (rows[name] for name in names)
        if empty := [f"{name}, {key}" for name in names for key in (PSNR, *ratios, *both) if not rows[name][key]]:
            raise ValueError(f"{pair}: no figure of {'; '.join(empty)}")
        told = [f"{value(one[PSNR])[0] - value(other[PSNR])[0]:+.1f}"]
        told += [_ratio(one[name], other[name]) for name in ratios]
        told += [" / ".join(f"{value(row[name])[0]:.1f}" for row in (one, other)) for name in both]
        lines.append(line([" / ".join(names), *told]))
    return "\n".join(lines)


def _ratio(one: str, other: str) -> str:
    (a, a_spread), (b, b_spread) = value(one), value(other)
    spread = a / b * math.hypot(a_spread / a, b_spread / b)
    return f"{a / b:.2f}" + (f" ± {spread:.2f}" if a_spread and b_spread else "")


if __name__ == "__main__":
    main()
