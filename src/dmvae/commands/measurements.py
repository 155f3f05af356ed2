"""`dmvae measure`: folders, samples and tokenizers against reference images; latents.

Each function takes plain arguments; the manifest keeps them under "call", so that a file of scores can be checked.
"""

from __future__ import annotations

import inspect
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, get_type_hints

from dmvae import config as configs
from dmvae.commands.generated import Generated
from dmvae.commands.latents import measure_latents
from dmvae.commands.parser import require
from dmvae.config import Values
from dmvae.datasets.image_file import Resampling
from dmvae.evaluation.feature_set import FeatureSet, features_of, reference_features
from dmvae.evaluation.features import Extractor, extractor_of, parse_features
from dmvae.evaluation.images import FolderImages, Images, SampleFiles, npz_images
from dmvae.evaluation.manifest import differences, require_same, versions
from dmvae.evaluation.measure import PROTOCOL, measure_sets
from dmvae.evaluation.reconstruct import PerceptualDistance, reconstruct, reconstruction_scores
from dmvae.evaluation.reference_statistics import is_statistics, read_statistics
from dmvae.evaluation.scores import Scores
from dmvae.flow.samplers import SamplerConfig
from dmvae.ranges import MOST_PIXELS
from dmvae.runtime import distributed
from dmvae.runtime.files import sweep_beside
from dmvae.runtime.hashing import digest, weights_hash
from dmvae.runtime.precision import Precision, name_of
from dmvae.stages.sample import SampleConfig
from dmvae.tokenizers.adapted import open_tokenizer, spread_of

DEFAULT_FEATURES = ("effnet-lite0",)


