"""VA-VAE: names, layouts and the network of its checkpoint, against implementations that share no code with it."""

import argparse

import huggingface_hub
import ldm
import numpy as np
import pytest
import torch
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import load_file, save_file

from dmvae import cli
from dmvae.decoders.conv import ConvolutionalDecoder
from dmvae.runtime.hashing import weights_hash
from dmvae.tokenizers.adapted import adapt, open_tokenizer
from dmvae.tokenizers.diffusers import DiffusersTokenizer
from dmvae.tokenizers.vavae import VavaeTokenizer, architecture, convert


def network(weights, tmp_path):
    torch.save({"state_dict": weights, "global_step": 7}, tmp_path / "vavae.pt")
    return VavaeTokenizer(path=str(tmp_path / "vavae.pt")).build(size=16, channels=3, pretrained=True)


@torch.no_grad()
def test_the_encoder_is_latent_diffusions(tmp_path):
    weights = ldm.random_checkpoint()
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    ours = network(weights, tmp_path).encode(images)
    assert torch.allclose(ours, ldm.encode(weights, images), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_decoder_is_the_one_that_ours_has_the_names_of(tmp_path):
    weights = ldm.random_checkpoint(attention=())
    decoder = ConvolutionalDecoder(4, 3, width=32, multipliers=(1, 2), blocks=1, stride=2)
    decoder.load_state_dict({k.removeprefix("decoder."): v for k, v in weights.items() if k.startswith("decoder.")})
    z = torch.randn(2, 4, 8, 8)
    post = torch.nn.functional.conv2d(z, weights["post_quant_conv.weight"], weights["post_quant_conv.bias"])
    assert torch.allclose(network(weights, tmp_path).decode(z), decoder(post), rtol=1e-5, atol=1e-5)


def test_it_agrees_with_the_conversion_of_diffusers_where_that_applies(tmp_path):
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    weights = ldm.random_checkpoint(attention=(), leftovers=False)  # diffusers' knows no attention within the levels
    config = architecture(weights, tmp_path)
    theirs = convert_ldm_vae_checkpoint(dict(weights), config)
    ours = network(weights, tmp_path).model.state_dict()
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in ours)


def test_every_tensor_of_the_published_layout_is_used_once(tmp_path):
    from diffusers import AutoencoderKL

    with torch.device("meta"):
        weights = {name: torch.empty(shape) for name, shape in ldm.shapes(**ldm.F16D32).items()}
        config = architecture(weights, tmp_path)
        model = AutoencoderKL.from_config(config)
    assert config["down_block_types"] == ["DownEncoderBlock2D"] * 4 + ["AttnDownEncoderBlock2D"]
    assert config["up_block_types"] == ["AttnUpDecoderBlock2D"] + ["UpDecoderBlock2D"] * 4
    converted = convert(weights, model.state_dict(), tmp_path)
    assert {k: v.shape for k, v in converted.items()} == {k: v.shape for k, v in model.state_dict().items()}
    assert len(converted) == len(weights)


def test_safetensors_hold_the_same(tmp_path):
    weights = ldm.random_checkpoint()
    save_file(weights, tmp_path / "vavae.safetensors")
    other = VavaeTokenizer(path=str(tmp_path / "vavae.safetensors")).build(size=16, channels=3, pretrained=True)
    z = torch.randn(1, 4, 8, 8)
    assert torch.equal(other.decode(z), network(weights, tmp_path).decode(z))


FLOW = {"x_embedder.proj.weight": torch.zeros(2), "blocks.0.norm1.weight": torch.zeros(2)}
"""A diffusion model's, whose names are none of the autoencoder's."""


def named(weights, prefix):
    return {prefix + name: value for name, value in weights.items()}


def repa_e(weights):
    """As its training writes checkpoints: the diffusion model lies under the names of other projects' autoencoders."""
    beside = {"discriminator": {"main.0.weight": torch.zeros(1)}, "args": argparse.Namespace(lr=1e-4)}
    return {"model": FLOW, "ema": FLOW, "vae": weights, "steps": 9} | beside


