"""What the stage `evaluate` measures on reconstructions, latents, samples, and the tokenizer as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from dmvae import config as configs
from dmvae.config import Values
from dmvae.datasets.mixed import spaced
from dmvae.evaluation import probe
from dmvae.evaluation.feature_set import FeatureSet, features_of, reference_features, sets_of
from dmvae.evaluation.features import Extractor, FeaturesConfig, extractor_of
from dmvae.evaluation.features.effnet import EffNetLite0
from dmvae.evaluation.images import DatasetImages, SampleFiles
from dmvae.evaluation.latents import latent_statistics
from dmvae.evaluation.manifest import versions
from dmvae.evaluation.measure import PROTOCOL, measure_sets
from dmvae.evaluation.metrics import Latents, Metric, figures, measured_latents, metrics_of, of_sets
from dmvae.evaluation.passes import kept_in
from dmvae.evaluation.probe import generator_probe
from dmvae.evaluation.proxies import (
    IMAGES,
    OF_FEATURES,
    codec,
    decoder_proxies,
    latent_proxies,
)
from dmvae.evaluation.reconstruct import (
    LPIPS,
    PerceptualDistance,
    reconstruct,
    reconstruction_scores,
)
from dmvae.evaluation.scores import Scores
from dmvae.inputs import Inputs
from dmvae.latents.store import LatentSet
from dmvae.ranges import BatchSize, Count
from dmvae.registry import find, names
from dmvae.runtime import distributed
from dmvae.runtime.files import write_tensors
from dmvae.runtime.hashing import weights_hash
from dmvae.runtime.precision import autocast, name_of
from dmvae.stages.arrival import at_the_end
from dmvae.stages.modelled import in_shares, kept_latents, learned, modelled
from dmvae.stages.reference import MAP_POINTS, open_reference
from dmvae.stages.sample import generator_at, labels_told, samples_folder
from dmvae.tokenizers.adapted import spread_of
from dmvae.training.flow import as_taught, held_out_loss

PICTURES = 24
ALSO = ("linear_probe",)
"""Figures of the latents that are proxies too, measured once."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Measuring."""

    features: FeaturesConfig = field(default_factory=EffNetLite0)
    """The network whose features the Frechet distances compare, by `type`."""
    also: tuple[FeaturesConfig, ...] = ()
    """More networks; figures in their features are in metrics.json under their full names."""
    metrics: tuple[str, ...] = ("frechet", "manifold")
    """What is measured besides psnr, ssim, knn and linear_probe. On samples: frechet, kernel (KID), score (Inception
    Score), manifold (precision, recall, density, coverage, class agreement), per-class, memorisation; on
    reconstructions: frechet, and kernel if it is named here. A plugin's metric by its registered name."""
    lpips: bool = False
    """Measure LPIPS of VGG-16 between images and reconstructions; needs its package and weights."""
    count: Count = 10000
    """The most test images to reconstruct; they are also the real images in every distance."""
    batch_size: BatchSize = 250
    """Images at a time."""
    neighbours: Count = 20
    """k of the kNN accuracy."""
    knn_count: Count = 50000
    """The most training latents among which neighbours are searched."""

    proxies: bool = False
    """Measure proxies of gFD too (metrics.json, "proxies"): of the latents and of the decoder."""
    probe: bool = False
    """Train the generator probe too: a small generator of fixed size and steps, about a minute on two cores."""

    def __post_init__(self) -> None:
        metrics_of(self.metrics)

    def measured(self) -> list[Metric]:
        """Every metric to measure: those that are always measured, and those of `metrics`."""
        always = [name for name in names(Metric) if find(Metric, name).always]
        return metrics_of(list(dict.fromkeys([*always, *self.metrics])))


