"""Snapshots: networks of earlier steps are kept, and sampled from."""

import json

import pytest
import torch
from safetensors.torch import load_file

import tiny
from dmvae import config as configs
from dmvae import pipeline
from dmvae.inputs import snapshot
from dmvae.jobs import plan
from dmvae.library import Run
from dmvae.recipe import load
from dmvae.report.pipelines import write_pipelines
from dmvae.stages.generator import GeneratorStage, GeneratorTraining
from dmvae.stages.tokenizer import TokenizerStage

FAST = {"generator__learning_rate": 1e-2, "generator__ema": 0.5}
ROWS = {"early": {"sample": {"snapshot": 2}}, "middle": {"sample": {"snapshot": 3}}, "last": {}}
WEIGHTS = "generator/diffusion_pytorch_model.safetensors"


def rows(folder, keep_at=(2, 3), **over):
    """The recipe of one training with a row for each of its snapshots and one for its end."""
    kl = tiny.RECIPE["variants"]["kl"]
    variants = {name: configs.merge(kl, row) for name, row in ROWS.items()}
    return tiny.write(folder, variants=variants, generator__keep_at=list(keep_at), **(FAST | over))


def same(one, two):
    return all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.slow
def test_one_training_gives_a_row_for_each_snapshot(tmp_path):
    jobs = tiny.run(rows(tmp_path))
    run_dir = tmp_path / "run"
    (folder,) = run_dir.glob("stages/generator-*")
    kept = {step: load_file(folder / f"snapshots/step-{step:08d}" / WEIGHTS) for step in (2, 3)}
    assert {f.name for f in folder.glob("snapshots/*")} == {"step-00000002", "step-00000003"}
    (tmp_path / "short").mkdir()
    tiny.run(tiny.write(tmp_path / "short", generator__steps=3, **FAST), "kl", until="generator")
    assert same(kept[3], load_file(next(tmp_path.glob("short/run/stages/generator-*")) / WEIGHTS))
    found = [json.loads((job.folder / "metrics.json").read_text()) for job in jobs if job.stage.name == "evaluate"]
    for figure in ("gfd", "generator_loss"):
        assert len({row[figure] for row in found}) == 3
    write_pipelines(jobs, run_dir)
    for name, wanted in (("early", kept[2]), ("middle", kept[3]), ("last", load_file(folder / WEIGHTS))):
        assert same(wanted, Run(run_dir).pipeline(name).transformer.state_dict()), f"{name}'s pipeline made its samples"


def test_steps_that_a_finished_training_has_not_kept_are_told(tmp_path, capsys):
    recipe = tiny.write(tmp_path, generator__keep_at=[2], **FAST)
    tiny.run(recipe, "kl", until="generator")
    asked = tiny.write(tmp_path, generator__keep_at=[1, 2], **FAST)
    capsys.readouterr()
    tiny.run(asked, "kl", until="generator")
    told = " ".join(capsys.readouterr().out.split())
    assert "generator: skip (finished)" in told
    assert "1 of generator.keep_at came before that was asked and were not kept; remove" in told


@pytest.mark.slow
@pytest.mark.parametrize(
    "matching",
    [
        {"noise": "none"},
        {"noise": "assigned", "noise_groups": 4, "noise_bank": 16, "noise_width": 8, "balance": "gradient"},
        {"noise": "fixed", "noise_std": 0.5},
    ],
    ids=lambda matching: matching["noise"],
)
def test_a_snapshot_changes_nothing_in_the_training_that_goes_on(tmp_path, matching):
    found = {}
    for keep_at in ([], [4, 8]):
        over = {f"matching__{name}": value for name, value in matching.items()}
        path = tiny.write(tmp_path, run__dir=str(tmp_path / f"run{len(keep_at)}"), **over, matching__keep_at=keep_at)
        tiny.run(tiny.begin(path, "reference", "matched"), "matched", only="matching")
        (folder,) = tmp_path.glob(f"run{len(keep_at)}/stages/matching-*")
        weights = "autoencoder/diffusion_pytorch_model.safetensors"
        found[len(keep_at)] = load_file(folder / weights)
        for step in keep_at:
            config = f"snapshots/step-{step:08d}/autoencoder/config.json"
            drawn = json.loads((folder / config).read_text()).get("drawn", False)
            assert drawn == (matching["noise"] == "fixed"), "a snapshot is what the finished stage would be"
    assert same(found[0], found[2])
    assert same(found[2], load_file(folder / "snapshots/step-00000008" / weights))


