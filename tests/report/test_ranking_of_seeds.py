"""Tables with several seeds of a method: means are ranked, and seeds keep to their method's colour."""

from types import SimpleNamespace

import fake_run

from dmvae.report import table
from dmvae.report.figures import shown
from dmvae.report.run import COLOURS, Run
from dmvae.report.summary import over_seeds


def test_means_are_ranked_and_not_the_luckiest_seed():
    rows = {"a@0": {"gfd": 90.0}, "a@1": {"gfd": 130.0}, "b@0": {"gfd": 100.0}, "b@1": {"gfd": 104.0}}
    run = SimpleNamespace(methods=rows, summary={"seeds": over_seeds(rows)}, colour=lambda name: "#123456")
    page = table._table(run, shown(rows["a@0"]))
    assert page.count('class="best"') == 1
    assert '<td class="best">102 ± 2.8</td>' in page
    told = table._compare(run, "gfd", "Of images, those of")
    assert told == "Of images, those of <b>b, 2 seeds</b> have the lowest gFD: 102, against 110 for <b>a, 2 seeds</b>."
    same = {name: {"gfd": 90.0} for name in rows}
    run = SimpleNamespace(methods=same, summary={"seeds": over_seeds(same)})
    assert table._compare(run, "gfd", "") == "All methods have the same gFD, 90."


def test_seeds_share_a_colour_where_there_are_more_variants_than_colours(tmp_path):
    few, many = (
        Run(tmp_path / str(n), fake_run.build(tmp_path / str(n), tuple(f"m{i}@{s}" for i in range(n) for s in (0, 1))))
        for n in (2, 7)
    )
    assert [few.colour(name) for name in few.variants] == list(COLOURS[:4])
    assert [many.colour(name) for name in many.variants] == [colour for colour in COLOURS[:7] for _ in (0, 1)]
