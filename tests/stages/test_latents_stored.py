"""`latents.stored`: a part of the latents is stored, for measures, and the generator encodes images in each step."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import processes
import tiny
from dmvae.checks import problems
from dmvae.commands.plan import _disk
from dmvae.datasets.image_folder import ImageFolder
from dmvae.datasets.mixed import spaced
from dmvae.inputs import Blueprint, Inputs
from dmvae.jobs import plan
from dmvae.latents.store import LatentSet
from dmvae.recipe import load
from dmvae.runtime.random import Random
from dmvae.stages.generator import GeneratorStage
from dmvae.tokenizers.adapted import load_tokenizer
from dmvae.training.counting import cost_of
from dmvae.training.data import batches
from dmvae.training.trainer import Trainer

ALONE = dict.fromkeys(("encoder", "tokenizer", "reference", "matching", "decoder", "autoencoder", "variants"))
KL = tiny.RECIPE["variants"]["kl"]
STORED = {"stored": 12}
SPREAD = 0.5


@pytest.fixture(scope="module")
def vae(tmp_path_factory) -> Path:
    """The folder of a tokenizer whose posteriors all have SPREAD."""
    return tiny.variational(tmp_path_factory.mktemp("vae"), torch.full((4,), SPREAD))


def write(folder: Path, vae: Path, **over) -> Path:
    folder.mkdir(exist_ok=True)
    given = ALONE | {"pretrained": {"type": "dmvae", "path": str(vae)}, "run__precision": "float32"}
    given |= {"sample": None, "evaluate": None, "data__flip": True, "latents": STORED}
    return tiny.write(folder, **(given | over))


def generator_of(path: Path) -> Trainer:
    tiny.run(path, only="latents")
    job = plan(load(path), path.parent / "run")[-1]
    inputs = Inputs(job.recipe, job.variant, job.folder, job.reads, torch.device("cpu"))
    return Trainer(job.stage(job.recipe.generator, inputs))


def seen_by(trainer: Trainer, monkeypatch, steps: int = 12):
    """(images [n, c, h, w], the latents of them that the generator learns from), of all steps."""
    found, seen = list(batches(trainer.stage, trainer.key, 0, steps, lambda: False)), []
    monkeypatch.setattr(trainer.networks.generator, "loss", lambda z, labels, rng: seen.append(z) or z.sum())
    for batch in found:
        list(trainer.stage.updates(trainer.networks, batch, Random(0, batch.step)))
    return torch.cat([batch.data for batch in found]), torch.cat(seen)


def test_the_generator_learns_the_latents_of_mirrored_and_plain_images(tmp_path, vae, monkeypatch):
    trainer = generator_of(write(tmp_path, vae))
    folder = trainer.inputs.reads["latents"]
    x, z = seen_by(trainer, monkeypatch)
    stored = LatentSet(folder / "latents")
    mean, std = stored.mean.view(-1, 1, 1), stored.std.view(-1, 1, 1)
    with torch.no_grad():
        known = load_tokenizer(folder / "autoencoder").encode(x).latents
    torch.testing.assert_close(z, (known - mean) / std)
    images = trainer.inputs.train_set.__getitems__(range(48))[0].float() / 127.5 - 1
    plain, mirrored = (sum(any(torch.equal(a, b) for b in of) for a in x) for of in (images, images.flip(3)))
    assert plain > 30
    assert mirrored > 30
    drawn_from = sum(any(torch.equal(b, a) or torch.equal(b, a.flip(2)) for a in x) for b in images)
    assert drawn_from == 48, "two epochs of all images, not of those that are stored"


def test_stored_are_some_of_each_class_and_statistics_theirs(tmp_path, vae):
    trainer = generator_of(write(tmp_path, vae))
    folder, images = trainer.inputs.reads["latents"], trainer.inputs.train_set
    stored, model = LatentSet(folder / "latents"), load_tokenizer(folder / "autoencoder")
    z, labels = stored.__getitems__(range(len(stored)))
    chosen = spaced(images.labels, 12)
    assert torch.equal(labels, images.labels[chosen])
    shares, all_shares = (of.bincount(minlength=3) / len(of) for of in (labels, images.labels))
    assert (shares - all_shares).abs().max() < 0.15
    with torch.no_grad():
        known = model.normalize(model.encode(images.__getitems__(chosen.tolist())[0] / 127.5 - 1).latents)
    torch.testing.assert_close(z, known)
    torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(model.latent_std, stored.std)


def test_a_drawn_tokenizer_draws_anew_in_each_step(tmp_path, vae, monkeypatch):
    trainer = generator_of(write(tmp_path, vae, latents=STORED | {"drawn": True}))
    x, z = seen_by(trainer, monkeypatch, 60)
    model = trainer.networks.tokenizer
    with torch.no_grad():
        noise = (model.denormalize(z) - model.encode(x).latent_dist.mean) / SPREAD
    assert noise.mean().abs() < 0.05
    assert abs(noise.std() - 1) < 0.05
    assert len(noise.flatten(1).unique(dim=0)) == len(noise), "images come several times, samples once"


def test_sampled_latents_stand_beside_what_the_generator_sees_or_beside_none(tmp_path, vae):
    """Samples of mirrored images and of random crops stood beside latents of plain and central ones."""
    recipe = load(write(tmp_path, vae))["main"]
    plain, crops = (replace(recipe, data=ImageFolder(root="x", size=16, resize=n)) for n in (None, 24))
    assert [(r.mirrored, r.stored_unlike) for r in (recipe, plain, crops)] == [(1, 0), (0, 0), (0, 1)]
    assert not replace(crops, latents=replace(crops.latents, stored=None)).stored_unlike


def test_it_alone_moves_and_is_kept(tmp_path, vae):
    trainer = generator_of(write(tmp_path, vae))
    networks = trainer.networks
    before = {name: value.clone() for name, value in networks.state_dict().items()}
    for batch in batches(trainer.stage, trainer.key, 0, 2, lambda: False):
        list(trainer.train_step(batch))
    now = networks.state_dict()
    assert {name.split(".")[0] for name in before if not torch.equal(before[name], now[name])} == {"generator"}
    assert not any(p.requires_grad or p.grad is not None for p in networks.tokenizer.parameters())
    assert not any(module.training for module in networks.tokenizer.modules())
    state = trainer.state_dict()
    assert set(state["networks"]) == set(state["averages"]) == set(state["optimizers"]) == {"generator"}
    held = {p for of in trainer.optimizers.values() for group in of.param_groups for p in group["params"]}
    assert held == {p for p in networks.generator.parameters() if p.requires_grad}


@pytest.mark.slow
def test_cut_and_resumed_it_ends_as_uncut(tmp_path, vae):
    weights = []
    for name in ("whole", "cut"):
        path = write(tmp_path / name, vae, latents=STORED | {"drawn": True}, run__save_every=3)
        if name == "cut":
            with tiny.cut(GeneratorStage, 5):
                tiny.run(path)
        tiny.run(path)
        weights.append(tiny.weights(path.parent / "run"))
    whole, cut = weights
    assert whole.keys() == cut.keys()
    assert all(torch.equal(value, cut[name]) for name, value in whole.items())


@pytest.mark.slow
def test_on_two_ranks_and_in_parts_it_ends_where_it_does_on_one(tmp_path, vae):
    def weights(name: str, ranks: int = 1, **over) -> dict[str, torch.Tensor]:
        over = {"latents": STORED | {"drawn": True}, "generator__learning_rate": 1e-4} | over
        path = write(tmp_path / name, vae, **over)
        if ranks == 1:
            tiny.run(path)
        else:
            assert processes.on_ranks(tiny.on_rank, path, timeout=300) == [0, 0]
        return load_file(path.parent / "run/main/generator/generator/diffusion_pytorch_model.safetensors")

    def distance(a, b):
        return sum((a[name] - b[name]).double().square().sum().item() for name in a) ** 0.5

    one, start = weights("one"), weights("start", generator__steps=1, generator__learning_rate=0.0)
    for other in (weights("two", 2), weights("parts", run__accumulate=2)):
        assert distance(one, other) < 0.01 * distance(one, start)


@pytest.mark.slow
def test_edited_latents_do_not_depend_on_how_a_batch_is_divided(tmp_path):
    def weights(name: str, **over) -> dict[str, torch.Tensor]:
        edited = {"objective": {"type": "transport"}, "balance": "gradient", "noise": "assigned", "noise_groups": 4}
        given = {
            "encoder": None,
            "tokenizer.train_encoder": True,
            "reference": {"teacher": False, "distribution": {"type": "gaussian"}},
            "matching": edited | {"noise_bank": 64, "steps": 4, "batch_size": 8},
            "decoder": None,
            "latents": STORED,
            "generator.learning_rate": 1e-4,
            "sample": None,
            "evaluate": None,
        }
        (tmp_path / name).mkdir()
        path = tiny.write(tmp_path / name, variants={"main": given | over})
        tiny.run(path)
        return load_file(path.parent / "run/main/generator/generator/diffusion_pytorch_model.safetensors")

    one, parts = weights("one"), weights("parts", **{"run.accumulate": 2})
    assert max((one[name] - parts[name]).abs().max().item() for name in one) < 1e-5


@pytest.mark.slow
def test_a_run_measures_the_stored_ones_to_its_end(tmp_path):
    over = {"latents.stored": 24, "run.picture_every": 3, "evaluate.proxies": True, "data.flip": True}
    tiny.run(tiny.write(tmp_path, variants={"main": KL | over}))
    run = tmp_path / "run/main"
    assert len(LatentSet(run / "latents/latents")) == 24
    found = json.loads((run / "evaluate/metrics.json").read_text())
    assert {"knn", "linear_probe", "generator_loss", "gfd", "proxies"} <= found.keys()
    assert (run / "generator/pictures/step-00000006.png").exists()
    kept = {folder.name for folder in (run / "generator").iterdir() if folder.is_dir()}
    assert kept == {"checkpoints", "generator", "pictures"}


@pytest.mark.slow
def test_a_plan_counts_the_stored_ones_and_the_encoder_in_each_step(tmp_path):
    recipes = [load(tiny.write(tmp_path, variants={"main": KL | over}))["main"] for over in ({}, {"latents": STORED})]
    assert [_disk("latents", recipe, None, 48) for recipe in recipes] == [n * 4 * 3 * 3 * 4 for n in (48, 12)]
    assert [_disk("latents", recipe, None, 8) for recipe in recipes] == [8 * 4 * 3 * 3 * 4] * 2
    assert [_disk("latents", recipe, None, None) for recipe in recipes] == [0, 12 * 4 * 3 * 3 * 4]
    plain, encodes = (
        cost_of(GeneratorStage, Blueprint(recipe, "", {"latents": recipe.latents}, 3)) for recipe in recipes
    )
    autoencoder = Blueprint(recipes[0], "", {}, 3).autoencoder()
    assert encodes.frozen - plain.frozen == sum(p.numel() for p in autoencoder.parameters())
    assert (encodes.trained, encodes.saved) == (plain.trained, plain.saved)
    assert encodes.flops > plain.flops
    assert encodes.peak > plain.peak


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"latents": {"stored": 2}}, "latents.stored: 2 leaves out 1 class ("),
        ({"latents": {"stored": 12}}, "evaluate.neighbours: 20 neighbours are sought among 12 latents; use at most 12"),
        (
            {"latents": {"stored": 12}, "evaluate.probe": True},
            "evaluate.probe: it learns from 16 latents or more, and there are 12; set it to false",
        ),
    ],
)
def test_too_few_are_refused(tmp_path, over, message):
    recipe = load(tiny.write(tmp_path, variants={"main": KL | over}))["main"]
    assert any(line.startswith(message) for line in problems(recipe, recipe.stages()))


def test_mirror_images_that_nothing_would_read_are_refused(tmp_path):
    with pytest.raises(
        ValueError, match=re.escape("mirrored: true stores mirror images for the generator, which with")
    ):
        load(tiny.write(tmp_path, latents={"stored": 24, "mirrored": True}))


def test_at_the_default_no_fingerprint_changes_and_else_those_that_read_latents(tmp_path):
    plain, said, stored = (
        tiny.folders_of(tiny.write(tmp_path, variants={"main": KL | over}))
        for over in ({}, {"latents.stored": None}, {"latents.stored": 24})
    )
    assert plain == said
    assert {name for name in plain if plain[name] != stored[name]} == {"latents", "generator", "sample", "evaluate"}
