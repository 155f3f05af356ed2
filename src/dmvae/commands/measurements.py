"""`dmvae measure`: folders, samples and tokenizers against reference images; latents.

Each function takes plain arguments; the manifest keeps them under "call", so that a file of scores can be checked.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from shutil import rmtree
from typing import Any, get_type_hints

from dmvae import config as configs
from dmvae.commands.generated import Generated
from dmvae.commands.latents import measure_latents
from dmvae.commands.setting import Setting
from dmvae.config import Values
from dmvae.evaluation.features import Extractor
from dmvae.evaluation.images import FolderImages
from dmvae.evaluation.manifest import versions
from dmvae.evaluation.reconstruct import PerceptualDistance, reconstruct, reconstruction_scores
from dmvae.evaluation.reference_statistics import is_statistics
from dmvae.flow.samplers import SamplerConfig
from dmvae.runtime import distributed
from dmvae.runtime.hashing import digest, weights_hash
from dmvae.runtime.precision import Precision, name_of
from dmvae.stages.sample import SampleConfig
from dmvae.tokenizers.adapted import open_tokenizer, spread_of


def measure_folder(setting: Setting, a: str, b: str) -> Values:
    """Images of the folder `a` against those of `b`, or its statistics. Returns {"metrics", "intervals", "per_class",
    "manifest"}, as files of scores hold it."""
    if not is_statistics(b):
        setting.images(b)  # a missing folder is an error before hours of work
    images = setting.measured(a)
    setting.tell_idle(a, b)
    setting.require_size(b, images.facts["size"], f"{a} holds")
    reals = setting.comparable(b)
    written = [path.stat().st_mtime_ns for path in getattr(images, "paths", ())]  # samples are told by their place
    fakes = setting.drawn(images, "images", written)
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
    setting.tell_idle(reference)
    _tell_unguided(drawn, guidance)
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
    fakes = setting.drawn(images, "samples", configs.identity(drawn))
    return setting.compare(reals, fakes, "g")


@distributed.one_voice()
def _tell_unguided(drawn: SampleConfig, guidance: float) -> None:
    for name in ("guidance_interval", "guidance_channels") if guidance == 1 else ():
        if getattr(drawn, name) != getattr(SampleConfig, name):
            option = name.replace("_", "-")
            warnings.warn(f"--{option}: a guidance scale of 1 guides nothing, so it changes nothing", stacklevel=2)


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
    measured = {
        "path": tokenizer,
        "weights": weights_hash(model),
        "spread": spread_of(model),
        "dtype": name_of(setting.device, precision),
        "count": len(folder),
    }
    networks: list[Extractor | PerceptualDistance] = [*setting.extractors, *([perceptual] if perceptual else [])]
    rows, _ = reconstruct(
        model,
        setting.extractors,
        folder,
        setting.batch_size,
        "reconstruct",
        device=device,
        precision=precision,
        lpips=perceptual,
        kept=setting.kept(folder.facts, measured, [network.manifest() for network in networks], versions()),
    )
    reals = setting.features(folder, "images", save=True)
    with distributed.one_voice():
        scores = reconstruction_scores(rows, reals, setting.extractors, folder, setting.parts)
    facts = folder.facts | {"count": len(folder)}
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
        for parts in setting.passes:
            rmtree(parts, ignore_errors=True)
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
