"""Tables of a run that has not ended: its methods are named as such, and their figures are not averaged."""

import json
import math
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
from benchmarks import results

import tiny
from dmvae import cli
from dmvae import config as configs
from dmvae.jobs import jobs_of, plan, record
from dmvae.recipe import load
from dmvae.report import table
from dmvae.report.figures import shown
from dmvae.report.run import Run
from dmvae.report.summary import over_seeds, print_summary, write_summary
from dmvae.runtime.done import write_done


def finish(job, psnr):
    job.folder.mkdir(parents=True, exist_ok=True)
    if job.stage.name == "evaluate":
        (job.folder / "metrics.json").write_text(json.dumps({"features": "x", "psnr": psnr}))
    write_done(job.folder, {"seconds": 1.0})


def test_a_method_that_has_not_ended_says_so_on_the_terminal_and_on_the_page(tmp_path, capsys):
    path = tiny.write(tmp_path, seeds={"kl": [0, 1, 2]})
    jobs = plan(load(path), tmp_path / "run")
    for job in jobs:
        if job.variant in ("kl@0", "kl@1") or (job.variant == "kl@2" and job.stage.name == "tokenizer"):
            finish(job, 20.0 + job.recipe.seed)
    summary = write_summary(jobs, tmp_path / "run")
    assert summary["not_ended"] == ["matched", "kl@2"]
    assert summary["methods"]["matched"] == {}
    assert summary["seeds"]["kl"]["count"] == 2
    assert summary["seeds"]["kl"]["mean"]["psnr"] == 20.5
    print_summary(summary)
    out, page = capsys.readouterr().out, table.results(Run(tmp_path / "run", jobs))
    for name, ended in (("matched", False), ("kl@0", True), ("kl@2", False)):
        assert (f"{name}, not ended" in out) is (f"{name}, not ended" in page) is not ended
        assert name in out
        assert name in page


def test_stages_that_were_run_again_by_themselves_are_what_the_table_tells(tmp_path):
    """`dmvae evaluate` writes no summary; while something is left to do, the table is that of the run's last end."""
    psnr = lambda jobs: Run(tmp_path / "run", jobs).methods["kl"]["psnr"]
    first, other, unmeasured = (
        plan({"kl": load(tiny.write(tmp_path, **over))["kl"]}, tmp_path / "run")
        for over in ({}, {"sample__steps": 3}, {"sample__steps": 5})
    )
    for jobs, value in ((first, 20.0), (other, 21.0)):
        for job in jobs:
            finish(job, value)
    write_summary(first, tmp_path / "run")
    assert [psnr(jobs) for jobs in (first, other, unmeasured)] == [20.0, 21.0, 20.0]


def test_methods_that_have_an_at_in_their_names_are_no_seeds_of_one(tmp_path, capsys, monkeypatch):
    kl = tiny.RECIPE["variants"]["kl"]
    variants = {"steps@4": kl | {"sample": {"steps": 4}}, "steps@16": kl | {"sample": {"steps": 16}}}
    jobs = plan(load(tiny.write(tmp_path, variants=variants)), tmp_path / "run")
    for job in jobs:
        finish(job, 20.0 + len(job.variant))
    assert write_summary(jobs, tmp_path / "run")["seeds"] == {}
    record({job.variant: job.recipe for job in jobs}, jobs, tmp_path / "run", list(variants))
    monkeypatch.setattr(sys, "argv", ["results", str(tmp_path / "run"), "--columns", "psnr"])
    results.main()
    assert [line.split(" | ")[0] for line in capsys.readouterr().out.splitlines()[2:]] == ["| steps@4", "| steps@16"]
    record({jobs[0].variant: jobs[0].recipe}, jobs, tmp_path / "run", ["steps@4"])  # another study has begun there
    results.main()
    assert [line.split(" | ")[0] for line in capsys.readouterr().out.splitlines()[2:]] == ["| steps@4"]


