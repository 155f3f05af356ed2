"""`dmvae plan`: what a recipe needs, and what stands in its way."""

import re
from contextlib import nullcontext, suppress
from pathlib import Path

import pytest
from diffusers import AutoencoderKL

import packed
import tiny
from dmvae import config as configs
from dmvae import pipeline
from dmvae.cli import main
from dmvae.commands import plan
from dmvae.commands.plan import bytes_of
from dmvae.datasets.huggingface import HuggingFace
from dmvae.jobs import _at
from dmvae.jobs import plan as jobs_to_run
from dmvae.recipe import load
from dmvae.runtime.done import write_done
from dmvae.runtime.files import locked
from plans import COST, PLAN, count_only, rows

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return str(tiny.write(tmp_path_factory.mktemp("plan")))


def test_it_tells_what_each_stage_needs(recipe, capsys):
    main(["plan", recipe, *PLAN, "80GB"])
    out = capsys.readouterr().out
    first, second = rows(out, "generator")
    assert first[:4] == ["generator", "6", "8", "1.0"]
    assert first[-1] == "new"
    assert "MiB" in second[3]
    assert "for 2 GPUs of 75 GiB" in out
    assert "nothing stands in the way" in out


def test_everything_that_stands_in_the_way_is_told_at_once(recipe, capsys, monkeypatch):
    count_only(monkeypatch, "tokenizer")
    with pytest.raises(SystemExit) as stop:
        main(["plan", recipe, *PLAN, "1MB", "--generator.batch_size", "9", "--tokenizer.batch_size", "50"])
    out, error = capsys.readouterr()
    assert stop.value.code == 1
    assert "generator.batch_size: 9 does not divide over 2 ranks" in out
    assert "tokenizer.batch_size: 50 is larger than the data set (48 images)" in out
    assert "memory: tokenizer needs about" in out
    assert "3 things stand in the way" in error


def test_what_cannot_be_built_is_told_and_the_rest_is_counted(tmp_path, capsys):
    kind = {"block_out_channels": (8,), "norm_num_groups": 4, "latent_channels": 2, "sample_size": 12}
    AutoencoderKL(**kind).save_pretrained(tmp_path / "kl")
    over = dict.fromkeys(("autoencoder", "encoder", "tokenizer", "generator", "sample"))
    over |= {"pretrained": {"type": "diffusers", "path": str(tmp_path / "kl")}, "matching__noise": "reference"}
    path = tiny.write(tmp_path, variants={"main": {}}, reference__distribution={"type": "gaussian"}, **over)
    with pytest.raises(SystemExit):
        main(["run", str(path), "--dry-run"])
    out = " ".join(capsys.readouterr().out.split())
    assert "in the way: matching.noise: 'reference' puts another network behind the encoder" in out
    assert re.search(r"│ matching │ │ │ │ │ │ new │ │ decoder │ 4 │ 8 │", out)