LAYOUTS = {
    "bare": lambda weights: weights,
    "lightning": lambda weights: {"state_dict": weights, "callbacks": {}, "epoch": 3},
    "an average's counters": lambda weights: {"state_dict": weights | {"model_ema.decay": torch.zeros(())}},
    "mar": lambda weights: {"model": weights},
    "repa-e": repa_e,
    "wrapped": lambda weights: {"vae": named(weights, "module._orig_mod.")},
    "a whole latent diffusion model": lambda weights: {
        "state_dict": named(weights, "first_stage_model.") | named(FLOW, "model.diffusion_model.")
    },
    "the same, flat": lambda weights: named(weights, "first_stage_model.") | named(FLOW, "model.diffusion_model."),
}


@torch.no_grad()
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_network_is_found_wherever_projects_keep_it(layout, tmp_path):
    weights = ldm.random_checkpoint()
    torch.save(LAYOUTS[layout](weights), tmp_path / "other.pt")
    ours = VavaeTokenizer(path=str(tmp_path / "other.pt")).build(size=16, channels=3, pretrained=True)
    z = torch.randn(1, 4, 8, 8)
    assert torch.equal(ours.decode(z), network(weights, tmp_path).decode(z))


def test_an_encoder_may_have_attention_that_the_decoder_has_not(tmp_path):
    """As MAR's."""
    weights = {k: v for k, v in ldm.random_checkpoint().items() if not k.startswith("decoder.up.1.attn.")}
    torch.save({"model": weights}, tmp_path / "kl16.ckpt")
    config = VavaeTokenizer(path=str(tmp_path / "kl16.ckpt")).resolve().config
    assert config["down_block_types"] == ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"]
    assert config["up_block_types"] == ["UpDecoderBlock2D"] * 2


@torch.no_grad()
def test_one_of_several_is_read_by_its_name(tmp_path):
    weights, average = ldm.random_checkpoint(), {k: 2 * v for k, v in ldm.random_checkpoint().items()}
    for content in ({"model": weights, "ema": average}, {"model": FLOW, "ema": average}):
        torch.save(content, file := tmp_path / "several.pt")
        found = VavaeTokenizer(path=str(file), weights="ema").resolve().read_model().post_quant_conv.bias
        assert torch.equal(found, average["post_quant_conv.bias"])
    with pytest.raises(
        ValueError, match=r"several\.pt: .* holds no state dict with .*, but model \(2 .*`weights: ema`"
    ):
        VavaeTokenizer(path=str(file)).resolve()
    with pytest.raises(ValueError, match=r"no state dict 'model' with .*`weights: ema`"):
        VavaeTokenizer(path=str(file), weights="model").resolve()


def test_another_network_s_file_is_told_with_what_it_holds(tmp_path):
    paper = {"encoder.model.patch_embed.proj.weight": torch.zeros(1)}
    for content, told in (
        ({"ema": FLOW, "opt": {}}, r"but ema \(2 tensors: x_embedder\.proj\.weight, .*\); of diff"),
        ({"vae_ema": paper}, r"but vae_ema \(1 tensor: .*import official-vae"),
        ({"epoch": 3}, "but no tensors"),
    ):
        torch.save(content, tmp_path / "x.pt")
        with pytest.raises(ValueError, match=rf"x\.pt: not a checkpoint of latent diffusion's autoencoder: .*{told}"):
            open_tokenizer(str(tmp_path / "x.pt"), 16)
    torch.save(ldm.random_checkpoint(ch=24), tmp_path / "narrow.pt")
    with pytest.raises(ValueError, match=r"narrow\.pt: .* a level of 24 channels, which its norms of 32 groups do not"):
        open_tokenizer(str(tmp_path / "narrow.pt"), 16)
    with pytest.raises(ValueError, match=r"x\.pt is a file; .* \{type: vavae, path: FILE\}"):
        DiffusersTokenizer(path=str(tmp_path / "x.pt")).resolve()