def test_of_a_run_without_a_finished_stage_it_is_told_where_it_stands(tmp_path, capsys, plain_report):
    recipes = load(tiny.write(tmp_path, seeds={"kl": [0, 1]}))
    jobs = plan(recipes, tmp_path / "run")
    record(recipes, jobs, tmp_path / "run", list(recipes))
    (jobs[0].folder / "checkpoints").mkdir(parents=True)
    cli.main(["report", str(tmp_path / "run")])
    lines = capsys.readouterr().out.splitlines()
    told = ["not ended, at stage encoder (begun): matched", "not ended, at stage tokenizer (not begun): kl@0, kl@1"]
    assert lines[:2] == told
    assert ". ".join(f"N{line[1:]}" for line in told) in (tmp_path / "run/report.html").read_text()


def test_a_method_that_was_measured_otherwise_says_so_and_is_not_ranked(tmp_path, capsys, monkeypatch):
    kl = tiny.RECIPE["variants"]["kl"]
    variants = {name: configs.merge(kl, {"tokenizer.kl_weight": 0.1 * i}) for i, name in enumerate("abcde", 1)}
    recipes = load(tiny.write(tmp_path, variants=variants, seeds={"a": [0, 1, 2]}))
    jobs = plan(recipes, tmp_path / "run")
    record(recipes, jobs, tmp_path / "run", list(recipes))
    how = {
        "a@2": {"features": "inception"},
        "b": {"manifest": {}},  # without samples, whose count is then no difference
        "c": {"count": 500},
        "d": {"manifest": {"reference": {"fingerprint": "0123456789"}}},
        "e": {"manifest": {"measured": {"count": 500}}},
    }
    for number, name in enumerate(("a@0", "a@1", "a@2", "b", "c", "d", "e")):
        for job in (job for job in jobs if job.variant == name):
            finish(job, 20.0)
            if job.stage.name == "evaluate":
                own = {"features": "x", "count": 2500, "psnr": 20.0, "gfd": 100.0 - 10 * number}
                own |= {"manifest": {"measured": {"count": 2500}}} | how.get(name, {})
                (job.folder / "metrics.json").write_text(json.dumps(own))
                write_done(job.folder, {"seconds": 1.0})
    summary = write_summary(jobs, tmp_path / "run")
    told = {"a@2": "inception, 2500 images, 2,500 samples", "c": "x, 500 images, 2,500 samples"}
    told |= {"d": "x, 2500 images of 01234567", "e": "x, 2500 images, 500 samples"}
    assert (summary["features"], summary["unlike"]) == ("x", told)
    assert summary["seeds"]["a"]["count"] == 2
    print_summary(summary)
    assert "c (by x, 500 images, 2,500 samples)" in " ".join(capsys.readouterr().out.split())
    page = table.results(Run(tmp_path / "run", jobs))
    assert "a@2 <small>(by inception, 2500 images, 2,500 samples)</small>" in page
    assert '<td class="best">70' in page, "of those that compare b is the best"
    assert '<td class="best">50' not in page
    words = table.summary(Run(tmp_path / "run", jobs))
    assert "those of <b>b</b> have the lowest gFD: 70, against 95 for <b>a, 2 seeds</b>" in words
    chart = table.trade_off(Run(tmp_path / "run", jobs))
    assert "gFD against PSNR, dB: a@0 20, 100; a@1 20, 90; b 20, 70" in chart
    assert "c 20, 60" not in chart, "no dot beside those that it does not compare with"
    where = [str(tmp_path / "run"), str(tmp_path / "pictures")]
    monkeypatch.setattr(sys, "argv", ["results", *where, "--baseline", "b", "--columns", "gfd"])
    results.main()
    chart = (tmp_path / "pictures/tradeoff.svg").read_text()
    assert "gFD against PSNR, dB: a 20, 95; b 20, 70" in chart
    assert "c 20, 60" not in chart
    lines = capsys.readouterr().out.splitlines()
    assert "| a (2 of 3 seeds) | 95 ± 7.1 | 1.36 ± 0.1 |" in lines, "of the seeds that compare"
    assert "| e | 40 |  |" in lines


