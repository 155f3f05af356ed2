"""A pass over images that is interrupted goes on where it was, and ends with the same rows."""

import errno

import pytest
import torch

import tiny
from dmvae import cli
from dmvae.commands.measurements import measure
from dmvae.commands.score_files import read_scores
from dmvae.evaluation import passes
from dmvae.evaluation.features import Extractor
from dmvae.evaluation.images import TensorImages
from dmvae.evaluation.passes import kept_in, over_images
from dmvae.runtime.signals import Interrupted

FEATURES = ["effnet-lite0@32"]
IMAGES = TensorImages(torch.arange(10 * 12).reshape(10, 3, 2, 2).to(torch.uint8))


def rows_of(kept, stop=None, error=KeyboardInterrupt):
    """The rows of IMAGES, two at a time, and the first pixels of the batches that were computed; `error` comes in place
    of batch `stop`."""
    seen = []

    def compute(batch):
        if len(seen) == stop:
            raise error
        seen.append(int(batch[0, 0, 0, 0]))
        return {"mean": batch.float().mean((1, 2, 3)), "pixels": batch.flatten(1)}

    return over_images(IMAGES, 2, compute, "", kept), seen


def test_an_interrupted_pass_goes_on(tmp_path):
    whole, seen = rows_of(None)
    kept = kept_in(tmp_path, "these")
    for stop in (2, 1):
        with pytest.raises(Interrupted):
            rows_of(kept, stop)
    again, rest = rows_of(kept)
    assert rest == seen[3:]
    assert {name: values.tolist() for name, values in again.items()} == {
        name: values.tolist() for name, values in whole.items()
    }
    assert rows_of(kept_in(tmp_path, "others"))[1] == seen


def test_of_a_pass_that_is_killed_a_minute_is_lost(tmp_path, monkeypatch):
    _, seen = rows_of(None)
    with pytest.raises(RuntimeError):
        rows_of(tmp_path / "a", 3, RuntimeError)
    assert rows_of(tmp_path / "a")[1] == seen  # no minute had passed
    monkeypatch.setattr(passes, "EVERY", 0.0)
    with pytest.raises(RuntimeError):
        rows_of(tmp_path / "b", 3, RuntimeError)
    assert rows_of(tmp_path / "b")[1] == seen[3:]


def test_parts_that_cannot_be_read_or_written_cost_time_alone(tmp_path, monkeypatch):
    whole, seen = rows_of(None)
    monkeypatch.setattr(passes, "EVERY", 0.0)
    with pytest.raises(RuntimeError):
        rows_of(tmp_path, 3, RuntimeError)
    part = tmp_path / "0-of-1/rows-000000002.safetensors"
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.warns(UserWarning, match=r"rows-000000002.*its images are measured anew"):
        again, rest = rows_of(tmp_path)
    assert rest == seen[1:]
    assert torch.equal(again["pixels"], whole["pixels"])

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(passes, "write_sealed", full)
    with pytest.warns(UserWarning, match="cannot be kept .*No space left.*begins anew") as told:
        again, _ = rows_of(tmp_path / "full")
    assert len(told) == 1
    assert torch.equal(again["pixels"], whole["pixels"])
    with pytest.warns(UserWarning, match="cannot be kept"), pytest.raises(KeyboardInterrupt) as stopped:
        rows_of(tmp_path / "full", 3)
    assert not isinstance(stopped.value, Interrupted)


@pytest.fixture
def stopped(monkeypatch):
    """stopped(n): how many batches of features each later call takes up, as a list; n of them, then comes Ctrl-C."""
    heads = Extractor.heads

    def after(n):
        seen = []

        def counted(self, images):
            if len(seen) == n:
                raise KeyboardInterrupt
            seen.append(len(images))
            return heads(self, images)

        monkeypatch.setattr(Extractor, "heads", counted)
        return seen

    return after


@pytest.mark.slow
def test_a_measurement_goes_on_with_the_same_command(folders, cache, stopped, capsys):
    """Sixty images a side, twenty at a time: it is stopped among those of the reference, and among the others."""
    words = ["measure", "folder", *folders, "--features", *FEATURES, "--batch-size", "20", "--workers", "0"]
    whole = measure("folder", folders, features=FEATURES, batch_size=20, fresh=True)["metrics"]
    for batches in (1, 3):
        stopped(batches)
        with pytest.raises(SystemExit, match="130"):
            cli.main(words)
        assert "stopped; the state was saved, the same command goes on" in capsys.readouterr().err
        assert list(cache.rglob("parts-*"))
    seen = stopped(100)
    assert measure("folder", folders, features=FEATURES, batch_size=20)["metrics"] == whole
    assert seen == [20, 20]
    assert not list(cache.rglob("parts-*"))
    stopped(1)
    with pytest.raises(Interrupted):  # what is measured is measured again, once its scores are there
        measure("folder", folders, features=FEATURES, batch_size=20)


@pytest.mark.slow
def test_the_stage_goes_on_too(tmp_path, stopped, monkeypatch):
    """Eight at a time: three batches of images, three of reconstructions, two of samples."""
    monkeypatch.setattr(passes, "EVERY", 0.0)
    done = []
    for name, stops in (("at once", ()), ("with stops", (4, 3))):
        (tmp_path / name).mkdir()
        path = tiny.begin(tiny.write(tmp_path / name, evaluate__batch_size=8), "sample", "kl")
        for batches in stops:
            stopped(batches)
            with pytest.raises(Interrupted):
                tiny.run(path, "kl")
        seen = stopped(100)
        done.append(tiny.run(path, "kl")[-1].folder)
    assert len(seen) == 1
    assert not list(done[1].glob("parts-*"))
    first, second = (read_scores(folder / "metrics.json")["metrics"] for folder in done)
    assert first == second
    assert (done[0] / "pictures.safetensors").read_bytes() == (done[1] / "pictures.safetensors").read_bytes()
