"""A tokenizer that was matched by samples of its posteriors gives samples: to decoder, generator and evaluation too."""

import json

import pytest
import torch
from safetensors.torch import load_file

import tiny
from dmvae import Autoencoder
from dmvae.inputs import Inputs
from dmvae.latents.store import LatentSet, MirroredSet, encode_dataset
from dmvae.matching import Matching
from dmvae.models.drawing import noise
from dmvae.recipe import load
from dmvae.registry import find, names
from dmvae.runtime.random import Random
from dmvae.stages import approach
from dmvae.stages.generator import GeneratorStage
from dmvae.tokenizers.adapted import adapt, load_tokenizer
from dmvae.tokenizers.dmvae import DmvaeTokenizer
from dmvae.training.stage import Batch
from dmvae.training.trainer import Trainer

CONV = {"type": "conv", "width": 8, "multipliers": [1, 2], "blocks": 1, "stride": 4, "out_channels": 8}
DECODER = {"type": "conv", "width": 8, "multipliers": [1, 2], "blocks": 0, "attention": False}


def tokenizer(drawn=True, variational=True):
    torch.manual_seed(0)
    shape = {"latent_channels": 4, "bottleneck_width": 0, "variational": variational}
    return Autoencoder(encoder=CONV, image_size=12, decoder=DECODER, drawn=drawn, **shape).eval()


def images(n):
    return torch.randint(256, (n, 3, 12, 12), generator=torch.Generator().manual_seed(1)).float() / 127.5 - 1


@torch.no_grad()
def test_latents_are_samples_by_the_image_and_by_a_generator_where_there_is_one():
    model, x = tokenizer(), images(400)
    out = model.encode(x)
    posterior = out.latent_dist
    normal = (out.latents - posterior.mean) / posterior.std
    assert abs(normal.mean()) < 0.02
    assert abs(normal.std() - 1) < 0.02
    assert torch.allclose(model.encode(x[3:4]).latents, out.latents[3:4], atol=1e-5), "alike in any batch"
    one, other, again = (model.encode(x, Random(seed)).latents for seed in (0, 1, 0))
    assert torch.equal(one, again)
    assert not torch.allclose(one, other, atol=1e-2)
    assert torch.equal(tokenizer(drawn=False).encode(x, Random(0)).latents, posterior.mean)
    assert noise(x[:0], (4, 3, 3)).shape == (0, 4, 3, 3)


def test_the_artifact_knows_it(tmp_path):
    tokenizer().save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).drawn
    tokenizer(drawn=False).save_pretrained(tmp_path / "mean")
    assert not load_tokenizer(tmp_path / "mean").drawn


@torch.no_grad()
@pytest.mark.parametrize("variational", [False, True])
def test_a_fixed_spread_is_that_of_all_images(tmp_path, variational):
    std, x = torch.tensor([0.5, 1.0, 2.0, 0.1]), images(400)
    model = tokenizer(variational=variational)
    mean = model.encode(x).latent_dist.mean
    model.fix_spread(std)
    model.save_pretrained(tmp_path)
    for same in (
        model,
        load_tokenizer(tmp_path),
        adapt(DmvaeTokenizer(path=str(tmp_path)), size=12, channels=3, pretrained=True),
    ):
        assert same.has_spread
        assert same.drawn
        out = same.encode(x)
        assert torch.allclose(out.latent_dist.mean, mean, atol=1e-5)
        assert torch.allclose(out.latent_dist.std, std.view(-1, 1, 1).expand_as(mean), rtol=1e-5)
        normal = (out.latents - mean) / std.view(-1, 1, 1)
        assert torch.allclose(normal.std((0, 2, 3)), torch.ones(4), atol=0.05)


def stored(tmp_path, name="plain", **over) -> LatentSet:
    inputs = Inputs(load(tiny.write(tmp_path))["kl"], "kl", tmp_path, {}, torch.device("cpu"))
    how = {"device": inputs.device, "precision": "float32", "batch_size": 8}
    encode_dataset(tokenizer(), inputs.train_set, tmp_path / name, title="", **how, **over)
    return LatentSet(tmp_path / name, posteriors=True)


def test_shards_hold_the_posteriors_and_statistics_are_those_of_samples(tmp_path):
    posteriors = stored(tmp_path, shard_size=20)
    samples = LatentSet(tmp_path / "plain")
    assert samples.drawn
    assert not samples.posteriors
    z, _ = samples.__getitems__(range(48))
    assert torch.allclose(z.mean((0, 2, 3)), torch.zeros(4), atol=1e-5)
    assert torch.allclose(z.std((0, 2, 3)), torch.ones(4), atol=2e-2)
    both, labels = posteriors.__getitems__([41, 0])
    assert both.shape == (2, 8, 3, 3)
    mean, std = both.chunk(2, dim=1)
    x = load(tiny.write(tmp_path))["kl"].data.build("train").__getitems__([41, 0])[0].float() / 127.5 - 1
    out = tokenizer().encode(x).latent_dist
    scale, shift = posteriors.std.view(-1, 1, 1), posteriors.mean.view(-1, 1, 1)
    assert torch.allclose(mean * scale + shift, out.mean, atol=1e-5)
    assert torch.allclose(std * scale, out.std, atol=1e-5)
    assert torch.equal(labels, samples.__getitems__([41, 0])[1])


