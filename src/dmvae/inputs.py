"""What a stage is given: the recipe's shared sections, its own folder, the folders that it reads, the device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dmvae import config as configs
from dmvae.blank import blank_tokenizer, build_autoencoder, first_tokenizer, latent_shape
from dmvae.config import Values
from dmvae.datasets import Dataset, DatasetConfig, Items, open_dataset
from dmvae.datasets.loading import passes
from dmvae.datasets.mixed import Chosen, stratified
from dmvae.datasets.pixels import as_input
from dmvae.encoders import Encoder, EncoderConfig, load_public
from dmvae.generators import Generator, load_generator
from dmvae.latents.store import Carrying, encode_dataset
from dmvae.losses.discriminators import AdversarialConfig
from dmvae.losses.perceptual import PerceptualLoss
from dmvae.models.base import Encodes, Tokenizer
from dmvae.models.discriminator import Discriminator, learned
from dmvae.runtime import distributed
from dmvae.runtime.console import console
from dmvae.runtime.done import read_done
from dmvae.sections import AutoencoderShape, Sections
from dmvae.tokenizers import Normalisation
from dmvae.tokenizers.adapted import adapt, load_tokenizer
from dmvae.tokenizers.autoencoder import Autoencoder

SNAPSHOTS = "snapshots"
"""Where in a stage's folder its networks of earlier steps are."""


