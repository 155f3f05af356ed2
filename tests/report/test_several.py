"""One table and one report of several runs, written where the runs are not."""

import json
import os

import pytest

import tiny
from dmvae import cli, pipeline
from dmvae import config as configs
from dmvae.jobs import jobs_of, plan, record
from dmvae.recipe import load
from dmvae.report.summary import write_summary
from dmvae.runtime.done import write_done

KL = tiny.RECIPE["variants"]["kl"]


@pytest.fixture
def run(tmp_path, plain_report):
    """A run that ended, with the PSNR of each variant: KL-VAEs of that weight, but for `kl` where `first` is
    its own, and for those called own_PSNR. One called `next` starts from the discriminator of `kl`."""

    def make(name, psnr, weight=0.1, first=None, **over):
        folder = tmp_path / name
        folder.mkdir()
        weights = {
            variant.partition("@")[0]: weight + value * variant.startswith("own") for variant, value in psnr.items()
        }
        weights |= {"kl": first} if first else {}
        variants = {variant: configs.merge(KL, {"tokenizer.kl_weight": weights[variant]}) for variant in weights}
        there = {"losses.adversarial.start_from": f"{folder}/run/kl/tokenizer/discriminator"}
        variants = {name: configs.merge(own, there if name == "next" else {}) for name, own in variants.items()}
        recipes = load(tiny.write(folder, name=name, variants=variants, **over))
        jobs = plan(recipes, folder / "run")
        for job in jobs:
            job.folder.mkdir(parents=True, exist_ok=True)
            if job.stage.name == "evaluate":
                (job.folder / "metrics.json").write_text(json.dumps({"features": "x", "psnr": psnr[job.variant]}))
            write_done(job.folder, {"seconds": 1.0})
        record(recipes, jobs, folder / "run", list(recipes))
        moved = tmp_path / f"{name}_run"
        (folder / "run").rename(moved)
        return moved

    return make


def table(*arguments):
    cli.main(["report", *map(str, arguments)])


def test_variants_of_several_runs_stand_in_one_table(run, tmp_path, capsys):
    a, b = run("a", {"kl": 20.0, "own_1": 21.0}), run("b", {"kl": 22.0, "own_2": 23.0}, weight=0.5)
    before = sorted(path for folder in (a, b) for path in folder.rglob("*"))
    table(a, b, a, "--out", tmp_path / "both")
    summary = json.loads((tmp_path / "both/summary.json").read_text())
    assert {name: row["psnr"] for name, row in summary["methods"].items()} == {
        "a_run.kl": 20.0,
        "own_1": 21.0,
        "b_run.kl": 22.0,
        "own_2": 23.0,
    }
    assert summary["name"] == "a and b"
    assert "b_run.kl" in (tmp_path / "both/report.html").read_text()
    assert sorted(path for folder in (a, b) for path in folder.rglob("*")) == before
    assert "b_run.kl" in capsys.readouterr().out
    assert list(dict.fromkeys(job.variant for job in jobs_of(tmp_path / "both"))) == list(summary["methods"])
    assert all(job.finished for job in jobs_of(tmp_path / "both"))


def test_a_stage_that_two_runs_have_done_is_each_run_s_own(run, tmp_path):
    """On two machines it takes other times, and rounds otherwise."""
    runs = [run("a", {"own_1": 21.0, "kl": 20.0}), run("b", {"own_1": 21.0, "kl": 20.0, "own_2": 22.0}, weight=0.5)]
    for folder, seconds in zip(runs, (2.0, 3.0), strict=True):
        (latents,) = {(folder / variant / "latents").resolve() for variant in ("kl",)}
        shared = latents.with_name("latents-000000000000")
        latents.rename(shared)
        write_done(shared, {"seconds": seconds})
        (folder / "kl/latents").unlink()
        (folder / "kl/latents").symlink_to(f"../stages/{shared.name}")
    table(*runs, "--out", tmp_path / "both")
    seconds = {job.variant: job.facts()["seconds"] for job in jobs_of(tmp_path / "both") if job.stage.name == "latents"}
    assert (seconds["a_run.kl"], seconds["b_run.kl"]) == (2.0, 3.0)


