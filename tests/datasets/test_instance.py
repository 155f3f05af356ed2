"""Data sets that a program holds: what its items may be, and by what they are known again."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Subset

import dmvae
import tiny
from dmvae.checks import problems
from dmvae.datasets.instance import Instance, offer
from dmvae.recipe import load


class Own(list):
    """A list of items, which may name its labels."""


def made(n=100, **items):
    data = Own((torch.full((3, 8, 8), i % 256, dtype=torch.uint8), i % 3) for i in range(n))
    for i, item in items.items():
        data[int(i.removeprefix("at"))] = item
    return data


def build(data):
    return Instance(key=offer(data, made()), size=8).build("train")


GREY = np.arange(64, dtype=np.uint8).reshape(8, 8) * 3
COLOUR = np.stack([GREY, GREY // 2, GREY.T], axis=2)
REPEATED = GREY[..., None].repeat(3, 2)
FORMS = {
    "PIL, grey": (Image.fromarray(GREY), REPEATED),
    "PIL, colour": (Image.fromarray(COLOUR), COLOUR),
    "PIL, palette": (Image.fromarray(GREY // 64 * 64).convert("P"), (GREY // 64 * 64)[..., None].repeat(3, 2)),
    "PIL, alpha": (Image.fromarray(np.concatenate([COLOUR, np.full((8, 8, 1), 255, np.uint8)], 2)), COLOUR),
    "PIL, grey with alpha": (Image.merge("LA", (Image.fromarray(GREY), Image.new("L", (8, 8), 255))), REPEATED),
    "PIL, 16 bits": (Image.fromarray(GREY.astype(np.uint16) * 256), REPEATED),
    "PIL, floats": (Image.fromarray(GREY.astype(np.float32) / 255), REPEATED),
    "array [h, w]": (GREY, REPEATED),
    "array [h, w, 3]": (COLOUR, COLOUR),
    "array [h, w, 1], floats": (GREY[..., None].astype(np.float32) / 255, REPEATED),
    "tensor [3, h, w]": (torch.from_numpy(COLOUR).permute(2, 0, 1), COLOUR),
    "tensor [1, h, w], floats": (torch.from_numpy(GREY)[None] / 255, REPEATED),
}


@pytest.mark.parametrize("form", FORMS)
def test_items_of_any_usual_form(form):
    image, expected = FORMS[form]
    found, _ = build(made(at0=(image, 2)))[0]
    assert found.dtype == torch.uint8
    assert torch.equal(found, torch.from_numpy(expected).permute(2, 0, 1))


@pytest.mark.parametrize("label", [2, np.int64(2), torch.tensor(2), True])
def test_labels_of_any_usual_form(label):
    assert int(build(made(at0=(GOOD, label)))[0][1]) == int(label)


GOOD = torch.zeros(3, 8, 8)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"image": GOOD, "label": 1}, r"item 0 is a mapping of image, label, not \(image, label\)"),
        (7, r"item 0 is a int, not \(image, label\)"),
        ((GOOD,), r"item 0 is a tuple of 1, not \(image, label\); images without classes have the label 0"),
        (GOOD, r"item 0 is a Tensor, not \(image, label\)"),
        ((GOOD, "cat"), "the label of item 0 is 'cat'; give a whole number"),
        ((GOOD, -1), "the label of item 0 is -1"),
        ((GOOD, torch.zeros(3)), "the label of item 0 is tensor"),
        ((GOOD, 0.5), "the label of item 0 is 0.5"),
        (("a.png", 1), "item 0 is a str, which is no image"),
        ((np.zeros((3, 8, 12)), 1), r"item 0 has shape \[3, 8, 12\]; give .* arrays as \[h, w, c\]"),
        ((torch.zeros(8, 12, 3), 1), r"item 0 has shape \[8, 12, 3\]; give .* tensors as \[c, h, w\]"),
        ((GOOD - 1, 1), r"item 0: images are uint8 or floats in \[0, 1\], not torch.float32 from -1 to -1"),
        ((GOOD / 0, 1), r"item 0: images are uint8 or floats in \[0, 1\], not torch.float32 from nan"),
    ],
)
def test_an_item_that_is_none_is_named(item, message):
    with pytest.raises(ValueError, match=message):
        offer(made(at0=item), made())


def test_a_set_that_is_read_in_order_alone_is_told():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            yield GOOD, 0

    with pytest.raises(ValueError, match="data: a Stream has no length, or no items by index; give a map-style"):
        offer(Stream(), made())


def test_an_empty_set_is_told():
    with pytest.raises(ValueError, match="a data set without items"):
        offer(made(), Own())


def test_an_item_between_those_that_are_looked_at_is_named_when_it_is_read():
    data = build(made(1000, at5=({"image": GOOD}, 1)))
    with pytest.raises(ValueError, match="item 5 is a dict, which is no image"):
        data[5]
    with pytest.raises(ValueError, match="the label of item 5 is None"):
        build(made(1000, at5=(GOOD, None)))


def test_labels_that_skip_most_classes_are_told():
    with pytest.warns(UserWarning, match="labels up to 1002 make 1003 classes, of which 4 have images"):
        build(made(at5=(GOOD, 1002)))


def test_a_limit_keeps_a_fixed_choice_of_all():
    data = Own((torch.full((3, 8, 8), i, dtype=torch.uint8), i // 10) for i in range(100))
    part = Instance(key=offer(data, data), size=8, limit=20).build("train")
    assert len(part.labels.unique()) > 5, "and not the first classes alone"
    assert [int(part[i][1]) for i in range(20)] == part.labels.tolist()
    assert [int(part[i][0][0, 0, 0]) // 10 for i in range(20)] == part.labels.tolist()


def test_both_sets_count_classes_alike():
    """Without names: of a set that lacks the last class, and of few of many."""
    train, test = made(30), Own((GOOD, label) for label in (0, 4))
    key = offer(train, test)
    assert [Instance(key=key).build(split).classes for split in ("train", "test")] == [tuple("01234")] * 2
    train.targets, test.targets = [label for _, label in train], [0, 4]
    key = offer(train, test)
    assert Instance(key=key, limit=1).build("train").classes == tuple("01234")
    train.classes = list("abcde")
    key = offer(train, test)
    assert Instance(key=key).build("test").classes == tuple("abcde")
    train.classes = [("tench", "Tinca tinca"), *"bcde"]  # as in torchvision's ImageNet
    assert Instance(key=key).build("test").classes == ("tench, Tinca tinca", *"bcde")


def test_parts_of_sets_have_the_names_of_the_whole():
    whole = made(30)
    whole.classes = list("abcd")
    part = Subset(Subset(whole, range(20)), range(10))
    both = ConcatDataset([part, whole])
    for train, test in ((part, part), (both, part), (made(), both)):
        assert Instance(key=offer(train, test)).build("train").classes == tuple("abcd")
    first = offer(part, part)
    whole.classes = list("abce")
    assert offer(part, part) != first
    other = Subset(made(30), range(3))
    mixed = ConcatDataset([whole, other])
    assert Instance(key=offer(mixed, mixed)).build("train").classes == tuple("012")
    other.classes = list("dog")
    with pytest.raises(ValueError, match="train and test differ"):
        offer(part, other)


def test_labels_that_are_not_one_for_each_item_are_not_taken():
    """As a part of a data set may have those of the whole."""
    train = made(30)
    train.targets = [0] * 31
    assert Instance(key=offer(train, made(30))).build("train").labels.tolist() == [label for _, label in train]


def test_sets_that_name_classes_differently_are_told():
    train, test = made(30), made(30)
    train.classes, test.classes = ["cat", "dog", "owl"], ["dog", "owl"]
    with pytest.raises(
        ValueError, match=r"train and test differ \(cat, dog, owl; dog, owl\), so a label would mean two"
    ):
        offer(train, test)


def test_a_recipe_of_the_type_without_data_sets_is_told(tmp_path):
    with pytest.raises(ValueError, match=r"call dmvae\.run there, with train= and test="):
        dmvae.run(tiny.write(tmp_path, data={"type": "instance", "size": 16}))


def test_random_transforms_are_told():
    class Turned(Own):
        def __getitem__(self, index):
            image, label = super().__getitem__(index)
            return image + torch.randint(3, image.shape, dtype=torch.uint8), label

    with pytest.raises(ValueError, match=r"item 0 is another one each time it is read.*leave random transforms out"):
        offer(Turned(made()), made())


def test_labels_that_a_transform_changes_in_items_alone_are_told(tmp_path):
    data = made(100)
    data.targets = [2 - label for _, label in data]
    recipe = load(tiny.write(tmp_path))["kl"]
    recipe = dataclasses.replace(recipe, data=Instance(key=offer(data, data), size=12))
    found = "".join(problems(recipe, recipe.stages(), 1))
    assert "item 0 of the train split has the label 0, and .labels says 2; a transform of labels has to" in found


def test_data_are_known_again_and_others_are_others():
    test, data = made(), made(1000)
    data.targets, data.classes = [label for _, label in data], ["a", "b", "c"]
    first = offer(data, test)
    assert offer(data, test) == first
    data.targets[5] = (data.targets[5] + 1) % 3
    changed = offer(data, test)
    assert changed != first, "an item that is not looked at has another label"
    data.classes = ["a", "b", "d"]
    assert offer(data, test) not in (first, changed)