def test_a_split_that_no_stage_reads_is_not_missed(tmp_path, capsys, monkeypatch):
    count_only(monkeypatch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    packed.parquet(tmp_path / "data/train-0.parquet", {"image": packed.images(range(16)), "label": [0, 1] * 8})
    data = {"type": "huggingface", "root": str(tmp_path / "data"), "size": 12}
    batches = {f"{stage}__batch_size": 8 for stage in ("encoder", "tokenizer", "reference", "matching", "generator")}
    path = tiny.write(tmp_path, data=data, evaluate=None, sample=None, **batches)
    main(["plan", str(path)])
    assert "nothing stands in the way" in capsys.readouterr().out


def test_a_stage_whose_uses_lead_through_a_null_section_or_nowhere(tmp_path):
    recipe = load(tiny.write(tmp_path))["kl"]
    everything = configs.identity(recipe)
    assert recipe.matching is None
    assert _at(everything, recipe, "latents.drawn", "mine") is None, "added, and at its default"
    assert _at(everything, recipe, "matching.weight", "mine") is None
    assert _at(everything, recipe, "tokenizer.kl_weight", "mine") == 1e-3
    with pytest.raises(ValueError, match=r"stage 'mine': uses names 'tokenizer.kl_wieght': .*did you mean 'kl_weight'"):
        _at(everything, recipe, "tokenizer.kl_wieght", "mine")


def test_what_a_run_refuses_for_its_folder_and_for_its_variants_is_told(tmp_path, monkeypatch):
    count_only(monkeypatch, others=COST)
    kl = tiny.RECIPE["variants"]["kl"]
    kept = {"generator": {"keep_at": [2]}, "sample": {"snapshot": 2}}
    other = {"generator": {"keep_at": [2, 3]}, "sample": {"snapshot": 3}}
    variants = {name: configs.merge(kl, over) for name, over in (("kept", kept), ("other", other))}
    recipes = load(tiny.write(tmp_path, variants=variants))
    shared = "generator.keep_at is [2, 3], and [2] in variant kept, which shares the training of stage generator; "
    (told,) = plan.print_plan(recipes, plan.Machine(1, 2**40, False))
    assert told.startswith(shared)
    with pytest.raises(ValueError, match=re.escape(f"other: {told}")):
        pipeline.run(recipes, tmp_path / "run")
    for job in jobs_to_run(recipes, tmp_path / "run"):
        if job.stage.name == "generator":
            job.folder.mkdir(parents=True, exist_ok=True)
            write_done(job.folder, {"seconds": 1.0})
    told = plan.print_plan(recipes, plan.Machine(1, 2**40, False))
    assert [line.partition(", there")[0] for line in told] == [
        "sample.snapshot: the generator of step 2 was not kept",
        "sample.snapshot: the generator of step 3 was not kept",
    ]
    with pytest.raises(ValueError, match=re.escape(f"kept: {told[0]}")):
        pipeline.run(recipes, tmp_path / "run")


def test_an_obstacle_of_some_variants_names_them(tmp_path, capsys, monkeypatch):
    count_only(monkeypatch)
    with pytest.raises(SystemExit):
        main(["plan", str(tiny.write(tmp_path)), "--gpus", "2", "--variants.kl.generator.batch_size", "9"])
    assert "generator.batch_size: 9 does not divide over 2 ranks; use a multiple of 2 (kl)" in capsys.readouterr().out


def test_a_batch_that_does_not_divide_into_parts_is_told_and_no_crash(recipe, capsys, monkeypatch):
    count_only(monkeypatch, "generator")
    with pytest.raises(SystemExit):
        main(["plan", recipe, *PLAN, "80GB", "--run.accumulate", "3"])
    out = capsys.readouterr().out
    assert "generator.batch_size: 8 does not divide over 2 ranks in 3 parts each" in out
    assert len(rows(out, "generator")) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpus", "0"], "--gpus: 0; give 1 or more"),
        (["--gpus", "1", "--memory", "much"], "--memory: 'much' is not an amount of memory such as 80GB"),
        (["--gpus", "1", "--memory", "1.2.3GB"], "--memory: '1.2.3GB' is not an amount of memory such as 80GB"),
        (["--gpus", "1", "--memory", f"{'9' * 400}GB"], "is not an amount of memory such as 80GB"),
        (["--memory", "80GB"], "--memory: it describes the GPUs to plan for; give --gpus N too"),
        (["--peak", "100"], "--peak: it describes the GPUs to plan for; give --gpus N too"),
        (["--gpus", "1", "--memory", "80"], "--memory: 80 is 80 bytes; give it with its unit, such as 80GB"),
        (["--gpus", "1", "--utilisation", "2"], "--utilisation 2: give the share of --peak that is reached, up to 1"),
        (["--gpus", "1", "--peak", "nan"], "--peak nan: give the operations of a GPU in TFLOP/s"),
        (["--gpus", "1", "--peak", "inf"], "--peak inf: give the operations of a GPU in TFLOP/s"),
    ],
)
def test_what_is_no_machine(recipe, capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        main(["plan", recipe, *arguments])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_amounts_of_memory():
    assert [bytes_of(text) for text in ("80GB", "1 GiB", "2000000", "80g")] == [
        80 * 10**9,
        2**30,
        2 * 10**6,
        80 * 10**9,
    ]


def test_a_batch_above_the_data_is_made_smaller_as_in_a_run(tmp_path, capsys, monkeypatch):
    """48 training images, over the ranks that are planned for."""
    count_only(monkeypatch)
    path = tiny.write(tmp_path, variants={"kl": tiny.RECIPE["variants"]["kl"]}, generator__batch_size=64)
    for ranks, size in ((2, 32), (3, 48)):
        with suppress(SystemExit):  # other batches do not divide over three
            main(["plan", str(path), "--gpus", str(ranks)])
        out = capsys.readouterr().out
        assert f"generator.batch_size is {size} in place of 64: the training set has 48 images" in out
        assert "in the way: generator" not in out
    with pytest.raises(SystemExit):
        main(["plan", str(path), "--gpus", "3", "--generator.batch_size", "96"])
    assert "generator.batch_size: 96 is larger than the data set (48 images); use at most 48" in capsys.readouterr().out


def test_a_stage_that_another_process_runs_is_not_told_as_interrupted(recipe, capsys, monkeypatch):
    count_only(monkeypatch)
    job = next(job for job in jobs_to_run(load(recipe), Path(load(recipe)["kl"].run.dir)) if job.variant == "kl")
    job.folder.mkdir(parents=True)
    (job.folder / "log.jsonl").touch()
    with locked(job.folder):
        main(["plan", recipe, *PLAN, "80GB"])
    main(["plan", recipe, *PLAN, "80GB"])
    assert [row[-1] for row in rows(capsys.readouterr().out, job.stage.name)[::2]] == ["running", "interrupted"]


def test_a_dry_run_of_one_stage_tells_what_stands_in_that_one_s_way(recipe, capsys, monkeypatch):
    count_only(monkeypatch)
    options = ["--variant", "kl", "--dry-run", "--sample.snapshot", "3"]  # which no generator keeps
    main(["tokenizer", recipe, *options])
    out = capsys.readouterr().out
    assert "nothing stands in the way" in out
    assert rows(out, "tokenizer")
    assert not rows(out, "generator")
    with pytest.raises(SystemExit):
        main(["run", recipe, *options])
    assert "in the way: sample.snapshot" in capsys.readouterr().out


def test_a_dry_run_under_torchrun_is_for_its_ranks_and_told_by_the_first(recipe, capsys, monkeypatch):
    count_only(monkeypatch)
    monkeypatch.setenv("WORLD_SIZE", "2")
    options = ["--variant", "kl", "--dry-run", "--generator.batch_size", "9"]
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit) if rank == "0" else nullcontext():
            main(["run", recipe, *options])
        out = capsys.readouterr().out
        assert ("for 2 processes" in out) == (rank == "0")
    assert "in the way: generator.batch_size" in " ".join(out.split())


