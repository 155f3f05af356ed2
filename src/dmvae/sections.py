"""The parts of a recipe that every stage may read."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from dmvae import config as configs
from dmvae.config import Values
from dmvae.datasets import DatasetConfig
from dmvae.decoders import DecoderConfig, decoder_section
from dmvae.decoders.conv import ConvDecoder
from dmvae.encoders import EncoderConfig
from dmvae.losses import LossConfig
from dmvae.ranges import BatchSize, Count, Range, Seed, Wait, Width
from dmvae.runtime.hashing import content_hash
from dmvae.runtime.precision import Precision
from dmvae.tokenizers import TokenizerSource

Tracker = Literal["tensorboard", "wandb", "none"]


@dataclass(frozen=True, kw_only=True)
class AutoencoderShape:
    """The tokenizer's architecture; its stride is the encoder's."""

    encoder: EncoderConfig
    """The encoder, by `type`."""
    latent_channels: Width | None = 16
    """Channels of the latents; null is no bottleneck: the encoder's features are the latents, as in RAE."""
    bottleneck_width: Annotated[int, Range(0, 65536)] = 2048
    """Hidden width of the bottleneck MLP; 0 is a single linear layer."""
    decoder: DecoderConfig = field(default_factory=ConvDecoder)
    """The decoder, by `type`."""
    variational: bool = False
    """The bottleneck gives a mean and a log-variance, as a KL-VAE needs."""
    detail_width: Width | None = configs.added(None)
    """Hidden width of a small network that sees the pixels under each latent, beside the encoder's features, and adds
    what these have lost to the latent; null: none. It starts at zero and is trained in stage `matching`, and in
    `tokenizer` where its `train_detail` says so. For frozen encoders, which know classes and forget detail."""

    def __post_init__(self) -> None:
        if self.variational and self.latent_channels is None:
            raise ValueError("variational: only a bottleneck gives a log-variance; give latent_channels")

    @classmethod
    def upgrade(cls, values: Values) -> Values:
        """Read recipes of version 0.1, in which the convolutional decoder's fields stood here as decoder_*."""
        return decoder_section(values)

    def identity(self, values: Values) -> Values:
        """A convolutional decoder is hashed in the form of version 0.1, so that stages which that version finished stay
        finished."""
        if type(self.decoder) is not ConvDecoder:  # one that derives from it is another
            return values
        fields = values.pop("decoder")
        return values | {f"decoder_{name}": value for name, value in fields.items() if name != "type"}


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """How to run. Nothing here changes a result by more than rounding, so nothing here is part of a fingerprint."""

    dir: str = "runs/default"
    """Folder of everything that the run writes. "{run.dir}" in any other field stands for it."""
    precision: Precision = "auto"
    """"auto" is bf16 autocast where the hardware has fast bf16 matrix products, float32 elsewhere."""
    tf32: bool = False
    """In training on NVIDIA GPUs, round products of float32 matrices to TF32's 11 bits: faster steps with `precision:
    float32`. false: as torch has it, where convolutions alone are rounded so, and so are the stages that encode, sample
    and measure."""
    compile: bool = False
    """torch.compile the networks, block by block: faster steps, but each stage starts about a minute later."""
    shard: bool = False
    """On several ranks, spread weights, gradients and optimizer state of the flow networks over them (FSDP2) instead of
    keeping all on each: less memory, more traffic."""
    shard_bf16: bool = False
    """With `shard`: gather weights in bf16 where steps are computed in bf16: half of that traffic. The weights that are
    kept and the sums of gradients stay float32; norms and embeddings see rounded weights."""
    shard_in_node: bool = False
    """With `shard`: over the ranks of a node, with a copy on every node (HSDP): less traffic between nodes."""
    reshard: bool = True
    """With `shard`: drop gathered weights between forward and backward pass. false: less traffic, more memory."""
    timeout: Annotated[float, Range(1, 1440)] = 20.0
    """Minutes after which ranks give up on one that does not finish its training step; also the timeout of every
    collective between GPUs (NCCL). Outside of training steps, collectives on the CPU (gloo) wait for a day."""
    accumulate: Count = 1
    """Gradient accumulation: micro-batches into which each rank splits its share of a batch, in the stages whose loss
    is a mean over images (reference, generator): the same weights in less memory. The other stages do not split."""
    checkpointing: tuple[str, ...] = ()
    """Networks with activation checkpointing: they recompute activations in the backward pass instead of keeping them.
    The same weights in far less memory, for a third more time. Of autoencoder, teacher, student, generator."""
    workers: Annotated[int, Range(0, 512)] = 4
    """Processes that decode images; data sets held in memory use none."""
    save_every: Count = 500
    """Steps between checkpoints."""
    keep_every: Wait = 0
    """Steps between snapshots of every stage's networks, averaged where they are, that are kept in STAGE/snapshots; 0
    keeps none. A stage's `keep_at` names single steps. `sample.snapshot` draws from one."""
    keep_state: bool = True
    """Keep the state of the last step of a teacher and a generator whose `schedule` is constant (about four times their
    weights), so that a training of more steps goes on from it. false: more steps begin anew."""
    picture_every: Wait = 0
    """Steps between pictures of what the averaged networks make, in STAGE/pictures and the tracker: test images above
    their reconstructions, by the stages that train a decoder, and samples of classes, by `generator`; 0 makes none."""
    measure_every: Wait = 0
    """Steps between figures of the averaged networks on test data, test/... in log.jsonl and the tracker: PSNR of 250
    test images, by the stages that train a decoder, the flow loss on their latents, by `generator`, and on samples of
    the reference, by `reference`; 0 measures none."""
    measure_samples: Wait = 0
    """Samples of which `generator` is measured then, too: test/gfd, their Frechet distance to as many test images in
    `evaluate.features`. 0 draws none."""
    log_every: Count = 20
    """Steps between rows of log.jsonl."""
    tracker: Tracker = "tensorboard"
    """Where figures and the recipe go besides log.jsonl: "tensorboard", "wandb" or "none"; with wandb to the project of
    WANDB_PROJECT, else "dmvae"."""

    def __post_init__(self) -> None:
        if not self.dir.strip():
            raise ValueError(f"dir: {self.dir!r} names no folder; give one, such as runs/NAME")
        if self.measure_samples == 1:
            raise ValueError("measure_samples: 1 sample is no set, and sets are compared; give 2 or more, or 0")
        object.__setattr__(self, "dir", os.path.expanduser(self.dir))


