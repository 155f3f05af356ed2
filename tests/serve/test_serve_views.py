"""The page of `dmvae serve` on a half finished run: what it shows, and what it names as missing."""

import base64
import io
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from half_run import opened
from PIL import Image
from safetensors.torch import load_file
from torchvision.transforms.functional import pil_to_tensor

from dmvae.datasets import open_dataset
from dmvae.evaluation.pairs import psnr
from dmvae.report import latent_map
from dmvae.serve import views

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(run_dir):
    return opened(run_dir)


def pixels(uri):
    return pil_to_tensor(Image.open(io.BytesIO(base64.b64decode(uri.partition("base64,")[2]))))


def close(a, b):
    """Equal to one grey level: batches of other sizes round differently."""
    return a.shape == b.shape and (a.int() - b.int()).abs().max() <= 1


def kept(run_dir):
    return load_file(run_dir / "kl/evaluate/pictures.safetensors")


def test_what_is_not_there_yet_is_named(folder):
    found = views.overview(folder)
    assert [m["tokenizer"] for m in found["methods"]] == ["tokenizer", "latents"]
    assert found["missing"]["map"] == ["matched: its stage evaluate is not finished"]
    assert found["missing"]["samples"] == ["matched: no generator is finished yet"]
    assert found["missing"]["between"] == found["missing"]["results"] == []
    assert "Not finished: matched. Their rows in the table are" in views.results(folder)["html"]
    assert found["images"] == {"count": 24, "source": "test images of shapes"}
    names = open_dataset(folder.run.recipes["kl"].data, "test").classes
    assert found["classes"] == [{"label": label, "name": name} for label, name in enumerate(names)]


def test_a_run_that_has_not_begun_is_shown_with_all_that_it_lacks(run_dir, tmp_path):
    shutil.copytree(run_dir, tmp_path / "run", symlinks=True)
    shutil.rmtree(tmp_path / "run/stages")
    empty = opened(tmp_path / "run", data=False)
    found = views.overview(empty)
    assert all(found["missing"].values())
    assert views.latents(empty)["panels"] == []
    assert views.results(empty) == {"html": ""}
    assert {stage["text"] for stage in views.progress(empty)["stages"]} == {"not begun"}
    with pytest.raises(ValueError, match="kl has no tokenizer yet"):
        empty.tokenizer("kl")
    with pytest.raises(ValueError, match="there is no image 0; there are 0"):
        empty.image(0)


def test_reconstructions_are_those_that_were_measured(folder, run_dir):
    found = views.copies(folder, "kl", 5)
    copy, original = (kept(run_dir)[name][5] for name in ("reconstructions", "originals"))
    assert close(pixels(found["copy"]), copy)
    assert torch.equal(pixels(views.image(folder, 5)["original"]), original)
    assert found["psnr"] == f"PSNR {psnr(original[None], pixels(found['copy'])[None]).item():.2f} dB"
    assert views.copies(folder, "matched", 5)["stage"] == "tokenizer"


@pytest.mark.parametrize("path", ["linear", "slerp"])
def test_the_way_between_two_images_begins_and_ends_at_their_reconstructions(folder, run_dir, path):
    found = views.between(folder, "kl", 2, 7, path)
    frames = pixels(found["strip"]).chunk(views.FRAMES, dim=2)
    assert close(frames[0], kept(run_dir)["reconstructions"][2])
    assert close(frames[-1], kept(run_dir)["reconstructions"][7])
    with pytest.raises(ValueError, match="neither 'linear' nor 'slerp'"):
        views.between(folder, "kl", 2, 7, "arc")


def test_samples_are_those_of_the_stage_and_come_with_their_steps(folder, run_dir):
    made = load_file(run_dir / "kl/sample/guidance-1/samples-00000.safetensors")
    label = int(made["labels"][0])
    asked = {"count": 2, "guidance": 1.0, "steps": 2, "seed": 0, "sampler": "euler"}
    *steps, last = views.samples(folder, "kl", label, **asked)
    assert steps == [{"step": 1, "of": 2}, {"step": 2, "of": 2}]
    first, second = map(pixels, last["images"])
    assert close(first, made["images"][0])
    assert not torch.equal(first, second)
    other = list(
        views.samples(folder, "kl", None, **asked | {"seed": 1, "sampler": "sde", "guidance": 2.0})
    )  # of no class
    assert other[-2] == {"step": 3, "of": 3}  # its last step, without noise, comes on top
    for wrong, message in (
        ({"label": 3}, "class 3 is not one that kl's generator has learned; those are 0, 1, 2"),
        ({"method": "matched"}, "matched has no generator yet"),
        ({"method": "k"}, "no method is called 'k'"),
        ({"sampler": "eul"}, "did you mean 'euler'"),
    ):
        with pytest.raises(ValueError, match=message):
            views.samples(folder, **{"method": "kl", "label": 0} | asked | wrong)