@pytest.mark.slow
def test_samples_come_from_the_step_that_is_asked_for(tmp_path):
    kept = FAST | {"run__keep_every": 3}
    tiny.run(tiny.write(tmp_path, **kept), "kl", until="generator")
    (generator,) = tmp_path.glob("run/stages/generator-*")
    early, late, final = (
        load_file(generator / folder / WEIGHTS)
        for folder in ("snapshots/step-00000003", "snapshots/step-00000006", ".")
    )
    assert same(late, final)
    assert not same(early, final)
    found = {}
    for step in (None, 3, 6):
        recipes = {"kl": load(tiny.write(tmp_path, **kept, sample__snapshot=step))["kl"]}
        jobs = pipeline.run(recipes, tmp_path / "run", "sample")
        folder = next(job.folder for job in jobs if job.stage.name == "sample")
        found[step] = load_file(folder / "guidance-1/samples-00000.safetensors")["images"]
    assert torch.equal(found[None], found[6])
    assert not torch.equal(found[3], found[6])
    recipes = {"kl": load(tiny.write(tmp_path, **kept, generator__keep_at=[4], sample__snapshot=4))["kl"]}
    with pytest.raises(ValueError, match=r"of step 4 was not kept, there are those of 3, 6; remove .*generator-\w+ to"):
        pipeline.run(recipes, tmp_path / "run", "sample")


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"sample__snapshot": 4}, r"step 4 is none of those that are kept: generator.keep_at is \[2, 3\], .*add it"),
        ({"sample__snapshot": 12, "run__keep_every": 4}, "step 12 is none of those that are kept: .*generator.steps 6"),
        (
            {"variants__last__generator__keep_at": [2]},
            r"last: generator.keep_at is \[2\], and \[2, 3\] in variant early",
        ),
        (
            {"variants__last__run__keep_every": 2},
            "last: run.keep_every is 2, and 0 in variant early, which shares the training of stage tokenizer",
        ),
    ],
)
def test_a_step_that_nothing_keeps_is_told_before_any_stage_runs(tmp_path, over, message):
    recipes = load(rows(tmp_path, **over))
    with pytest.raises(ValueError, match=message):
        pipeline.run(recipes, tmp_path / "run")
    assert not list(tmp_path.glob("run/stages/*"))


@pytest.mark.parametrize(
    ("stage", "steps", "message"),
    [
        ("generator", [3, 2], r"generator: keep_at: \[3, 2\] does not ascend"),
        ("generator", [2, 2], r"keep_at: \[2, 2\] does not ascend"),
        ("tokenizer", [2, 7], "keep_at: step 7 comes after the last of 6"),
        ("matching", [0, 2], r"matching.keep_at\[0\]: expected a whole number, 1 to 10\^9, got 0"),
        ("generator", 3, "generator.keep_at: expected a list, got 3"),
    ],
)
def test_steps_that_are_not_steps_are_told_as_the_recipe_is_read(tmp_path, stage, steps, message):
    path = tiny.write(tmp_path, **{f"{stage}__keep_at": steps, f"{stage}__steps": 6})
    with pytest.raises(ValueError, match=message):
        load(path)


def test_a_stage_that_trains_nothing_is_told_in_its_first_step(tmp_path, monkeypatch):
    monkeypatch.setattr(TokenizerStage, "updates", lambda self, networks, batch, rng: iter(()))
    with pytest.raises(ValueError, match="stage tokenizer: updates yielded no Update; give at least one a step"):
        tiny.run(tiny.write(tmp_path), "kl", until="tokenizer")
    assert not [*tmp_path.glob("run/stages/tokenizer-*/done.json")]


@pytest.mark.slow
def test_a_step_may_be_added_while_training_has_not_come_to_it(tmp_path, capsys):
    path = tiny.write(tmp_path, generator__keep_at=[2], run__save_every=3)
    with tiny.cut(GeneratorStage, 4):
        tiny.run(path, "kl", until="generator")
    asks = tiny.write(tmp_path, generator__keep_at=[1, 2, 3, 5], sample__snapshot=1)
    with pytest.raises(
        ValueError, match=r"sample\.snapshot: the generator is at step 3, and that of step 1 was not kept"
    ):
        tiny.run(asks, "kl")
    tiny.run(tiny.write(tmp_path, generator__keep_at=[1, 2, 3, 5], sample__snapshot=3), "kl", "generator")
    (folder,) = tmp_path.glob("run/stages/generator-*")
    assert [f.name for f in sorted(folder.glob("snapshots/*"))] == [f"step-0000000{step}" for step in (2, 3, 5)]
    out = capsys.readouterr().out
    assert "resumes at step 3 of 6" in out
    assert "1 of keep_at or run.keep_every came before that and were not kept" in out.replace("\n", " ")


def test_a_snapshot_of_which_a_kill_left_a_part_is_written_again(tmp_path):
    """It was asked for at the step from which the training resumes, and the next kill came while it was written."""
    with tiny.cut(GeneratorStage, 4):
        tiny.run(tiny.write(tmp_path, run__save_every=3), "kl", until="generator")
    (folder,) = tmp_path.glob("run/stages/generator-*")
    (folder / snapshot(3)).mkdir(parents=True)
    tiny.run(tiny.write(tmp_path, generator__keep_at=[3]), "kl", "generator")
    assert (folder / snapshot(3) / "generator/config.json").is_file()


def test_a_snapshot_more_changes_no_address(tmp_path):
    with_some, without = (plan(load(rows(tmp_path, steps)), tmp_path) for steps in ((2, 3), ()))
    assert [job.folder for job in with_some] == [job.folder for job in without]
    config = GeneratorTraining(steps=6, keep_at=(2,))
    assert configs.read(GeneratorTraining, configs.plain(config)) == config


def test_the_paper_s_three_rows_are_of_one_training():
    recipes = load("imagenet256")
    assert {name: recipe.section("sample").snapshot for name, recipe in recipes.items()} == {
        "epochs64": 80000,
        "epochs400": 500000,
        "epochs800": None,
    }
    first, *others = recipes.values()
    assert all(other.section("generator") == first.section("generator") for other in others)
    generator, images = first.section("generator"), 1_281_167
    epochs = [step * generator.batch_size / images for step in (*generator.keep_at, generator.steps)]
    assert epochs == pytest.approx([64, 400, 800], rel=0.002)
