import pytest
import torch

from dmvae import config as configs
from dmvae.datasets.shapes import SHAPES, Shapes, draw


def build(split="train", **fields):
    return Shapes(**({"count": 64, "test_count": 32} | fields)).build(split)


def test_the_same_config_draws_the_same_images():
    assert torch.equal(build().images, build().images)
    assert build().fingerprint == build().fingerprint


def test_splits_and_seeds_differ():
    assert not torch.equal(build().images[:32], build("test").images)
    assert not torch.equal(build().images, build(seed=1).images)
    assert len({build().fingerprint, build("test").fingerprint, build(seed=1).fingerprint}) == 3


def test_whatever_changes_the_images_changes_the_fingerprint():
    others = ({}, {"size": 16}, {"channels": 1}, {"num_classes": 3}, {"count": 32}, {"limit": 10}, {"seed": 1})
    assert len({build(**fields).fingerprint for fields in others}) == len(others)


def test_a_quarter_turn_turns_the_shape():
    uniform, labels = torch.full((2, 14), 0.5), torch.tensor([2, 2])  # triangles, in the middle
    uniform[:, 4] = 0  # dark, on a pale background
    uniform[:, 3] = torch.tensor([0.0, 0.25])
    still, turned = draw(uniform, labels, 32).float().mean(1) < 128
    assert min(int((torch.rot90(still, k) != turned).sum()) for k in (1, 3)) <= 2  # where edges round
    assert int((still != turned).sum()) > 20


@pytest.mark.parametrize(("size", "channels"), [(16, 3), (32, 1), (7, 3), (64, 1)])
def test_any_size_and_channel_count(size, channels):
    data = build(size=size, channels=channels)
    assert data[0][0].shape == (channels, size, size)
    assert data.images.dtype == torch.uint8


def test_drawing_in_chunks_changes_nothing(monkeypatch):
    whole = build().images
    monkeypatch.setattr("dmvae.datasets.shapes._CHUNK_PIXELS", 5 * 32 * 32)
    assert torch.equal(build().images, whole)


def test_limit_is_a_prefix_and_classes_are_balanced():
    assert torch.equal(build(limit=10).images, build().images[:10])
    assert build().labels.bincount().tolist() == [8] * 8
    assert len(build(limit=1000)) == 64
    assert build(num_classes=3).classes == ("circle", "square", "triangle")


def test_every_shape_stands_out_from_its_background():
    grey = build(count=512, channels=1).images.flatten(1).float()
    assert (grey.max(1).values - grey.min(1).values).min() > 30


@pytest.mark.parametrize("name", list(SHAPES))
def test_every_shape_is_inside_the_unit_disc_and_of_some_area(name):
    axis = torch.linspace(-1.5, 1.5, 301)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    inside = SHAPES[name](x, y) < 0
    assert torch.hypot(x, y)[inside].max() < 1.1
    assert 0.8 < inside.sum() * 0.01**2 < 2.5


@pytest.mark.parametrize(("field", "value"), [("num_classes", 0), ("num_classes", 9), ("count", 0), ("test_count", 0)])
def test_bad_fields_are_named(field, value):
    with pytest.raises(ValueError, match=f"{field}: expected a whole number, 1 to .*, got {value}"):
        configs.read(Shapes, {field: value})
