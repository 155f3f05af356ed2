"""Images that are resized beyond their size: the centre of each in all but training, which crops at random."""

import pickle
import re

import pytest
import torch
from noisy import KINDS, SIDE, folder_of
from safetensors.torch import load_file

import tiny
from dmvae import checks
from dmvae import config as configs
from dmvae.datasets import DatasetConfig, name_of
from dmvae.datasets.image_folder import ImageFolder
from dmvae.inputs import Inputs
from dmvae.recipe import load
from dmvae.runtime.random import Random
from dmvae.tokenizers.adapted import load_tokenizer
from dmvae.training.augment import random_crop
from dmvae.training.data import batches

SIZE = 12


@pytest.mark.parametrize("kind", KINDS)
def test_items_are_the_centres_of_what_the_larger_size_gives(kind, tmp_path, private_hub):
    config, write, fields = KINDS[kind]
    fields = fields | {"root": str(write(tmp_path / "data"))}
    small, large = config(size=SIZE, resize=SIDE, **fields), config(size=SIDE, **fields)
    plain = config(size=SIZE, **fields)
    for split in ("train", "test"):
        data, whole = small.build(split), large.build(split)
        assert hasattr(data, "__getitems__") == hasattr(whole, "__getitems__") == kind.endswith(("kept", "held"))
        for i in (0, 3, -1):
            assert torch.equal(data[i][0], whole[i][0][:, 4:16, 4:16])
            assert torch.equal(data.larger[i][0], whole[i][0])
        assert (len(data), data.classes, data[0][1]) == (len(whole), whole.classes, whole[0][1])
        assert len({data.fingerprint, whole.fingerprint, plain.build(split).fingerprint}) == 3
    if hasattr(data, "__getitems__"):
        assert torch.equal(data.__getitems__([3, 0])[0], torch.stack([data[3][0], data[0][0]]))
    else:
        assert data.is_index, "other ranks are given it"
        assert torch.equal(pickle.loads(pickle.dumps(data))[2][0], data[2][0])
        assert data.name(2) == name_of(whole, 2)


def test_a_crop_is_a_part_of_its_image_and_every_place_is_as_likely():
    x = torch.arange(36).view(1, 1, 6, 6) + 100 * torch.arange(2000).view(-1, 1, 1, 1)
    x = torch.cat([x, -x], dim=1)
    found = random_crop(x, 4, Random(0))
    corner = found[:, :1, :1, :1]
    offset = (corner - 100 * torch.arange(2000).view(-1, 1, 1, 1)).flatten()
    inner = (6 * torch.arange(4)[:, None] + torch.arange(4)).view(1, 1, 4, 4)
    assert torch.equal(found, torch.cat([corner + inner, -corner - inner], dim=1))
    counts = torch.bincount(offset, minlength=15)[[6 * top + left for top in range(3) for left in range(3)]]
    assert counts.sum() == 2000
    assert (counts - 2000 / 9).abs().max() < 5 * (2000 / 9) ** 0.5


@pytest.mark.parametrize("cache", ["auto", "none"])
@pytest.mark.parametrize("name", ["tokenizer", "generator"])
def test_training_crops_anew_in_each_epoch_and_goes_on_with_the_same_crops(tmp_path, cache, name):
    data = {"type": "image_folder", "root": str(folder_of(tmp_path / "data", 8)), "size": SIZE, "channels": 3}
    data |= {"resize": SIDE, "cache": cache}
    over = {f"{name}__batch_size": 4, "latents__stored": 4}  # so that the generator sees images
    recipe = load(tiny.write(tmp_path, data=data, **over))["kl"]
    inputs = Inputs(recipe, "kl", tmp_path, {}, torch.device("cpu"))
    (kind,) = (kind for kind in recipe.stages() if kind.name == name)
    stage = kind(recipe.section(name), inputs)
    seen = [batch.data for batch in batches(stage, (0, name), 0, 12, lambda: False)]
    assert {x.shape for x in seen} == {(4, 3, SIZE, SIZE)}
    whole = {i: image for i, (image, _) in enumerate(inputs.train_set.larger)}
    places = {i: set() for i in whole}
    for crop in ((torch.cat(seen) + 1) * 127.5).round().byte():
        (found,) = ((i, *place) for i, image in whole.items() for place in where(image, crop))
        places[found[0]].add(found[1:])
    assert sum(len(of) for of in places.values()) > 36, "48 crops of 8 images, of 81 places each"
    again = [batch.data for batch in batches(stage, (0, name), 7, 12, lambda: False)]
    assert all(torch.equal(*both) for both in zip(again, seen[7:], strict=True)), "a run that was killed after 7 steps"


def where(image, crop):
    """The places (top, left) at which a crop lies in an image [c, h, w]."""
    windows = image.unfold(1, SIZE, 1).unfold(2, SIZE, 1)
    return [tuple(place) for place in (windows == crop[:, None, None]).all(-1).all(-1).all(0).nonzero().tolist()]


def test_at_the_default_nothing_is_cropped_and_no_fingerprint_changes(tmp_path):
    folder_of(tmp_path, 4)
    config = ImageFolder(root=str(tmp_path), size=SIZE)
    assert not hasattr(config.build("train"), "larger")
    assert "resize" not in configs.identity(config)
    assert configs.identity(ImageFolder(root=str(tmp_path), size=SIZE, resize=SIDE))["resize"] == SIDE


@pytest.mark.parametrize("resize", [SIZE, SIZE - 1])
def test_a_resize_that_leaves_nothing_to_crop_is_refused(resize):
    values = {"type": "image_folder", "root": ".", "size": SIZE, "resize": resize}
    with pytest.raises(ValueError, match=re.escape(f"data.resize is {resize}: images of data.size {SIZE}")):
        configs.read(DatasetConfig, values, "data")


def test_a_run_encodes_the_centres(tmp_path):
    data = {"type": "image_folder", "root": str(folder_of(tmp_path / "data", 24)), "size": SIZE, "channels": 3}
    path = tiny.write(tmp_path, data=data | {"resize": SIDE})
    recipe = load(path)["kl"]
    assert list(checks.problems(recipe, recipe.stages())) == []
    (job,) = (job for job in tiny.run(path, "kl", until="latents") if job.stage.name == "latents")
    stored = load_file(job.folder / "latents/latents-00000.safetensors")["latents"]
    centres = torch.stack([image[:, 4:16, 4:16] for image, _ in recipe.data.build("train").larger])
    with torch.no_grad():
        z = load_tokenizer(job.folder / "autoencoder").encode(centres.float() / 127.5 - 1).latents
    assert torch.allclose(stored.float(), z, atol=2e-2)
