"""`latents.drawn`: generators on a KL-VAE learn samples of its posteriors, and all that comes after knows it."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import tiny
from dmvae.checks import problems
from dmvae.commands.plan import _disk
from dmvae.idle import idle
from dmvae.inputs import Inputs
from dmvae.jobs import plan
from dmvae.latents.store import LatentSet
from dmvae.recipe import load
from dmvae.runtime.random import Random
from dmvae.stages.generator import GeneratorStage
from dmvae.tokenizers.adapted import load_tokenizer, spread_of
from dmvae.training.data import batches
from dmvae.training.trainer import Trainer

STD = torch.tensor([0.5, 1.0, 2.0, 0.1])
"""Of every posterior, per channel."""
ALONE = dict.fromkeys(("encoder", "tokenizer", "reference", "matching", "decoder", "autoencoder", "variants"))
KL = tiny.RECIPE["variants"]["kl"]
DRAWN = {"latents.drawn": True}


@pytest.fixture(scope="module")
def vae(tmp_path_factory) -> Path:
    """The folder of a tokenizer whose posteriors have this spread."""
    return tiny.variational(tmp_path_factory.mktemp("vae"), STD)


def write(folder: Path, vae: Path, **over) -> Path:
    given = ALONE | {"pretrained": {"type": "dmvae", "path": str(vae)}, "run__precision": "float32"}
    return tiny.write(folder, **(given | {"sample": None, "evaluate": None, "latents": {"drawn": True}} | over))


def generator_of(path: Path) -> Trainer:
    job = plan(load(path), path.parent / "run")[-1]
    inputs = Inputs(job.recipe, job.variant, job.folder, job.reads, torch.device("cpu"))
    return Trainer(job.stage(job.recipe.generator, inputs))


def column(x: torch.Tensor) -> torch.Tensor:
    return x.view(-1, 1, 1)


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_generator_sees_the_posterior_anew_each_time(tmp_path, vae, monkeypatch, mirrored):
    path = write(tmp_path, vae, latents={"drawn": True, "mirrored": mirrored}, generator__steps=60)
    tiny.run(path, only="latents")
    trainer = generator_of(path)
    model = load_tokenizer(trainer.inputs.reads["latents"] / "autoencoder")
    seen, means = [], []
    monkeypatch.setattr(trainer.networks.generator, "loss", lambda z, labels, rng: seen.append(z) or z.sum())
    for batch in batches(trainer.stage, trainer.key, 0, 60, lambda: False):
        list(trainer.stage.updates(trainer.networks, batch, Random(0, batch.step)))
        means.append(batch.data[:, :4])
    noise = (torch.cat(seen) - torch.cat(means)) * column(model.latent_std / STD)
    assert torch.allclose(noise.mean((0, 2, 3)), torch.zeros(4), atol=0.06)
    assert torch.allclose(noise.std((0, 2, 3)), torch.ones(4), atol=0.06)
    assert len(noise.flatten(1).unique(dim=0)) == len(noise), "images come several times, samples once"
    with torch.no_grad():
        images = trainer.inputs.train_set.__getitems__(range(48))[0] / 127.5 - 1
        images = torch.cat([images, images.flip(3)]) if mirrored else images
        known = model.normalize(model.encode(images).latent_dist.mean)
    away = torch.cdist(torch.cat(means).flatten(1), known.flatten(1)).amin(1)
    assert away.max() < 1e-2, "about the images' own means"


def test_statistics_are_of_samples(tmp_path, vae):
    (job,) = tiny.run(write(tmp_path, vae, generator=None))
    model, stored = load_tokenizer(job.folder / "autoencoder"), LatentSet(job.folder / "latents")
    with torch.no_grad():
        out = model.encode(torch.stack([job.recipe.data.build("train")[i][0] for i in range(48)]) / 127.5 - 1)
    assert model.drawn
    assert spread_of(model)
    assert torch.allclose(out.latent_dist.std, column(STD).expand_as(out.latents), rtol=1e-4)
    assert torch.allclose(model.latent_std, stored.std)
    assert torch.allclose(model.latent_std, out.latents.std((0, 2, 3)), rtol=1e-2)
    both = (out.latent_dist.mean.var((0, 2, 3)) + STD.square()).sqrt()
    assert torch.allclose(model.latent_std, both, rtol=0.15)
    assert (model.latent_std > 0.9 * STD).all()


def test_cut_and_resumed_it_ends_as_uncut(tmp_path, vae):
    weights = []
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
        path = write(tmp_path / name, vae, latents={"drawn": True, "shard_size": 20}, run__save_every=3)
        if name == "cut":
            tiny.run(path, only="latents")
            (latents,) = path.parent.glob("run/stages/latents-*")
            before = {file.name: load_file(file) for file in (latents / "latents").iterdir()}
            for file in ("done.json", "latents/latents-00001.safetensors", "latents/statistics.safetensors"):
                (latents / file).unlink()
            with tiny.cut(GeneratorStage, 5):
                tiny.run(path)
            after = {file.name: load_file(file) for file in (latents / "latents").iterdir()}
            assert before.keys() == after.keys()
            assert all(torch.equal(before[file][key], x) for file, part in after.items() for key, x in part.items())
        tiny.run(path)
        weights.append(tiny.weights(path.parent / "run"))
    whole, cut = weights
    assert whole.keys() == cut.keys()
    assert all(torch.equal(value, cut[name]) for name, value in whole.items())


@pytest.mark.slow
def test_decoder_and_evaluation_are_of_samples(tmp_path):
    variant = KL | {"decoder": {"steps": 4, "batch_size": 8}} | DRAWN
    tiny.run(tiny.write(tmp_path, variants={"main": variant}))
    run = tmp_path / "run/main"
    assert not load_tokenizer(run / "tokenizer/autoencoder").drawn
    for stage in ("decoder", "latents"):
        assert load_tokenizer(run / stage / "autoencoder").drawn, stage
    found = json.loads((run / "evaluate/metrics.json").read_text())
    assert found["gfd"] > 0
    assert found["manifest"]["measured"]["spread"]


def test_only_stages_that_see_latents_run_again_and_finished_ones_stay(tmp_path):
    base = KL | {"decoder": {"steps": 4, "batch_size": 8}}
    plain, said, drawn = (
        tiny.folders_of(tiny.write(tmp_path, variants={"main": base | over}))
        for over in ({}, {"latents.drawn": False}, DRAWN)
    )
    assert plain == said
    assert {name for name in plain if plain[name] != drawn[name]} == set(plain) - {"tokenizer"}


@pytest.mark.parametrize(
    ("over", "message"),
    [
        (
            {},
            "latents.drawn: true needs a tokenizer with a posterior (autoencoder.variational: true); leave it out, or",
        ),
        (
            {"autoencoder.variational": True, "matching.noise": "none"},
            "latents.drawn: true would draw latents of which matching.noise: none has matched the means alone; leave",
        ),
    ],
)
def test_what_has_no_posterior_or_matched_means_is_refused(tmp_path, over, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        tiny.run(tiny.write(tmp_path, variants={"main": over | DRAWN}))


def test_a_finished_tokenizer_without_a_posterior_is_refused(tmp_path):
    identity = ALONE | {"pretrained": {"type": "identity", "patch": 4}, "latents": {"drawn": True}}
    with pytest.raises(ValueError, match="posterior, which this `pretrained` has not; leave it out"):
        tiny.run(tiny.write(tmp_path, **identity))


def test_a_matching_that_draws_already_is_told(tmp_path):
    noise = {"matching.noise": "fixed", "matching.noise_std": 0.5}
    recipes = load(tiny.write(tmp_path, variants={"main": noise | DRAWN}))
    assert idle(recipes) == ["latents.drawn: True changes nothing: matching.noise draws them already"]
    assert not list(problems(recipes["main"], recipes["main"].stages()))


def test_a_plan_counts_means_and_deviations(tmp_path):
    matched = {"autoencoder.variational": True, "matching.noise": "posterior"}
    recipes = [load(tiny.write(tmp_path, variants={"main": over}))["main"] for over in (KL, KL | DRAWN, matched)]
    plain, *drawn = (_disk("latents", recipe, None, 48) for recipe in recipes)
    assert drawn == [3 * plain] * 2