def test_data_that_cannot_be_opened_are_tried_once_for_all_variants(tmp_path, capsys, monkeypatch):
    count_only(monkeypatch, "generator")
    tried = []
    monkeypatch.setattr(HuggingFace, "build", lambda self, split: tried.append(split) or b"\xff".decode())
    path = tiny.write(tmp_path, data={"type": "huggingface", "root": "owner/name", "size": 12})
    for times in (1, 2):  # and anew by the next plan: the data may be there by then
        with pytest.raises(SystemExit):
            main(["plan", str(path)])
        assert len(tried) == times
        out = capsys.readouterr().out
        assert out.count("in the way: 'utf-8' codec") == out.count("in the way: ") == 1


def test_many_epochs_of_few_images_are_told(recipe, capsys, monkeypatch):
    count_only(monkeypatch)
    for steps, times in ((6, 0), (1201, 1)):  # of 8 images, of 48
        main(["plan", recipe, "--variant", "kl", "--generator.steps", str(steps)])
        assert capsys.readouterr().out.count("over 200 epochs of so few images") == times


def test_weights_that_are_not_there_are_told_once_with_their_place(tmp_path, capsys, monkeypatch):
    count_only(monkeypatch)
    gone = {"type": "timm", "model": "vit_tiny_patch16_224", "patch_size": 4, "checkpoint": str(tmp_path / "gone.pth")}
    adversary = {"type": "features", "encoder": gone}
    path = tiny.write(tmp_path, encoder__target=gone, decoder__adversarial=adversary, variants={"main": {}})
    with pytest.raises(SystemExit):
        main(["plan", str(path)])
    told = [line.strip() for line in " ".join(capsys.readouterr().out.split()).split("in the way: ")[1:]]
    line = f"encoder checkpoint {tmp_path / 'gone.pth'}: no such file"
    assert told == [f"encoder.target: {line}", f"decoder.adversarial: {line}"]
