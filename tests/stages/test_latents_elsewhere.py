"""Latents that were encoded elsewhere, by the ordinary stages: the generator that images give, without the images."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from elsewhere import NOTHING, PIXELS, refused, whole, write
from safetensors.torch import load_file, save_file

import tiny
from dmvae import cli
from dmvae.commands import plan
from dmvae.commands.serve import read
from dmvae.datasets import look_again
from dmvae.datasets.image_file import write_png
from dmvae.latents.store import LatentSet
from dmvae.pipeline import about_data
from dmvae.recipe import load
from dmvae.serve.folder import Networks
from dmvae.stages.generator import GeneratorStage
from dmvae.tokenizers.adapted import load_tokenizer


@pytest.fixture(scope="module")
def from_images(theirs) -> tuple[Path, Path]:
    """(a variant's folder of the run on images, which is finished here, what was exported of its latents)."""
    tiny.run(theirs.parent / "recipe.yaml")
    return theirs.parent / "run/main", theirs


def generator(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "generator/generator/diffusion_pytorch_model.safetensors")


def alike(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.slow
def test_shards_give_the_generator_and_the_figures_that_images_give(from_images, tmp_path):
    ours, theirs = from_images
    tiny.run(write(tmp_path, theirs))
    here = tmp_path / "run/main"
    assert alike(generator(ours), generator(here))
    a, b = (json.loads((run / "evaluate/metrics.json").read_text()) for run in (ours, here))
    assert a["gfd"] == b["gfd"]
    assert a["knn"] == b["knn"]
    assert a["latents"] == b["latents"]
    for name in ("latents", "mirrored"):  # nothing is copied
        links = sorted((here / "latents" / name).glob("latents-*"))
        assert [link.resolve() for link in links] == sorted(theirs.glob("*.safetensors"))


def test_a_generator_that_was_cut_off_resumes(from_images, tmp_path):
    path = write(tmp_path, from_images[1], run__save_every=3, **NOTHING)
    with tiny.cut(GeneratorStage, 4):
        tiny.run(path)
    tiny.run(path)
    assert alike(generator(from_images[0]), generator(tmp_path / "run/main"))


def test_shards_of_unequal_size_are_read_in_their_order(theirs, tmp_path):
    """Each rank of LightningDiT's extraction ends with a shorter shard."""
    z, labels = whole(theirs)
    (tmp_path / "some").mkdir()
    for i, part in enumerate(torch.arange(48).split([5, 1, 30, 12])):
        save_file({"latents": z[part], "labels": labels[part]}, tmp_path / f"some/shard{i}.safetensors")
    tiny.run(write(tmp_path, tmp_path / "some", **NOTHING), until="latents")
    found = LatentSet(tmp_path / "run/main/latents/latents")
    index = torch.tensor([47, 5, 6, 0, 35, -1, 36])
    stored, of = found.stored(index)
    assert torch.equal(stored, z[index])
    assert torch.equal(of, labels[index])


def npy(root, z, labels):
    np.save(root / "all.npy", z.numpy())
    np.save(root / "labels.npy", labels.numpy())
    return torch.arange(len(z))


def npz(root, z, labels):
    for name, part in (("a", slice(30)), ("b", slice(30, 48))):
        np.savez(root / f"{name}.npz", latents=z[part].numpy(), labels=labels[part].numpy())
    return torch.arange(len(z))


def each(root, z, labels):  # 10.npy comes behind 9.npy
    for i, latent in enumerate(z):
        np.save(root / f"{i}.npy", latent.numpy())
    np.save(root / "labels.npy", labels.numpy())
    return torch.arange(len(z))


def class_folders(root, z, labels):  # named as the classes of `shapes` are, which are not in the order of the alphabet
    names = ("circle", "square", "triangle")
    for i, (latent, label) in enumerate(zip(z, labels.tolist(), strict=True)):
        (root / names[label]).mkdir(exist_ok=True)
        np.save(root / names[label] / f"{i}.npy", latent[None].numpy())
    return labels.argsort(stable=True)


@pytest.mark.parametrize("lay", [npy, npz, each, class_folders])
def test_arrays_become_shards_of_our_own_that_hold_the_same(lay, theirs, tmp_path):
    z, labels = whole(theirs)
    (tmp_path / "some").mkdir()
    order = lay(tmp_path / "some", z, labels)
    tiny.run(write(tmp_path, tmp_path / "some", **NOTHING), until="latents")
    found = LatentSet(tmp_path / "run/main/latents/latents")
    stored, of = found.stored(range(48))
    assert torch.equal(stored, z[order])
    assert torch.equal(of, labels[order])
    assert torch.allclose(found.mean, z.mean((0, 2, 3)), atol=1e-5)


def test_given_statistics_normalise_where_they_are_near(theirs, tmp_path):
    """A generator that was trained elsewhere saw latents normalised by these."""
    root = tmp_path / "some"
    shutil.copytree(theirs, root)
    given = torch.load(root / "latents_stats.pt")
    given["mean"] += 0.1 * given["std"]
    given["std"][0, 0] *= 1.2
    torch.save(given, root / "latents_stats.pt")
    tiny.run(write(tmp_path, root, **NOTHING, latents={"whitening": 1.0}), until="latents")
    found, model = LatentSet(tmp_path / "run/main/latents/latents"), tmp_path / "run/main/latents/autoencoder"
    assert torch.equal(found.mean, given["mean"].flatten())
    assert torch.equal(found.std, given["std"].flatten())
    assert torch.equal(found.mean, load_tokenizer(model).latent_mean)
    z = found.__getitems__(range(48))[0].movedim(1, 0).flatten(1)
    assert (z.cov(correction=0) - torch.eye(12)).abs().max() < 0.01
    torch.save({"mean": given["mean"] + 1, "std": given["std"]}, root / "latents_stats.pt")
    look_again()
    with pytest.raises(ValueError, match=r"statistics beside the latents give channel .* they are of other latents"):
        tiny.run(write(tmp_path / "far", root, **NOTHING), until="latents")


def test_latents_of_a_run_that_whitened_them_are_whitened_as_there(from_images, tmp_path):
    """So that the generator of that run, as `generator.start_from`, sees what it was trained on."""
    tiny.run(tiny.write(tmp_path, **(PIXELS | NOTHING), latents={"whitening": 1.0}), until="latents")
    there = tmp_path / "run/main/latents"
    tiny.run(write(tmp_path / "again", there / "latents", **NOTHING), until="latents")
    here = tmp_path / "again/run/main/latents"
    a, b = (LatentSet(folder / "latents").__getitems__(range(48))[0] for folder in (there, here))
    assert torch.equal(a, b)
    assert torch.equal(*(load_tokenizer(folder / "autoencoder").whitening for folder in (there, here)))


def test_posteriors_in_some_shards_alone_are_not_drawn_from(theirs, tmp_path):
    z, labels = whole(theirs)
    (tmp_path / "some").mkdir()
    drawn = {"means": z[:20], "stds": torch.ones_like(z[:20])}
    save_file({"latents": z[:20].clone(), "labels": labels[:20]} | drawn, tmp_path / "some/a.safetensors")
    save_file({"latents": z[20:], "labels": labels[20:]}, tmp_path / "some/b.safetensors")
    tiny.run(write(tmp_path, tmp_path / "some", **NOTHING), until="latents")
    found = LatentSet(tmp_path / "run/main/latents/latents", posteriors=True)
    assert torch.equal(found.stored(range(48))[0], z)


@pytest.mark.slow
def test_a_reshaped_tokenizer_learns_from_latents_what_it_learns_from_images(own, tmp_path):
    reshaped = {
        "pretrained": {"type": "reshaped", "source": own, "layers": 2, "width": 8},
        "reference": {"teacher": False, "distribution": {"type": "gaussian"}},
        "matching": {"steps": 3, "batch_size": 16, "learning_rate": 1e-2},
    }
    for name in ("before", "images"):
        (tmp_path / name).mkdir()
    tiny.run(tiny.write(tmp_path / "before", **(PIXELS | NOTHING | {"pretrained": own})), until="latents")
    tiny.run(tiny.write(tmp_path / "images", **(PIXELS | NOTHING | reshaped)))
    there = tmp_path / "before/run/main/latents/latents"
    tiny.run(write(tmp_path / "latents", there, **(NOTHING | reshaped)))
    runs = [tmp_path / name / "run/main" for name in ("images", "latents")]
    a, b = (LatentSet(run / "latents/latents").__getitems__(range(48))[0] for run in runs)
    before = LatentSet(there).__getitems__(range(48))[0]
    assert torch.allclose(a, b, atol=1e-4), "the images' latents have other roundings, as their batches differ"
    assert (a - before).abs().max() > 0.01
    assert not (runs[1] / "latents/latents/latents-00000.safetensors").is_symlink()
    assert generator(runs[1])


def test_without_test_images_a_generator_is_trained(theirs, tmp_path):
    tiny.run(write(tmp_path, theirs, {"test": None}, evaluate=None))
    assert next((tmp_path / "run/main/sample/guidance-1").glob("samples-*"))
    assert any(
        "data.test: there are no test images" in told for told in refused(write(tmp_path, theirs, {"test": None}))
    )


def test_how_test_images_were_chosen_is_told_with_the_field_that_says_it(theirs, tmp_path):
    for name in ("circle", "square", "triangle"):
        for i in range(3):
            write_png(tmp_path / f"images/{name}/{i}.png", torch.rand(3, 12, 12))
    data = {"test": {"type": "image_folder", "root": str(tmp_path / "images")}}
    told = about_data(load(write(tmp_path, theirs, data))["main"])
    assert told.endswith("the test images are chosen by file name, about 10% of all (data.test.valid_fraction)")


def test_a_plan_counts_links_as_no_bytes_and_latents_as_latents(theirs, tmp_path, capsys):
    cli.main(["run", str(write(tmp_path, theirs, latents__dtype="float16")), "--dry-run"])
    told = capsys.readouterr().out
    assert "latents.dtype changes nothing: the shards of data.root are used as they lie" in told
    assert "48 latents and 24 test images of 3 classes" in told
    *_, row = (line for line in told.splitlines() if line.startswith("│ latents"))
    assert row.strip("│").split("│")[-1].strip() == ""


def test_a_plan_counts_mirror_images_that_become_shards_of_the_run(theirs, tmp_path):
    z, labels = (x.numpy() for x in whole(theirs))
    (tmp_path / "some").mkdir()
    np.savez(tmp_path / "some/a.npz", latents=z, latents_flip=z, labels=labels)
    recipe = load(write(tmp_path, tmp_path / "some", **NOTHING))["main"]
    assert plan._disk("latents", recipe, None, 48) == 2 * z.nbytes


def test_the_page_shows_a_run_of_links_with_their_files_and_without(theirs, tmp_path):
    root = tmp_path / "some"
    shutil.copytree(theirs, root)
    tiny.run(write(tmp_path, root, **NOTHING))
    for there in (True, False):
        if not there:
            root.rename(tmp_path / "moved")
        folder = read(tmp_path / "run", Networks(torch.device("cpu")), data=False, trust=False)
        assert folder.learned == {"main": [0, 1, 2]}
