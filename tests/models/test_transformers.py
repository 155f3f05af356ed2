"""What LightningDiT and SiT have in common: memory saving, and low precision."""

import pytest
import test_dit
import test_sit
import torch

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
