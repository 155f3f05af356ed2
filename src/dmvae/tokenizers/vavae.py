"""Tokenizer `vavae`: VA-VAE (arXiv 2501.01423) and other KL autoencoders in the checkpoint format of latent diffusion.

The published file is vavae-imagenet256-f16d32-dinov2.pt of hustvl/vavae-imagenet256-f16d32-dinov2. Its network is
the autoencoder of arXiv 2112.10752, which diffusers has as AutoencoderKL under other names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from dmvae import config as configs
from dmvae.config import Values
from dmvae.registry import register
from dmvae.runtime.hub import hub_file
from dmvae.runtime.weights import check, read_tensors, require_shapes, state_dicts
from dmvae.runtime.words import counted, few
from dmvae.tokenizers.files import FileSource

CONTAINERS = ("state_dict", "first_stage_model", "vae", "model")
"""Names under which checkpoints keep the network: Lightning's, as VA-VAE's and latent diffusion's; those of a whole
latent diffusion model, within the former; REPA-E's, beside its diffusion model; MAR's."""
SIGN = "encoder.conv_in.weight"
"""The name that tells such a network."""
GROUPS = 32
"""Of its group norms, which no shape tells."""
OTHERS = (
    "of diffusers' own files name the folder ({type: diffusers, path: FOLDER} in a recipe); the paper's are read after "
    "`dmvae import official-vae`"
)
# Of the training: the discriminator, the vision model that latents were aligned to, and the average, which latent
# diffusion's own code leaves unread too.
LEFTOVERS = ("loss.", "foundation_model.", "linear_proj.", "model_ema.")
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

    scaled: ClassVar[bool] = False

    path: str
    """The checkpoint, .pt or .safetensors: its path, or ORG/REPO/FILE on the Hugging Face hub."""
    weights: str | None = configs.added(None)
    """Name of the state dict in the checkpoint. null is the first of state_dict, first_stage_model, vae and model that
    holds such a network, else the tensors outside of all of them."""

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
        parts = state_dicts(read_tensors(hub_file(self.place)), CONTAINERS)
        parts |= {name: part for name, part in state_dicts(parts.get("state_dict", {}), CONTAINERS).items() if name}
        wanted = (*CONTAINERS, "") if self.weights is None else (self.weights,)
        found = next((parts[name] for name in wanted if SIGN in parts.get(name, ())), None)
        if found is None:
            raise ValueError(_without(parts, self.weights, self.place))
        return {name: tensor for name, tensor in found.items() if not name.startswith(LEFTOVERS)}


def _without(parts: Mapping[str, Mapping[str, Tensor]], weights: str | None, path: Path) -> str:
    """What a checkpoint holds in which none of the parts that are wanted is such a network, and what to do."""
    told = [f"{name} ({counted(len(part), 'tensor')}: {few(list(part), 3)})".lstrip() for name, part in parts.items()]
    fits = " or ".join(name for name, part in parts.items() if name and SIGN in part)
    fix = f"name the one that is meant in a recipe (`weights: {fits}`), or save it alone" if fits else OTHERS
    wanted = "state dict" if weights is None else f"state dict {weights!r}"
    return (
        f"{path}: not a checkpoint of latent diffusion's autoencoder: it holds no {wanted} with {SIGN}, but "
        f"{' and '.join(told) or 'no tensors'}; {fix}"
    )


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
            f"{path}: not a checkpoint of latent diffusion's autoencoder: it holds no encoder.down.0, but "
            f"{few(list(weights), 3)}; {OTHERS}"
        )
    widths = [width(f"encoder.down.{level}.block.0.conv1.weight", 0) for level in levels]
    if uneven := [number for number in widths if number % GROUPS]:
        raise ValueError(
            f"{path}: not a checkpoint of latent diffusion's autoencoder: a level of {uneven[0]} channels, which its "
            f"norms of {GROUPS} groups do not take; bring the network as a plugin's tokenizer"
        )
    return {
        "in_channels": width("encoder.conv_in.weight", 1),
        "out_channels": width("decoder.conv_out.weight", 0),
        "latent_channels": width("decoder.conv_in.weight", 1),
        "block_out_channels": widths,
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
