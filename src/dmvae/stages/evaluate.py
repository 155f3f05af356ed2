"""Stage `evaluate`: reconstructions, samples and latents, measured against the test set."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from dmvae import config as configs
from dmvae.evaluation import probe
from dmvae.evaluation.feature_set import FeatureSet, features_of, reference_features
from dmvae.evaluation.features import Extractor, FeaturesConfig
from dmvae.evaluation.features.effnet import EffNetLite0
from dmvae.evaluation.images import DatasetImages, SampleFiles
from dmvae.evaluation.latents import latent_statistics, sliced_wasserstein
from dmvae.evaluation.manifest import versions
from dmvae.evaluation.measure import PARTS, PROTOCOL, Scores, frechet_name, measure_sets
from dmvae.evaluation.metrics import knn_accuracy
from dmvae.evaluation.proxies import (
    IMAGES,
    OF_FEATURES,
    codec,
    decoder_proxies,
    latent_proxies,
    linear_probe,
    probe_proxies,
)
from dmvae.evaluation.reconstruct import (
    OF_PAIRS,
    PerceptualDistance,
    reconstruct,
    reconstructed_sets,
    reconstruction_scores,
)
from dmvae.flow.loss import flow_matching_loss
from dmvae.inputs import Inputs
from dmvae.latents.store import LatentSet
from dmvae.models.base import Tokenizer
from dmvae.models.dit import LightningDiT
from dmvae.runtime import distributed
from dmvae.runtime.files import whole, write_tensors
from dmvae.runtime.hashing import weights_hash
from dmvae.runtime.precision import autocast, uses_bf16
from dmvae.runtime.random import seed_of
from dmvae.stages.sample import samples_folder
from dmvae.tokenizers.adapted import load_tokenizer

NAME = "evaluate"
READS = ("reference", "latents", "generator", "sample")
USES: tuple[str, ...] = ()
SPLITS = ("train", "test")

PICTURES, MAP_POINTS = 24, 2000
LOSS_BLOCK = 250


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Measuring."""

    features: FeaturesConfig = field(default_factory=EffNetLite0)
    """The network whose features the Frechet distances compare, by `type`."""
    also: tuple[FeaturesConfig, ...] = ()
    """Further networks; figures in their features stand under their full names in metrics.json."""
    metrics: tuple[str, ...] = ("frechet", "manifold")
    """What is measured of samples: frechet, kernel (KID), score (Inception Score), manifold (precision, recall,
    density, coverage, class agreement), per-class, memorisation. Of reconstructions: frechet, and kernel where it is
    named."""
    lpips: bool = False
    """Measure LPIPS of VGG-16 between images and reconstructions; needs its package and weights."""
    count: int = 10000
    """Test images at most, for reconstruction and as the real side of every distance."""
    batch_size: int = 250
    """Images at a time."""
    neighbours: int = 20
    """k of the kNN accuracy."""
    knn_count: int = 50000
    """Training latents at most among which neighbours are sought."""

    proxies: bool = False
    """Measure proxies of gFD too (metrics.json, "proxies"): of the latents and of the decoder."""
    probe: bool = False
    """Train the generator probe too: a small generator of fixed size and budget, about a minute on two cores."""

    def __post_init__(self) -> None:
        configs.require_positive(self, "count", "batch_size", "neighbours", "knn_count")
        if unknown := set(self.metrics) - set(PARTS):
            raise ValueError(f"no metrics are called {', '.join(sorted(unknown))}; known: {', '.join(PARTS)}")


def run(config: EvaluateConfig, inputs: Inputs) -> dict[str, Any]:
    if distributed.is_main():
        metrics = measure(config, inputs)
        with whole(inputs.out / "metrics.json") as part:
            part.write_text(json.dumps(metrics, indent=1))
    distributed.barrier()
    return {}


