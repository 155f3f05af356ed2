"""`latents.whitening`: what generators learn is whitened, what the decoder gets is not."""

from pathlib import Path

import foreign
import pytest
import torch
from torch import Tensor

import tiny
from dmvae import DMVAEPipeline
from dmvae.checks import problems
from dmvae.config import read
from dmvae.idle import idle
from dmvae.inputs import Inputs
from dmvae.jobs import plan
from dmvae.latents.store import LatentSet
from dmvae.models.whitening import mapped, whitening
from dmvae.recipe import load
from dmvae.report.pipelines import write_pipelines
from dmvae.runtime.random import Random
from dmvae.tokenizers import TokenizerSource
from dmvae.tokenizers.adapted import AdaptedTokenizer, adapt, load_tokenizer, start
from dmvae.training.data import batches
from dmvae.training.trainer import Trainer

ALONE = dict.fromkeys(("encoder", "tokenizer", "reference", "matching", "decoder", "autoencoder", "variants"))
VARIANCES = torch.tensor([5.0, 2.0, 1.0, 0.5, 0.1])


def covariance() -> Tensor:
    """[5, 5], of these principal variances, with channels that correlate."""
    turn = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(0))).Q
    return (turn * VARIANCES @ turn.T).double()


def correlations(of: Tensor) -> Tensor:
    std = of.diagonal().sqrt()
    return of / std / std[:, None]


def write(folder: Path, **over) -> Path:
    """A recipe that stores the latents of a finished KL-VAE whose posteriors have some spread."""
    vae = tiny.variational(folder / "vae", torch.tensor([0.5, 1.0, 2.0, 0.1]))
    given = {"pretrained": {"type": "dmvae", "path": str(vae)}, "run__precision": "float32"}
    return tiny.write(folder, **ALONE | given | {"generator": None, "sample": None, "evaluate": None} | over)


def items(stored: LatentSet) -> Tensor:
    return stored.__getitems__(range(len(stored)))[0]


def covariance_of(z: Tensor) -> Tensor:
    return torch.cov(z.movedim(1, -1).flatten(0, -2).T)


@pytest.mark.parametrize("amount", [-1.0, 0.0, 0.5, 1.0])
def test_variances_of_the_correlations_are_raised_and_each_channel_keeps_its_own(amount):
    before = correlations(covariance())
    matrix = whitening(covariance(), amount).double()
    after = matrix @ before @ matrix.T
    torch.testing.assert_close(after.diagonal(), torch.ones(5).double(), rtol=1e-5, atol=0)
    values, turn = torch.linalg.eigh(before)
    raised = turn * values ** (1 - amount) @ turn.T
    torch.testing.assert_close(after, correlations(raised), rtol=1e-5, atol=1e-5)


def test_none_is_the_identity_and_all_leaves_no_correlation():
    torch.testing.assert_close(whitening(covariance(), 0.0), torch.eye(5))
    matrix = whitening(covariance(), 1.0).double()
    torch.testing.assert_close(matrix, matrix.T, rtol=1e-5, atol=1e-5)  # of all such matrices the nearest one
    torch.testing.assert_close(matrix @ correlations(covariance()) @ matrix.T, torch.eye(5).double(), atol=1e-5, rtol=0)


def test_channels_that_do_not_vary_or_repeat_others_stay_finite():
    of = torch.zeros(4, 4)
    of[:2, :2] = torch.tensor([[1.0, 0.5], [0.5, 1.0]])
    repeated = of.clone()
    repeated[2] = repeated[0]
    repeated[:, 2] = repeated[:, 0]
    for case in (of, repeated, torch.zeros(3, 3), 1e30 * covariance()):
        matrix = whitening(case, 1.0)
        assert matrix.isfinite().all()
        assert torch.linalg.cond(matrix) < 1e3
    torch.testing.assert_close(whitening(of, 1.0)[2:, 2:], torch.eye(2))


