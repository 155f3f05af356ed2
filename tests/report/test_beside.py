"""Rows beside one another: by hand, and as the page of the study has them."""

import re
from pathlib import Path

import pytest
from benchmarks.beside import beside, main
from benchmarks.tables import table_of

PAGE = """
| method | PSNR, dB ↑ | rFD ↓ | gFD ↓ | kNN, % ↑ |
| --- | --- | --- | --- | --- |
| a (2 seeds) | 21.5 ± 0.1 | 150 | **300 ± 9** | 20.0 ± 1 |
| b (2 seeds) | 22 ± 0.2 | 200 | 400 ± 16 | 10 |
| c | 20 | 100 | 1,200 | 5 |
"""
STUDY = Path(__file__).parents[2] / "docs/results/hundred_classes.md"


def test_differences_ratios_and_what_stands_as_it_is():
    found = beside(table_of(PAGE, "gFD"), ["a/b", "b/c"]).splitlines()
    assert found[0] == "| method / method | PSNR, dB more | rFD | gFD | kNN, % |"
    assert found[2] == "| a / b | -0.5 | 0.75 | 0.75 ± 0.04 | 20.0 / 10.0 |"  # 0.75 * hypot(0.03, 0.04) = 0.0375
    assert found[3] == "| b / c | +2.0 | 2.00 | 0.33 | 10.0 / 5.0 |"  # one spread alone says nothing of the ratio's


@pytest.mark.parametrize(
    ("pair", "told"),
    [("a", "give two methods"), ("a/b/c", "give two methods"), ("a/d", "no row of d; there are a, b, c")],
)
def test_what_is_no_pair_is_told(tmp_path, monkeypatch, capsys, pair, told):
    (tmp_path / "page.md").write_text(PAGE)
    monkeypatch.setattr("sys.argv", ["beside", str(tmp_path / "page.md"), pair])
    with pytest.raises(SystemExit):
        main()
    assert told in capsys.readouterr().err


def test_the_study_s_page_has_what_the_command_prints():
    page = STUDY.read_text()
    (printed,) = re.findall(r"^\| method / method .*\n(?:\|.*\n)+", page, re.MULTILINE)
    pairs = [line.split("|")[1].replace(" ", "") for line in printed.splitlines()[2:]]
    assert beside(table_of(page, "PSNR, dB", "gFD"), pairs) == printed.strip()
