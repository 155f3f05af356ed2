"""Tiles and slices change memory, not results."""

import weakref

import pytest
import torch

from dmvae.decoders import tiling
from dmvae.tokenizers.autoencoder import Autoencoder

CONV = {"type": "conv", "width": 16, "multipliers": [1, 2], "stride": 4, "out_channels": 24}
VIT = {"type": "timm", "model": "vit_tiny_patch16_224", "patch_size": 4, "kwargs": {"depth": 1}}
DECODER = {"type": "conv", "width": 8, "multipliers": [1, 2], "blocks": 1}


def small(decoder: dict | None = None, **changes) -> Autoencoder:
    torch.manual_seed(0)
    config = {"encoder": CONV, "image_size": 16, "latent_channels": 4, "bottleneck_width": 32} | changes
    return Autoencoder(decoder=DECODER | (decoder or {}), **config).eval()


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [{}, {"decoder": {"attention": False}}, {"encoder": VIT | {"patch_size": 6}, "image_size": 48}],
    ids=["attention at the deepest level", "no attention", "stride 6"],
)
@torch.no_grad()
def test_a_tiled_image_is_the_untiled_one_at_its_seams_too(changes):
    model = small(**changes)
    z = torch.randn(2, 4, 19, 13)
    whole = model.decode(z).sample
    model.enable_tiling(tile=5)
    assert (model.decode(z).sample - whole).abs().max() < 1e-4 * whole.std()


@pytest.mark.slow
@torch.no_grad()
def test_levels_before_the_first_and_more_blocks_are_tiled_exactly_too():
    model = small(encoder=CONV | {"stride": 16}, image_size=32, decoder={"blocks": 2})
    z = torch.randn(1, 4, 9, 9)
    whole = model.decode(z).sample
    model.enable_tiling(tile=6)
    assert (model.decode(z).sample - whole).abs().max() < 1e-4 * whole.std()


@torch.no_grad()
def test_a_tile_that_waits_holds_nothing_on_the_device(monkeypatch):
    """`cpu` copies here as it does from a GPU: what was copied must be gone while the tiles wait for each other."""
    left_behind, waits = [], []

    def copied(tensor):
        left_behind.append(weakref.ref(tensor))
        return tensor.clone()

    def whole_image(tiles):
        waits.append([ref for ref in left_behind if ref() is not None])
        return shared(tiles)

    model, shared = small(), tiling._whole_image
    z = torch.randn(1, 4, 6, 6)
    untiled = model.decode(z).sample
    monkeypatch.setattr(torch.Tensor, "cpu", copied)
    monkeypatch.setattr(tiling, "_whole_image", whole_image)
    model.enable_tiling(tile=3)
    assert (model.decode(z).sample - untiled).abs().max() < 1e-4 * untiled.std()
    assert len(left_behind) > len(waits) > 4
    assert not any(waits)


@torch.no_grad()
def test_independent_tiles_would_not_be_the_same():
    """The check above can fail: without shared means and variances tiles differ in tone."""
    model = small()
    z = torch.randn(1, 4, 20, 20)
    z[:, :, :, 10:] *= 3
    whole = model.decode(z).sample
    alone = torch.cat([model.decode(z[..., :10]).sample, model.decode(z[..., 10:]).sample], dim=3)
    assert (alone - whole)[..., :20].abs().max() > 1e-2 * whole.std()


@pytest.mark.parametrize("encoder", [CONV, VIT], ids=["conv", "vit"])
@torch.no_grad()
def test_every_multiple_of_the_stride_is_encoded_and_tiling_does_not_change_it(encoder):
    model = small(encoder=encoder)
    x = torch.rand(2, 3, 40, 12) * 2 - 1
    z, images = model.encode(x).latents, model(x).sample
    assert z.shape == (2, 4, 10, 3)
    assert images.shape == x.shape
    model.enable_tiling(tile=4)
    assert torch.equal(model.encode(x).latents, z)
    assert (model(x).sample - images).abs().max() < 1e-4 * images.std()


@torch.no_grad()
def test_a_vision_transformer_of_another_size_has_its_positions_resampled():
    """The same weights, built for the larger image by timm itself, give the same features there."""
    import timm

    kwargs = {"patch_size": 4, "depth": 1, "num_classes": 0, "pretrained": False}
    encoder = small(encoder=VIT).encoder
    fixed = timm.create_model("vit_tiny_patch16_224", img_size=16, **kwargs)
    fixed.load_state_dict(encoder.model.state_dict())
    x = torch.rand(1, 3, 24, 24) * 2 - 1
    own = x[..., :16, :16]
    as_timm = lambda image: torch.addcmul(encoder.shift, image, encoder.scale)
    assert torch.equal(encoder(own).flatten(2).mT, fixed.eval().forward_features(as_timm(own))[:, 1:])
    fixed.set_input_size(24)
    assert torch.allclose(encoder(x).flatten(2).mT, fixed.forward_features(as_timm(x))[:, 1:], atol=1e-5)


@torch.no_grad()
def test_slices_are_the_batch():
    model = small(variational=True)
    x = torch.rand(3, 3, 16, 16)
    z, images = model.encode(x).latents, model(x).sample
    model.enable_slicing()
    assert torch.allclose(model.encode(x).latents, z, atol=1e-6)
    assert torch.allclose(model(x).sample, images, atol=1e-3)


@pytest.mark.slow
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
