"""What a stage is given: its recipe, its folder, the folders it reads, the device."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch import nn

from dmvae import config as configs
from dmvae.datasets import Dataset, open_dataset
from dmvae.models.base import Tokenizer
from dmvae.models.discriminator import PatchGAN
from dmvae.runtime.console import console
from dmvae.tokenizers.adapted import adapt
from dmvae.tokenizers.autoencoder import Autoencoder

if TYPE_CHECKING:
    from dmvae.recipe import Recipe


@dataclass
class Inputs:
    recipe: Recipe
    variant: str
    out: Path
    """The stage's own folder."""
    reads: dict[str, Path]
    """Finished stages that this one may read: name -> folder."""
    device: torch.device

    @property
    def train_set(self) -> Dataset:
        return open_dataset(self.recipe.data, "train")

    @property
    def test_set(self) -> Dataset:
        return open_dataset(self.recipe.data, "test")

    @property
    def num_classes(self) -> int:
        return len(self.train_set.classes)

    def new_autoencoder(self) -> Autoencoder:
        """The recipe's tokenizer, its encoder with public or self-supervised weights unless it starts from scratch."""
        training = self.recipe.tokenizer
        assert training is not None
        model = build_autoencoder(self.recipe)
        start = training.start
        if start is None:
            start = "scratch" if training.train_encoder and "encoder" not in self.reads else "pretrained"
        if start == "pretrained":
            self._fill(model.encoder)
        return model

    def frozen_encoder(self) -> nn.Module:
        """The recipe's encoder with self-supervised or public weights, which nothing moves."""
        assert self.recipe.autoencoder is not None
        data = self.recipe.data
        encoder = self.recipe.autoencoder.encoder.build(size=data.size, channels=data.channels)
        self._fill(encoder)
        return encoder.requires_grad_(False).eval()

    def _fill(self, encoder: nn.Module) -> None:
        """Give the recipe's encoder the weights of the stage `encoder`, or its public ones where it has some."""
        if "encoder" in self.reads:
            encoder.load_state_dict(load_file(self.reads["encoder"] / "encoder" / "model.safetensors"))
            return
        assert self.recipe.autoencoder is not None
        data = self.recipe.data
        trained = self.recipe.autoencoder.encoder.build(size=data.size, channels=data.channels, pretrained=True)
        encoder.load_state_dict(trained.state_dict())

    @property
    def tokenizer_folder(self) -> Path:
        """The stage that trained the tokenizer last, of those that this one reads."""
        return next(self.reads[name] for name in ("decoder", "matching", "tokenizer") if name in self.reads)

    def autoencoder(self) -> Autoencoder:
        """The tokenizer that is trained here, as the last stage left it."""
        return Autoencoder.from_pretrained(self.tokenizer_folder / "autoencoder")

    def tokenizer(self) -> Tokenizer:
        """The tokenizer of every stage from the latents on: the recipe's finished one, or the one trained here."""
        data, source = self.recipe.data, self.recipe.pretrained
        if source is not None:
            return adapt(source, size=data.size, channels=data.channels, pretrained=True)
        return self.autoencoder()

    def discriminator(self) -> PatchGAN | None:
        """The discriminator as the last stage left it, to go on training, or None without one."""
        folder = self.tokenizer_folder / "discriminator"
        return PatchGAN.from_pretrained(folder).train() if folder.exists() else None

    def say(self, text: str) -> None:
        console.print(f"  {self.out.name.rsplit('-', 1)[0]}: {text}")


def build_autoencoder(recipe: Recipe) -> Autoencoder:
    """The tokenizer that the recipe trains, with random weights."""
    shape: dict[str, Any] = configs.plain(recipe.autoencoder)
    return Autoencoder(image_size=recipe.data.size, in_channels=recipe.data.channels, **shape)


def build_tokenizer(recipe: Recipe) -> Tokenizer:
    """The recipe's tokenizer, finished or to be trained, without weights: on the meta device."""
    data, source = recipe.data, recipe.pretrained
    with torch.device("meta"):
        if source is not None:
            return adapt(source, size=data.size, channels=data.channels, pretrained=False)
        return build_autoencoder(recipe)


def describe_latents(recipe: Recipe) -> tuple[int, int, int]:
    """(C, H, W) of the recipe's latents. Raises ValueError where its tokenizer does not take its images."""
    model, data = build_tokenizer(recipe), recipe.data
    try:
        model.check_images(torch.empty(1, data.channels, data.size, data.size, device="meta"))
    except ValueError as error:
        raise ValueError(f"data.size: {error}") from error
    side = data.size // model.stride
    return model.config.latent_channels, side, side
