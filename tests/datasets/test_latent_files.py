"""Files of latents from elsewhere: what does not fit is named with its file and a fix."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dmvae.datasets.latent_files import LatentFiles
from dmvae.datasets.latents import LatentsData
from dmvae.datasets.shapes import Shapes


def shard(path: Path, n=4, shape=(2, 3, 3), **more) -> Path:
    z = torch.arange(n * 2 * 9, dtype=torch.float32).resize_(n, *shape)
    tensors = {"latents": z, "latents_flip": z.flip(3), "labels": torch.arange(n) % 2} | more
    save_file({name: x.contiguous() for name, x in tensors.items() if x is not None}, path)
    return path


def test_a_truncated_shard(tmp_path):
    path = shard(tmp_path / "a.safetensors")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"a.safetensors cannot be read: .*; copy or write it again"):
        LatentFiles(tmp_path)


def test_a_truncated_array(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((4, 2, 3, 3), np.float32))
    (tmp_path / "a.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"a.npy cannot be read: "):
        LatentFiles(tmp_path)


@pytest.mark.parametrize(
    ("second", "told"),
    [
        (
            {"shape": (2, 4, 4)},
            r"b.safetensors: '.*' has the shape \[4, 2, 4, 4\], not \[4, 2, 3, 3\], as .*a.safetensors",
        ),
        ({"latents_flip": None}, "b.safetensors has no 'latents_flip', which other files have"),
        ({"latents_flip": torch.zeros(3, 2, 3, 3)}, r"'latents_flip' has the shape \[3, 2, 3, 3\]"),
        ({"labels": None}, "b.safetensors has no 'labels', which other files have: add them"),
        ({"labels": torch.zeros(3).long()}, r"b.safetensors: labels are torch.int64 \[3\], for 4 latents"),
        ({"labels": torch.zeros(4)}, r"b.safetensors: labels are torch.float32 \[4\]"),
        ({"latents": torch.zeros(4, 2, 3, 3).byte()}, "b.safetensors: 'latents' is torch.uint8"),
        ({"latents": None}, "b.safetensors cannot be read: it holds labels, latents_flip, and no tensor 'latents'"),
    ],
)
def test_shards_that_do_not_fit_together(second, told, tmp_path):
    shard(tmp_path / "a.safetensors")
    shard(tmp_path / "b.safetensors", **second)
    with pytest.raises(ValueError, match=told):
        LatentFiles(tmp_path)


def test_nan_is_named_when_it_is_read(tmp_path):
    shard(tmp_path / "a.safetensors")
    z = torch.zeros(4, 2, 3, 3)
    z[2, 1] = torch.nan
    shard(tmp_path / "b.safetensors", latents=z)
    files = LatentFiles(tmp_path)
    assert files.read([0, 4]).shape == (2, 2, 3, 3)
    with pytest.raises(ValueError, match=r"b.safetensors: latent 2: NaN or infinity in 'latents'"):
        files.read([0, 5, 6])


@pytest.mark.parametrize(
    ("held", "told"),
    [
        (
            {"mean": torch.zeros(1, 3, 1, 1), "std": torch.ones(1, 3, 1, 1)},
            "holds 3 numbers of mean and 3 numbers of std",
        ),
        ({"mean": torch.zeros(2), "std": torch.zeros(2)}, "those of std above 0"),
        ({"mean": torch.zeros(2)}, "holds no std"),
    ],
)
def test_statistics_that_do_not_fit(held, told, tmp_path):
    shard(tmp_path / "a.safetensors")
    torch.save(held, tmp_path / "latents_stats.pt")
    with pytest.raises(ValueError, match=f"latents_stats.pt: .*{told}.* they are measured"):
        LatentFiles(tmp_path)


def test_labels_that_are_missing_too_many_or_out_of_range(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((4, 2, 3, 3), np.float32))
    data = LatentsData(root=str(tmp_path), size=6)
    with pytest.raises(ValueError, match=r"a.npy has no labels; give them as data.labels, a .npy of 4 integers"):
        data.build("train")
    np.save(tmp_path / "labels.npy", np.arange(5))
    with pytest.raises(ValueError, match=r"labels.npy: labels are torch.int64 \[5\], for 4 latents"):
        data.build("train")
    np.save(tmp_path / "labels.npy", np.arange(4) - 1)
    with pytest.raises(ValueError, match="labels run from -1 to 2"):
        data.build("train")
    np.save(tmp_path / "labels.npy", np.arange(4))
    assert data.build("train").classes == ("0", "1", "2", "3")


def test_one_of_many_files_with_another_shape(tmp_path):
    for i in range(3):
        np.save(tmp_path / f"{i}.npy", np.ones((2, 3 + (i == 2), 3), np.float32))
    files = LatentFiles(tmp_path)
    assert (len(files), files.shape) == (3, (2, 3, 3))
    with pytest.raises(ValueError, match=r"2.npy: 'latents' has the shape \[1, 2, 4, 3\]"):
        files.read([0, 2])


def test_no_latents_there(tmp_path):
    with pytest.raises(ValueError, match=r"data.root: '' names no folder"):  # and not the current one
        LatentsData(root="", size=6)
    with pytest.raises(ValueError, match=r"holds no .safetensors, .npz or .npy"):
        LatentFiles(tmp_path)
    with pytest.raises(ValueError, match="does not exist"):
        LatentFiles(tmp_path / "nowhere")


def test_class_folders_of_arrays_label_every_latent(tmp_path):
    for name, n, value in (("a", 3, 1.0), ("b", 2, 2.0)):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "all.npy", np.full((n, 2, 3, 3), value, np.float32))
    found = LatentsData(root=str(tmp_path), size=6).build("train")
    z, labels = found.__getitems__(range(len(found)))
    assert (found.classes, labels.tolist()) == (("a", "b"), [0, 0, 0, 1, 1])
    assert torch.equal(z[:, 0, 0, 0], labels + 1.0)


def test_a_class_folder_that_is_a_link_is_read(tmp_path):
    for folder in (tmp_path / "root/a", tmp_path / "elsewhere"):
        folder.mkdir(parents=True)
        np.save(folder / "0.npy", np.ones((2, 3, 3), np.float32))
    (tmp_path / "root/b").symlink_to(tmp_path / "elsewhere")
    assert LatentFiles(tmp_path / "root").names == ("a", "b")


def test_hidden_files_are_no_latents(tmp_path):
    shard(tmp_path / "shards.safetensors")
    (tmp_path / "._shards.safetensors").write_bytes(b"\0\5\x16\7")  # as a Mac writes beside each file
    assert len(LatentFiles(tmp_path)) == 4
    arrays = tmp_path / "arrays"
    for name in ("cat", "dog", ".checkpoints"):
        (arrays / name).mkdir(parents=True)
        np.save(arrays / name / "0.npy", np.ones((2, 3, 3), np.float32))
    assert LatentFiles(arrays).names == ("cat", "dog")


def test_an_item_counted_from_the_end_has_the_latent_of_its_label(tmp_path):
    shard(tmp_path / "a.safetensors")
    shard(tmp_path / "b.safetensors", n=3)
    data = LatentsData(root=str(tmp_path)).build("train")
    for i in (-1, -7):
        assert torch.equal(data[i][0], data[i + 7][0])
        assert data[i][1] == data[i + 7][1]


def test_labels_of_any_name_beside_the_latents_are_no_latents(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((4, 2, 3, 3), np.float32))
    np.save(tmp_path / "mine.npy", np.arange(4))
    assert LatentFiles(tmp_path, tmp_path / "mine.npy").labels.tolist() == [0, 1, 2, 3]


def test_a_file_that_is_a_link_to_nothing(tmp_path):
    for i in range(2):
        np.save(tmp_path / f"{i}.npy", np.ones((2, 3, 3), np.float32))
    (tmp_path / "2.npy").symlink_to(tmp_path / "gone")
    with pytest.raises(
        ValueError, match=r"2.npy cannot be read: No such file or directory; write it again, or remove it"
    ):
        LatentFiles(tmp_path)


@pytest.mark.parametrize("test", [None, Shapes(num_classes=2)])
def test_labels_without_a_name_in_encode_json(test, tmp_path):
    shard(tmp_path / "a.safetensors", labels=torch.tensor([0, 1, 2, 0]))
    (tmp_path / "encode.json").write_text(json.dumps({"classes": ["circle", "square"]}))
    with pytest.raises(
        ValueError, match=r"a.safetensors: latent 2 has the label 2, and encode.json has 2 classes .*: name all classes"
    ):
        LatentsData(root=str(tmp_path), size=6, test=test).build("train")
    (tmp_path / "encode.json").write_text(json.dumps({"classes": None}))
    assert LatentFiles(tmp_path).names is None


def test_a_matrix_in_the_statistics_is_read_too(tmp_path):
    shard(tmp_path / "a.safetensors")
    held = {"mean": torch.zeros(2), "std": torch.ones(2), "whitening": torch.eye(2)}
    save_file(held, tmp_path / "statistics.safetensors")
    found = LatentFiles(tmp_path).statistics
    assert found.keys() == held.keys()
    assert torch.equal(found["whitening"], held["whitening"])


def test_posteriors_with_a_list_of_labels_as_repa_s_tools_write_them(tmp_path):
    """vae-sd/00000/img-mean-std-00000000.npy: means and deviations; the folders are no classes."""
    z = np.random.default_rng(0).normal(size=(5, 4, 3, 3)).astype(np.float32)
    names = [f"{i // 3:05d}/img-mean-std-{i:08d}.npy" for i in range(5)]
    for name, x in zip(names, z, strict=True):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        np.save(tmp_path / name, x)
    rows = [[name, label] for name, label in zip(names, [2, 0, 1, 1, 2], strict=True)]
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": rows}))
    data = LatentsData(root=str(tmp_path), size=24, test=Shapes()).build("train")
    assert data.labels.tolist() == [2, 0, 1, 1, 2]
    assert torch.equal(data.__getitems__(range(5))[0], torch.from_numpy(z[:, :2]))
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": rows[:-1]}))
    with pytest.raises(ValueError, match=r"dataset\.json gives no label for 00001/img-mean-std-00000004\.npy: add it"):
        LatentFiles(tmp_path)