@pytest.mark.parametrize(
    ("dropped", "refused", "drawn"),
    [(0.0, [(None, 1.0), (0, 2.0)], [(0, 1.0)]), (1.0, [(0, 1.0)], [(None, 1.0), (None, 2.0), (0, 0.0)])],
)
def test_what_the_generator_was_never_taught_is_refused_as_by_the_stage(folder, monkeypatch, dropped, refused, drawn):
    recipe = folder.run.recipes["kl"]
    recipe = replace(recipe, generator=replace(recipe.generator, label_dropout=dropped))
    monkeypatch.setitem(folder.run.recipes, "kl", recipe)
    asked = {"count": 1, "steps": 1, "seed": 0, "sampler": "euler"}
    for label, guidance in refused:
        with pytest.raises(ValueError, match=rf"label_dropout: {dropped:g} taught this generator no velocity with"):
            views.samples(folder, "kl", label, guidance=guidance, **asked)
    for label, guidance in drawn:
        assert list(views.samples(folder, "kl", label, guidance=guidance, **asked))[-1]["images"]


def test_a_point_of_the_map_shows_its_own_image(folder, run_dir):
    found = views.latents(folder)
    reference, kl = found["panels"]
    assert reference["reference"]
    assert (kl["method"], kl["reference"], kl["behind"]) == ("kl", False, 0)
    assert len(kl["points"]) == len(kl["labels"]) == len(kl["places"]) == 24
    assert all(0 <= x <= 1 for panel in found["panels"] for point in panel["points"] for x in point)
    labels = open_dataset(folder.run.recipes["kl"].data, "test").labels
    assert kl["labels"] == labels[torch.tensor(kl["places"])].tolist()
    point = views.point(folder, "kl", 9, reference=False)
    assert torch.equal(pixels(point["original"]), kept(run_dir)["originals"][9])
    assert close(pixels(point["copy"]), kept(run_dir)["reconstructions"][9])
    assert pixels(views.point(folder, "matched", 0, reference=True)["copy"]).shape == (3, 12, 12)
    for method, message in (("kl", "no point 24"), ("matched", "matched has no map")):
        with pytest.raises(ValueError, match=message):
            views.point(folder, method, 24, reference=False)
    with pytest.raises(ValueError, match="kl has no reference"):
        views.point(folder, "kl", 0, reference=True)


def test_planes_of_two_kinds_are_both_told(folder, monkeypatch):
    """Where the latents of one method are too few for t-SNE, say."""
    kinds = iter(["t-SNE", "PCA"])

    def embed(group):
        for cloud in group:
            cloud.plane = np.zeros((len(cloud.places), 2))
        return next(kinds)

    monkeypatch.setattr(latent_map, "planes", lambda clouds: [[cloud] for cloud in clouds])
    monkeypatch.setattr(latent_map, "embed", embed)
    assert views.latents(folder)["how"] == "t-SNE or PCA"


def test_curves_of_a_training_that_goes_on(run_dir, folder):
    found = views.progress(folder)
    assert found["order"].index("matching") < found["order"].index("decoder") < found["order"].index("latents")
    state = {(stage["method"], stage["stage"]): stage for stage in found["stages"]}
    assert state["matched", "matching"]["text"].startswith("step 4 of 8, written ")
    assert state["matched", "matching"]["share"] == 0.5
    assert state["matched", "decoder"]["state"] == "new"
    assert "matching" in found["logged"]
    found = views.curves(folder, "matching")["html"]
    assert "student/loss" in found
    assert "<img" not in found
    for step in (2, 4):
        place = run_dir / "matched/matching/pictures" / f"step-{step:08d}.png"
        place.parent.mkdir(exist_ok=True)
        Image.new("RGB", (step, 1)).save(place)
    (uri,) = re.findall(r'src="(data:[^"]*)"', views.curves(folder, "matching")["html"])
    assert pixels(uri).shape == (3, 1, 4), "the newest one"
    assert "matched, step-00000004" in views.curves(folder, "matching")["html"]
    with pytest.raises(ValueError, match="did you mean 'matching'"):
        views.curves(folder, "matchin")


def test_without_the_data_set_the_pictures_that_the_run_keeps(run_dir, folder):
    shut = opened(run_dir, data=False)
    assert shut.classes == {0: "class 0", 1: "class 1", 2: "class 2"}
    assert "the data set is not opened" in shut.image_source
    assert torch.equal(shut.image(3), kept(run_dir)["originals"][3])
    assert views.copies(shut, "kl", 3) == views.copies(folder, "kl", 3)


def test_a_run_that_was_copied_without_its_latents_is_shown(run_dir, tmp_path):
    shutil.copytree(run_dir, tmp_path / "run", symlinks=True)
    for shard in (tmp_path / "run").glob("stages/latents-*/latents/*"):
        shard.unlink()
    found = views.overview(opened(tmp_path / "run"))
    assert [known["label"] for known in found["classes"]] == [0, 1, 2]


def test_without_the_data_set_it_is_not_opened_for_the_table_either(run_dir, monkeypatch):
    shut = opened(run_dir, data=False)
    monkeypatch.setattr("dmvae.report.run.open_dataset", lambda *_: pytest.fail("the data set is opened"))
    assert "This run has 2 methods" in views.results(shut)["html"]


def test_a_point_of_a_method_with_data_of_its_own_has_no_image_of_another_s(run_dir):
    other = opened(run_dir)
    data = other.run.recipes["kl"].data
    other.run.recipes["matched"] = replace(other.run.recipes["matched"], data=replace(data, seed=data.seed + 1))
    first = next(iter(other.run.recipes))
    assert first == "matched"
    assert views.point(other, "kl", 9, reference=False)["original"] is None
    assert (other.image_source, other.image_count) == ("test images of shapes", 24)
    assert not torch.equal(other.image(0), kept(run_dir)["originals"][0])
