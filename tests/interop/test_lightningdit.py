"""Latents for LightningDiT's trainer, held against what its reader does with a folder; its checkpoint's way back."""

import random
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file
from torch.utils.data import DataLoader

import tiny
from dmvae import Autoencoder, cli
from dmvae.commands import lightningdit
from dmvae.latents.store import LatentSet
from dmvae.models.dit import LightningDiT

TRAINED = ("encoder", "tokenizer", "reference", "matching", "decoder", "autoencoder", "variants", "evaluate")
PIXELS = dict.fromkeys(TRAINED) | {"pretrained": {"type": "identity", "patch": 2}, "run__precision": "float32"}
"""Latents without a training: 2x2 pixels of 3 colours are 12 channels at 6x6."""


class TheirReader:
    """What `ImgLatentDataset` of LightningDiT does with a folder."""

    def __init__(self, folder, multiplier=1.0):
        self.multiplier, self.items = multiplier, []
        for file in sorted(str(path) for path in Path(folder).glob("*.safetensors")):
            with safe_open(file, "pt") as held:
                (count,) = held.get_slice("labels").get_shape()
            self.items += [(file, i) for i in range(count)]
        statistics = torch.load(Path(folder) / "latents_stats.pt", weights_only=True)
        self.mean, self.std = statistics["mean"], statistics["std"]

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.read(index, random.choice(["latents", "latents_flip"]))

    def read(self, index, name):
        file, i = self.items[index]
        with safe_open(file, "pt") as held:
            z, label = held.get_slice(name)[i : i + 1], held.get_slice("labels")[i : i + 1]
        return ((z - self.mean) / self.std * self.multiplier).squeeze(0), label.squeeze(0)


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """The folder of a finished stage `latents`, by whether it has mirror images; three shards, float16."""
    found = {}
    for mirrored in (True, False):
        folder = tmp_path_factory.mktemp(f"mirrored-{mirrored}")
        stored = {"dtype": "float16", "shard_size": 20, "mirrored": mirrored}
        tiny.run(tiny.write(folder, **PIXELS, latents=stored), until="latents")
        found[mirrored] = folder / "run/main/latents"
    return found


def export(stage, out, *options):
    cli.main(["export", "lightningdit-latents", str(stage), "--out", str(out), *options])


def test_their_reader_finds_our_own_sets_items(stages, tmp_path, capsys):
    export(stages[True], tmp_path / "theirs")
    files = [f"latents_rank00_shard{i:03d}.safetensors" for i in range(3)]
    assert sorted(path.name for path in (tmp_path / "theirs").iterdir()) == [*files, "latents_stats.pt"]
    config = yaml.safe_load("data:" + capsys.readouterr().out.partition("data:")[2])
    assert config["data"] == {
        "data_path": str(tmp_path / "theirs"),
        "image_size": 12,
        "num_classes": 3,
        "latent_norm": True,
        "latent_multiplier": 1.0,
    }
    assert (config["vae"]["downsample_ratio"], config["model"]["in_chans"]) == (2, 12)
    reader = TheirReader(config["data"]["data_path"], config["data"]["latent_multiplier"])
    plain, mirrored = LatentSet(stages[True] / "latents"), LatentSet(stages[True] / "mirrored")
    assert len(reader) == len(plain) == 48
    assert reader.mean.shape == reader.std.shape == (1, 12, 1, 1)
    for name, ours in (("latents", plain), ("latents_flip", mirrored)):
        stored, labels = ours.stored(range(48))
        read = [reader.read(i, name) for i in range(48)]
        z = torch.stack([z for z, _ in read])
        assert torch.equal(torch.stack([label for _, label in read]), labels)
        assert z.dtype == torch.float32
        assert torch.equal(z, plain.normalise(stored)), "as our own generator sees it"
    z, labels = next(iter(DataLoader(reader, batch_size=48)))
    assert (z.shape, labels.dtype) == ((48, 12, 6, 6), torch.int64)


def test_images_that_must_not_be_mirrored_stand_there_twice(stages, tmp_path):
    export(stages[False], tmp_path / "theirs", "--unmirrored")
    plain = LatentSet(stages[False] / "latents")
    for i, shard in enumerate(plain.shards):
        held = load_file(tmp_path / f"theirs/latents_rank00_shard{i:03d}.safetensors")
        assert torch.equal(held["latents"], shard)
        assert torch.equal(held["latents_flip"], shard)


def test_of_drawn_latents_it_is_the_stored_sample(tmp_path):
    torch.manual_seed(0)
    decoder = {"type": "conv", "width": 8, "multipliers": [1, 2], "blocks": 0, "attention": False}
    shape = {"latent_channels": 4, "bottleneck_width": 0, "variational": True, "image_size": 12}
    Autoencoder(encoder=tiny.RECIPE["autoencoder"]["encoder"], decoder=decoder, **shape).save_pretrained(tmp_path / "v")
    source = {"pretrained": {"type": "dmvae", "path": str(tmp_path / "v")}}
    tiny.run(tiny.write(tmp_path, **(PIXELS | source), latents={"drawn": True, "mirrored": True}), until="latents")
    stage = tmp_path / "run/main/latents"
    export(stage, tmp_path / "theirs")
    held = load_file(tmp_path / "theirs/latents_rank00_shard000.safetensors")
    stored = load_file(stage / "latents/latents-00000.safetensors")
    assert held.keys() == {"latents", "latents_flip", "labels"}
    assert torch.equal(held["latents"], stored["latents"])
    assert not torch.equal(held["latents"], stored["means"])


