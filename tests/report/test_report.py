"""The report of complete, partial and oddly named runs: what stands in it, and that it needs nothing else."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from fake_run import Section, build, latents

from dmvae.evaluation.metrics import Figure, figures
from dmvae.report import latent_map, table, training, write_report
from dmvae.report.figures import shown
from dmvae.report.run import Run, Trained

pytestmark = pytest.mark.slow

VOID = {"meta", "img", "br", "link", "hr", "input"}


class Balanced(HTMLParser):
    """Collects ids, and fails on a tag that closes another than the one open."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids = [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def sections(text):
    return re.findall(r'<section id="(\w+)">', text)


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latent_map, "POINTS", 60)
        path = write_report(folder, build(folder))
    assert path == folder / "report.html"
    return path.read_text()


def test_a_complete_run_has_every_section(complete):
    assert sections(complete) == ["results", "samples", "copies", "map", "generator", "matching", "training", "run"]
    Balanced(complete)


def test_the_way_to_the_reference_has_a_line_for_each_class_and_no_panel_elsewhere(complete):
    inside, curves = (
        complete.split(f'<section id="{name}">')[1].split("</section>")[0] for name in ("matching", "training")
    )
    way = inside.split("The way to the reference")[1].split("<h3>")[0]
    assert "matched, tokens of each class" in way
    assert "health/error" in curves, "what matching goes back by has a chart, too"
    assert "health/effective_rank" not in curves
    for name in ("pairs of tokens", "whole latents told apart", "tokens, the class known", "circle", "bar &lt;b&gt;"):
        assert name in way, name
    assert "distance/ratio" in curves
    assert "distance/told" not in curves


def test_figures_of_test_data_stand_beside_the_training_s(complete):
    curves = complete.split('<section id="training">')[1]
    for stage, figure in (("tokenizer", "test/psnr"), ("generator", "test/loss")):
        shown, folded = curves.split(f"<h3>{stage}</h3>")[1].split("<h3>")[0].split("More figures of this stage")
        assert f"{figure} over steps" in shown
        assert f"{stage}/loss over steps" in shown
        assert figure not in folded


def test_a_learning_rate_has_a_chart_where_it_changes(complete):
    curves = complete.split('<section id="training">')[1]
    assert set(re.findall(r"(\w+)/learning_rate over steps", curves)) == {"generator"}


def test_classes_that_end_alike_have_a_colour_each():
    keys = [f"distance/{told}/{name}" for told in ("told", "told_whole") for name in ("a/outdoor", "b/outdoor")]
    trained = Trained(("m",), Path(), [{"step": step, **dict.fromkeys(keys, 1.0 + step)} for step in range(3)])
    named = re.findall(r'background:(#\w+)"></i>([ab]/outdoor)', "".join(training.approach([trained])))
    assert [name for _, name in named] == ["a/outdoor", "b/outdoor"]
    assert len({colour for colour, _ in named}) == 2


def test_the_way_to_the_reference_begins_where_latents_lay(tmp_path):
    """As the stage `reference` has measured it; what is told of networks that tell two apart is in percent."""
    jobs = build(tmp_path)
    folder = {job.stage.name: job.folder for job in jobs if job.variant == "matched"}
    before = {"whole": 7.0, "token": 5.0, "pair": 6.0, "told": 2.0}
    (folder["reference"] / "report.json").write_text(json.dumps({"distance": 1, "floor": 1, "before": before}))
    (training_of,) = (t for t in Run(tmp_path, jobs).trained("matching") if "matched" in t.variants)
    steps, values = training_of.series("distance/whole")
    assert (steps[0], values[0]) == (0, 7.0)
    assert steps[1] > 0
    line = training._accuracy(training_of, "distance/told", "red")
    assert (line.steps[0], line.values[0]) == (0, pytest.approx(60.0))
    assert min(line.values) >= 50


def test_the_way_to_the_reference_shows_where_it_was_handed_over(tmp_path, complete):
    jobs = build(tmp_path)
    log = next(job.folder for job in jobs if job.stage.name == "matching") / "log.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()[:-1]]  # whose last is cut
    log.write_text("".join(json.dumps(row | {"matching/refines": float(i > 5)}) + "\n" for i, row in enumerate(rows)))
    way = training.health(Run(tmp_path, jobs)).split("The way to the reference")[1].split("<h3>")[0]
    assert "matched, handed over" in way
    assert "the share of turns in which the refining objective" in way
    assert "handed over" not in complete


