"""Builds the documentation site: `make docs`, which leaves it in build/site. Any broken link is an error.

The pages of docs/, what they link to elsewhere in the repository, and the pages of `docs/parts.py` are laid side by
side in build/docs; Zensical makes a site of them. Its equations become MathML here, and its fonts are the reader's own:
the site reads nothing from the network, and opens from a folder (its search needs a server: python -m http.server). A
new page in docs/ needs no entry anywhere: what `NAV` does not name comes at the end of the guides.
"""

from __future__ import annotations

import html
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import yaml
from latex2mathml.converter import convert

sys.path.insert(0, str(Path(__file__).parents[1]))
from docs import parts

ROOT = Path(__file__).parents[1]
DOCS, STAGED, SITE = ROOT / "docs", ROOT / "build" / "docs", ROOT / "build" / "site"
NAV = {
    "": ["index"],
    "Guides": [
        "guide",
        "references",
        "balance",
        "small_data",
        "recipes",
        "plan",
        "cluster",
        "performance",
        "measure",
        "serve",
        "troubleshooting",
    ],
    "Lists": [f"parts/{page}" for page in (parts.FIELDS, *parts.FAMILIES)],
    "Method": ["equations", "method"],
    "Studies": [
        "results/README",
        "results/hundred_classes",
        "results/arriving",
        "results/same_tokenizer",
        "results/fashion_mnist",
        "results/channels",
        "results/more_images",
        "results/toys",
    ],
    "Build on it": [
        "contracts",
        "CONTRIBUTING",
        "own_trainer",
        "existing_tokenizer",
        "diffusers",
        "examples/README",
        "architecture",
    ],
    "API": ["api/dmvae", *(f"api/{name}" for name in parts.API)],
}
"""Heading -> pages, by their place in the site without the ending."""
LABELS = {
    "balance": "Lambda and the rest",
    "diffusers": "Use with diffusers",
    "method": "The method",
    "results/README": "Where the claim is decided",
}
"""What the navigation calls pages with long headings."""
REST = "Guides"
"""Where pages that are not named come."""
SHOWN = {
    "equations.md": {"heading_level": 3, "show_source": True, "show_symbol_type_heading": False},
    "contracts.md": {"heading_level": 3},
}
"""How a page shows the objects that it names after `:::`, where that differs from the API reference."""
CODE = re.compile(r"^(`{3,}).*?^\1[ ]*$|`[^`\n]+`", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<=\]\()([^)\s#]+)(?=[)#])")
MATHS = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def main() -> None:
    for folder in (STAGED, SITE):
        shutil.rmtree(folder, ignore_errors=True)
    pages = stage()
    config = STAGED.parent / "zensical.yml"
    config.write_text(yaml.safe_dump(settings(pages), sort_keys=False))
    built = subprocess.run([sys.executable, "-m", "zensical", "build", "--clean", "--strict", "-f", str(config)])
    if built.returncode:
        sys.exit(built.returncode)
    for page in SITE.rglob("*.html"):
        page.write_text(typeset(page.read_text()))
    if lost := dead(SITE):
        sys.exit("links to what is not there:\n" + "\n".join(lost))
    print(f"{len(pages)} pages: {SITE / 'index.html'}")


def stage() -> dict[str, str]:
    """Lay the site's sources into build/docs. Returns place without ending -> title of each page, in order."""
    for place, words in parts.pages().items():
        put(place, words)
    shutil.copy(DOCS / "site.css", STAGED)
    waiting = [*sorted(DOCS.rglob("*.md")), ROOT / "CONTRIBUTING.md"]
    for file in waiting:
        words, linked = relinked(file)
        options = SHOWN.get(place := staged(file).as_posix())
        put(
            place,
            words if options is None else re.sub(r"^(::: .*)$", rf"\1\n    options: {options}", words, flags=re.M),
        )
        waiting += [target for target in linked if target.suffix == ".md" and target not in waiting]
        for target in (target for target in linked if target.suffix != ".md"):
            copy = STAGED / staged(target)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(target, copy)
    found = sorted(STAGED.rglob("*.md"))
    return {str(page.relative_to(STAGED).with_suffix("")): title(page.read_text()) for page in found}


def dead(site: Path) -> list[str]:
    """Links of a site's pages to files that it lacks: "PAGE: LINK". Zensical looks at those alone that end in .md."""
    found = []
    for page in sorted(site.rglob("*.html")):
        links = dict.fromkeys(re.findall(r'\b(?:href|src)="([^"#?]+)', page.read_text()))
        for link in (link for link in links if not re.match(r"[a-z]+:|//", link)):
            start = site if link.startswith("/") else page.parent
            if not (start / unquote(link).lstrip("/")).is_file():
                found.append(f"{page.relative_to(site)}: {link}")
    return found


def put(place: str, words: str) -> None:
    (STAGED / place).parent.mkdir(parents=True, exist_ok=True)
    (STAGED / place).write_text(words)


def staged(file: Path) -> Path:
    """Where a file of the repository is in the site: docs/ is its root."""
    return file.relative_to(DOCS if file.is_relative_to(DOCS) else ROOT)


def relinked(file: Path) -> tuple[str, list[Path]]:
    """(the page with its links as they are in the site, the files of the repository that they lead to)."""
    linked: list[Path] = []

    def moved(match: re.Match[str]) -> str:
        target = Path(os.path.normpath(file.parent / match[1]))
        if (target / "README.md").is_file():
            target /= "README.md"
        if ":" in match[1] or not target.is_file():  # of the network, or of a generated page; others are found out
            return match[1]
        linked.append(target)
        return os.path.relpath(staged(target), staged(file).parent)

    words, pieces, end = file.read_text(), [], 0
    for code in [*CODE.finditer(words), None]:
        pieces.append(LINK.sub(moved, words[end : code.start() if code else None]))
        if code:
            pieces.append(code[0])
            end = code.end()
    return "".join(pieces), linked


def title(words: str) -> str:
    """The first heading."""
    return next(line[2:] for line in words.splitlines() if line.startswith("# ")).replace("`", "")


def settings(pages: dict[str, str]) -> dict[str, object]:
    """Zensical's, as it reads them from MkDocs' files."""
    named = {page for group in NAV.values() for page in group}
    groups = NAV | {REST: [*NAV[REST], *(page for page in pages if page not in named)]}
    nav: list[object] = []
    for heading, group in groups.items():
        entries = [{LABELS.get(page, pages[page]): f"{page}.md"} for page in group]
        nav += [{heading: entries}] if heading else entries
    options = {
        "show_source": False,
        "show_root_heading": True,
        "show_symbol_type_heading": True,
        "show_signature_annotations": True,
        "separate_signature": True,
        "heading_level": 2,
        "members_order": "source",
        "merge_init_into_class": True,
        "filters": ["!^_"],
        "line_length": 80,
        "show_if_no_docstring": True,
    }
    return {
        "site_name": "dmvae",
        "docs_dir": STAGED.name,
        "site_dir": SITE.name,
        "use_directory_urls": False,
        "extra_css": ["site.css"],
        "theme": {
            "font": False,
            "language": "en",
            "features": ["navigation.footer", "content.code.copy", "toc.follow"],
            "palette": [
                {"media": f"(prefers-color-scheme: {name})", "scheme": scheme, "toggle": {"icon": icon, "name": other}}
                for name, scheme, icon, other in (
                    ("light", "default", "lucide/sun", "dark"),
                    ("dark", "slate", "lucide/moon", "light"),
                )
            ],
        },
        "nav": nav,
        "plugins": [{"search": {}}, {"mkdocstrings": {"handlers": {"python": {
            "paths": [str(ROOT / "src")], "options": options,
        }}}}],
        "markdown_extensions": [
            "admonition", "attr_list", "md_in_html", "tables", "pymdownx.superfences", "pymdownx.betterem",
            {"toc": {"permalink": True}},
            {"pymdownx.highlight": {"anchor_linenums": False}},
            {"pymdownx.arithmatex": {"generic": True}},
        ],
    }  # fmt: skip


def typeset(page: str) -> str:
    """The page with MathML in the place of TeX, so that no script and no network is needed to read it."""
    page = page.replace('<details class="mkdocstrings-source">', '<details class="mkdocstrings-source" open>')

    def mathml(match: re.Match[str]) -> str:
        if match[1] == "span":
            return convert(html.unescape(match[2]), display="inline")
        return f'<div class="equation">{convert(html.unescape(match[2]), display="block")}</div>'

    return MATHS.sub(mathml, page)


if __name__ == "__main__":
    main()
