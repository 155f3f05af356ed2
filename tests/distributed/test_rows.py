"""Distances that two ranks divide are, bit for bit, those of one."""

import pytest
import torch

import processes
from dmvae.datasets.memory import MemoryDataset
from dmvae.evaluation import classification, images, manifolds, neighbours, passes
from dmvae.evaluation.rows import by_rows, gathered
from dmvae.runtime import distributed
from dmvae.tokenizers.editor import Editor


def sets():
    """Features, and labels, of test images, samples and training images, in each other's balls."""
    generator = torch.Generator().manual_seed(0)
    features = [torch.randn(n, 3, generator=generator) for n in (43, 38, 61)]
    return features, [torch.randint(3, (len(x),), generator=generator) for x in features]


def found(shared=False):
    """All that is divided."""
    (real, fake, train), (real_labels, fake_labels, train_labels) = sets()
    return [
        *manifolds.manifold_values(real, fake, shared=shared).values(),
        manifolds.agreement_values(real, real_labels, fake, fake_labels, shared=shared),
        manifolds.memorisation_values(train, real, fake, shared=shared),
        *neighbours.nearest(real, k=4, shared=shared),
        *neighbours.nearest(fake, real, k=4, cosine=True, shared=shared),
        torch.tensor(classification.knn_accuracy(train, train_labels, real, real_labels, k=5, shared=shared)),
    ]


def divided(rank, folder, chunk):
    distributed.start()
    for module in (manifolds, neighbours, classification):
        module.CHUNK = chunk
    torch.save((found(), found(shared=True)), f"{folder}/{rank}")
    distributed.stop()


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [4, 50])
def test_all_ranks_have_what_one_finds(tmp_path, chunk):
    """Of 43 rows, 50 at a time, the second rank has none."""
    assert processes.on_ranks(divided, str(tmp_path), chunk) == [0, 0]
    for rank in range(2):
        alone, shared = torch.load(tmp_path / str(rank))
        assert [torch.equal(a, b) for a, b in zip(alone, shared, strict=True)] == [True] * len(alone)
        assert all(values.float().mean() > 0 for values in alone)


@pytest.mark.parametrize("count", [4, 10])
def test_a_rank_without_images_is_asked_for_none(monkeypatch, count):
    """Of 4 images each of 3 ranks would have 2; metrics of pairs refuse a batch of none."""
    data = MemoryDataset(torch.zeros(10, 3, 4, 4, dtype=torch.uint8), torch.zeros(10, dtype=torch.int64), ["all"])
    sizes = []
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    monkeypatch.setattr(passes, "_gathered", lambda own, share, n: own)
    for rank in range(3):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        passes.over_images(
            images.DatasetImages(data, count), 2, lambda batch: sizes.append(len(batch)) or {"x": batch.float()}, "test"
        )
    assert sum(sizes) == count
    assert min(sizes) > 0


@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_every_row_is_of_one_rank(monkeypatch, world):
    """And all but the last chunk are whole, the same ones for any number of ranks."""
    x, asked = torch.arange(43.0), []
    monkeypatch.setattr(distributed, "world_size", lambda: world)
    monkeypatch.setattr(distributed, "gather", lambda own: own)
    for rank in range(world):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        by_rows(lambda rows: asked.append(rows) or [x[rows]], x, 5, shared=True)
    assert [(rows.start, rows.stop) for rows in asked if rows.start < rows.stop] == [
        (i, min(i + 5, 43)) for i in range(0, 43, 5)
    ]
    assert len(asked) >= world  # a rank without rows was asked for their shape


def test_who_is_first_waits_on_the_cpu(monkeypatch):
    """GPUs wait for each other only as long as in a training step, and a rank may take hours longer for its images."""
    asked = []
    monkeypatch.setattr(distributed, "barrier", lambda: asked.append("barrier"))
    monkeypatch.setattr(distributed, "gather", lambda own: asked.append("gather") or own)
    assert gathered(torch.ones(2, 3), 4).sum() == 6
    assert asked == ["barrier", "gather"]


def test_training_images_come_in_pieces(monkeypatch):
    (real, fake, train), _ = sets()
    whole = manifolds.memorisation_values(train, real, fake)
    monkeypatch.setattr(manifolds, "PIECE", 7)
    assert torch.equal(manifolds.memorisation_values(train, real, fake), whole)


def shared_out(rank=0, world=1, folder=None):
    """The samples that images get which choose among groups, each rank's share of the images."""
    generator = torch.Generator().manual_seed(0)
    editor = Editor(features=2, channels=3, grid=1, width=4, bank=64, assigned=True, groups=8)
    editor.bank.copy_(torch.randn(64, 3, 1, 1, generator=generator))
    mu = torch.randn(24, 3, 1, 1, generator=generator)
    editor.settle(mu)
    number = torch.zeros(24, dtype=torch.int64)
    own = slice(rank * 24 // world, (rank + 1) * 24 // world)
    return editor._chosen(mu[own], number[own], even=True)


def on_a_rank(rank, folder):
    distributed.start()
    torch.save(shared_out(rank, 2), f"{folder}/{rank}.pt")
    distributed.stop()


@pytest.mark.slow
def test_groups_share_the_images_of_all_ranks_out(tmp_path):
    assert processes.on_ranks(on_a_rank, str(tmp_path)) == [0, 0]
    whole = torch.cat([torch.load(tmp_path / f"{rank}.pt") for rank in range(2)])
    assert torch.equal(whole, shared_out())
    assert whole.flatten(1).unique(dim=0, return_counts=True)[1].tolist() == [3] * 8
