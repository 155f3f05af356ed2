"""Stage `evaluate`: reconstructions, samples and latents, measured against the test set."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dmvae import config as configs
from dmvae import distributed
from dmvae.evaluation.features import EffNetLite0, Extractor, FeaturesConfig, extract
from dmvae.evaluation.frechet import Statistics, frechet_distance
from dmvae.evaluation.latents import latent_statistics, sliced_wasserstein
from dmvae.evaluation.metrics import knn_accuracy, precision_recall_density_coverage, psnr, ssim, to_uint8
from dmvae.flow.loss import flow_matching_loss
from dmvae.inputs import Inputs
from dmvae.models import LightningDiT
from dmvae.models.base import Tokenizer
from dmvae.stages.latents import LatentSet, write_tensors
from dmvae.stages.sample import samples_folder
from dmvae.tokenizers.adapted import load_tokenizer
from dmvae.training.data import as_input, passes
from dmvae.training.logging import Bar
from dmvae.training.precision import autocast
from dmvae.training.random import Random

NAME = "evaluate"
READS = ("reference", "latents", "generator", "sample")
USES: tuple[str, ...] = ()

PICTURES, MAP_POINTS = 24, 2000


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Measuring."""

    features: FeaturesConfig = field(default_factory=EffNetLite0)
    """The network whose features the Frechet distances compare, by `type`."""
    count: int = 10000
    """Test images at most, for reconstruction and as the real side of every distance."""
    batch_size: int = 250
    """Images at a time."""
    neighbours: int = 20
    """k of the kNN accuracy."""
    knn_count: int = 50000
    """Training latents at most among which neighbours are sought."""


def run(config: EvaluateConfig, inputs: Inputs) -> dict[str, Any]:
    if distributed.is_main():
        metrics = measure(config, inputs)
        inputs.out.mkdir(parents=True, exist_ok=True)
        (inputs.out / "metrics.json").write_text(json.dumps(metrics, indent=1))
    distributed.barrier()
    return {}


def measure(config: EvaluateConfig, inputs: Inputs) -> dict[str, Any]:
    """Every figure of the stage's metrics.json; writes the report's pictures beside it."""
    tokenizer: Tokenizer = load_tokenizer(inputs.reads["latents"] / "autoencoder").to(inputs.device).eval()
    extractor = config.features.build().to(inputs.device)
    title = f"{inputs.variant}  {NAME}"
    originals, recon, z, labels = reconstruct_test_set(tokenizer, inputs, config, f"{title} reconstruct")
    real = _real_features(extractor, originals, inputs, config)
    recon_features = extract(extractor, recon.split(config.batch_size))
    latents = LatentSet(inputs.reads["latents"] / "latents")
    z = (z - latents.mean.view(-1, 1, 1)) / latents.std.view(-1, 1, 1)
    spaced = torch.linspace(0, len(latents) - 1, min(config.knn_count, len(latents))).long()
    train_z, train_labels = latents.__getitems__(spaced)
    metrics: dict[str, Any] = {
        "features": config.features.name,
        "count": len(originals),
        "psnr": psnr(originals, recon),
        "ssim": ssim(originals, recon),
        "rfd": _frechet(real, recon_features),
        "knn": knn_accuracy(train_z.flatten(1), train_labels, z.flatten(1), labels, k=config.neighbours),
        "latents": latent_statistics(z),
    }
    if "generator" in inputs.reads:
        metrics["generator_loss"] = generator_loss(z, labels, inputs, config)
    if "sample" in inputs.reads:
        metrics |= _sample_metrics(extractor, real, inputs, config)
    if "reference" in inputs.reads and (inputs.reads["reference"] / "map.safetensors").exists():
        reference = load_file(inputs.reads["reference"] / "map.safetensors")["latents"]
        metrics["distance_to_reference"] = sliced_wasserstein(
            reference.flatten(1), _in_reference_units(z, latents, inputs)
        )
    pictures = {"originals": originals[:PICTURES], "reconstructions": recon[:PICTURES]}
    maps = {"map_latents": z[:MAP_POINTS].flatten(1), "map_labels": labels[:MAP_POINTS]}
    save_file({k: v.contiguous() for k, v in (pictures | maps).items()}, inputs.out / "pictures.safetensors")
    return metrics


