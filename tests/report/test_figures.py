"""Figures have one name and one unit wherever people read them: terminal, page, card, `dmvae measure`."""

import re
from html import unescape

import pytest
from fake_run import build

from dmvae.commands import check
from dmvae.commands.check import _short, in_unit, print_scores, title_of
from dmvae.evaluation.metrics import Figure, figures, unit_of
from dmvae.report import table
from dmvae.report.figures import shown
from dmvae.report.run import Run
from dmvae.report.summary import print_summary
from dmvae.runtime.console import console


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path, build(tmp_path, stages=("tokenizer", "evaluate")))


def printed(show, *values):
    with console.capture() as text:
        show(*values)
    return " ".join(text.get().split())


def test_the_page_and_the_terminal_have_the_same_names_units_and_values(run, monkeypatch):
    monkeypatch.setattr(console, "width", 200)
    columns = shown({key for row in run.methods.values() for key in row})
    page, terminal = table.results(run), printed(print_summary, run.summary | {"seconds": {}})
    heads = [unescape(re.sub("<[^>]+>", " ", head)).split() for head in re.findall(r"<th scope=.row.>(.*?)</th>", page)]
    for key, figure in columns.items():
        assert figure.heading.replace(",", "").split() in heads
        assert figure.heading in terminal
        for row in run.methods.values():
            assert f">{figure.show(row[key])}<" in page
            assert figure.show(row[key]) in terminal


@pytest.mark.parametrize("methods", [10, 40])
@pytest.mark.parametrize("width", [80, 200])
def test_on_a_terminal_no_number_and_no_name_is_cut(monkeypatch, methods, width):
    """Fewer methods than figures stand side by side, more of them below each other."""
    monkeypatch.setattr(console, "width", width)
    known = list(shown(figures()))
    rows = {f"method_{i}@0": dict.fromkeys(known, 1000.25 + 17 * i) for i in range(methods)}
    with console.capture() as text:
        print_summary({"name": "mine", "features": "", "methods": rows})
    lines = text.get().splitlines()
    assert max(map(len, lines)) <= width
    words = text.get().split()
    for name in rows:
        assert words.count(name) >= 1
    for key, figure in shown(known).items():
        for row in rows.values():
            assert figure.show(row[key]) in words
        if methods < len(known):
            assert any(line.strip().startswith(figure.heading) for line in lines)
    assert sum(line.strip() == "mine" for line in lines) == 1


def test_shares_are_printed_in_percent_by_measure_too(monkeypatch):
    monkeypatch.setattr(console, "width", 120)
    result = {"metrics": {"coverage_x@64": 0.66, "psnr": 21.5}, "intervals": {"coverage_x@64": (0.5, 0.75)}}
    text = printed(print_scores, result)
    assert "features: x@64; the names in files end in _x@64" in text
    assert "coverage │ 66 % │ 50 % to 75 % │ coverage" in text
    assert "PSNR │ 21.5 dB │ │ psnr" in text
    counts = {"manifest": {"count": 2500, "reference": {"count": 50000}}}
    assert "2,500 images against 50,000" in printed(print_scores, result | counts)
    counts["manifest"]["reference"]["size"] = 64
    assert "2,500 images against 50,000, 64x64" in printed(print_scores, result | counts)
    both = printed(print_scores, {"metrics": {"fd_x@64": 1.0, "fd_y@64": 2.0}})
    assert "Frechet distance │ 2 │ fd_y@64" in both
    assert _short(["runs/a/kl/evaluate/metrics.json", "runs/a/matched/evaluate/metrics.json"]) == ["kl", "matched"]
    assert _short(["one.json", "two.json"]) == ["one.json", "two.json"]
    assert _short(["a/b.json"]) == ["a/b.json"]
    assert [title_of(name) for name in ("gfid_inception", "fd_x@64", "gkid-std_x@64", "grecall_x@64", "novel_x")] == [
        *("gFD", "Frechet distance", "gKID, spread", "recall", "")
    ]
    own = {"grain": Figure("grain", "graininess", "", 0, "{:.1f}", "")}  # as a plugin's metric has
    monkeypatch.setattr(check, "figures", lambda: own)
    assert [title_of(f"{prefix}grain_x@64") for prefix in ("", "g", "r", "gr")] == ["graininess"] * 4
    own["gwide"] = Figure("gwide", "width of samples", "", 0, "{:.1f}", "")
    assert [title_of(f"{prefix}wide_x@64") for prefix in ("", "g")] == ["width of samples"] * 2
    assert [title_of(name) for name in ("kid", "kid_x@64", "rkid_x@64")] == ["KID", "KID", "rKID"]
    assert shown(["kid"])["kid"].title == "gKID"
    assert in_unit("agreement-real_x@64", 0.724) == "72.4 %"
    assert in_unit("fd_x@64", 0.5) == "0.5"


def test_every_figure_is_found_by_its_full_name():
    for key, figure in figures().items():
        assert unit_of(key) == figure
        assert "_" in key or unit_of(f"{key}_effnet-lite0@64") == figure
    for prefix in ("g", "r", "gr"):  # of `Sets`, which a plugin's metric has in its names
        assert in_unit(f"{prefix}coverage_x@64", 0.66) == "66 %"


def test_a_wide_table_is_set_closely(run, monkeypatch):
    monkeypatch.setattr(table, "BESIDE", 0)
    narrow, wide = shown(["psnr", "gfd"]), {str(i): figure for i, figure in enumerate([*figures().values()][:13])}
    assert 'class="figures"' in table._table(run, narrow)
    assert 'class="figures wide"' in table._table(run, wide)
