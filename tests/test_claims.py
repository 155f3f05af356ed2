"""Two recipes do not mix in one run folder."""

import dataclasses
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

import tiny
from dmvae import pipeline
from dmvae.claims import RUNNING, begun_anew, claimed
from dmvae.commands.plan import Machine, print_plan
from dmvae.commands.run import finish
from dmvae.jobs import jobs_of, plan, point
from dmvae.recipe import load
from dmvae.report.summary import write_summary
from dmvae.runtime.done import write_done, write_source
from plans import count_only


@pytest.fixture
def recipes(tmp_path):
    return dict(load(tiny.write(tmp_path)))


def changed(recipes, **fields):
    return recipes | {"kl": dataclasses.replace(recipes["kl"], **fields)}


def test_the_same_recipes_run_side_by_side_and_others_after_them(tmp_path, recipes):
    names = list(recipes)
    faster = dataclasses.replace(recipes["kl"].run, workers=0)
    with claimed(tmp_path / "run", recipes, [], names):
        with claimed(tmp_path / "run", {"kl": recipes["kl"]}, [], names):  # `--variant kl`, beside the others
            with claimed(tmp_path / "run", changed(recipes, run=faster), [], names):
                pass
    with claimed(tmp_path / "run", changed(recipes, seed=1), [], names):  # a changed field, with nothing running
        assert "seed: 1\n" in (tmp_path / "run/kl/recipe.yaml").read_text()
    assert (tmp_path / "run" / RUNNING).exists()


def test_other_recipes_are_refused_while_one_runs(tmp_path, recipes):
    names = list(recipes)
    with claimed(tmp_path / "run", recipes, [], names):
        before = (tmp_path / "run/kl/recipe.yaml").read_text()
        with pytest.raises(ValueError, match=r"is running the variant 'kl' with seed 0, not 1, there.*--run_dir"):
            with claimed(tmp_path / "run", changed(recipes, seed=1), [], names):
                pass
        with pytest.raises(ValueError, match="is running the variants matched, kl there"):
            with claimed(tmp_path / "run", {"main": recipes["kl"]}, [], ["main"]):
                pass
        assert (tmp_path / "run/kl/recipe.yaml").read_text() == before
        assert not (tmp_path / "run/main").exists()
    many = {str(i): recipes["kl"] for i in range(57)}
    with claimed(tmp_path / "many", many, [], list(many)):
        with pytest.raises(ValueError, match="is running the variants 0, 1, 2, 3, 4, 5 and 51 more there"):
            with claimed(tmp_path / "many", recipes, [], names):
                pass


def test_a_variant_that_nobody_runs_may_be_another_beside_one_that_somebody_does(tmp_path, recipes):
    """After an edit of the recipe, or an update: one variant on each GPU."""
    names = list(recipes)
    with claimed(tmp_path / "run", recipes, [], names):
        pass
    edited = {name: dataclasses.replace(recipe, seed=1) for name, recipe in recipes.items()}
    with claimed(tmp_path / "run", {"matched": edited["matched"]}, [], names):
        with claimed(tmp_path / "run", {"kl": edited["kl"]}, [], names):
            assert "seed: 1\n" in (tmp_path / "run/kl/recipe.yaml").read_text()
            with pytest.raises(ValueError, match=r"is running the variant 'kl' with seed 1, not 0, there"):
                with claimed(tmp_path / "run", {"kl": recipes["kl"]}, [], names):
                    pass


def test_a_variant_whose_recipe_of_before_cannot_be_read_costs_no_table_of_another(tmp_path, recipes, capsys):
    jobs = plan(recipes, tmp_path / "run")
    with claimed(tmp_path / "run", recipes, jobs, list(recipes)):
        pass
    file = tmp_path / "run/kl/recipe.yaml"
    file.write_text(file.read_text() + "plugins: [gone.py]\n")
    with pytest.raises(ValueError, match=r"kl/recipe.yaml: .*gone.py"):
        jobs_of(tmp_path / "run")
    mine = [job for job in jobs if job.variant == "matched"]
    assert jobs_of(tmp_path / "run", mine) == mine
    assert "left out of the table: kl, whose recipe of an earlier run cannot be read" in capsys.readouterr().out