def test_mirrored_posteriors_are_one_set(tmp_path):
    both = MirroredSet(stored(tmp_path), stored(tmp_path, "mirrored", mirrored=True))
    assert both.__getitems__([0, 48])[0].shape == (2, 8, 3, 3)


def test_a_generator_sees_a_new_sample_each_time(tmp_path, monkeypatch):
    recipe = load(tiny.write(tmp_path))["kl"]
    latents = stored(tmp_path, "stage/latents")
    inputs = Inputs(recipe, "kl", tmp_path, {"latents": tmp_path / "stage"}, torch.device("cpu"))
    trainer = Trainer(GeneratorStage(recipe.generator, inputs))
    assert trainer.stage.data().posteriors
    seen = []
    monkeypatch.setattr(
        trainer.networks.generator,
        "loss",
        lambda z, labels, rng: seen.append(z) or trainer.networks.generator(z, z[:, 0, 0, 0] * 0, labels).mean(),
    )
    data, labels = latents.__getitems__(range(8))
    mean, std = data.chunk(2, dim=1)
    for step in (0, 1):
        trainer.step = step
        for _ in trainer.train_step(Batch(data, labels, step, 2)):
            pass
    first, second = ((z - mean) / std for z in seen)
    assert not torch.allclose(first, second)
    assert abs(torch.stack([first, second]).std() - 1) < 0.15


@pytest.mark.slow
def test_a_variational_matching_is_measured_by_what_it_matched(tmp_path):
    section = {"noise": "posterior", "objective": {"type": "dmd"}}
    over = {"matching": section, "autoencoder.variational": True}
    tiny.run(tiny.write(tmp_path, variants={"main": over}, **SHORT))
    run = tmp_path / "run/main"
    assert not load_tokenizer(run / "tokenizer/autoencoder").drawn
    for stage in ("matching", "decoder", "latents"):
        assert load_tokenizer(run / stage / "autoencoder").drawn, stage
    assert LatentSet(run / "latents/latents").drawn
    assert json.loads((run / "evaluate/metrics.json").read_text())["gfd"] > 0


WITH_STUDENT = {name for name in names(Matching) if find(Matching, name).has_student} - {"adversarial"}
"""Objectives whose student would have the default network, where there is no teacher that it could be a copy of."""
SHORT = {f"{stage}__steps": 2 for stage in ("encoder", "tokenizer", "reference", "matching", "decoder", "generator")}


@pytest.fixture(scope="module")
def variational(tmp_path_factory):
    """A folder whose run has all that a matching of posteriors reads."""
    folder = tmp_path_factory.mktemp("drawn")
    tiny.run(posteriors(folder, {"type": "dmd"}), until="reference")
    return folder


def posteriors(folder, objective, **over):
    section = {"noise": "posterior", "steps": 2, "student_steps": 1, "batch_size": 16, "objective": objective}
    if objective["type"] in WITH_STUDENT:
        section["model"] = tiny.DIT
    over |= {"matching": section, "autoencoder.variational": True}
    return tiny.write(folder, variants={"main": over}, reference__distribution={"type": "gaussian"})


@pytest.mark.slow
@pytest.mark.parametrize("name", names(Matching))
def test_the_spread_of_a_posterior_learns_by_every_objective(variational, monkeypatch, name):
    monkeypatch.setattr(approach, "RECENT", 16)
    monkeypatch.setattr(approach, "REST", 8)
    small = {"hand_over": {"far": {"type": "transport", "slices": 6}}, "sinkhorn": {"iterations": 5}}
    tiny.run(posteriors(variational, {"type": name} | small.get(name, {})), only="matching")
    run = variational / "run/main"
    before, after = (load_tokenizer(run / stage / "autoencoder") for stage in ("tokenizer", "matching"))
    x = images(4)
    with torch.no_grad():
        first, second = (model.encode(x).latent_dist.std for model in (before, after))
    assert not torch.equal(first, second)
    assert second.isfinite().all()


@pytest.mark.slow
def test_a_matching_with_a_fixed_spread_hands_it_on(tmp_path):
    over = {"matching": {"noise": "fixed", "noise_std": 0.5}}
    tiny.run(tiny.write(tmp_path, variants={"main": over}, **SHORT))
    run = tmp_path / "run/main"
    reference = load_file(run / "reference/normalisation.safetensors")["std"]
    for stage in ("matching", "decoder", "latents"):
        model = load_tokenizer(run / stage / "autoencoder")
        assert model.drawn, stage
        assert torch.allclose(model.spread, 0.5 * reference), stage
    shard = load_file(run / "latents/latents/latents-00000.safetensors")
    assert torch.allclose(shard["stds"], (0.5 * reference).view(-1, 1, 1).expand_as(shard["stds"]), rtol=1e-5)
    assert LatentSet(run / "latents/latents").drawn
    assert json.loads((run / "evaluate/metrics.json").read_text())["gfd"] > 0


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"noise": "fixed"}, "matching.noise: 'fixed' needs a spread .* give matching.noise_std"),
        ({"noise_std": 0.5}, "matching.noise_std: 0.5 is the spread of matching.noise: fixed; leave it out"),
    ],
)
def test_a_fixed_spread_has_a_size_and_a_size_is_of_a_fixed_spread(tmp_path, section, message):
    with pytest.raises(ValueError, match=message):
        tiny.run(tiny.write(tmp_path, variants={"main": {"matching": section}}))
