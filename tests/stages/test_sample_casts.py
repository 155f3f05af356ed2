"""Under autocast the weights of the generator are cast to bf16 once a batch, and not in every step of the sampler."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dmvae.flow.samplers import Sampling
from dmvae.models.dit import LightningDiT
from dmvae.runtime.precision import autocast
from dmvae.stages.sample import generate
from dmvae.tokenizers.autoencoder import Autoencoder

CPU = torch.device("cpu")
CONV = {"type": "conv", "width": 8, "multipliers": [1], "blocks": 1, "stride": 4, "out_channels": 8}
DECODER = {"type": "conv", "width": 8, "multipliers": [1], "blocks": 0, "attention": False}


class Casts(TorchDispatchMode):
    """Counts what makes a bf16 tensor of one of these, however it is called."""

    def __init__(self, tensors):
        super().__init__()
        self.places, self.found = {x.data_ptr() for x in tensors}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        cast = isinstance(out, torch.Tensor) and out.dtype is torch.bfloat16 and isinstance(args[0], torch.Tensor)
        self.found += cast and args[0].dtype is torch.float32 and args[0].data_ptr() in self.places
        return out


def drawn(steps, function=generate):
    """(images, casts of weights) of so many steps of a guided generator."""
    torch.manual_seed(0)
    generator = LightningDiT(in_channels=4, input_size=2, width=16, depth=2, heads=2, num_classes=3).eval()
    for parameter in generator.parameters():  # zeros would let nothing through
        torch.nn.init.normal_(parameter, std=0.2)
    tokenizer = Autoencoder(encoder=CONV, image_size=8, latent_channels=4, bottleneck_width=0, decoder=DECODER).eval()
    settings = Sampling(steps=steps, method="sde", guidance=2.0)
    with autocast(CPU, "bfloat16"), Casts(generator.parameters()) as casts:
        images, _ = function(generator, tokenizer, torch.arange(3), [0, 1, 2], settings, CPU)
    return images, casts.found


@pytest.mark.parametrize("steps", [2, 6])
def test_each_weight_is_cast_once(steps):
    images, casts = drawn(steps)
    others, _ = drawn(steps, torch.inference_mode()(generate.__wrapped__))
    weights = LightningDiT(in_channels=4, input_size=2, width=16, depth=2, heads=2, num_classes=3)
    products = [m for m in weights.modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)]
    assert casts == 2 * (len(products) - 2)  # weight and bias; the last layer's two are used in float32
    assert torch.equal(images, others)