@dataclass
class Inputs:
    """What a stage reads: settings, finished stages, and networks with their weights."""

    sections: Sections
    """The recipe; stages use only the shared sections of it."""
    variant: str
    out: Path
    """The stage's own folder."""
    reads: dict[str, Path]
    """Finished stages that this one may read: name -> folder."""
    device: torch.device
    drawn: bool | None = None
    """Whether a variational tokenizer encodes to samples of its posteriors; None: as it was saved."""
    weights: ClassVar[bool] = True
    """Whether networks are loaded with their weights; False in a plan."""

    @property
    def seed(self) -> int:
        return self.sections.seed

    @property
    def data(self) -> DatasetConfig:
        return self.sections.data

    @property
    def train_set(self) -> Dataset:
        return open_dataset(self.data, "train")

    @property
    def test_set(self) -> Dataset:
        return open_dataset(self.data, "test")

    @property
    def num_classes(self) -> int:
        return len(self.train_set.classes)

    @cached_property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the recipe's latents. Raises ValueError where the tokenizer cannot take images of that size."""
        return latent_shape(self.sections)

    @property
    def shape(self) -> AutoencoderShape:
        """The architecture of the tokenizer that is trained here from the beginning. Raises ValueError where the recipe
        takes a `pretrained` one."""
        if self.sections.autoencoder is None or self.sections.pretrained is not None:
            raise ValueError(
                "it needs the encoder that a recipe names under `autoencoder`, and this one has `pretrained` instead"
            )
        return self.sections.autoencoder

    def config_of(self, stage: str) -> Values:
        """The config of a stage that this one reads, as plain values, from that stage's done.json."""
        return (read_done(self.reads[stage]) or {})["config"]

    def tensors(self, stage: str, name: str) -> dict[str, Tensor]:
        """The tensors of a .safetensors file in the folder of a stage that this one reads."""
        return load_file(self.reads[stage] / name)

    def new_autoencoder(self, *, pretrained: bool) -> Autoencoder:
        """The recipe's tokenizer with random weights; with `pretrained`, its encoder's weights are trained ones."""
        model = build_autoencoder(self.sections)
        if pretrained:
            self._fill(model.encoder)
        return model

    def new_encoder(self, config: EncoderConfig | None = None) -> Encoder:
        """The recipe's encoder, or another, with random weights."""
        return (config or self.shape.encoder).build(size=self.data.size, channels=self.data.channels)

    def frozen_encoder(self, config: EncoderConfig | None = None) -> Encoder:
        """The recipe's encoder with self-supervised or public weights, or another with its public ones; frozen."""
        encoder = self.new_encoder(config)
        self._fill(encoder, config)
        return encoder.requires_grad_(False).eval()

    def _fill(self, encoder: nn.Module, config: EncoderConfig | None = None) -> None:
        """Load an encoder's public weights, if it has any; for the recipe's own those of the stage `encoder`, where
        there is one."""
        if config is None and "encoder" in self.reads:
            encoder.load_state_dict(self.tensors("encoder", "encoder/model.safetensors"))
            return
        load_public(encoder, config or self.shape.encoder, size=self.data.size, channels=self.data.channels)

    @property
    def tokenizer_folder(self) -> Path | None:
        """The folder of the last stage that trained the tokenizer, of those that this one reads; None where none has
        trained it yet, which only a recipe with `pretrained` allows."""
        return next((self.reads[name] for name in ("decoder", "matching", "tokenizer") if name in self.reads), None)

    def autoencoder(self) -> Tokenizer:
        """The tokenizer as the last stage left it, to be trained further; the recipe's `pretrained` one where no stage
        has trained it yet."""
        folder = self.tokenizer_folder
        if folder is None:
            if self.sections.pretrained is None:
                raise ValueError("a stage that takes the tokenizer reads it: add 'tokenizer' to its `reads`")
            model = first_tokenizer(self.sections, weights=True)
        else:
            model = load_tokenizer(folder / "autoencoder")
        if self.drawn is not None:
            model.drawn = self.drawn
        return model

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that `latents` and the stages after it use. One that nothing trains here need not be of a kind
        that can be trained."""
        source = self.sections.pretrained
        if source is not None and self.tokenizer_folder is None:
            return adapt(source, size=self.data.size, channels=self.data.channels, pretrained=True)
        return self.autoencoder()

    def encoding_tokenizer(self) -> Tokenizer:
        """The tokenizer as the stage `latents` used it, with the statistics of its latents."""
        return load_tokenizer(self.reads["latents"] / "autoencoder")

    def discriminator(self) -> Discriminator | None:
        """The discriminator as the last stage left it, to go on training, or None without one."""
        folder = self.tokenizer_folder
        if folder is None or not (folder / "discriminator").exists():
            return None
        return self.sections.losses.adversarial.network.from_pretrained(folder / "discriminator")

    def new_discriminator(self, config: AdversarialConfig) -> Discriminator | None:
        """A discriminator that has learnt nothing here yet, or None where the adversary has no weight."""
        if config.weight == 0:
            return None
        fresh = self.weights and config.start_from is None
        network = config.build(size=self.data.size, channels=self.data.channels, pretrained=fresh)
        if self.weights and config.start_from is not None:
            network.load_state_dict(learned(config.start_from, network))
        return network

    def perceptual(self) -> PerceptualLoss | None:
        """The recipe's perceptual loss, or None without one."""
        config = self.sections.losses.perceptual
        return config.build() if config is not None else None

    def has(self, stage: str, name: str) -> bool:
        """Whether a stage that this one reads left that file or folder."""
        return (self.reads[stage] / name).exists()

    def generator(self, stage: str, name: str) -> Generator:
        """A generator, or a teacher, that another stage trained."""
        return load_generator(self.reads[stage] / name)

    def encode(
        self,
        tokenizer: Encodes,
        dataset: Items,
        folder: Path,
        title: str,
        *,
        mirrored: bool = False,
        whitened: float = 0.0,
        given: Normalisation | None = None,
    ) -> None:
        """Write a data set's latents, or those of its mirror images, to shards in `folder`, and the numbers that
        normalise them; an interrupted pass goes on where it stopped."""
        store = self.sections.latents
        encode_dataset(
            Carrying(tokenizer) if self.data.are_latents and isinstance(tokenizer, Tokenizer) else tokenizer,
            dataset,
            folder,
            title=f"{self.variant}  {title}",
            device=self.device,
            precision=self.sections.run.precision,
            workers=self.sections.run.workers,
            batch_size=store.batch_size,
            shard_size=store.shard_size,
            dtype=store.dtype,
            mirrored=mirrored,
            whitened=whitened,
            given=given,
        )

    def some_images(self, most: int) -> Iterator[Tensor]:
        """Batches, as `batches` gives them, of at most so many training images; every class has its share."""
        return self.batches(Chosen(self.train_set, stratified(self.train_set.labels, most)))

    def batches(self, dataset: Items) -> Iterator[Tensor]:
        """Batches of a data set, in order and without labels, on the device: images [n, c, h, w] in [-1, 1], or other
        data as float32."""
        for items, _ in passes(dataset, self.sections.latents.batch_size, self.sections.run.workers, self.device):
            yield as_input(items, self.device)

    def place(self, module: nn.Module) -> None:
        """Bring a network that trains to the device, with images in the layout that convolutions are fastest in."""
        module.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def say(self, text: str) -> None:
        """Print a line that begins with the stage's name; one rank does."""
        if distributed.is_main():
            console.print(f"  {self.out.name.rsplit('-', 1)[0]}: {text}")


