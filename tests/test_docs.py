"""What the documentation says is so: links lead somewhere, messages, options and figures that it quotes exist."""

import functools
import re
from pathlib import Path

import pytest
from benchmarks.tables import table_of, value
from docs import build, parts

from dmvae.commands import parser
from dmvae.recipe import load
from dmvae.registry import Registered, names
from dmvae.stages import stages
from dmvae.training.stage import Stage

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *(ROOT / "examples").glob("*.md")]
RESULTS = DOCS / "results/README.md"
SOURCE = "".join(path.read_text() for path in sorted((ROOT / "src").rglob("*.py")))
FLAT = re.sub(r'"\s*\n\s*f?[\'"]', "", SOURCE)
"""The source with messages of several lines in one piece."""


@pytest.fixture(scope="module")
def generated() -> dict[str, str]:
    return parts.pages()


def links(page: Path) -> list[str]:
    return [link for link in re.findall(r"\]\(([^)\s]+)\)", build.CODE.sub("", page.read_text())) if ":" not in link]


def anchors(words: str) -> set[str]:
    """Of its headings, as GitHub and the site make them, and those that are written out."""
    headings = re.findall(r"^#+ (.*)$", build.CODE.sub("", words), re.MULTILINE)
    plain = (re.sub(r"[^\w\s-]", "", heading.lower()).strip() for heading in headings)
    return {re.sub(r"\s+", "-", heading) for heading in plain} | set(re.findall(r"\{#([\w-]+)\}", words))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_of_a_page_leads_somewhere(page, generated):
    for link in links(page):
        place, _, anchor = link.partition("#")
        target = (page.parent / place).resolve() if place else page
        within = target.relative_to(DOCS).as_posix() if target.is_relative_to(DOCS) else ""
        assert target.exists() or within in generated, f"{page}: {link}"
        if anchor:
            assert anchor in anchors(generated.get(within) or target.read_text()), f"{page}: {link}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_tables_are_whole(page):
    lines = page.read_text().splitlines()
    for i, line in enumerate(lines):
        if "| --- |" in line:
            assert re.fullmatch(r" *\|( --- \|)+", line), line
            assert lines[i - 1].count(" |") == lines[i + 1].count(" |") == line.count(" |"), line


def test_every_family_and_every_member_of_it_is_listed(generated):
    assert {row[0] for row in parts.FAMILIES.values()} | {Stage} == {
        kind for kind in Registered.__subclasses__() if kind.__module__.startswith("dmvae")
    }
    for page, (family, *_) in parts.FAMILIES.items():
        found = set(re.findall(r"^## `([\w-]+)`", generated[f"parts/{page}.md"], re.MULTILINE))
        assert set(names(family)) == found
    sections = set(re.findall(r"^## `([\w.]+)`", generated["parts/fields.md"], re.MULTILINE))
    assert {stage.name for stage in stages()} | {"run", "autoencoder", "losses"} <= sections


def test_fields_are_listed_with_type_default_and_meaning(generated):
    fields = generated["parts/fields.md"]
    assert "| `name`{.field} | text | **required** | Name of the experiment. |" in fields
    assert "| `seed`{.field} | integer | `0` | Seed of all randomness." in fields
    assert "| `balance`{.field} | `fixed` or `gradient` or `distance` | `fixed` |" in fields
    assert "| `objective`{.field} | [matching objectives](objectives.md) | `dmd` |" in fields
    assert "| `std`{.field} | number | `1.0` | Standard deviation." in generated["parts/references.md"]
    assert "| `psnr`{.field} |" in generated["parts/metrics.md"]


def test_quoted_messages_are_those_of_the_program():
    rows = re.findall(r"^\| (`.*?) \|", (DOCS / "troubleshooting.md").read_text(), re.MULTILINE)
    messages = [message for row in rows for message in re.findall(r"`([^`]+)`", row) if message != "CUDA out of memory"]
    assert len(messages) > 30
    for message in messages:
        for piece in re.split(r"\s*…\s*", message):
            assert piece.replace('"', '\\"') in FLAT or piece in FLAT, f"{message!r}: no code says {piece!r}"


@pytest.mark.parametrize("page", ["guide", "references", "balance"])
def test_quoted_figures_stand_in_the_studies(page):
    told = re.sub(r"```.*?```", "", (DOCS / f"{page}.md").read_text(), flags=re.DOTALL)
    studies = "".join(file.read_text() for file in DOCS.glob("results/*.md"))
    results = set(re.findall(r"\d+(?:\.\d+)?(?:e-\d)?", studies))
    for row in re.findall(r"^.*$" if page == "guide" else r"^\|.*\|$", re.sub(r"`[^`]*`", "", told), re.MULTILINE):
        for figure in re.findall(r"(?<![\w.-])\d+\.\d+(?![\w.])", row):
            assert figure in results, f"docs/{page}.md: {figure} in {row}"


def test_the_table_that_decides_the_claim_is_one():
    tables = [re.findall(r"(?:^\|.*\n)+", page.read_text(), re.MULTILINE)[0] for page in (ROOT / "README.md", RESULTS)]
    assert tables[0] == tables[1]


