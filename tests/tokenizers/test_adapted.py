"""The adapter: artifacts that need no other file, ranges and channels, and what it refuses."""

import importlib.util
import json
import logging
import shutil
from pathlib import Path

import foreign
import numpy as np
import pytest
import torch

from dmvae import config as configs
from dmvae.registry import names
from dmvae.tokenizers import TokenizerSource
from dmvae.tokenizers.adapted import AdaptedTokenizer, adapt, load_tokenizer, open_tokenizer
from dmvae.tokenizers.autoencoder import Autoencoder
from dmvae.tokenizers.diffusers import DiffusersTokenizer
from dmvae.tokenizers.dmvae import DmvaeTokenizer
from dmvae.tokenizers.identity import IdentityTokenizer
from dmvae.tokenizers.network import own_size

KINDS = ("AutoencoderKL", "AutoencoderTiny", "AutoencoderDC", "VQModel", "vavae", "identity", "dmvae")


def adapted(kind, folder, size=12, channels=3) -> AdaptedTokenizer:
    section = configs.read(TokenizerSource, foreign.source(kind, folder))
    return adapt(section, size=size, channels=channels, pretrained=True).eval()


def test_a_class_without_a_shift_has_the_scale_alone(tmp_path):
    model = adapted("AutoencoderDC", tmp_path)
    model.set_statistics(torch.ones(8), torch.full((8,), 2.0))
    plain = model.as_diffusers()
    assert type(plain).__name__ == "AutoencoderDC"
    assert plain.config.scaling_factor == pytest.approx(1 / 2)
    assert "shift_factor" not in plain.config


def check_round_trip(kind, tmp_path):
    (tmp_path / "source").mkdir()
    model = adapted(kind, tmp_path / "source")
    channels = model.config.latent_channels
    model.set_statistics(torch.arange(channels) / 10, torch.ones(channels) * 2)
    model.save_pretrained(tmp_path / "artifact")
    shutil.rmtree(tmp_path / "source")

    loaded = load_tokenizer(tmp_path / "artifact")
    images = torch.rand(2, 3, 12, 12) * 2 - 1
    z = loaded.encode(images).latents
    assert type(loaded) is AdaptedTokenizer
    assert z.shape == (2, channels, loaded.latent_size, loaded.latent_size)
    assert loaded.latent_size * loaded.stride == 12
    assert torch.equal(z, model.encode(images).latents)
    assert torch.equal(z, loaded.encode(images).latent_dist.mode())
    assert torch.equal(loaded(images).sample, model(images).sample)
    assert loaded(images).sample.shape == images.shape
    assert torch.allclose(loaded.denormalize(loaded.normalize(z)), z, atol=1e-5)
    assert (loaded.latent_std == 2).all()
    assert loaded.config.scaling_factor == model.config.scaling_factor != 1


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_an_artifact_needs_no_file_but_itself(kind, tmp_path):
    check_round_trip(kind, tmp_path)


@torch.no_grad()
def test_rae_resizes_both_ways(tmp_path):
    pytest.importorskip("transformers")
    check_round_trip("AutoencoderRAE", tmp_path)
    model = adapted("AutoencoderRAE", tmp_path)
    white = model.network.model._denormalize_image(torch.zeros(1, 3, 1, 1)) * 2 - 1  # its zero, in our range
    for parameter in model.network.model.decoder.decoder_pred.parameters():
        parameter.zero_()
    assert torch.allclose(model(torch.zeros(1, 3, 12, 12)).sample, white.expand(1, 3, 12, 12), atol=1e-5)


def test_the_size_of_a_rae_whose_config_leaves_it_out_is_the_class_s(monkeypatch):
    assert own_size({"_class_name": "AutoencoderRAE", "patch_size": 8, "encoder_input_size": 42}) == 24
    monkeypatch.setattr(
        "diffusers.AutoencoderRAE", lambda patch_size=4, encoder_patch_size=7, encoder_input_size=56: None
    )
    assert own_size({"_class_name": "AutoencoderRAE"}) == 32


