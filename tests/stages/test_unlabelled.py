"""A reference whose labels mean nothing: what is matched is the distribution of all latents, not that of each class."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import dmvae
import tiny
from dmvae.matching import Context
from dmvae.matching.adversarial import Adversarial
from dmvae.matching.dmd import DMD
from dmvae.references import Unlabelled, draw
from dmvae.references.gaussian import Gaussian
from dmvae.references.gaussian_mixture import GaussianMixture, joint_weights
from dmvae.runtime.random import Random

SHAPE, CLASSES = (4, 1, 1), 2
FUNCTIONS = Path(__file__).parents[1] / "references" / "fixed_reference.py"
MEANS = torch.stack([torch.full(SHAPE, -1.0), torch.full(SHAPE, 1.0)])


def clouds(labels):
    """Two clouds, each that of a class, or without classes."""
    weights = joint_weights(torch.ones(2), labels, CLASSES)
    return GaussianMixture(MEANS, torch.full((2, *SHAPE), 0.09), weights, torch.zeros(4), torch.ones(4))


def test_latents_that_are_the_reference_stay_where_they_lie_whatever_their_classes():
    """Class by class they would be pulled together: KL(latents of a class || reference) is not 0."""
    reference, latents = clouds(None), clouds(torch.arange(2))
    z, of = latents.sample(8192, Random(0))
    z.requires_grad_()
    found = {}
    for name, labels in (("told", of), ("untold", torch.full_like(of, CLASSES))):
        loss, _ = DMD(guidance=1.0).loss(z, labels, reference.velocity, latents.velocity, Context(Random(1), CLASSES))
        found[name] = torch.autograd.grad(loss, z)[0] * z.numel()
    assert found["untold"].abs().max() < 1e-4
    assert found["told"].square().mean().sqrt() > 0.3


def test_its_samples_come_without_labels():
    bare = Unlabelled(Gaussian((4, 1, 1), 3, 1.0), 3)
    z, labels = bare.sample(8, Random(0))
    assert torch.equal(z, Gaussian((4, 1, 1), 3, 1.0).sample(8, Random(0))[0])
    assert labels.tolist() == [3] * 8
    assert draw(bare, 8, Random(0), torch.device("cpu"))[1].tolist() == [3] * 8


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "distribution", "labelled"),
    [
        (DMD, {"type": "gaussian"}, False),
        (DMD, {"type": "mixture", "conditional": False}, False),
        (DMD, {"type": "mixture"}, True),
        (DMD, {"type": "features"}, True),
        (DMD, {"type": "function", "function": f"{FUNCTIONS}:zeros"}, False),
        (Adversarial, {"type": "gaussian"}, False),
        (Adversarial, {"type": "features"}, True),
    ],
)
def test_objectives_are_told_labels_that_mean_something_alone(tmp_path, monkeypatch, objective, distribution, labelled):
    told = []
    for name in ("loss", "student_loss"):

        def noted(self, *given, own=getattr(objective, name), **more):
            told.append(given[1] if own.__name__ == "loss" else given[2])
            return own(self, *given, **more)

        monkeypatch.setattr(objective, name, noted)
    kind = {"type": objective.type} | ({"width": 8, "depth": 1} if objective is Adversarial else {})
    matching = {"objective": kind, "steps": 4, "batch_size": 8, "student_steps": 2}
    if objective is DMD and distribution["type"] in ("gaussian", "mixture"):
        matching["model"] = tiny.DIT  # there is no teacher, of which the student is a copy
    over = {"matching": matching, "reference": {"distribution": distribution, "steps": 2, "model": tiny.DIT}}
    tiny.run(tiny.begin(tiny.write(tmp_path, variants={"main": over}), "reference"), only="matching")
    labels = torch.cat(told)
    assert len(told) == 6  # 4 of the student and 2 of the tokenizer
    assert set(labels.unique().tolist()) == ({0, 1, 2} if labelled else {3})


@pytest.mark.slow
@pytest.mark.parametrize("noise", ["none", "posterior"])
def test_latents_are_normalised_as_they_are_matched(tmp_path, noise):
    """Drawn ones by their own spread, to which the posteriors' adds, however little their means vary."""
    over = {
        "variants": {"main": {}},
        "autoencoder__variational": True,
        "tokenizer": {"steps": 2, "batch_size": 8, "train_encoder": True, "kl_weight": 1e-3},
        "matching__noise": noise,
        "reference__distribution": {"type": "gaussian"},
    }
    jobs = tiny.run(tiny.write(tmp_path, **over), until="reference")
    folder = next(job.folder for job in jobs if job.stage.name == "reference")
    to = load_file(folder / "normalisation.safetensors")
    tokenizer = next(job.folder for job in jobs if job.stage.name == "tokenizer") / "autoencoder"
    model = dmvae.Autoencoder.from_pretrained(tokenizer).eval()
    images = next(job for job in jobs if job.stage.name == "reference").recipe.data.build("train").images
    with torch.no_grad():
        posterior = model.encode(images.float() / 127.5 - 1).latent_dist
    spread = posterior.mean.var((0, 2, 3)) + (noise == "posterior") * posterior.var.mean((0, 2, 3))
    torch.testing.assert_close(to["std"], spread.sqrt(), rtol=0.15, atol=0)
    assert (posterior.var.mean((0, 2, 3)) > 0.5 * posterior.mean.var((0, 2, 3))).all(), "so that the two differ"
    assert json.loads((folder / "done.json").read_text())["config"]["drawn"] == (noise == "posterior")


def test_means_of_a_tokenizer_that_draws_are_normalised_by_their_own_spread(tmp_path):
    """One that another run matched as drawn, whose means are matched here."""
    torch.manual_seed(0)
    settings = {"autoencoder": tiny.RECIPE["autoencoder"] | {"variational": True}}
    model = dmvae.Autoencoder.from_config(settings["autoencoder"] | {"image_size": 12})
    model.drawn = True
    model.save_pretrained(tmp_path / "model")
    over = {
        "variants": {"main": {}},
        "autoencoder": None,
        "encoder": None,
        "tokenizer": None,
        "pretrained": {"type": "dmvae", "path": str(tmp_path / "model")},
        "matching__objective": {"type": "transport"},
        "matching__noise": "none",
        "reference__distribution": {"type": "gaussian"},
    }
    jobs = tiny.run(tiny.write(tmp_path, **over), until="reference")
    folder = next(job.folder for job in jobs if job.stage.name == "reference")
    images = jobs[0].recipe.data.build("train").images
    with torch.no_grad():
        means = model.eval().encode(images.float() / 127.5 - 1).latent_dist.mean
    std = load_file(folder / "normalisation.safetensors")["std"]
    torch.testing.assert_close(std, means.std((0, 2, 3)), rtol=0.15, atol=0)
    assert model.encode(images.float() / 127.5 - 1).latents.std() > 2 * means.std()
