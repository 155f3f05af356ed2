"""Networks on disk."""

from __future__ import annotations

from pathlib import Path

from diffusers.models.modeling_utils import ModelMixin
from safetensors.torch import save_file
from torch import nn

from dmvae.runtime.files import whole


def save_network(module: nn.Module, folder: Path) -> None:
    """Write as a diffusers model folder (a plain module as model.safetensors alone)."""
    with whole(folder) as part:
        if isinstance(module, ModelMixin):
            module.save_pretrained(part)
        else:
            part.mkdir()
            save_file({k: v.contiguous() for k, v in module.state_dict().items()}, part / "model.safetensors")
