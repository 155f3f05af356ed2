"""What `run.compile` compiles, and that it costs no pass more."""

from contextlib import nullcontext

import pytest
import torch
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd

import tiny
from dmvae.decoders.conv import ConvDecoder
from dmvae.inputs import Blueprint
from dmvae.losses import LossConfig
from dmvae.losses.discriminators.patchgan import PatchGANConfig
from dmvae.losses.perceptual import PerceptualLoss
from dmvae.matching.adversarial import Critic
from dmvae.matching.dmd import DMD, WithRatio
from dmvae.models.discriminator import PatchGAN
from dmvae.models.dit import LightningDiT
from dmvae.recipe import load
from dmvae.runtime.random import Random
from dmvae.stages.matching import MatchingStage
from dmvae.stages.reconstruction import DecoderNetworks, discriminate, reconstruct
from dmvae.tokenizers.adapted import adapt
from dmvae.tokenizers.autoencoder import Autoencoder
from dmvae.tokenizers.identity import IdentityTokenizer
from dmvae.training.preparing import compile_networks
from dmvae.training.stage import Batch, Networks
from dmvae.training.trainer import Trainer

VIT = {"type": "timm", "model": "vit_tiny_patch16_224", "patch_size": 16}
CONV = {"type": "conv", "width": 8, "multipliers": [1, 2], "blocks": 1, "stride": 4, "out_channels": 8}
DECODER = {"type": "conv", "width": 8, "multipliers": [1, 2], "blocks": 0, "attention": False}


def networks_of(**modules) -> Networks:
    networks = Networks()
    for name, module in modules.items():
        networks.add_module(name, module)
    return networks


class Counting:
    """A backend that compiles nothing and counts the passes through what it was given."""

    def __init__(self):
        self.forward = self.backward = 0
        self.backend = aot_autograd(fw_compiler=self._count("forward"), bw_compiler=self._count("backward"))

    def _count(self, name):
        def compiler(graph, inputs):
            def run(*args):
                setattr(self, name, getattr(self, name) + 1)
                return graph(*args)

            return make_boxed_func(run)

        return compiler


@pytest.mark.slow
def test_transformers_are_compiled_by_the_block_and_a_decoder_up_to_its_last_norm():
    flow = {"in_channels": 4, "input_size": 2, "width": 16, "depth": 2, "heads": 2, "num_classes": 3}
    with torch.device("meta"):
        networks = networks_of(
            student=LightningDiT(**flow),
            weighted=WithRatio(LightningDiT(**flow), Critic(5, 3, 8, 1)),
            tokenizer=Autoencoder(encoder=VIT, image_size=32, latent_channels=4, decoder=DECODER),
            critic=PatchGAN(in_channels=3, width=8),
            perceptual=PerceptualLoss(1.0),
        )
    compile_networks(networks)  # nothing is called, so no compiler runs
    found = {name for name, module in networks.named_modules() if module._compiled_call_impl}
    assert found == {
        *(f"{of}.blocks.{i}" for of in ("student", "weighted.flow") for i in range(2)),
        *("student.final_layer", "weighted.flow.final_layer"),
        *(f"tokenizer.encoder.model.blocks.{i}" for i in range(12)),
        *(f"tokenizer.decoder.mid.{name}" for name in ("block_1", "block_2")),
        *(f"tokenizer.decoder.up.{i}" for i in range(2)),
    }


def adversarial_step(backend=None):
    """The tokenizer's turn and the discriminator's, on the same weights in every call: (gradients, passes backward by
    the time that the loss is there)."""
    torch.manual_seed(0)
    model = Autoencoder(encoder=CONV, image_size=16, latent_channels=4, bottleneck_width=0, decoder=DECODER)
    networks = DecoderNetworks(model)
    networks.perceptual, networks.discriminator = None, PatchGAN(in_channels=3, width=4, layers=1, norm="none")
    counting = Counting()
    if backend is not None:
        compile_networks(networks, backend=counting.backend)
    x, rng = torch.randn(2, 3, 16, 16), Random(0)
    config = LossConfig(adversarial=PatchGANConfig(augment=False))
    recon = model.decode(torch.randn(2, 4, 4, 4)).sample
    loss, _ = reconstruct(networks, config, x, recon, rng)
    early = counting.backward
    loss.backward()
    discriminate(networks.discriminator, config.adversarial, x, recon, rng).loss.backward()
    return [p.grad for p in networks.parameters() if p.grad is not None], early, counting


@pytest.mark.slow
def test_a_tokenizer_that_can_only_be_used_as_it_is_stays_eager():
    tokenizer = adapt(IdentityTokenizer(patch=4), size=12, channels=3, pretrained=False)
    networks = networks_of(tokenizer=tokenizer)
    compile_networks(networks)
    assert not any(module._compiled_call_impl for module in networks.modules())


@pytest.mark.slow
def test_the_adaptive_weight_s_gradients_run_nothing_that_is_compiled():
    plain, _, _ = adversarial_step()
    found, early, counting = adversarial_step("counting")
    assert early == 0
    assert counting.forward == counting.backward == 4  # the decoder's middle (2) and levels (2)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(plain, found, strict=True))


def test_the_end_that_the_adaptive_weight_differentiates_is_not_compiled():
    decoder = ConvDecoder(width=8, multipliers=(1, 2), blocks=1).build(latent_channels=4, channels=3, stride=4)
    held = {id(p) for part in decoder.compiled_parts() for p in part.parameters()}
    left = {name for name, p in decoder.named_parameters() if id(p) not in held}
    assert left == {
        f"{layer}.{of}"
        for layer in ("conv_in.0.conv", "conv_in.1", "norm_out", "conv_out")
        for of in ("weight", "bias")
    }


def graphs(tmp_path, **over) -> int:
    """How many graphs the first steps of a matching compile, and what is done before its networks are saved."""
    recipe = load(tiny.write(tmp_path, **over))["matched"]
    reads = {stage: recipe.section(stage) for stage in MatchingStage.reads}
    trainer = Trainer(MatchingStage(recipe.section("matching"), Blueprint(recipe, "", reads, 4, fake=False)))
    made = []
    compile_networks(trainer.networks, backend=lambda graph, inputs: made.append(graph) or graph.forward)
    x = torch.randn(8, 3, 12, 12)
    for step in range(2):  # a turn of the tokenizer, and one of the student alone
        trainer.step = step
        for _ in trainer.train_step(Batch(x, torch.arange(8) % 3, step, 4)):
            pass
    with trainer.stage.finished(trainer.networks):
        return len(made)


@pytest.mark.slow
def test_nothing_is_compiled_for_the_teacher_alone_nor_twice_nor_for_what_is_seldom_asked(tmp_path, monkeypatch):
    known = {"run__compile": True}  # by which the stage knows that it is compiled
    found = graphs(tmp_path, matching__proxy_every=1, **known)
    assert found > 1
    # else the teacher is frozen, whose block and last layer are two more, and the encoder has one for each kind of turn
    assert graphs(tmp_path) == found + 3
    monkeypatch.setattr(DMD, "differentiates", True)
    assert graphs(tmp_path, matching__proxy_every=0, **known) == found + 2


@pytest.mark.slow
def test_prices_of_the_finished_tokenizer_compile_nothing(tmp_path, monkeypatch):
    section = {"objective": {"type": "transport"}, "noise": "assigned", "noise_bank": 32, "batch_size": 8, "steps": 8}
    found = graphs(tmp_path, matching=section, run__compile=True)
    monkeypatch.setattr(MatchingStage, "finished", lambda self, networks: nullcontext())
    assert graphs(tmp_path, matching=section, run__compile=True) == found
