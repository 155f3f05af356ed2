"""The diffusers folder that a run leaves for every generator: run_dir/VARIANT/pipeline."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from dmvae import config as configs
from dmvae.datasets import open_dataset
from dmvae.datasets.image_file import write_png
from dmvae.generators import load_generator
from dmvae.inputs import generator_of
from dmvae.jobs import PIPELINE, Job, generators_of, other_source, source_of
from dmvae.latents.store import LatentSet
from dmvae.models.velocity import VelocityModel
from dmvae.registry import is_ours
from dmvae.report.card import card
from dmvae.report.run import class_name
from dmvae.runtime.console import console
from dmvae.runtime.done import damage, read_source, require_intact, write_source
from dmvae.runtime.files import atomic_write, read_json, within, write_text
from dmvae.runtime.yaml_text import as_yaml
from dmvae.stages.sample import samples_folder
from dmvae.tokenizers.adapted import load_tokenizer

INDEX = "model_index.json"
"""Diffusers' list of a pipeline's parts; it has the classes that were learned too."""
PICTURES = 4
CODE = '''"""For diffusers: DiffusionPipeline.from_pretrained(FOLDER, custom_pipeline=FOLDER, trust_remote_code=True).

`pip install dmvae` first.
"""

from dmvae import DMVAEPipeline
'''


def write_pipelines(jobs: list[Job], run_dir: Path) -> list[Path]:
    """Write the pipeline of every finished generator, unless it is there and intact; its card is always written anew.
    Returns the folders. A generator that diffusers could not load, of a plugin's class or no `VelocityModel`, is
    reported and left out."""
    folders: dict[str, dict[str, Job]] = {}
    for job in jobs:
        if job.finished:
            folders.setdefault(job.variant, {})[job.stage.name] = job
    written: list[Path | None] = []
    for variant, stages in folders.items():
        if {"generator", "latents"} <= stages.keys():
            written.append(_write(stages, within(run_dir / variant / PIPELINE, run_dir)))
        elif "generator" in stages:  # the pipeline needs the tokenizer of the stage latents
            console.print(f"pipeline: none of {variant}, because its stage latents is not finished")
    return [out for out in written if out is not None]


def _write(stages: dict[str, Job], out: Path) -> Path | None:
    job = stages["generator"]
    source = source_of(stages)
    asked = generators_of(stages)
    there = read_source(out) or {}
    if other_source(there, source) or damage(out, there):
        from dmvae.interop.pipeline import build_pipeline  # diffusers' pipelines take two seconds

        guiding = asked.get("guide")
        if isinstance(guiding, Path) and not guiding.is_dir():
            console.print(
                f"pipeline: none of {job.variant}, because its guide is missing: there is no folder {guiding}"
            )
            return None
        transformer = load_generator(job.folder / generator_of(asked.get("snapshot")))
        guide = load_generator(job.folder / generator_of(guiding)) if guiding is not None else None
        for network in (transformer, guide):
            if network is not None and not (isinstance(network, VelocityModel) and is_ours(type(network))):
                console.print(f"pipeline: none of {job.variant}: diffusers cannot load a {type(network).__name__}")
                return None
        assert isinstance(transformer, VelocityModel)
        assert guide is None or isinstance(guide, VelocityModel)
        taught = job.recipe.section("generator")
        # for manifests of measured samples, and so that the pipeline refuses velocities that nobody was taught
        transformer.register_to_config(_ema=taught.ema, _label_dropout=taught.label_dropout)
        vae = load_tokenizer(stages["latents"].folder / "autoencoder")
        try:
            names = open_dataset(job.recipe.data, "train").classes
        except (ValueError, OSError) as error:
            console.print(
                f"pipeline: none of {job.variant}, because its data, which name the classes, are not here: {error}"
            )
            return None
        learned = LatentSet(stages["latents"].folder / "latents").labels.unique().tolist()
        classes = {label: names[label] for label in learned}
        with atomic_write(out) as part:
            build_pipeline(transformer, vae, classes, guide).save_pretrained(part)
            write_source(part, source)
    recipe, samples = as_yaml(configs.plain(job.recipe)), _samples(stages)
    pictures, shows = _pictures(stages, samples) if samples else ({}, {})
    first = int(samples["labels"][0]) if samples else min(map(int, read_json(out / INDEX, dict)["id2label"]))
    text = card(job, stages, recipe, shows, first)
    for name, content in (("README.md", text), ("recipe.yaml", recipe), ("pipeline.py", CODE)):
        write_text(out / name, content)
    for name, picture in pictures.items():
        write_png(within(out / name, out), picture)
    return out


def _samples(stages: dict[str, Job]) -> dict[str, Tensor] | None:
    """The run's first file of samples, at its first guidance scale; None without any."""
    if "sample" not in stages:
        return None
    job = stages["sample"]  # the card's figures and code are of the first scale
    file = samples_folder(job.folder, job.recipe.section("sample").guidance[0]) / "samples-00000.safetensors"
    return load_file(require_intact(file)) if file.is_file() else None


def _pictures(stages: dict[str, Job], samples: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """({file beside the card: picture}, {file: caption}) of the first samples of different classes; ({}, {}) without
    the data."""
    try:
        classes = open_dataset(stages["sample"].recipe.data, "train").classes
    except (ValueError, OSError):  # a report can be written without the data
        return {}, {}
    first = {int(label): i for i, label in reversed(list(enumerate(samples["labels"].tolist())))}
    chosen = sorted(first.items(), key=lambda item: item[1])[:PICTURES]
    names = {f"pictures/{i}.png": (label, i) for label, i in chosen}
    images = {name: samples["images"][i] for name, (_, i) in names.items()}
    captions = {name: class_name(classes, label) for name, (label, _) in names.items()}
    return images, captions if len(classes) > 1 else dict.fromkeys(names, "a sample")