def test_a_figure_that_is_no_number_ends_no_table():
    spread = over_seeds({"a@0": {"gfd": math.nan, "psnr": 20.0}, "a@1": {"gfd": 1.0, "psnr": 22.0}})["a"]["spread"]
    assert math.isnan(spread["gfd"])
    assert spread["psnr"] == pytest.approx(2**0.5)
    far = over_seeds({"a@0": {"gfd": math.inf}, "a@1": {"gfd": -math.inf}})["a"]
    assert math.isnan(far["mean"]["gfd"])
    rows = {"a@0": {"gfd": math.nan}, "a@1": {"gfd": 2.0}, "kl": {"gfd": 0.0}}
    told = results.table(results.by_method(rows), "kl", {"a": 2, "kl": 1}).splitlines()
    assert told[2] == "| a (2 seeds) | nan ± nan | nan ± nan |"
    assert told[3] == "| kl | 0 | nan |"


def test_a_method_that_has_not_ended_is_not_the_best():
    """Its evaluation is finished, and another stage was asked for anew."""
    rows = {"a": {"gfd": 10.0}, "b": {"gfd": 5.0}, "c": {"gfd": 10.0}}
    run = SimpleNamespace(methods=rows, summary={"not_ended": ["b"]}, colour=lambda name: "#123456")
    assert "best" not in table._table(run, shown(rows["a"]))
    assert table._compare(run, "gfd", "Of images, those of") == (
        "<b>a</b> and <b>c</b> have the same gFD, 10."  # which is not said of all
    )
    run.summary = {}
    assert table._table(run, shown(rows["a"])).count('class="best"') == 1


@pytest.mark.parametrize("count", [24, 1, 64])
def test_a_reference_to_which_too_few_images_are_compared_has_no_verdict_and_says_so(tmp_path, capsys, count):
    jobs = plan(load(tiny.write(tmp_path)), tmp_path / "run")
    for job in jobs:
        finish(job, 20.0)
        if job.stage.name == "evaluate":
            own = {"features": "x", "count": count, "psnr": 20.0}
            own |= {"distance_to_reference": 1.0} if job.variant == "matched" else {}
            (job.folder / "metrics.json").write_text(json.dumps(own))
            write_done(job.folder, {"seconds": 1.0})
    print_summary(write_summary(jobs, tmp_path / "run"))
    told = f"not measured, {'1 test image is' if count == 1 else '24 test images are'} too few (64 needed)"
    out, page = capsys.readouterr().out, table.results(Run(tmp_path / "run", jobs))
    assert (f"reference of matched: {told}" in out) == (f"<b>matched</b>: {told}" in page) == (count < 64)
    assert "reference of kl" not in out


def test_a_study_s_table_names_what_has_not_ended():
    rows = {"a@0": {"psnr": 20.0, "gfd": 10.0}, "a@1": {"psnr": 22.0, "gfd": 20.0}, "kl": {"psnr": 30.0, "gfd": 40.0}}
    methods = results.by_method(rows)
    lines = results.table(methods, "kl", {"a": 3, "b": 2, "kl": 1}).splitlines()
    assert [line.count("|") for line in lines] == [5] * 5
    assert lines[2].startswith("| a (2 of 3 seeds) | 21.00 ± 1.4 | ")
    assert lines[3] == "| b | not ended |  |  |"
    assert lines[4].startswith("| kl | 30.00 | ")
    title, _, *rows = results.table(methods, "kl", {"a": 3, "kl": 1}, ["gfd", "psnr"]).splitlines()
    assert title == "| method | gFD ↓ | PSNR, dB ↑ | gFD ratio |"
    assert rows[1] == "| kl | 40 | 30.00 | 1.00 |"
    with pytest.raises(ValueError, match=r"--columns: no method has pnsr; there are psnr, gfd"):
        results.table(methods, "kl", {"a": 3}, ["pnsr"])


def test_a_study_s_table_may_have_a_row_for_each_seed():
    rows = {"a@0": {"psnr": 20.0, "gfd": 10.0}, "a@1": {"psnr": 22.0, "gfd": 20.0}, "kl@0": {"psnr": 30.0, "gfd": 40.0}}
    lines = results.table(results.by_method(rows, str), "kl@0", dict.fromkeys(rows, 1), ["gfd"]).splitlines()
    assert lines[2:] == ["| a@0 | 10 | 0.25 |", "| a@1 | 20 | 0.50 |", "| kl@0 | 40 | 1.00 |"]


