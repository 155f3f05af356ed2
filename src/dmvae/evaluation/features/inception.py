"""Features of the Inception-v3 of the published FID, sFID and Inception Score."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from dmvae.evaluation.features import LOGITS, SPATIAL, Extractor, FeaturesConfig
from dmvae.registry import register
from dmvae.runtime.hashing import content_hash, sha256_of
from dmvae.runtime.hub import hub
from dmvae.runtime.weights import guarded

PUBLISHED = "6726825d"
"""First digits of the sha256 of the published weights' file; they are in its name."""


@register("inception")
@dataclass(frozen=True, kw_only=True)
class Inception(FeaturesConfig):
    """Inception-v3 through the torch-fidelity package. Pooled features (d = 2048) for FID, logits without bias
    (1008) for the Inception Score, and for sFID the first 7 channels of `mixed_6/conv` (17 x 17 x 7 = 2023, in the
    order of ADM's files). With other weights than the published ones, the name has their hash."""

    weights: str | None = None
    """weights-inception-2015-12-05-6726825d.pth of torch-fidelity's release v0.2.0: its path, or ORG/REPO/FILE on
    the Hugging Face hub; null is torch's hub cache."""

    @property
    def name(self) -> str:
        return "inception"

    def fingerprint(self) -> str:
        return "" if self.weights is None else content_hash([Path(self.weights)])

    def build(self) -> Extractor:
        path = self._file()
        digest = sha256_of(path)
        name = self.name if digest.startswith(PUBLISHED) else f"{self.name}-{digest[:8]}"
        # The network itself resizes and normalises, as the original TensorFlow graph did.
        more = {LOGITS: 1008, SPATIAL: 2023}
        whole = Heads(_network(path))
        return Extractor(whole, 2048, None, (0.0,) * 3, (1 / 255,) * 3, name=name, weights=digest[:16], more=more)

    def _file(self) -> Path:
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
        except ImportError as error:
            raise ValueError('features inception need torch-fidelity: pip install "dmvae[fidelity]"') from error
        path = Path(self.weights or Path(torch.hub.get_dir(), "checkpoints", Path(URL_INCEPTION_V3).name))
        if path.is_file():
            return path
        if self.weights and self.weights.count("/") == 2 and not path.is_absolute():
            from huggingface_hub import hf_hub_download

            repository, _, file = self.weights.rpartition("/")
            try:
                with hub():
                    return Path(hf_hub_download(repository, file))
            except Exception as error:  # no network: each version of the hub client has a class of its own
                raise ValueError(f"features inception: {self.weights} is no file, and on the hub: {error}") from error
        raise ValueError(
            f"features inception: no weights at {path}; download {URL_INCEPTION_V3} to there, or name another file: "
            "`--features inception=FILE`, `weights: FILE` in a recipe"
        )


def _network(path: Path) -> nn.Module:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    # torch-fidelity unpickles without restriction, so it gets a copy of what the restricted reader returned.
    safe = io.BytesIO()
    torch.save(guarded(path, lambda: torch.load(path, map_location="cpu", weights_only=True)), safe)
    safe.seek(0)
    return FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=safe)


class Heads(nn.Module):
    """Wraps torch-fidelity's extractor, which takes uint8 images and returns a tuple: its outputs and the spatial head,
    concatenated to [n, 2048 + 1008 + 2023]."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner
        self.seen: list[Tensor] = []
        # TensorFlow's mixed_6 is the third of the four blocks at 17 x 17; its "conv" is the branch with one 1x1.
        inner.get_submodule("Mixed_6d.branch1x1").register_forward_hook(
            lambda _module, _x, y: self.seen.append(y[:, :7])
        )

    def forward(self, x: Tensor) -> Tensor:
        pool, logits = self.inner(x.round().to(torch.uint8))
        spatial = self.seen.pop().permute(0, 2, 3, 1).flatten(1)
        return torch.cat([pool, logits, spatial], dim=1)
