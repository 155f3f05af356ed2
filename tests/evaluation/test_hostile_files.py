"""Files of others to measure: what is damaged or lies is refused in a line that names it, and nothing in it is run."""

import io
import json
import pickle
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dmvae.evaluation.feature_set import FeatureSet, reference_features
from dmvae.evaluation.features import parse_features
from dmvae.evaluation.images import TensorImages, npz_images
from dmvae.evaluation.reference_statistics import read_statistics
from hostile import Runs


def npz(path, name, shape, descr="|u1"):
    """An .npz whose array claims a shape that its few bytes do not have."""
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": descr, "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(f"{name}.npy", head.getvalue() + b"few")
    return path


@pytest.mark.parametrize("shape", [(10**6, 10**6, 10**3, 3), (10**30,), (4, 8, 8, 3), (2**62, 4)])
def test_shapes_that_lie(tmp_path, shape):
    with pytest.raises(ValueError, match=r"x.npz: no .npz of samples"):
        npz_images(npz(tmp_path / "x.npz", "arr_0", shape))
    with pytest.raises(ValueError, match=r"x.npz: no .npz file of statistics"):
        read_statistics(npz(tmp_path / "x.npz", "mu", shape, "<f8"))


def test_arrays_that_are_no_numbers(tmp_path):
    np.savez(tmp_path / "x.npz", mu=np.array(["a"]), sigma=np.array(["b"]), arr_0=np.array(["c"]))
    for read in (npz_images, read_statistics):
        with pytest.raises(ValueError, match=r"x.npz: no .npz"):
            read(tmp_path / "x.npz")


@pytest.mark.parametrize("old", [True, False])
def test_a_pickle_that_runs_code_is_refused_and_its_guard_is_not_talked_away(tmp_path, monkeypatch, old):
    monkeypatch.chdir(tmp_path)
    if old:
        (tmp_path / "x.pt").write_bytes(pickle.dumps({"mu": Runs()}, protocol=2))
    else:
        torch.save({"mu": Runs()}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"x.pt: refused, because it asks for .*open") as caught:
        read_statistics(tmp_path / "x.pt")
    assert "weights_only" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "about",
    [{}, {"manifest": "{"}, {"manifest": "{}"}, {"manifest": "[]", "n": "{}"}, {"manifest": "{}", "n": '{"pool": 3}'}],
)
def test_kept_references_that_lack_something(tmp_path, about):
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors", about)
    with pytest.raises(ValueError, match=r"x.safetensors"):
        FeatureSet.load(tmp_path / "x.safetensors")


def test_features_go_on_without_a_cache(tmp_path):
    extractor = parse_features("effnet-lite0@32").build()
    images = TensorImages(torch.zeros(2, 3, 16, 16, dtype=torch.uint8))
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match="features cannot be kept"):
        (found,) = reference_features([extractor], images, 2, "x", folder=tmp_path / "file/features")
    assert len(found.pool) == 2


def test_damaged_features_are_computed_anew(tmp_path):
    extractor = parse_features("effnet-lite0@32").build()
    images = TensorImages(torch.zeros(2, 3, 16, 16, dtype=torch.uint8))
    reference_features([extractor], images, 2, "x", folder=tmp_path)
    (kept,) = tmp_path.glob("*.safetensors")
    kept.write_bytes(b"{" + kept.read_bytes()[1:90])
    with pytest.warns(UserWarning, match="the features are computed anew"):
        (found,) = reference_features([extractor], images, 2, "x", folder=tmp_path)
    assert json.loads(json.dumps(found.manifest)) == FeatureSet.load(kept).manifest
