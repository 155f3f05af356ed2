import errno
import gzip
import json
import os
import tarfile

import pytest

from dmvae import config as configs
from dmvae.datasets import image_scan
from dmvae.datasets.tar_index import NAME
from dmvae.datasets.webdataset import WebDataset
from packed import noise, opener, png, samples, shards_of, tar, values

open_split, fails = opener(WebDataset)


@pytest.fixture
def shards(tmp_path, monkeypatch):
    """Shards that count as settled, though they have just been made."""
    monkeypatch.setattr(image_scan, "SETTLED", -1.0)
    return shards_of(tmp_path / "shards")


@pytest.mark.parametrize(
    "fields",
    [
        {"root": "x-{train,val}-{000..000}.tar"},
        {"root": "x-train-000.tar", "train_shards": "*.tar"},
        {"root": "", "train_shards": "x-train-000.tar"},
        {"root": "", "train_shards": "x-{train,other}-000.tar"},
    ],
)
def test_shards_by_pattern(shards, fields):
    assert values(open_split(**(fields | {"root": f"{shards}/{fields['root']}"}))) == list(range(6))


def test_shards_of_both_splits_are_told(shards):
    message = r"1 shard, such as x-train-000.tar, are of the train split and of the test split"
    fails(shards, message, "test", train_shards="*.tar", test_shards="x-train-000.tar")


def test_a_shard_whose_names_are_of_both_splits_is_told(tmp_path):
    tar(tmp_path / "shards_test/train-0.tar", samples(range(3)))
    tar(tmp_path / "shards_test/val-0.tar", samples(range(3, 5)))
    fails(tmp_path, r"1 shard, such as shards_test/train-0.tar, are of the train split and of the test split", "test")


def test_a_link_to_a_shard_of_the_train_split_is_told(tmp_path):
    tar(tmp_path / "train-0.tar", samples(range(3)))
    (tmp_path / "test-0.tar").symlink_to("train-0.tar")
    fails(tmp_path, r"1 shard, such as test-0.tar, are of the train split and of the test split", "test")


def test_a_disk_that_fails_is_not_taken_for_the_cache(shards, monkeypatch):
    def read(self, index):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("dmvae.datasets.webdataset.Members.read", read)
    fails(shards, r"data\.root: .*x-train-000\.tar.* cannot be read: .*Input/output error")


def test_shards_by_folder(tmp_path):
    tar(tmp_path / "train" / "0.tar", samples(range(3)))
    tar(tmp_path / "test" / "0.tar", samples(range(3, 5)))
    tar(tmp_path / "val" / "0.tar", samples(range(5, 9)))
    assert values(open_split(tmp_path)) == [0, 1, 2]
    assert values(open_split(tmp_path, "test")) == [3, 4]


def test_names_are_those_of_the_package():
    from webdataset.tariterators import base_plus_ext

    for name in ("a.jpg", "./a.jpg", "a/b.c/d.seg.png", "b/a.JPG", "plain", "a/b", "a.b/c", ".hidden"):
        match = NAME.fullmatch(name)
        assert (match.groups() if match else (None, None)) == base_plus_ext(name)


def test_what_lies_beside_a_sample_is_left_alone(tmp_path):
    members = [
        (f"./deep/{v}.{e}", d) for v in range(3) for e, d in (("JSON", b"{}"), ("cls", b" 0\n"), ("PNG", png(v)))
    ]
    tar(tmp_path / "train.tar", [*members, ("__info__.json", b"{}"), (".hidden/a.png", png(9)), ("README", b"text")])
    (tmp_path / "._train.tar").write_bytes(b"of a Mac")
    assert values(open_split(tmp_path)) == [0, 1, 2]
    two = [("a.input.png", png(1)), ("a.target.png", png(2)), ("a.cls", b"0")]
    tar(tmp_path / "b" / "train.tar", two)
    fails(
        tmp_path / "b", r"train\.tar, sample a: has images input\.png, target\.png: name one in data\.image_extension"
    )
    assert values(open_split(tmp_path / "b", image_extension="target.png")) == [2]


