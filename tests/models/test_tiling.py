"""Tiles and slices change memory, not results."""

import pytest
import torch

from dmvae.models import Autoencoder

CONV = {"type": "conv", "width": 16, "multipliers": [1, 2], "stride": 4, "out_channels": 24}
VIT = {"type": "timm", "model": "vit_tiny_patch16_224", "patch_size": 4, "kwargs": {"depth": 1}}


def small(**changes) -> Autoencoder:
    torch.manual_seed(0)
    config = {"image_size": 16, "latent_channels": 4, "bottleneck_width": 32, "decoder_width": 8}
    return Autoencoder(
        **{"encoder": CONV, "decoder_multipliers": (1, 2), "decoder_blocks": 1} | config | changes
    ).eval()


@pytest.mark.parametrize(
    "changes",
    [{}, {"decoder_attention": False}, {"encoder": VIT | {"patch_size": 6}, "image_size": 48}],
    ids=["attention at the deepest level", "no attention", "stride 6"],
)
@torch.no_grad()
def test_a_tiled_image_is_the_untiled_one_at_its_seams_too(changes):
    model = small(**changes)
    z = torch.randn(2, 4, 19, 13)
    whole = model.decode(z).sample
    model.enable_tiling(tile=5)
    assert (model.decode(z).sample - whole).abs().max() < 1e-4 * whole.std()


@torch.no_grad()
def test_levels_before_the_first_and_more_blocks_are_tiled_exactly_too():
    model = small(encoder=CONV | {"stride": 16}, image_size=32, decoder_blocks=2)
    z = torch.randn(1, 4, 9, 9)
    whole = model.decode(z).sample
    model.enable_tiling(tile=6)
    assert (model.decode(z).sample - whole).abs().max() < 1e-4 * whole.std()


@torch.no_grad()
def test_independent_tiles_would_not_be_the_same():
    """The check above can fail: without shared means and variances tiles differ in tone."""
    model = small()
    z = torch.randn(1, 4, 20, 20)
    z[:, :, :, 10:] *= 3
    whole = model.decode(z).sample
    alone = torch.cat([model.decode(z[..., :10]).sample, model.decode(z[..., 10:]).sample], dim=3)
    assert (alone - whole)[..., :20].abs().max() > 1e-2 * whole.std()


@torch.no_grad()
def test_an_encoder_of_one_size_takes_any_multiple_of_its_stride_when_tiling():
    model = small(encoder=VIT)
    x = torch.rand(2, 3, 40, 12) * 2 - 1
    with pytest.raises(ValueError, match="enable_tiling"):
        model.encode(x)
    model.enable_tiling()
    assert model.encode(x).latents.shape == (2, 4, 10, 3)
    assert model(x).sample.shape == x.shape
    own = torch.rand(1, 3, 16, 16)
    tiled = model.encode(own).latents
    model.disable_tiling()
    assert torch.equal(tiled, model.encode(own).latents)


@torch.no_grad()
def test_where_one_tile_alone_lies_it_is_that_tiles_latents():
    model = small(encoder=VIT)
    x = torch.rand(1, 3, 16, 40) * 2 - 1
    model.enable_tiling()
    z = model.encode(x).latents
    assert torch.allclose(z[..., :3], model.encode(x[..., :16]).latents[..., :3], atol=1e-5)


@torch.no_grad()
def test_slices_are_the_batch():
    model = small(variational=True)
    x = torch.rand(3, 3, 16, 16)
    z, images = model.encode(x).latents, model(x).sample
    model.enable_slicing()
    assert torch.allclose(model.encode(x).latents, z, atol=1e-6)
    assert torch.allclose(model(x).sample, images, atol=1e-3)


@pytest.mark.parametrize("encoder", [CONV, VIT], ids=["conv", "vit"])
def test_encode_and_decode_compile_without_a_graph_break(encoder):
    model = small(encoder=encoder)
    x = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        z = torch.compile(model.encode, fullgraph=True, backend="eager")(x).latents
        images = torch.compile(model.decode, fullgraph=True, backend="eager")(z).sample
        assert torch.allclose(z, model.encode(x).latents, atol=1e-6)
        assert torch.allclose(images, model.decode(z).sample, atol=1e-6)


def test_two_scalars_stand_for_the_statistics_of_all_channels_together():
    model = small()
    z = torch.randn(4096, 4, 1, 1, dtype=torch.float64) * torch.tensor([1.0, 2, 3, 0.1]).view(4, 1, 1) + 0.5
    z[:, 0] -= 3
    model.set_statistics(z.mean((0, 2, 3)), z.std((0, 2, 3)))
    scaled = (z - model.config.shift_factor) * model.config.scaling_factor
    assert abs(scaled.mean()) < 1e-6
    assert abs(scaled.std() - 1) < 1e-3


def test_latents_and_images_of_other_channels_are_errors_that_say_what_fits():
    with pytest.raises(ValueError, match=r"\[1, 5, 4, 4\] do not fit.*\[n, 4, height / 4"):
        small().decode(torch.zeros(1, 5, 4, 4))
    with pytest.raises(ValueError, match=r"\[1, 1, 16, 16\] do not fit.*\[n, 3, height"):
        small().encode(torch.zeros(1, 1, 16, 16))
    with pytest.raises(ValueError, match="tile is 0"):
        small().enable_tiling(0)