def test_rae_names_what_it_lacks(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderRAE"}))
    with pytest.raises(ValueError, match=r'transformers: pip install "dmvae\[rae\]"'):
        adapt(DiffusersTokenizer(path=str(tmp_path)), size=12, channels=3, pretrained=True)


@torch.no_grad()
def test_outputs_are_those_of_the_model_itself(tmp_path):
    images = torch.rand(2, 3, 12, 12) * 2 - 1
    theirs = foreign.diffusers_model("AutoencoderKL")
    ours = adapted("AutoencoderKL", tmp_path)
    z = ours.encode(images).latents
    assert torch.allclose(z, theirs.encode(images).latent_dist.mean)
    assert torch.allclose(ours.decode(z).sample, theirs.decode(z).sample)


@torch.no_grad()
def test_images_are_decoded_in_full_precision_under_autocast_too(tmp_path):
    model = adapted("AutoencoderKL", tmp_path)
    z = torch.randn(1, 4, 6, 6)
    images = model.decode(z).sample
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.decode(z).sample, images)
        assert model.decode(z.bfloat16()).sample.dtype == torch.float32
        with torch.enable_grad():
            assert not torch.equal(model.decode(z).sample, images)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["AutoencoderKL", "dmvae", "ours"])
def test_half_precision_takes_images_and_latents_of_float32(kind, tmp_path):
    model = (foreign.own_model() if kind == "ours" else adapted(kind, tmp_path)).to(torch.bfloat16)
    z = model.encode(torch.zeros(1, 3, 12, 12)).latents
    assert z.dtype == model.decode(z.float()).sample.dtype == torch.bfloat16


@pytest.mark.parametrize("kind", ["ours", "AutoencoderKL"])
def test_float32_takes_images_and_latents_of_half_precision_with_gradients_too(kind, tmp_path):
    model = foreign.own_model() if kind == "ours" else adapted(kind, tmp_path)
    images = (torch.rand(1, 3, 12, 12) * 2 - 1).bfloat16()
    z = model.encode(images).latents
    assert torch.equal(z, model.encode(images.float()).latents)
    assert model.decode(z.bfloat16()).sample.dtype == torch.float32


def test_slicing_and_tiling_are_the_network_s(tmp_path):
    model = adapted("AutoencoderKL", tmp_path)
    inner = model.network.model
    model.enable_slicing()
    model.enable_tiling()
    assert (inner.use_slicing, inner.use_tiling) == (True, True)
    model.disable_slicing()
    model.disable_tiling()
    assert (inner.use_slicing, inner.use_tiling) == (False, False)
    with pytest.raises(ValueError, match="has no enable_slicing"):
        adapt(IdentityTokenizer(patch=3), size=12, channels=1, pretrained=True).enable_slicing()


@torch.no_grad()
def test_grey_images_pass_through_three_channels(tmp_path):
    grey = adapted("AutoencoderKL", tmp_path, channels=1)
    theirs = foreign.diffusers_model("AutoencoderKL")
    images = torch.rand(2, 1, 12, 12)
    assert torch.allclose(grey.encode(images).latents, theirs.encode(images.repeat(1, 3, 1, 1)).latent_dist.mean)
    assert torch.allclose(
        grey(images).sample, theirs(images.repeat(1, 3, 1, 1)).sample.mean(1, keepdim=True), atol=1e-6
    )


def test_identity_loses_nothing():
    model = adapt(IdentityTokenizer(patch=3), size=12, channels=1, pretrained=True)
    images = torch.rand(2, 1, 12, 12)
    z = model.encode(images).latents
    assert z.shape == (2, 9, 4, 4)
    assert torch.equal(z[:, 4], images[:, 0, 1::3, 1::3])
    assert torch.equal(model.decode(z).sample, images)


def test_sources_survive_being_written_down():
    assert set(names(TokenizerSource)) == {"diffusers", "dmvae", "identity", "reshaped", "vavae"}
    source = DiffusersTokenizer(path="a/b", subfolder="vae", config={"widths": [1, 2]})
    assert configs.read(TokenizerSource, configs.plain(source)) == source


