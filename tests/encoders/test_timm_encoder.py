"""timm's models as encoders: shapes, order of tokens, input range, resolution, arguments."""

import pickle

import pytest
import timm
import torch
from tiny_vit import tiny_vit

import tiny
from dmvae import checks
from dmvae import config as configs
from dmvae.encoders.timm import TimmEncoder
from dmvae.recipe import load
from hostile import Runs


@pytest.mark.parametrize(
    "kwargs",
    [
        {"checkpoint_path": "weights.pth"},
        {"pretrained_cfg": {"file": "weights.pth"}},
        {"pretrained_cfg_overlay": {"url": "http://nowhere"}},
        {"cache_dir": "/tmp"},
        {"pretrained": True},
        {"scriptable": True},
        {"model_cfg": "x"},
        {"block_fn": "../x.py"},
        {"norm_layer": {"file": "x"}},
        {"depth": [1, ["../x"]]},
    ],
)
def test_arguments_that_do_not_shape_a_network_are_refused(kwargs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights.pth").write_bytes(pickle.dumps(Runs()))
    encoder = TimmEncoder(model="vit_tiny_patch16_224", pretrained=False, kwargs=kwargs)
    with pytest.raises(ValueError, match=rf"kwargs: '?{next(iter(kwargs))}'?"):
        encoder.build(size=16, channels=3)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("channels", [1, 3])
@torch.no_grad()
def test_transformer_features_are_its_patch_tokens_in_rows(channels):
    encoder = tiny_vit().build(size=16, channels=channels).eval()
    x = torch.rand(2, channels, 16, 16) * 2 - 1
    features = encoder(x)
    assert features.shape == (2, encoder.channels, 4, 4)
    tokens = encoder.model.forward_features(x.expand(-1, 3, -1, -1))  # this model's own range is [-1, 1]
    assert torch.allclose(features.flatten(2).transpose(1, 2), tokens[:, 1:], atol=1e-5)


@torch.no_grad()
def test_images_reach_the_model_in_its_own_range():
    encoder = TimmEncoder(model="resnet10t").build(size=32, channels=3).eval()
    seen = []
    encoder.model.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    encoder.model.forward_features = encoder.model.forward = lambda x: seen.append(x) or torch.zeros(1, 512, 1, 1)
    encoder(torch.ones(1, 3, 32, 32))
    white = (1 - torch.tensor(timm.data.IMAGENET_DEFAULT_MEAN)) / torch.tensor(timm.data.IMAGENET_DEFAULT_STD)
    assert torch.allclose(seen[0][0, :, 0, 0], white, atol=1e-5)


@pytest.mark.parametrize(
    ("model", "size", "shape"),
    [
        ("resnet10t", 64, (512, 2, 2)),
        ("convnext_atto", 64, (320, 2, 2)),
        ("swin_tiny_patch4_window7_224", 64, (768, 2, 2)),
    ],
)
@torch.no_grad()
def test_models_with_spatial_features(model, size, shape):
    encoder = TimmEncoder(model=model).build(size=size, channels=3)
    assert encoder(torch.randn(1, 3, size, size)).shape == (1, *shape)
    assert (encoder.channels, size // encoder.stride) == shape[:2]


def test_register_tokens_are_dropped():
    config = TimmEncoder(
        model="vit_small_patch14_reg4_dinov2", patch_size=8, kwargs={"depth": 1, "embed_dim": 48, "num_heads": 3}
    )
    assert config.build(size=16, channels=3)(torch.randn(1, 3, 16, 16)).shape == (1, 48, 2, 2)


@torch.no_grad()
def test_images_are_resized_to_the_resolution_by_one_factor_whatever_their_size():
    """As RAE's encoder, which sees 224 of 256 pixels in patches of 14: here 12 of 16 in patches of 3."""
    model = {"model": "vit_tiny_patch16_224", "patch_size": 3, "kwargs": {"depth": 1}}
    encoder = TimmEncoder(**model, resolution=12).build(size=16, channels=3).eval()
    plain = TimmEncoder(**model).build(size=12, channels=3).eval()
    plain.load_state_dict(encoder.state_dict())
    assert (encoder.stride, plain.stride) == (4, 3)
    for size, seen in (((16, 16), (12, 12)), ((32, 16), (24, 12)), ((8, 40), (6, 30))):
        x = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1
        small = torch.nn.functional.interpolate(x, seen, mode="bicubic", antialias=True).clamp(-1, 1)
        assert torch.equal(encoder(x), plain(small))
        assert encoder(x).shape[2:] == (size[0] // 4, size[1] // 4)
        assert all(torch.equal(*both) for both in zip(encoder.levels(x), plain.levels(small), strict=True))
    found = encoder.bfloat16()(x.bfloat16())
    assert found.dtype is torch.bfloat16, "a CPU resizes no other images than of float32"
    assert torch.allclose(found.float(), plain(small), atol=0.2)
    same = TimmEncoder(**model, resolution=12).build(size=12, channels=3)
    assert same.stride == 3, "nothing is resized"


def test_a_resolution_that_makes_no_whole_stride_is_refused_before_a_run_with_those_that_do(tmp_path):
    with torch.device("meta"):
        rae = TimmEncoder(model="vit_base_patch14_dinov2", resolution=224).build(size=256, channels=3)
    assert (rae.stride, rae.model.pos_embed.shape[1]) == (16, 16 * 16 + 1)
    for resolution, near in ((10, "9 or 12"), (15, "12 or 18"), (2, "3"), (40, "36")):
        encoder = {"type": "timm", "model": "vit_tiny_patch16_224", "patch_size": 3, "resolution": resolution}
        recipe = load(tiny.write(tmp_path, variants={"x": {"autoencoder.encoder": encoder, "encoder": None}}))["x"]
        problem = next(checks.problems(recipe, recipe.stages()))
        assert f"autoencoder: timm encoder vit_tiny_patch16_224: resolution {resolution} gives no grid" in problem
        assert problem.endswith(f"divides images of 12 pixels; set it to {near}")
    with pytest.raises(ValueError, match=r"img_size 16 and resolution 12: .* leave img_size out"):
        tiny_vit(img_size=16, resolution=12)


def test_a_model_of_one_size_sees_the_resolution_and_takes_the_data_s_size():
    encoder = TimmEncoder(model="mixer_s32_224", resolution=32).build(size=64, channels=3)
    assert encoder(torch.randn(1, 3, 64, 64)).shape[2:] == (1, 1)
    with pytest.raises(ValueError, match="64x64 and no others, not 32x32"):
        encoder(torch.randn(1, 3, 32, 32))


def test_a_resolution_counts_in_fingerprints_only_where_there_is_one():
    assert "resolution" not in configs.identity(tiny_vit())
    assert configs.identity(tiny_vit(resolution=8))["resolution"] == 8


def test_a_model_that_takes_one_size_alone_says_so():
    mixer = TimmEncoder(model="mixer_s32_224", kwargs={"drop_rate": 0.0}).build(size=64, channels=3)
    with pytest.raises(ValueError, match="64x64 and no others, not 96x64"):
        mixer(torch.randn(1, 3, 96, 64))


def test_an_unknown_model_is_an_error_that_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'vit_large_patch14_dinov2'"):
        TimmEncoder(model="vit_large_patch14_dinov").build(size=32, channels=3)


@pytest.mark.parametrize("kwargs", [{"depth": -1}, {"num_heads": 0}, {"embed_dim": 1}, {"embed_dim": True}])
def test_arguments_that_make_no_timm_network_are_named(kwargs):
    encoder = TimmEncoder(model="vit_tiny_patch16_224", pretrained=False, patch_size=4, kwargs=kwargs)
    with pytest.raises(ValueError, match=f"does not take .*{next(iter(kwargs))}="):
        encoder.build(size=12, channels=3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "message"),
    [
        # timm before 1.0.27 gives it no feature_info
        ("coat_tiny", "(CoaT gives a .*, and not one grid of .* features|a feature of CoaT .*); choose another model"),
        ("pit_ti_224", "PoolingVisionTransformer gives features of shape .*, and not one grid of 2x2 features"),
    ],
)
def test_models_without_one_grid_of_features_are_told(model, message):
    with torch.device("meta"), torch.inference_mode():
        with pytest.raises(ValueError, match=message):
            TimmEncoder(model=model, pretrained=False).build(size=64, channels=3).eval()(torch.zeros(1, 3, 64, 64))