def test_three_methods_are_set_beside_each_other_by_every_pair_of_figures_that_they_have():
    rows = {name: {"psnr": 20.0 + i, "gfd": 400.0 - i, "rfd": 300.0} for i, name in enumerate("abc")}
    run = SimpleNamespace(methods=rows, summary={}, colour=lambda name: "#123456")
    names = r'aria-label="([^"]*)"'
    assert re.findall(names, table.trade_off(run)) == ["gFD against PSNR, dB: a 20, 400; b 21, 399; c 22, 398"]
    for row in rows.values():
        row["grfd"] = 100.0
    both = re.findall(names, table.trade_off(run))
    assert both[1] == "gFD to reconstructions against rFD: a 300, 100; b 300, 100; c 300, 100"
    del rows["c"]
    assert table.trade_off(run) == ""
    rows["c"] = {"psnr": 20.0, "gfd": float("nan"), "rfd": 300.0}
    assert table.trade_off(run) == "", "two with a figure"


def test_nothing_is_loaded_from_elsewhere(complete):
    without_names = re.sub(r'xmlns(:\w+)?="[^"]*"', "", complete)
    assert not re.search(r'(?:src|href)="(?!data:|#)', without_names)
    assert "<script" not in complete
    assert "@import" not in complete


def test_the_best_value_of_each_column_is_marked_by_its_direction(complete):
    body = complete[complete.index("<tbody>") : complete.index("</tbody>")]
    rows = {row[row.index("<th") :].split(">")[1].partition("<")[0]: row for row in body.split("</tr>")[:-1]}
    found = {name: re.findall(r"<td( class=\"best\")?>([^<]*)<", row) for name, row in rows.items()}
    assert [bool(best) for best, _ in found["gFD"]] == [True, False], "lower"
    assert found["gFD"][0][1] == "21.37"
    assert [bool(best) for best, _ in found["PSNR"]] == [False, True], "higher"
    assert found["PSNR"][1][1] == "27.51"
    assert found["recall"] == [("", "55.0")] * 2, "equal, so none is marked"
    assert found["generator loss"][0] == ("", "0.812"), "it is not ranked"


@pytest.mark.parametrize("methods", [table.BESIDE, table.BESIDE + 1])
def test_few_methods_stand_beside_one_another_and_many_below(methods):
    rows = {f"m{i}": {"psnr": 20.0 + i, "gfd": 400.0 - i} for i in range(methods)}
    page = table._table(SimpleNamespace(methods=rows, summary={}, colour=lambda name: "#123456"), shown(rows["m0"]))
    heads = re.findall(r"<th>(?:<i [^>]*></i>)?([^<]*)", page)
    first = re.findall(r'<th scope="row">(?:<i [^>]*></i>)?([^<]*)', page)
    figures, names = ["PSNR", "gFD"], list(rows)
    assert (heads, first) == (
        (["Figure", *names], figures) if methods == table.BESIDE else (["Method", *figures], names)
    )
    assert page.count('class="best"') == 2
    assert "how close reconstructions are" not in page, "no room"
    rows = dict(list(rows.items())[: table.EXPLAINED])
    page = table._table(SimpleNamespace(methods=rows, summary={}, colour=lambda name: "#123456"), shown(rows["m0"]))
    assert "how close reconstructions are" in page


def test_the_summary_names_the_method_with_the_lower_gfd(complete):
    assert "those of <b>matched</b> have the lowest gFD: 21.37, against 30.57 for <b>kl</b>" in complete


def test_the_table_says_which_features_and_that_it_is_not_fid(complete):
    assert "<b>effnet-lite0@64</b> features" in complete
    assert "not FID" in complete


def test_a_section_that_a_method_lacks_is_one_row_of_the_differences(complete):
    assert "<code>matching</code></th><td>given</td><td>null</td>" in complete


@pytest.mark.parametrize(
    ("stages", "expected"),
    [
        (("tokenizer",), ["training", "run"]),
        (("tokenizer", "reference", "matching"), ["matching", "training", "run"]),
        (("tokenizer", "latents", "generator", "sample"), ["samples", "generator", "training", "run"]),
    ],
)
def test_missing_parts_are_left_out(tmp_path, stages, expected, monkeypatch):
    drawn = lambda of, **_: "<p></p>" * any(len(line.values) > 1 for line in of)
    monkeypatch.setattr(training, "lines", drawn)
    jobs = build(tmp_path, ("only",), stages)
    if "matching" in stages:
        (tmp_path / "stages/reference-000000000000/map.safetensors").unlink()
    text = write_report(tmp_path, jobs).read_text()
    assert sections(text) == expected
    Balanced(text)


def test_jobs_that_have_not_run_leave_a_page_with_the_recipes(tmp_path):
    jobs = build(tmp_path / "elsewhere", ("a", "b"), ("tokenizer",))
    for job in jobs:
        job.folder = tmp_path / "never"
    assert sections(write_report(tmp_path, jobs).read_text()) == ["run"]


def test_names_are_escaped(tmp_path):
    evil = '<script>alert("x")</script> & co'
    jobs = build(tmp_path, (evil,), ("tokenizer", "generator", "sample"), name=evil, generator=Section(steps=7))
    text = write_report(tmp_path, jobs).read_text()
    assert "<script>" not in text
    assert "&lt;script&gt;" in text
    Balanced(text)


