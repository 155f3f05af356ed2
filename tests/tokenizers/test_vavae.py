"""VA-VAE: names, layouts and the network of its checkpoint, against implementations that share no code with it."""

import ldm
import pytest
import torch
from safetensors.torch import save_file

from dmvae.decoders.conv import ConvolutionalDecoder
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
    with pytest.raises(ValueError, match=r"no encoder.down.0; diffusers' own files are read by \{type: diffusers"):
        VavaeTokenizer(path=str(tmp_path / "diffusers.safetensors")).resolve()
    with pytest.raises(ValueError, match="no such file"):
        VavaeTokenizer(path=str(tmp_path / "nothing.pt")).resolve()
