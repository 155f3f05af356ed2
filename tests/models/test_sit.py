"""SiT: published sizes, the network of its paper, gradients, artifacts, memory saving, what is compiled and sharded."""

import pytest
import torch

from dmvae import SiT, registry
from dmvae import config as configs
from dmvae.generators import GeneratorConfig
from dmvae.generators.sit import SiTConfig
from dmvae.training.flow import FlowTraining
from dmvae.training.preparing import compile_networks
from dmvae.training.stage import Networks
from plain_sit import PlainSiT, positions

SHAPE = {"in_channels": 4, "input_size": 4, "width": 48, "depth": 2, "heads": 3, "num_classes": 5, "patch_size": 2}


def small(**changes) -> SiT:
    torch.manual_seed(0)
    model = SiT(**SHAPE | changes)
    for parameter in model.parameters():
        if parameter.requires_grad:  # the zero layers too, so that everything reaches the output
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def inputs():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, 4, 4, 4, generator=generator), torch.tensor([0.05, 0.5, 0.97]), torch.tensor([1, 4, 5])


@pytest.mark.parametrize(("size", "millions"), [("S/2", 33), ("B/2", 130), ("L/2", 458), ("XL/2", 675)])
def test_the_published_sizes_have_the_published_numbers_of_parameters(size, millions):
    """On latents 4x32x32 of 1000 classes."""
    with torch.device("meta"):
        model = SiTConfig(size=size).build((4, 32, 32), 1000)
    assert abs(sum(p.numel() for p in model.parameters()) / 1e6 - millions) < 0.52


def test_its_gradients_are_those_of_the_network_that_is_written_as_its_paper_reads():
    theirs = PlainSiT(depth=2)
    ours = small()
    state = {name: value.clone() for name, value in ours.state_dict().items()}
    for name in ("final_layer.linear.weight", "final_layer.linear.bias"):
        values = state[name].unflatten(0, (4, 4))
        state[name] = torch.stack((values, torch.zeros_like(values)), dim=1).flatten(0, 2)
    theirs.load_state_dict(state)
    assert torch.allclose(ours.pos_embed, positions(2, 48), atol=1e-6)
    for network in (ours, theirs):
        network(*inputs()).square().mean().backward()
    found = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        if parameter.requires_grad and "final_layer.linear" not in name:
            torch.testing.assert_close(parameter.grad, found[name].grad, rtol=1e-4, atol=1e-6)


def test_a_new_model_predicts_zero_and_learns():
    model = SiT(**SHAPE)
    out = model(*inputs())
    assert out.count_nonzero() == 0
    (out - 1).square().mean().backward()
    assert model.final_layer.linear.weight.grad.abs().sum() > 0
    assert not model.pos_embed.requires_grad


def test_saved_and_loaded_it_gives_the_same(tmp_path):
    model = small().eval()
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(SiT.from_pretrained(tmp_path)(*inputs()), model(*inputs()))


def test_it_is_compiled_and_sharded_by_the_block():
    networks = Networks()
    networks.generator = small()
    compile_networks(networks)  # nothing is called, so no compiler runs
    found = {name for name, module in networks.named_modules() if module._compiled_call_impl}
    assert found == {"generator.blocks.0", "generator.blocks.1", "generator.final_layer"}
    kinds = {type(module).__name__ for module in small().modules()}
    assert {*SiT._no_split_modules} == {"SiTBlock"} <= kinds


def test_a_token_that_is_too_narrow_for_its_latents_gives_a_warning():
    with pytest.warns(UserWarning, match="holds 64 values, more than the 48 channels .* at least 64 channels"):
        SiTConfig(width=48, depth=1, heads=3, patch_size=4).build((4, 4, 4), 5)


def test_it_stands_where_a_flow_model_does_and_no_other_generator_can(monkeypatch):
    read = configs.read(FlowTraining, {"steps": 1, "model": {"type": "sit", "size": "B/2"}}, "reference")
    assert isinstance(read.model, SiTConfig)
    assert read.model.patch == 2
    assert configs.read(FlowTraining, {"steps": 1, "model": {"size": "B/2"}}, "reference").model.type == "flow"
    with pytest.raises(ValueError, match=r"reference\.model\.qk_norm: no such field"):
        configs.read(FlowTraining, {"steps": 1, "model": {"type": "sit", "qk_norm": False}}, "reference")
    monkeypatch.setitem(
        registry._members[GeneratorConfig], "other", type("Other", (GeneratorConfig,), {"type": "other"})
    )
    with pytest.raises(ValueError, match=r"reference\.model\.type: 'other' .*; known: dit_dh, flow, sit"):
        configs.read(FlowTraining, {"steps": 1, "model": {"type": "other"}}, "reference")
