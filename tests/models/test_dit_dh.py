"""DiT-DH: a new one, artifacts, what is compiled and sharded, its place in a recipe, too narrow a head."""

import pytest
import torch

from dmvae import DiTDH
from dmvae import config as configs
from dmvae.generators.dit_dh import DiTDHConfig
from dmvae.training.flow import FlowTraining
from dmvae.training.preparing import compile_networks
from dmvae.training.stage import Networks

SHAPE = {"in_channels": 6, "input_size": 4, "width": 48, "depth": 2, "heads": 3, "num_classes": 5, "patch_size": 2}
HEAD = {"head_width": 32, "head_depth": 1, "head_heads": 2}
ASKED = torch.randn(3, 6, 4, 4), torch.tensor([0.05, 0.5, 0.97]), torch.tensor([1, 4, 5])


def test_a_new_model_predicts_zero_and_learns_all_but_its_frequencies_and_positions():
    torch.manual_seed(0)
    model = DiTDH(**SHAPE, **HEAD)
    out = model(*ASKED)
    assert out.shape == ASKED[0].shape
    assert out.count_nonzero() == 0
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    model(*ASKED).square().mean().backward()
    still = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert still == {"pos_embed", "t_embedder.frequencies"}


def test_saved_and_loaded_it_gives_the_same(tmp_path):
    model = DiTDH(**SHAPE, **HEAD).eval()
    torch.nn.init.normal_(model.final_layer.linear.weight)
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(DiTDH.from_pretrained(tmp_path)(*ASKED), model(*ASKED))


def test_it_is_compiled_and_sharded_by_the_block():
    networks = Networks()
    networks.generator = DiTDH(**SHAPE, **HEAD)
    compile_networks(networks)  # nothing is called, so no compiler runs
    found = {name for name, module in networks.named_modules() if module._compiled_call_impl}
    blocks = {"generator.blocks.0", "generator.blocks.1", "generator.head_blocks.0"}
    assert found == {*blocks, "generator.final_layer"}
    assert {*DiTDH._no_split_modules} == {"Block"}


def test_it_stands_where_a_flow_model_does():
    read = configs.read(FlowTraining, {"steps": 1, "model": {"type": "dit_dh", "size": "S/1"}}, "reference")
    assert isinstance(read.model, DiTDHConfig)
    assert read.model.arguments() == {
        **{"width": 384, "depth": 12, "heads": 6, "patch_size": 1},
        **{"head_width": 2048, "head_depth": 2, "head_heads": 16},
    }


def test_a_head_that_is_too_narrow_for_its_latents_gives_a_warning():
    with pytest.warns(UserWarning, match=r"the 16 channels .* model\.head_width to at least 24"):
        DiTDHConfig(width=48, depth=1, heads=3, patch_size=2, head_width=16, head_heads=2).build((6, 4, 4), 5)
