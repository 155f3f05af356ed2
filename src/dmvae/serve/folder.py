"""What the page may read: a run's files, and the test images of its data set. Networks are loaded once and kept."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from dmvae.datasets import open_dataset
from dmvae.datasets.mixed import mixed
from dmvae.datasets.pixels import as_input, to_uint8
from dmvae.generators import Generator, load_generator
from dmvae.inputs import generator_of
from dmvae.jobs import Job
from dmvae.latents.store import labels_of
from dmvae.models.base import Tokenizer
from dmvae.models.velocity import VelocityModel
from dmvae.report.run import Run
from dmvae.runtime.precision import Precision, autocast
from dmvae.runtime.words import counted
from dmvae.spelling import nearest
from dmvae.tokenizers.adapted import load_tokenizer

T = TypeVar("T")
TOKENIZERS = ("latents", "decoder", "matching", "tokenizer")
"""Stages that write a tokenizer, the last one first: the page of an unfinished run uses the last that is finished."""


class Networks:
    """Tokenizers and generators, by the folder that they were loaded from. `busy` is held while one computes."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.busy = device, threading.Lock()
        self._loaded: dict[Path, Tokenizer | Generator] = {}

    def get(self, folder: Path, load: Callable[[Path], T]) -> T:
        """The network in a folder, on the device, in evaluation mode."""
        with self.busy:
            if folder not in self._loaded:
                self._loaded[folder] = load(folder).to(self.device).eval()  # type: ignore[attr-defined]
            return self._loaded[folder]  # type: ignore[return-value]


