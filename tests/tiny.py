"""A recipe small enough to run every stage in seconds, and how to run it in this process; `processes` has others."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

from dmvae import Autoencoder, pipeline
from dmvae import config as configs
from dmvae.jobs import plan
from dmvae.recipe import load
from dmvae.runtime.joined import joined
from dmvae.runtime.yaml_text import as_yaml

DIT = {"width": 16, "depth": 1, "heads": 2}
RECIPE = {
    "name": "tiny",
    "run": {"save_every": 100, "log_every": 2, "tracker": "none"},
    "data": {"type": "shapes", "size": 12, "channels": 3, "num_classes": 3, "count": 48, "test_count": 24},
    "autoencoder": {
        "encoder": {"type": "conv", "width": 8, "multipliers": [1, 2], "blocks": 0, "stride": 4, "out_channels": 8},
        "latent_channels": 4,
        "bottleneck_width": 8,
        "decoder_width": 8,
        "decoder_multipliers": [1, 2],
        "decoder_blocks": 0,
        "decoder_attention": False,
    },
    "losses": {"adversarial": {"width": 4, "layers": 1, "norm": "none", "start": 0.5}},
    "encoder": {"steps": 4, "batch_size": 16},
    "tokenizer": {"steps": 6, "batch_size": 8},
    "reference": {"steps": 6, "batch_size": 8, "model": DIT},
    "matching": {"objective": {"type": "dmd"}, "steps": 8, "batch_size": 8, "student_steps": 2, "health_every": 1},
    "decoder": {"steps": 4, "batch_size": 8},
    "generator": {"steps": 6, "batch_size": 8, "model": DIT},
    "sample": {"count": 12, "batch_size": 6, "steps": 2},
    "evaluate": {"count": 24, "batch_size": 12, "features": {"type": "effnet-lite0", "resolution": 32}},
    "variants": {
        "matched": {},
        "kl": {
            "autoencoder": {"variational": True},
            "encoder": None,
            "reference": None,
            "matching": None,
            "decoder": None,
            "tokenizer": {"train_encoder": True, "kl_weight": 1e-3},
        },
    },
}


def write(folder: Path, **over) -> Path:
    """The recipe with dotted overrides (a__b=1 is a.b: 1), as a file whose run folder is folder/run. `variants` stand
    in place of the recipe's own."""
    values = configs.merge(RECIPE, {"run.dir": str(folder / "run")})
    if "variants" in over:
        values.pop("variants")
    values = configs.merge(values, {key.replace("__", "."): value for key, value in over.items()})
    path = folder / "recipe.yaml"
    path.write_text(as_yaml(values))
    return path


def run(path: Path, variant: str | None = None, only: str | None = None, until: str | None = None):
    """Run the recipe here; `until` leaves out the stages after that one. Returns its jobs."""
    recipes = load(path)
    if variant:
        recipes = {variant: recipes[variant]}
    run_dir = Path(next(iter(recipes.values())).run.dir)
    if until is None:
        return pipeline.run(recipes, run_dir, only)
    jobs = plan(recipes, run_dir)
    names = [job.stage.name for job in jobs]
    for name in names[: names.index(until) + 1]:
        pipeline.run(recipes, run_dir, name)
    return jobs


_TRAINED = tempfile.TemporaryDirectory()


def begin(path: Path, until: str, variant: str | None = None) -> Path:
    """Finish the recipe's stages up to that one, for tests of what comes after them: each is trained once in a process
    for all recipes in which it is the same, and copied from then on. Section `run`, such as its precision, is then that
    of the first. Returns the path."""
    recipes = load(path)
    for name, recipe in ({variant: recipes[variant]} if variant else recipes).items():
        for job in plan({name: recipe}, Path(recipe.run.dir)):
            kept = Path(_TRAINED.name, job.folder.name)
            if not kept.exists():
                pipeline.run({name: recipe}, Path(recipe.run.dir), job.stage.name)
                shutil.copytree(job.folder, kept)
            elif not job.finished:
                shutil.copytree(kept, job.folder)
            if job.stage.name == until:
                break
    return path


def on_rank(rank: int, path: Path) -> None:
    """Run the recipe as one of several ranks: for `processes.on_ranks`."""
    with joined():
        run(path)


@contextmanager
def cut(stage: type, step: int, saved: bool = True) -> Iterator[None]:
    """What trains the stage in the block is to end at that step, before its first update, as by a power cut: if `saved`
    after a checkpoint, so give a `run.save_every`."""
    updates, folders = stage.updates, []

    def ends(self, networks, batch, rng):
        if batch.step == step:
            folders.append(self.inputs.out)
            raise RuntimeError("power cut")
        yield from updates(self, networks, batch, rng)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "updates", ends)
        with pytest.raises(RuntimeError, match="power cut"):
            yield
    found = [checkpoint for folder in folders for checkpoint in folder.glob("checkpoints/step-*")]
    assert folders
    assert bool(found) == saved, found


def apply(trainer, update) -> dict:
    """One update as the loop does it; its figures."""
    trainer.backward(update)
    return update.figures() | trainer.move(update.trains)


def folders_of(path: Path) -> dict[str, str]:
    """Stage -> the name of its folder, with its fingerprint."""
    recipes = load(path)
    return {job.stage.name: job.folder.name for job in plan({"main": recipes["main"]}, Path("run"))}


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    """Every tensor of every network that the run saved: VARIANT/STAGE/NETWORK/NAME -> tensor."""
    from safetensors.torch import load_file

    return {
        f"{file.parent.relative_to(run_dir)}/{name}": tensor
        for variant in sorted(run_dir.iterdir())
        if variant.is_dir() and variant.name != "stages"
        for stage in sorted(variant.iterdir())
        if stage.is_dir()
        for file in sorted(stage.glob("*/*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def variational(folder: Path, std: torch.Tensor) -> Path:
    """The folder, with a variational tokenizer whose posteriors all have this spread [4], per channel."""
    torch.manual_seed(0)
    decoder = {"type": "conv", "width": 8, "multipliers": [1, 2], "blocks": 0, "attention": False}
    shape = {"latent_channels": 4, "bottleneck_width": 0, "variational": True}
    model = Autoencoder(encoder=RECIPE["autoencoder"]["encoder"], image_size=12, decoder=decoder, **shape)
    (linear,) = model.bottleneck
    nn.init.zeros_(linear.weight[4:])
    linear.bias.data[4:] = 2 * std.log()
    model.save_pretrained(folder)
    return folder