class Setting:
    """What the three kinds of measurement have in common: where images are read from, the extractors, the device.

    features: NAME[@RESOLUTION][=WEIGHTS] each. size: images become
    squares of it, by `resampling`. limit: most images of a
    folder. parts: the figures to compute, all by default. train: folder of training images, for memorisation.
    save_reference: .safetensors file for the reference's features. force: compare what was made differently. fresh:
    use no results of earlier calls. Raises ValueError for options out of range or that do not go together.
    """

    def __init__(
        self,
        features: Sequence[str] = DEFAULT_FEATURES,
        *,
        batch_size: int = 64,
        size: int | None = None,
        resampling: Resampling = "square",
        limit: int | None = None,
        workers: int = 0,
        parts: Sequence[str] | None = None,
        train: str | None = None,
        save_reference: str | None = None,
        force: bool = False,
        fresh: bool = False,
    ) -> None:
        require(1, MOST_PIXELS, size=size)
        require(1, batch_size=batch_size, limit=limit)
        if save_reference and not save_reference.endswith(".safetensors"):
            raise ValueError(f"--save-reference {save_reference}: that file is a .safetensors; name it so")
        # A check must not find the features that earlier calls have kept.
        self.scratch = tempfile.TemporaryDirectory() if fresh else None
        self.folder = Path(self.scratch.name) if self.scratch else None
        self.batch_size, self.size, self.limit, self.workers = batch_size, size, limit, workers
        self.resampling: Resampling = resampling
        self.parts, self.train, self.save_reference, self.force = parts, train, save_reference, force
        self.opened: dict[tuple[str, int | None], Images] = {}
        self.trains: list[FeatureSet] = []
        self.device = distributed.start()
        self.extractors: list[Extractor] = [extractor_of(parse_features(text)).to(self.device) for text in features]
        if save_reference and len(self.extractors) != 1:
            raise ValueError("--save-reference keeps the statistics of one extractor: name one under --features")

    def images(self, path: str, *, whole: bool = False) -> Images:
        """A folder of images, or an .npz of samples. whole: ignore the limit. Raises ValueError for a run's samples."""
        key = path, None if whole else self.limit
        if key not in self.opened and any(Path(path).glob("samples-*.safetensors")):
            raise ValueError(f"{path} holds samples of a run, which cannot be the reference; give images")
        if key not in self.opened:  # its files are hashed as it is opened
            self.opened[key] = (
                npz_images(Path(path))
                if path.endswith(".npz")
                else FolderImages(
                    Path(path), size=self.size, resampling=self.resampling, limit=key[1], workers=self.workers
                )
            )
        return self.opened[key]

    def measured(self, path: str) -> Images:
        """`images` of that path, or the samples that a run's stage `sample` wrote there."""
        if any(Path(path).glob("samples-*.safetensors")):
            samples = SampleFiles(Path(path).resolve())
            samples.labels = None  # the folder does not say what the classes are called
            return samples
        return self.images(path)

    def reference(self, path: str) -> list[FeatureSet]:
        """Features or statistics of the reference, one for every extractor."""
        if is_statistics(path):
            if self.save_reference:
                raise ValueError(
                    f"--save-reference: {path} holds statistics already; leave it out, or give a folder of images"
                )
            if self.train and not path.endswith(".safetensors"):
                raise ValueError(f"--train: {path} holds only statistics; give a folder of reference images instead")
            if len(self.extractors) != 1:
                raise ValueError(
                    f"{path} holds the statistics of one extractor: name it, and no other, under --features"
                )
            return [read_statistics(Path(path))]
        return self.features(self.images(path), "reference", save=True)

    def require_size(self, reference: str, size: object, what: str) -> None:
        """Raise ValueError where the reference or the training images have another size than those that are about to be
        drawn or read: asked first, for that may take hours."""
        for path in filter(None, (reference, self.train)):
            if is_statistics(path):
                there = read_statistics(Path(path)).manifest["images"].get("size")
            else:
                there = self.images(path, whole=path != reference).facts["size"]
            if there not in (None, size) and not self.force:
                # statistics cannot be resized, the measured images can
                wanted = there if is_statistics(path) else size
                mend = f"; --size {wanted} crops and resizes images" if self.size != wanted else ""
                raise ValueError(f"{what} images of {size} pixels, and those of {path} have {there}{mend}")

    def features(self, images: Images, title: str, save: bool = False) -> list[FeatureSet]:
        """Features of images that may be measured again: they are kept on disk. Raises ValueError for one image."""
        if len(images) < 2:
            told = f"{images.facts['path']} holds {len(images)} image"
            told = told if self.limit is None else f"--limit {self.limit} leaves {len(images)} image"
            raise ValueError(f"{told}: sets are compared, of 2 or more; give more images")
        found = reference_features(self.extractors, images, self.batch_size, title, folder=self.folder)
        if save and self.save_reference and distributed.is_main():
            sweep_beside(Path(self.save_reference))
            found[0].save(Path(self.save_reference))
        return found

    def comparable(self, reference: str) -> list[FeatureSet]:
        """`reference`, and the features of the training images. Call it before drawing or reading what is measured.
        Raises ValueError where the reference has other features."""
        reals = self.reference(reference)
        for real, extractor in zip(reals, self.extractors, strict=True):
            theirs, ours = {"features": real.manifest.get("features", {})}, {"features": extractor.manifest()}
            if not self.force and differences(theirs, ours):
                require_same(theirs, ours, f"the features of {reference} and those that are asked for")
            moments = real.moments() if is_statistics(reference) else None  # our own features have that width
            if moments is not None and len(moments.mean) != extractor.dim:
                count, asked = len(moments.mean), f"{extractor.name} has {extractor.dim}"
                raise ValueError(
                    f"{reference} is of features with {count} components, and {asked}: name its --features"
                )
        if self.train:  # without --limit: a sample may copy any of them
            self.trains = self.features(self.images(self.train, whole=True), "training images")
        return reals

    def compare(self, reals: list[FeatureSet], fakes: list[FeatureSet], prefix: str) -> Values:
        """Scores in every extractor's features, and the manifest."""
        trains: Sequence[FeatureSet | None] = self.trains or [None] * len(reals)
        scores = Scores()
        measured = partial(
            measure_sets, prefix=prefix, parts=self.parts, force=self.force, device=self.device, shared=True
        )
        for real, fake, train in zip(reals, fakes, trains, strict=True):
            scores.add(measured(real, fake, train=train))
        return vars(scores) | {"manifest": self.manifest(reals[0].manifest["images"], fakes[0].manifest["images"])}

    def manifest(self, reference: Values, measured: Values) -> Values:
        return {
            "reference": reference,
            "measured": measured,
            **({"train": self.trains[0].manifest["images"]} if self.trains else {}),
            "count": measured["count"],
            "features": {e.name: e.manifest() for e in self.extractors},
            "protocol": PROTOCOL,
            "versions": versions(),
            "device": self.device.type,
            "time": time.strftime("%Y-%m-%dT%H:%M:%S"),
        }


def measure_folder(setting: Setting, a: str, b: str) -> Values:
    """Images of the folder `a` against those of `b`, or its statistics. Returns {"metrics", "intervals", "per_class",
    "manifest"}, as files of scores hold it."""
    if not is_statistics(b):
        setting.images(b)  # a missing folder is an error before hours of work
    images = setting.measured(a)
    setting.require_size(b, images.facts["size"], f"{a} holds")
    reals = setting.comparable(b)
    fakes = features_of(setting.extractors, images, setting.batch_size, "images")
    return setting.compare(reals, fakes, "")