class Folder:
    """A run in its present state: the jobs of its methods, and what can be shown of them.

    data: open the data set that the recipe names, for its test images and the names of its classes; without it, the
    test images are those that the stage `evaluate` keeps in the run.
    """

    def __init__(self, run_dir: Path, jobs: list[Job], networks: Networks, *, data: bool = True) -> None:
        self.run, self.networks, self.data = Run(run_dir, jobs), networks, data
        if not data:
            self.run.classes_of = dict.fromkeys(self.run.variants, ())

    def finished(self, method: str, stage: str) -> Path | None:
        """The folder of a method's stage, if it is finished. Raises ValueError for a method that the run lacks."""
        if method not in self.run.variants:
            raise ValueError(f"no method is called {method!r}{nearest(method, self.run.variants)}")
        for job in self.run.jobs:
            if (job.variant, job.stage.name) == (method, stage) and job.finished:
                return job.folder
        return None

    def tokenizer_stage(self, method: str) -> str | None:
        """The last finished stage that wrote the method's tokenizer; None without one."""
        folders = {stage: self.finished(method, stage) for stage in TOKENIZERS}
        return next((stage for stage, folder in folders.items() if folder and (folder / "autoencoder").is_dir()), None)

    def tokenizer(self, method: str) -> Tokenizer:
        """The method's tokenizer as its last finished stage left it. Raises ValueError where there is none yet."""
        stage = self.tokenizer_stage(method)
        folder = stage and self.finished(method, stage)
        if not folder:
            raise ValueError(f"{method} has no tokenizer yet: none of its stages {', '.join(TOKENIZERS)} is finished")
        return self.networks.get(folder / "autoencoder", load_tokenizer)

    def generator(self, method: str) -> Generator:
        """The generator that the recipe samples. Raises ValueError unless stages generator and latents are finished."""
        folder = self.finished(method, "generator")
        if not folder or not self.finished(method, "latents"):
            raise ValueError(f"{method} has no generator yet: its stage generator or latents is not finished")
        sample = self.run.recipes[method].section("sample")
        return self.networks.get(folder / generator_of(sample.snapshot if sample else None), load_generator)

    def guide(self, method: str) -> VelocityModel | None:
        """The network that guides the method's samples in place of the unconditional velocity; None without one."""
        sample, folder = self.run.recipes[method].section("sample"), self.finished(method, "generator")
        if not folder or sample is None or sample.guide is None:
            return None
        guide = self.networks.get(folder / generator_of(sample.guide), load_generator)
        assert isinstance(guide, VelocityModel)
        return guide

    @cached_property
    def learned(self) -> dict[str, list[int]]:
        """Method -> the labels that its generator has learned: those of the classes with training images."""
        found = {}
        for method in self.run.variants:
            folder, latents = self.finished(method, "generator"), self.finished(method, "latents")
            config = folder and folder / "generator" / "config.json"
            if not (latents and config and config.is_file()):
                continue
            try:
                labels = labels_of(latents / "latents")
            except ValueError:  # links to latents that are gone
                labels = torch.empty(0)
            # all classes, for a run that was copied without its latents
            classes = range(json.loads(config.read_text()).get("num_classes", 0))
            found[method] = labels.unique().tolist() if len(labels) else list(classes)
        return found

    @cached_property
    def classes(self) -> dict[int, str]:
        """Label -> name, of the classes that a generator has learned; numbered names without the data set."""
        labels = sorted({label for labels in self.learned.values() for label in labels})
        return {label: self.run.class_name(label) for label in labels}

    @cached_property
    def _images(self) -> tuple[object, int, str]:
        """(a sequence of (test image, label), its length, where the images come from, in words)."""
        recipes, recipe = self.run.recipes, next(iter(self.run.recipes.values()))
        kept_by = {method: t["originals"] for method, t in self.pictures.items() if "originals" in t}
        its = next((images for method, images in kept_by.items() if recipes[method].data == recipe.data), None)
        kept = next(iter(kept_by.values()), None) if its is None else its
        why = "the data set is not opened"
        if self.data:
            try:
                dataset = open_dataset(recipe.data, "test")
                for found in (mixed(dataset), dataset):  # in the run's order, or in version 0.1's
                    if its is None or torch.equal(torch.as_tensor(found[0][0]), its[0]):
                        return found, len(found), f"test images of {recipe.data.type}"
                why = f"{recipe.data.type} does not hold the run's images any more"
            except (ValueError, OSError, ImportError) as error:  # a run can be shown without its data
                why = f"the data set cannot be opened ({error})"
        if kept is None:
            return [], 0, f"no images: {why}, and no stage evaluate is finished"
        told = f"{counted(len(kept), 'test image')} that the run keeps: {why}"
        return [(image, -1) for image in kept], len(kept), told

    @cached_property
    def pictures(self) -> dict[str, dict[str, Tensor]]:
        """Method -> the tensors that its stage evaluate kept for pictures and the map."""
        return self.run.tensors("evaluate", "pictures.safetensors")

    @property
    def image_count(self) -> int:
        return self._images[1]

    @property
    def image_source(self) -> str:
        """Where the test images come from, in words."""
        return self._images[2]

    def image(self, index: int) -> Tensor:
        """Test image `index`, uint8 [c, h, w]. Raises ValueError for an index out of range."""
        images, count, source = self._images
        if not 0 <= index < count:
            raise ValueError(f"there is no image {index}; there are {count}, from 0 ({source})")
        return torch.as_tensor(images[index][0])  # type: ignore[index]

    @torch.inference_mode()
    def encode(self, method: str, images: Tensor) -> Tensor:
        """uint8 images [n, c, h, w] -> the method's latents [n, C, H, W], normalised by its tokenizer's statistics."""
        model = self.tokenizer(method)
        with self.networks.busy, autocast(self.networks.device, self._precision(method)):
            return model.normalize(model.encode(as_input(images, self.networks.device)).latents.float())

    @torch.inference_mode()
    def decode(self, method: str, z: Tensor, *, raw: bool = False) -> Tensor:
        """Normalised latents [n, C, H, W], or `raw` ones -> uint8 images [n, c, h, w] on the CPU."""
        model = self.tokenizer(method)
        with self.networks.busy, autocast(self.networks.device, self._precision(method)):
            z = z.to(self.networks.device, torch.float32)
            return to_uint8(model.decode(z if raw else model.denormalize(z)).sample.float()).cpu()

    def _precision(self, method: str) -> Precision:
        precision: Precision = self.run.recipes[method].run.precision
        return precision


def links_out(run_dir: Path) -> list[Path]:
    """The links in a folder that lead out of it: they could show files that do not belong to the run. Left out
    are those to shards of latents that were encoded elsewhere: the page shows which labels are in them, and no more."""
    root = run_dir.resolve()
    places = (Path(folder, name) for folder, folders, files in os.walk(root) for name in (*folders, *files))
    out = (place for place in places if place.is_symlink() and not place.resolve().is_relative_to(root))
    return [place for place in out if not place.match("stages/latents-*/*/latents-*.safetensors")]
