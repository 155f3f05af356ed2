"""Each update moves exactly the networks that it names."""

from dataclasses import replace

import pytest
import torch

import tiny
from dmvae.inputs import Inputs
from dmvae.runtime.random import Random
from dmvae.stages import matching
from dmvae.training.stage import Batch
from dmvae.training.trainer import Trainer


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    path = tiny.write(tmp_path_factory.mktemp("gradients"))
    return {job.stage.name: job for job in tiny.run(path, "matched", until="decoder")}


def trainer_of(job):
    inputs = Inputs(job.recipe, job.variant, job.folder, job.reads, torch.device("cpu"))
    trainer = Trainer(job.stage(job.recipe.section(job.stage), inputs))
    dataset = trainer.stage.data()
    images, labels = dataset.__getitems__(range(8))
    return trainer, images.float() / 127.5 - 1, labels


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["tokenizer", "matching", "decoder"])
def test_the_discriminator_is_in_training_wherever_it_trains(jobs, stage):
    """A batch norm that is not would go on with the statistics of an earlier stage's images."""
    trainer, _, _ = trainer_of(jobs[stage])
    assert all(module.training for module in trainer.networks.discriminator.modules())


def test_the_tokenizer_s_turn_takes_the_discriminator_s_statistics_as_they_are(jobs):
    """Those of real and fake images together, that is: of fakes alone, they would hide what tells fakes apart."""
    job = jobs["tokenizer"]
    losses = replace(job.recipe.losses, adversarial=replace(job.recipe.losses.adversarial, norm="batch"))
    trainer, x, y = trainer_of(replace(job, recipe=replace(job.recipe, losses=losses)))
    discriminator = trainer.networks.discriminator
    before = {name: value.clone() for name, value in discriminator.named_buffers()}
    turns = trainer.stage.updates(trainer.networks, Batch(x, y, 5, 6), Random(0))
    next(turns)
    assert discriminator.training
    assert all(torch.equal(value, before[name]) for name, value in discriminator.named_buffers())
    next(turns)
    assert not any(torch.equal(value, before[name]) for name, value in discriminator.named_buffers())


def moved(trainer, update):
    """Names of the parameters that the update changed."""
    before = {
        f"{name}.{key}": p.detach().clone()
        for name, module in trainer.networks.named_children()
        for key, p in module.named_parameters()
    }
    tiny.apply(trainer, update)
    return {
        f"{name}.{key}"
        for name, module in trainer.networks.named_children()
        for key, p in module.named_parameters()
        if not torch.equal(before[f"{name}.{key}"], p)
    }


def parts(names):
    return {".".join(name.split(".")[:2]) if name.startswith("autoencoder") else name.split(".")[0] for name in names}


def test_tokenizer_moves_bottleneck_decoder_and_discriminator_in_turn(jobs):
    trainer, x, y = trainer_of(jobs["tokenizer"])
    turns = trainer.stage.updates(trainer.networks, Batch(x, y, 5, 6), Random(0))
    assert parts(moved(trainer, next(turns))) == {"autoencoder.bottleneck", "autoencoder.decoder"}
    assert parts(moved(trainer, next(turns))) == {"discriminator"}
    assert next(turns, None) is None


def test_before_its_start_the_adversary_has_no_turn(jobs):
    trainer, x, y = trainer_of(jobs["tokenizer"])
    names = [update.trains for update in trainer.stage.updates(trainer.networks, Batch(x, y, 2, 6), Random(0))]
    assert names == ["tokenizer"]


def test_matching_moves_the_tokenizer_every_second_step_and_never_the_teacher(jobs):
    trainer, x, y = trainer_of(jobs["matching"])
    got = []
    for step in range(2):
        for update in trainer.stage.updates(trainer.networks, Batch(x, y, step, 8), Random(0, step)):
            got.append((step, update.trains, parts(moved(trainer, update))))
    everything = {"autoencoder.encoder", "autoencoder.bottleneck", "autoencoder.decoder"}
    assert got == [
        (0, "tokenizer", everything),
        (0, "discriminator", {"discriminator"}),
        (0, "student", {"student"}),
        (1, "student", {"student"}),
    ]


def test_student_steps_do_not_run_the_decoder(jobs, monkeypatch):
    trainer, x, y = trainer_of(jobs["matching"])
    calls = []
    monkeypatch.setattr(trainer.networks.autoencoder, "decode", lambda z: calls.append(z))
    list(trainer.stage.updates(trainer.networks, Batch(x, y, 1, 8), Random(0)))
    assert calls == []


def test_the_student_starts_as_the_teacher(jobs):
    trainer, _, _ = trainer_of(jobs["matching"])
    student = trainer.networks.student.state_dict()
    assert all(torch.equal(student[name], value) for name, value in trainer.networks.teacher.state_dict().items())


def test_decoder_stage_moves_the_decoder_alone(jobs):
    job = jobs["decoder"]
    trainer, x, y = trainer_of(job)
    turns = trainer.stage.updates(trainer.networks, Batch(x, y, 0, 4), Random(0))
    assert parts(moved(trainer, next(turns))) == {"autoencoder.decoder"}
    assert parts(moved(trainer, next(turns))) == {"discriminator"}


@pytest.mark.parametrize(("relative", "expected"), [(False, 3.0), (True, None)])
def test_pull_adds_lambda_times_the_matching_gradient(relative, expected):
    z = torch.randn(4, 2, 3, 3, requires_grad=True)
    pull, target, log = torch.randn(4, 2, 3, 3), torch.randn(4, 2, 3, 3), {}
    matching.Pull.apply(z, pull, 3.0, relative, log).mul(target).sum().backward()
    added = z.grad - target
    if relative:
        assert added.norm() / target.norm() == pytest.approx(3.0, rel=1e-5)
    else:
        assert torch.allclose(added, expected * pull, atol=1e-5)
    assert log["health/gradient_matching"] == pytest.approx(added.norm().item(), rel=1e-4)
    assert log["health/gradient_reconstruction"] == pytest.approx(target.norm().item(), rel=1e-5)


def test_the_surrogate_loss_has_the_objective_s_gradient(jobs):
    """Without an adversary, reconstruct's scalar and the plain loss differ in value, not in gradient."""
    from dmvae.stages.reconstruction import reconstruct

    trainer, x, _ = trainer_of(jobs["decoder"])
    recon = torch.rand_like(x).requires_grad_()
    loss, log = reconstruct(trainer.networks, trainer.stage.losses, x, recon, Random(0), adversarial=False)
    (ours,) = torch.autograd.grad(loss, recon)
    plain = (x - recon).abs().mean()
    (theirs,) = torch.autograd.grad(plain, recon)
    assert torch.allclose(ours, theirs, atol=1e-7)
    assert log["reconstruction/total"] == pytest.approx(plain.item(), rel=1e-5)