def test_the_fingerprint_is_the_content(tmp_path):
    for name in ("a", "b"):
        foreign.own_model().save_pretrained(tmp_path / name)
    a, b = (DmvaeTokenizer(path=str(tmp_path / name)) for name in ("a", "b"))
    assert a.fingerprint() == b.fingerprint()
    before = a.fingerprint()
    model = foreign.own_model()
    torch.nn.init.zeros_(model.bottleneck[0].bias)
    model.save_pretrained(tmp_path / "a")
    assert a.fingerprint() != before


def test_models_that_are_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_vae").mkdir()
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderTimy"}))
    for source, message in (
        (DiffusersTokenizer(path=str(tmp_path)), "did you mean 'AutoencoderTiny'"),
        (DiffusersTokenizer(path=str(tmp_path), model="AutoencoderXYZ123"), "no autoencoder 'AutoencoderXYZ123'"),
        (DiffusersTokenizer(path=str(tmp_path / "nothing")), "no such folder: .*nothing"),
        (DiffusersTokenizer(path="my_vea"), "no such folder: my_vea; did you mean 'my_vae'"),
        (DiffusersTokenizer(path="config.json"), "config.json is a file; name the folder that holds it"),
        (DmvaeTokenizer(path=str(tmp_path / "nothing")), "nothing: no tokenizer is here"),
        (DmvaeTokenizer(path=str(tmp_path)), "holds AutoencoderTimy, not Autoencoder or AdaptedTokenizer"),
    ):
        with pytest.raises(ValueError, match=message):
            adapt(source, size=12, channels=3, pretrained=True)
    with pytest.raises(ValueError, match="nothing: no tokenizer is here"):
        load_tokenizer(tmp_path / "nothing")
    for text in ('{"_class_name": "Autoenc', "[1]", ""):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match=r"config\.json: no config of a tokenizer, or cut off"):
            load_tokenizer(tmp_path)


def test_a_folder_of_diffusers_opens_as_it_is(tmp_path):
    """As `dmvae measure tokenizer` and `encode` take it: adapted, at its own size or at the one that is asked for."""
    foreign.diffusers_model("AutoencoderKL").save_pretrained(tmp_path / "kl")
    found = open_tokenizer(str(tmp_path / "kl"))
    expected = adapt(DiffusersTokenizer(path=str(tmp_path / "kl")), size=32, channels=3, pretrained=True)
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    assert torch.equal(found.encode(images).latents, expected.encode(images).latents)
    assert (found.config.image_size, open_tokenizer(str(tmp_path / "kl"), 64).config.image_size) == (32, 64)
    foreign.own_model().save_pretrained(tmp_path / "own")
    assert type(open_tokenizer(str(tmp_path / "own"))).__name__ == "Autoencoder"
    foreign.diffusers_model("AutoencoderTiny").save_pretrained(tmp_path / "tiny")
    with pytest.raises(ValueError, match="its config has no sample_size; give --size"):
        open_tokenizer(str(tmp_path / "tiny"))
    with pytest.raises(ValueError, match=r"image size 31 is not a multiple of 2, the stride .*; give --size 30 or 32$"):
        open_tokenizer(str(tmp_path / "kl"), 31)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/config.json").write_text('{"_class_name": "UNet2DModel"}')
    with pytest.raises(ValueError, match=r"^/.*/other: of the _class_name .* has no autoencoder 'UNet2DModel'; known"):
        open_tokenizer(str(tmp_path / "other"), 16)
    for nowhere in ("nothing", "/nothing", "./no/thing"):
        with pytest.raises(ValueError, match="no tokenizer is here"):
            open_tokenizer(nowhere)


