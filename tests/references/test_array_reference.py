"""Files of arrays as references, and what is wrong with them."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from kept import stored
from safetensors.torch import save_file

from dmvae.evaluation.latents import vectors
from dmvae.runtime.random import Random

SHAPE = (4, 3, 3)  # of the tiny recipe


def write(folder, name, array, labels=None):
    """The array in a file of the name's kind; the reference's fields that read it."""
    path = folder / name
    fields = {"type": "array", "path": str(path)}
    if name.endswith(".npy"):
        np.save(path, array)
        if labels is not None:
            np.save(folder / "labels.npy", labels)
            fields["labels"] = str(folder / "labels.npy")
    elif name.endswith(".safetensors"):
        save_file({"latents": torch.from_numpy(array)} | ({} if labels is None else {"y": torch.tensor(labels)}), path)
    else:
        columns = {"latents": array.tolist()} | ({} if labels is None else {"y": labels})
        pq.write_table(pa.table(columns), path)
    return fields | ({} if labels is None or name.endswith(".npy") else {"labels": "y"})


@pytest.mark.parametrize("name", ["a.npy", "a.safetensors", "a.parquet"])
@pytest.mark.parametrize("shape", [SHAPE, (36,)])
def test_arrays_of_latents(make, tmp_path, name, shape):
    array = np.random.default_rng(0).normal(2, 3, (50, *shape)).astype(np.float32)
    reference = make.build(**write(tmp_path, name, array, [i % 3 for i in range(50)]))
    z, labels = stored(reference)
    raw = torch.from_numpy(array).view(50, *SHAPE)
    std, mean = torch.std_mean(raw, (0, 2, 3), keepdim=True)
    assert torch.allclose(z, (raw - mean) / std, atol=1e-4)
    assert torch.equal(labels, torch.arange(50) % 3)


@pytest.mark.parametrize("name", ["a.npy", "a.parquet"])
def test_an_array_without_labels_draws_them_at_random(make, tmp_path, name):
    reference = make.build(**write(tmp_path, name, np.random.default_rng(0).normal(size=(50, 36))))
    _, labels = reference.sample(3000, Random("labels"))
    assert torch.bincount(labels).tolist() == pytest.approx([1000] * 3, rel=0.15)


def test_arrays_of_features_and_vectors_are_reduced(make, tmp_path):
    rng = np.random.default_rng(0)
    reference = make.build(**write(tmp_path, "map.npy", rng.normal(size=(50, 8, 6, 6))))
    assert torch.allclose(torch.cov(vectors(stored(reference)[0], "channels").T), torch.eye(4), atol=1e-3)
    vector = make.build(**write(tmp_path, "vector.npy", rng.normal(size=(200, 40))))
    z = stored(vector)[0]
    assert z.shape == (200, *SHAPE)
    assert torch.allclose(torch.cov(z.flatten(1).T), torch.eye(36), atol=0.1)  # standardised per channel after


@pytest.mark.parametrize("name", ["a.npy", "a.safetensors", "a.parquet"])
def test_what_is_wrong_with_an_array(make, tmp_path, name):
    fields = write(tmp_path, name, np.zeros((5, 7), dtype=np.float32))
    with pytest.raises(ValueError, match=r"rows of shape \[7\].*\[4, 3, 3\].*36"):
        make.build(**fields)
    with pytest.raises(ValueError, match=r"labels: .* values 0 to 9; needed is \[5\] with values 0 to 2"):
        make.build(**write(tmp_path, name, np.ones((5, 36), dtype=np.float32), [0, 1, 2, 1, 9]))
    with pytest.raises(ValueError, match=r"classes: \[0\] cannot be chosen without labels; set `labels`"):
        make.build(**fields, classes=[0])
    with pytest.raises(ValueError, match="no such file"):
        make.build(type="array", path=str(tmp_path / "none.npy"))
    if name != "a.npy":
        with pytest.raises(ValueError, match="did you mean 'latents'"):
            make.build(**fields, key="latent")


def test_files_of_other_kinds_and_broken_ones(make, tmp_path):
    (tmp_path / "a.csv").write_text("1,2")
    with pytest.raises(ValueError, match=r"none of \.npy, \.safetensors, \.parquet"):
        make.build(type="array", path=str(tmp_path / "a.csv"))
    for name in ("b.npy", "b.safetensors", "b.parquet"):
        (tmp_path / name).write_bytes(b"nonsense")
        with pytest.raises(ValueError, match=f"{name}.*cannot be read"):
            make.build(type="array", path=str(tmp_path / name))


def test_an_arrays_fingerprint_is_its_content(make, tmp_path):
    fields = write(tmp_path, "a.npy", np.zeros((5, 36)))
    before = make.read(**fields).fingerprint()
    assert before == make.read(type="noise_states", of=fields).fingerprint()
    np.save(tmp_path / "a.npy", np.ones((5, 36)))
    assert make.read(**fields).fingerprint() != before
