"""A finished run with damaged files: commands name them or make them anew, and nothing of them is used."""

import shutil

import pytest
import torch
from safetensors.torch import load, load_file

import processes
import tiny
from dmvae import cli, pipeline
from dmvae.interop.pipeline import DMVAEPipeline
from dmvae.library import Run
from dmvae.runtime.done import damage, read_done
from hostile import flip


@pytest.mark.slow
def test_whatever_is_damaged_at_once_is_made_anew(tmp_path, capsys):
    """What of a stage's files is whole is kept, and no other."""
    path = tiny.write(tmp_path, run__precision="float32", latents__shard_size=16, sample__count=12)
    jobs = {job.stage.name: job for job in tiny.run(path, "matched")}
    below = {"reference": "latents", "latents": "latents", "sample": "guidance-1"}
    files = [file for name, part in below.items() for file in sorted((jobs[name].folder / part).glob("*-0*"))]
    before = {file: load(file.read_bytes()) for file in files}  # not mapped, as the files are written to
    assert len(files) == 8
    for file in files:
        if file != jobs["reference"].folder / "latents/latents-00002.safetensors":
            flip(file)
    capsys.readouterr()
    tiny.run(path, "matched")
    out = capsys.readouterr().out
    assert "latents-00000.safetensors is corrupt, 1 other file too; the stage is run again" in out
    assert "latents-00000.safetensors is corrupt, 2 other files too; the stage is run again" in out
    for file, tensors in before.items():
        again = load_file(file)
        assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items()), file
    assert not [job for job in jobs.values() if damage(job.folder, read_done(job.folder))]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished run's recipe, with all that its stages write in parts."""
    mixture = {"type": "mixture", "fit": {"type": "features", "reduction": "pca"}}
    over = {"variants": {"main": {}}, "encoder": None, "decoder": None, "tokenizer__train_encoder": True}
    over |= {"reference__distribution": mixture, "matching__model": tiny.DIT, "latents__shard_size": 16}
    path = tiny.write(tmp_path_factory.mktemp("made"), **over)
    tiny.run(path, until="sample")
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    "torn",
    [
        ["reference/latents/latents-00001"],
        ["reference/latents/statistics"],
        ["reference/reduction", "reference/latents/statistics"],
        ["reference/initial/statistics"],
        ["reference/mixture"],
        ["latents/latents/statistics"],
        ["sample/guidance-1/samples-00000"],
    ],
    ids=lambda torn: torn[0],
)
def test_a_torn_file_of_an_unfinished_stage_is_made_anew(made, torn):
    files = [made.parent / f"run/main/{name}.safetensors" for name in torn]
    good = [load(file.read_bytes()) for file in files]
    for file in files:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    stage = torn[0].partition("/")[0]
    (made.parent / "run/main" / stage / "done.json").unlink()
    tiny.run(made, only=stage)
    for file, before in zip(files, good, strict=True):
        again = load(file.read_bytes())
        assert again.keys() == before.keys()
        assert all(torch.equal(again[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("options", [[], ["--no-verify"]])
def test_the_check_of_finished_stages_can_be_left_out(tmp_path, monkeypatch, options):
    asked = []
    monkeypatch.setattr(pipeline, "run", lambda *_, verify, **__: asked.append(verify) or [])
    monkeypatch.setattr("dmvae.commands.run.finish", lambda *_: None)
    cli.main(["run", str(tiny.write(tmp_path)), *options])
    assert asked == [not options]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*log.jsonl, line 1 is damaged")
def test_a_run_s_table_and_pipeline_are_as_they_were_written(tmp_path, capsys, plain_report):
    """Whatever is damaged in a finished run: `report` names it, `run` makes it anew."""
    over = {"encoder": None, "tokenizer__train_encoder": True, "variants": None, "matching": None, "reference": None}
    path, run_dir = tiny.write(tmp_path, **over), tmp_path / "run"
    first = processes.command("run", str(path), **processes.PLAIN)
    assert first.returncode == 0, first.stderr
    shutil.copytree(run_dir, tmp_path / "good", symlinks=True)
    named = {
        "main/evaluate/pictures.safetensors": "pictures.safetensors is corrupt",
        "main/evaluate/metrics.json": "metrics.json is corrupt",
        "main/latents/autoencoder/config.json": "config.json is corrupt",
        "variants.json": "variants.json is damaged",
    }
    for name, told in named.items():
        flip(run_dir / name, 0)
        with pytest.raises(SystemExit) as stop:
            cli.main(["report", str(run_dir)])
        assert stop.value.code == 2
        assert told in capsys.readouterr().err
        shutil.copy2(tmp_path / "good" / name, run_dir / name)
    again = (
        *("transformer/diffusion_pytorch_model.safetensors", "transformer/config.json", "vae/config.json"),
        *("scheduler/scheduler_config.json", "model_index.json"),
    )
    shutil.move(run_dir / "main/latents/done.json", tmp_path / "done.json")
    cli.main(["report", str(run_dir)])  # the pipeline that is there stays
    assert "pipeline: none of main, because its stage latents is not finished" in capsys.readouterr().out
    shutil.move(tmp_path / "done.json", run_dir / "main/latents/done.json")
    files = [*named, *(f"main/pipeline/{name}" for name in again)]
    finished = Run(run_dir)
    for name in (*files, "summary.json", "main/tokenizer/log.jsonl"):
        flip(run_dir / name, 0)
    with pytest.raises(ValueError, match=r"summary.json is damaged"):
        _ = finished.summary
    with pytest.raises(ValueError, match=r"pipeline/\S+ is corrupt: it is not as it was written"):
        DMVAEPipeline.from_pretrained(run_dir / "main/pipeline")
    second = processes.command("run", str(path), **processes.PLAIN)
    assert second.returncode == 0, second.stderr
    assert [n for n in files if (run_dir / n).read_bytes() != (tmp_path / "good" / n).read_bytes()] == []
    DMVAEPipeline.from_pretrained(run_dir / "main/pipeline")
    assert finished.summary["methods"]
