"""A recipe's seeds: one variant each, and a table with their mean and spread."""

import gc
import json
import re
import weakref

import pytest

import tiny
from dmvae import cli, pipeline
from dmvae.fitting import fit
from dmvae.jobs import plan
from dmvae.recipe import load
from dmvae.report.summary import over_seeds
from dmvae.runtime.done import write_done
from dmvae.stages.tokenizer import TokenizerStage
from dmvae.training import loop
from dmvae.training.health import Diverged
from dmvae.training.trainer import Trainer

WITHOUT = dict.fromkeys(("encoder", "reference", "matching", "decoder", "generator", "sample"))


def test_each_seed_is_a_variant_of_its_own(tmp_path):
    path = tiny.write(tmp_path, seeds={"matched": [0, 5]})
    recipes = load(path)
    assert {name: recipe.seed for name, recipe in recipes.items()} == {"matched@0": 0, "matched@5": 5, "kl": 0}
    assert list(load(tiny.write(tmp_path, seeds=[3, 4]))) == ["matched@3", "matched@4", "kl@3", "kl@4"]


def test_seeds_asked_of_one_variant_leave_the_others_theirs(tmp_path):
    path = tiny.write(tmp_path, seeds=[0, 1])
    assert list(load(path, {"seeds.kl": [5]})) == ["matched@0", "matched@1", "kl@5"]
    assert list(load(path, {"seeds": [2]})) == ["matched@2", "kl@2"]
    assert list(load(path, {"seeds": None})) == ["matched", "kl"]


@pytest.mark.parametrize(
    ("asked", "planned"),
    [
        (["matched"], ["matched@0", "matched@5"]),
        (["kl", "matched@5"], ["kl", "matched@5"]),
        (["matched@5", "matched"], ["matched@5", "matched@0"]),
    ],
)
def test_a_method_s_name_stands_for_all_its_seeds(tmp_path, monkeypatch, asked, planned):
    path, found = tiny.write(tmp_path, seeds={"matched": [0, 5]}), []
    monkeypatch.setattr("dmvae.commands.run.print_plan", lambda recipes, *_: found.append(list(recipes)))
    cli.main(["run", str(path), "--dry-run", *(word for name in asked for word in ("--variant", name))])
    assert found == [planned]


@pytest.mark.parametrize(
    ("seeds", "message"),
    [
        ({"matchd": [0]}, "seeds: no variant is called 'matchd'; did you mean 'matched'"),
        (["one"], "seeds: expected a list of whole numbers, got"),
        ([], "seeds: expected a list of whole numbers, got"),
        ({"matched": [3, 4], "matched@4": [1]}, "seeds: no variant is called 'matched@4'"),
    ],
)
def test_a_mistake_in_the_seeds(tmp_path, seeds, message):
    with pytest.raises(ValueError, match=message):
        load(tiny.write(tmp_path, seeds=seeds))


def test_a_seed_takes_no_variant_s_name(tmp_path):
    variants = {"a@1": {"seed": 9}, "a": {}}
    with pytest.raises(ValueError, match="seeds: 'a@1' is a variant already"):
        load(tiny.write(tmp_path, variants=variants, seeds={"a": [0, 1]}))


def test_what_is_asked_of_a_variant_reaches_its_seeds_and_no_variant_of_a_longer_name(tmp_path):
    variants = {"a": {}, "a@wide": {}, "b": {}}
    path = tiny.write(tmp_path, variants=variants, seeds={"b": [3]}, generator__batch_size=64)
    asked = {f"variants.{name}.generator.batch_size": 96 for name in ("a", "b")}
    recipes = load(path, asked)
    assert [recipe.generator.batch_size for recipe in recipes.values()] == [96, 64, 96]
    fitted, _ = fit(recipes, asked)
    assert [recipe.generator.batch_size for recipe in fitted.values()] == [96, 32, 96], "of 48 images"


def test_mean_and_spread_over_the_seeds_of_a_method():
    rows = {"a@0": {"gfd": 1.0, "psnr": 5.0}, "a@1": {"gfd": 3.0}, "b": {"gfd": 9.0}, "c@0": {"gfd": 2.0}}
    assert over_seeds(rows) == {"a": {"count": 2, "mean": {"gfd": 2.0}, "spread": {"gfd": 2**0.5}}}
    alike = {"a@0": {"psnr": 0.23124999999999998}, "a@1": {"psnr": 0.23125}}  # the same, summed in another order
    assert over_seeds(alike)["a"]["spread"] == {"psnr": 0.0}


@pytest.mark.slow
def test_the_report_is_of_the_variants_that_the_recipe_has(tmp_path, plain_report):
    """Those run one by one have their place in the table, in the recipe's order; one that was taken out has not."""
    over = {"variants": {name: {"seed": seed} for name, seed in (("a", 0), ("b", 1), ("c", 2))}}
    shared = WITHOUT | {"tokenizer__train_encoder": True}
    path = tiny.write(tmp_path, **over, **shared)
    for name in ("c", "b", "a"):
        cli.main(["run", str(path), "--variant", name])
    summary = tmp_path / "run/summary.json"
    assert list(json.loads(summary.read_text())["methods"]) == ["a", "b", "c"]
    del over["variants"]["b"]
    cli.main(["run", str(tiny.write(tmp_path, **over, **shared)), "--variant", "a"])
    assert list(json.loads(summary.read_text())["methods"]) == ["a", "c"]