def test_an_image_is_whitened_alike_in_any_batch_and_unrounded_under_autocast():
    z, matrix = torch.randn(7, 5, 3, 2), whitening(covariance(), 1.0)
    whole = mapped(matrix, z)
    assert whole.shape == z.shape
    assert torch.equal(whole[2:3], mapped(matrix, z[2:3]))
    assert torch.equal(whole, mapped(matrix, z.contiguous(memory_format=torch.channels_last)))
    torch.testing.assert_close(whole[1, :, 2, 1], matrix @ z[1, :, 2, 1])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(whole, mapped(matrix, z))
    square = torch.randn(2, 5, 5, 5)  # as many places along a side as channels
    assert torch.equal(mapped(matrix, square)[1], mapped(matrix, square[1]))


@pytest.mark.parametrize("over", [{}, {"latents__drawn": True}, {"latents__mirrored": True}])
def test_stored_latents_and_the_tokenizer_are_whitened_by_one_matrix(tmp_path, over):
    (job,) = tiny.run(write(tmp_path, latents__whitening=1.0, **over))
    stored, model = LatentSet(job.folder / "latents"), load_tokenizer(job.folder / "autoencoder")
    z = items(stored)
    torch.testing.assert_close(covariance_of(z), torch.eye(4), atol=0.02, rtol=0)
    raw = stored.stored(range(len(stored)))[0]
    assert model.config["whitened"]
    assert torch.equal(model.whitening, stored.whitening)
    torch.testing.assert_close(model.normalize(raw), z)
    torch.testing.assert_close(model.denormalize(z), raw, atol=1e-4, rtol=1e-4)


def test_nothing_but_normalised_latents_changes(tmp_path):
    found = []
    for name, amount in (("plain", 0.0), ("white", 1.0)):
        (tmp_path / name).mkdir()
        (job,) = tiny.run(write(tmp_path / name, latents__whitening=amount))
        found.append((LatentSet(job.folder / "latents"), load_tokenizer(job.folder / "autoencoder")))
    (plain, a), (white, b) = found
    assert torch.equal(plain.shards[0], white.shards[0])
    assert torch.equal(plain.mean, white.mean)
    assert plain.whitening is None
    assert not a.config["whitened"]
    assert a.config["scaling_factor"] == b.config["scaling_factor"]
    z = plain.shards[0][:2]
    with torch.no_grad():
        assert torch.equal(a.decode(z).sample, b.decode(z).sample)
    assert (white[0][0] - plain[0][0]).abs().max() > 0.1


@pytest.mark.parametrize("over", [{"latents__drawn": True}, {"latents__stored": 46}, {}])
def test_generators_learn_whitened_latents(tmp_path, over, monkeypatch):
    path = write(tmp_path, latents__whitening=1.0, generator=tiny.RECIPE["generator"] | {"steps": 80}, **over)
    tiny.run(path, only="latents")
    job = plan(load(path), path.parent / "run")[-1]
    inputs = Inputs(job.recipe, job.variant, job.folder, job.reads, torch.device("cpu"))
    trainer = Trainer(job.stage(job.recipe.generator, inputs))
    seen: list[Tensor] = []
    monkeypatch.setattr(trainer.networks.generator, "loss", lambda z, labels, rng: seen.append(z) or z.sum())
    for batch in batches(trainer.stage, trainer.key, 0, 80, lambda: False):
        list(trainer.stage.updates(trainer.networks, batch, Random(0, batch.step)))
    torch.testing.assert_close(covariance_of(torch.cat(seen)), torch.eye(4), atol=0.15, rtol=0)


def test_the_whole_of_a_run_goes_by_them_and_the_pipeline_undoes_them(tmp_path):
    parts = {name: tiny.RECIPE[name] for name in ("generator", "sample", "evaluate")}
    path = write(tmp_path, latents__whitening=1.0, **parts)
    jobs = tiny.run(path)
    (folder,) = write_pipelines(jobs, tmp_path / "run")
    pipe = DMVAEPipeline.from_pretrained(folder)
    model = load_tokenizer(jobs[0].folder / "autoencoder")
    assert torch.equal(pipe.vae.whitening, model.whitening)
    z = torch.randn(3, 4, 3, 3)
    torch.testing.assert_close(pipe.vae.normalize(pipe.vae.denormalize(z)), z, atol=1e-4, rtol=1e-4)
    rounded = pipe.vae.to(torch.bfloat16).denormalize(z)
    torch.testing.assert_close(rounded, model.denormalize(z), atol=0.02 * float(model.latent_std.max()), rtol=0.05)