def test_a_run_in_another_s_folder_is_read_as_it_was_written(tmp_path, recipes):
    for place in (tmp_path / "run", tmp_path / "run/inner"):
        jobs = plan(recipes, place)
        with claimed(place, recipes, jobs, list(recipes)):
            pass
        assert [job.folder for job in jobs_of(place)] == [job.folder for job in jobs]
    with pytest.raises(ValueError, match="lies in a run's folder"):
        jobs_of(tmp_path / "run/inner/kl")


def interrupted(tmp_path, **over):
    """A run whose tokenizers were begun, with a checkpoint and no more; what of it is run next."""
    recipes = dict(load(tiny.write(tmp_path)))
    jobs = plan(recipes, tmp_path / "run")
    with claimed(tmp_path / "run", recipes, jobs, list(recipes)):
        for job in jobs:
            if job.stage.name == "tokenizer":
                (job.folder / "checkpoints").mkdir(parents=True)
    return plan(load(tiny.write(tmp_path, **over)), tmp_path / "run")


def test_a_stage_that_begins_anew_beside_an_unfinished_one_says_why(tmp_path):
    over = {"tokenizer__learning_rate": 0.5, "generator__steps": 7, "run__save_every": 5}
    jobs = interrupted(tmp_path, **over)
    told = begun_anew(tmp_path / "run", jobs)
    assert len(told) == 2
    for variant, line in zip(("matched", "kl"), told, strict=True):
        assert line.startswith(f"{variant}/tokenizer: begins anew, as tokenizer.learning_rate is 0.5 and was 0.0001;")
        (there,) = re.findall(r"the earlier command goes on with (\S+), which is not finished", line)
        assert (Path(there) / "checkpoints").is_dir()
        assert "generator" not in line, "which comes after it"


def test_fields_that_came_since_the_run_began_are_none_that_changed(tmp_path):
    jobs = interrupted(tmp_path, seed=7)
    for variant in ("matched", "kl"):
        file = tmp_path / "run" / variant / "recipe.yaml"
        values = yaml.safe_load(file.read_text())
        del values["losses"]["adversarial"]["adaptive"], values["tokenizer"]["decay_from"]
        file.write_text(yaml.safe_dump(values))
    told = begun_anew(tmp_path / "run", jobs)
    assert told
    assert all("begins anew, as seed is 7 and was 0; " in line for line in told)


def test_finished_stages_that_other_data_begin_anew_are_named_once(tmp_path):
    """A file more or less in a folder of images, and days of training would be done again without a word."""

    def finished(folder, jobs):
        with claimed(folder, recipes, jobs, list(recipes)):
            for job in jobs:
                job.folder.mkdir(parents=True, exist_ok=True)
                write_done(job.folder, {"stage": job.stage.name, "seconds": 1.0})

    recipes = dict(load(tiny.write(tmp_path)))
    jobs, run_dir = plan(recipes, tmp_path / "run"), tmp_path / "run"
    finished(run_dir, jobs)
    assert begun_anew(run_dir, plan(recipes, run_dir)) == []
    others = [replace(job, folder=job.folder.with_name(f"{job.folder.name}0")) for job in jobs]
    told = begun_anew(run_dir, others)
    assert [line.partition(": ")[0] for line in told] == ["matched/encoder", "kl/tokenizer"]
    assert "begins anew, as its data or a plugin have changed; " in told[1]
    assert told[1].endswith(f"{run_dir}/stages/{(run_dir / 'kl/tokenizer').resolve().name} is finished, and not used")
    new = dict(load(tiny.write(tmp_path, tokenizer__learning_rate=0.5, encoder__steps=3)))
    assert begun_anew(run_dir, plan(new, run_dir)) == [], "which was asked for"


def test_a_run_and_a_dry_run_say_so(tmp_path, capsys, monkeypatch):
    count_only(monkeypatch)
    interrupted(tmp_path, losses__l1=0.5)
    recipes = load(tmp_path / "recipe.yaml")
    print_plan(recipes, Machine.here())
    monkeypatch.setattr(pipeline, "_run", lambda *_: None)
    pipeline.run(recipes, tmp_path / "run")
    out = "".join(capsys.readouterr().out.split())
    assert out.count("kl/tokenizer:beginsanew,aslosses.l1is0.5andwas1.0;") == 2
    pipeline.run(recipes, tmp_path / "run")
    assert "anew" not in capsys.readouterr().out, "links and recipes are of this one now"


