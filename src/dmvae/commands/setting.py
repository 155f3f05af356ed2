"""What measurements of images have in common: where images are read from, the extractors, the comparison."""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from dmvae.commands.parser import require
from dmvae.config import Values
from dmvae.datasets.download import cache_folder
from dmvae.datasets.image_file import Resampling
from dmvae.evaluation.feature_set import FeatureSet, describe, features_of, reference_features
from dmvae.evaluation.features import Extractor, extractor_of, parse_features
from dmvae.evaluation.images import FolderImages, Images, SampleFiles, are_samples, npz_images
from dmvae.evaluation.manifest import differences, require_same, versions
from dmvae.evaluation.measure import PROTOCOL, measure_sets
from dmvae.evaluation.passes import kept_in
from dmvae.evaluation.reference_statistics import is_statistics, read_statistics
from dmvae.evaluation.scores import Scores
from dmvae.ranges import MOST_PIXELS
from dmvae.runtime import distributed
from dmvae.runtime.files import sweep_beside

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
        self.passes: list[Path] = []
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
        if key not in self.opened and are_samples(Path(path)):
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
        if are_samples(Path(path)):
            samples = SampleFiles(Path(path).resolve())
            samples.labels = None  # the folder does not say what the classes are called
            return samples
        return self.images(path)

    @distributed.one_voice()
    def tell_idle(self, *paths: str) -> None:
        """Warn of options that only folders of images read, where none of these paths, nor `train`, is one."""
        given = {"size": self.size, "resampling": self.resampling if self.resampling != "square" else None}
        read = any(Path(path).is_dir() and not are_samples(Path(path)) for path in paths)
        given = ({} if self.train else given) | {"limit": self.limit}  # which `train` has not
        idle = [f"--{name} {value}" for name, value in given.items() if value is not None and not read]
        if idle:
            warnings.warn(f"{', '.join(idle)}: no folder of images is read here, so it changes nothing", stacklevel=2)

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

    def kept(self, *facts: object) -> Path:
        """Where a pass is kept until its scores are there. facts: all that its rows depend on."""
        self.passes.append(kept_in(self.folder or cache_folder() / "features", *facts))
        return self.passes[-1]

    def drawn(self, images: Images, title: str, *facts: object) -> list[FeatureSet]:
        """Features of images that are measured this once. facts: what they depend on, besides what the images' own
        facts tell."""
        kept = self.kept([describe(extractor, images) for extractor in self.extractors], facts)
        return features_of(self.extractors, images, self.batch_size, title, kept)

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

    @distributed.one_voice()
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