def measure(config: EvaluateConfig, inputs: Inputs) -> dict[str, Any]:
    """Every figure of the stage's metrics.json; writes the report's pictures beside it.

    Figures of the first features have short names at its top (rfd, gfd, ...); those and all others have their full
    names under "metrics", with "intervals", "per_class" and "manifest" beside them, as `dmvae measure` writes them.
    """
    tokenizer: Tokenizer = load_tokenizer(inputs.reads["latents"] / "autoencoder")
    extractors = [features.build().to(inputs.device) for features in (config.features, *config.also)]
    lpips = PerceptualDistance(inputs.device) if config.lpips else None
    images = DatasetImages(inputs.test_set, config.count, inputs.recipe.run.workers)
    assert images.labels is not None
    title = f"{inputs.variant}  {NAME}"
    # kept in the run's folder for the other variants
    reference = partial(reference_features, folder=inputs.out.parent, alone=True)
    reals = reference(extractors, images, config.batch_size, f"{title} test images")
    rows, pictures = reconstruct(
        tokenizer,
        extractors,
        images,
        config.batch_size,
        f"{title} reconstruct",
        device=inputs.device,
        precision=inputs.recipe.run.precision,
        lpips=lpips,
        pictures=PICTURES,
        latents=True,
        alone=True,
    )
    assert pictures is not None
    scores = reconstruction_scores(rows, reals, extractors, images, {"frechet", *config.metrics})
    latents = LatentSet(inputs.reads["latents"] / "latents")
    z, labels = (rows["z"] - latents.mean.view(-1, 1, 1)) / latents.std.view(-1, 1, 1), images.labels
    spaced = torch.linspace(0, len(latents) - 1, min(config.knn_count, len(latents))).long()
    train_z, train_labels = latents.__getitems__(spaced)
    metrics: dict[str, Any] = {
        "features": extractors[0].name,
        "count": len(images),
        **{short: scores.metrics[name] for short, name in OF_PAIRS.items() if name in scores.metrics},
        "rfd": scores.metrics[frechet_name("r", extractors[0].name)],
        "knn": knn_accuracy(train_z.flatten(1), train_labels, z.flatten(1), labels, k=config.neighbours),
        "linear_probe": linear_probe(train_z, train_labels, z, labels),
        "latents": latent_statistics(z),
    }
    if "generator" in inputs.reads:
        metrics["generator_loss"] = generator_loss(z, labels, inputs)
    if "sample" in inputs.reads:
        trains: Sequence[FeatureSet | None] = [None] * len(reals)
        if "memorisation" in config.metrics:
            train_images = DatasetImages(inputs.train_set, None, inputs.recipe.run.workers)
            trains = reference(extractors, train_images, config.batch_size, f"{title} training images")
        copies = reconstructed_sets(rows, extractors, images)
        sampled, short = sample_scores(extractors, reals, copies, trains, inputs, config)
        scores.add(sampled)
        metrics |= short
    if "reference" in inputs.reads and (inputs.reads["reference"] / "map.safetensors").exists():
        of_reference = load_file(inputs.reads["reference"] / "map.safetensors")["latents"]
        metrics["distance_to_reference"] = sliced_wasserstein(
            of_reference.flatten(1), _in_reference_units(z, latents, inputs)
        )
    if config.proxies or config.probe:
        metrics["proxies"] = _proxies(
            config, tokenizer, extractors[0], images, reals[0], (train_z, train_labels), (z, labels), inputs
        )
    maps = {"map_latents": z[:MAP_POINTS].flatten(1), "map_labels": labels[:MAP_POINTS]}
    named = dict(zip(("originals", "reconstructions"), pictures, strict=True)) | maps
    write_tensors(inputs.out / "pictures.safetensors", {k: v.contiguous() for k, v in named.items()})
    return metrics | {
        "metrics": scores.metrics,
        "intervals": scores.intervals,
        "per_class": scores.per_class,
        "manifest": _manifest(tokenizer, [*extractors, *([lpips] if lpips else [])], images, inputs),
    }


@torch.inference_mode()
def generator_loss(z: Tensor, labels: Tensor, inputs: Inputs) -> float:
    """Flow-matching loss of the generator on the test set's latents, each at one random time; comparable
    between latents because each is normalised to unit variance per channel."""
    generator = LightningDiT.from_pretrained(inputs.reads["generator"] / "generator").to(inputs.device).eval()
    total = 0.0
    # Drawn per block of a fixed size, so that no batch size or number of ranks changes the figure.
    for start in range(0, len(z), LOSS_BLOCK):
        part, classes = (x[start : start + LOSS_BLOCK].to(inputs.device) for x in (z, labels))
        source = torch.Generator().manual_seed(seed_of("generator_loss", start))
        t, noise = torch.rand(len(part), generator=source), torch.randn(part.shape, generator=source)
        with autocast(inputs.device, inputs.recipe.run.precision):
            loss = flow_matching_loss(generator, part, classes, t.to(inputs.device), noise.to(inputs.device))
        total += float(loss) * len(part)
    return total / len(z)


