"""When the adversary learns, when the decoder feels it, and how strongly."""

from dataclasses import replace

import pytest
import torch
from steps import batch_of, trainer_of

from dmvae import config as configs
from dmvae.losses.adversarial import augment, hinge_generator
from dmvae.losses.discriminators import AdversarialConfig
from dmvae.losses.discriminators.patchgan import PatchGANConfig
from dmvae.runtime.random import Random
from dmvae.stages.reconstruction import discriminate, reconstruct
from dmvae.training.logging import Figures


def trained(folder, steps=3, **over):
    """A trainer of the stage `tokenizer` after some of 1000 steps."""
    trainer = trainer_of(folder, "tokenizer", **over)
    for step in range(steps):
        torch.manual_seed(step)
        trainer.advance(batch_of(trainer, step), Figures(folder, "none", 0, ""))
    return trainer.networks


def test_a_weight_that_does_not_adapt_multiplies_the_adversary_s_gradient_as_it_stands(tmp_path):
    fixed = {"adaptive": False, "weight": 0.3, "augment": False}
    trainer = trainer_of(tmp_path, "tokenizer", losses__adversarial=fixed)
    networks, losses = trainer.networks, trainer.stage.losses
    x = batch_of(trainer, 0).data
    recon = networks.autoencoder.decode(networks.autoencoder.encode(x).latents).sample
    weights = [recon, networks.autoencoder.parts().last_layer]

    def gradients(loss):
        return torch.autograd.grad(loss, weights, retain_graph=True)

    with_it, log = reconstruct(networks, losses, x, recon, Random(0))
    without, plain = reconstruct(networks, losses, x, recon, Random(0), adversarial=False)
    gan = hinge_generator(networks.discriminator(recon))
    at_image, at_weights = zip(gradients(with_it), gradients(without), gradients(gan), strict=True)
    assert torch.equal(at_image[0], at_image[1] + 0.3 * at_image[2])
    assert torch.allclose(at_weights[0], at_weights[1] + 0.3 * at_weights[2], rtol=1e-4, atol=1e-7)
    assert log["adversarial/weight"] == pytest.approx(0.3)
    assert log["reconstruction/total"] == pytest.approx((plain["reconstruction/total"] + 0.3 * gan).item())
    adaptive = replace(losses, adversarial=replace(losses.adversarial, adaptive=True))
    assert reconstruct(networks, adaptive, x, recon, Random(0))[1]["adversarial/weight"] != pytest.approx(0.3, rel=0.01)


def test_a_discriminator_that_learns_before_its_start_leaves_the_tokenizer_as_it_would_be_without(tmp_path):
    learns = trained(tmp_path, losses__adversarial={"start": 1.0, "learn_from": 0.0})
    idle = trained(tmp_path, losses__adversarial={"start": 1.0})
    alone = trained(tmp_path, losses__adversarial={"weight": 0})
    ours, theirs = learns.autoencoder.state_dict(), alone.autoencoder.state_dict()
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []
    before, after = idle.discriminator.state_dict(), learns.discriminator.state_dict()
    assert not any(torch.equal(after[name], before[name]) for name in before if name.endswith("weight"))


@pytest.mark.parametrize("stage", ["tokenizer", "decoder"])
def test_the_discriminator_has_turns_from_where_it_learns_and_the_decoder_its_gradient_from_start(tmp_path, stage):
    own = {"type": "patchgan", "width": 4, "layers": 1, "start": 0.5, "learn_from": 0.25}
    trainer = trainer_of(tmp_path, stage, losses__adversarial=own, decoder__adversarial=own)
    found = []
    for step in (249, 250, 499, 500):
        first, *others = trainer.stage.updates(trainer.networks, batch_of(trainer, step), Random(0))
        found.append(("adversarial/weight" in first.log, [update.trains for update in others]))
    assert found == [(False, []), (False, ["discriminator"]), (False, ["discriminator"]), (True, ["discriminator"])]


def test_consistency_is_the_mean_square_of_what_augmentation_changes():
    x, recon = (2 * Random(i).uniform(4, 3, 8, 8) - 1 for i in range(2))
    answer = lambda images: images.mean((1, 2, 3))
    with_it, without = (discriminate(answer, PatchGANConfig(consistency=c), x, recon, Random(7)) for c in (0.5, 0.0))
    rng = Random(7)
    change = torch.cat([answer(augment(part, rng)) - answer(part) for part in (x, recon)]).square().mean()
    assert change > 1e-3
    assert with_it.log["adversarial/consistency"] == pytest.approx(change.item(), rel=1e-5)
    assert (with_it.loss - without.loss).item() == pytest.approx(0.5 * change.item(), rel=1e-4)
    blind = discriminate(lambda images: images.new_ones(len(images)), PatchGANConfig(consistency=0.5), x, recon, rng)
    assert blind.log["adversarial/consistency"] == 0


def test_one_that_learns_later_than_it_acts_is_refused():
    with pytest.raises(ValueError, match=r"losses\.adversarial: learn_from: 0\.6 is later than start, 0\.5, "):
        configs.read(AdversarialConfig, {"learn_from": 0.6}, "losses.adversarial")
