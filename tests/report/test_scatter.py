"""Dots with names: which rows of a page become dots, and that names can be read."""

import random
from itertools import combinations

import pytest
from benchmarks.tables import table_of
from benchmarks.tradeoff import dots, main
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from dmvae.report.charts import Dot, _name_dots

PAGE = """
| method | PSNR, dB ↑ | gFD ↓ |
| --- | --- | --- |
| other | 1 | 2 |

Words.

| method | PSNR, dB ↑ | rFD ↓ | gFD ↓ |
| --- | --- | --- | --- |
| matched (2 seeds) | 20.66 ± 0.07 | 298 | **404.6 ± 4** |
| kl_1e-2 | 21.46 | 338.2 | 1,491.7 |
| kl_3e-1 | not ended |  |  |
"""


def test_the_widest_table_s_rows_become_dots():
    rows = table_of(PAGE, "PSNR, dB", "gFD")
    found = dots(rows, "PSNR, dB", "gFD", None)
    assert [(dot.name, dot.x, dot.y) for dot in found] == [("matched", 20.66, 404.6), ("kl_1e-2", 21.46, 1491.7)]
    assert found[0].colour != found[1].colour
    assert [dot.name for dot in dots(rows, "rFD", "gFD", ["kl_1e-2"])] == ["kl_1e-2"]


def test_what_is_not_there_is_told(tmp_path, capsys, monkeypatch):
    with pytest.raises(ValueError, match="no row of vavae; there are matched, kl_1e-2, kl_3e-1"):
        dots(table_of(PAGE, "rFD", "gFD"), "rFD", "gFD", ["vavae"])
    with pytest.raises(ValueError, match="kl_3e-1 lack rFD or gFD"):
        dots(table_of(PAGE, "rFD", "gFD"), "rFD", "gFD", ["kl_3e-1"])
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    monkeypatch.setattr("sys.argv", ["tradeoff", str(page), str(tmp_path / "a.svg"), "--y", "gfd"])
    with pytest.raises(SystemExit):
        main()
    assert "no table with the columns PSNR, dB, gfd; there are PSNR, dB, gFD, rFD" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["tradeoff", str(page), str(tmp_path / "a.svg")])
    main()
    assert "kl_1e-2" in (tmp_path / "a.svg").read_text()


@pytest.mark.parametrize(("count", "on_a_line"), [(3, False), (12, False), (24, False), (20, True)])
def test_names_do_not_lie_over_one_another_and_stay_in_the_picture(count, on_a_line):
    draw = random.Random(count)
    if on_a_line:
        crowd = [Dot(f"method_{i:02}_of_a_long_name", "k", float(i), -float(i)) for i in range(count)]
    else:
        crowd = [Dot(f"method_{i:02}", "k", draw.gauss(0, 1), draw.gauss(0, 1)) for i in range(count)]
    figure = Figure(figsize=(6.4, 3.8))
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0.1, 0.14, 0.88, 0.82))
    axes.plot([dot.x for dot in crowd], [dot.y for dot in crowd], "o")
    axes.margins(0.12)
    _name_dots(axes, crowd)
    canvas.draw()
    boxes = [Text.get_window_extent(text, canvas.get_renderer()) for text in axes.texts]  # without its stroke
    assert len(boxes) == count
    assert not any(a.shrunk(0.98, 0.9).overlaps(b.shrunk(0.98, 0.9)) for a, b in combinations(boxes, 2))
    assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 + 1 for box in boxes)
    assert all(figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1 for box in boxes)
