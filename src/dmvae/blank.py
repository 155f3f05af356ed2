"""The tokenizer that a recipe asks for, as it is before any training, and the shape of its latents."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import _disable_current_modes

from dmvae import config as configs
from dmvae.datasets import DatasetConfig
from dmvae.models.base import Tokenizer
from dmvae.sections import Sections
from dmvae.tokenizers.adapted import adapt, start
from dmvae.tokenizers.autoencoder import Autoencoder


def build_autoencoder(sections: Sections) -> Autoencoder:
    """The tokenizer that the recipe trains, with random weights."""
    shape = configs.plain(sections.autoencoder)
    return Autoencoder(image_size=sections.data.size, in_channels=sections.data.channels, **shape)


def first_tokenizer(sections: Sections, *, weights: bool) -> Tokenizer:
    """The tokenizer that the first stage with one trains: the recipe's own, with random weights, or its `pretrained`
    one. Raises ValueError for one that cannot be trained further."""
    data, source = sections.data, sections.pretrained
    if source is None:
        return build_autoencoder(sections)
    try:
        return start(source, size=data.size, channels=data.channels, pretrained=weights)
    except ValueError as error:
        raise ValueError(f"{'' if str(error).startswith('pretrained') else 'pretrained: '}{error}") from error


def build_tokenizer(sections: Sections) -> Tokenizer:
    """The recipe's tokenizer, pretrained or to be trained, on the meta device: without weights."""
    with _disable_current_modes(), torch.device("meta"):  # a plan's fake tensors take many times as long
        return blank_tokenizer(sections)


def blank_tokenizer(sections: Sections) -> Tokenizer:
    """The recipe's tokenizer, pretrained or to be trained, with random weights."""
    data, source = sections.data, sections.pretrained
    if source is not None:
        return adapt(source, size=data.size, channels=data.channels, pretrained=False)
    return build_autoencoder(sections)


def latent_shape(sections: Sections) -> tuple[int, int, int]:
    """(C, H, W) of the recipe's latents. Raises ValueError where the tokenizer cannot take images of `data.size`."""
    data, own = sections.data, sections.autoencoder
    if sections.pretrained is not None or own is None:  # the network in a folder may change
        return _shape_of(build_tokenizer(sections), data)
    # a plugin that is loaded again has other classes of the same name
    key = (repr(own), type(own.encoder), type(own.decoder), data.size, data.channels)
    if key not in _known:
        _known[key] = _shape_of(build_tokenizer(sections), data)
    return _known[key]


_known: dict[tuple[object, ...], tuple[int, int, int]] = {}
"""Every stage of every variant asks for its shape, and a large network takes half a second to build without weights."""


def _shape_of(model: Tokenizer, data: DatasetConfig) -> tuple[int, int, int]:
    try:
        model.check_images(torch.empty(1, data.channels, data.size, data.size, device="meta"))
    except ValueError as error:
        raise ValueError(f"data.size: {error}") from error
    side = data.size // model.stride
    return model.config.latent_channels, side, side