def test_a_training_that_diverges_names_its_variant_and_how_to_change_that_alone(tmp_path, monkeypatch):
    def diverges(job):
        raise Diverged("encoder: loss became nan")

    monkeypatch.setattr(pipeline, "execute", diverges)
    path = tiny.write(tmp_path, seeds={"matched": [0, 1]}, variants={"matched": {}})
    changes = r"; --variants\.matched\.SECTION\.FIELD changes this variant alone"
    told = r"^matched@0/encoder: loss became nan" + changes + r" \| matched@1/encoder: loss became nan" + changes + "$"
    with pytest.raises(FloatingPointError, match=told):
        tiny.run(path)
    with pytest.raises(FloatingPointError, match=r"^encoder: loss became nan$"):
        tiny.run(path, "matched@1")


def test_other_variants_end_and_are_in_the_table_though_one_diverges(tmp_path, capsys):
    wild = {"matching": {"learning_rate": 1e3, "warmup": 0}}
    path = tiny.write(tmp_path, variants={"wild": wild, "matched": {}}, evaluate=None)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["study", str(path)])
    printed = capsys.readouterr()
    assert stopped.value.code == 3
    assert re.match(r"dmvae: wild/matching: .*; --variants\.wild\.SECTION\.FIELD changes this variant", printed.err)
    assert "it goes on with matched\n" in printed.out
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["not_ended_at"] == {"wild": "matching (begun)"}
    assert list(summary["methods"]) == ["wild", "matched"]
    assert (tmp_path / "run/report.html").exists()
    assert (tmp_path / "run/matched/pipeline").is_dir()
    # one training of the encoder serves both
    assert [job.variant for job in plan(load(path), tmp_path / "run") if job.stage.name == "encoder" and job.finished]


def test_a_training_that_diverged_leaves_its_memory_to_the_next(tmp_path, monkeypatch):
    made, left = [], []

    def built(stage):
        left.append([trainer for of in made if (trainer := of()) is not None])
        trainer = Trainer(stage)
        made.append(weakref.ref(trainer))
        return trainer

    def diverges(self, networks, batch, rng):
        raise FloatingPointError("loss became nan")

    monkeypatch.setattr(loop, "Trainer", built)
    monkeypatch.setattr(TokenizerStage, "updates", diverges)
    kept = WITHOUT | {"evaluate": None, "tokenizer": {"train_encoder": True}}
    path = tiny.write(tmp_path, variants={"a": kept, "b": kept | {"seed": 1}})
    gc.disable()
    try:
        with pytest.raises(FloatingPointError, match=r"a/tokenizer: .* \| b/tokenizer: "):
            tiny.run(path)
    finally:
        gc.enable()
    assert left == [[], []]


def test_what_needs_a_training_that_diverged_is_not_run(tmp_path, monkeypatch, capsys):
    """Of two variants that share it, neither; in whatever order the stages come."""
    ran = []

    def diverges(job):
        if job.stage.name == "tokenizer" and job.variant != "kl":
            raise Diverged("tokenizer: loss became nan")
        ran.append((job.variant, job.stage.name))
        write_done(job.folder, {"seconds": 1.0, "steps": 1})

    monkeypatch.setattr(pipeline, "execute", diverges)
    path = tiny.write(tmp_path, variants={"one": {}, "two": {"matching.steps": 9}, "kl": tiny.RECIPE["variants"]["kl"]})
    with pytest.raises(pipeline.Unended, match=r"^one/tokenizer: loss became nan") as found:
        tiny.run(path)
    assert {job.variant for job in found.value.jobs} == {"one", "two", "kl"}
    assert "it goes on with kl\n" in capsys.readouterr().out
    assert {stage for variant, stage in ran if variant != "kl"} == {"encoder"}
    assert {"tokenizer", "generator", "evaluate"} <= {stage for variant, stage in ran if variant == "kl"}


def test_processes_of_one_start_train_once_what_diverges(tmp_path, monkeypatch, capsys):
    times = []

    def diverges(job):
        times.append(job.stage.name)
        raise Diverged("encoder: loss became nan")

    monkeypatch.setattr(pipeline, "execute", diverges)
    path = tiny.write(tmp_path, variants={"main": {}})
    for start, trained in (("one", 1), ("one", 1), ("another", 2)):
        monkeypatch.setenv(pipeline.STARTED, start)
        with pytest.raises(pipeline.Unended, match=r"^encoder: loss became nan$"):
            tiny.run(path)
        assert len(times) == trained
    monkeypatch.delenv(pipeline.STARTED)
    with pytest.raises(pipeline.Unended):
        tiny.run(path)
    assert len(times) == 3
    assert capsys.readouterr().out.count("skip (diverged in another process)") == 1
