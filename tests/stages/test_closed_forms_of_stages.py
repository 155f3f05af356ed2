"""What stages compute in a line or two of their own, beside its closed form; and settings that must reach what reads
them."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

import tiny
from dmvae.flow.loss import Times, gaussian_loss
from dmvae.generators.flow import FlowModelConfig
from dmvae.inputs import Inputs
from dmvae.jobs import plan
from dmvae.matching import Context
from dmvae.matching.dmd import DMD
from dmvae.matching.velocities import binned
from dmvae.models.drawing import content_hashes
from dmvae.recipe import load
from dmvae.runtime.random import Random
from dmvae.stages import reference
from dmvae.stages.encoder import contrast
from dmvae.stages.sample import SampleConfig
from dmvae.stages.tokenizer import divergence, log_variance, noised
from dmvae.training.data import batches
from dmvae.training.stage import Batch
from dmvae.training.trainer import Trainer
from dmvae.transport.sliced import _hold_out


def test_the_kl_term_is_that_of_two_gaussians():
    mean, logvar = Random(0).normal(5, 4, 2, 2), Random(1).normal(5, 4, 2, 2)
    expected = kl_divergence(Normal(mean, (0.5 * logvar).exp()), Normal(0.0, 1.0)).mean()
    assert float(divergence(mean, logvar)) == pytest.approx(float(expected), rel=1e-5)


def test_noise_of_a_decoder_has_a_strength_for_each_image_and_the_spread_of_each_channel():
    z, tau = Random(2).normal(2000, 2, 8, 8) * torch.tensor([1.0, 3.0]).view(2, 1, 1) + 5, 0.8
    added = (noised(z, tau, Random(3)) - z).square().mean((2, 3)).sqrt()
    assert added.square().mean(0).tolist() == pytest.approx([tau**2, 9 * tau**2], rel=0.1)
    mean = tau * (2 / math.pi) ** 0.5
    assert added.mean(0).tolist() == pytest.approx([mean, 3 * mean], rel=0.1)
    assert (added[:, 1] / added[:, 0]).median().item() == pytest.approx(3, rel=0.05)


def test_simclr_of_perfect_pairs_and_of_pairs_exchanged():
    """Orthogonal images: of 2n - 1 other views one is at 1, the rest at 0."""
    x, temperature = torch.eye(4), 0.5
    loss, found = contrast(x, x, temperature)
    assert float(loss) == pytest.approx(-math.log(math.exp(2) / (math.exp(2) + 6)), rel=1e-5)
    assert float(found) == 1.0
    loss, found = contrast(x, x.roll(1, 0), temperature)
    assert float(loss) == pytest.approx(-math.log(1 / (math.exp(2) + 6)), rel=1e-5)
    assert float(found) == 0.0


def test_the_interval_of_guidance_reaches_the_sampler():
    settings = SampleConfig(guidance=(1.0, 2.0), guidance_interval=(0.2, 0.8)).settings(2.0)
    assert settings.guidance_interval == (0.2, 0.8)


def test_an_image_and_its_mirror_image_have_other_noise():
    x = torch.rand(3, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(content_hashes(x), content_hashes(x.flip(3)))


@pytest.mark.parametrize("shift", [1.0, 9.0])
def test_a_student_s_lag_is_measured_at_the_times_that_it_learns_at(shift):
    z, labels = Random(3).normal(64, 4, 2, 2), torch.zeros(64, dtype=torch.int64)
    context = Context(Random(4), 1)
    context.time_shift = shift
    loss, log = DMD().student_loss(lambda z_t, t, labels: torch.zeros_like(z_t), z, labels, context)
    assert float(log["student/lag"]) == pytest.approx(float(loss / gaussian_loss(z, Times("uniform", shift))), rel=1e-5)


def test_gaps_are_named_by_the_middles_of_their_bins():
    found = binned(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0.1, 0.2, 0.9]))
    assert {name: pair.tolist() for name, pair in found.items()} == {
        "gap/t0.12": [3, 2], "gap/t0.38": [0, 0], "gap/t0.62": [0, 0], "gap/t0.88": [4, 1]
    }  # fmt: skip


def test_a_wide_head_sees_the_backbone_s_tokens_and_its_condition():
    head = FlowModelConfig(width=16, depth=1, heads=2, head_width=24).build((24, 3, 3), 3).head
    tokens, condition = (Random(i).normal(2, n, 16).requires_grad_() for i, n in enumerate((9, 1)))
    for gradient in torch.autograd.grad(head.condition(tokens, condition).square().sum(), (tokens, condition)):
        assert gradient.abs().min() > 0


def test_an_eighth_is_held_out():
    x = torch.arange(20.0).view(20, 1)
    kept, seen = _hold_out(x, torch.Generator().manual_seed(0), True)
    assert (len(kept), len(seen)) == (17, 3)
    assert sorted([*kept.flatten().tolist(), *seen.flatten().tolist()]) == list(range(20))
    assert _hold_out(x, torch.Generator(), False) == (x, x)


def trainer_of(tmp_path, variant, stage, **over):
    path = tiny.write(tmp_path, **over)
    tiny.begin(path, stage, variant)
    jobs = {job.stage.name: job for job in plan({variant: load(path)[variant]}, tmp_path / "run")}
    job = jobs[stage]
    inputs = Inputs(job.recipe, job.variant, job.folder, job.reads, torch.device("cpu"))
    return Trainer(job.stage(job.recipe.section(job.stage), inputs))


def batch_of(trainer, step=0):
    images, labels = trainer.stage.data().__getitems__(range(8))
    return Batch(images.float() / 127.5 - 1, labels, step, 8)


@pytest.mark.slow
def test_the_kl_term_is_in_the_loss_by_its_weight(tmp_path):
    found = {}
    for weight in (0.5, 2.0):
        trainer = trainer_of(tmp_path, "kl", "tokenizer", variants__kl__tokenizer__kl_weight=weight)
        turns = trainer.stage.updates(trainer.networks, batch_of(trainer), Random(0))
        found[weight] = next(turns)
    kl = float(found[2.0].log["tokenizer/kl"])
    assert kl > 0
    assert float(found[2.0].loss - found[0.5].loss) == pytest.approx(1.5 * kl, rel=1e-3)


@pytest.mark.slow
def test_a_training_s_times_reach_teacher_objective_and_generator(tmp_path, monkeypatch):
    seen, taught, own, teach = [], [], DMD.loss, reference.flow_loss
    monkeypatch.setattr(DMD, "loss", lambda self, *given: seen.append(given[4].times) or own(self, *given))
    record = lambda network, *given: (teach(network, *given), taught.append(network.times))[0]
    monkeypatch.setattr(reference, "flow_loss", record)
    asked = {"reference": (4.0, 0.25, 0.75), "matching": (3.0, -0.5, 0.5), "generator": (2.0, 0.5, 2.0)}
    over = {"matching__objective": {"type": "dmd"}}
    for stage, given in asked.items():
        over[f"{stage}__time_distribution"] = "logit_normal"
        over |= {f"{stage}__time_{name}": of for name, of in zip(("shift", "mean", "std"), given, strict=True)}
    trainer = trainer_of(tmp_path, "matched", "generator", **over)
    found = {"reference": {*taught}, "matching": {*seen}, "generator": {trainer.networks.generator.times}}
    assert found == {stage: {Times("logit_normal", *given)} for stage, given in asked.items()}


@pytest.mark.slow
def test_the_pull_on_raw_latents_is_that_on_normalised_ones_over_their_spread(tmp_path, monkeypatch):
    """d loss / d raw = weight x (d loss / d normalised) / std where the pull is not balanced."""
    over = {"type": "dmd"}
    trainer = trainer_of(tmp_path, "matched", "matching", matching__objective=over, matching__balance="fixed")
    model, pulls = trainer.networks.autoencoder, []
    model.latent_std.copy_(torch.linspace(0.5, 2, len(model.latent_std)))
    with torch.no_grad():
        for p in trainer.networks.student.parameters():  # which is the teacher at first, and nothing is to be done
            p.add_(0.1)
    monkeypatch.setattr(
        "dmvae.stages.matching.Pull.apply", lambda raw, pull, *rest: pulls.append((raw, pull, rest[0])) or raw
    )
    loss = DMD.loss
    slopes = []

    def recorded(self, z, *given):
        value, log = loss(self, z, *given)
        slopes.append(torch.autograd.grad(value, z, retain_graph=True)[0])
        return value, log

    monkeypatch.setattr(DMD, "loss", recorded)
    next(trainer.stage.updates(trainer.networks, batch_of(trainer), Random(0)))
    ((_, pull, weight),) = pulls
    assert weight == trainer.config.weight
    assert pull.abs().sum() > 0
    torch.testing.assert_close(pull, slopes[0] / model.latent_std.view(1, -1, 1, 1))


@pytest.mark.slow
def test_a_decoder_sees_new_samples_of_a_drawn_tokenizer_in_each_step(tmp_path, monkeypatch):
    trainer = trainer_of(tmp_path, "matched", "decoder")
    asked, own = [], type(trainer.networks.autoencoder).encode
    monkeypatch.setattr(
        type(trainer.networks.autoencoder), "encode", lambda self, x, *rng: asked.append(rng) or own(self, x, *rng)
    )
    rng = Random(0)
    next(trainer.stage.updates(trainer.networks, batch_of(trainer), rng))
    assert asked == [(rng,)], "which draws them; without it an image's content does"


@pytest.mark.slow
def test_images_are_mirrored_anew_in_each_step(tmp_path):
    """One image, alone in its batch: 24 steps mirror it now and then."""
    trainer = trainer_of(tmp_path, "kl", "tokenizer", data__flip=True, data__count=1, tokenizer__batch_size=1)
    seen = [batch.data for batch in batches(trainer.stage, trainer.key, 0, 24, lambda: False)]
    first = seen[0]
    same = [torch.equal(x, first) for x in seen]
    assert {torch.equal(x, first) or torch.equal(x, first.flip(3)) for x in seen} == {True}
    assert 2 < sum(same) < 22


def test_a_deviation_tells_its_log_variance():
    """Of a tokenizer of one's own, whose posteriors need have no more."""
    std = torch.tensor([0.5, 1.0, 3.0])
    torch.testing.assert_close(log_variance(std), std.square().log())
    assert log_variance(torch.zeros(1)).isfinite()
