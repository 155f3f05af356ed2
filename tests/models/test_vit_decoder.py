"""The transformer decoder: sizes, places, what a permutation of the latents does, checkpointing, artifacts."""

import pytest
import torch

from dmvae import config as configs
from dmvae.decoders import DecoderConfig
from dmvae.decoders.vit import TransformerDecoder, ViTDecoder, positions
from dmvae.tokenizers.autoencoder import Autoencoder

FIELDS = {"type": "vit", "width": 16, "depth": 2, "heads": 2}


def small(stride: int = 2) -> TransformerDecoder:
    torch.manual_seed(0)
    return ViTDecoder(width=16, depth=2, heads=2).build(latent_channels=4, channels=3, stride=stride)


def tokenizer() -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(
        encoder={"type": "conv", "width": 8, "multipliers": [1], "stride": 4, "out_channels": 8},
        image_size=16,
        latent_channels=4,
        bottleneck_width=8,
        decoder=FIELDS,
    )


@pytest.mark.parametrize("stride", [1, 3, 8])
@torch.no_grad()
def test_the_image_is_stride_times_the_latent_of_any_size(stride):
    assert small(stride)(torch.randn(2, 4, 2, 5)).shape == (2, 3, 2 * stride, 5 * stride)


@torch.no_grad()
def test_a_linear_decoder_paints_each_latent_into_its_own_patch():
    """Without blocks an image is a linear map of each place, so a changed latent changes its patch alone."""
    model, z = small(stride=4), torch.randn(1, 4, 3, 3)
    model.blocks = torch.nn.ModuleList()
    changed = z.clone()
    changed[0, :, 1, 2] += 1
    places = (model(changed) != model(z)).any(1)[0].nonzero()
    assert places.min(0).values.tolist() == [4, 8]
    assert places.max(0).values.tolist() == [7, 11]


@torch.no_grad()
def test_places_count(monkeypatch):
    """Transformers without positions would decode shuffled latents into the same patches, shuffled."""
    model, z = small(), torch.randn(1, 4, 1, 6)
    shuffled = z.flip(3)
    patches = model(z).unflatten(3, (6, 2)).flip(3).flatten(3)
    assert not torch.allclose(model(shuffled), patches, atol=1e-3)
    monkeypatch.setattr("dmvae.decoders.vit.positions", lambda h, w, c: torch.zeros(h * w, c))
    patches = model(z).unflatten(3, (6, 2)).flip(3).flatten(3)
    assert torch.allclose(model(shuffled), patches, atol=1e-5)


def test_a_part_of_the_grid_has_the_places_of_the_whole():
    whole = positions(5, 5, 8).unflatten(0, (5, 5))
    assert torch.equal(positions(3, 5, 8).unflatten(0, (3, 5)), whole[:3])


def test_checkpointing_gives_the_same_gradients():
    grads, calls = [], {False: 0, True: 0}
    for checkpointing in (False, True):
        model = tokenizer().train()
        if checkpointing:
            model.enable_gradient_checkpointing()

        def count(*_, checkpointing=checkpointing):
            calls[checkpointing] += 1

        model.decoder.blocks[0].register_forward_pre_hook(count)
        model.decode(torch.ones(1, 4, 4, 4)).sample.square().mean().backward()
        grads.append(model.decoder.embed.weight.grad)
    assert torch.equal(*grads)
    assert calls == {False: 1, True: 2}, "once more in the backward pass"


def test_a_saved_tokenizer_loads(tmp_path):
    model = tokenizer().eval()
    model.save_pretrained(tmp_path)
    x = torch.rand(1, 3, 16, 16)
    assert torch.equal(Autoencoder.from_pretrained(tmp_path).eval()(x).sample, model(x).sample)
    assert model.parts().last_layer is model.decoder.head.weight


def test_a_width_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"width: 18 must be a multiple of 4 and of heads \(2\)"):
        configs.read(DecoderConfig, FIELDS | {"width": 18}, "decoder")
