"""Latents that were encoded elsewhere and do not fit, or are scaled, not finite, gone or changed: it is told."""

import json
import shutil

import pytest
import torch
from elsewhere import IMAGES, NOTHING, refused, whole, write
from safetensors.torch import load_file, save_file

import tiny
from dmvae.datasets import look_again
from dmvae.latents.store import LatentSet

TRAINED_FURTHER = {name: {"steps": 8, "batch_size": 8} for name in ("tokenizer", "reference", "matching")}


def test_a_dead_channel_does_not_hide_statistics_of_other_latents(theirs, tmp_path):
    z, labels = whole(theirs)
    z[:, 2] = 0
    (tmp_path / "some").mkdir()
    save_file({"latents": z, "labels": labels}, tmp_path / "some/a.safetensors")
    mean = z.mean((0, 2, 3)) + 50
    mean[2] = 0
    torch.save({"mean": mean, "std": torch.ones(12)}, tmp_path / "some/latents_stats.pt")
    with pytest.raises(ValueError, match=r"statistics beside the latents give channel .* they are of other latents"):
        tiny.run(write(tmp_path, tmp_path / "some", {"test": None}, **NOTHING), until="latents")


@pytest.mark.parametrize(
    ("over", "told"),
    [
        ({"latents": {"stored": 8}}, "latents.stored: all latents are stored already"),
        ({"latents": {"mirrored": True}}, "latents.mirrored: files that hold latents_flip"),
        ({"latents": {"drawn": True}}, "latents.drawn: the files say what was drawn"),
        (
            {"pretrained": {"type": "identity", "patch": 3}},
            "holds latents [12, 6, 6], and `pretrained` makes [27, 4, 4]",
        ),
        ({"evaluate__metrics": ["memorisation"]}, "evaluate.metrics: memorisation needs training images"),
        (TRAINED_FURTHER, "tokenizer: it trains on images"),
        (
            TRAINED_FURTHER,
            "matching: it trains on images, and data.type: latents has none; set matching: null, or take",
        ),
        (TRAINED_FURTHER, "reference.distribution: 'features' is made of training images"),
        ({"data": {"flip": True}}, "data.flip: latents are taken as they lie"),
        ({"data": {"test": IMAGES | {"flip": True}}}, "data.test.flip: test images are never mirrored"),
        ({"data": {"limit": 9}}, "data.limit: latents are taken as they lie"),
        ({"data": {"test": IMAGES | {"size": 16}}}, "data.test.size: 16, and data.size is 12"),
        ({"data": {"test": {"type": "image_folder", "root": "gone"}}}, "data.test.root: gone does not exist"),
        ({"data": {"test": IMAGES | {"num_classes": 2}}}, "has the label 2, and data.test has 2 classes"),
    ],
)
def test_what_latents_cannot_give_is_refused_before_anything_runs(over, told, theirs, own, tmp_path):
    if over is TRAINED_FURTHER:
        over = over | {"pretrained": own}
    try:
        found = refused(write(tmp_path, theirs, **over))
    except ValueError as error:
        found = [str(error)]
    assert any(told in problem for problem in found), found


def test_scaled_latents_are_noticed_by_the_test_images(theirs, tmp_path):
    z, labels = whole(theirs)
    (tmp_path / "some").mkdir()
    save_file({"latents": 0.18215 * z, "labels": labels}, tmp_path / "some/a.safetensors")
    with pytest.raises(ValueError, match=r"have standard deviation 5.5 .* the files hold scaled or normalised latents"):
        tiny.run(write(tmp_path, tmp_path / "some", **NOTHING), until="latents")


def test_given_statistics_that_do_not_fit_do_not_accuse_the_files(theirs, tmp_path, capsys):
    torch.save({"mean": torch.zeros(12), "std": torch.full((12,), 50.0)}, tmp_path / "wide.pt")
    tiny.run(write(tmp_path, theirs, latents={"statistics": str(tmp_path / "wide.pt")}, **NOTHING), until="latents")
    assert "with these statistics, latents have mean" in " ".join(capsys.readouterr().out.split())


def test_nan_is_noticed_and_its_place_told(theirs, tmp_path):
    z, labels = whole(theirs)
    (tmp_path / "some").mkdir()
    z[7, 3, 2, 1] = torch.nan
    save_file({"latents": z, "labels": labels}, tmp_path / "some/a.safetensors")
    with pytest.raises(ValueError, match=r"some/a.safetensors: latent 7: NaN or infinity in 'latents'"):
        tiny.run(write(tmp_path, tmp_path / "some", **NOTHING), until="latents")


def test_the_classes_that_encode_wrote_are_those_of_the_test_images(theirs, tmp_path):
    z, labels = whole(theirs)
    (tmp_path / "some").mkdir()
    save_file({"latents": z, "labels": labels}, tmp_path / "some/a.safetensors")
    names = ["circle", "square", "triangle"]
    (tmp_path / "some/encode.json").write_text(json.dumps({"classes": names}))
    path = write(tmp_path, tmp_path / "some", **NOTHING)
    assert refused(path) == []
    (tmp_path / "some/encode.json").write_text(json.dumps({"classes": names[::-1]}))
    look_again()
    (told,) = refused(path)
    assert "are of the classes triangle, square, circle, and data.test has the classes circle, square, triangle" in told


def test_files_that_are_gone_or_changed_are_noticed(theirs, tmp_path):
    root = tmp_path / "some"
    shutil.copytree(theirs, root)
    path = write(tmp_path, root, **NOTHING)
    tiny.run(path, until="latents")
    folders = tiny.folders_of(path)
    root.rename(tmp_path / "moved")
    with pytest.raises(ValueError, match=r"is a link to .*some.* which is gone: put that back"):
        LatentSet(tmp_path / "run/main/latents/latents")
    moved = write(tmp_path, tmp_path / "moved", **NOTHING)
    assert tiny.folders_of(moved) == folders, "where latents are is not what they are"
    file = min((tmp_path / "moved").glob("*.safetensors"))
    held = {name: x + (name == "latents") for name, x in load_file(file).items()}
    file.unlink()
    save_file(held, file)
    look_again()
    assert tiny.folders_of(moved) != folders
