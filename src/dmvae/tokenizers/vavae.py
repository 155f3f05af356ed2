"""Tokenizer `vavae`: VA-VAE (arXiv 2501.01423) and other KL autoencoders in the checkpoint format of latent diffusion.

The published file is vavae-imagenet256-f16d32-dinov2.pt of hustvl/vavae-imagenet256-f16d32-dinov2. Its network is
the autoencoder of arXiv 2112.10752, which diffusers has as AutoencoderKL under other names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from dmvae.config import Values
from dmvae.registry import register
from dmvae.runtime.weights import check, read_tensors, require_shapes
from dmvae.tokenizers.files import FileSource

# Networks of the training: the discriminator, and the vision model that latents were aligned to.
LEFTOVERS = ("loss.", "foundation_model.", "linear_proj.")
# From a name in AutoencoderKL to the checkpoint's. `up` counts from full resolution, up_blocks in the other direction.
NAMES = (
    (r"\.mid_block\.resnets\.0\.", ".mid.block_1."),
    (r"\.mid_block\.resnets\.1\.", ".mid.block_2."),
    (r"\.mid_block\.attentions\.0\.", ".mid.attn_1."),
    (r"\.(down|up)_blocks\.", r".\1."),
    (r"\.resnets\.", ".block."),
    (r"\.attentions\.", ".attn."),
    (r"\.(down|up)samplers\.0\.", r".\1sample."),
    (r"\.conv_shortcut\.", ".nin_shortcut."),
    (r"\.group_norm\.", ".norm."),
    (r"\.to_([qkv])\.", r".\1."),
    (r"\.to_out\.0\.", ".proj_out."),
    (r"\.conv_norm_out\.", ".norm_out."),
)


@register("vavae")
@dataclass(frozen=True, kw_only=True)
class VavaeTokenizer(FileSource):
    """A checkpoint of latent diffusion's KL autoencoder; its sizes are read off the weights."""

    path: str
    """The checkpoint, .pt or .safetensors."""

    def read_config(self) -> Values:
        return architecture(self._weights(), self.place)

    def read_model(self) -> nn.Module:
        model: nn.Module = self.model_class().from_config(self.config)
        model.load_state_dict(convert(self._weights(), model.state_dict(), self.place))
        return model

    def model_class(self) -> Any:
        from diffusers import AutoencoderKL

        return AutoencoderKL

    def _weights(self) -> dict[str, Tensor]:
        saved = read_tensors(self.place)
        inner = saved.get("state_dict")
        state = inner if isinstance(inner, dict) else saved
        named = {k: v for k, v in state.items() if isinstance(k, str) and isinstance(v, Tensor)}
        return {k: v for k, v in named.items() if not k.startswith(LEFTOVERS)}


def architecture(weights: Mapping[str, Tensor], path: Path) -> Values:
    """The config of the AutoencoderKL that the checkpoint's tensors belong to.

    Raises ValueError, with the path, for tensors that do not look like such a network.
    """

    def count(prefix: str) -> int:
        return len({name[len(prefix) :].split(".")[0] for name in weights if name.startswith(prefix)})

    def width(name: str, dim: int) -> int:
        if name not in weights:
            raise ValueError(f"{path}: not a checkpoint of latent diffusion's autoencoder: it holds no {name}")
        return require_shapes({name: weights[name].shape}, {name: 4}, path)[0][dim]

    def kinds(side: str, part: str, levels: Iterable[int]) -> list[str]:
        plain, attended = f"{part}Block2D", f"Attn{part}Block2D"
        return [attended if count(f"{side}.{level}.attn.") else plain for level in levels]

    levels = range(count("encoder.down."))
    if not levels:
        raise ValueError(
            f"{path}: not a checkpoint of latent diffusion's autoencoder: it holds no encoder.down.0; diffusers' own "
            "files are read by {type: diffusers, path: FOLDER}"
        )
    return {
        "in_channels": width("encoder.conv_in.weight", 1),
        "out_channels": width("decoder.conv_out.weight", 0),
        "latent_channels": width("decoder.conv_in.weight", 1),
        "block_out_channels": [width(f"encoder.down.{level}.block.0.conv1.weight", 0) for level in levels],
        "layers_per_block": count("encoder.down.0.block."),
        "down_block_types": kinds("encoder.down", "DownEncoder", levels),
        "up_block_types": kinds("decoder.up", "UpDecoder", reversed(levels)),
        "mid_block_add_attention": count("encoder.mid.attn_1.") > 0,
        "use_quant_conv": count("quant_conv.") > 0,
        "use_post_quant_conv": count("post_quant_conv.") > 0,
    }


def convert(weights: Mapping[str, Tensor], target: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The checkpoint's tensors under the names and in the shapes of `target`, AutoencoderKL's state dict.

    Raises ValueError, with the path, that lists what is missing, unknown or of another shape.
    """
    levels = len({name.split(".")[2] for name in target if name.startswith("decoder.up_blocks.")})
    names = {name: checkpoint_name(name, levels) for name in target}
    # Attention's projections are 1x1 convolutions there and linear layers here.
    shapes = {names[k]: (*v.shape, 1, 1) if v.ndim == 2 else tuple(v.shape) for k, v in target.items()}
    check(weights, shapes, path, "latent diffusion's autoencoder")
    return {name: weights[names[name]].reshape(tensor.shape) for name, tensor in target.items()}


def checkpoint_name(name: str, levels: int) -> str:
    """The checkpoint's name of a parameter of AutoencoderKL that has `levels` resolutions."""
    for pattern, replacement in NAMES:
        name = re.sub(pattern, replacement, name)
    return re.sub(r"\.up\.(\d+)", lambda match: f".up.{levels - 1 - int(match[1])}", name)
