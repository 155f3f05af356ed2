"""`dmvae encode` and `dmvae decode`, as a user types them."""

import io
import json
import sys
import tarfile

import numpy as np
import pytest
import torch
from codec import complaint, decode, encode
from diffusers import AutoencoderRAE, AutoencoderTiny
from PIL import Image
from safetensors.torch import load_file, save_file

from dmvae import Autoencoder, cli, registry
from dmvae.datasets.image_file import read_image
from dmvae.datasets.pixels import as_input, to_uint8
from dmvae.encoders import EncoderConfig
from dmvae.registry import load_plugins
from dmvae.runtime.hashing import weights_hash

TINY = {
    **dict.fromkeys(("encoder_block_out_channels", "decoder_block_out_channels"), (8, 8)),
    **dict.fromkeys(("num_encoder_blocks", "num_decoder_blocks"), (1, 1)),
    "latent_channels": 2,
}


def test_a_folder_without_images_is_told_without_a_recipe_s_field(tokenizer, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert "dmvae: no images in " in complaint(capsys, encode, tmp_path / "empty", tokenizer, tmp_path / "z")


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
    AutoencoderTiny(**TINY).save_pretrained(tmp_path / "tiny")
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
    assert "holds images of these names without a decode.json" in said


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


@pytest.mark.parametrize("scale", [0.25, None])
def test_scaled_latents_of_another_s_tokenizer(images, tmp_path, scale, capsys):
    AutoencoderTiny(**TINY, scaling_factor=scale).save_pretrained(tmp_path / "tiny")
    z = torch.randn(1, 2, 4, 4)
    np.save(tmp_path / "raw.npy", z.numpy())
    np.save(tmp_path / "scaled.npy", z.numpy() * 0.25)
    decode(tmp_path / "raw.npy", tmp_path / "tiny", tmp_path / "a")
    told = (tmp_path / "scaled.npy", tmp_path / "tiny", tmp_path / "b", "--normalized")
    if scale is None:
        assert "have no mean and deviation of latents; give raw latents" in complaint(capsys, decode, *told)
        return
    decode(*told)
    assert (tmp_path / "a/000000.png").read_bytes() == (tmp_path / "b/000000.png").read_bytes()


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


def test_a_rae_takes_and_gives_images_of_its_own_size(images, tmp_path):
    sizes = {"encoder_input_size": 42, "patch_size": 8, "encoder_hidden_size": 64}
    layers = dict.fromkeys(("encoder_num_hidden_layers", "decoder_num_hidden_layers"), 1)
    narrow = {"decoder_hidden_size": 16, "decoder_num_attention_heads": 2, "decoder_intermediate_size": 16}
    AutoencoderRAE(**sizes, **layers, **narrow).save_pretrained(tmp_path / "rae")
    encode(images, tmp_path / "rae", tmp_path / "z")
    decode(tmp_path / "z", tmp_path / "rae", tmp_path / "back")
    assert {Image.open(path).size for path in (tmp_path / "back").rglob("*.png")} == {(24, 24)}


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
    assert "'latents', found z" in complaint(capsys, decode, tmp_path / "other.safetensors", tokenizer, tmp_path / "y")
    (tmp_path / "z.txt").write_text("no")
    assert ".npy and .tar" in complaint(capsys, decode, tmp_path / "z.txt", tokenizer, tmp_path / "y")
