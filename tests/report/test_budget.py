"""Curves of gFD over a number in the variants' names, as `benchmarks.budget` prints and draws them."""

import json

import pytest
from benchmarks import budget

METHODS = {
    "a_500@0": {"gfd": 300.0, "rfd": 200.0},
    "a_500@1": {"gfd": 500.0, "rfd": 220.0},
    "kl_1e-1_500": {"gfd": 800.0, "rfd": 250.0},
    "a_2000": {"gfd": 200.0, "rfd": 200.0},
    "kl_1e-1_2000": {},
    "kl_1e-1_250": {"gfd": 1.0, "rfd": 250.0},
}


def call(tmp_path, monkeypatch, methods, *options, **summary):
    (tmp_path / "summary.json").write_text(json.dumps({"methods": methods} | summary))
    monkeypatch.setattr("sys.argv", ["budget", str(tmp_path), str(tmp_path / "curves.svg"), *options])
    budget.main()


def test_a_row_for_each_number_and_a_curve_for_each_method(tmp_path, monkeypatch, capsys):
    call(tmp_path, monkeypatch, METHODS, unlike={"kl_1e-1_250": "other, 10 images"})
    title, _, *rows, left_out, file = capsys.readouterr().out.splitlines()
    assert title == "| generator steps | a gFD | kl_1e-1 gFD | a / kl_1e-1 |"
    assert rows == ["| 500 | 400 | 800 | 0.50 |", "| 2000 | 200 |  |  |"]
    assert left_out == "left out, measured otherwise: kl_1e-1_250"
    assert file == str(tmp_path / "curves.svg")


def test_a_method_without_reconstructions_has_a_curve_and_no_line_below(tmp_path, monkeypatch, capsys):
    call(tmp_path, monkeypatch, METHODS | {"own_500": {"gfd": 100.0}})
    assert "| 500 | 400 | 800 | 100 |" in capsys.readouterr().out
    curves, floors = budget.curves_of({"methods": {"own_500": {"gfd": 100.0}}})
    assert floors == {}
    budget.draw(curves, floors, "steps", tmp_path / "alone.svg")
    assert "<!-- own -->" in (tmp_path / "alone.svg").read_text()


def test_many_methods_and_small_distances_are_drawn_too(tmp_path):
    curves = {f"m{i}": {250: 12.0 + i, 500: 3.0 + i} for i in range(20)}
    budget.draw(curves, dict.fromkeys(curves, 2.0), "steps", tmp_path / "curves.svg")
    drawn = (tmp_path / "curves.svg").read_text()
    assert "<!-- m19 -->" in drawn
    assert "<!-- 20 -->" in drawn


@pytest.mark.parametrize(
    ("methods", "options", "told"),
    [
        ({"matched": METHODS["a_2000"]}, (), "matched: not called METHOD_NUMBER"),
        ({"a_500": {}}, (), "no method with a gFD has ended"),
        (METHODS, ("--baseline", "kl"), "no method is called 'kl'; there are a, kl_1e-1"),
    ],
)
def test_what_makes_no_curve_is_told_in_a_line(tmp_path, monkeypatch, capsys, methods, options, told):
    with pytest.raises(SystemExit):
        call(tmp_path, monkeypatch, methods, *options)
    assert told in capsys.readouterr().err