def test_names_of_classes(shards, tmp_path):
    (tmp_path / "names.txt").write_text("\ufeffcat\ndog\n\nowl\n", encoding="utf-8")  # as Windows' editor saves it
    for classes in (("cat", "dog", "owl"), str(tmp_path / "names.txt")):
        data = open_split(shards, classes=classes)
        assert data.classes == ("cat", "dog", "owl")
        assert data.labels[:4].tolist() == [0, 1, 2, 0]
    texts = [
        m for v, name in enumerate(("owl", "cat", "owl")) for m in ((f"{v}.png", png(v)), (f"{v}.txt", name.encode()))
    ]
    tar(tmp_path / "t" / "train.tar", texts)
    data = open_split(tmp_path / "t", label_extension="txt")
    assert (data.classes, data.labels.tolist()) == (("cat", "owl"), [1, 0, 1])
    fails(
        tmp_path / "t",
        r"member 0\.png: its \.txt holds 'owl', neither a number nor a class; did",
        label_extension="txt",
        classes=("owls",),
    )
    tar(tmp_path / "t" / "test.tar", [("a.png", png(3)), ("a.txt", b"1")])  # counted by whom, and in which order?
    message = r"test\.tar, member a\.png: its \.txt holds '1', no class of the train split"
    fails(tmp_path / "t", message, "test", label_extension="txt")
    assert open_split(tmp_path / "t", "test", label_extension="txt", classes=("cat", "owl")).labels.tolist() == [1]
    assert open_split(tmp_path / "t", label_extension="none").classes == ("all",)
    assert open_split(tmp_path / "t", label_extension=".TXT", image_extension=".PNG").classes == ("cat", "owl")
    tar(tmp_path / "j" / "train.tar", [("a.png", png(1)), ("a.json", b'{"label": 3}')])
    fails(
        tmp_path / "j", r"\.json of the train split: holds '{\"label\": 3}', JSON and no class", label_extension="json"
    )
    fails(
        shards,
        r"x-train-000\.tar, member 0002\.png: label 2 is not in 0 to 1, the classes of data\.classes",
        classes=("a", "b"),
    )
    fails(
        shards,
        r"member 0001\.png: its \.cls holds '1', which data\.classes has as the name of class 2: write that number",
        classes=("0", "2", "1"),
    )
    assert open_split(shards, classes=("0", "1", "2")).labels[:4].tolist() == [0, 1, 2, 0]
    fails(shards, r"data\.classes: .*nowhere.txt cannot be read", classes="nowhere.txt")
    fails(shards, r"data\.classes: names no class", classes=())


def test_the_index_is_made_once(shards, private_cache, monkeypatch):
    first = values(open_split(shards, cache_gib=0.0))
    kept = list((private_cache / "tar_index").iterdir())
    assert len(kept) == 2
    assert not any("part" in file.name for file in kept)
    assert json.loads(kept[0].read_text())["offsets"]
    monkeypatch.setattr("dmvae.datasets.webdataset.read_index", None)
    assert values(open_split(shards, cache_gib=0.0)) == first


def test_a_shard_of_the_same_size_and_time_is_indexed_anew(shards):
    shard = shards / "x-train-000.tar"
    before, there = open_split(shards, cache_gib=0.0), shard.stat()
    tar(shard, samples(range(20, 26)))
    os.utime(shard, ns=(there.st_atime_ns, there.st_mtime_ns))
    assert (shard.stat().st_size, shard.stat().st_mtime_ns) == (there.st_size, there.st_mtime_ns)
    after = open_split(shards, cache_gib=0.0)
    assert values(after) == [*range(20, 26), *range(6, 15)]
    assert after.labels.tolist() != before.labels.tolist()
    assert after.fingerprint != before.fingerprint


