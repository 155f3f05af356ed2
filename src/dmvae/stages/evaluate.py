"""Stage `evaluate`: reconstructions, samples and latents, measured against the test set."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from dmvae import config as configs
from dmvae.config import Values
from dmvae.evaluation import probe
from dmvae.evaluation.feature_set import FeatureSet, features_of, reference_features
from dmvae.evaluation.features import Extractor, FeaturesConfig
from dmvae.evaluation.features.effnet import EffNetLite0
from dmvae.evaluation.images import DatasetImages, SampleFiles
from dmvae.evaluation.latents import latent_statistics, sliced_wasserstein
from dmvae.evaluation.manifest import versions
from dmvae.evaluation.measure import PROTOCOL, measure_sets
from dmvae.evaluation.metrics import Latents, Metric, figures, metrics_of
from dmvae.evaluation.proxies import (
    IMAGES,
    OF_FEATURES,
    codec,
    decoder_proxies,
    latent_proxies,
    probe_proxies,
)
from dmvae.evaluation.reconstruct import (
    LPIPS,
    PerceptualDistance,
    reconstruct,
    reconstructed_sets,
    reconstruction_scores,
)
from dmvae.evaluation.scores import Scores
from dmvae.flow.loss import flow_matching_loss
from dmvae.inputs import Inputs
from dmvae.latents.store import LatentSet
from dmvae.losses.perceptual import LPIPSPerceptual
from dmvae.models.base import Tokenizer
from dmvae.models.velocity import VelocityModel
from dmvae.registry import find, names
from dmvae.runtime import distributed
from dmvae.runtime.files import whole, write_tensors
from dmvae.runtime.hashing import weights_hash
from dmvae.runtime.precision import autocast, uses_bf16
from dmvae.runtime.random import Random, seed_of
from dmvae.sections import Sections
from dmvae.stages.sample import samples_folder
from dmvae.tokenizers.adapted import load_tokenizer
from dmvae.training.stage import Facts, Stage, stage

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
    """What is measured besides psnr, ssim, knn and linear_probe. Of samples: frechet, kernel (KID), score (Inception
    Score), manifold (precision, recall, density, coverage, class agreement), per-class, memorisation; of
    reconstructions: frechet, and kernel where it is named. A plugin's metric by its name."""
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
        metrics_of(self.metrics)

    def measured(self) -> list[Metric]:
        """Every metric: those that are always taken, and those that are asked for."""
        always = [name for name in names(Metric) if find(Metric, name).always]
        return metrics_of(list(dict.fromkeys([*always, *self.metrics])))


@stage("evaluate")
class EvaluateStage(Stage[EvaluateConfig]):
    Config = EvaluateConfig
    reads = ("reference", "latents", "generator", "sample")
    splits = ("train", "test")

    def run(self) -> Facts:
        if distributed.is_main():
            metrics = measure(self.config, self.inputs)
            with whole(self.inputs.out / "metrics.json") as part:
                part.write_text(json.dumps(metrics, indent=1))
        distributed.barrier()
        return {}

    @classmethod
    def parts(cls, config: EvaluateConfig, sections: Sections) -> Iterator[tuple[str, Any]]:
        yield from (("evaluate", features) for features in (config.features, *config.also))
        if config.lpips:
            yield "evaluate.lpips", LPIPSPerceptual()

    @classmethod
    def problems(cls, config: EvaluateConfig, inputs: Inputs) -> Iterator[str]:
        latents = min(config.knn_count, len(inputs.train_set))
        if config.neighbours > latents:
            yield (
                f"evaluate.neighbours: {config.neighbours} neighbours are sought among {latents} latents; "
                f"use at most {latents}"
            )


def measure(config: EvaluateConfig, inputs: Inputs) -> Values:
    """Every figure of the stage's metrics.json; writes the report's pictures beside it.

    Figures of the first features have short names at its top (rfd, gfd, ...); those and all others have their full
    names under "metrics", with "intervals", "per_class" and "manifest" beside them, as `dmvae measure` writes them.
    """
    tokenizer: Tokenizer = load_tokenizer(inputs.reads["latents"] / "autoencoder")
    extractors = [features.build().to(inputs.device) for features in (config.features, *config.also)]
    lpips = PerceptualDistance(inputs.device) if config.lpips else None
    measured = config.measured()
    images = DatasetImages(inputs.test_set, config.count, inputs.sections.run.workers)
    assert images.labels is not None
    title = f"{inputs.variant}  evaluate"
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
        precision=inputs.sections.run.precision,
        lpips=lpips,
        pictures=PICTURES,
        latents=True,
        alone=True,
        metrics=measured,
    )
    assert pictures is not None
    parts = [metric.type for metric in measured if metric.of_sets]
    scores = reconstruction_scores(rows, reals, extractors, images, {"frechet", *parts})
    latents = LatentSet(inputs.reads["latents"] / "latents")
    z, labels = (rows["z"] - latents.mean.view(-1, 1, 1)) / latents.std.view(-1, 1, 1), images.labels
    spaced = torch.linspace(0, len(latents) - 1, min(config.knn_count, len(latents))).long()
    train_z, train_labels = latents.__getitems__(spaced)
    metrics: Values = {
        "features": extractors[0].name,
        "count": len(images),
        **{name: scores.metrics[name] for name in scores.intervals if name in figures()},
        **({LPIPS.key: scores.metrics[lpips.name]} if lpips else {}),
        **short_names(measured, "r", extractors[0].name, scores),
        "latents": latent_statistics(z),
    }
    of_latents = Latents(train_z, train_labels, z, labels, config.neighbours)
    for metric in measured:
        metrics |= metric.latents(of_latents)
    if "generator" in inputs.reads:
        metrics["generator_loss"] = generator_loss(z, labels, inputs)
    if "sample" in inputs.reads:
        trains: Sequence[FeatureSet | None] = [None] * len(reals)
        if "memorisation" in config.metrics:
            train_images = DatasetImages(inputs.train_set, None, inputs.sections.run.workers)
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
        "manifest": _manifest(config, tokenizer, [*extractors, *([lpips] if lpips else [])], images, inputs),
    }