def test_a_ratio_is_over_the_baseline_of_as_many_steps():
    found = ratios({"a": 30.0, "a_2": 60.0, "a_9": 20.0, "kl": 40.0, "kl_2": 80.0})
    assert found == ["0.75", "0.75", "0.50", "1.00", "1.00"]


def test_a_row_of_one_seed_has_the_baseline_of_as_many_steps_too():
    steps = {"a_2": 2, "kl@0": 8, "kl_2@0": 2, "kl_9": 9, "b_9": 9}
    methods = {name: {"gfd": [1.0]} for name in steps}
    assert [results.like(name, "kl@0", methods, steps) for name in ("a_2", "b_9", "kl@0")] == ["kl_2@0", "kl_9", "kl@0"]


def ratios(gfd, **more):
    methods = results.by_method({name: {"psnr": 20.0} | ({"gfd": x} if x else {}) for name, x in gfd.items()})
    steps = {name: 8 if "_" not in name else int(name.partition("_")[2]) for name in methods}
    rows = results.table(methods, "kl", dict.fromkeys(methods, 1), steps=steps, **more).splitlines()[2:]
    return [row.split("|")[-2].strip() for row in rows]


def test_a_ratio_is_seed_by_seed_where_seeds_are_the_same():
    assert ratios({"a@0": 100.0, "a@1": 200.0, "kl@1": 400.0, "kl@2": 1000.0})[0] == "0.50"
    assert ratios({"a@0": 100.0, "a@1": 200.0, "kl@1": 400.0, "kl@0": 1000.0})[0] == "0.30 ± 0.28"
    assert ratios({"a@3": 100.0, "kl@1": 400.0, "kl@0": 1000.0})[0] == "0.14"


def test_what_does_not_compare_has_no_ratio():
    assert ratios({"a": 30.0, "kl": None}) == ["", ""]
    assert ratios({"a": 30.0, "b": 20.0, "kl": 40.0}, unlike={"a"}) == ["", "0.50", "1.00"]


def test_a_run_that_measured_nothing_names_no_features(capsys):
    print_summary({"name": "mine", "features": "", "methods": {"a": {"seconds": 1.0}}})
    title, *table = capsys.readouterr().out.splitlines()
    assert title.strip() == "mine"
    assert "time, s" in "".join(table)


def test_rows_of_variants_that_were_run_by_earlier_settings_say_so_and_are_not_ranked(tmp_path, capsys, monkeypatch):
    path, run_dir = tiny.write(tmp_path), tmp_path / "run"
    recipes, given = load(path), []
    jobs = plan(recipes, run_dir)
    record(recipes, jobs, run_dir, list(recipes))
    for job in jobs:
        finish(job, 20.0)
    monkeypatch.setattr("dmvae.pipeline.run", lambda recipes, run_dir, **_: plan(recipes, run_dir))
    monkeypatch.setattr("dmvae.commands.run.finish", lambda jobs, run_dir, earlier: given.append(earlier))
    one, edit = ["--variant", "matched"], ["--sample.steps", "3"]
    for options in (one, one + edit, edit, [*one, "--run.workers", "3"]):
        cli.main(["run", str(path), *options])
    assert given == [{}, {"kl": "sample.steps is 3 and was 2"}, {}, {}]
    jobs = jobs_of(run_dir)
    summary = write_summary(jobs, run_dir, given[1])
    assert summary["unlike"] == {"kl": "earlier settings"}
    capsys.readouterr()
    print_summary(summary)
    out, page = capsys.readouterr().out, table.results(Run(run_dir, jobs))
    assert "kl (by earlier settings)" in out
    assert "kl <small>(by earlier settings)</small>" in page
    assert "of earlier settings, as sample.steps is 3 and was 2: kl" in out.splitlines()
    assert write_summary(jobs, run_dir) == summary  # as `dmvae report` writes it
    again = [replace(job, folder=run_dir / "stages/evaluate-other") if job is jobs[-1] else job for job in jobs]
    assert [job.variant for job in again][-1] == "kl"
    assert write_summary(again, run_dir)["unlike"] == {}
