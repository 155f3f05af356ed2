"""Decoder: every stride, odd widths."""

import pytest
import torch

from dmvae.decoders.conv import ConvolutionalDecoder


@pytest.mark.parametrize("stride", [1, 2, 4, 8, 14, 16, 32])
@pytest.mark.parametrize("multipliers", [(1,), (1, 2, 2)])
@torch.no_grad()
def test_the_image_is_stride_times_the_latent(stride, multipliers):
    model = ConvolutionalDecoder(4, 3, width=8, multipliers=multipliers, blocks=0, stride=stride)
    assert model(torch.randn(1, 4, 2, 3)).shape == (1, 3, 2 * stride, 3 * stride)


def test_strides_of_the_published_decoder_keep_its_names():
    with torch.device("meta"):
        names = ConvolutionalDecoder(32, 3).state_dict()
    assert {"conv_in.0.conv.weight", "conv_in.1.weight", "mid.attn_1.q.weight", "up.3.upsample.conv.weight"} <= set(
        names
    )


@torch.no_grad()
def test_widths_need_not_divide_into_32_groups():
    assert ConvolutionalDecoder(4, 1, width=12, multipliers=(1, 3), stride=2)(torch.randn(1, 4, 4, 4)).shape == (
        1,
        1,
        8,
        8,
    )


@torch.no_grad()
def test_without_attention_there_is_none():
    names = ConvolutionalDecoder(4, 1, width=8, multipliers=(1,), stride=1, attention=False).state_dict()
    assert not any("attn" in name for name in names)


@torch.no_grad()
def test_channels_last_changes_nothing():
    model, z = ConvolutionalDecoder(4, 3, width=16, multipliers=(1, 2), stride=4), torch.randn(2, 4, 4, 4)
    plain = model(z)
    fast = model.to(memory_format=torch.channels_last)(z.contiguous(memory_format=torch.channels_last))
    assert torch.allclose(plain, fast, atol=1e-5)


def test_a_stride_that_is_no_power_of_two_runs_under_autocast():
    torch.manual_seed(0)
    decoder = ConvolutionalDecoder(4, 3, width=8, multipliers=[1, 2], blocks=1, stride=3, attention=False)
    z = torch.randn(2, 4, 4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = decoder(z)
    rounded.float().mean().backward()
    assert rounded.dtype == torch.bfloat16
    assert torch.allclose(rounded.float(), decoder(z), atol=0.05)
