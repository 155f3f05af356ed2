"""Encoder `timm`: any vision model of the timm library, by name, with its public weights or your own."""

from __future__ import annotations

import inspect
import re
import sys
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import try_to_load_from_cache
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from dmvae import config as configs
from dmvae.config import Values
from dmvae.datasets.pixels import resized
from dmvae.encoders import Encoder, EncoderConfig
from dmvae.ranges import Pixels
from dmvae.registry import register
from dmvae.runtime.footprint import built
from dmvae.runtime.hub import hub
from dmvae.runtime.weights import pick, read_tensors
from dmvae.runtime.words import counted
from dmvae.spelling import nearest


@register("timm")
@dataclass(frozen=True, kw_only=True)
class TimmEncoder(EncoderConfig):
    """A timm model without its head."""

    model: str
    """timm's name of the model, such as vit_large_patch14_dinov2."""
    patch_size: Pixels | None = None
    """Patch size to run a vision transformer at; pretrained patch and position embeddings are resampled."""
    img_size: Pixels | None = None
    """Image size a vision transformer is built for; the data's size unless given."""
    resolution: Pixels | None = configs.added(None)
    """Images are resized to this height and width, pixels, before the network; null leaves them as they are. With 224,
    an image of 256 px gives 16x16 patches of 14 pixels, as in RAE. Images of other sizes are resized by the same
    factor."""
    pretrained: bool = True
    """Start from the model's public weights."""
    checkpoint: Path | None = None
    """Local weights to start from instead: a .safetensors file, or one that torch.save wrote."""
    kwargs: Values = field(default_factory=dict)
    """Arguments of the network's own class, such as depth: numbers, switches, names of layers, or lists of those."""

    def __post_init__(self) -> None:
        if self.resolution is not None and self.img_size is not None:
            raise ValueError(
                f"img_size {self.img_size} and resolution {self.resolution}: images that are resized make a network of "
                "that size; leave img_size out"
            )

    @property
    def starts_random(self) -> bool:
        return not self.pretrained and self.checkpoint is None

    def missing(self) -> list[str]:
        if self.checkpoint is not None:
            return [told] if (told := self.absent()) else []
        cfg = timm.get_pretrained_cfg(self.model)
        if not self.pretrained or cfg is None or not cfg.hf_hub_id:
            return []
        if any(try_to_load_from_cache(cfg.hf_hub_id, name) for name in ("model.safetensors", "pytorch_model.bin")):
            return []
        return [f"weights of timm model {self.model!r}, which it fetches from the hub ({cfg.hf_hub_id})"]

    def absent(self) -> str:
        there = self.checkpoint is None or self.checkpoint.is_file()
        return "" if there else f"encoder checkpoint {self.checkpoint}: no such file"

    def build(self, *, size: int, channels: int, pretrained: bool = False) -> Features:
        if not timm.is_model(self.model):
            raise ValueError(f"timm has no model {self.model!r}{nearest_model(self.model)}")
        architecture, _, tag = self.model.partition(".")
        if tag and self.model not in (known := timm.list_pretrained(architecture)):
            raise ValueError(f"timm has no weights {tag!r} of {architecture}{nearest(self.model, known)}")
        if channels not in (1, 3):
            raise ValueError(f"timm encoder {self.model}: images have 1 or 3 channels, not {channels}")
        require_shape(self.model, self.kwargs)
        kwargs: Values = {"num_classes": 0, **self.kwargs}
        if self.patch_size is not None:
            kwargs["patch_size"] = self.patch_size
        # Models that are built for one image size say so; convolutional ones take no such argument.
        cfg = timm.get_pretrained_cfg(self.model)
        sized = self.img_size is not None or bool(cfg and cfg.fixed_input_size)
        if sized:
            kwargs["img_size"] = self.img_size or self.resolution or size
            if "dynamic_img_size" in arguments(self.model):  # plain vision transformers resample their positions
                kwargs["dynamic_img_size"], sized = True, False
        if pretrained and (self.checkpoint is not None or self.pretrained):
            model = self.load(kwargs)
        else:
            model = self.create(kwargs)
        patch = model_stride(model)
        stride = patch if self.resolution is None else resized_stride(self.model, size, self.resolution, patch)
        return Features(model, (self.img_size or size) if sized else None, patch, stride)

    def create(self, kwargs: Values, pretrained: bool = False) -> nn.Module:
        try:
            return built(lambda: timm.create_model(self.model, pretrained=pretrained, **kwargs))
        except Exception as error:  # patch_size of a convolutional network, say, or a depth below 0
            if pretrained and not isinstance(error, TypeError):
                raise
            raise ValueError(
                f"timm model {self.model!r} does not take {', '.join(f'{k}={v!r}' for k, v in kwargs.items())}: {error}"
            ) from error

    def load(self, kwargs: Values) -> nn.Module:
        """The model with weights; timm adapts them to the patch and image size."""
        if self.checkpoint is not None:
            model = self.create(kwargs)
            load_weights(model, self.checkpoint, fewer="depth" in self.kwargs)
            return model
        try:
            with hub():
                return self.create(kwargs, pretrained=True)
        except ValueError:  # an argument the model does not take
            raise
        except Exception as error:  # no network: each version of the hub client has a class of its own
            raise ValueError(
                f"the weights of timm model {self.model!r} could not be loaded ({type(error).__name__}: {error}). "
                "Run once where the network is reachable and carry the cache over (HF_HUB_CACHE, by default "
                "~/.cache/huggingface/hub), or name a local file as the encoder's checkpoint"
            ) from error


