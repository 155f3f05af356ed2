"""Batches that are read ahead of a GPU: in the same order, with the same errors, and no thread is left."""

import shutil
import threading
import time

import pytest
import torch

import tiny
from dmvae.datasets import loading
from dmvae.datasets.loading import loader
from dmvae.latents.store import LatentSet, MirroredSet, Stored
from dmvae.references import draw
from dmvae.references.data import Samples
from dmvae.runtime.ahead import ahead
from dmvae.runtime.files import write_tensors
from dmvae.runtime.random import Random
from dmvae.stages.generator import GeneratorStage
from dmvae.training.data import order

CPU = torch.device("cpu")


def readers():
    """Threads that read ahead."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("ahead")]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert readers() == []


@pytest.fixture
def soon(monkeypatch):
    """As on a GPU."""
    monkeypatch.setattr(loading, "AHEAD", ("cpu",))


def latents(folder, seed=0, posteriors=False):
    """Three shards, of 8, 8 and 4 latents in float16, whose statistics are not those of their own."""
    rng = torch.Generator().manual_seed(seed)
    z = (torch.randn(20, 3, 2, 2, generator=rng) * 3 + 1).half()
    for i, part in enumerate(z.split(8)):
        more = {"means": part + 1, "stds": part.abs()} if posteriors else {}
        labels = torch.arange(len(part)) + 8 * i
        write_tensors(folder / f"latents-{i:05d}.safetensors", {"latents": part, "labels": labels, **more})
    mean, std = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.3, 0.7, 1.1])
    write_tensors(folder / "statistics.safetensors", {"mean": mean, "std": std})
    return z, mean.view(-1, 1, 1), std.view(-1, 1, 1)


@pytest.mark.parametrize("many", [False, True])
def test_latents_go_to_the_device_as_they_are_stored(tmp_path, many):
    folder = tmp_path / "z"
    folder.mkdir()
    z, mean, std = latents(folder)
    if not many:
        for i in (1, 2):
            (folder / f"latents-{i:05d}.safetensors").unlink()
    data, index = LatentSet(folder), [7, 0, 7, 3] if not many else [19, 0, 8, 8, 15, 16, 7]
    with torch.autocast("cpu", torch.bfloat16):
        raw, labels = data.stored(index)
    assert raw.dtype is torch.float16
    assert torch.equal(raw, z[index])
    assert labels.tolist() == index
    expected = (z[index].float() - mean) / std
    assert torch.equal(data.normalise(raw), expected)
    assert torch.equal(data.normalise(raw.float()), expected)
    assert torch.equal(data.__getitems__(torch.tensor(index))[0], expected)
    assert torch.equal(data[index[0]][0], expected[0])


def test_samples_of_a_reference_are_normalised_where_they_go(tmp_path):
    latents(tmp_path)
    samples = Samples(LatentSet(tmp_path), 30, torch.zeros(3), torch.ones(3))  # ten classes have no latents
    z, labels = samples.sample(16, Random(1))
    assert 0 < (labels >= 20).sum() < 16
    there, same = draw(samples, 16, Random(1), CPU)
    assert torch.equal(there, z)
    assert torch.equal(same, labels)
    rows = samples.latents.__getitems__(Random(1).integers(20, 16))[0]
    assert torch.equal(z, rows)
    assert draw(samples, 16, Random(1), torch.device("meta"))[0].device.type == "meta"


def test_posteriors_and_mirror_images_do_too(tmp_path):
    folders = [tmp_path / name for name in ("plain", "mirrored")]
    for folder in folders:
        folder.mkdir()
    z, mean, std = latents(folders[0], posteriors=True)
    w, *_ = latents(folders[1], seed=1, posteriors=True)
    data = MirroredSet(*(LatentSet(folder, posteriors=True) for folder in folders))
    assert len(data) == 40
    raw, labels = data.stored([3, 23, 39, 19])
    assert (raw.dtype, labels.tolist()) == (torch.float16, [3, 3, 19, 19])
    rows = torch.stack([z[3], w[3], w[19], z[19]])
    expected = torch.cat([((rows + 1).float() - mean) / std, rows.abs().float() / std], 1)
    assert torch.equal(data.normalise(raw), expected)


def test_batches_are_the_same_and_in_the_same_order(tmp_path, monkeypatch):
    latents(tmp_path)
    data, found = Stored(LatentSet(tmp_path)), []
    for devices in ((), ("cpu",)):
        monkeypatch.setattr(loading, "AHEAD", devices)
        chosen = order(len(data), 6, ("key",), 2, 9)  # from step 2 on, over more than one pass
        batches = loader(data, chosen, 0, CPU)
        assert batches.soon == bool(devices)
        found.append(list(batches))
    assert len(found[0]) == 7
    for (z, labels), (other, same) in zip(*found, strict=True):
        assert torch.equal(z, other)
        assert torch.equal(labels, same)


class Bad:
    def __len__(self):
        return 12

    def __getitems__(self, index):
        if 5 in index:
            raise KeyError("pixels")
        return torch.zeros(len(index), 3), torch.tensor(index)


def test_an_error_comes_in_its_place_and_in_its_words(soon):
    batches = iter(loader(Bad(), [[0, 1], [2, 3], [4, 5], [6, 7]], 0, CPU))
    assert [next(batches)[1].tolist() for _ in range(2)] == [[0, 1], [2, 3]]
    with pytest.raises(ValueError, match=r"a batch of 2 items from item 4 .* could not be read: KeyError: 'pixels'"):
        next(batches)
    assert list(batches) == []


def test_one_is_made_while_another_is_in_use_and_no_more():
    made, where = [], set()

    def items():
        try:
            for i in range(5):
                made.append(i)
                where.add(threading.current_thread().name)
                yield i
        finally:
            made.append("closed")

    batches = ahead(items())
    assert next(batches) == 0
    until = time.monotonic() + 10
    while made != [0, 1] and time.monotonic() < until:
        time.sleep(0.001)
    assert made == [0, 1]
    assert where == {"ahead_0"}
    batches.close()
    assert made == [0, 1, "closed"]


@pytest.mark.slow
def test_a_training_that_reads_ahead_is_the_same_also_after_a_kill(tmp_path, monkeypatch):
    tiny.run(tiny.write(tmp_path), "kl", until="latents")
    path, found, threads = tiny.write(tmp_path, generator__steps=8, run__save_every=3), [], []
    updates = GeneratorStage.updates

    def cut(self, networks, batch, rng):
        threads.append(readers())
        if batch.step == 5:
            raise RuntimeError("power cut")
        yield from updates(self, networks, batch, rng)

    for devices in ((), ("cpu",)):
        monkeypatch.setattr(loading, "AHEAD", devices)
        if devices:
            with monkeypatch.context() as patch:
                patch.setattr(GeneratorStage, "updates", cut)
                with pytest.raises(RuntimeError, match="power cut"):
                    tiny.run(path, "kl", only="generator")
            assert threads == [["ahead_0"]] * 6
            assert (tmp_path / "run/kl/generator/checkpoints/step-00000003").is_dir()
            assert readers() == []
        tiny.run(path, "kl", only="generator")
        found.append(tiny.weights(tmp_path / "run"))
        (tmp_path / "run/kl/generator/done.json").unlink()
        shutil.rmtree(tmp_path / "run/kl/generator/checkpoints")
    assert any("generator" in name for name in found[0])
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())