def test_seeds_of_two_machines_are_one_method_and_what_both_ran_comes_once(run, tmp_path):
    first, second = (
        run("a", {"kl@0": 20.0}, seeds={"kl": [0]}),
        run("b", {"kl@0": 20.0, "kl@1": 22.0}, seeds={"kl": [0, 1]}),
    )
    (second / "kl@0/evaluate/done.json").unlink()  # the second machine was stopped there
    for out, runs in ((tmp_path / "both", (first, second)), (tmp_path / "turned", (second, first))):
        table(*runs, "--out", out)
        summary = json.loads((out / "summary.json").read_text())
        assert list(summary["methods"]) == ["kl@0", "kl@1"]
        assert summary["not_ended"] == []
        assert summary["seeds"]["kl"]["mean"]["psnr"] == 21.0


def test_a_seed_that_was_run_alone_is_one_of_the_method_s_seeds(run, tmp_path):
    """It was shown beside the mean of the others, and neither counted in it nor ranked."""
    alone, more = run("a", {"kl": 20.0, "own_5": 25.0}), run("b", {"kl@1": 22.0, "kl@2": 24.0}, seeds={"kl": [1, 2]})
    third = run("c", {"kl": 30.0}, seed=3)
    for out, runs, psnr in (("both", (alone, more), 22.0), ("single", (alone, third), 25.0)):
        table(*runs, "--out", tmp_path / out)
        summary = json.loads((tmp_path / out / "summary.json").read_text())
        assert {"kl@0", "own_5"} < summary["methods"].keys()
        assert summary["seeds"]["kl"]["count"] == len(summary["methods"]) - 1
        assert summary["seeds"]["kl"]["mean"]["psnr"] == psnr


def test_seeds_that_start_from_another_variant_of_their_own_run_are_one_method_if_that_one_is(run, tmp_path):
    first, second = (run(name, {"kl": 20.0, "next": 21.0 + seed}, seed=seed) for seed, name in enumerate("ab"))
    table(first, second, "--out", tmp_path / "both")
    summary = json.loads((tmp_path / "both/summary.json").read_text())
    assert {method: found["mean"]["psnr"] for method, found in summary["seeds"].items()} == {"kl": 20.0, "next": 21.5}
    unlike = run("c", {"kl": 20.0, "next": 23.0}, seed=2, first=0.5)
    table(first, unlike, "--out", tmp_path / "unlike")
    summary = json.loads((tmp_path / "unlike/summary.json").read_text())
    assert not summary["seeds"]
    assert {"a_run.next", "c_run.next"} < summary["methods"].keys()


def test_methods_that_share_but_their_name_are_not_seeds_of_one(run, tmp_path):
    first = run("a@1", {"kl@0": 20.0, "kl@1": 21.0}, seeds={"kl": [0, 1]})
    second = run("b", {"kl@0": 22.0, "kl@2": 24.0}, weight=0.5, seeds={"kl": [0, 2]})
    table(first, second, "--out", tmp_path / "both")
    summary = json.loads((tmp_path / "both/summary.json").read_text())
    assert set(summary["seeds"]) == {"a_1_run.kl", "b_run.kl"}
    assert summary["seeds"]["b_run.kl"]["mean"]["psnr"] == 23.0


def test_a_merged_folder_may_be_merged_again(run, tmp_path):
    a, b = run("a", {"kl": 20.0}), run("b", {"kl": 22.0, "own": 23.0}, weight=0.5)
    table(a, b, "--out", tmp_path / "two")
    table(tmp_path / "two", run("c", {"third": 24.0}, weight=0.7), b, "--out", tmp_path / "three")
    rows = json.loads((tmp_path / "three/summary.json").read_text())["methods"]
    assert {name: row["psnr"] for name, row in rows.items()} == {
        "a_run.kl": 20.0, "b_run.kl": 22.0, "own": 23.0, "third": 24.0
    }  # fmt: skip