class Features(Encoder):
    """images [n, 1 or 3, h, w] in [-1, 1] -> features [n, channels, h / stride, w / stride]."""

    scale: Tensor
    shift: Tensor

    def __init__(self, model: Any, size: int | None, patch: int, stride: int):
        """size: of the images, for a model that takes no other; else None. patch: pixels of the model's input per
        feature, stride: pixels of an image per feature; where the two differ, images are resized."""
        super().__init__()
        self.model = model
        self.size, self.patch, self.stride = size, patch, stride
        self.prefix = getattr(model, "num_prefix_tokens", 0)
        self.channels_first = getattr(model, "output_fmt", "NCHW") != "NHWC"
        self.channels: int = model.num_features
        # From [-1, 1] to the model's own range, (x / 2 + 1 / 2 - mean) / std, as one scale and one shift.
        data = resolve_model_data_config(model)
        mean, std = (torch.tensor(data[key])[:, None, None] for key in ("mean", "std"))
        self.register_buffer("scale", 0.5 / std, persistent=False)
        self.register_buffer("shift", (0.5 - mean) / std, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        grid = (height // self.stride, width // self.stride)
        out = self.model.forward_features(self._scaled(images))
        if isinstance(out, Tensor) and out.ndim == 3 and out.shape[1] - self.prefix == grid[0] * grid[1]:
            return out[:, self.prefix :].unflatten(1, grid).permute(0, 3, 1, 2)
        if not isinstance(out, Tensor) or out.ndim != 4:
            what = f"features of shape {list(out.shape)}" if isinstance(out, Tensor) else f"a {type(out).__name__}"
            raise ValueError(
                f"timm's {type(self.model).__name__} gives {what}, and not one grid of {grid[0]}x{grid[1]} features; "
                "choose another model"
            )
        return out if self.channels_first else out.permute(0, 3, 1, 2)

    def levels(self, images: Tensor) -> list[Tensor]:
        """Features at four depths: behind each quarter of a transformer's blocks, or at the last four levels of another
        network. For a model of which timm gives none, those of `forward` alone."""
        if not hasattr(self.model, "forward_intermediates"):
            return [self(images)]
        depth = len(self.model.blocks) if hasattr(self.model, "num_prefix_tokens") else 0
        found: list[Tensor] = self.model.forward_intermediates(
            self._scaled(images),
            indices=sorted({-(-depth * i // 4) - 1 for i in range(1, 5)}) if depth else 4,
            intermediates_only=True,
            output_fmt="NCHW",
        )
        return found

    def _scaled(self, images: Tensor) -> Tensor:
        """Images [n, 1 or 3, h, w] in [-1, 1], in the model's own size and range. Raises ValueError for a size that it
        does not take."""
        height, width = images.shape[2:]
        if self.size is not None and (height, width) != (self.size, self.size):
            raise ValueError(
                f"this encoder takes images of {self.size}x{self.size} and no others, not {height}x{width}; resize or "
                "crop them, or train the tokenizer on a plain vision transformer or a convolutional network"
            )
        if self.stride != self.patch:
            images = resized(images, (height // self.stride * self.patch, width // self.stride * self.patch))
        # A grey image broadcasts to the model's three channels here.
        return torch.addcmul(self.shift, images, self.scale)

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether blocks compute their activations again in the backward pass. Raises ValueError when set for a model
        that cannot."""
        return bool(getattr(self.model, "grad_checkpointing", False))

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, enable: bool) -> None:
        try:
            self.model.set_grad_checkpointing(enable)
        except (AttributeError, AssertionError) as error:
            raise ValueError(f"timm's {type(self.model).__name__} keeps all activations") from error

    def compiled_parts(self) -> list[nn.Module]:
        """What `run.compile` compiles: each block of a transformer by itself, because equal blocks share one compiled
        graph; another network as a whole."""
        return [*self.model.blocks] if hasattr(self.model, "num_prefix_tokens") else [self]


def require_shape(name: str, kwargs: Values) -> None:
    """Raise ValueError for arguments that are not of the network's own class. timm.create_model has others, which read,
    download and write files, and a stranger's config.json must not reach those."""
    if not kwargs:
        return
    known = arguments(name)
    for key, value in kwargs.items():
        if key not in known:
            raise ValueError(f"kwargs: {key!r} does not shape the timm model {name}{nearest(key, known)}")
        for part in value if isinstance(value, list | tuple) else [value]:
            if not (part is None or isinstance(part, int | float) or re.fullmatch(r"\w+", str(part))):
                raise ValueError(f"kwargs: {key} is {value!r}: use numbers, true, false, names, or lists of those")


@cache
def arguments(name: str) -> tuple[str, ...]:
    """The arguments of the timm model's own class, which only a built one tells."""
    with torch.device("meta"):
        return tuple(inspect.signature(type(built(lambda: timm.create_model(name, pretrained=False)))).parameters)


def model_stride(model: Any) -> int:
    """Pixels of the model's input per feature, along each side. Raises ValueError where timm does not say."""
    patches: Any = getattr(model, "patch_embed", None)
    if getattr(model, "num_prefix_tokens", None) is not None and hasattr(patches, "patch_size"):
        size = patches.patch_size
        return size if isinstance(size, int) else size[0]
    try:
        return model.feature_info[-1]["reduction"]
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise ValueError(
            f"timm does not say how many pixels a feature of {type(model).__name__} stands for; choose another model"
        ) from error


def resized_stride(name: str, size: int, resolution: int, patch: int) -> int:
    """Pixels of an image of `size` per feature, along each side, where it is resized to `resolution` first. Raises
    ValueError unless this number and that of the patches are whole."""
    fits = [patch * grid for grid in range(1, size + 1) if size % grid == 0]
    if resolution not in fits:
        near = [*[fit for fit in fits if fit < resolution][-1:], *[fit for fit in fits if fit > resolution][:1]]
        raise ValueError(
            f"timm encoder {name}: resolution {resolution} gives no grid of whole features, of {patch} pixels each, "
            f"that divides images of {size} pixels; set it to {' or '.join(map(str, near))}"
        )
    return size // (resolution // patch)


def load_weights(model: nn.Module, path: Path, fewer: bool = False) -> None:
    """Load a file's tensors into a timm model, resampled to its patch and image size as timm does with published ones.
    fewer: the model may have only the first of the file's blocks.

    Raises ValueError for a file that cannot be read, that lacks a tensor (timm would leave it random), or that has more
    tensors than the model in a part that both have.
    """
    state = pick(read_tensors(path), ("model", "state_dict"), path)
    fit = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    try:
        missing, beyond = model.load_state_dict(fit(state, model) if fit else state, strict=False)
    except (RuntimeError, KeyError) as error:
        raise ValueError(f"{path}: not the weights of this {type(model).__name__}: {error}") from error
    if missing:
        raise ValueError(
            f"{path}: lacks {counted(len(missing), 'tensor')} of this {type(model).__name__}, "
            f"{', '.join(missing[:4])} first; its own begin with {', '.join(list(state)[:4])}"
        )
    # The file may hold parts that the model lacks, such as a head or a decoder, but no more tensors of its parts.
    head = getattr(model, "default_cfg", {}).get("classifier") or ()
    heads = {name.partition(".")[0] for name in ([head] if isinstance(head, str) else head)} | {"fc_norm", "pre_logits"}
    own = {name for name, _ in model.named_children()} | {"cls_token", "dist_token", "reg_token"}

    def later(name: str) -> bool:
        """Whether it is of a block beyond the model's last."""
        of, _, rest = name.partition(".")
        number, blocks = rest.partition(".")[0], getattr(model, of, None)
        return isinstance(blocks, nn.Sequential | nn.ModuleList) and number.isdigit() and int(number) >= len(blocks)

    more = [name for name in beyond if name.partition(".")[0] in own - heads and not (fewer and later(name))]
    if more:
        raise ValueError(
            f"{path}: has {counted(len(more), 'tensor')} that this {type(model).__name__} lacks, {', '.join(more[:4])} "
            "first, and without them its features are others: name the model that these weights are of, or "
            "kwargs: {depth: N} for its first N blocks"
        )


def nearest_model(name: str) -> str:
    """`; did you mean ...?` over timm's thousand names, which are too many to list."""
    hint = nearest(name, timm.list_models())
    return hint if "did you mean" in hint else "; timm.list_models() lists them"