def sample_scores(
    extractors: list[Extractor],
    reals: list[FeatureSet],
    copies: list[FeatureSet],
    trains: Sequence[FeatureSet | None],
    inputs: Inputs,
    config: EvaluateConfig,
) -> tuple[Scores, dict[str, float]]:
    """(scores, short names): everything for the first guidance scale, gfd and its kin, for the others the distance
    alone, gfd@W. grfd is the distance to the reconstructions `copies` of the test images: what is left of gfd without
    the decoder's own part in it, for generated and reconstructed images both went through it."""
    assert inputs.recipe.sample is not None
    scores, short = Scores(), dict[str, float]()
    first = extractors[0].name
    for i, scale in enumerate(inputs.recipe.sample.guidance):
        files = SampleFiles(samples_folder(inputs.reads["sample"], scale))
        title = f"{inputs.variant}  {NAME} guidance {scale:g}"
        fakes = features_of(extractors, files, config.batch_size, title, alone=True)
        found = Scores()
        for real, copy, fake, train in zip(reals, copies, fakes, trains, strict=True):
            parts = config.metrics if i == 0 else ("frechet",)
            found.add(measure_sets(real, fake, prefix="g", parts=parts, train=train))
            if i == 0:
                found.add(measure_sets(copy, fake, prefix="gr", parts=("frechet",)))
        full = {"gfd" if i == 0 else f"gfd@{scale:g}": frechet_name("g", first), "grfd": frechet_name("gr", first)}
        full |= {name: f"{name}_{first}" for name in ("precision", "recall", "density", "coverage", "agreement")}
        short |= {name: found.metrics[key] for name, key in full.items() if key in found.metrics}
        # the first scale is the one that the table ranks by
        scores.add(found if i == 0 else Scores({f"{name}_w{scale:g}": value for name, value in found.metrics.items()}))
    return scores, short


def _manifest(tokenizer: Tokenizer, extractors: list[Any], images: DatasetImages, inputs: Inputs) -> dict[str, Any]:
    """What the figures rest on; the samples' stage and the generator's are named by their fingerprints."""
    recipe = inputs.recipe
    data = {name: value for name, value in configs.plain(recipe.data).items() if name not in recipe.data.PLACES}
    measured: dict[str, Any] = {
        "kind": "run",
        "weights": weights_hash(tokenizer),
        "stages": {name: folder.name for name, folder in inputs.reads.items()},
        "dtype": "bfloat16" if uses_bf16(inputs.device, recipe.run.precision) else "float32",
        "seed": recipe.seed,
    }
    if recipe.sample is not None:
        measured |= {"sampler": configs.plain(recipe.sample), "labels": "balanced", "count": recipe.sample.count}
    if recipe.generator is not None:
        measured["ema"] = recipe.generator.ema
    return {
        "reference": images.facts | {"count": len(images), "data": data},
        "measured": measured,
        "count": measured.get("count", len(images)),
        "features": {e.name: e.manifest() for e in extractors},
        "protocol": PROTOCOL | ({"probe": probe.VERSION} if recipe.evaluate and recipe.evaluate.probe else {}),
        "settings": configs.plain(recipe.evaluate),
        "versions": versions(),
        "device": inputs.device.type,
        "call": {"kind": NAME, "run_dir": str(inputs.out.parent.parent.resolve()), "variant": inputs.variant},
    }


def _proxies(
    config: EvaluateConfig,
    tokenizer: Tokenizer,
    extractor: Extractor,
    images: DatasetImages,
    real: FeatureSet,
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    inputs: Inputs,
) -> dict[str, float]:
    """Proxies of gFD from normalised latents and labels of the training and test images."""
    encode, decode = codec(tokenizer, inputs.device, inputs.recipe.run.precision)
    moments = real.moments()
    assert moments is not None
    found: dict[str, float] = {}
    if config.proxies:
        some = torch.cat(list(images.batches(range(min(IMAGES, len(images))), config.batch_size)))
        found |= latent_proxies(*train, *test)
        found |= decoder_proxies(encode, decode, tokenizer.stride, some, test[0], train[0], moments, extractor)
    if config.probe:
        found |= probe_proxies(train[0].to(inputs.device), train[1], decode, moments, extractor)
    return {f"{name}_{extractor.name}" if name in OF_FEATURES else name: value for name, value in found.items()}


def _in_reference_units(z: Tensor, latents: LatentSet, inputs: Inputs) -> Tensor:
    """Normalised latents as the reference's normalisation sees them, flattened."""
    own_mean, own_std = latents.mean.view(-1, 1, 1), latents.std.view(-1, 1, 1)
    to = load_file(inputs.reads["reference"] / "normalisation.safetensors")
    return ((z * own_std + own_mean - to["mean"].view(-1, 1, 1)) / to["std"].view(-1, 1, 1))[:MAP_POINTS].flatten(1)
