"""The golden outputs beside ours. `python tests/golden_numbers.py` prints the relative error of each.

Weights in tests/golden are stored in bfloat16, exactly, and used in float32.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file

from dmvae.flow import path, solver
from dmvae.flow.guidance import guided
from dmvae.flow.samplers import Sampling, time_grid
from dmvae.flow.samplers.sde import sde_drift
from dmvae.interop.official import import_vae
from dmvae.matching.dmd import gradient
from dmvae.models.dit import LightningDiT

FOLDER = Path(__file__).parent / "golden"


@cache
def load(name):
    """The file's tensors, in float32."""
    return {
        key: value.float() if value.is_floating_point() else value for key, value in load_file(FOLDER / name).items()
    }


@cache
def network(file, prefix):
    tensors = load(file)
    model = LightningDiT(in_channels=8, input_size=4, width=48, depth=2, heads=3, num_classes=10).eval()
    state = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix) and "feat_rope" not in k}
    model.load_state_dict(state, strict=True)
    return model.requires_grad_(False)


def teacher():
    return network("lightningdit.safetensors", "model.")


def student():
    return network("dmd.safetensors", "student.")


@cache
def tokenizer():
    return import_vae(FOLDER / "vae.safetensors", heads=3, weights="ema").eval()


def relative_error(a, b):
    return ((a.float() - b.float()).norm() / b.float().norm()).item()


def _velocity(d):
    return teacher()(d["x"], d["t"], d["y"])


def _guided_velocity(d):
    return guided(teacher(), 5.0, 10)(d["x"], d["t"], d["y_cfg"])


def _samples(method) -> Callable:
    def samples(d):
        def velocity(z_t, t, labels):
            return teacher()(z_t, t, labels).float()

        return solver.sample(velocity, d["z"], d["y"], Sampling(method=method, steps=10, time_shift=2.5))

    return samples


def _sde(part) -> Callable:
    def term(d):
        x, t = d["sde_x"], d["sde_t"]
        velocity = teacher()(x, t, d["sde_y"]).float()
        drift, diffusion = sde_drift(velocity, x, t)
        return {
            "drift": drift,
            "score": path.score(z_t=x, velocity=velocity, t=t),
            "diffusion": diffusion.expand_as(x),
        }[part]

    return term


def _gradient(scale) -> Callable:
    return lambda d: gradient(d["latents"], d["noise"], d["t"], d["labels"], teacher(), student(), scale, null=10)[0]


def _loss(scale) -> Callable:
    return lambda d: 0.5 * _gradient(scale)(d).square().mean().view(1)


def _latents(d):
    return tokenizer().encode(d["image_u8"] / 127.5 - 1).latents.flatten(2).transpose(1, 2)


def _reconstruction(d):
    return tokenizer().decode(tokenizer().encode(d["image_u8"] / 127.5 - 1).latents).sample


OUTPUTS: dict[tuple[str, str], Callable] = {
    ("lightningdit", "velocity"): _velocity,
    ("lightningdit", "velocity_cfg5"): _guided_velocity,
    ("sampling", "time_grid_shift2p5"): lambda d: time_grid(10, 2.5),
    ("sampling", "euler10"): _samples("euler"),
    ("sampling", "midpoint10"): _samples("midpoint"),
    ("sampling", "sde_drift"): _sde("drift"),
    ("sampling", "sde_score"): _sde("score"),
    ("sampling", "sde_diffusion_sigma"): _sde("diffusion"),
    ("dmd", "grad_cfg1"): _gradient(1),
    ("dmd", "loss_cfg1"): _loss(1),
    ("dmd", "grad_cfg5"): _gradient(5),
    ("dmd", "loss_cfg5"): _loss(5),
    ("vae", "latents"): _latents,
    ("vae", "reconstruction"): _reconstruction,
}
"""(file, tensor) -> our value from the file's inputs."""


@torch.no_grad()
def error_of(file, name, bf16=False):
    """Relative error of one output, in float32 or under bf16 autocast."""
    data = load(f"{file}.safetensors")
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        ours = OUTPUTS[file, name](data)
    return relative_error(ours, data[name])


if __name__ == "__main__":
    print("| file | output | float32 | bf16 autocast |\n| --- | --- | --- | --- |")
    for file, name in OUTPUTS:
        print(f"| {file} | {name} | {error_of(file, name):.1e} | {error_of(file, name, bf16=True):.1e} |")