@dataclass(frozen=True, kw_only=True)
class LatentsConfig:
    """Encoding of the data set."""

    batch_size: BatchSize = 256
    """Images per step, on each rank."""
    shard_size: Count = 16384
    """Images per file."""
    dtype: Literal["float32", "float16"] = "float32"
    """Precision on disk."""
    mirrored: bool = configs.added(False)
    """Encode the mirror images too, so that half of what the generator trains on is mirrored. Twice the disk."""
    stored: Count | None = configs.added(None)
    """Store the latents of at most so many training images, evenly spread, for statistics and measures alone; the
    generator then encodes images in each step, with random crops (`data.resize`) and mirrored (`data.flip`) as the
    tokenizer saw them. For latents too large for the disk, at the price of the encoder in each step. Mirror images are
    stored too if there is `data.flip`. null: all, from which the generator learns."""
    drawn: bool = configs.added(False)
    """Latents are samples of a variational tokenizer's posteriors, as LightningDiT's and REPA-E's are; false: as
    `matching.noise` says, and without a matching the means. A generator gets new samples in each epoch, and the stage
    `decoder` learns from samples; statistics, what is measured, reconstructions too, and `encode` of the finished
    tokenizer are of samples. Three times the disk."""
    whitening: Annotated[float, Range(-1, 1)] = configs.added(0.0)
    """How far a matrix whitens the latents that generators learn, at each place: their correlations R become
    R^(1 - whitening), each channel keeping unit variance. 1: none are left; below 0: they grow, for comparison. The
    decoder undoes it, so that no reconstruction changes."""

    statistics: Literal["measured", "own"] | Path = configs.added("measured")
    """What normalises latents for generators. "measured": mean and standard deviation of each channel, over the latents
    that are stored. "own": what the tokenizer brings, so that generators that were trained on it fit: of a tokenizer of
    ours its statistics, after a matching those of its reference; of one of diffusers `scaling_factor` and
    `shift_factor`, or `latents_mean` and `latents_std`. A path: a file with `mean` and `std`, .pt or .safetensors, such
    as latents_stats.pt of LightningDiT."""

    def __post_init__(self) -> None:
        if self.whitening != 0 and self.statistics != "measured":
            raise ValueError(
                "whitening: its matrix is measured as statistics are; set it to 0, or statistics: measured"
            )
        if self.mirrored and self.stored is not None:
            raise ValueError(
                "mirrored: true stores mirror images for the generator, which with `stored` encodes images itself; set "
                "it to false, and data.flip: true for mirrored ones"
            )

    def identity(self, values: Values) -> Values:
        """With the content of a file of statistics in place of its path."""
        file = self.statistics
        return values | {"statistics": content_hash([file])} if isinstance(file, Path) else values


@dataclass(frozen=True, kw_only=True)
class Sections:
    """What every stage may read of its recipe."""

    name: str
    """Name of the experiment."""
    seed: Seed = 0
    """Seed of all randomness."""
    plugins: tuple[str, ...] = ()
    """Files, folders of files or installed modules that register more members of any family, or stages."""
    run: RunConfig = field(default_factory=RunConfig)
    """How to run."""
    data: DatasetConfig
    """The data set."""
    autoencoder: AutoencoderShape | None = None
    """The architecture of a tokenizer that is trained here."""
    pretrained: TokenizerSource | None = None
    """A finished tokenizer, by `type`, in place of a new one; `tokenizer`, `matching` and `decoder`, where the recipe
    has them, train it further."""
    losses: LossConfig = field(default_factory=LossConfig)
    """The reconstruction loss of the stages that train a decoder."""
    latents: LatentsConfig = field(default_factory=LatentsConfig)
    """Encoding of the data set."""

    @classmethod
    def upgrade(cls, values: Values) -> Values:
        """Write the run's folder for "{run.dir}", by which a variant names what another one of its run has made."""
        run = values.get("run")
        folder = run.get("dir", RunConfig.dir) if isinstance(run, dict) else RunConfig.dir
        done: dict[int, object] = {}
        return {name: configs.replaced(value, "{run.dir}", str(folder), done) for name, value in values.items()}

    @property
    def mirrored(self) -> bool:
        """Whether mirror images are encoded too: of `stored` ones, for measures, where the generator sees such."""
        return self.latents.mirrored or (self.latents.stored is not None and self.data.flip)

    @property
    def stored_unlike(self) -> bool:
        """Whether the generator encodes random crops, and the latents that are stored are of central ones: beside them
        a perfect generator would be told apart."""
        return self.latents.stored is not None and getattr(self.data, "resize", None) is not None
