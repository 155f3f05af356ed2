"""The tokenizer: encoder, bottleneck, decoder, and the statistics of its latents.

Shapes: n images, c image channels, h w image height and width, C latent channels, H W = h / stride, w / stride.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn

from dmvae import config as configs
from dmvae.config import Values
from dmvae.decoders import Decoder, DecoderConfig, decoder_section
from dmvae.decoders.conv import ConvDecoder
from dmvae.encoders import Encoder, EncoderConfig
from dmvae.models.base import DecoderOutput, EncoderOutput, Parts, PointDistribution, Tokenizer
from dmvae.registry import require_members
from dmvae.runtime.precision import full_precision, without_tf32
from dmvae.tokenizers.editor import Editor


class Autoencoder(Tokenizer):
    """`model.decode(model.encode(x).latents).sample`.

    encoder, decoder: configs as mappings, `{"type": "conv", ...}`; the decoder is the convolutional one unless given.
    image_size: of the training images; for other sizes a vision transformer resamples its position embedding.
    bottleneck_width: hidden width of the bottleneck, 0 for one linear layer. latent_channels or bottleneck_width None:
    no bottleneck, so the latents are the encoder's features; the config then holds their number of channels and a
    bottleneck_width of None. variational: the bottleneck gives a mean and a log-variance (ValueError without one).
    detail_width: hidden width of an MLP from features and pixels of a place, whose output is added to its latent; None
    for no such MLP. Its last layer starts at zero, so that it changes nothing until it is trained. editor: `width`,
    `bank` and perhaps `assigned` and `groups` of an `Editor`, which makes latents of samples of a reference; see
    `with_editor`. drawn: `encode` gives samples of the posterior, not its mean. scaling_factor, shift_factor: as in
    diffusers' autoencoders; `set_statistics` fills them in. fixed_std: C standard deviations, in raw units, for every
    posterior (`fix_spread`); None: each has its own. whitened: `normalize` whitens (`whiten`).
    """

    _supports_gradient_checkpointing = True
    __module__ = "dmvae"  # the name under which artifacts find the class, wherever this file moves
    encoder: Encoder
    decoder: Decoder

    @register_to_config
    def __init__(
        self,
        *,
        encoder: Values,
        image_size: int = 32,
        in_channels: int = 3,
        latent_channels: int | None = 16,
        bottleneck_width: int | None = 2048,
        decoder: Values | None = None,
        variational: bool = False,
        detail_width: int | None = None,
        editor: Values | None = None,
        scaling_factor: float = 1.0,
        shift_factor: float = 0.0,
        drawn: bool = False,
        fixed_std: list[float] | None = None,
        whitened: bool = False,
    ):
        super().__init__()
        self.use_slicing = self.use_tiling = False
        self.tile = 64
        encoder_config = configs.read(EncoderConfig, dict(encoder), "encoder")
        self.encoder = encoder_config.build(size=image_size, channels=in_channels)
        require_members(encoder_config, self.encoder, ("channels", "stride"))
        if latent_channels is None or bottleneck_width is None:
            if variational:
                raise ValueError("variational: it is the bottleneck that gives a log-variance; give latent_channels")
            latent_channels = self.encoder.channels
            self.register_to_config(latent_channels=latent_channels, bottleneck_width=None)
            self.bottleneck: nn.Module = nn.Identity()
        else:
            self.bottleneck = bottleneck(
                self.encoder.channels, bottleneck_width, latent_channels * (2 if variational else 1)
            )
        self.detail: nn.Sequential | None = None
        if detail_width is not None:
            pixels = in_channels * self.encoder.stride**2
            out_channels = latent_channels * (2 if variational else 1)
            self.detail = bottleneck(self.encoder.channels + pixels, detail_width, out_channels)
            for parameter in self.detail[-1].parameters():
                nn.init.zeros_(parameter)
        decoder_config = configs.read(DecoderConfig, dict(decoder), "decoder") if decoder else ConvDecoder()
        self.register_to_config(decoder=configs.plain(decoder_config))
        self.decoder = decoder_config.build(
            latent_channels=latent_channels, channels=in_channels, stride=self.encoder.stride
        )
        require_members(decoder_config, self.decoder, ("forward",))
        self.editor: Editor | None = None
        if editor is not None:
            grid = image_size // self.encoder.stride
            self.editor = Editor(self.encoder.channels, latent_channels, grid, **editor)
        self.register_statistics(latent_channels)

    def __getattr__(self, name: str) -> Any:
        # diffusers looks names up in the config first, where `encoder` is the mapping and not the network.
        return nn.Module.__getattr__(self, name)

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: object) -> Any:
        """As diffusers', from a config or a folder with one; reads version 0.1 too, whose fields were decoder_*."""
        if isinstance(config, Mapping):
            config = decoder_section(dict(config))
        return super().from_config(config, return_unused_kwargs, **kwargs)

    @property
    def stride(self) -> int:
        """Image pixels per latent, along each side."""
        return self.encoder.stride

    def with_editor(self, bank: Tensor, mean: Tensor, std: Tensor, width: int = 256, **kind: object) -> Autoencoder:
        """A copy of this tokenizer whose latents are edited samples of a reference. bank [K, C, H, W]: samples of it,
        normalised by `mean` and `std` [C]. kind: `assigned` and `groups` of an `Editor`."""
        own = {name: value for name, value in self.config.items() if not name.startswith("_")}
        model = Autoencoder.from_config(own | {"editor": {"width": width, "bank": len(bank), **kind}})
        model.load_state_dict(self.state_dict(), strict=False)
        model.editor.bank.copy_(bank)
        model.editor.mean.copy_(mean)
        model.editor.std.copy_(std)
        return model.train(self.training)  # a new module is in training mode, where batch norms use the batch

    @apply_forward_hook
    def encode(self, x: Tensor, rng: torch.Generator | None = None) -> EncoderOutput:
        """As every tokenizer's. With an editor, `rng` draws the samples that images edit; unless given, the content of
        an image decides. An editor takes images of the training size only (ValueError)."""
        self.check_images(x)
        side = self.config["image_size"]
        if self.editor is not None and x.shape[2:] != (side, side):
            raise ValueError(
                f"this tokenizer edits samples of its reference, which are of images of {side}x{side}, not "
                f"{x.shape[2]}x{x.shape[3]}: resize or crop them"
            )
        out = self._sliced(partial(self._encode, rng=rng), x)
        if self.config["variational"]:
            # Imported here because it brings all of diffusers' networks, a second of start-up.
            from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

            gaussian = DiagonalGaussianDistribution(out)
            return self._output(gaussian, x, rng)
        return self._output(PointDistribution(out), x, rng)

    @apply_forward_hook
    def decode(self, z: Tensor) -> DecoderOutput:
        self.check_latents(z)
        return DecoderOutput(sample=self._sliced(self._decode, z))

    def enable_slicing(self) -> None:
        """Encode and decode one image of a batch at a time: less memory, the same result."""
        self.use_slicing = True

    def disable_slicing(self) -> None:
        self.use_slicing = False

    def enable_tiling(self, tile: int = 64) -> None:
        """Decode in tiles of tile x tile latents where no gradient is asked for: far less memory for large images, the
        same result (see dmvae.decoders.tiling). Images are encoded whole, because a transformer's tokens see all of the
        image. Raises ValueError for a decoder that has no tiles, and for a tile below 1."""
        if not hasattr(self.decoder, "decode_tiled"):
            raise ValueError(f"this decoder, {self.config['decoder']['type']!r}, cannot decode in tiles")
        if tile < 1:
            raise ValueError(f"tile is {tile}: give the latents along a side, 1 or more")
        self.use_tiling, self.tile = True, tile

    def disable_tiling(self) -> None:
        self.use_tiling = False

    @property
    def has_spread(self) -> bool:
        return self.config["variational"] or self.spread is not None

    def parts(self) -> Parts:
        after = [part for part in (self.detail, self.editor) if part is not None]
        inner = [] if isinstance(self.bottleneck, nn.Identity) else [self.bottleneck]
        return Parts([self.encoder], [*inner, *after], [self.decoder], self.decoder.last_layer)

    def describe(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The inputs of an editor: features [n, d, H, W] and raw latents [n, C, H, W], of images x [n, c, h, w]."""
        features = self.encoder(x)
        tokens = features.permute(0, 2, 3, 1)
        z = self.bottleneck(tokens)
        if self.detail is not None:
            pixels = F.pixel_unshuffle(x, self.stride).permute(0, 2, 3, 1)
            z = z + self.detail(torch.cat([tokens, pixels.to(tokens.dtype)], dim=-1))
        return features, z.permute(0, 3, 1, 2)

    def _encode(self, x: Tensor, rng: torch.Generator | None) -> Tensor:
        features, latents = self.describe(x.to(self.decoder.last_layer.dtype))
        if self.editor is None:
            return latents
        mu = self.editor.normalize(latents)
        y = self.editor.take(x, mu) if rng is None else self.editor.draw(mu, rng)
        return self.editor(features, latents, y)

    def _decode(self, z: Tensor) -> Tensor:
        z = z.to(self.decoder.last_layer.dtype)  # drawn latents are float32 even where weights are in half precision
        if torch.is_grad_enabled():
            return self.decoder(z)
        # Images to look at and to measure are decoded in the weights' own precision, without autocast: rounding to bf16
        # in some thirty convolutions costs 1 to 2 grey levels, and would make PSNR depend on the hardware. TF32, which
        # rounds to 11 bits, is off for the same reason.
        with full_precision(z), without_tf32(z.device):
            return self.decoder.decode_tiled(z, self.tile) if self.use_tiling else self.decoder(z)

    def _sliced(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return torch.cat([function(one) for one in x.split(1)]) if self.use_slicing else function(x)


def bottleneck(channels: int, width: int, out_channels: int) -> nn.Sequential:
    """An MLP for each token, [..., channels] -> [..., out_channels], with one hidden layer; a linear layer for width
    0."""
    if width == 0:
        return nn.Sequential(nn.Linear(channels, out_channels))
    return nn.Sequential(nn.Linear(channels, width), nn.SiLU(), nn.Linear(width, out_channels))
