"""Draws docs/floors.svg, the floors of the package: `python docs/floors.py [OUT]`.

A test compares the picture with `FLOORS` of tests/test_floors.py.
"""

import sys
from html import escape
from pathlib import Path

ROWS = [
    ("entry", ["__main__", "__init__"], "python -m dmvae, import dmvae"),
    ("commands", ["cli", "library", "commands", "serve", "report"], "the command line, Python, the page and the table"),
    ("run", ["pipeline", "tidying", "claims", "hindrances", "prolonging", "jobs"], "which stages run, and where"),
    ("recipe", ["checks", "fitting", "idle", "recipe", "options"], "with which settings, and what is wrong with them"),
    ("method", ["stages", "matching", "references"], "what is computed"),
    ("training", ["training", "inputs", "blank", "latents"], "the loop; what a stage is given; encoded data"),
    ("shared", ["interop", "sections", "evaluation"], "other projects' files, shared settings, measuring"),
    ("tokenizers", ["tokenizers", "transport"], "models that are trained; distances of sample sets"),
    ("parts", ["losses", "generators", "decoders", "encoders", "datasets"], "one file per member"),
    ("networks", ["models", "flow"], "networks; the maths of flows"),
    ("ground", ["runtime", "config", "registry", "spelling", "ranges"], "ranks, files, randomness; dataclasses; names"),
]
"""From the top: (title, floors from the highest, what they are). A floor imports only floors to its right and below."""
WIDTH, ROW, LABEL, NOTE = 980, 46, 96, 330


def draw(rows: list[tuple[str, list[str], str]] = ROWS) -> str:
    """The picture as SVG."""
    height = len(rows) * ROW + 42
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" '
        'font-size="13" fill="#222">',
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
    ]
    for i, (title, names, note) in enumerate(rows):
        y, free = 8 + i * ROW, WIDTH - LABEL - NOTE
        parts.append(f'<text x="10" y="{y + 25}" font-weight="bold" fill="#555">{escape(title)}</text>')
        width = (free - 8 * (len(names) - 1)) / len(names)
        for j, name in enumerate(names):
            x = LABEL + j * (width + 8)
            shade = f"hsl(210 45% {88 - 2.2 * i:.1f}%)"
            parts += [
                f'<rect data-floor="{name}" x="{x:.1f}" y="{y}" width="{width:.1f}" height="{ROW - 8}" rx="4" '
                f'fill="{shade}"/>',
                f'<text x="{x + width / 2:.1f}" y="{y + 25}" text-anchor="middle">{name}</text>',
            ]
        parts.append(f'<text x="{WIDTH - NOTE + 10}" y="{y + 25}" font-size="12" fill="#555">{escape(note)}</text>')
    parts.append(
        f'<text x="{LABEL}" y="{height - 14}" font-size="12" fill="#555">'
        "A file imports from its own floor, floors to the right of it in its row, and all rows below.</text>"
    )
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    (Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_suffix(".svg")).write_text(draw())