def snapshot(step: int) -> str:
    """Where in a stage's folder its networks of that step are kept."""
    return f"{SNAPSHOTS}/step-{step:08d}"


def kept_steps(folder: Path) -> list[int]:
    """The steps, ascending, whose networks a stage's folder keeps besides the last."""
    return sorted(int(kept.name[5:]) for kept in folder.glob(f"{SNAPSHOTS}/step-*"))


def generator_of(of: int | Path | None) -> str:
    """Where in its stage's folder the generator of that step is; None is the finished one. A folder is a generator of
    another training: its absolute path, which `stage_folder / path` leaves as it is."""
    if isinstance(of, Path):
        return str(of.absolute())
    return "generator" if of is None else f"{snapshot(of)}/generator"


class Blueprint(Inputs):
    """The inputs of a plan: nothing is read, and all networks have random weights. Plans build them from fake tensors,
    which have no memory."""

    weights: ClassVar[bool] = False

    def __init__(
        self, sections: Sections, variant: str, reads: Mapping[str, Any], num_classes: int, fake: bool = True
    ) -> None:
        """reads: the configs of the stages that the stage may read. fake: whether tensors are fake, without memory."""
        super().__init__(sections, variant, Path(), dict.fromkeys(reads, Path()), torch.device("cpu"))
        self.configs, self.classes, self.fake = reads, num_classes, fake

    @property
    def num_classes(self) -> int:
        return self.classes

    def place(self, module: nn.Module) -> None:
        if not self.fake:  # torch cannot convert the layout of a fake tensor in place, and it takes no more memory
            super().place(module)

    def config_of(self, stage: str) -> Values:
        return configs.plain(self.configs[stage])

    def tensors(self, stage: str, name: str) -> dict[str, Tensor]:
        channels = self.latent_shape[0]
        return {"mean": torch.zeros(channels), "std": torch.ones(channels)}

    def _fill(self, encoder: nn.Module, config: EncoderConfig | None = None) -> None:
        pass

    def autoencoder(self) -> Tokenizer:
        return first_tokenizer(self.sections, weights=False)

    def encoding_tokenizer(self) -> Tokenizer:
        return blank_tokenizer(self.sections)

    def discriminator(self) -> None:
        return None

    def perceptual(self) -> PerceptualLoss | None:
        """As the recipe's but for its weights; None where its package is missing, which `checks.lacking` reports."""
        config = self.sections.losses.perceptual
        try:
            return config.blank() if config is not None else None
        except ValueError:
            return None

    def has(self, stage: str, name: str) -> bool:
        return name != "teacher" or self.configs[stage].trains

    def generator(self, stage: str, name: str) -> Generator:
        return self.configs[stage].model.build(self.latent_shape, self.classes)
