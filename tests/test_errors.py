"""What bad input gets: one or two lines that name the value, the place and the fix, exit code 2, no traceback."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import processes
import tiny
from complaints import complain
from dmvae import Autoencoder, DMVAEPipeline, checks, cli
from dmvae.evaluation.features import parse_features
from dmvae.tokenizers.adapted import load_tokenizer
from plans import count_only


def test_a_misspelt_command(capsys):
    assert complain(capsys, "tokeniser", "x.yaml") == (
        2,
        "dmvae: no such command: tokeniser; did you mean 'tokenizer'?\n",
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("plan smoke --gpu 8", "--gpu: no such option; did you mean --gpus?"),
        ("plan smoke --gpus 8 --memroy=80GB", "--memroy: no such option; did you mean --memory?"),
        ("plan smoke --variants kl", "--variants: no such option; did you mean --variant?"),
        ("run smoke --dryrun", "--dryrun: no such option; did you mean --dry-run?"),
        ("matching smoke --rundir x", "--rundir: no such option; did you mean --run_dir?"),
        ("run smoke --debgu", "--debgu: no such option; did you mean --debug?"),
        ("run smoke --variant", "argument --variant: expected one argument; `dmvae run --help` lists"),
        ("run smoke --sed 4", "dmvae: --sed: no such field; did you mean 'seed'?"),
        ("run smoke --rn.dir x", "dmvae: --rn.dir: no such field; did you mean 'run'?"),
        (
            "serve x --prot 8",
            "--prot 8; --prot: did you mean --port? `dmvae serve --help` lists",
        ),
        ("measure folder a b --fetures x", "did you mean --features? `dmvae measure --help` lists"),
        ("encode x --tokenizer y --out z --batchsize=4", "did you mean --batch-size? `dmvae encode --help` lists"),
        (
            "encode x --tokenizr y --out=z",
            "are required: --tokenizer; --tokenizr: did you mean --tokenizer? `",
        ),
        ("encode x --out y", "are required: --tokenizer; `dmvae encode --help` lists"),
        ("decode x --tokenizer y --out z --foo", "unrecognized arguments: --foo; `dmvae decode --help` lists"),
        ("import official-vae x --out y --weihgts ema", "did you mean --weights? `dmvae import --help` lists"),
        ("init demo one two", "unrecognized arguments: two; `dmvae init --help` lists"),
        ("--vesrion", "no such option: --vesrion; did you mean '--version'?"),
    ],
)
def test_a_misspelt_option(capsys, line, message):
    code, error = complain(capsys, *line.split())
    assert code == 2
    assert message in error
    assert error.count("\n") == 1


def test_no_such_recipe(capsys):
    code, error = complain(capsys, "run", "nothing.yaml")
    assert code == 2
    assert f"no such recipe: nothing.yaml: no such file, from {Path.cwd()}; `dmvae init NAME nothing.yaml`" in error


def test_a_stage_before_the_one_it_needs(tmp_path, capsys):
    path = tiny.write(tmp_path)
    code, error = complain(capsys, "matching", path)
    assert code == 2
    assert "reads the stage 'tokenizer'" in error
    assert "dmvae run RECIPE" in error


def test_a_stage_that_no_variant_has(tmp_path, capsys):
    path = tiny.write(tmp_path)
    code, error = complain(capsys, "matching", path, "--variant", "kl")
    assert code == 2
    assert "no variant of this recipe has the stage 'matching'" in error


def test_a_report_of_a_folder_that_is_no_run(tmp_path, capsys):
    code, error = complain(capsys, "report", tmp_path)
    assert code == 2
    assert "not a run's folder" in error


def test_a_folder_that_holds_no_tokenizer_or_pipeline_itself(tmp_path):
    with pytest.raises(ValueError, match=r"no config\.json; give the folder that a tokenizer was saved in"):
        load_tokenizer(tmp_path)
    with pytest.raises(ValueError, match=r"no model_index\.json; give a folder such as RUN/VARIANT/pipeline"):
        DMVAEPipeline.from_pretrained(tmp_path)
    inside = tmp_path / "pipeline/vae"
    inside.mkdir(parents=True)
    (inside / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=re.escape(f"did you mean {inside}?")):
        load_tokenizer(tmp_path)
    with pytest.raises(ValueError, match=re.escape(f"did you mean {inside.parent}?")):
        DMVAEPipeline.from_pretrained(tmp_path)


def test_features_that_nobody_knows_are_told_in_a_line():
    with pytest.raises(ValueError, match=r"nor a timm model; known: .*inception, timm, tokenizer$"):
        parse_features("fid")


@pytest.mark.slow
def test_debug_shows_the_traceback():
    result = processes.command("run", "nothing.yaml", "--debug")
    assert "Traceback" in result.stderr


def test_help_lists_fields_with_their_meaning(tmp_path, capsys):
    cli.main(["run", str(tiny.write(tmp_path)), "--help"])
    out = capsys.readouterr().out
    assert "--matching.student_steps" in out
    assert "Student updates per tokenizer update." in out


def without_lpips(monkeypatch):
    """As if it were not installed, and had not been used by an earlier test."""
    monkeypatch.setitem(sys.modules, "lpips", None)
    monkeypatch.setattr(checks, "_passed", set())


@pytest.mark.slow
def test_a_dry_run_tells_what_is_missing(tmp_path, capsys, monkeypatch):
    without_lpips(monkeypatch)
    count_only(monkeypatch, "tokenizer")
    options = ["--generator.batch_size", "49", "--losses.perceptual", "{type: lpips}"]
    with pytest.raises(SystemExit) as stop:
        cli.main(["run", str(tiny.write(tmp_path)), "--dry-run", "--variant", "kl", *options])
    out, error = capsys.readouterr()
    assert (stop.value.code, error) == (1, "dmvae: 2 things stand in the way\n")
    assert "in the way: generator.batch_size: 49 is larger than the data set (48 images); use at most 48" in out
    assert 'pip install "dmvae[lpips]"' in out
    assert out.splitlines()[-1].startswith("  in the way: "), "what matters stands last"


def test_an_option_before_the_recipe(tmp_path, capsys):
    code, error = complain(capsys, "run", "--matching.weight", "3", tiny.write(tmp_path))
    assert code == 2
    assert "usage: dmvae run RECIPE" in error


@pytest.mark.slow
def test_a_dry_run_tells_what_a_run_would_stop_at(tmp_path, capsys, monkeypatch):
    without_lpips(monkeypatch)
    count_only(monkeypatch, "tokenizer", "matching", "decoder")
    options = ["--evaluate.lpips", "true", "--evaluate.neighbours", "49", "--losses.adversarial.layers", "5"]
    options += ["--reference.distribution", f"{{type: array, path: {tmp_path}/nope.npy}}"]
    path = tiny.write(tmp_path)
    with pytest.raises(SystemExit):
        cli.main(["run", str(path), "--dry-run", "--variant", "matched", *options])
    out = capsys.readouterr().out
    assert "in the way: evaluate.lpips: " in out
    assert "in the way: evaluate.neighbours: 49 neighbours are sought among 48 latents; use at most 48" in out
    assert "in the way: losses.adversarial: images of 12x12 pixels are too small for a discriminator with layers" in out
    assert "in the way: reference.distribution: " in out
    for _ in range(out.count("in the way: ")):
        code, error = complain(capsys, "run", path, *options)
        assert code == 2
        told = error.removeprefix("dmvae: ").removeprefix("matched: ").strip()
        assert told[:40] in out
        options = options[2:]
    assert not list(tmp_path.glob("run/stages/*"))


def test_importing_replaces_nothing_but_an_artifact(tmp_path, capsys):
    (tmp_path / "precious.txt").touch()
    code, error = complain(capsys, "import", "official-vae", "vae.pt", "--out", tmp_path)
    assert code == 2
    assert f"--out {tmp_path} would replace 'precious.txt'" in error
    weights = tmp_path / "weights"
    weights.mkdir()
    mine = weights / "my_statistics.safetensors"
    mine.touch()
    _, error = complain(capsys, "import", "official-vae", "x", "--out", weights)
    assert "would replace 'my_statistics.safetensors'" in error
    mine = mine.rename(weights / "diffusion_pytorch_model.safetensors")
    assert f"would replace '{mine.name}'" in complain(capsys, "import", "official-vae", mine, "--out", weights)[1]
    assert mine.exists()


@pytest.mark.parametrize("place", ["file", "file/below"])
@pytest.mark.parametrize(
    "line",
    [
        "encode {images} --tokenizer {model} --out {place}",
        "decode {latents} --tokenizer {model} --out {place}",
        "init smoke {place}",
        "measure folder {images} {images} --json {place}",
        "measure folder {images} {images} --save-reference {place}",
    ],
)
def test_a_place_that_cannot_be_written_is_told_at_once(tmp_path, capsys, monkeypatch, line, place):
    if place == "file" and ("init" in line or "measure" in line):
        place = "folder/"  # they write a file
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("mine")
    Image.new("RGB", (12, 12)).save(tmp_path / "folder/a.png")
    model = Autoencoder.from_config(tiny.RECIPE["autoencoder"] | {"image_size": 12})
    model.save_pretrained(tmp_path / "model")
    np.save(tmp_path / "z.npy", np.zeros((1, 4, 3, 3), np.float32))
    monkeypatch.chdir(tmp_path)
    if "init" in line and place == "folder/":
        (tmp_path / "folder/smoke.yaml").write_text("mine")
    names = {"images": "folder", "latents": "z.npy", "model": "model", "place": place}
    code, error = complain(capsys, *line.format(**names).split())
    assert code == 2
    assert place.rstrip("/") in error
    assert (tmp_path / "file").read_text() == "mine"
