"""Autoencoder: the reference implementation's numbers, latents and their statistics, artifacts, errors."""

import pytest
import torch

from dmvae.tokenizers.autoencoder import Autoencoder

CONV = {"type": "conv", "width": 16, "multipliers": [1, 2], "stride": 4, "out_channels": 24}


def small(**changes) -> Autoencoder:
    torch.manual_seed(0)
    config = {
        "encoder": CONV,
        "image_size": 16,
        "in_channels": 3,
        "latent_channels": 4,
        "bottleneck_width": 32,
        "decoder": {"type": "conv", "width": 8, "multipliers": [1, 2], "blocks": 1},
    }
    return Autoencoder(**config | changes).eval()


def images(channels: int = 3, height: int = 16, width: int = 16):
    return torch.rand(2, channels, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


def vit(model: str, **kwargs) -> dict:
    return {"type": "timm", "model": model, "patch_size": 16, "kwargs": kwargs}


def test_the_papers_tokenizer_has_the_published_names_and_355_million_parameters(official_keys, shapes):
    with torch.device("meta"):
        model = Autoencoder(encoder=vit("vit_large_patch14_dinov2"), image_size=256, latent_channels=32)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == 355.2
    assert (model.stride, model.latent_size) == (16, 16)
    published = {
        k.replace("bottle_neck.mlp.", "bottleneck."): v
        for k, v in official_keys["vae_large_z32"].items()
        if "scale." not in k
    }
    assert shapes(model) == published | {"latent_mean": [32], "latent_std": [32]}


@pytest.mark.parametrize("variational", [False, True])
@pytest.mark.parametrize("bottleneck_width", [0, 32])
@pytest.mark.parametrize("channels", [1, 3])
@torch.no_grad()
def test_shapes(variational, bottleneck_width, channels):
    model = small(variational=variational, bottleneck_width=bottleneck_width, in_channels=channels)
    x = images(channels, height=24)
    encoded = model.encode(x)
    assert encoded.latents.shape == (2, 4, 6, 4)
    assert encoded.latent_dist.kl().shape == (2,)
    assert torch.equal(encoded.latent_dist.mode(), encoded.latents)
    assert model(x).sample.shape == x.shape


@torch.no_grad()
def test_only_a_variational_model_has_spread():
    certain, spread = small().encode(images()), small(variational=True).encode(images())
    assert torch.equal(certain.latent_dist.sample(), certain.latents)
    assert certain.latent_dist.kl().count_nonzero() == 0
    generator = torch.Generator().manual_seed(0)
    assert not torch.equal(spread.latent_dist.sample(generator), spread.latents)
    assert (spread.latent_dist.kl() > 0).all()


@torch.no_grad()
def test_denormalize_undoes_normalize():
    model = small()
    z = model.encode(images()).latents
    assert torch.equal(model.normalize(z), z)
    model.latent_mean.copy_(z.mean((0, 2, 3)))
    model.latent_std.copy_(z.std((0, 2, 3)))
    normal = model.normalize(z)
    assert torch.allclose(normal.mean((0, 2, 3)), torch.zeros(4), atol=1e-5)
    assert torch.allclose(normal.std((0, 2, 3)), torch.ones(4), atol=1e-5)
    assert torch.allclose(model.denormalize(normal), z, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "encoder",
    [CONV, {"type": "timm", "model": "vit_tiny_patch16_224", "patch_size": 4, "kwargs": {"depth": 1}}],
    ids=["conv", "timm"],
)
def test_saved_and_loaded_it_gives_the_same(tmp_path, encoder):
    model = small(encoder=encoder)
    model.latent_mean.fill_(0.3)
    model.save_pretrained(tmp_path)
    loaded = Autoencoder.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(images()).sample, model(images()).sample)
    assert torch.equal(loaded.latent_mean, model.latent_mean)


@torch.no_grad()
def test_an_artifact_keeps_the_resolution_of_its_encoder(tmp_path):
    encoder = {"type": "timm", "model": "vit_tiny_patch16_224", "patch_size": 3, "kwargs": {"depth": 1}}
    model = small(encoder=encoder | {"resolution": 12})
    assert (model.stride, model.latent_size) == (4, 4)
    model.save_pretrained(tmp_path)
    loaded, wide = Autoencoder.from_pretrained(tmp_path), images(width=32)
    assert loaded.encoder.patch == 3
    assert torch.equal(loaded.encode(wide).latents, model.encode(wide).latents)
    assert loaded(wide).sample.shape == wide.shape


def test_checkpointing_changes_no_gradient():
    def gradients(model):
        model(images()).sample.square().mean().backward()
        return [p.grad for p in model.parameters()]

    saving, calls = small(), []
    saving.enable_gradient_checkpointing()
    saving.decoder.up[0].register_forward_pre_hook(lambda *_: calls.append(None))
    for a, b in zip(gradients(saving), gradients(small()), strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-8)
    assert len(calls) == 2, "once more in the backward pass"


def test_an_image_that_does_not_divide_is_an_error_that_names_the_nearest_sizes():
    with pytest.raises(ValueError, match=r"width 18 is not a multiple of the tokenizer's stride 4; .* 16 or 20"):
        small().encode(images(width=18))


def test_images_in_bytes_are_refused_with_how_to_make_floats_of_them():
    with pytest.raises(ValueError, match=r"images of torch.uint8 do not fit .*: give float32 in \[-1, 1\]"):
        small().encode((127.5 * images() + 127.5).to(torch.uint8))
    with pytest.raises(ValueError, match=r"latents: give a tensor of floats, got torch.uint8"):
        small().decode(torch.zeros(1, 4, 4, 4, dtype=torch.uint8))


def test_an_encoder_that_does_not_exist_is_an_error_that_says_where():
    with pytest.raises(ValueError, match=r"encoder.*conv"):
        small(encoder={"type": "cnv"})
    with pytest.raises(ValueError, match=r"encoder\.widht.*width"):
        small(encoder={"type": "conv", "widht": 3})