@torch.inference_mode()
def reconstruct_test_set(
    tokenizer: Tokenizer, inputs: Inputs, config: EvaluateConfig, title: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(originals uint8, reconstructions uint8, raw latents float32, labels) of the first test images."""
    count = min(config.count, len(inputs.test_set))
    rows: list[tuple[Tensor, ...]] = []
    with Bar(title, count, "images") as bar:
        for images, labels in passes(inputs.test_set, config.batch_size, inputs.recipe.run.workers, inputs.device):
            with autocast(inputs.device, inputs.recipe.run.precision):
                z = tokenizer.encode(as_input(images, inputs.device)).latents
                recon = tokenizer.decode(z).sample
            rows.append((images, to_uint8(recon.float()).cpu(), z.float().cpu(), labels))
            bar.step(len(images))
            if bar.done >= count:
                break
    originals, recon, z, labels = (torch.cat(column)[:count] for column in zip(*rows, strict=True))
    return originals, recon, z, labels


@torch.inference_mode()
def generator_loss(z: Tensor, labels: Tensor, inputs: Inputs, config: EvaluateConfig) -> float:
    """Flow-matching loss of the generator on the test set's latents, each at one random time; comparable
    between latents because each is normalised to unit variance per channel."""
    generator = LightningDiT.from_pretrained(inputs.reads["generator"] / "generator").to(inputs.device).eval()
    rng = Random(0, "generator_loss", device=inputs.device)
    total = 0.0
    for start in range(0, len(z), config.batch_size):
        part = z[start : start + config.batch_size].to(inputs.device)
        with autocast(inputs.device, inputs.recipe.run.precision):
            loss = flow_matching_loss(
                generator,
                part,
                labels[start : start + config.batch_size].to(inputs.device),
                rng.uniform(len(part)),
                rng.normal(*part.shape),
            )
        total += float(loss) * len(part)
    return total / len(z)


def _sample_metrics(extractor: Extractor, real: Tensor, inputs: Inputs, config: EvaluateConfig) -> dict[str, float]:
    """gfd and its kin for the first guidance scale, gfd@W for the others."""
    assert inputs.recipe.sample is not None
    metrics: dict[str, float] = {}
    for i, scale in enumerate(inputs.recipe.sample.guidance):
        with Bar(f"{inputs.variant}  {NAME} guidance {scale:g}", inputs.recipe.sample.count, "images") as bar:
            fake = extract(extractor, _read_samples(samples_folder(inputs.reads["sample"], scale), bar))
        if i == 0:
            metrics["gfd"] = _frechet(real, fake)
            metrics |= precision_recall_density_coverage(real, fake)
        else:
            metrics[f"gfd@{scale:g}"] = _frechet(real, fake)
    return metrics


def _read_samples(folder: Path, bar: Bar) -> Iterator[Tensor]:
    for path in sorted(folder.glob("samples-*.safetensors")):
        images = load_file(path)["images"]
        yield images
        bar.step(len(images))


def _real_features(extractor: Extractor, originals: Tensor, inputs: Inputs, config: EvaluateConfig) -> Tensor:
    """Features of the test images, kept in the run's folder for the other variants."""
    name = f"{inputs.test_set.fingerprint}-{len(originals)}-{configs.plain(config.features)}"
    path = inputs.out.parent / f"features-{Random(name).initial_seed():016x}.safetensors"
    if not path.exists():
        features = extract(extractor, originals.split(config.batch_size))
        write_tensors(path, {"features": features.contiguous()})
    return load_file(path)["features"]


def _frechet(a: Tensor, b: Tensor) -> float:
    return frechet_distance(Statistics.of(a), Statistics.of(b))


def _in_reference_units(z: Tensor, latents: LatentSet, inputs: Inputs) -> Tensor:
    """Normalised latents as the reference's normalisation sees them, flattened."""
    own_mean, own_std = latents.mean.view(-1, 1, 1), latents.std.view(-1, 1, 1)
    to = load_file(inputs.reads["reference"] / "normalisation.safetensors")
    return ((z * own_std + own_mean - to["mean"].view(-1, 1, 1)) / to["std"].view(-1, 1, 1))[:MAP_POINTS].flatten(1)
