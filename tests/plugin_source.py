"""The source of a plugin that brings one of everything, and recipes that use it."""

from pathlib import Path

import yaml

import tiny
from dmvae import config as configs

PLUGIN = """
from dataclasses import dataclass
import torch
from diffusers.configuration_utils import register_to_config
from torch import nn
from dmvae.datasets import DatasetConfig
from dmvae.datasets.memory import MemoryDataset
from dmvae.decoders import DecoderConfig
from dmvae.encoders import EncoderConfig
from dmvae.evaluation.metrics import Figure, Metric, Scores
from dmvae.flow.samplers import Sampler
from dmvae.generators import GeneratorConfig
from dmvae.matching import Matching
from dmvae.models.base import Model
from dmvae.references import ReferenceConfig
from dmvae.registry import register
from dmvae.training.stage import Networks, TrainingConfig, TrainingStage, Update, stage


@register("noise_images")
@dataclass(frozen=True, kw_only=True)
class NoiseImages(DatasetConfig):
    def build(self, split):
        g = torch.Generator().manual_seed(int(split == "train"))
        images = torch.randint(256, (48, self.channels, self.size, self.size), generator=g, dtype=torch.uint8)
        return MemoryDataset(images, torch.arange(48) % 3, ("a", "b", "c"))


@register("pool")
@dataclass(frozen=True, kw_only=True)
class Pool(EncoderConfig):
    def build(self, *, size, channels, pretrained=False):
        net = nn.Sequential(nn.Conv2d(channels, 8, 3, padding=1), nn.AvgPool2d(4))
        net.channels, net.stride = 8, 4
        return net


@register("two_points")
@dataclass(frozen=True, kw_only=True)
class TwoPoints(ReferenceConfig):
    def build(self, inputs):
        return Points(inputs.latent_shape, inputs.num_classes)


class Points:
    velocity = None

    def __init__(self, shape, num_classes):
        self.shape, self.num_classes = shape, num_classes
        self.mean, self.std = torch.zeros(shape[0]), torch.ones(shape[0])

    def sample(self, n, rng):
        labels = rng.integers(self.num_classes, n)
        return (2.0 * (labels % 2) - 1).view(-1, 1, 1, 1).expand(n, *self.shape).clone(), labels


@register("moment")
@dataclass(frozen=True, kw_only=True)
class Moment(Matching):
    def loss(self, z, labels, teacher=None, student=None, context=None):
        return z.square().mean(), {"moment/mean": z.mean()}


@register("blocks")
@dataclass(frozen=True, kw_only=True)
class Blocks(DecoderConfig):
    width: int = 8

    def build(self, *, latent_channels, channels, stride):
        return BlockDecoder(latent_channels, channels, stride, self.width)


class BlockDecoder(nn.Module):
    def __init__(self, latent_channels, channels, stride, width):
        super().__init__()
        self.inner = nn.Conv2d(latent_channels, width, 1)
        self.out = nn.Conv2d(width, channels * stride**2, 1)
        self.shuffle = nn.PixelShuffle(stride)

    @property
    def last_layer(self):
        return self.out.weight

    def forward(self, z):
        return self.shuffle(self.out(self.inner(z).relu()))


class ClassMeans(Model):
    @register_to_config
    def __init__(self, *, in_channels, input_size, num_classes):
        super().__init__()
        self.means = nn.Parameter(torch.zeros(num_classes + 1, in_channels, input_size, input_size))

    def loss(self, z, labels, rng):
        return (self.means[labels] - z).square().mean()

    def sample(self, noise, labels, settings, normal=None):
        return self.means[labels] + 0.5 * noise


@register("class_means")
@dataclass(frozen=True, kw_only=True)
class ClassMeansConfig(GeneratorConfig):
    network = ClassMeans

    def build(self, latent_shape, num_classes):
        return ClassMeans(in_channels=latent_shape[0], input_size=latent_shape[1], num_classes=num_classes)


@register("leap")
class Leap(Sampler):
    def trajectory(self, velocity, noise, labels, settings, normal=None):
        yield 0.5 * noise + velocity(noise, torch.zeros(len(noise)), labels)


@register("brightness")
class Brightness(Metric):
    figures = (
        Figure("brightness", "brightness gap", "", -1, "{:.3f}", "how much brighter or darker samples are"),
        Figure("contrast", "contrast gap", "", -1, "{:.3f}", "of reconstructions"),
        Figure("latent_norm", "latent norm", "", 0, "{:.3f}", "of the test images' latents"),
    )

    def sets(self, sets):
        gap = (sets.real.pool.mean() - sets.fake.pool.mean()).abs()
        return Scores({f"{sets.prefix}brightness_{sets.features}": float(gap)})

    def short(self, prefix, features):
        return {"brightness": f"gbrightness_{features}"} if prefix == "g" else {}

    def pairs(self, a, b):
        return {"contrast": (a.double().std(dim=(1, 2, 3)) - b.double().std(dim=(1, 2, 3))).abs()}

    def latents(self, latents):
        return {"latent_norm": float(latents.test.flatten(1).norm(dim=1).mean())}


@dataclass(frozen=True, kw_only=True)
class SharpenConfig(TrainingConfig):
    strength: float = 1.0


class SharpenNetworks(Networks):
    sharpener: nn.Module


@stage("sharpen", after="decoder")
class Sharpen(TrainingStage):
    Config = SharpenConfig
    reads = ("tokenizer", "matching", "decoder")

    def build(self):
        networks = SharpenNetworks()
        networks.sharpener = nn.Conv2d(3, 3, 3, padding=1)
        networks.trains["sharpener"] = list(networks.sharpener.parameters())
        return networks

    def updates(self, networks, batch, rng):
        loss = (networks.sharpener(batch.data) - self.config.strength * batch.data).square().mean()
        yield Update("sharpener", loss, {"sharpen/mean": batch.data.mean()})
"""


def renamed(prefix):
    """The plugin under names that no other test's plugin has taken in this process."""
    return PLUGIN.replace('@register("', f'@register("{prefix}').replace('@stage("', f'@stage("{prefix}')


def over(prefix: str) -> dict:
    """What puts every part of the plugin into the tiny recipe."""
    return {
        "data": {"type": f"{prefix}noise_images", "size": 12, "channels": 3},
        "autoencoder": {
            "encoder": {"type": f"{prefix}pool"},
            "latent_channels": 4,
            "bottleneck_width": 8,
            "decoder": {"type": f"{prefix}blocks"},
        },
        "reference.distribution": {"type": f"{prefix}two_points"},
        "matching.objective": {"type": f"{prefix}moment"},
        "evaluate.metrics": ["frechet", f"{prefix}brightness"],
        f"{prefix}sharpen": {"steps": 2, "batch_size": 8},
        "variants": {
            "main": {},
            "means": {"generator.model": {"type": f"{prefix}class_means"}},
            "leaps": {"sample.method": f"{prefix}leap"},
        },
    }


def recipe_with_plugins(folder: Path, source: str = PLUGIN, prefix: str = "") -> Path:
    (folder / "mine.py").write_text(source)
    base = {key: value for key, value in tiny.RECIPE.items() if key not in ("autoencoder", "variants", "data")}
    values = configs.merge(base, over(prefix) | {"run.dir": str(folder / "run"), "plugins": [str(folder / "mine.py")]})
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path