def measure_samples(
    setting: Setting,
    pipeline: str,
    reference: str,
    *,
    guidance: float = 1.0,
    seed: int = 0,
    precision: Precision = "auto",
    **sample: object,
) -> Values:
    """Samples that the pipeline of a folder or hub id draws, against a folder of images, or its statistics; none is
    kept. sample: the fields of a recipe's section `sample` that DRAWING names. Returns what `measure_folder` does."""
    from dmvae.interop.pipeline import DMVAEPipeline  # diffusers' pipelines load slowly

    drawn = configs.read(SampleConfig, sample | {"guidance": [guidance]})
    model = DMVAEPipeline.from_pretrained(pipeline).to(setting.device)
    images = Generated(model, drawn, seed=seed, device=setting.device, precision=precision)
    images.facts |= {
        "path": pipeline,
        "weights": digest(*(weights_hash(part) for part in (model.transformer, model.vae, model.guide) if part)),
        "scheduler": {"class": type(model.scheduler).__name__}
        | {k: v for k, v in model.scheduler.config.items() if not k.startswith("_")},
        "dtype": name_of(setting.device, precision),
        "ema": model.transformer.config.get("_ema", "unknown"),
    }
    try:  # before drawing: a broken reference image would cost hours
        setting.require_size(reference, images.facts["size"], "the pipeline draws")
        reals = setting.comparable(reference)
    except ValueError as error:
        raise ValueError(str(error).replace("--size N", f"--size {images.facts['size']}, the pipeline's,")) from error
    fakes = features_of(setting.extractors, images, setting.batch_size, "samples")
    return setting.compare(reals, fakes, "g")


def measure_tokenizer(
    setting: Setting, tokenizer: str, images: str, *, lpips: bool = False, precision: Precision = "auto"
) -> Values:
    """Reconstructions by the tokenizer of a folder, against the images. Returns what `measure_folder` does."""
    for name, value in (("train", setting.train), ("force", setting.force)):
        if value:
            raise ValueError(f"measure tokenizer takes no --{name}: images meet their reconstructions; leave it out")
    device = setting.device
    model = open_tokenizer(tokenizer, setting.size)
    size, channels = setting.size or model.config.image_size, model.config.in_channels
    folder = FolderImages(
        Path(images),
        size=size,
        resampling=setting.resampling,
        channels=channels,
        limit=setting.limit,
        workers=setting.workers,
    )
    perceptual = PerceptualDistance(device) if lpips else None
    rows, _ = reconstruct(
        model,
        setting.extractors,
        folder,
        setting.batch_size,
        "reconstruct",
        device=device,
        precision=precision,
        lpips=perceptual,
    )
    reals = setting.features(folder, "images", save=True)
    scores = reconstruction_scores(rows, reals, setting.extractors, folder, setting.parts)
    facts = folder.facts | {"count": len(folder)}
    measured = {
        "path": tokenizer,
        "weights": weights_hash(model),
        "spread": spread_of(model),
        "dtype": name_of(setting.device, precision),
        "count": len(folder),
    }
    manifest = setting.manifest(facts, {"kind": "reconstructions"} | measured)
    if perceptual is not None:
        manifest["features"][perceptual.name] = perceptual.manifest()
    return vars(scores) | {"manifest": manifest}


KINDS: dict[str, Callable[..., Values]] = {
    "folder": measure_folder,
    "samples": measure_samples,
    "tokenizer": measure_tokenizer,
    "latents": measure_latents,
}
"""What measures each kind: called with a `Setting` first, except for latents, which no image and no network needs."""


DRAWING = ("count", "labels", *(field.name for field in fields(SamplerConfig)))
"""The fields of a recipe's section `sample` that `measure samples` takes as they are."""


def fits(kind: str, paths: Sequence[str]) -> bool:
    """Whether so many paths are of that kind: two, or for latents, whose reference may be a Gaussian, one."""
    return len(paths) == 2 or (kind == "latents" and len(paths) == 1)


def options_of(kind: str) -> Values:
    """The options that measure so, each with its type."""
    hints = get_type_hints(KINDS[kind]) | ({} if kind == "latents" else get_type_hints(Setting.__init__))
    if kind == "samples":
        hints |= {name: get_type_hints(SampleConfig, include_extras=True)[name] for name in DRAWING}
    return {name: hint for name, hint in hints.items() if name not in ("setting", "return", "sample")}


def measure(kind: str, paths: Sequence[str], **options: Any) -> Values:
    """Run the kind in `KINDS`; the manifest then holds the call that repeats it. Raises ValueError for an option of
    another kind."""
    shared = inspect.signature(Setting).parameters
    if alien := [name for name in options if name not in options_of(kind)]:
        raise ValueError(f"measure {kind} takes no --{alien[0].replace('_', '-')}")
    if kind == "latents":
        result = measure_latents(*paths, **options)
    else:
        setting = Setting(**{name: value for name, value in options.items() if name in shared})
        result = KINDS[kind](setting, *paths, **{name: value for name, value in options.items() if name not in shared})
    kept = {name: value for name, value in options.items() if name not in ("save_reference", "fresh", "picture")}
    if "train" in kept:
        kept["train"] = _from_anywhere(kept["train"])
    if "features" in kept:
        cut = (name.partition("=") for name in kept["features"])  # NAME[@RESOLUTION], =, WEIGHTS
        kept["features"] = [f"{name}{equals}{_from_anywhere(weights)}" for name, equals, weights in cut]
    result["manifest"]["call"] = {"kind": kind, "paths": [_from_anywhere(path) for path in paths], "options": kept}
    return result


def _from_anywhere(path: str) -> str:
    """An existing file or folder as an absolute path, for calls from other folders; else it is a hub id, unchanged."""
    return str(Path(path).resolve()) if path and Path(path).exists() else path