@torch.inference_mode()
def generator_loss(z: Tensor, labels: Tensor, inputs: Inputs) -> float:
    """The generator's loss on the test set's latents, a flow's at one random time each; comparable between latents
    because each is normalised to unit variance per channel."""
    generator = inputs.generator("generator", "generator").to(inputs.device).eval()
    total = 0.0
    # Drawn per block of a fixed size, so that no batch size or number of ranks changes the figure.
    for start in range(0, len(z), LOSS_BLOCK):
        part, classes = (x[start : start + LOSS_BLOCK].to(inputs.device) for x in (z, labels))
        source = torch.Generator().manual_seed(seed_of("generator_loss", start))
        t, noise = torch.rand(len(part), generator=source), torch.randn(part.shape, generator=source)
        with autocast(inputs.device, inputs.sections.run.precision):
            if isinstance(generator, VelocityModel):
                loss = flow_matching_loss(generator, part, classes, t.to(inputs.device), noise.to(inputs.device))
            else:
                loss = generator.loss(part, classes, Random("generator_loss", start, device=inputs.device))
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
    scales = inputs.config_of("sample")["guidance"]
    scores, short = Scores(), dict[str, float]()
    parts = [metric.type for metric in config.measured() if metric.of_sets]
    first = extractors[0].name
    for i, scale in enumerate(scales):
        files = SampleFiles(samples_folder(inputs.reads["sample"], scale))
        title = f"{inputs.variant}  evaluate guidance {scale:g}"
        fakes = features_of(extractors, files, config.batch_size, title, alone=True)
        found = Scores()
        for real, copy, fake, train in zip(reals, copies, fakes, trains, strict=True):
            found.add(measure_sets(real, fake, prefix="g", parts=parts if i == 0 else ["frechet"], train=train))
            if i == 0:
                found.add(measure_sets(copy, fake, prefix="gr", parts=("frechet",)))
        named = short_names(config.measured(), "g", first, found) | short_names(config.measured(), "gr", first, found)
        short |= {name if i == 0 else f"{name}@{scale:g}": value for name, value in named.items()}
        # the first scale is the one that the table ranks by
        scores.add(found if i == 0 else Scores({f"{name}_w{scale:g}": value for name, value in found.metrics.items()}))
    return scores, short


def short_names(measured: Sequence[Metric], prefix: str, features: str, scores: Scores) -> dict[str, float]:
    """The figures of sets that have a short name, in the first features: those that tables show."""
    full = {key: name for metric in measured for key, name in metric.short(prefix, features).items()}
    return {key: scores.metrics[name] for key, name in full.items() if name in scores.metrics}


def _manifest(
    config: EvaluateConfig, tokenizer: Tokenizer, extractors: list[Any], images: DatasetImages, inputs: Inputs
) -> Values:
    """What the figures rest on; the samples' stage and the generator's are named by their fingerprints."""
    data = {name: value for name, value in configs.plain(inputs.data).items() if name not in inputs.data.PLACES}
    measured: Values = {
        "kind": "run",
        "weights": weights_hash(tokenizer),
        "stages": {name: folder.name for name, folder in inputs.reads.items()},
        "dtype": "bfloat16" if uses_bf16(inputs.device, inputs.sections.run.precision) else "float32",
        "seed": inputs.seed,
    }
    if "sample" in inputs.reads:
        sampler = inputs.config_of("sample")
        measured |= {"sampler": sampler, "labels": "balanced", "count": sampler["count"]}
    if "generator" in inputs.reads:
        measured["ema"] = inputs.config_of("generator")["ema"]
    return {
        "reference": images.facts | {"count": len(images), "data": data},
        "measured": measured,
        "count": measured.get("count", len(images)),
        "features": {e.name: e.manifest() for e in extractors},
        "protocol": PROTOCOL | ({"probe": probe.VERSION} if config.probe else {}),
        "settings": configs.plain(config),
        "versions": versions(),
        "device": inputs.device.type,
        "call": {
            "kind": EvaluateStage.name,
            "run_dir": str(inputs.out.parent.parent.resolve()),
            "variant": inputs.variant,
        },
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
    encode, decode = codec(tokenizer, inputs.device, inputs.sections.run.precision)
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
