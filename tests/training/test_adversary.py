"""When the adversary learns, when the decoder feels it, and how strongly."""

import re
from dataclasses import replace

import pytest
import torch
from steps import batch_of, trainer_of

import tiny
from dmvae import checks
from dmvae import config as configs
from dmvae.datasets.pixels import as_input, to_uint8
from dmvae.inputs import Inputs
from dmvae.losses.adversarial import augment, hinge_generator
from dmvae.losses.discriminators import AdversarialConfig
from dmvae.losses.discriminators.patchgan import PatchGANConfig
from dmvae.models.discriminator import PatchGAN
from dmvae.recipe import load
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
    free = reconstruct(networks, adaptive, x, recon, Random(0))[1]["adversarial/weight"]
    assert free != pytest.approx(0.3, rel=0.01)
    limited = replace(adaptive, adversarial=replace(adaptive.adversarial, adaptive_most=float(free) / 0.6))
    assert reconstruct(networks, limited, x, recon, Random(0))[1]["adversarial/weight"] == pytest.approx(
        float(free) / 2
    )


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


@pytest.mark.parametrize("hole", [0.0, 0.2, 0.5])
def test_holes_are_of_the_share_asked_for_in_both_turns(tmp_path, hole):
    own = {"type": "patchgan", "width": 4, "layers": 1, "norm": "none", "cutout": hole}
    trainer = trainer_of(tmp_path, "tokenizer", losses__adversarial=own)
    networks, losses, seen = trainer.networks, trainer.stage.losses, []
    networks.discriminator.register_forward_pre_hook(lambda module, given: seen.append(given[0].detach()))
    x = batch_of(trainer, 0).data
    recon = networks.autoencoder.decode(networks.autoencoder.encode(x).latents).sample
    reconstruct(networks, losses, x, recon, Random(1))
    discriminate(networks.discriminator, losses.adversarial, x, recon, Random(2))
    rng, image = Random(2), recon.detach()
    both = torch.cat([augment(part, rng, hole) for part in (x, image)])
    assert torch.allclose(seen[0], augment(image, Random(1), hole), atol=1e-6)
    assert torch.allclose(seen[1], both, atol=1e-6)


def test_the_discriminator_learns_from_reconstructions_in_eight_bits_where_asked():
    x, recon = (1.2 * (2 * Random(i).uniform(4, 3, 8, 8) - 1) for i in range(2))
    seen = []
    for rounded in (True, False):
        config = PatchGANConfig(augment=False, rounded=rounded)
        discriminate(lambda images: seen.append(images) or images.mean((1, 2, 3)), config, x, recon, Random(0))
    assert torch.equal(seen[0][4:], as_input(to_uint8(recon), torch.device("cpu")))
    assert torch.equal(seen[0][:4], x)
    assert torch.equal(seen[1], torch.cat([x, recon]))


def test_one_that_learns_later_than_it_acts_is_refused():
    with pytest.raises(ValueError, match=r"losses\.adversarial: learn_from: 0\.6 is later than start, 0\.5, "):
        configs.read(AdversarialConfig, {"learn_from": 0.6}, "losses.adversarial")


def lightning(network):
    """A checkpoint of latent diffusion's trainer: behind a prefix, and no bias before a batch norm."""
    own = {f"loss.discriminator.{k}": v for k, v in network.state_dict().items() if k != "main.2.bias"}
    return {"state_dict": {"encoder.conv_in.weight": torch.zeros(3), **own}, "global_step": 7}


@pytest.mark.parametrize("name", ["folder", "vavae.ckpt", "scripts.pt"])
def test_a_discriminator_starts_with_what_another_has_learned(tmp_path, name):
    form = {"width": 4, "layers": 1, "norm": "batch"}
    there = PatchGAN(in_channels=3, **form)
    there(torch.randn(4, 3, 12, 12))  # moves the running statistics
    there.save_pretrained(tmp_path / "folder")
    torch.save(lightning(there), tmp_path / "vavae.ckpt")
    scripts = {"vae_wo_ddp": {"decoder.conv_in.weight": torch.zeros(3)}, "disc_wo_ddp": there.state_dict()}
    torch.save(scripts, tmp_path / "scripts.pt")
    recipe = load(tiny.write(tmp_path, losses__adversarial={**form, "start_from": str(tmp_path / name)}))["matched"]
    inputs = Inputs(recipe, "", tmp_path, {}, torch.device("cpu"))
    assert list(checks.problems(recipe, [s for s in recipe.stages() if s.name == "tokenizer"])) == []
    found = inputs.new_discriminator(recipe.losses.adversarial).state_dict()
    assert all(torch.equal(found[key], value) for key, value in there.state_dict().items())


@pytest.mark.parametrize(
    ("over", "told"),
    [
        ({"width": 8}, r"start_from: .*here: these are not the weights of this PatchGAN; .*misshapen: main\.0\."),
        ({"layers": 2, "norm": "batch"}, r"start_from: .* missing: main\.3\."),
        ({"start_from": "nowhere"}, "start_from: nowhere: no such file"),
    ],
)
def test_weights_of_another_discriminator_are_told_before_anything_runs(tmp_path, over, told):
    form = {"width": 4, "layers": 1, "norm": "none"}
    PatchGAN(in_channels=3, **form).save_pretrained(tmp_path / "here")
    own = form | {"start_from": str(tmp_path / "here")} | over
    recipe = load(tiny.write(tmp_path, losses__adversarial=own))["matched"]
    [problem] = checks.problems(recipe, [s for s in recipe.stages() if s.name == "tokenizer"])
    assert re.search(told, problem)


def test_the_weights_that_a_discriminator_starts_with_count_and_not_their_place(tmp_path):
    for name in ("here", "there", "other"):
        torch.manual_seed(name == "other")
        PatchGAN(in_channels=3, width=4, layers=1).save_pretrained(tmp_path / name / "discriminator")
    plain, here, there, other = (
        configs.identity(PatchGANConfig(start_from=None if name is None else tmp_path / name / "discriminator"))
        for name in (None, "here", "there", "other")
    )
    assert "start_from" not in plain
    assert plain != here == there != other