def test_whitened_ones_are_what_our_own_generator_sees(tmp_path):
    recipe = tiny.write(tmp_path, **PIXELS, latents={"whitening": 1.0, "mirrored": True})
    tiny.run(recipe, until="latents")
    stage = tmp_path / "run/main/latents"
    export(stage, tmp_path / "theirs")
    held = load_file(tmp_path / "theirs/latents_rank00_shard000.safetensors")
    statistics = torch.load(tmp_path / "theirs/latents_stats.pt", weights_only=True)
    ours = LatentSet(stage / "latents")
    assert torch.equal(
        (held["latents"] - statistics["mean"]) / statistics["std"], ours.__getitems__(range(len(ours)))[0]
    )
    flipped = load_file(stage / "mirrored/latents-00000.safetensors")["latents"]
    assert torch.equal(held["latents_flip"], ours.normalise(flipped))


def test_what_cannot_be_exported_is_told_and_nothing_is_replaced(stages, tmp_path, capsys):
    def told(stage, out, *options):
        with pytest.raises(SystemExit) as stop:
            export(stage, out, *options)
        assert stop.value.code == 2
        return capsys.readouterr().err

    new, other = tmp_path / "new", tmp_path / "other"
    other.mkdir()
    (other / "more.safetensors").touch()
    plain = told(stages[False], new)
    assert "again with latents.mirrored: true (data of the type latents: with files that hold latents_flip), " in plain
    assert "which --unmirrored would leave out" in told(stages[True], new, "--unmirrored")
    assert "no finished stage `latents`" in told(stages[True] / "latents", new)
    tiny.run(tiny.write(tmp_path, **PIXELS, latents={"stored": 24}), until="latents")
    assert "learn from these alone; run the stage" in told(tmp_path / "run/main/latents", new, "--unmirrored")
    assert "holds 'more.safetensors', and nothing is replaced" in told(stages[True], other)
    assert "and nothing is replaced" in told(stages[True], stages[True])
    assert not new.exists()
    with pytest.raises(SystemExit):
        cli.main(["export", "adm-samples", str(tmp_path), "--out", f"{tmp_path}/a.npz", "--unmirrored"])
    assert "--unmirrored is of lightningdit-latents" in capsys.readouterr().err


def test_a_folder_is_whole_or_not_there(stages, tmp_path, monkeypatch):
    (tmp_path / "theirs.7-5eed.part/theirs").mkdir(parents=True)  # of a killed process

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(lightningdit.torch, "save", full)
        with pytest.raises(SystemExit):
            export(stages[True], tmp_path / "theirs")
    assert not [*tmp_path.iterdir()]
    export(stages[True], tmp_path / "theirs")
    assert len(TheirReader(tmp_path / "theirs")) == 48


def checkpoint(file, network):
    """A network in a file as their `train.py` saves it."""
    tables = {"cos": network.rope_cos, "sin": network.rope_sin.unflatten(-1, (-1, 2)) * torch.tensor([-1, 1])}
    constants = {f"feat_rope.freqs_{name}": table.reshape(len(table), -1) for name, table in tables.items()}
    ema = network.state_dict() | constants
    moments = {"step": torch.tensor(3.0), "exp_avg": torch.zeros(2), "exp_avg_sq": torch.zeros(2)}
    optimizer = {"state": {0: moments}, "param_groups": [{"lr": 2e-4, "betas": (0.9, 0.95), "params": [0]}]}
    config = {"ckpt_path": None, "data": {"latent_norm": True, "num_classes": 3}, "train": {"max_steps": 10}}
    model = {name: value + 1 if "feat_rope" not in name else value for name, value in ema.items()}
    torch.save({"model": model, "ema": ema, "opt": optimizer, "config": config}, file)


def test_what_they_trained_is_a_row_like_any_other(tmp_path):
    """Their checkpoint is imported; one step at learning rate 0 makes it the run's generator, which is sampled."""
    torch.manual_seed(0)
    shape = {"in_channels": 12, "input_size": 6, "num_classes": 3}
    network = LightningDiT(**shape, **tiny.DIT, patch_size=1, mlp_ratio=4.0, qk_norm=False)
    for weights in network.parameters():  # a new one's output is 0
        torch.nn.init.normal_(weights, std=0.1)
    checkpoint(tmp_path / "0000010.pt", network)
    theirs = tmp_path / "theirs"
    cli.main(["import", "official-generator", str(tmp_path / "0000010.pt"), "--out", str(theirs)])
    model = tiny.DIT | {"qk_norm": False}
    frozen = {"start_from": str(theirs), "steps": 1, "learning_rate": 0, "batch_size": 8, "model": model}
    tiny.run(tiny.write(tmp_path, **PIXELS, generator=frozen))
    made = LightningDiT.from_pretrained(tmp_path / "run/main/generator/generator").state_dict()
    assert all(torch.equal(made[name], value) for name, value in network.state_dict().items())
    drawn = load_file(tmp_path / "run/main/sample/guidance-1/samples-00000.safetensors")
    assert drawn["images"].float().std() > 10
