"""What a training does with its settings: which weights it saves, and by which steps it moves them."""

import pytest
import torch
from safetensors.torch import load_file
from steps import batch_of, trainer_of
from torch import nn

import tiny
from dmvae.runtime.random import seed_of
from dmvae.training.logging import Figures
from dmvae.training.optim import adamw
from dmvae.training.stage import TrainingConfig


def test_what_is_saved_are_the_averaged_weights(tmp_path):
    trainer = trainer_of(tmp_path, "generator", generator__ema=0.5, generator__learning_rate=1e-2)
    for step in range(3):
        trainer.advance(batch_of(trainer, step), Figures(tmp_path, "none", 0, ""))
    network, average = trainer.networks.generator, trainer.averages["generator"]
    raw = {name: p.detach().clone() for name, p in network.named_parameters()}
    trainer.save_networks(tmp_path / "saved")
    (file,) = (tmp_path / "saved").rglob("*.safetensors")
    saved = load_file(file)
    assert all(torch.equal(p, raw[name]) for name, p in network.named_parameters()), "the training goes on as it was"
    trained = {id(p): tensor for p, tensor in zip(average.parameters, average.tensors, strict=True)}
    followed = {name: trained[id(p)] for name, p in network.named_parameters() if id(p) in trained}
    assert followed
    assert all(torch.equal(saved[name], tensor) for name, tensor in followed.items())
    assert any(not torch.equal(saved[name], raw[name]) for name in followed)


def test_betas_and_weight_decay_are_those_of_the_recipe():
    ours, theirs = (nn.Parameter(torch.linspace(-1, 1, 7)) for _ in range(2))
    config = TrainingConfig(steps=9, learning_rate=0.1, betas=(0.5, 0.6), weight_decay=0.3)
    plain = torch.optim.AdamW([theirs], lr=0.1, betas=(0.5, 0.6), weight_decay=0.3)
    optimizer = adamw([ours], config, 0.1)
    optimizer.param_groups[0]["lr"] = 0.1
    for step in range(3):
        for parameter, steps in ((ours, optimizer), (theirs, plain)):
            parameter.grad = torch.arange(7.0) - step
            steps.step()
    assert torch.allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize(("clip", "left"), [(1.0, 1.0), (0.0, 10.0)])
def test_a_gradient_is_clipped_to_the_recipe_s_norm(tmp_path, monkeypatch, clip, left):
    trainer = trainer_of(tmp_path, "generator", generator__clip=clip)
    parameters, seen = trainer.networks.trains["generator"], []

    def norm():
        return torch.cat([p.grad.flatten() for p in parameters]).norm().item()

    monkeypatch.setattr(trainer.optimizers["generator"], "step", lambda: seen.append(norm()))
    for p in parameters:
        p.grad = torch.zeros_like(p)
    parameters[0].grad.view(-1)[0] = 10.0
    figures = trainer.move("generator")
    assert seen == [pytest.approx(left, rel=1e-4)]
    assert float(figures["generator/gradient_norm"]) == pytest.approx(10.0), "what is logged is the norm before"


FALLS = {"steps": 6, "schedule": "linear", "learning_rate": 1e-2, "final_learning_rate": 1e-3, "decay_from": 0.5}


def train_on(trainer, steps, folder):
    for step in steps:
        torch.manual_seed(step)
        trainer.advance(batch_of(trainer, step), Figures(folder, "none", 0, ""))


def test_resumed_while_the_learning_rate_falls_it_ends_in_the_same_weights(tmp_path):
    whole, cut, again = (trainer_of(tmp_path, "generator", generator=FALLS) for _ in range(3))
    train_on(whole, range(6), tmp_path)
    train_on(cut, range(4), tmp_path)
    cut.save(tmp_path / "checkpoints")
    cut.background.wait()
    assert again.resume(tmp_path / "checkpoints")
    train_on(again, range(4, 6), tmp_path)
    (rate,) = {optimizer.param_groups[0]["lr"] for optimizer in again.optimizers.values()}
    assert rate == pytest.approx(1e-2 - 9e-3 * 2 / 3)
    ours, theirs = again.networks.state_dict(), whole.networks.state_dict()
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []


def test_the_discriminator_s_learning_rate_falls_by_the_same_factor(tmp_path):
    adversary = {"learning_rate": 2e-4, "start": 0}
    trainer = trainer_of(tmp_path, "tokenizer", tokenizer=FALLS, losses__adversarial=adversary)
    trainer.step = 5
    train_on(trainer, [5], tmp_path)
    rates = {name: optimizer.param_groups[0]["lr"] for name, optimizer in trainer.optimizers.items()}
    assert rates == pytest.approx({"tokenizer": 4e-3, "discriminator": 8e-5})


def test_the_discriminator_has_its_own_learning_rate(tmp_path):
    trainer = trainer_of(tmp_path, "tokenizer", losses__adversarial__learning_rate=3e-5, tokenizer__learning_rate=2e-3)
    rates = {name: optimizer.param_groups[0]["base_lr"] for name, optimizer in trainer.optimizers.items()}
    assert rates["discriminator"] == 3e-5
    assert {rate for name, rate in rates.items() if name != "discriminator"} == {2e-3}


def test_a_warmup_that_outlasts_the_training_is_told(tmp_path, capsys):
    tiny.run(tiny.write(tmp_path, encoder__warmup=40, encoder__steps=4), "matched", only="encoder")
    told = " ".join(capsys.readouterr().out.split())
    assert "encoder: warmup: 40 steps outlast the 4 of training; learning rates end at 10% of what is given" in told


def test_what_torch_draws_by_itself_depends_on_the_step_alone(tmp_path, monkeypatch):
    """As an encoder's dropout does."""
    trainer = trainer_of(tmp_path, "generator")
    drawn, updates = [], type(trainer.stage).updates

    def drawing(*args):
        drawn.append(torch.rand(9).tolist())
        yield from updates(*args)

    monkeypatch.setattr(type(trainer.stage), "updates", drawing)
    for history, step in ((5, 3), (7, 3), (7, 4)):
        torch.manual_seed(history)
        trainer.step = step
        trainer.advance(batch_of(trainer, step), Figures(tmp_path, "none", 0, ""))
    torch.manual_seed(seed_of(*trainer.key, 3, "global", 0))
    assert drawn[0] == drawn[1] == torch.rand(9).tolist()
    assert drawn[2] != drawn[0]
