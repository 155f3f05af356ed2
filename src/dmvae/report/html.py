"""Small pieces of HTML that several sections use."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape


def section(anchor: str, title: str, *parts: str) -> str:
    """A titled section; nothing when it has no content."""
    body = "\n".join(part for part in parts if part)
    return f'<section id="{anchor}">\n<h2>{escape(title)}</h2>\n{body}\n</section>' if body else ""


def prose(text: str) -> str:
    """A paragraph of HTML, which is not escaped."""
    return f"<p>{text}</p>"


def details(summary: str, body: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>\n{body}\n</details>" if body else ""


def legend(entries: Iterable[tuple[str, str]]) -> str:
    """A legend of (name, colour): names beside coloured dots."""
    items = "".join(f'<li><i style="background:{colour}"></i>{escape(name)}</li>' for name, colour in entries)
    return f'<ul class="legend">{items}</ul>' if items else ""


def panel(title: str, body: str, note: str = "") -> str:
    """A picture with a title above and a note below; body and note are HTML, which is not escaped."""
    foot = f'<p class="note">{note}</p>' if note else ""
    return f'<figure class="panel"><figcaption>{escape(title)}</figcaption>{body}{foot}</figure>'


def panels(items: Iterable[str], kind: str = "") -> str:
    body = "\n".join(item for item in items if item)
    return f'<div class="panels {kind}">\n{body}\n</div>' if body else ""


def listing(names: Iterable[str]) -> str:
    """ "a", "a and b", "a, b and c", in bold."""
    bold = [f"<b>{escape(name)}</b>" for name in names]
    return " and ".join(filter(None, [", ".join(bold[:-1]), *bold[-1:]]))


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
