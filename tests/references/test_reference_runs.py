"""The stages `reference` and `matching` with every kind of reference, on the tiny recipe."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from dmvae.recipe import load

CASES = {
    "mixture": {"type": "mixture", "components": 2},
    "fitted mixture": {"type": "mixture", "fit": {"type": "features"}},
    "sphere": {"type": "sphere"},
    "cube": {"type": "cube"},
    "gaussian": {"type": "gaussian"},
    "noise_states": {"type": "noise_states"},
    "noised mixture": {"type": "noise_states", "of": {"type": "mixture"}, "time": 0.8},
    "subset": {"type": "features", "classes": ["circle", 2]},
    "features by pca": {"type": "features", "reduction": "pca"},
    "array": {"type": "array", "path": "array.npy"},
    "function": {"type": "function", "function": "fixed_reference:zeros"},
}
CLOSED = {"mixture", "fitted mixture", "gaussian", "noised mixture"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder whose run has the stages before the reference, for all cases to share."""
    folder = tmp_path_factory.mktemp("references")
    np.save(folder / "array.npy", np.random.default_rng(0).normal(size=(30, 4, 3, 3)))
    tiny.run(tiny.write(folder), "matched", until="tokenizer")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_reference_and_matching_run(place, name, capsys):
    distribution = dict(CASES[name])
    if "path" in distribution:
        distribution["path"] = str(place / distribution["path"])
    steps = {"reference__steps": 2, "matching__steps": 2}
    path = tiny.write(place, reference__distribution=distribution, matching__model=tiny.DIT, **steps)
    tiny.run(path, "matched", until="matching")
    folder = place / "run/matched/reference"
    assert (folder / "teacher").exists() == (name not in CLOSED)
    assert load(path)["matched"].reference.distribution.closed_form == (name in CLOSED)
    assert (place / "run/matched/matching/autoencoder").exists()
    report = json.loads((folder / "report.json").read_text())
    assert 0 <= report["rank"] <= 4.01
    assert report["distance"] >= 0
    assert "effective rank" in capsys.readouterr().out
    samples = load_file(folder / "map.safetensors")
    assert samples["latents"].shape == (2000, 4, 3, 3)
    assert torch.equal(samples["labels"].unique(), torch.arange(3))
    made = load_file(folder / "normalisation.safetensors")
    tokenizer = load_file(place / "run/matched/matching/autoencoder/diffusion_pytorch_model.safetensors")
    assert torch.equal(tokenizer["latent_mean"], made["mean"])


def test_the_teacher_does_not_depend_on_what_was_there_already(place):
    """A run that is stopped after the reference's data were made ends in the same weights."""
    path = tiny.write(place, reference__distribution={"type": "features", "reduction": "random"}, reference__steps=2)
    tiny.run(path, "matched", until="reference")
    folder = (place / "run/matched/reference").resolve()
    first = load_file(folder / "teacher/diffusion_pytorch_model.safetensors")
    (folder / "done.json").unlink()
    tiny.run(path, "matched", until="reference")
    again = load_file(folder / "teacher/diffusion_pytorch_model.safetensors")
    assert all(torch.equal(first[name], again[name]) for name in first)


def broken_arrays():
    rng = np.random.default_rng(0)
    nan = rng.normal(size=(6, 4, 3, 3))
    nan[3:, 1, 2] = np.nan
    same = np.broadcast_to(rng.normal(size=(8, 1, 1)), (6, 8, 5, 5))
    shapes = {"narrow": (6, 2, 5, 5), "few": (30, 80), "row": (4, 36)}
    return {name: rng.normal(size=shape) for name, shape in shapes.items()} | {
        "nan": nan,
        "flat": np.full((6, 4, 3, 3), 7.0),
        "same": same,
        "label": np.array([0, 1, 0.5, 1]),
    }


@pytest.mark.parametrize(
    ("distribution", "message"),
    [
        ({"type": "timm", "model": "vit_smal_patch16_224"}, "did you mean 'vit_small_patch16_224'"),
        ({"type": "features", "classes": ["circel"]}, "no class 'circel'; did you mean 'circle'"),
        ({"type": "noise_states", "of": {"type": "features", "classes": [7]}}, "there is no class 7"),
        ({"type": "array", "path": "nowhere.npy"}, "no such file"),
        ({"type": "array", "path": "nan.npy"}, "holds NaN or infinity, first in row 3"),
        ({"type": "array", "path": "flat.npy"}, "holds 7 everywhere"),
        ({"type": "array", "path": "same.npy", "reduction": "random"}, "the same for every item"),
        ({"type": "array", "path": "narrow.npy"}, "cannot make 4 components of features that have 2"),
        ({"type": "mixture", "file": "nowhere.safetensors"}, "no such file"),
        ({"type": "function", "function": "fixed_reference:ones"}, "no function 'ones'"),
        ({"type": "function", "function": "broken.py:f"}, "cannot be imported"),
        (
            {"type": "timm", "model": "vit_small_patch14_dinov2.lvd142"},
            "mean 'vit_small_patch14_dinov2.lvd142m'",
        ),
        ({"type": "timm", "model": "resnet18", "patch_size": 4, "pretrained": False}, "does not take .*patch_size"),
        ({"type": "timm", "model": "vit_tiny_patch16_224", "pretrained": False}, "set it to 16"),
        ({"type": "features", "reduction": "pca", "classes": []}, "has a label of"),
        (
            {"type": "array", "path": "few.npy", "reduction": "pca"},
            "make 36 components of features that have 29",
        ),
        ({"type": "array", "path": "row.npy", "labels": "label.npy"}, "label.npy' holds 0.5; classes are numbered"),
        ({"type": "mixture", "file": "broken.safetensors"}, "damaged or no .safetensors file"),
        ({"type": "mixture", "file": "nan.safetensors"}, "finite, variances and weights positive"),
        ({"type": "mixture", "fit": {"type": "sphere"}}, "made from data, which 'sphere' is not"),
    ],
)
def test_what_is_wrong_with_a_reference_is_told_before_anything_is_trained(
    tmp_path, distribution, message, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for name, array in broken_arrays().items():
        np.save(tmp_path / f"{name}.npy", array)
    (tmp_path / "broken.py").write_text("def f(:")
    (tmp_path / "broken.safetensors").write_bytes(b"nonsense")
    means = torch.zeros(2, 4)
    save_file({"means": means / 0, "variances": means + 1}, tmp_path / "nan.safetensors")
    path = tiny.write(tmp_path, reference__distribution=distribution)
    with pytest.raises(ValueError, match=message):
        tiny.run(path, "matched")
    assert not list(tmp_path.glob("run/stages/*"))


def test_where_latents_lay_is_measured_as_on_their_way(tmp_path, monkeypatch):
    """By the function that matching measures with, of as many latents as it compares; without enough of them not."""
    for recent, known in ((24, True), (60, False)):
        monkeypatch.setattr("dmvae.stages.reference.RECENT", recent)
        folder = tmp_path / str(recent)
        folder.mkdir()
        path = tiny.begin(tiny.write(folder, reference__steps=1), "tokenizer", "matched")
        tiny.run(path, "matched", only="reference")
        before = json.loads((folder / "run/matched/reference/report.json").read_text()).get("before")
        assert (before is not None) == known
        if known:
            assert list(before) == ["whole", "token", "pair", "told"]
            assert min(before.values()) >= 0