class Measuring:
    """The measurements of one variant. Each method adds its figures to `metrics` (short names, for tables) and `scores`
    (full names, which contain that of the features). Ranks share the passes over images and the distances within a set;
    the rest each rank computes itself, or the first rank alone."""

    def __init__(self, config: EvaluateConfig, inputs: Inputs) -> None:
        self.config, self.inputs = config, inputs
        self.measured = config.measured()
        self.parts = [metric.type for metric in self.measured if of_sets(type(metric))]
        self.tokenizer = inputs.encoding_tokenizer()
        self.extractors = [extractor_of(features).to(inputs.device) for features in (config.features, *config.also)]
        self.lpips = PerceptualDistance(inputs.device) if config.lpips else None
        self.images = DatasetImages(inputs.test_set, config.count, inputs.sections.run.workers)
        self.title = f"{inputs.variant}  evaluate"
        self.reals = self._reference_features(self.images, "test images")
        self.metrics: Values = {"features": self.extractors[0].name, "count": len(self.images)}
        self.scores = Scores()
        self.train: Values = {}

    def _reference_features(self, images: DatasetImages, title: str) -> list[FeatureSet]:
        """Features of images; kept in the run's folder, so that other variants need not compute them."""
        folder = self.inputs.out.parent
        return reference_features(
            self.extractors, images, self.config.batch_size, f"{self.title} {title}", folder=folder
        )

    def _kept(self, what: object) -> Path:
        """Where the pass over `what` is kept while it goes on. The stage's folder stands for all of its settings."""
        return kept_in(self.inputs.out, what, versions())

    def all(self) -> Values:
        """Every figure of the stage's metrics.json; writes the report's pictures beside it. All ranks call, and the
        first one gets the figures.

        Figures of the first features have short names at its top (rfd, gfd, ...); those and all others have their full
        names under "metrics", with "intervals", "per_class" and "manifest" beside them, as `dmvae measure` writes them.
        """
        rows, pictures = self.reconstructions()
        stored = LatentSet(self.inputs.reads["latents"] / "latents")
        fakes, trains = self.sample_features() if "sample" in self.inputs.reads else ([], [])
        with distributed.one_voice():
            self.pairs(rows)
            latents = self.latents(rows["z"], stored)
            if "sample" in self.inputs.reads:
                self.samples(sets_of(rows, self.extractors, self.images), fakes, trains)
        reference = None
        if "reference" in self.inputs.reads and self.inputs.has("reference", "map.safetensors"):
            reference = open_reference(self.inputs)  # a reference is built on all ranks
        if not distributed.is_main():
            return {}
        assert pictures is not None
        if "generator" in self.inputs.reads:
            self.metrics["generator_loss"] = generator_loss(latents.test, latents.test_labels, self.inputs)
        if "sample" in self.inputs.reads and not self.inputs.sections.stored_unlike:
            sampler = self.inputs.config_of("sample")
            sampled, of = kept_latents(samples_folder(self.inputs.reads["sample"], sampler["guidance"][0]))
            alike = sampled[in_shares(of, stored.labels, drawn=sampler.get("labels") == "random")]
            plain = latents.train, latents.train_labels
            data, known = learned(self.inputs.reads["latents"], self.config.knn_count, plain)
            there = data[torch.isin(known, of)]  # with many classes some have no sample
            self.metrics |= modelled(alike, there, self.inputs.seed)
        if reference is not None:
            self.metrics |= at_the_end(self.inputs, reference, rows["z"], latents.test_labels, self.tokenizer.drawn)
        if self.config.proxies or self.config.probe:
            self.metrics["proxies"] = self.proxies(latents)
        maps = {
            "map_latents": latents.test[:MAP_POINTS].flatten(1),
            "map_labels": latents.test_labels[:MAP_POINTS],
        }
        named = dict(zip(("originals", "reconstructions"), pictures, strict=True)) | maps
        write_tensors(self.inputs.out / "pictures.safetensors", {k: v.contiguous() for k, v in named.items()})
        return self.metrics | vars(self.scores) | {"manifest": self.manifest()}

    def reconstructions(self) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor] | None]:
        """The test images' reconstructions; see `reconstruct` for what is returned."""
        return reconstruct(
            self.tokenizer,
            self.extractors,
            self.images,
            self.config.batch_size,
            f"{self.title} reconstruct",
            device=self.inputs.device,
            precision=self.inputs.sections.run.precision,
            lpips=self.lpips,
            pictures=PICTURES,
            latents=True,
            metrics=self.measured,
            kept=self._kept("reconstructions"),
        )

    def pairs(self, rows: dict[str, Tensor]) -> None:
        """Figures of the test images' reconstructions."""
        parts = list(dict.fromkeys(["frechet", *self.parts]))  # a set's order would differ between processes
        scores = reconstruction_scores(rows, self.reals, self.extractors, self.images, parts)
        self.metrics |= {name: scores.metrics[name] for name in scores.intervals if name in figures()}
        if self.lpips is not None:
            self.metrics[LPIPS.key] = scores.metrics[self.lpips.name]
        self.metrics |= short_names(self.measured, "r", self.extractors[0].name, scores)
        self.scores.add(scores)

    def latents(self, raw: Tensor, stored: LatentSet) -> Latents:
        """Figures of the test images' raw latents [m, C, H, W], compared with those of the training images."""
        assert self.images.labels is not None
        z = stored.normalise(raw)
        train, labels = stored.__getitems__(spaced(stored.labels, self.config.knn_count))
        latents = Latents(
            train, labels, z, self.images.labels, self.config.neighbours, device=self.inputs.device, shared=True
        )
        self.metrics["latents"] = latent_statistics(z)
        for metric in self.measured:
            self.metrics |= measured_latents(metric, latents)
        return latents

    def sample_features(self) -> tuple[list[list[FeatureSet]], Sequence[FeatureSet | None]]:
        """(features of the samples at each guidance scale, those of the training images where a metric needs them)."""
        trains: Sequence[FeatureSet | None] = [None] * len(self.reals)
        if "memorisation" in self.parts:
            everything = DatasetImages(self.inputs.train_set, None, self.inputs.sections.run.workers)
            trains = found = self._reference_features(everything, "training images")
            self.train = {"train": found[0].manifest["images"]}
        fakes = []
        for scale in self.inputs.config_of("sample")["guidance"]:
            files = SampleFiles(samples_folder(self.inputs.reads["sample"], scale))
            title = f"{self.title} guidance {scale:g}"
            fakes.append(features_of(self.extractors, files, self.config.batch_size, title, self._kept(scale)))
        return fakes, trains

    def samples(
        self,
        copies: Sequence[FeatureSet],
        fakes: Sequence[Sequence[FeatureSet]],
        trains: Sequence[FeatureSet | None],
    ) -> None:
        """All metrics at the first guidance scale, gFD alone (gfd@W) at the others.

        copies: features of the reconstructed test images; fakes, trains: as `sample_features` gives them. The distance
        of samples to reconstructions, grfd, leaves the decoder's errors out, since both went through the decoder.
        """
        first = self.extractors[0].name
        for i, scale in enumerate(self.inputs.config_of("sample")["guidance"]):
            found = Scores()
            for real, copy, fake, train in zip(self.reals, copies, fakes[i], trains, strict=True):
                parts = self.parts if i == 0 else ["frechet"]
                scores = measure_sets(
                    real, fake, prefix="g", parts=parts, train=train, device=self.inputs.device, shared=True
                )
                found.add(scores)
                if i == 0:
                    found.add(measure_sets(copy, fake, prefix="gr", parts=["frechet"]))
            named = short_names(self.measured, "g", first, found) | short_names(self.measured, "gr", first, found)
            self.metrics |= {name if i == 0 else f"{name}@{scale:g}": value for name, value in named.items()}
            # the first scale is the one that the table ranks by
            if i > 0:
                found = Scores({f"{name}_w{scale:g}": value for name, value in found.metrics.items()})
            self.scores.add(found)

    def proxies(self, latents: Latents) -> dict[str, float]:
        """Proxies of gFD."""
        config, inputs, extractor = self.config, self.inputs, self.extractors[0]
        encode, decode = codec(self.tokenizer, inputs.device, inputs.sections.run.precision)
        moments = self.reals[0].moments()
        assert moments is not None
        train, labels = latents.train, latents.train_labels
        found: dict[str, float] = {}
        if config.proxies:
            some = torch.cat(list(self.images.batches(range(min(IMAGES, len(self.images))), config.batch_size)))
            found |= {name: self.metrics[name] for name in ALSO if name in self.metrics}
            found |= latent_proxies(train, labels)
            found |= decoder_proxies(
                encode, decode, self.tokenizer.stride, some, latents.test, train, moments, extractor
            )
        if config.probe:
            found |= generator_probe(train.to(inputs.device), labels, decode=decode, extractor=extractor, real=moments)
        return {f"{name}_{extractor.name}" if name in OF_FEATURES else name: value for name, value in found.items()}

    def manifest(self) -> Values:
        """All that the figures depend on. The names of stages' folders hold their fingerprints."""
        config, inputs, images = self.config, self.inputs, self.images
        elsewhere = (*inputs.data.PLACES, "flip")  # test images are never mirrored
        data = {name: value for name, value in configs.identity(inputs.data).items() if name not in elsewhere}
        measured: Values = {
            "kind": "run",
            "weights": weights_hash(self.tokenizer),
            "spread": spread_of(self.tokenizer),
            "stages": {name: folder.name for name, folder in inputs.reads.items()},
            "dtype": name_of(inputs.device, inputs.sections.run.precision),
            "seed": inputs.seed,
        }
        if "sample" in inputs.reads:
            sampler = inputs.config_of("sample")
            told = labels_told(sampler.get("labels", "equal"))
            measured |= {"sampler": sampler, "labels": told, "count": sampler["count"]}
        if "generator" in inputs.reads:
            measured["ema"] = inputs.config_of("generator")["ema"]
        networks: list[Extractor | PerceptualDistance] = [*self.extractors, *([self.lpips] if self.lpips else [])]
        return {
            "reference": images.facts | {"count": len(images), "data": data},
            "measured": measured,
            **self.train,
            "count": measured.get("count", len(images)),
            "features": {network.name: network.manifest() for network in networks},
            "protocol": PROTOCOL | ({"probe": probe.VERSION} if config.probe else {}),
            "settings": configs.plain(config),
            "versions": versions(),
            "device": inputs.device.type,
            "call": {
                "kind": "evaluate",
                "run_dir": str(inputs.out.parent.parent.resolve()),
                "variant": inputs.variant,
            },
        }


@torch.inference_mode()
def generator_loss(z: Tensor, labels: Tensor, inputs: Inputs) -> float:
    """The generator's mean loss on test latents z [n, C, H, W] with labels [n]; for a flow, at one random time each. It
    can be compared between tokenizers, because latents are normalised to unit variance per channel."""
    step = inputs.config_of("sample").get("snapshot") if "sample" in inputs.reads else None
    generator = inputs.generator("generator", generator_at(step, inputs)).to(inputs.device).eval()
    labels = as_taught(labels, inputs.config_of("generator")["label_dropout"], inputs.num_classes)
    with autocast(inputs.device, inputs.sections.run.precision):
        return held_out_loss(generator, z, labels, inputs.device)


def short_names(measured: Sequence[Metric], prefix: str, features: str, scores: Scores) -> dict[str, float]:
    """Short name -> figure, for the figures of sets that tables show, in the features of that name."""
    full = {key: name for metric in measured for key, name in metric.short(prefix, features).items()}
    return {key: scores.metrics[name] for key, name in full.items() if name in scores.metrics}