def test_a_merged_folder_is_apart_from_runs_and_trains_nothing(run, tmp_path, capsys):
    a, b = run("a", {"kl": 20.0}), run("b", {"own_1": 22.0})
    before = {path: path.read_bytes() for path in a.rglob("*") if path.is_file()}
    for out in (a, b, a / "both", a / "kl", tmp_path, a / "variants.json"):
        with pytest.raises(SystemExit):
            table(a, b, "--out", out)
        assert "give a folder" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in a.rglob("*") if path.is_file()} == before
    table(a, b, "--out", tmp_path / "both")
    table(a, "--out", tmp_path / "both")
    assert {job.variant for job in jobs_of(tmp_path / "both")} == {"kl"}
    with pytest.raises(ValueError, match="made of stages of other runs"):
        pipeline.run(load(tmp_path / "a/recipe.yaml"), tmp_path / "both")
    a.rename(tmp_path / "moved")
    with pytest.raises(ValueError, match="which is not there; make the folder anew"):
        jobs_of(tmp_path / "both")


def test_a_run_that_may_not_be_written_is_told_elsewhere(run, tmp_path, capsys, monkeypatch):
    folder = run("a", {"kl": 20.0})
    with monkeypatch.context() as patch:  # root may write everywhere
        patch.setattr(os, "access", lambda place, mode: place != folder)
        with pytest.raises(SystemExit):
            table(folder)
    assert f"{folder} cannot be written; give --out DIR" in capsys.readouterr().err
    table(folder, "--out", tmp_path / "elsewhere")
    assert (tmp_path / "elsewhere/report.html").exists()
    assert not (folder / "summary.json").exists()


def test_several_runs_need_a_folder_and_names_that_differ(run, tmp_path, capsys):
    a = run("a", {"kl": 20.0})
    with pytest.raises(SystemExit):
        table(a, a)
    assert "a table of 2 runs needs a folder of its own: give --out DIR" in capsys.readouterr().err
    b = run("b", {"kl": 22.0}, weight=0.5)
    (tmp_path / "c").mkdir()
    b.rename(tmp_path / "c/a_run")
    with pytest.raises(SystemExit):
        table(a, tmp_path / "c/a_run", "--out", tmp_path / "both")
    assert "two runs in folders called 'a_run' have a 'kl'; rename one" in capsys.readouterr().err


def test_other_methods_of_one_name_are_no_seeds_of_each_other_in_folders_of_one_name_either(run, tmp_path, capsys):
    first = run("a", {"kl@0": 20.0, "kl@1": 21.0}, seeds={"kl": [0, 1]})
    second = run("b", {"kl@2": 30.0}, weight=0.5, seeds={"kl": [2]})
    (tmp_path / "c").mkdir()
    second.rename(tmp_path / "c/a_run")
    with pytest.raises(SystemExit):
        table(first, tmp_path / "c/a_run", "--out", tmp_path / "both")
    assert "two runs in folders called 'a_run' have a 'kl'; rename one" in capsys.readouterr().err


def test_what_a_run_says_of_earlier_settings_is_said_of_its_row_beside_others(run, tmp_path):
    a, b = run("a", {"kl": 20.0, "own_1": 21.0}), run("b", {"kl": 22.0}, weight=0.5)
    write_summary(jobs_of(a), a, {"kl": "sample.steps is 3 and was 2"})
    for _ in range(2):  # and again, from the runs themselves
        table(a, b, "--out", tmp_path / "both")
        summary = json.loads((tmp_path / "both/summary.json").read_text())
        assert summary["earlier"] == {"a_run.kl": "sample.steps is 3 and was 2"}
        assert summary["unlike"] == {"a_run.kl": "earlier settings"}
    write_summary(jobs_of(a), a, {})
    table(tmp_path / "both", "--out", tmp_path / "again")
    assert json.loads((tmp_path / "again/summary.json").read_text())["earlier"] == {}