@torch.no_grad()
def test_a_file_opens_as_a_folder_does(tmp_path):
    torch.save({"model": ldm.random_checkpoint()}, file := tmp_path / "kl16.ckpt")
    found = open_tokenizer(str(file), 16)
    expected = adapt(VavaeTokenizer(path=str(file)), size=16, channels=3, pretrained=True)
    images = torch.rand(1, 3, 16, 16) * 2 - 1
    assert torch.equal(found.encode(images).latents, expected.encode(images).latents)
    with pytest.raises(ValueError, match=r"kl16\.ckpt: a checkpoint tells no image size; give --size"):
        open_tokenizer(str(file))


def test_a_file_may_lie_on_the_hub(tmp_path, monkeypatch):
    torch.save({"vae": ldm.random_checkpoint()}, file := tmp_path / "e2e.pt")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    there = {("REPA-E/e2e-vae", "e2e.pt"): file}
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda repository, name: str(there[repository, name]))
    name = "REPA-E/e2e-vae/e2e.pt"
    source, here = VavaeTokenizer(path=name).resolve(), VavaeTokenizer(path=str(file)).resolve()
    assert (source.path, source.config) == (name, here.config)
    assert source.fingerprint() == ""  # as of every model of a hub, its id tells it
    assert weights_hash(open_tokenizer(name, 16)) == weights_hash(open_tokenizer(str(file), 16))
    with pytest.raises(ValueError, match=r"REPA-E/e2e-vae/other\.pt is no file, and on the hub: "):
        open_tokenizer("REPA-E/e2e-vae/other.pt", 16)
    with pytest.raises(ValueError, match="runs/mine/vae: no tokenizer is here"):
        open_tokenizer("runs/mine/vae")


def test_a_file_encodes_and_decodes(tmp_path):
    torch.save({"model": ldm.random_checkpoint()}, file := tmp_path / "kl16.ckpt")
    (tmp_path / "images").mkdir()
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(tmp_path / "images/a.png")
    more = ["--tokenizer", str(file), "--out"]
    cli.main(["encode", str(tmp_path / "images"), *more, str(tmp_path / "z"), "--size", "16", "--workers", "0"])
    assert load_file(tmp_path / "z/latents-00000.safetensors")["latents"].shape == (1, 4, 8, 8)
    cli.main(["decode", str(tmp_path / "z"), *more, str(tmp_path / "back")])
    assert Image.open(tmp_path / "back/a.png").size == (16, 16)


def test_errors_list_every_key(tmp_path):
    weights = ldm.random_checkpoint() | {"surprise.weight": torch.zeros(1)}
    del weights["decoder.up.1.attn.0.q.weight"]
    weights["encoder.norm_out.bias"] = torch.zeros(3)
    with pytest.raises(ValueError, match=r"vavae\.pt") as error:
        network(weights, tmp_path)
    for name in ("surprise.weight", "decoder.up.1.attn.0.q.weight", "encoder.norm_out.bias"):
        assert name in str(error.value)
    with pytest.raises(ValueError, match="holds no"):
        network({"weight": torch.zeros(1)}, tmp_path)
    whole = ldm.random_checkpoint()
    for wrong, message in (
        (torch.zeros(()), r"missing or misshapen: encoder\.conv_in\.weight \(4-d\)"),
        (whole["encoder.conv_in.weight"].to_sparse(), r"encoder\.conv_in\.weight has the layout torch.sparse_coo"),
        (torch.zeros(1, device="meta"), r"encoder\.conv_in\.weight has no values \(a meta tensor\)"),
    ):
        with pytest.raises(ValueError, match=message):
            network(whole | {"encoder.conv_in.weight": wrong}, tmp_path)
    network(whole | {3: torch.zeros(1)}, tmp_path)
    save_file({"encoder.conv_in.weight": torch.zeros(1)}, tmp_path / "diffusers.safetensors")
    with pytest.raises(ValueError, match=r"no encoder.down.0, but .*; of diffusers' own files .*\{type: diffusers"):
        VavaeTokenizer(path=str(tmp_path / "diffusers.safetensors")).resolve()
    with pytest.raises(ValueError, match="no such file"):
        VavaeTokenizer(path=str(tmp_path / "nothing.pt")).resolve()
