"""Loads tests/golden: weights are stored in bfloat16, exactly, and used in float32."""

from pathlib import Path

from safetensors.torch import load_file

from dmvae.models import LightningDiT

FOLDER = Path(__file__).parent / "golden"


def load(name):
    return {
        key: value.float() if value.is_floating_point() else value for key, value in load_file(FOLDER / name).items()
    }


def network(tensors, prefix):
    model = LightningDiT(in_channels=8, input_size=4, width=48, depth=2, heads=3, num_classes=10).eval()
    state = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix) and "feat_rope" not in k}
    model.load_state_dict(state, strict=True)
    return model.requires_grad_(False)


def relative_error(a, b):
    return ((a - b).norm() / b.norm()).item()
