"""What `run.compile` compiles."""

import pytest
import torch

from dmvae.models.discriminator import PatchGAN
from dmvae.models.dit import LightningDiT
from dmvae.tokenizers.autoencoder import Autoencoder
from dmvae.training.loop import compile_networks
from dmvae.training.stage import Networks

VIT = {"type": "timm", "model": "vit_tiny_patch16_224", "patch_size": 16}


def compiled(device: str) -> set[str]:
    """Names of what is compiled, of a matching stage's networks. Nothing is called, so no compiler runs."""
    with torch.device("meta"):
        modules = {
            "student": LightningDiT(in_channels=4, input_size=2, width=16, depth=1, heads=2, num_classes=3),
            "tokenizer": Autoencoder(
                encoder=VIT, image_size=32, latent_channels=4, decoder={"type": "conv", "width": 8}
            ),
            "critic": PatchGAN(in_channels=3, width=8),
        }
    networks = Networks()
    for name, module in modules.items():
        networks.add_module(name, module)
    compile_networks(networks, torch.device(device))
    return {name for name, module in torch.nn.ModuleDict(modules).named_modules() if module._compiled_call_impl}


@pytest.mark.slow
def test_an_accelerator_compiles_every_network_and_a_cpu_those_that_do_not_convolve():
    everywhere = {"student", "tokenizer.encoder", "tokenizer.bottleneck"}
    assert compiled("cpu") == everywhere
    assert compiled("cuda") == everywhere | {"tokenizer.decoder", "critic"}
