"""Latents that were encoded elsewhere, by the ordinary stages: the generator that images give, without the images."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import tiny
from dmvae import checks, cli
from dmvae.commands.serve import read
from dmvae.datasets import look_again
from dmvae.datasets.image_file import write_png
from dmvae.jobs import plan
from dmvae.latents.store import LatentSet
from dmvae.pipeline import about_data
from dmvae.recipe import load
from dmvae.serve.folder import Networks
from dmvae.stages.generator import GeneratorStage
from dmvae.tokenizers.adapted import load_tokenizer

TRAINED = ("encoder", "tokenizer", "reference", "matching", "decoder", "autoencoder", "variants")
PIXELS = dict.fromkeys(TRAINED) | {"pretrained": {"type": "identity", "patch": 2}, "run__precision": "float32"}
"""Latents without a training: 2x2 pixels of 3 colours are 12 channels at 6x6."""
IMAGES = {"type": "shapes", "num_classes": 3, "count": 48, "test_count": 24}
TRAINED_FURTHER = {name: {"steps": 8, "batch_size": 8} for name in ("tokenizer", "reference", "matching")}
NOTHING = {"evaluate": None, "sample": None}


@pytest.fixture(scope="module")
def from_images(tmp_path_factory) -> tuple[Path, Path]:
    """(a variant's folder of a run on images, what `dmvae export lightningdit-latents` made of its latents)."""
    folder = tmp_path_factory.mktemp("images")
    tiny.run(tiny.write(folder, **PIXELS, latents={"mirrored": True, "shard_size": 20}))
    cli.main(["export", "lightningdit-latents", str(folder / "run/main/latents"), "--out", str(folder / "theirs")])
    return folder / "run/main", folder / "theirs"


@pytest.fixture
def theirs(from_images) -> Path:
    return from_images[1]


@pytest.fixture
def own(tmp_path) -> dict[str, str]:
    """A tokenizer that can be trained further."""
    return {"type": "dmvae", "path": str(tiny.variational(tmp_path / "own", torch.full((4,), 0.1)))}


def write(folder: Path, root: Path, data=None, **over) -> Path:
    """A recipe of latents at `root`."""
    folder.mkdir(exist_ok=True)
    path = tiny.write(folder, **(PIXELS | over))
    recipe = yaml.safe_load(path.read_text())
    recipe["data"] = {"type": "latents", "root": str(root), "size": 12, "test": IMAGES} | (data or {})
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


def generator(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "generator/generator/diffusion_pytorch_model.safetensors")


def alike(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def whole(theirs: Path, tensor="latents") -> tuple[torch.Tensor, torch.Tensor]:
    shards = [load_file(path) for path in sorted(theirs.glob("*.safetensors"))]
    return torch.cat([shard[tensor] for shard in shards]), torch.cat([shard["labels"] for shard in shards])


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
    torch.save(given, root / "latents_stats.pt")
    tiny.run(write(tmp_path, root, **NOTHING, latents={"whitening": 1.0}), until="latents")
    found, model = LatentSet(tmp_path / "run/main/latents/latents"), tmp_path / "run/main/latents/autoencoder"
    assert torch.equal(found.mean, given["mean"].flatten())
    assert torch.equal(found.mean, load_tokenizer(model).latent_mean)
    z = found.__getitems__(range(48))[0].movedim(1, 0).flatten(1)
    assert torch.corrcoef(z).fill_diagonal_(0).abs().max() < 0.01
    torch.save({"mean": given["mean"] + 1, "std": given["std"]}, root / "latents_stats.pt")
    look_again()
    with pytest.raises(ValueError, match=r"statistics beside the latents give channel .* they are of other latents"):
        tiny.run(write(tmp_path / "far", root, **NOTHING), until="latents")


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


def refused(path: Path) -> list[str]:
    """What is wrong with a recipe before it runs."""
    recipe = load(path)["main"]
    try:
        plan({"main": recipe}, Path(recipe.run.dir))
        return list(checks.problems(recipe, recipe.stages()))
    except ValueError as error:
        return [str(error)]


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


def test_the_page_shows_a_run_of_links_with_their_files_and_without(theirs, tmp_path):
    root = tmp_path / "some"
    shutil.copytree(theirs, root)
    tiny.run(write(tmp_path, root, **NOTHING))
    for there in (True, False):
        if not there:
            root.rename(tmp_path / "moved")
        folder = read(tmp_path / "run", Networks(torch.device("cpu")), data=False, trust=False)
        assert folder.learned == {"main": [0, 1, 2]}


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