def test_who_trains_it_further_or_adapts_it_begins_without(tmp_path):
    (job,) = tiny.run(write(tmp_path, latents__whitening=1.0))
    source = read(TokenizerSource, {"type": "dmvae", "path": str(job.folder / "autoencoder")}, "source")
    model = start(source.resolve(), size=12, channels=3, pretrained=True)
    assert model.whitening is None
    assert not model.config["whitened"]
    (tmp_path / "again").mkdir()
    again = tiny.write(
        tmp_path / "again",
        **ALONE
        | {"pretrained": {"type": "dmvae", "path": str(job.folder / "autoencoder")}}
        | {"generator": None, "sample": None, "evaluate": None},
    )
    (job,) = tiny.run(again)
    model = load_tokenizer(job.folder / "autoencoder")
    assert isinstance(model, AdaptedTokenizer)
    assert model.whitening is None


def test_a_bijection_begins_with_latents_that_are_not(tmp_path):
    own = load_tokenizer(tiny.variational(tmp_path / "vae", torch.tensor([0.5, 1.0, 2.0, 0.1])))
    mean, std = torch.randn(4), torch.rand(4) + 0.5
    own.set_statistics(mean, std, whitening(covariance()[:4, :4], 1.0))
    own.save_pretrained(tmp_path / "whitened")
    source = {"type": "reshaped", "source": {"type": "dmvae", "path": str(tmp_path / "whitened")}}
    model = adapt(read(TokenizerSource, source, "source"), size=12, channels=3, pretrained=True)
    images = torch.rand(2, 3, 12, 12) * 2 - 1
    with torch.no_grad():
        plain = (own.encode(images).latents - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)
        torch.testing.assert_close(model.encode(images).latents, plain, atol=1e-5, rtol=1e-5)


def test_one_of_diffusers_is_whitened_in_our_class(tmp_path):
    path = tiny.write(
        tmp_path,
        **ALONE
        | {"pretrained": foreign.source("AutoencoderKL", tmp_path), "latents__whitening": 1.0}
        | {"generator": None, "sample": None, "evaluate": None},
    )
    (job,) = tiny.run(path)
    model, stored = load_tokenizer(job.folder / "autoencoder"), LatentSet(job.folder / "latents")
    torch.testing.assert_close(model.normalize(stored.shards[0]), items(stored))
    torch.testing.assert_close(covariance_of(items(stored)), torch.eye(4), atol=0.02, rtol=0)


@pytest.mark.parametrize(("stored", "refused"), [(4, True), (5, False)])
def test_too_few_places_are_refused(tmp_path, stored, refused):
    over = {"latents__stored": stored, "latents__whitening": 1.0, "data__size": 4}  # a latent of one place
    recipe = load(tiny.write(tmp_path, variants=None, **over))["main"]
    told = "latents.whitening: 4 places of latents do not tell how 4 channels vary together"
    assert any(told in line for line in problems(recipe, recipe.stages())) == refused


def test_a_config_in_memory_makes_the_same_tokenizer_again():
    source = read(TokenizerSource, {"type": "identity", "patch": 4}, "source")
    model = adapt(source, size=12, channels=1, pretrained=True)
    model.set_statistics(torch.zeros(16), torch.ones(16), whitening(torch.eye(16) + 0.5, 1.0))
    again = AdaptedTokenizer.from_config(model.config)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.whitening, model.whitening)


def test_of_one_channel_it_is_idle(tmp_path):
    over = {"autoencoder__latent_channels": 1, "latents__whitening": 1.0}
    recipes = load(tiny.write(tmp_path, variants=None, **over))
    assert any("latents.whitening: 1.0 changes nothing" in line for line in idle(recipes))
    assert not idle(load(tiny.write(tmp_path, variants=None, latents__whitening=1.0)))