def test_the_index_of_a_shard_that_has_just_changed_is_not_kept(shards, private_cache, monkeypatch):
    """It may change again within what its file system takes for one moment."""
    monkeypatch.setattr(image_scan, "SETTLED", 60.0)
    assert values(open_split(shards, cache_gib=0.0)) == list(range(15))
    assert not (private_cache / "tar_index").exists()


def test_a_shard_that_changes_underfoot_is_no_broken_image(shards):
    data = open_split(shards, cache_gib=0.0)
    (shards / "x-train-000.tar").write_bytes(b"")
    with pytest.raises(ValueError, match=r"x-train-000\.tar: has become shorter"):
        data[0]
    (shards / "x-train-000.tar").unlink()
    with pytest.raises(OSError, match=r"x-train-000\.tar"):
        data[0]


@pytest.mark.parametrize("harm", [lambda text: text.replace("512", "513", 1), lambda text: text[:9]])
def test_a_damaged_index_is_made_anew(shards, private_cache, harm):
    first = values(open_split(shards, cache_gib=0.0))
    for kept in (private_cache / "tar_index").iterdir():
        kept.write_text(harm(kept.read_text()))
    with pytest.warns(UserWarning, match=r"is damaged: .*: the index of .* is made anew"):
        assert values(open_split(shards, cache_gib=0.0)) == first


def test_an_index_that_cannot_be_kept_stops_nothing(shards, private_cache):
    private_cache.write_text("no folder")
    with pytest.warns(UserWarning, match=r"indices of shards cannot be kept in .*: each stage makes them anew"):
        assert values(open_split(shards, cache_gib=0.0)) == list(range(15))


@pytest.mark.parametrize("cache_gib", [16.0, 0.0])
@pytest.mark.filterwarnings("ignore:unreadable image")
def test_truncated_images(shards, cache_gib):
    tar(shards / "x-train-002.tar", [("a.png", noise()[:900]), ("a.cls", b"1"), *samples([31])])
    if cache_gib:
        with pytest.warns(UserWarning, match=r"skipped 1 unreadable image of 17: .*x-train-002\.tar, member a\.png: "):
            data = open_split(shards, cache_gib=cache_gib)
        assert values(data) == [*range(15), 31]
        fails(shards, r"1 unreadable image: .*member a\.png.*on_broken: skip", on_broken="error")
    else:
        data = open_split(shards, cache_gib=cache_gib)
        assert data[15][1] == data[16][1] == 1
        assert values(data)[15] == 31, "the next one of its class"
        data = open_split(shards, cache_gib=cache_gib, on_broken="error")
        with pytest.raises(ValueError, match=r"x-train-002\.tar, member a\.png: .*on_broken: skip"):
            data[15]


def header(name, size):
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf()


def negative(name):
    """A header whose size is -512, in base 256."""
    block = bytearray(header(name, 0))
    block[124:136] = (2**96 - 512).to_bytes(12, "big")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def link(name):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return info.tobuf()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda good: good[:-700], r"damaged after byte \d+"),
        (lambda good: good[:-1500], r"cut off, the file ends before it"),
        (lambda good: good + b"garbage!" * 64, r"damaged after byte \d+"),
        (lambda good: good, r"has no end: cut off at byte \d+"),
        (lambda good: good[:-1024] + bytes(1024) + good, r"damaged after byte \d+, or tars put together"),
        (lambda good: good + bytes(10240) + good, r"damaged after byte \d+, or tars put together"),
        (lambda good: good + header("../../z.png", 10**12), r"'\.\./\.\./z\.png': cut off"),
        (lambda good: good + negative("z.png"), r"damaged"),
        (lambda good: good + link("z.png"), r"'z\.png': a link"),
        (lambda good: good + header("z.png", 0), r"sample z: no \.cls beside the image"),
        (lambda good: good + header("z.cls", 0), r"sample z: no image"),
        (lambda good: good + header("z.png", 0) + header("z.cls", 0), r"sample z: \.cls is empty"),
        (lambda good: good + header("z.png", 0) + header("z.cls", 9000) + bytes(9216), r"z: \.cls has 9000 bytes"),
        (lambda good: good + header("z.png", 0) + header("z.cls", 1) + b"\xff" + bytes(511), r"\.cls holds no text"),
    ],
)
def test_damaged_shards(tmp_path, damage, message):
    path = tar(tmp_path / "train.tar", samples([2, 4, 5]))
    with tarfile.open(path) as file:
        end = file.getmembers()[-1].offset_data + 512
    path.write_bytes(damage(path.read_bytes()[:end]))
    with pytest.warns(
        UserWarning,
        match=r"skipped (1 unusable sample or shard|\d unusable samples or shards) beside [23]: .*train\.tar.*"
        + f"({message})",
    ):
        data = open_split(tmp_path)
    assert values(data) in ([2, 4, 5], [2, 4])
    fails(tmp_path, f"1 unusable .*({message}).*on_broken: skip|2 unusable", on_broken="error")


