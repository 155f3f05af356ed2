"""The wide head of a flow model: off, nothing changes; on, it learns and is saved."""

import warnings

import pytest
import torch

from dmvae.generators.flow import FlowModelConfig
from dmvae.models.dit import LightningDiT

SHAPE, CLASSES = (24, 3, 3), 3


def config(**changes):
    return FlowModelConfig(**{"width": 16, "depth": 1, "heads": 2} | changes)


def inputs():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(4, *SHAPE, generator=generator), torch.rand(4, generator=generator), torch.tensor([0, 1, 2, 3])


def test_without_a_head_names_and_numbers_are_as_before():
    with pytest.warns(UserWarning, match="set model.head_width to at least 24"):
        model = config().build(SHAPE, CLASSES)
    assert not [name for name in model.state_dict() if name.startswith("head")]
    assert model.final_layer.linear.weight.shape == (24, 16)


@pytest.mark.parametrize("changes", [{"head_width": 24}, {"width": 24}])
def test_a_network_that_is_wide_enough_gives_no_warning(changes):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config(**changes).build(SHAPE, CLASSES)


def test_a_head_that_is_too_narrow_gives_the_warning_too():
    with pytest.warns(UserWarning, match="the 16 channels"):
        config(head_width=16).build(SHAPE, CLASSES)


def test_a_head_width_that_does_not_divide_is_an_error():
    with pytest.raises(ValueError, match="head_width 20 must be a multiple of 4 \\* heads"):
        config(head_width=20).build(SHAPE, CLASSES)


def test_a_published_size_takes_a_head():
    with torch.device("meta"):
        model = FlowModelConfig(size="Mini/1", head_width=768, head_depth=1).build((768, 4, 4), CLASSES)
    assert len(model.head.blocks) == 1
    assert model.final_layer.linear.weight.shape == (768, 768)


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
        optimizer = torch.optim.Adam(model.parameters(), 5e-3)
        for step in range(250):
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


def test_gradient_checkpointing_and_a_saved_folder_keep_the_numbers(tmp_path):
    torch.manual_seed(0)
    model = config(head_width=32, head_depth=1, patch_size=1).build(SHAPE, CLASSES)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    out = model(*inputs())
    model.enable_gradient_checkpointing()
    assert torch.equal(model(*inputs()), out)
    model.save_pretrained(tmp_path)
    loaded = LightningDiT.from_pretrained(tmp_path)
    assert loaded.config.head_width == 32
    assert torch.equal(loaded(*inputs()), out)
