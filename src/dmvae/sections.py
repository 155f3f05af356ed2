"""The parts of a recipe that every stage may read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dmvae import config as configs
from dmvae.encoders import EncoderConfig
from dmvae.runtime.precision import Precision

Tracker = Literal["tensorboard", "wandb", "none"]


@dataclass(frozen=True, kw_only=True)
class AutoencoderShape:
    """The tokenizer's architecture; its stride is the encoder's."""

    encoder: EncoderConfig
    """The encoder, by `type`."""
    latent_channels: int | None = 16
    """Channels of the latents; null is no bottleneck: the encoder's features are the latents, as in RAE."""
    bottleneck_width: int = 2048
    """Hidden width of the bottleneck MLP; 0 is a single linear layer."""
    decoder_width: int = 128
    """Channels of the decoder at full resolution."""
    decoder_multipliers: tuple[int, ...] = (1, 2, 4, 4)
    """Channel multipliers from full resolution down."""
    decoder_blocks: int = 2
    """Residual blocks per resolution, less the one that every resolution has."""
    decoder_attention: bool = True
    """Self-attention in the middle of the decoder."""
    variational: bool = False
    """The bottleneck gives a mean and a log-variance, as a KL-VAE needs."""

    def __post_init__(self) -> None:
        configs.require_positive(self, "latent_channels", "decoder_width")
        if not self.decoder_multipliers or min(self.decoder_multipliers) < 1:
            raise ValueError(f"decoder_multipliers: one or more whole numbers from 1, got {self.decoder_multipliers}")
        if self.variational and self.latent_channels is None:
            raise ValueError("variational: it is the bottleneck that gives a log-variance; give latent_channels")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """How to run; nothing here changes a result beyond rounding, so none of it is part of a fingerprint."""

    dir: str = "runs/default"
    """Folder of everything that the run writes."""
    precision: Precision = "auto"
    """"auto" is bf16 autocast where the hardware multiplies bf16, float32 elsewhere."""
    compile: bool = False
    """torch.compile the networks: faster steps after a start of up to a minute per stage."""
    shard: bool = False
    """On several ranks, spread weights, gradients and optimizer state of the flow networks over them (FSDP2) instead of
    keeping all on each: less memory, more traffic."""
    workers: int = 4
    """Processes that decode images; data sets held in memory use none."""
    save_every: int = 500
    """Steps between checkpoints."""
    log_every: int = 20
    """Steps between rows of log.jsonl."""
    tracker: Tracker = "tensorboard"
    """Where figures go besides log.jsonl: "tensorboard", "wandb" or "none"."""

    def __post_init__(self) -> None:
        configs.require_positive(self, "save_every", "log_every")
