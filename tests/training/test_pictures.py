"""Pictures while a stage trains: what they show, and that the training does not see them."""

import io
import sys
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from steps import trainer_of
from torchvision.transforms.v2.functional import pil_to_tensor

import tiny
from dmvae.datasets.pixels import as_input, to_uint8
from dmvae.generators import load_generator
from dmvae.inputs import Inputs
from dmvae.models.dit import LightningDiT
from dmvae.runtime.done import damage, read_done
from dmvae.stages.tokenizer import TokenizerStage
from dmvae.tokenizers.adapted import load_tokenizer
from dmvae.training.logging import Figures
from dmvae.training.pictures import write_picture

EVERY = {"run__picture_every": 3}
CPU = torch.device("cpu")


def tiles(path, size=12):
    """The images of a picture, uint8 [rows, columns, 3, size, size]."""
    picture, cell = pil_to_tensor(Image.open(path))[:, 2:, 2:], size + 2
    rows = [row[:, :size] for row in picture.split(cell, 1)]
    return torch.stack([torch.stack([x[..., :size] for x in row.split(cell, 2)]) for row in rows])


def steps_of(folder):
    return sorted(file.name for file in folder.glob("pictures/*"))


@pytest.mark.slow
def test_they_show_the_averaged_networks_and_change_nothing(tmp_path, monkeypatch):
    asked, draw = [], LightningDiT.sample

    def sample(self, noise, labels, settings, normal=None):
        asked.append((noise, labels, settings))
        return draw(self, noise, labels, settings, normal)

    monkeypatch.setattr(LightningDiT, "sample", sample)
    own = {"sample__guidance": [1.5, 1.0], "sample__steps": 40, "run__precision": "float32", "generator__ema": 0.5}
    found = {}
    for name, more in (("without", {}), ("with", EVERY)):
        (tmp_path / name).mkdir()
        path = tiny.write(tmp_path / name, **own, **more)
        jobs = {job.stage.name: job for job in tiny.run(path, "kl", until="generator")}
        found[name] = tiny.weights(tmp_path / name / "run")
    assert found["with"].keys() == found["without"].keys()
    assert all(torch.equal(tensor, found["without"][key]) for key, tensor in found["with"].items())
    assert steps_of(next(tmp_path.glob("without/run/stages/tokenizer-*"))) == []
    for stage in ("tokenizer", "generator"):
        assert steps_of(jobs[stage].folder) == ["step-00000003.png", "step-00000006.png"]
        facts = read_done(jobs[stage].folder)
        assert not [name for name in facts["files"] if name.startswith("pictures")]
        (jobs[stage].folder / "pictures/step-00000003.png").unlink()
        assert damage(jobs[stage].folder, facts) is None, "who removes a picture trains nothing anew"

    inputs = Inputs(jobs["sample"].recipe, "kl", tmp_path, {}, CPU)
    originals, copies = tiles(jobs["tokenizer"].folder / "pictures/step-00000006.png")
    assert torch.equal(originals, torch.stack([torch.as_tensor(inputs.test_set[i][0]) for i in range(8)]))
    finished = load_tokenizer(jobs["tokenizer"].folder / "autoencoder").eval()
    with torch.no_grad():
        again = finished.decode(finished.encode(as_input(originals, CPU)).latents).sample
        assert torch.equal(copies, to_uint8(again)), "the last step's are those of the tokenizer that is saved"

        (noise, labels, settings), (others, theirs, _) = asked
        assert torch.equal(noise, others), "pictures of two steps start from the same noise"
        assert torch.equal(labels, theirs)
        assert labels.tolist() == [0, 0, 1, 1, 1, 1, 2, 2] * 4
        assert (settings.guidance, settings.steps) == (1.5, 25)
        z = draw(load_generator(jobs["generator"].folder / "generator").eval(), noise, labels, settings)
        tokenizer = load_tokenizer(jobs["latents"].folder / "autoencoder").eval()
        drawn = to_uint8(tokenizer.decode(tokenizer.denormalize(z)).sample)
    shown = tiles(jobs["generator"].folder / "pictures/step-00000006.png")
    assert shown.shape[:2] == (4, 8)
    assert torch.equal(shown.flatten(0, 1), drawn)


