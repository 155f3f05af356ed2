"""A whole run: skipping, redoing, resuming, plugins, and what stops it."""

import json
import random
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

import processes
import tiny
from dmvae import cli, datasets, pipeline
from dmvae.datasets.shapes import Shapes
from dmvae.jobs import jobs_of, plan, record
from dmvae.recipe import load
from dmvae.runtime.files import locked
from dmvae.stages import STAGES
from dmvae.training.trainer import Trainer
from plugin_source import PLUGIN

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run through the command line: (recipe file, run folder, what it printed)."""
    folder = tmp_path_factory.mktemp("whole")
    path = tiny.write(folder)
    result = processes.command("run", str(path))
    assert result.returncode == 0, result.stderr
    return path, folder / "run", result.stdout


def test_a_run_leaves_table_report_and_artifacts(finished):
    _, run_dir, out = finished
    summary = json.loads((run_dir / "summary.json").read_text())
    for method in ("matched", "kl"):
        assert {"psnr", "ssim", "rfd", "gfd", "grfd", "knn", "linear_probe", "seconds"} <= set(
            summary["methods"][method]
        )
    assert set(summary["seconds"]) == {stage.name for stage in STAGES}
    assert (run_dir / "report.html").stat().st_size > 10_000
    assert "report.html" in out
    kept = [path.parent.parent.name.partition("-")[0] for path in run_dir.glob("stages/*/checkpoints/step-*")]
    assert sorted(kept) == ["generator", "generator", "reference"], "a last state each, to train for more steps"


def test_the_artifacts_load_in_one_line(finished):
    from dmvae import Autoencoder, LightningDiT

    _, run_dir, _ = finished
    autoencoder = Autoencoder.from_pretrained(run_dir / "matched/latents/autoencoder")
    z = autoencoder.encode(torch.zeros(2, 3, 12, 12)).latents
    assert z.shape == (2, 4, 3, 3)
    assert autoencoder.decode(z).sample.shape == (2, 3, 12, 12)
    generator = LightningDiT.from_pretrained(run_dir / "kl/generator/generator")
    assert generator(z, torch.zeros(2), torch.tensor([0, 3])).shape == z.shape


def test_latents_are_normalised_by_what_the_tokenizer_carries(finished):
    from dmvae import Autoencoder
    from dmvae.latents.store import LatentSet

    _, run_dir, _ = finished
    latents = LatentSet(run_dir / "matched/latents/latents")
    z, _ = latents.__getitems__(range(len(latents)))
    assert torch.allclose(z.mean((0, 2, 3)), torch.zeros(4), atol=1e-4)
    assert torch.allclose(z.std((0, 2, 3)), torch.ones(4), atol=1e-3)
    autoencoder = Autoencoder.from_pretrained(run_dir / "matched/latents/autoencoder")
    assert torch.equal(autoencoder.latent_mean, latents.mean)


def test_a_second_run_does_nothing(finished):
    path, run_dir, _ = finished
    before = {f: f.stat().st_mtime_ns for f in run_dir.glob("stages/*/*") if f.is_file()}
    result = processes.command("run", str(path), **processes.PLAIN)
    assert result.returncode == 0
    assert result.stdout.count("skip (finished") == 14
    assert "run (new" not in result.stdout
    assert {f: f.stat().st_mtime_ns for f in run_dir.glob("stages/*/*") if f.is_file()} == before


def test_a_copy_of_a_run_is_reported_where_its_data_is_not(finished, tmp_path, monkeypatch, capsys):
    _, run_dir, _ = finished
    copy = tmp_path / "copy"
    shutil.copytree(run_dir, copy, symlinks=True)

    def gone(self, split):
        raise ValueError("the data is gone")

    monkeypatch.setattr(Shapes, "build", gone)
    monkeypatch.setattr(datasets, "_open", {})
    cli.main(["report", str(copy)])
    assert "report:" in capsys.readouterr().out
    first, second = (json.loads((folder / "summary.json").read_text()) for folder in (run_dir, copy))
    assert first["methods"] == second["methods"]
    assert {stage["variant"] for stage in second["stages"]} == {"matched", "kl"}
    assert (copy / "report.html").stat().st_size > 0.5 * (run_dir / "report.html").stat().st_size


def test_a_copy_of_a_run_without_its_links(finished, tmp_path):
    _, run_dir, _ = finished
    copy = tmp_path / "copy"
    shutil.copytree(run_dir, copy, symlinks=False)
    with pytest.raises(ValueError, match="copy a run with its links"):
        jobs_of(copy)


def test_a_run_that_stands_at_its_second_variant_shows_nothing_of_an_older_recipe(finished, tmp_path):
    """The links follow the recipe that was run last, also those of stages that it has not come to."""
    path, run_dir, _ = finished
    copy = tmp_path / "copy"
    shutil.copytree(run_dir, copy, symlinks=True)
    recipes = load(path, {"seed": 5, "run.dir": str(copy), "name": "Möwen"})
    record(recipes, plan(recipes, copy), copy, list(recipes))
    assert {job.state for job in jobs_of(copy)} == {"new"}
    assert "name: Möwen\n" in (copy / "matched/recipe.yaml").read_text()


def test_a_stage_that_cannot_run_yet_leaves_the_run_as_it_was(finished, tmp_path):
    """A mistyped option of `dmvae sample` took all finished stages out of the report."""
    path, run_dir, _ = finished
    copy = tmp_path / "copy"
    shutil.copytree(run_dir, copy, symlinks=True)
    with pytest.raises(ValueError, match=r"reads the stage 'tokenizer'.* which has not been run with this recipe"):
        pipeline.run(load(path, {"seed": 5, "run.dir": str(copy)}), copy, only="latents")
    assert {job.state for job in jobs_of(copy)} == {"finished"}


def states(path, **over):
    return {(j.variant, j.stage.name): j.state for j in plan(load(path, over), Path(load(path)["kl"].run.dir))}


def test_a_changed_field_redoes_its_stage_and_those_after_it(finished):
    path, _, _ = finished
    changed = states(path, **{"matching.weight": 11.0})
    new = {name for (variant, name), state in changed.items() if variant == "matched" and state == "new"}
    assert new == {"matching", "decoder", "latents", "generator", "sample", "evaluate"}
    assert all(state == "finished" for (variant, _), state in changed.items() if variant == "kl")


def test_how_a_run_is_run_changes_nothing(finished):
    path, _, _ = finished
    assert set(states(path, **{"run.save_every": 7, "run.log_every": 1}).values()) == {"finished"}


def test_data_of_other_content_is_another_run(finished):
    path, _, _ = finished
    assert "finished" not in set(states(path, **{"data.seed": 1}).values())


def test_other_test_images_are_measured_anew_and_nothing_else(finished, monkeypatch):
    path, _, _ = finished
    build = Shapes.build

    def other(self, split):
        data = build(self, split)
        if split == "test":
            data.fingerprint = "other"
        return data

    monkeypatch.setattr(Shapes, "build", other)
    monkeypatch.setattr(datasets, "_open", {})
    assert {name for (_, name), state in states(path).items() if state == "new"} == {"evaluate"}


def test_a_folder_of_images_may_move(tmp_path):
    path = tiny.write(tmp_path, variants={"kl": tiny.RECIPE["variants"]["kl"]})
    folders = []
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        for i in range(30):
            Image.new("RGB", (12, 12), (9 * i, 0, 0)).save(tmp_path / name / f"{i}.png")
        data = {"type": "image_folder", "size": 12, "root": str(tmp_path / name), "cache": "none"}
        folders.append([job.folder for job in plan(load(path, {"data": data}), tmp_path)])
    assert folders[0] == folders[1]


def test_rewritten_files_that_a_recipe_names_redo_what_reads_them(tmp_path):
    weights, plugin = tmp_path / "weights.safetensors", tmp_path / "mine.py"
    encoder = {"type": "timm", "model": "vit_tiny_patch16_224", "patch_size": 4, "checkpoint": str(weights)}
    kl = tiny.RECIPE["variants"]["kl"] | {"autoencoder.encoder": encoder}
    path = tiny.write(tmp_path, encoder=None, plugins=[str(plugin)], variants={"kl": kl, "matched": {}})
    plugin.write_text(PLUGIN)

    def addresses(over):
        return {(j.variant, j.stage.name): j.folder for j in plan(load(path, over), tmp_path)}

    for file, text, variant, over, redone in (
        (weights, "other", "kl", {}, "tokenizer"),
        (plugin, PLUGIN + "# other", "matched", {"matching.objective": {"type": "moment"}}, "matching"),
    ):
        weights.touch()
        before = addresses(over)
        file.write_text(text)
        new = {key for key, folder in addresses(over).items() if folder != before[key]}
        assert {name for v, name in new if v == variant} >= {redone, "latents", "generator", "sample", "evaluate"}
        assert not {name for v, name in new if v == variant} & {"reference"}
        assert all(v == variant for v, _ in new)


def test_killed_at_random_moments_it_ends_in_the_same_weights(finished, tmp_path):
    """kill -9, six times, each followed by the same command; `make torture` does it a hundred times."""
    _, whole, _ = finished
    path = tiny.write(tmp_path, run__save_every=3)
    rng = random.Random(0)
    kills = 0
    while kills < 6:
        process = processes.Command("run", str(path), **processes.PLAIN)
        # Counted in files, so that a kill comes as far on on a fast machine and a slow one.
        enough = len(list(tmp_path.glob("run/stages/*/*"))) + rng.randint(1, 7)
        while not process.ended() and len(list(tmp_path.glob("run/stages/*/*"))) < enough:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.05))
        if process.ended():
            break
        process.signal(signal.SIGKILL)
        process.result()
        kills += 1
    assert kills >= 5, "the run ended too soon for the test to mean anything"
    last = processes.command("run", str(path), **processes.PLAIN)
    assert last.returncode == 0
    ours, theirs = tiny.weights(tmp_path / "run"), tiny.weights(whole)
    assert set(ours) == set(theirs)
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_processes_side_by_side_share_the_stages_out(finished, tmp_path):
    _, whole, _ = finished
    path = tiny.write(tmp_path, evaluate=None)
    both = [processes.Command("run", str(path), **processes.PLAIN) for _ in range(2)]
    results = [process.result() for process in both]
    assert [result.returncode for result in results] == [0, 0], results
    ran = [line.split(":")[0] for result in results for line in result.stdout.splitlines() if "run (new)" in line]
    assert len(ran) == len(set(ran)) == 12, "every stage ran in exactly one of them"
    ours, theirs = tiny.weights(tmp_path / "run"), tiny.weights(whole)
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []


def test_a_lock_is_one_holders_at_a_time(tmp_path):
    with locked(tmp_path) as first, locked(tmp_path, wait=False) as second:
        assert first
        assert not second
    with locked(tmp_path, wait=False) as again:
        assert again


def test_interrupt_saves_and_says_so(tmp_path):
    path = tiny.write(tmp_path, tokenizer__steps=100000, run__save_every=100000)
    process = processes.Command("run", str(path), "--variant", "kl")
    while not list(tmp_path.glob("run/stages/tokenizer*/log.jsonl")):
        assert not process.ended(), process.result().stderr
        time.sleep(0.05)
    time.sleep(0.5)
    process.signal(signal.SIGTERM)
    result = process.result(timeout=30)  # after as long torchrun and SLURM kill
    assert result.returncode == 130
    assert "the state was saved" in result.stderr
    (saved,) = tmp_path.glob("run/stages/tokenizer*/checkpoints/*")
    assert re.fullmatch(r"step-\d+", saved.name), "it is not finished"


def test_killed_before_a_stage_counts_as_finished_it_goes_on_from_its_last_state(tmp_path, monkeypatch, capsys):
    path = tiny.write(tmp_path, tokenizer__steps=6, run__save_every=4)
    monkeypatch.setattr(pipeline, "_finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        tiny.run(path, "kl", "tokenizer")
    monkeypatch.undo()
    tiny.run(path, "kl", "tokenizer")
    assert "resumes at step 4 of 6" in capsys.readouterr().out
    assert not list(tmp_path.glob("run/stages/*/checkpoints"))


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    path = tiny.write(tmp_path, tokenizer__learning_rate=1000, tokenizer__clip=0, tokenizer__steps=40)
    result = processes.command("run", str(path), "--variant", "kl")
    assert result.returncode == 3
    assert "became" in result.stderr
    assert (
        "give a lower --tokenizer.learning_rate or a longer --tokenizer.warmup, with which the stage" in result.stderr
    )
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("what", ["weights", "buffers"])
def test_a_last_update_that_leaves_no_numbers_finishes_no_stage(tmp_path, monkeypatch, what):
    path, move = tiny.write(tmp_path, losses__adversarial={"layers": 1, "start": 0, "norm": "batch"}), Trainer.move

    def spoilt(self, name):
        figures = move(self, name)
        if self.step == self.config.steps - 1:
            buffers = dict(self.networks.discriminator.named_buffers())
            held = buffers["main.3.running_mean"] if what == "buffers" else next(self.networks.autoencoder.parameters())
            held.data[(0,) * held.ndim] = float("nan")
        return figures

    monkeypatch.setattr(Trainer, "move", spoilt)
    with pytest.raises(FloatingPointError, match="became infinite or NaN by step 6"):
        tiny.run(path, "kl", "tokenizer")
    assert not list(tmp_path.glob("run/stages/tokenizer*/done.json"))
    monkeypatch.undo()
    tiny.run(path, "kl", "tokenizer")  # of its checkpoint, which is good
    assert list(tmp_path.glob("run/stages/tokenizer*/done.json"))


def test_a_reference_in_closed_form_trains_no_teacher(tmp_path):
    path = tiny.write(
        tmp_path, reference__distribution={"type": "gaussian"}, matching__model=tiny.DIT, matching__student_warmup=2
    )
    tiny.run(path, "matched", until="matching")
    folder = tmp_path / "run/matched/reference"
    assert not (folder / "teacher").exists()
    assert (tmp_path / "run/matched/matching/student").exists()


def test_the_headline_of_a_variant_says_what_is_done_and_what_is_left(finished):
    path, run_dir, out = finished
    assert "[1/2] matched: 0 of 14 stages finished\n" in out
    assert "[2/2] kl: 9 of 14 stages finished, about 0 min left\n" in out
    assert pipeline.headline(plan(load(path), run_dir), "kl") == r"[2/2] kl: 14 of 14 stages finished"
