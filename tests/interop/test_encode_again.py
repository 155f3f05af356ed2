"""What is there already, of killed runs, damaged or of another tokenizer, when `dmvae encode` and `decode` begin."""

import json
import tarfile

import numpy as np
import pytest
import torch
from codec import complaint, decode, encode
from safetensors.torch import load_file

from dmvae import Autoencoder
from dmvae.commands import codec
from dmvae.commands.shards import write_safetensors
from dmvae.datasets.image_file import read_image
from dmvae.datasets.latent_files import LatentFiles
from dmvae.runtime.files import locked
from hostile import flip


def test_latents_of_another_precision_are_not_kept(images, tokenizer, tmp_path, capsys):
    encode(images, tokenizer, tmp_path / "z", "--precision", "bfloat16")
    told = complaint(capsys, encode, images, tokenizer, tmp_path / "z", "--precision", "float32")
    assert "holds latents that were encoded with another precision;" in told
    plan = json.loads((tmp_path / "z/encode.json").read_text())
    assert plan.pop("precision") == "bfloat16"
    (tmp_path / "z/encode.json").write_text(json.dumps(plan))  # as an older version left it
    encode(images, tokenizer, tmp_path / "z", "--precision", "float32")


def test_latents_of_images_prepared_otherwise_are_not_kept(images, tokenizer, tmp_path, capsys):
    encode(images, tokenizer, tmp_path / "z")
    told = complaint(capsys, encode, images, tokenizer, tmp_path / "z", "--resampling", "adm")
    assert "holds latents that were encoded with another resampling;" in told
    plan = json.loads((tmp_path / "z/encode.json").read_text())
    assert plan.pop("resampling") == "square"
    (tmp_path / "z/encode.json").write_text(json.dumps(plan))  # as an older version left it
    assert "another resampling" in complaint(capsys, encode, images, tokenizer, tmp_path / "z", "--resampling", "adm")
    encode(images, tokenizer, tmp_path / "z", "--resampling", "square")
    encode(images, tokenizer, tmp_path / "adm", "--resampling", "adm")
    adm, square = (load_file(tmp_path / name / "latents-00000.safetensors")["latents"] for name in ("adm", "z"))
    model = Autoencoder.from_pretrained(tokenizer)
    for z, resampling in ((adm, "adm"), (square, "square")):
        x = read_image(images / "cat/a.1.png", 16, 3, resampling)
        with torch.no_grad():
            assert torch.allclose(z[0], model.encode(x[None] / 127.5 - 1).latents[0], atol=1e-5)
    assert not torch.allclose(adm, square, atol=1e-3)


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


def test_an_encoding_that_was_stopped_is_not_read_as_a_whole(images, tokenizer, tmp_path, capsys, monkeypatch):
    z, written = tmp_path / "z", []

    def stops(path, *rest):
        if written:
            raise KeyboardInterrupt
        written.append(path)
        write_safetensors(path, *rest)

    def stopped():
        with monkeypatch.context() as patch:
            patch.setattr(codec, "write_safetensors", stops)
            with pytest.raises(SystemExit):
                encode(images, tokenizer, z, "--shard-size", "2")
        with pytest.raises(ValueError, match="z: its `dmvae encode` has not ended, so latents are missing; "):
            LatentFiles(z)

    stopped()
    assert len(LatentFiles(written[0])) == 2
    with pytest.warns(UserWarning, match="has not ended"):
        decode(z, tokenizer, tmp_path / "some")
    encode(images, tokenizer, z, "--shard-size", "2")
    assert len(LatentFiles(z)) == 5
    (z / "latents-00001.safetensors").unlink()  # a second time it is unfinished while the shard is made
    stopped()


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
    flip(images / "cat/b.png", 200)
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


def test_latents_of_another_type_are_not_kept(images, tokenizer, tmp_path, capsys):
    encode(images, tokenizer, tmp_path / "z")
    told = complaint(capsys, encode, images, tokenizer, tmp_path / "z", "--dtype", "float16")
    assert "holds latents that were encoded with another dtype;" in told


def test_a_call_that_made_nothing_binds_no_later_one(images, tokenizer, tmp_path, capsys, monkeypatch):
    def fails(*of):
        raise ValueError("the first batch failed")

    z, back = tmp_path / "z", tmp_path / "back"
    with monkeypatch.context() as patch:
        patch.setattr(codec, "_encoded", fails)
        assert "the first batch failed" in complaint(capsys, encode, images, tokenizer, z)
    encode(images, tokenizer, z, "--dtype", "float16")
    assert len(LatentFiles(z)) == 5
    with monkeypatch.context() as patch:
        patch.setattr(codec, "write_png", fails)
        assert "the first batch failed" in complaint(capsys, decode, z, tokenizer, back)
    decode(z, tokenizer, back, "--normalized")
