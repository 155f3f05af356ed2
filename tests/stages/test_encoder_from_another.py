"""Stage `encoder` with a target: what moves, that features come near, what is refused."""

import pytest
import torch

import tiny
from dmvae.datasets.pixels import as_input
from dmvae.encoders.effnet import EffNetEncoder
from dmvae.inputs import Inputs
from dmvae.jobs import plan
from dmvae.recipe import load
from dmvae.runtime.random import Random
from dmvae.stages.encoder import standardized
from dmvae.training.data import batches
from dmvae.training.trainer import Trainer

TARGET = {"type": "effnet", "enlarge": 8, "reduce": 32}


def trainer_of(tmp_path, **over) -> Trainer:
    path = tiny.write(tmp_path, **({"encoder__target": TARGET} | over))
    job = plan({"matched": load(path)["matched"]}, tmp_path / "run")[0]
    inputs = Inputs(job.recipe, job.variant, job.folder, job.reads, torch.device("cpu"))
    return Trainer(job.stage(job.recipe.section(job.stage), inputs))


def first(trainer: Trainer):
    return next(iter(batches(trainer.stage, trainer.key, 0, trainer.config.steps, lambda: False)))


def test_encoder_and_projector_move_and_the_target_has_its_public_weights_and_does_not(tmp_path):
    trainer = trainer_of(tmp_path)
    before = {name: p.clone() for name, p in trainer.networks.named_parameters()}
    (update,) = trainer.stage.updates(trainer.networks, first(trainer), Random(0))
    tiny.apply(trainer, update)
    now = dict(trainer.networks.named_parameters())
    moved = {name.split(".")[0] for name, p in before.items() if not torch.equal(p, now[name])}
    assert moved == {"encoder", "projector"}
    public = EffNetEncoder(enlarge=8, reduce=32).build(size=12, channels=3, pretrained=True)
    assert all(torch.equal(p, now[f"target.{name}"]) for name, p in public.named_parameters())


def test_an_encoder_with_the_target_s_features_has_no_loss(tmp_path):
    trainer = trainer_of(tmp_path)
    networks = trainer.networks
    networks.encoder = networks.target
    networks.projector = torch.nn.BatchNorm2d(320, affine=False)  # a linear map, the one that is to be found
    (update,) = trainer.stage.updates(networks, first(trainer), Random(0))
    assert update.loss.item() == pytest.approx(0, abs=1e-5)


def test_channels_count_alike_whatever_their_mean_and_spread():
    features = Random(0).normal(6, 3, 4, 4) * torch.tensor([1e-2, 1.0, 100.0]).view(-1, 1, 1) + 7
    seen = standardized(features).transpose(0, 1).flatten(1)
    assert torch.allclose(seen.mean(dim=1), torch.zeros(3), atol=1e-2)
    assert torch.allclose(seen.var(dim=1, correction=0), torch.ones(3), rtol=1e-2)


@pytest.mark.slow
def test_it_learns_a_part_of_what_the_target_says_of_images_beyond_their_mean(tmp_path):
    """Of images that are not cut, as a tokenizer has them; a projector's bias alone could reach the mean."""
    trainer = trainer_of(tmp_path, encoder__steps=120, encoder__learning_rate=1e-2, autoencoder__encoder__width=16)
    networks = trainer.networks
    for batch in batches(trainer.stage, trainer.key, 0, trainer.config.steps, lambda: False):
        (update,) = trainer.stage.updates(networks, batch, Random(batch.step))
        tiny.apply(trainer, update)
    images = as_input(trainer.inputs.train_set.__getitems__(range(48))[0], torch.device("cpu"))
    with torch.no_grad():
        left = networks.projector(networks.encoder(images)) - standardized(networks.target(images))
    assert left.square().mean() < 0.9


@pytest.mark.parametrize(
    ("over", "message"),
    [
        (
            {"encoder__target": TARGET | {"enlarge": 4}},
            r"encoder\.target: this encoder has one feature per 8 pixels along each side, but a latent covers 4",
        ),
        (
            {"encoder__target": {"type": "conv", "stride": 4}},
            r"encoder\.target: 'conv' would be random, and there is nothing to learn from it",
        ),
        (
            {"encoder__target": TARGET, "encoder__temperature": 0.1},
            r"encoder\.temperature: it is SimCLR's, and with encoder\.target there is none",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_runs(tmp_path, over, message):
    with pytest.raises(ValueError, match=message):
        tiny.run(tiny.write(tmp_path, **over))
    assert not (tmp_path / "run/matched").exists()