@pytest.mark.slow
def test_a_matching_that_is_watched_ends_in_the_same_weights(tmp_path):
    """Its tokenizer is finished for each picture: samples of the reference are assigned anew."""
    edited = {"noise": "assigned", "noise_groups": 4, "noise_bank": 16, "noise_width": 8, "balance": "gradient"}
    over = {f"matching__{name}": value for name, value in edited.items()}
    found = []
    for name, every in (("without", 0), ("with", 4)):
        (tmp_path / name).mkdir()
        jobs = tiny.run(tiny.write(tmp_path / name, **over, run__picture_every=every), "matched", until="decoder")
        found.append(tiny.weights(tmp_path / name / "run"))
    assert all(torch.equal(tensor, found[0][key]) for key, tensor in found[1].items())
    shown = {job.stage.name: steps_of(job.folder) for job in jobs if steps_of(job.folder)}
    both = ["step-00000004.png", "step-00000008.png"]
    assert shown == {"tokenizer": both[:1], "matching": both, "decoder": both[:1]}


@pytest.mark.parametrize("stage", ["tokenizer", "decoder"])
def test_a_picture_that_cannot_be_made_is_told_and_changes_nothing(tmp_path, monkeypatch, stage):
    trainer = trainer_of(tmp_path, stage)
    trainer.inputs.out, trainer.step = tmp_path, 1000
    modes = [module.training for module in trainer.networks.modules()]
    before = {name: tensor.clone() for name, tensor in trainer.networks.state_dict().items()}

    def write():
        figures = Figures(tmp_path, "none", 0, "")
        write_picture(trainer, figures)

    (tmp_path / "pictures").write_text("in its place")
    with pytest.warns(UserWarning, match=r"pictures/step-00001000\.png: no picture \(.*; the training goes on"):
        write()
    (tmp_path / "pictures").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(type(trainer.stage), "picture", lambda self, network: torch.empty(0).max())
        with pytest.warns(UserWarning, match=r"step-00001000\.png: no picture \(max\(\)"):
            write()
    write()
    assert steps_of(tmp_path) == ["step-00001000.png"]
    assert [module.training for module in trainer.networks.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.networks.state_dict().items())


@pytest.mark.slow
def test_pictures_of_before_a_kill_stay(tmp_path):
    path = tiny.write(tmp_path, run__save_every=3, **EVERY)
    with tiny.cut(TokenizerStage, 4):
        tiny.run(path, "kl", "tokenizer")
    (folder,) = tmp_path.glob("run/stages/tokenizer-*")
    written = (folder / "pictures/step-00000003.png").stat().st_mtime_ns
    tiny.run(path, "kl", "tokenizer")
    assert steps_of(folder) == ["step-00000003.png", "step-00000006.png"]
    assert (folder / "pictures/step-00000003.png").stat().st_mtime_ns == written


def test_trackers_get_them(tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    picture = torch.zeros(3, 4, 6, dtype=torch.uint8)
    picture[0] = 200
    rows = []
    run = SimpleNamespace(log=rows.append, finish=lambda: None, define_metric=lambda *a, **named: None)
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **named: run, Image=lambda image: image))
    for tracker in ("tensorboard", "wandb", "none"):
        figures = Figures(tmp_path, tracker, 0, "x")
        figures.show(20, picture)
        figures.close()
    (event,) = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Images("picture")
    assert event.step == 20
    assert torch.equal(pil_to_tensor(Image.open(io.BytesIO(event.encoded_image_string))), picture)
    (row,) = rows
    assert row["step"] == 20
    assert torch.equal(pil_to_tensor(row["picture"]), picture)
