"""The wide head of a flow model: off, nothing changes; on, it learns and is saved."""

import warnings

import pytest
import torch

from dmvae.generators.flow import FlowModelConfig
from dmvae.models.dit import LightningDiT

SHAPE, CLASSES = (24, 3, 3), 3


NETWORK = {"width": 16, "depth": 1, "heads": 2}


def config(**changes):
    return FlowModelConfig(**NETWORK | changes)


def inputs():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(4, *SHAPE, generator=generator), torch.rand(4, generator=generator), torch.tensor([0, 1, 2, 3])


def test_without_a_head_names_and_numbers_are_as_before():
    with pytest.warns(UserWarning, match="set model.head_width to at least 24"):
        model = config().build(SHAPE, CLASSES)
    assert not [name for name in model.state_dict() if name.startswith("head")]
    assert model.final_layer.linear.weight.shape == (24, 16)


@pytest.mark.parametrize("changes", [{"head_width": 24}, {"width": 24}, {"head_width": 24, "head_heads": 3}])
def test_a_network_that_is_wide_enough_gives_no_warning(changes):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config(**changes).build(SHAPE, CLASSES)


def test_a_head_that_is_too_narrow_gives_the_warning_too():
    with pytest.warns(UserWarning, match="the 16 channels.* to at least 24"):
        config(head_width=16).build(SHAPE, CLASSES)
    with pytest.warns(UserWarning, match="the 20 channels.* to at least 40"):
        config(head_width=20, head_heads=5).build(SHAPE, CLASSES)


def test_a_head_width_that_does_not_divide_is_an_error():
    with pytest.raises(ValueError, match="head_width 20 must be a multiple of 4 \\* heads"):
        config(head_width=20).build(SHAPE, CLASSES)
    with pytest.raises(ValueError, match="head_width 24 must be a multiple of 4 \\* head_heads \\(4 heads\\)"):
        config(head_width=24, head_heads=4).build(SHAPE, CLASSES)
    with pytest.raises(ValueError, match="head_heads must be at least 1, got 0"):
        LightningDiT(in_channels=4, input_size=3, num_classes=3, **NETWORK, head_width=16, head_heads=0)


def test_a_published_size_takes_a_head():
    with torch.device("meta"):
        model = FlowModelConfig(size="Mini/1", head_width=768, head_depth=1).build((768, 4, 4), CLASSES)
    assert len(model.head.blocks) == 1
    assert {block.attn.heads for block in (*model.blocks, *model.head.blocks)} == {4}
    assert model.final_layer.linear.weight.shape == (768, 768)


def test_rae_s_head_has_its_own_number_of_attention_heads():
    """DiT-DH-S: 12 blocks of 384 channels with 6 heads, and 2 of 2048 with 16, which is no multiple of 4 * 6."""
    with torch.device("meta"):
        model = FlowModelConfig(size="S/1", head_width=2048, head_heads=16).build((768, 16, 16), CLASSES)
    assert [block.attn.heads for block in model.blocks] == [6] * 12
    assert [block.attn.heads for block in model.head.blocks] == [16] * 2
    assert model.head.rope_cos.shape == (256, 1, 1, 2048 // 16)


@pytest.mark.slow
def test_the_head_learns_what_a_narrow_network_cannot():
    """Copying z_t needs all 24 of its directions: 16 channels keep at most 16 of them."""
    errors = {}
    for head_width in (None, 32):
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = config(head_width=head_width).build(SHAPE, CLASSES)
        assert model(*inputs()).count_nonzero() == 0
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        for step in range(120):
            z = torch.randn(16, *SHAPE, generator=torch.Generator().manual_seed(step))
            error = (model(z, torch.full((16,), 0.5), torch.zeros(16, dtype=torch.int64)) - z).square().mean()
            optimizer.zero_grad()
            error.backward()
            optimizer.step()
        errors[head_width] = error.item()
        untouched = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert untouched == []
    assert errors[None] > 8 / 24 * 0.9
    assert errors[32] < 0.6 * errors[None]


@pytest.mark.parametrize("heads", [None, 4])
def test_gradient_checkpointing_and_a_saved_folder_keep_the_numbers(tmp_path, heads):
    torch.manual_seed(0)
    model = config(head_width=32, head_depth=1, head_heads=heads, patch_size=1).build(SHAPE, CLASSES)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    out = model(*inputs())
    model.enable_gradient_checkpointing()
    assert torch.equal(model(*inputs()), out)
    model.save_pretrained(tmp_path)
    loaded = LightningDiT.from_pretrained(tmp_path)
    assert (loaded.config.head_width, loaded.config.head_heads) == (32, heads)
    assert torch.equal(loaded(*inputs()), out)