def test_unusable_shards_say_what_to_fix(tmp_path):
    def shard(name, data):
        path = tmp_path / name / "train.tar"
        path.parent.mkdir()
        path.write_bytes(data)
        return path.parent

    fails(shard("a", b""), r"a/train\.tar: is empty; fetch it again")
    fails(shard("b", b"no tar" * 1000), r"b/train\.tar: not a \.tar file")
    good = tar(tmp_path / "good.tar", samples([1])).read_bytes()
    fails(shard("c", gzip.compress(good)), r"c/train\.tar: is compressed.*gunzip")
    fails(tar(tmp_path / "d" / "train.tar", []).parent, r"d/train\.tar: holds no sample; .* fetch")
    fails(
        tar(tmp_path / "e" / "train.tar", [("a.png", png(1))]).parent,
        r'holds no sample: .*a: no \.cls beside the image.* data.label_extension .* "none" for images without classes',
    )
    mixed = [*samples([1]), ("z.png", png(1)), ("z.cls", b"cat")]
    fails(
        tar(tmp_path / "f" / "train.tar", mixed).parent,
        r"\.cls of the train split: holds both numbers and names, such as 'cat'",
    )
    for k, text in enumerate((b"-1", b"10000000")):
        fails(
            tar(tmp_path / f"g{k}" / "train.tar", [("z.png", png(1)), ("z.cls", text)]).parent,
            r"labels run from .* from 0 on",
        )


def test_unclear_layouts_say_what_to_fix(shards, tmp_path):
    fails(tmp_path / "nowhere", r"data\.root: .*nowhere does not exist")
    (tmp_path / "none").mkdir()
    fails(tmp_path / "none", r"no \.tar shard in .*none or the folders in it$")
    (tmp_path / "none" / "a.tar.gz").touch()
    fails(tmp_path / "none", "gunzip")
    fails(f"{shards}/x-train-{{000..009}}.tar", r"8 of 10 shards of .* not there, first .*x-train-002\.tar")
    fails(
        shards / "x-train-000.tar", "no shard of the test split: of x-train-000.tar, none is called test or val", "test"
    )
    fails(shards, r"none matches 'y-\*'; set data\.train_shards", train_shards="y-*")
    tar(shards / "x-val-000.tar", [("z.png", png(1)), ("z.cls", b"7")])
    fails(shards, r"x-val-000\.tar, member z\.png: label 7 is not in 0 to 2, the classes of \.cls of the train", "test")
    with pytest.raises(ValueError, match=r"cache_gib: expected a number, 0 to 10\^6, got -1\.0"):
        configs.read(WebDataset, {"root": ".", "cache_gib": -1})


def test_braces_need_the_package(shards, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "webdataset.shardlists", None)
    fails(f"{shards}/x-{{train,val}}-000.tar", r"pip install 'dmvae\[webdataset\]'")
    assert len(open_split(shards)) == 15