def test_the_generators_losses_are_told_and_not_ranked(tmp_path):
    for count, told in ((2, "for <b>m0</b>, "), (5, " to ")):
        jobs = build(tmp_path / str(count), tuple(f"m{i}" for i in range(count)), ("tokenizer", "generator"))
        text = training.generator(Run(tmp_path / str(count), jobs))
        words = text.partition("Mean over the last tenth of training: ")[2].partition("</p>")[0]
        assert told in words


def test_a_report_is_the_same_when_written_again(tmp_path):
    jobs = build(tmp_path, ("one", "two"), ("generator",))
    assert write_report(tmp_path, jobs).read_text() == write_report(tmp_path, jobs).read_text()


def test_the_map_tells_how_far_latents_are_mixed_with_their_reference():
    rng = np.random.default_rng(0)
    reference = latent_map.Cloud("reference", "m", latents(0, 400, rng)[0].numpy(), np.zeros(400))
    notes = []
    for shift in (0, 100):
        cloud = latent_map.Cloud("m", "m", latents(0, 300, rng)[0].numpy() + shift, np.zeros(300), reference)
        notes.append(latent_map._note(cloud, [reference, cloud]))
    assert int(notes[0].split()[-2]) == pytest.approx(47.5, abs=4)
    assert notes[1].endswith(" 0 %")


def test_few_points_are_projected_by_pca_in_either_count_of_dimensions():
    rng = np.random.default_rng(0)
    for dims in (1, 2, 8):
        plane, how = latent_map.project(rng.normal(size=(12, dims)))
        assert plane.shape == (12, 2)
        assert how == "PCA"


def test_axes_of_points_wider_than_there_are_points_are_the_same_axes():
    """By the products of points, which take less memory."""
    points = np.random.default_rng(0).normal(size=(60, 200)) / np.arange(1, 201)
    found, known = latent_map._axes(points), np.linalg.svd(points, full_matrices=False)[2][:50]
    assert np.abs((found * known).sum(1)) == pytest.approx(1)


def test_points_that_are_all_the_same_are_projected_to_one():
    """Of a reference that is one point, or latents that have collapsed: t-SNE ends the process."""
    plane, how = latent_map.project(np.ones((200, 8)))
    assert how == "PCA"
    assert not plane.any()


def test_a_figure_that_is_no_number_is_not_the_best():
    column = Figure("k", "k", "", 1, "{:.2f}", "of a test")
    run = SimpleNamespace(summary={}, methods={"a": {"k": float("nan")}, "b": {"k": 1.0}, "c": {"k": 2.0}})
    assert table._best(run, "k", column) == "2.00"


def test_samples_that_are_like_no_image_are_not_the_best_at_memorising_none():
    """They lie far from training images too: 0, where 0.5 is right."""
    run = SimpleNamespace(summary={}, methods={"good": {"memorisation": 0.5}, "noise": {"memorisation": 0.0}})
    assert table._best(run, "memorisation", figures()["memorisation"]) is None


@pytest.mark.parametrize(("form", "message"), [("{:d}", "does not format a number"), ("%.3f", "no place for a number")])
def test_a_form_that_shows_no_number_is_refused_at_once(form, message):
    with pytest.raises(ValueError, match=f"figure 'k': its form .* {message}"):
        Figure("k", "k", "", 1, form, "of a test")


def test_others_that_have_one_value_are_told_by_it():
    rows = {name: {"psnr": value} for name, value in zip("abcd", (22.0, 21.0, 21.0, 21.0), strict=True)}
    run = SimpleNamespace(methods=rows, summary={})
    assert "22.00 dB, against 21.00 for the others" in table._compare(run, "psnr", "Of the copies, those of")
    rows["d"]["psnr"] = 20.0
    assert "against 21.00 to 20.00 for the others" in table._compare(run, "psnr", "Of the copies, those of")


def test_on_paper_no_column_is_hidden_behind_a_scroll_bar():
    css = Path(latent_map.__file__).with_name("page.css").read_text()
    assert ".scroll { overflow: visible;" in css.partition("@media print")[2]
    assert "@media (max-width: 48rem)" not in css, "a sheet is narrower, and is no small window"


def test_the_first_paragraph_says_which_latents_reached_their_reference():
    told = {
        "a": "arrived; of its classes ship is farthest",
        "b": "on the way: tokens at 9 times chance",
        "c": "arrived",
    }
    words = table._arrived(SimpleNamespace(summary={"arrival": told}))
    assert words.endswith("? <b>a</b> and <b>c</b>: arrived; <b>b</b>: on the way.")
    assert table._arrived(SimpleNamespace(summary={})) == ""
