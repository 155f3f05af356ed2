"""`dmvae encode` and `dmvae decode`, as a user types them."""

import io
import json
import sys
import tarfile

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from PIL import Image
from safetensors.torch import load_file, save_file

from dmvae import Autoencoder, cli, registry
from dmvae.datasets.image_file import read_image
from dmvae.datasets.pixels import as_input, to_uint8
from dmvae.encoders import EncoderConfig
from dmvae.registry import load_plugins
from dmvae.runtime.files import locked
from dmvae.runtime.hashing import weights_hash


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    torch.manual_seed(0)
    encoder = {"type": "conv", "width": 8, "multipliers": [1, 2], "stride": 4, "out_channels": 8}
    model = Autoencoder(
        encoder=encoder,
        image_size=16,
        latent_channels=3,
        bottleneck_width=8,
        decoder={"type": "conv", "width": 8, "multipliers": [1, 2], "blocks": 1},
    ).eval()
    model.set_statistics(torch.tensor([0.1, 0.2, 0.3]), torch.tensor([1.0, 2.0, 3.0]))
    folder = tmp_path_factory.mktemp("tokenizer")
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def images(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("cat/a.1.png", "cat/b.png", "dog/c.jpg", "dog/d.png", "dog/e.png"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(256, size=(20, 24, 3), dtype=np.uint8)).save(path)
    return tmp_path / "images"


def encode(images, tokenizer, out, *more):
    given = ["--tokenizer", str(tokenizer), "--out", str(out), "--workers", "0", "--precision", "float32"]
    cli.main(["encode", str(images), *given, *more])


def decode(latents, tokenizer, out, *more):
    cli.main(["decode", str(latents), "--tokenizer", str(tokenizer), "--out", str(out), *more])


def complaint(capsys, function, *arguments):
    with pytest.raises(SystemExit) as stop:
        function(*arguments)
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.count("\n") == 1
    return error


def test_a_folder_without_images_is_told_without_a_recipe_s_field(tokenizer, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert "dmvae: no images in " in complaint(capsys, encode, tmp_path / "empty", tokenizer, tmp_path / "z")


def test_latents_of_another_precision_are_not_kept(images, tokenizer, tmp_path, capsys):
    encode(images, tokenizer, tmp_path / "z", "--precision", "bfloat16")
    told = complaint(capsys, encode, images, tokenizer, tmp_path / "z", "--precision", "float32")
    assert "holds latents that were encoded with another precision;" in told
    plan = json.loads((tmp_path / "z/encode.json").read_text())
    assert plan.pop("precision") == "bfloat16"
    (tmp_path / "z/encode.json").write_text(json.dumps(plan))  # as an older version left it
    encode(images, tokenizer, tmp_path / "z", "--precision", "float32")


def test_latents_name_the_weights_whatever_their_layout(images, tokenizer, tmp_path):
    encode(images, tokenizer, tmp_path / "z")
    named = json.loads((tmp_path / "z/encode.json").read_text())["weights"]
    model = Autoencoder.from_pretrained(tokenizer)
    assert named == weights_hash(model) == weights_hash(model.to(memory_format=torch.channels_last))
    torch.nn.init.zeros_(next(model.parameters()))
    assert named != weights_hash(model)


def test_latents_of_another_tokenizer_are_decoded_with_a_warning(images, tokenizer, tmp_path, capsys, recwarn):
    encode(images, tokenizer, tmp_path / "z")
    decode(tmp_path / "z", tokenizer, tmp_path / "back")
    assert not [w for w in recwarn if "other weights" in str(w.message)]
    other = Autoencoder.from_pretrained(tokenizer)
    torch.nn.init.zeros_(next(other.parameters()))
    other.save_pretrained(tmp_path / "other")
    with pytest.warns(UserWarning, match="was encoded with other weights than this tokenizer's"):
        decode(tmp_path / "z", tmp_path / "other", tmp_path / "back2")


def test_a_tokenizer_whose_config_names_no_size_decodes_without_one(images, tmp_path, capsys):
    """The latents have their size; `decode` has no option for it."""
    one = dict.fromkeys(("encoder_block_out_channels", "decoder_block_out_channels"), (8, 8))
    one |= dict.fromkeys(("num_encoder_blocks", "num_decoder_blocks"), (1, 1))
    AutoencoderTiny(**one, latent_channels=2).save_pretrained(tmp_path / "tiny")
    assert "its config has no sample_size; give --size" in complaint(
        capsys, encode, images, tmp_path / "tiny", tmp_path / "z"
    )
    encode(images, tmp_path / "tiny", tmp_path / "z", "--size", "16")
    decode(tmp_path / "z", tmp_path / "tiny", tmp_path / "back")
    assert Image.open(tmp_path / "back/cat/b.png").size == (16, 16)


def test_images_of_other_latents_are_not_taken_for_these(images, tokenizer, tmp_path, capsys):
    encode(images, tokenizer, tmp_path / "z")
    decode(tmp_path / "z", tokenizer, tmp_path / "back")
    decode(tmp_path / "z", tokenizer, tmp_path / "back")
    assert "5 images below" in (told := capsys.readouterr().out)
    assert "(5 of them from before)" in told
    other = Autoencoder.from_pretrained(tokenizer)
    torch.nn.init.zeros_(next(other.parameters()))
    other.save_pretrained(tmp_path / "other")
    np.save(tmp_path / "one.npy", np.zeros((1, 3, 4, 4), np.float32))
    here = json.loads((tmp_path / "back/decode.json").read_text())["precision"]
    other_precision = "float32" if here == "bfloat16" else "bfloat16"
    for arguments, told in (
        ((tmp_path / "z", tmp_path / "other", tmp_path / "back"), "decoded with another tokenizer;"),
        ((tmp_path / "one.npy", tokenizer, tmp_path / "back"), "decoded with other latents;"),
        ((tmp_path / "z", tokenizer, tmp_path / "back", "--normalized"), "decoded with --normalized off;"),
        ((tmp_path / "z", tokenizer, tmp_path / "back", "--precision", other_precision), "with another precision;"),
    ):
        assert told in complaint(capsys, decode, *arguments)
    (tmp_path / "back/decode.json").unlink()
    said = complaint(capsys, decode, tmp_path / "z", tokenizer, tmp_path / "back")
    assert "holds images of these names, and no decode.json says of what" in said


def test_latents_are_the_tokenizers_with_labels_and_names(images, tokenizer, tmp_path):
    encode(images, tokenizer, tmp_path / "z", "--shard-size", "2", "--batch-size", "2")
    shards = sorted((tmp_path / "z").glob("*.safetensors"))
    assert [len(load_file(s)["latents"]) for s in shards] == [2, 2, 1]
    assert torch.cat([load_file(s)["labels"] for s in shards]).tolist() == [0, 0, 1, 1, 1]
    x = read_image(images / "dog/e.png", 16, 3)
    with torch.no_grad():
        z = Autoencoder.from_pretrained(tokenizer).encode(as_input(x[None], torch.device("cpu"))).latents
    assert torch.allclose(load_file(shards[2])["latents"], z, atol=1e-5)


def test_decoded_images_have_the_names_of_the_originals(images, tokenizer, tmp_path):
    encode(images, tokenizer, tmp_path / "z")
    decode(tmp_path / "z", tokenizer, tmp_path / "back")
    found = sorted(p.relative_to(tmp_path / "back").as_posix() for p in (tmp_path / "back").rglob("*.png"))
    assert found == ["cat/a.1.png", "cat/b.png", "dog/c.png", "dog/d.png", "dog/e.png"]
    model = Autoencoder.from_pretrained(tokenizer)
    for name in found:  # each from its own latents, in the channels' order
        (original,) = images.glob(f"{name.removesuffix('.png')}.*")
        with torch.no_grad():
            z = model.encode(as_input(read_image(original, 16, 3)[None], torch.device("cpu"))).latents
            x = to_uint8(model.decode(z).sample)[0]
        decoded = torch.from_numpy(np.array(Image.open(tmp_path / "back" / name))).permute(2, 0, 1)
        assert (decoded.int() - x.int()).abs().max() <= 1, name


def test_a_second_call_counts_as_the_first_one_did(images, tokenizer, tmp_path, capsys):
    (images / "dog/bad.png").write_bytes(b"no image")
    with pytest.warns(UserWarning, match="left out"):
        encode(images, tokenizer, tmp_path / "z", "--shard-size", "2")
    assert "5 images in 3 files below" in (first := capsys.readouterr().out)
    encode(images, tokenizer, tmp_path / "z", "--shard-size", "2")
    second = capsys.readouterr().out
    assert f"5 images in 3 files below {tmp_path / 'z'} (5 of them from before); 1 could not be read" in second
    assert "; 1 could not be read and were left out" in first
    for told in ("5 images below {}\n", "5 images below {} (5 of them from before)\n"):
        decode(tmp_path / "z", tokenizer, tmp_path / "back")
        assert told.format(tmp_path / "back") in capsys.readouterr().out


def test_a_tokenizer_with_an_encoder_of_ones_own(images, tmp_path, monkeypatch, capsys):
    """Its class is in a file that no recipe names here."""
    source = tmp_path / "own.py"
    source.write_text(OWN_ENCODER)
    load_plugins([source])
    Autoencoder(
        encoder={"type": "own_pool"},
        image_size=16,
        latent_channels=3,
        bottleneck_width=8,
        decoder={"type": "conv", "width": 8, "multipliers": [1, 2], "blocks": 1},
    ).save_pretrained(tmp_path / "t")
    monkeypatch.setattr(registry, "_members", {k: v.copy() for k, v in registry._members.items()})
    registry._members[EncoderConfig].pop("own_pool")
    monkeypatch.delitem(sys.modules, registry.module_of(source))
    assert "no EncoderConfig is called 'own_pool'" in complaint(capsys, encode, images, tmp_path / "t", tmp_path / "z")
    encode(images, tmp_path / "t", tmp_path / "z", "--plugins", str(source))
    assert "5 images" in capsys.readouterr().out


OWN_ENCODER = """
from dataclasses import dataclass
from torch import nn
from dmvae.encoders import EncoderConfig
from dmvae.registry import register

@register("own_pool")
@dataclass(frozen=True, kw_only=True)
class Pool(EncoderConfig):
    def build(self, *, size, channels, pretrained=False):
        module = nn.AvgPool2d(4)
        module.channels, module.stride = channels, 4
        return module
"""


def test_a_tar_holds_the_same_latents(images, tokenizer, tmp_path):
    encode(images, tokenizer, tmp_path / "z")
    encode(images, tokenizer, tmp_path / "tar", "--format", "webdataset")
    with tarfile.open(tmp_path / "tar/latents-00000.tar") as tar:
        assert tar.getnames()[:2] == ["cat/a_1.npy", "cat/a_1.cls"]
        z = np.stack([np.load(io.BytesIO(tar.extractfile(n).read())) for n in tar.getnames() if n.endswith(".npy")])
        labels = [int(tar.extractfile(n).read()) for n in tar.getnames() if n.endswith(".cls")]
    assert labels == [0, 0, 1, 1, 1]
    assert np.array_equal(z, load_file(tmp_path / "z/latents-00000.safetensors")["latents"].numpy())
    decode(tmp_path / "tar", tokenizer, tmp_path / "back")
    assert (tmp_path / "back/cat/a_1.png").exists()


@pytest.mark.parametrize("form", ["safetensors", "webdataset"])
def test_images_that_differ_by_their_suffix_are_all_kept(form, tokenizer, tmp_path):
    names = ("a.1.png", "a_1.png", "cat.jpg", "cat.png", "cat.jpg.webp", "dog.jpg")
    (tmp_path / "images").mkdir()
    for i, name in enumerate(names):
        Image.new("RGB", (16, 16), (40 * i, 0, 0)).save(tmp_path / "images" / name)
    encode(tmp_path / "images", tokenizer, tmp_path / "z", "--format", form, "--shard-size", "4")
    decode(tmp_path / "z", tokenizer, tmp_path / "back")
    found = sorted(p.name for p in (tmp_path / "back").glob("*.png"))
    if form == "safetensors":
        assert found == ["a.1.png", "a_1.png", "cat.jpg.png", "cat.jpg.webp.png", "cat.png.png", "dog.png"]
    else:
        assert found == ["a_1_png.png", "a_1_png_.png", "cat_jpg.png", "cat_jpg_webp.png", "cat_png.png", "dog.png"]
    decode(tmp_path / "z", tokenizer, tmp_path / "back")
    assert len(list((tmp_path / "back").glob("*.png"))) == len(names)


def named(path, *names, count=1):
    save_file({"latents": torch.zeros(count, 3, 4, 4)}, path, {"names": json.dumps(names)})
    return path


def test_names_are_one_for_each_latent_and_stay_below_out(tokenizer, tmp_path, capsys):
    error = complaint(capsys, decode, named(tmp_path / "z.safetensors", "a.png", count=3), tokenizer, tmp_path / "y")
    assert f"{tmp_path}/z.safetensors: 3 latents and 1 name" in error
    for name in ("../a.png", "/a.png", "b/../../a.png", "."):
        error = complaint(capsys, decode, named(tmp_path / "z.safetensors", name), tokenizer, tmp_path / "y")
        assert f"{tmp_path}/z.safetensors names an image '{name}'" in error
    np.save(tmp_path / "a.npy", np.zeros((3, 4, 4), np.float32))
    with tarfile.open(tmp_path / "z.tar", "w") as tar:
        tar.add(tmp_path / "a.npy", "../a.npy")
    assert "z.tar names an image '../a'" in complaint(capsys, decode, tmp_path / "z.tar", tokenizer, tmp_path / "y")
    assert not list((tmp_path / "y").glob("*.png"))


def test_the_same_name_twice_is_two_images(tokenizer, tmp_path, capsys):
    (tmp_path / "z").mkdir()
    for number in range(2):
        named(tmp_path / f"z/latents-{number}.safetensors", "a.png", "b.png" if number else "./a.png", count=2)
    decode(tmp_path / "z", tokenizer, tmp_path / "y")
    assert "4 images" in capsys.readouterr().out
    assert len(list((tmp_path / "y").glob("*.png"))) == 4


def test_damaged_files_are_named(images, tokenizer, tmp_path, capsys):
    encode(images, tokenizer, tmp_path / "z")
    encode(images, tokenizer, tmp_path / "tar", "--format", "webdataset")
    np.save(tmp_path / "whole.npy", np.zeros((2, 3, 4, 4), np.float32))
    tarfile.open(tmp_path / "empty.tar", "w").close()
    files = [tmp_path / "empty.tar"]
    for source in (
        tmp_path / "z/latents-00000.safetensors",
        tmp_path / "tar/latents-00000.tar",
        tmp_path / "whole.npy",
    ):
        whole = source.read_bytes()
        for size in (0, 40, 600 if source.suffix == ".tar" else len(whole) - 9):
            files.append(tmp_path / f"{size}{source.suffix}")
            files[-1].write_bytes(whole[:size])
    capsys.readouterr()
    for file in files:
        assert f"{file}: no latents that can be read: " in complaint(capsys, decode, file, tokenizer, tmp_path / "y")


def test_what_is_there_is_kept_and_what_is_not_is_made(images, tokenizer, tmp_path):
    encode(images, tokenizer, tmp_path / "z", "--shard-size", "2")
    first, second = sorted((tmp_path / "z").glob("*.safetensors"))[:2]
    before = first.stat().st_mtime_ns
    second.unlink()
    encode(images, tokenizer, tmp_path / "z", "--shard-size", "2")
    assert second.exists()
    assert first.stat().st_mtime_ns == before


def test_what_a_killed_run_left_is_removed_and_not_decoded(images, tokenizer, tmp_path):
    out = tmp_path / "z"
    out.mkdir()
    (out / "latents-00000.safetensors.12.part").touch()  # as it was written once, and as it is
    (out / "latents-00001.safetensors.13.part").mkdir()
    (out / "mine.part").touch()
    encode(images, tokenizer, out)
    assert sorted(p.name for p in out.iterdir()) == ["encode.json", "latents-00000.safetensors", "mine.part"]
    (out / "latents-00001.safetensors.14.part").mkdir()
    decode(out, tokenizer, tmp_path / "back")
    assert len(list((tmp_path / "back").rglob("*.png"))) == 5
    (tmp_path / "back/cat/x.png.15.part").mkdir()
    (tmp_path / "back/mine.part").touch()
    decode(out, tokenizer, tmp_path / "back")
    assert [p.name for p in (tmp_path / "back").rglob("*.part")] == ["mine.part"]


@pytest.mark.parametrize("form", ["safetensors", "webdataset"])
@pytest.mark.parametrize("harm", ["cut", "flip"])
def test_a_damaged_shard_is_named_and_encoded_anew(images, tokenizer, tmp_path, capsys, form, harm):
    encode(images, tokenizer, tmp_path / "z", "--format", form)
    (shard,) = (tmp_path / "z").glob("latents-*")
    good = shard.read_bytes()
    place = good.index(b"NUMPY") + 200 if form == "webdataset" else len(good) - 30
    shard.write_bytes(good[:600] if harm == "cut" else good[:place] + bytes([good[place] ^ 4]) + good[place + 1 :])
    capsys.readouterr()
    assert f"{shard}: no latents that can be read" in complaint(capsys, decode, shard, tokenizer, tmp_path / "y")
    with pytest.warns(UserWarning, match=f"{shard.name} is encoded anew"):
        encode(images, tokenizer, tmp_path / "z", "--format", form)
    decode(shard, tokenizer, tmp_path / "back")
    assert len(list((tmp_path / "back").rglob("*.png"))) == 5


def test_an_image_changed_in_place_is_seen(images, tokenizer, tmp_path, capsys):
    encode(images, tokenizer, tmp_path / "z")
    data = bytearray((images / "cat/b.png").read_bytes())
    data[200] ^= 1
    (images / "cat/b.png").write_bytes(data)
    assert "other images" in complaint(capsys, encode, images, tokenizer, tmp_path / "z")


def test_samples_of_a_posterior_and_its_means_are_not_kept_together(images, tokenizer, tmp_path, capsys):
    drawn = Autoencoder.from_pretrained(tokenizer)
    drawn.drawn = True
    drawn.save_pretrained(tmp_path / "drawn")
    encode(images, tokenizer, tmp_path / "z")
    told = complaint(capsys, encode, images, tmp_path / "drawn", tmp_path / "z")
    assert "latents that were encoded with another spread about their means" in told


def test_a_plan_that_cannot_be_read_is_named(images, tokenizer, tmp_path, capsys):
    encode(images, tokenizer, tmp_path / "z")
    for text in ("", "3", "[" * 5000):
        (tmp_path / "z/encode.json").write_text(text)
        assert "encode.json cannot be read" in complaint(capsys, encode, images, tokenizer, tmp_path / "z")


def test_two_processes_do_not_encode_into_one_folder(images, tokenizer, tmp_path, capsys):
    (tmp_path / "z").mkdir()
    with locked(tmp_path / "z"):
        assert "another process" in complaint(capsys, encode, images, tokenizer, tmp_path / "z")
    encode(images, tokenizer, tmp_path / "z")
    (tmp_path / "back").mkdir()
    with locked(tmp_path / "back"):
        assert "another process" in complaint(capsys, decode, tmp_path / "z", tokenizer, tmp_path / "back")


def test_a_tokenizer_of_nan_encodes_and_decodes_nothing(images, tokenizer, tmp_path, capsys):
    encode(images, tokenizer, tmp_path / "z")
    model = Autoencoder.from_pretrained(tokenizer)
    next(model.encoder.parameters()).data.fill_(float("nan"))
    model.save_pretrained(tmp_path / "nan")
    assert "the tokenizer's latents are not finite" in complaint(
        capsys, encode, images, tmp_path / "nan", tmp_path / "y"
    )
    assert not list((tmp_path / "y").glob("latents-*"))
    np.save(tmp_path / "nan.npy", np.full((1, 3, 4, 4), np.nan, np.float32))
    assert "hold NaN or infinity" in complaint(capsys, decode, tmp_path / "nan.npy", tokenizer, tmp_path / "x")


def test_latents_as_flow_models_make_them(tokenizer, tmp_path):
    model = Autoencoder.from_pretrained(tokenizer)
    z = torch.randn(3, 3, 4, 4)
    save_file({"latents": z}, tmp_path / "raw.safetensors")
    np.save(tmp_path / "normal.npy", model.normalize(z).numpy())
    decode(tmp_path / "raw.safetensors", tokenizer, tmp_path / "a")
    decode(tmp_path / "normal.npy", tokenizer, tmp_path / "b", "--normalized")
    for name in ("000000.png", "000002.png"):
        a, b = (np.asarray(Image.open(tmp_path / f / name)).astype(int) for f in "ab")
        assert abs(a - b).max() <= 1


def test_a_broken_image_is_named_and_left_out(images, tokenizer, tmp_path, recwarn):
    good = (images / "cat/b.png").read_bytes()
    (images / "cat/b.png").write_bytes(good[: len(good) // 2])
    encode(images, tokenizer, tmp_path / "z")
    names = decoded_names(tmp_path / "z/latents-00000.safetensors")
    assert names == ["cat/a.1.png", "dog/c.jpg", "dog/d.png", "dog/e.png"]
    assert any("cat/b.png" in str(w.message) for w in recwarn)


@pytest.mark.filterwarnings("ignore:left out")
def test_a_shard_of_broken_images_alone_is_left_out(images, tokenizer, tmp_path, capsys):
    (images / "dog/e.png").write_bytes(b"broken")
    for _ in range(2):
        encode(images, tokenizer, tmp_path / "z", "--shard-size", "2")
        assert "4 images in 2 files" in capsys.readouterr().out.replace("\n", " ")
    for path in images.rglob("*.??g"):
        path.write_bytes(b"broken")
    assert "none of 5 images in" in complaint(capsys, encode, images, tokenizer, tmp_path / "y")


def test_latents_too_large_for_their_type_are_told(images, tokenizer, tmp_path, capsys):
    model = Autoencoder.from_pretrained(tokenizer)
    [*model.bottleneck.parameters()][-1].data.fill_(1e6)
    model.save_pretrained(tmp_path / "large")
    encode(images, tmp_path / "large", tmp_path / "wide")
    error = complaint(capsys, encode, images, tmp_path / "large", tmp_path / "y", "--dtype", "float16")
    assert "latents are not finite in float16: its weights are damaged, or --dtype" in error


def test_names_as_long_as_a_file_system_takes(images, tokenizer, tmp_path):
    (images / "cat/b.png").rename(images / "cat" / ("\u732b" * 83 + ".png"))
    encode(images, tokenizer, tmp_path / "z")
    decode(tmp_path / "z", tokenizer, tmp_path / "back")
    assert (tmp_path / "back/cat" / ("\u732b" * 83 + ".png")).is_file()


def decoded_names(path):
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["names"])


def test_mistakes(images, tokenizer, tmp_path, capsys):
    encode(images, tokenizer, tmp_path / "z")
    capsys.readouterr()
    assert "another size" in complaint(capsys, encode, images, tokenizer, tmp_path / "z", "--size", "20")
    assert "18 is not a multiple" in complaint(capsys, encode, images, tokenizer, tmp_path / "y", "--size", "18")
    assert "workers must be at least 0, got -1" in complaint(
        capsys, encode, images, tokenizer, tmp_path / "y", "--workers", "-1"
    )
    assert "/nowhere" in complaint(capsys, encode, "/nowhere", tokenizer, tmp_path / "y")
    assert "/nowhere" in complaint(capsys, encode, images, "/nowhere", tmp_path / "y")
    assert "--out" in complaint(capsys, cli.main, ["encode", str(images), "--tokenizer", str(tokenizer)])
    assert "/nowhere" in complaint(capsys, decode, "/nowhere", tokenizer, tmp_path / "y")
    np.save(tmp_path / "five.npy", np.zeros((1, 5, 4, 4), np.float32))
    assert "do not fit" in complaint(capsys, decode, tmp_path / "five.npy", tokenizer, tmp_path / "y")
    save_file({"z": torch.zeros(1)}, tmp_path / "other.safetensors")
    assert "'latents', but z" in complaint(capsys, decode, tmp_path / "other.safetensors", tokenizer, tmp_path / "y")
    (tmp_path / "z.txt").write_text("no")
    assert ".npy and .tar" in complaint(capsys, decode, tmp_path / "z.txt", tokenizer, tmp_path / "y")