def test_the_table_that_decides_the_claim_has_the_figures_of_the_study():
    study = table_of((DOCS / "results/hundred_classes.md").read_text(), "PSNR, dB", "gFD")
    table = re.findall(r"(?:^\|.*\n)+", RESULTS.read_text(), re.MULTILINE)[0]
    first, _, *others = ([cell.strip(" *↑↓") for cell in line.strip("|").split("|")] for line in table.splitlines())
    for row in (dict(zip(first, cells, strict=True)) for cells in others):
        for heading, cell in row.items():
            if heading in ("encoder", "what shapes its latents", "variant") or not cell:
                continue
            there = study[row["variant"].strip("`")]["gFD" if heading.startswith("gFD") else heading]
            half = 0.5 * 10.0 ** -len(cell.partition(" ")[0].partition(".")[2]) + 1e-9
            for told, exact in zip(value(cell), value(there), strict=True):
                assert abs(told - exact) <= half, f"{row['variant']}, {heading}: {cell}, the study's page has {there}"


def test_a_page_s_short_table_is_part_of_its_whole_one():
    page = (DOCS / "results/hundred_classes.md").read_text()
    whole, short = (
        table_of(page, "PSNR, dB", "SSIM"),
        table_of(page.partition("## All columns")[0], "PSNR, dB", "kNN, %"),
    )
    assert short.keys() == whole.keys()
    for name, row in short.items():
        assert row.items() <= whole[name].items(), name


def test_options_of_documented_commands_exist(generated):
    options = set(re.findall(r'"(--[\w-]+)"', SOURCE)) | set(re.findall(r"--[\w-]+", parser.USAGE))
    fields = {f"--{name}" for page in generated.values() for name in re.findall(r"`(\w+)`\{\.field\}", page)}
    fields.add("--type")  # which member of a family a section is
    for page in PAGES:
        code = re.findall(r"```sh\n(.*?)```|`([^`\n]+)`", page.read_text(), re.DOTALL)
        for line in "\n".join(map("".join, code)).replace("\\\n", " ").splitlines():
            words = line.partition(" #")[0].partition("dmvae ")[2]
            for option in re.findall(r"(?<!\S)--[A-Za-z][\w.-]*", words):
                last = f"--{option.rpartition('.')[2].removeprefix('--')}"
                assert option in options or last in fields or "section.field" in option, f"{page}: {line}: {option}"


def test_documented_benchmarks_have_the_options_that_pages_give_them():
    told = 0
    for page in PAGES:
        code = re.findall(r"```sh\n(.*?)```|`([^`\n]+)`", page.read_text(), re.DOTALL)
        for line in "\n".join(map("".join, code)).replace("\\\n", " ").splitlines():
            if not (found := re.search(r"python -m benchmarks\.([\w.]+)([^#]*)", line)):
                continue
            file = ROOT / "benchmarks" / f"{found[1].replace('.', '/')}.py"
            assert file.is_file(), f"{page}: {line}"
            for option in re.findall(r"(?<!\S)--[A-Za-z][\w.-]*", found[2]):
                assert f'"{option}"' in file.read_text() or "." in option, f"{page}: {line}: {option}"
            told += 1
    assert told > 30


def test_documented_pictures_are_of_variants_that_the_recipe_has():
    """As `benchmarks.results` and `benchmarks.pictures` after a study in one block of a page."""
    told, variants_of = 0, functools.cache(lambda recipe, **data: set(load(ROOT / "src/dmvae" / recipe, data)))
    for page in PAGES:
        for block in re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL):
            recipes = re.findall(r"dmvae (?:study|run) (recipes/\S+\.yaml)", block)
            if not recipes:
                continue
            data = {"data.root": "."} if "--data.root" in block else {}
            variants = {name for recipe in recipes for name in variants_of(recipe, **data)}
            for line in re.findall(r"--(?:samples|methods) ((?:[\w@-]+\s*)+)", block.replace("\\\n", " ")):
                chosen = line.splitlines()[0].split()
                assert set(chosen) <= variants, f"{page}: {sorted(set(chosen) - variants)}"
                told += len(chosen)
    assert told > 10


def test_a_new_page_comes_into_the_navigation(tmp_path, monkeypatch, generated):
    monkeypatch.setattr(parts, "pages", lambda: generated)
    monkeypatch.setattr(build, "STAGED", tmp_path)
    pages = build.stage()
    assert {page for group in build.NAV.values() for page in group} <= set(pages)
    nav = build.settings(pages | {"brand_new": "Brand new"})["nav"]
    guides = next(entry["Guides"] for entry in nav if "Guides" in entry)
    assert guides[-1] == {"Brand new": "brand_new.md"}
    assert "](CONTRIBUTING.md)" in (tmp_path / "architecture.md").read_text(), "links are as the site has them"
    assert "](../architecture.md)" not in (tmp_path / "CONTRIBUTING.md").read_text()
    assert (tmp_path / "results/toy/points.png").exists()
    assert "show_source" in (tmp_path / "equations.md").read_text()


def test_links_to_what_the_site_lacks_are_found(tmp_path):
    (tmp_path / "deep").mkdir()
    for page, links in (("a", "deep/b.html#x https://x.org /a.html a%20b.png"), ("deep/b", "../a.html /gone ../deep")):
        (tmp_path / f"{page}.html").write_text("".join(f'<a href="{link}"></a>' for link in links.split()))
    (tmp_path / "a b.png").touch()
    assert build.dead(tmp_path) == ["deep/b.html: /gone", "deep/b.html: ../deep"]


def test_equations_need_no_script():
    page = r'<p><span class="arithmatex">\(a &lt; b\)</span></p><div class="arithmatex">\[z_t\]</div>'
    made = build.typeset(page)
    assert made.count("<math") == 2
    assert "<msub><mi>z</mi><mi>t</mi></msub>" in made
    assert "arithmatex" not in made
