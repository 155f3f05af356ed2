"""Axes of line charts: their numbers are whole, and inside the picture."""

import re

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from dmvae.evaluation.scores import Figure as Score
from dmvae.report import charts


@pytest.fixture
def drawn(monkeypatch):
    """The figures as they were drawn."""
    figures = []
    monkeypatch.setattr(charts, "_svg", lambda figure, label: figures.append(figure) or "")
    return figures


@pytest.mark.parametrize(
    ("values", "log"),
    [
        (2e-6 + 1e-8 * np.arange(30), False),
        (0.6931 + 1e-6 * np.arange(30), False),
        (3e6 + 1e4 * np.arange(30), False),
        (-123456 + np.arange(30) / 40, False),
        (np.arange(-20, 30) / 10, False),
        (np.full(9, 0.25), False),
        (np.zeros(9), False),
        (np.geomspace(1e-4, 9e-4, 30), True),
        (np.geomspace(1e-7, 3e8, 30), True),
    ],
)
def test_numbers_say_the_whole_value_inside_the_picture(drawn, values, log):
    charts.lines([charts.Line("x", "#123456", range(len(values)), values)], log=log)
    (figure,) = drawn
    canvas, (axes,) = FigureCanvasAgg(figure), figure.axes
    canvas.draw()
    low, high = axes.get_ylim()
    ticks = [tick for tick in axes.yaxis.get_major_ticks() if low <= tick.get_loc() <= high]
    assert len(ticks) >= (1 if log else 3)
    step = 0 if len(ticks) < 2 else ticks[1].get_loc() - ticks[0].get_loc()
    for tick in ticks:
        assert float(tick.label1.get_text()) == pytest.approx(tick.get_loc(), rel=1e-9, abs=step / 50)
        assert tick.label1.get_window_extent(canvas.get_renderer()).x0 >= 0
    assert not axes.yaxis.get_offset_text().get_text()


def test_a_spread_is_written_without_a_power_of_ten():
    figure = Score("gfd", "gFD", "", -1, "{:.4g}", "")
    assert [figure.show_spread(x) for x in (0.0312, 4.44, 12.7, 112.7, 2611.0)] == ["0.031", "4.4", "13", "113", "2611"]
    assert not re.search("e", figure.show_spread(99.9))


def test_a_label_is_text_and_no_pattern():
    assert r'aria-label="\lambda/a\d"' in charts.lines(
        [charts.Line("a", "#123456", [1, 2], [1, 2])], label=r"\lambda/a\d"
    )


def test_what_was_measured_before_training_is_inside_its_chart(monkeypatch):
    frames = []
    monkeypatch.setattr(charts, "_svg", lambda figure, label: frames.append(figure.axes[0].get_ylim()) or "")
    for log in (True, False):
        for count in (20, 60):
            charts.lines(
                [charts.Line("whole", "red", [100.0 * i for i in range(count)], [9.0] + [1.3] * (count - 1))], log=log
            )
            assert frames[-1][0] < 1.3
            assert frames[-1][1] > 9.0
    charts.lines([charts.Line("loss", "red", [1.0 + i for i in range(60)], [9.0] + [1.3] * 59)])
    assert frames[-1][1] < 9.0, "the first step's fall does not stretch the others"