def test_a_damaged_config_is_told_as_that(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is damaged: .* line 1 column 2 \(char 1\)$"):
        DiffusersTokenizer(path=str(tmp_path)).resolve()


def test_weights_of_another_model(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("diffusers"), "propagate", True)
    foreign.diffusers_model("AutoencoderKL").save_pretrained(tmp_path / "kl")
    foreign.diffusers_model("AutoencoderTiny").save_pretrained(tmp_path / "tiny")
    shutil.copy(tmp_path / "kl/diffusion_pytorch_model.safetensors", tmp_path / "tiny")
    with pytest.raises(ValueError, match=r"not the weights of this AutoencoderTiny: .* missing.* unknown"):
        adapt(DiffusersTokenizer(path=str(tmp_path / "tiny")), size=12, channels=3, pretrained=True)
    assert not any("Some weights" in text for text in caplog.messages), "diffusers names every one"


@pytest.mark.parametrize("kind", ["AutoencoderKL", "dmvae"])
def test_weights_that_are_missing_or_cut_off_are_told_before_they_are_read(kind, tmp_path):
    source = configs.read(TokenizerSource, foreign.source(kind, tmp_path))
    (weights,) = Path(source.path).glob("*.safetensors")
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-7])
    with pytest.raises(ValueError, match=r"safetensors: damaged or cut off .*; copy the folder again"):
        source.resolve()
    weights.unlink()
    with pytest.raises(ValueError, match="no weights are here"):
        source.resolve()


def test_weights_of_a_variant_alone_are_told(tmp_path):
    model = foreign.diffusers_model("AutoencoderKL")
    model.save_pretrained(tmp_path, variant="fp16")
    with pytest.raises(ValueError, match=r"_model.fp16.safetensors is of the variant 'fp16'.*save_pretrained"):
        DiffusersTokenizer(path=str(tmp_path)).resolve()
    model.save_pretrained(tmp_path)
    DiffusersTokenizer(path=str(tmp_path)).resolve()


def test_an_artifact_of_another_class_is_told_with_its_own(tmp_path):
    model = adapted("AutoencoderKL", tmp_path)
    model.save_pretrained(tmp_path / "adapted")
    with pytest.raises(
        ValueError, match=r"made by AdaptedTokenizer, not Autoencoder: load it with AdaptedTokenizer.from"
    ):
        Autoencoder.from_pretrained(tmp_path / "adapted")
    with pytest.raises(ValueError, match=r"is a tokenizer of dmvae; write \{type: dmvae, path: ...\}"):
        adapt(DiffusersTokenizer(path=str(tmp_path / "adapted")), size=12, channels=3, pretrained=True)
    for wrong, message in (
        (np.zeros((1, 3, 12, 12)), "give a tensor"),
        (torch.zeros(1, 3, 12, 12).double(), "float64 do not fit"),
    ):
        with pytest.raises(ValueError, match=message):
            model.encode(wrong)


def test_images_that_do_not_fit(tmp_path):
    with pytest.raises(
        ValueError, match=r"13 is not a multiple of 2, the stride of AutoencoderKL; set data\.size to 12 or 14"
    ):
        adapted("AutoencoderKL", tmp_path, size=13)
    with pytest.raises(ValueError, match=r"takes 3 image channels, the data has 2; set data\.channels to 3"):
        adapted("AutoencoderKL", tmp_path, channels=2)
    foreign.diffusers_model("AutoencoderKL", out_channels=1).save_pretrained(tmp_path / "grey")
    with pytest.raises(ValueError, match="AutoencoderKL takes 3 image channels and gives 1 back"):
        adapt(DiffusersTokenizer(path=str(tmp_path / "grey")), size=12, channels=3, pretrained=True)
    with pytest.raises(ValueError, match="13 is not a multiple of the patch 2"):
        adapted("identity", tmp_path, size=13)
    with pytest.raises(ValueError, match="AutoencoderKLWan does not take images 3x12x12"):
        adapted("AutoencoderKLWan", tmp_path)
    model = adapted("AutoencoderKL", tmp_path)
    with pytest.raises(ValueError, match="width 13 is not a multiple of the tokenizer's stride 2"):
        model.encode(torch.zeros(1, 3, 12, 13))
    with pytest.raises(ValueError, match=r"\[1, 5, 6, 6\] do not fit"):
        model.decode(torch.zeros(1, 5, 6, 6))
