"""Reference `mixture`: a mixture of Gaussians, with the velocity in closed form."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from dmvae.ranges import Range
from dmvae.references import ReferenceConfig, Surroundings
from dmvae.references.data import DataConfig, Samples
from dmvae.references.gaussian_mixture import GaussianMixture, joint_weights
from dmvae.references.mixture_fit import fit_mixture
from dmvae.references.synthetic import SyntheticConfig
from dmvae.registry import register
from dmvae.runtime import distributed
from dmvae.runtime.files import read_head, write_tensors
from dmvae.runtime.hashing import content_hash
from dmvae.runtime.random import seed_of

FIT_SAMPLES = 4096  # per fit: of one class where conditional


@register("mixture")
@dataclass(frozen=True, kw_only=True)
class MixtureReference(SyntheticConfig):
    """Gaussians with diagonal covariance: around random centres, fitted to another reference, or from a file."""

    components: Annotated[int, Range(1, 10**5)] = 1
    """Gaussians per class in a conditional mixture; in total otherwise."""
    conditional: bool = True
    """Each class has components of its own; otherwise, and where `fit` has no labels, labels carry no information."""
    std: Annotated[float, Range(0, 1, "()")] = 0.5
    """Standard deviation around random centres. The centres have variance 1 - std^2, so that the whole has 1."""
    fit: ReferenceConfig | None = None
    """A reference made from data, by `type`, that the mixture is fitted to by expectation maximisation."""
    file: str | None = None
    """A .safetensors file: `means` and `variances` [K, C, H, W] or [K, C], optionally `weights` [K] and `labels` [K],
    the class of each component. The file says whether the mixture is conditional."""

    def __post_init__(self) -> None:
        if self.fit is not None and self.file is not None:
            raise ValueError("fit and file: the mixture is one or the other; set one of them to null")
        if self.fit is not None and not isinstance(self.fit, DataConfig):
            raise ValueError(f"fit: a mixture is fitted to a reference made from data, which {self.fit.type!r} is not")

    def fingerprint(self) -> str:
        if self.file is not None:
            return content_hash([Path(self.file).expanduser()])
        return self.fit.fingerprint() if self.fit is not None else ""

    @property
    def closed_form(self) -> bool:
        return True

    @property
    def labelled(self) -> bool:
        if self.file is None:
            return self.conditional and (self.fit is None or self.fit.labelled)
        try:
            with safe_open(Path(self.file).expanduser(), "pt") as file:
                return "labels" in file.keys()  # noqa: SIM118  # safe_open is no mapping
        except (SafetensorError, OSError):
            return True  # `check` says what is wrong with the file

    def check(self, inputs: Surroundings) -> None:
        if self.fit is not None:
            self.fit.check(inputs)
        elif self.file is not None:
            self._read(inputs)

    def build(self, inputs: Surroundings) -> GaussianMixture:
        if self.fit is not None:
            return self._fitted(self.fit, inputs)
        means, variances, weights, labels = self._read(inputs) if self.file else self._random(inputs)
        joint = joint_weights(weights, labels, inputs.num_classes)
        return GaussianMixture(means, variances, joint, *self.statistics(inputs))

    def _random(self, inputs: Surroundings) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        count = self.components * (inputs.num_classes if self.conditional else 1)
        generator = torch.Generator().manual_seed(seed_of(inputs.seed, "mixture"))
        means = (1 - self.std**2) ** 0.5 * torch.randn(count, *inputs.latent_shape, generator=generator)
        labels = torch.arange(count) // self.components if self.conditional else None
        return means, torch.full_like(means, self.std**2), torch.ones(count), labels

    def _read(self, inputs: Surroundings) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        path, shape = Path(self.file or "").expanduser(), inputs.latent_shape
        if not path.is_file():
            raise ValueError(f"file: no such file: {self.file}")
        try:
            tensors = load_file(path)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"file: {self.file}: damaged or no .safetensors file ({error})") from error
        for name in ("means", "variances"):
            if name not in tensors or tensors[name].shape[1:] not in (shape, shape[:1]):
                found = list(tensors[name].shape) if name in tensors else f"only {', '.join(tensors)}"
                raise ValueError(
                    f"file: {self.file} needs {name} of shape [K, {', '.join(map(str, shape))}] or [K, {shape[0]}]; "
                    f"it has {found}"
                )
        means, variances = (
            (x if x.ndim == 4 else x[..., None, None].expand(-1, *shape)).float().contiguous()
            for x in (tensors["means"], tensors["variances"])
        )
        weights, labels = tensors.get("weights", torch.ones(len(means))), tensors.get("labels")
        finite = all(x.isfinite().all() for x in (means, variances, weights))
        if not (
            finite and len(means) == len(variances) == len(weights) and (variances > 0).all() and (weights > 0).all()
        ):
            raise ValueError(
                f"file: {self.file} has {len(means)} means, {len(variances)} variances and {len(weights)} weights; "
                "give as many of each, finite, variances and weights positive"
            )
        if labels is not None:
            labels = labels.long()
            if labels.shape != (len(means),) or not 0 <= int(labels.min()) <= int(labels.max()) < inputs.num_classes:
                raise ValueError(
                    f"file: {self.file} has labels {labels.tolist()[:8]}; give one of 0 to "
                    f"{inputs.num_classes - 1} for each of {len(means)} components"
                )
        return means, variances, weights, labels

    def _fitted(self, data: ReferenceConfig, inputs: Surroundings) -> GaussianMixture:
        source = data.build(inputs)
        assert isinstance(source, Samples)
        path = inputs.out / "mixture.safetensors"
        if distributed.is_main() and read_head(path) is None:
            write_tensors(path, self._fit(source, inputs))
        distributed.barrier()
        fitted = load_file(path)
        means, variances = (fitted[name].view(-1, *inputs.latent_shape) for name in ("means", "variances"))
        return GaussianMixture(means, variances, fitted["joint"], source.mean, source.std)

    def _fit(self, source: Samples, inputs: Surroundings) -> dict[str, Tensor]:
        """Per class where conditional, of at most FIT_SAMPLES samples each."""
        labels = source.latents.labels
        present = labels[labels >= 0].unique().tolist() if self.conditional else []
        generator = torch.Generator().manual_seed(seed_of(inputs.seed, "mixture", "samples"))
        parts: list[list[Tensor]] = [[], [], [], []]
        for group in present or [-1]:
            index = (labels == group).nonzero().flatten() if present else torch.arange(len(labels))
            chosen = index[torch.randperm(len(index), generator=generator)[:FIT_SAMPLES]]
            z, _ = source.latents.__getitems__(chosen)
            means, variances, weights = fit_mixture(z.flatten(1), self.components, seed_of(inputs.seed, group))
            found = (means.float(), variances.float(), weights * len(index), torch.full((len(means),), group))
            for part, tensor in zip(parts, found, strict=True):
                part.append(tensor)
        means, variances, weights, classes = map(torch.cat, parts)
        joint = joint_weights(weights, classes if present else None, inputs.num_classes)
        return {"means": means, "variances": variances, "joint": joint}