@pytest.mark.parametrize("over", [{}, {"run__save_every": 5}, {"generator__steps": 7}])
def test_nothing_is_said_where_the_stage_goes_on(tmp_path, over):
    assert begun_anew(tmp_path / "run", interrupted(tmp_path, **over)) == []


def test_what_killed_processes_left_is_swept_at_the_next_start(tmp_path, recipes):
    run_dir, names = tmp_path / "run", list(recipes)
    left = (
        "variants.json.12.part",
        "kl/recipe.yaml.12.part",
        "kl/pipeline.12.old.part",
        "kl/pipeline/README.md.3.part",
        "kl/pipeline/pictures/1.png.3.part",
    )
    for name in left:
        (run_dir / name).mkdir(parents=True)
        (run_dir / name / "x").touch()
    others = ("mine.part", "stages/tokenizer-1/a.12.part")  # of somebody, and of a process that may be at work
    for name in others:
        (run_dir / name).mkdir(parents=True)
    with claimed(run_dir, recipes, [], names):
        assert not any((run_dir / name).exists() for name in left)
        assert all((run_dir / name).exists() for name in others)


def test_a_link_is_there_while_another_takes_its_place(tmp_path, monkeypatch):
    """Processes that begin at once read the links that one of them replaces."""
    link, make = tmp_path / "tokenizer", Path.symlink_to
    point(link, tmp_path / "stages/tokenizer-1")

    def looks(path, target):
        assert link.readlink() == Path("stages/tokenizer-1")
        make(path, target)

    monkeypatch.setattr(Path, "symlink_to", looks)
    point(link, tmp_path / "stages/tokenizer-2")
    assert link.readlink() == Path("stages/tokenizer-2")
    assert [*tmp_path.iterdir()] == [link]


def test_a_pipeline_of_earlier_settings_goes_when_the_links_change(tmp_path, recipes, capsys):
    """`dmvae encode --tokenizer RUN/VARIANT/pipeline/vae` would take the old tokenizer for that of the new settings."""
    run_dir, own = tmp_path / "run", {"kl": recipes["kl"]}
    jobs = {job.stage.name: job for job in plan(own, run_dir)}
    (run_dir / "kl/pipeline/vae").mkdir(parents=True)
    write_source(run_dir / "kl/pipeline", {name: jobs[name].folder.name for name in ("latents", "generator")})
    for same in (own, {"kl": dataclasses.replace(recipes["kl"], evaluate=None)}):
        with claimed(run_dir, same, plan(same, run_dir), ["kl"]):
            assert (run_dir / "kl/pipeline").exists()
    other = {"kl": dataclasses.replace(recipes["kl"], seed=1)}
    with claimed(run_dir, other, plan(other, run_dir), ["kl"]):
        assert not (run_dir / "kl/pipeline").exists()
    assert "kl/pipeline: removed, it was of earlier settings" in " ".join(capsys.readouterr().out.split())


def test_a_table_of_another_recipe_is_not_replaced_without_a_word(tmp_path, recipes, capsys):
    run_dir, names = tmp_path / "run", list(recipes)
    one = {"main": dataclasses.replace(recipes["kl"], name="other")}
    for changed, variants, held in (
        (recipes, [*names, "more"], ""),  # an edit of the recipe
        (recipes, ["kl"], "tiny (variants matched, kl)"),
        (one, ["main"], "tiny (variants matched, kl)"),
    ):
        run_dir.mkdir(exist_ok=True)
        write_summary(plan(recipes, run_dir), run_dir)
        with claimed(run_dir, changed, [], variants):
            out = " ".join(capsys.readouterr().out.split())
            assert (f"run held {held}: its summary and report are replaced" in out) if held else not out
    (run_dir / "summary.json").write_text("{")
    with claimed(run_dir, recipes, [], names):
        assert capsys.readouterr().out == ""


def test_no_table_is_written_over_another_recipes_links(tmp_path, recipes):
    jobs = plan({"kl": recipes["kl"]}, tmp_path / "run")
    (tmp_path / "run/kl").mkdir(parents=True)
    (tmp_path / "run/kl" / jobs[0].stage.name).symlink_to("../stages/tokenizer-of-another")
    with pytest.raises(ValueError, match="another recipe has been run there meanwhile"):
        finish(jobs, tmp_path / "run")
    assert not (tmp_path / "run/summary.json").exists()
