"""What LightningDiT and SiT have in common: memory saving, and low precision."""

import pytest
import test_dit
import test_sit
import torch

from dmvae.flow.samplers import Sampling
from dmvae.models.transformer import TimeEmbedder

BOTH = pytest.mark.parametrize("of", [test_dit, test_sit], ids=["LightningDiT", "SiT"])


@BOTH
def test_checkpointing_changes_no_gradient(of):
    def gradients(model):
        model(*of.inputs()).square().mean().backward()
        return [p.grad for p in model.parameters() if p.requires_grad]

    saving = of.small()
    saving.enable_gradient_checkpointing()
    for a, b in zip(gradients(saving), gradients(of.small()), strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-8)


@BOTH
def test_it_runs_in_bfloat16_and_with_weights_in_eight_bits(of, relative_error):
    model = of.small()
    z, t, labels = of.inputs()
    with torch.no_grad():
        exact = model(z, t, labels)
        with torch.autocast("cpu", torch.bfloat16):
            assert relative_error(model(z, t, labels).float(), exact) < 0.05
        assert relative_error(model.bfloat16()(z.bfloat16(), t, labels).float(), exact) < 0.05
        model.enable_layerwise_casting(torch.float8_e4m3fn, torch.bfloat16)
        assert model(z.bfloat16(), t, labels).isfinite().all()


@BOTH
def test_weights_in_bf16_take_states_of_any_dtype_as_samplers_make_them(of):
    model, (z, t, labels) = of.small().bfloat16(), of.inputs()
    with torch.no_grad():
        assert torch.equal(model(z, t, labels), model(z.bfloat16(), t, labels))
        for noise in (z, z.bfloat16()):
            assert model.sample(noise, labels, Sampling(steps=2, guidance=2.0)).isfinite().all()


def test_times_are_not_rounded_with_the_weights():
    times = TimeEmbedder(8).bfloat16()
    times.mlp = torch.nn.Identity()
    t = torch.tensor([0.99, 0.998])
    assert torch.equal(times(t)[:, 0], t.cos())
