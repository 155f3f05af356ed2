"""What a training does with its settings: which weights it saves, and by which steps it moves them."""

import pytest
import torch
from safetensors.torch import load_file
from steps import batch_of, trainer_of
from torch import nn

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


def test_the_discriminator_has_its_own_learning_rate(tmp_path):
    trainer = trainer_of(tmp_path, "tokenizer", losses__adversarial__learning_rate=3e-5, tokenizer__learning_rate=2e-3)
    rates = {name: optimizer.param_groups[0]["base_lr"] for name, optimizer in trainer.optimizers.items()}
    assert rates["discriminator"] == 3e-5
    assert {rate for name, rate in rates.items() if name != "discriminator"} == {2e-3}
