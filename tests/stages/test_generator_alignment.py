"""REPA in stage `generator`: images come with their latents, what moves, that it resumes, on ranks, what is refused."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import processes
import tiny
from dmvae.inputs import Inputs
from dmvae.jobs import plan
from dmvae.recipe import load
from dmvae.runtime.random import Random
from dmvae.tokenizers.adapted import load_tokenizer
from dmvae.training.data import batches
from dmvae.training.loop import train
from dmvae.training.trainer import Trainer

pytestmark = pytest.mark.slow

LEFT_OUT = dict.fromkeys(("encoder", "tokenizer", "reference", "matching", "decoder", "autoencoder", "variants"))
PIXELS = LEFT_OUT | {"pretrained": {"type": "identity", "patch": 4}, "sample": None, "evaluate": None}
"""Latents are the pixels of a patch of 4, so that what image they are of can be seen."""
ALIGNED = {"width": 8, "target": {"type": "effnet", "enlarge": 8, "reduce": 32}}
MODEL = tiny.DIT | {"head_width": 48, "head_depth": 1}


def write(folder: Path, **over) -> Path:
    return tiny.write(folder, **(PIXELS | {"generator__model": MODEL, "generator__alignment": ALIGNED} | over))


def trainer_of(path: Path) -> Trainer:
    job = plan(load(path), path.parent / "run")[-1]
    inputs = Inputs(job.recipe, job.variant, job.folder, job.reads, torch.device("cpu"))
    return Trainer(job.stage(job.recipe.section(job.stage), inputs))


def batches_of(trainer: Trainer, start: int = 0):
    return list(batches(trainer.stage, trainer.key, start, trainer.config.steps, lambda: False))


@pytest.fixture(scope="module")
def encoded(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("aligned")
    path = write(folder, latents={"mirrored": True}, generator__steps=12, run__save_every=3)
    tiny.run(path, only="latents")
    return path


def test_each_latent_comes_with_its_image_mirrored_or_not(encoded):
    trainer = trainer_of(encoded)
    tokenizer = load_tokenizer(trainer.inputs.reads["latents"] / "autoencoder")
    found = batches_of(trainer)
    assert len(found) == 12  # both passes of 48 images, each way
    for batch in found:
        images = tokenizer.decode(tokenizer.denormalize(batch.data)).sample
        assert torch.allclose(images, batch.images, atol=1e-4)
    seen = torch.cat([batch.images for batch in found])
    original, _ = trainer.inputs.train_set.__getitems__(range(48))
    as_it_is = sum(any(torch.equal(x, y) for y in original.float() / 127.5 - 1) for x in seen)
    assert 40 < as_it_is < 60


def test_images_that_it_encodes_itself_are_what_the_target_sees(tmp_path, monkeypatch):
    path = write(tmp_path, latents={"stored": 12}, data__flip=True)
    tiny.run(path, only="latents")
    trainer = trainer_of(path)
    seen, tokens = [], trainer.networks.target.forward
    monkeypatch.setattr(trainer.networks.target, "forward", lambda x: seen.append(x) or tokens(x))
    found = batches_of(trainer)
    for batch in found:
        list(trainer.stage.updates(trainer.networks, batch, Random(0)))
    assert all(batch.images is None for batch in found)
    assert torch.equal(torch.cat(seen), torch.cat([batch.data for batch in found]))
    assert torch.cat(seen).shape == (48, 3, 12, 12)


def test_a_resumed_training_sees_the_same_images(encoded):
    trainer = trainer_of(encoded)
    whole, later = batches_of(trainer), batches_of(trainer, 5)
    assert all(torch.equal(a.images, b.images) for a, b in zip(whole[5:], later, strict=True))


def test_generator_and_projector_move_and_the_target_does_not(encoded):
    trainer = trainer_of(encoded)
    batch = batches_of(trainer)[0]
    before = {name: p.clone() for name, p in trainer.networks.named_parameters()}
    (update,) = trainer.stage.updates(trainer.networks, batch, Random(0))
    log = tiny.apply(trainer, update)
    now = dict(trainer.networks.named_parameters())
    assert {name.split(".")[0] for name, p in before.items() if not torch.equal(p, now[name])} == {
        "generator",
        "projector",
    }
    assert update.loss.item() == pytest.approx((log["generator/loss"] + 0.5 * log["alignment/cosine"]).item())


def test_the_loss_that_is_told_is_the_flow_s_by_the_same_draws(encoded, tmp_path):
    """So that a generator with alignment can be set beside one without."""
    trainer = trainer_of(encoded)
    batch = batches_of(trainer)[0]
    (update,) = trainer.stage.updates(trainer.networks, batch, Random(0))
    labels = torch.where(Random(0).uniform(8) < 0.1, 3, batch.labels)
    rng = Random(0)
    rng.uniform(8)  # what drops labels
    assert update.value.item() == pytest.approx(trainer.networks.generator.loss(batch.data, labels, rng).item())


def test_the_direction_adds_to_the_loss_and_not_to_what_is_told(encoded, tmp_path):
    path = write(tmp_path, generator__alignment=None, generator__direction=2.0, latents={"mirrored": True})
    tiny.run(path, only="latents")
    trainer = trainer_of(path)
    generator, batch = trainer.networks.generator, batches_of(trainer)[0]
    (update,) = trainer.stage.updates(trainer.networks, batch, Random(0))
    rng = Random(0)
    found = generator.at_random_times(batch.data, torch.where(rng.uniform(8) < 0.1, 3, batch.labels), rng)
    assert update.value.item() == pytest.approx(found.flow.item())
    assert update.loss.item() == pytest.approx((found.flow + 2 * found.direction).item())
    assert update.log["generator/direction"].item() == pytest.approx(found.direction.item())
    assert 0.5 < found.direction < 1.5  # a new network says nothing yet


def test_cut_and_resumed_it_ends_as_uncut(encoded, tmp_path):
    trainer = trainer_of(encoded)
    stage = trainer.stage
    train(stage)
    whole = load_file(stage.inputs.out / "generator/diffusion_pytorch_model.safetensors")
    stage.inputs.out = tmp_path / "cut"
    with tiny.cut(type(stage), 7):
        train(stage)
    train(stage)
    again = load_file(stage.inputs.out / "generator/diffusion_pytorch_model.safetensors")
    assert all(torch.equal(value, again[name]) for name, value in whole.items())
    assert (stage.inputs.out / "projector/config.json").exists()


def weights(folder: Path, ranks: int, **over) -> dict:
    folder.mkdir()
    path = write(folder, **({"run__precision": "float32", "generator__learning_rate": 1e-4} | over))
    assert ranks == 1 or processes.on_ranks(tiny.on_rank, path, timeout=300) == [0, 0]
    if ranks == 1:
        tiny.run(path)
    return load_file(folder / "run/main/generator/generator/diffusion_pytorch_model.safetensors")


def test_in_parts_and_on_sharded_ranks_it_ends_where_it_does_whole(tmp_path):
    whole = weights(tmp_path / "whole", 1)
    others = {
        "parts": weights(tmp_path / "parts", 1, run__accumulate=2),
        "sharded": weights(tmp_path / "sharded", 2, run__shard=True),
    }
    start = weights(tmp_path / "start", 1, generator__steps=1, generator__learning_rate=0.0)

    def distance(a, b):
        return sum((a[name] - b[name]).double().square().sum().item() for name in a) ** 0.5

    for name, other in others.items():
        assert distance(whole, other) < 0.01 * distance(whole, start), name


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"generator__alignment": ALIGNED | {"depth": 2}}, r"alignment\.depth: 2, and the flow model has 1 blocks"),
        (
            {"generator__alignment": ALIGNED | {"target": {"type": "effnet", "enlarge": 4, "reduce": 32}}},
            r"generator\.alignment\.target: this encoder has one feature per 8 pixels .* give an encoder of stride 4",
        ),
        ({"generator__alignment": {"weight": 0.5}}, r"generator\.alignment\.target: this field is required"),
        (
            {
                "generator__direction": 0.5,
                "generator__alignment": None,
                "data": {"type": "shapes", "size": 12, "channels": 1, "num_classes": 3, "count": 48, "test_count": 24},
                "pretrained": {"type": "identity", "patch": 1},
            },
            r"generator\.direction: latents of one channel have no direction",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_runs(tmp_path, over, message):
    with pytest.raises(ValueError, match=message):
        tiny.run(write(tmp_path, **over))
    assert not (tmp_path / "run/main").exists()
