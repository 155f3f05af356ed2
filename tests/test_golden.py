"""Every golden output of the paper's reference implementation, in both precisions."""

import pytest
import torch

from dmvae.flow.path import interpolate
from golden_numbers import OUTPUTS, error_of, load, relative_error


@pytest.mark.parametrize(("file", "name"), OUTPUTS)
def test_in_float32(file, name):
    assert error_of(file, name) < 1e-4


@pytest.mark.parametrize(("file", "name"), OUTPUTS)
def test_under_bf16_autocast(file, name):
    assert error_of(file, name, bf16=True) < 2e-2


def test_noised_latents():
    data = load("dmd.safetensors")
    assert relative_error(interpolate(noise=data["noise"], z=data["latents"], t=data["t"]), data["xt"]) < 1e-6


def test_every_output_in_the_files_is_compared():
    inputs = {"x", "t", "y", "y_cfg", "z", "sde_x", "sde_y", "sde_t", "sde_velocity"}
    inputs |= {"latents", "noise", "labels", "xt", "target_velocity", "image_u8"}
    outputs = {
        (file, key)
        for file in ("lightningdit", "sampling", "dmd", "vae")
        for key, value in load(f"{file}.safetensors").items()
        if "." not in key and torch.is_tensor(value)
    }
    assert {(f, k) for f, k in outputs if k not in inputs or (f, k) == ("vae", "latents")} == set(OUTPUTS)
