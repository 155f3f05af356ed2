"""`dmvae plan`: what a recipe needs, and what stands in its way."""

import re
import shutil
from contextlib import nullcontext, suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
from diffusers import AutoencoderKL
from torch._subclasses.fake_tensor import DataDependentOutputException

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
from dmvae.matching import Matching
from dmvae.recipe import load
from dmvae.registry import find, is_ours, names
from dmvae.runtime.done import write_done
from dmvae.runtime.files import locked
from dmvae.stages.matching import MatchingStage
from dmvae.training.counting import Cost

pytestmark = pytest.mark.slow

PLAN = ("--gpus", "2", "--variant", "kl", "--memory")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return str(tiny.write(tmp_path_factory.mktemp("plan")))


def rows(text, word):
    """Cells of the rows of that stage, in both tables."""
    return [[c.strip() for c in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith(f"│ {word} ")]


def test_it_tells_what_each_stage_needs(recipe, capsys):
    main(["plan", recipe, *PLAN, "80GB"])
    out = capsys.readouterr().out
    first, second = rows(out, "generator")
    assert first[:4] == ["generator", "6", "8", "1.0"]
    assert first[-1] == "new"
    assert "MiB" in second[3]
    assert "for 2 GPUs of 75 GiB" in out
    assert "nothing stands in the way" in out


def test_everything_that_stands_in_the_way_is_told_at_once(recipe, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["plan", recipe, *PLAN, "1MB", "--generator.batch_size", "9", "--tokenizer.batch_size", "50"])
    out, error = capsys.readouterr()
    assert stop.value.code == 1
    assert "generator.batch_size: 9 does not divide over 2 ranks" in out
    assert "tokenizer.batch_size: 50 is larger than the data set (48 images)" in out
    assert "memory: tokenizer needs about" in out
    assert "3 things stand in the way" in error


def test_matching_class_by_class_is_told_as_not_counted(tmp_path, capsys):
    over = {"type": "transport", "labels": True, "slices": 6, "samples": 96, "along": ["random"]}
    path = tiny.write(
        tmp_path, matching__objective=over, matching__student_warmup=0, matching__batch_size=12, variants={"kl": {}}
    )
    main(["plan", str(path), *PLAN, "80GB"])
    assert "matching: not counted, because its step depends on the values of tensors" in capsys.readouterr().out


OURS = [{"type": name} for name in names(Matching) if is_ours(find(Matching, name))]


@pytest.mark.parametrize(
    "objective",
    [
        *OURS,
        {"type": "dmd", "divergence": "forward_kl"},
        {"type": "hand_over", "near": {"type": "dmd", "divergence": "jensen_shannon"}},
    ],
)
def test_a_step_of_every_objective_is_counted(tmp_path, objective):
    """Beside a reference with a teacher, where there may be one; what a dry run (no GPU) and a plan do alike."""
    reference = {"type": "gaussian" if objective["type"] == "normality" else "features"}
    less = {"variants": {"main": {}}, "losses": {"adversarial": {"weight": 0.0}}, "matching__student_steps": 1}
    path = tiny.write(tmp_path, matching__objective=objective, reference__distribution=reference, **less)
    with suppress(DataDependentOutputException):  # told as not counted
        cost = plan._cost(MatchingStage, load(path)["main"], 3, plan.Machine(1, 2**40, False))
        assert cost.trained > 0


def test_what_cannot_be_built_is_told_and_the_rest_is_counted(tmp_path, capsys):
    kind = {"block_out_channels": (8,), "norm_num_groups": 4, "latent_channels": 2, "sample_size": 12}
    AutoencoderKL(**kind).save_pretrained(tmp_path / "kl")
    over = {"autoencoder": None, "encoder": None, "tokenizer": None, "pretrained__path": str(tmp_path / "kl")}
    path = tiny.write(
        tmp_path, variants={"main": {}}, pretrained__type="diffusers", matching__noise="reference", **over
    )
    with pytest.raises(SystemExit):
        main(["run", str(path), "--dry-run"])
    out = " ".join(capsys.readouterr().out.split())
    assert "in the way: matching.noise: 'reference' puts another network behind the encoder" in out
    assert re.search(r"│ matching │ │ │ │ │ │ new │ │ decoder │ 4 │ 8 │", out)


def test_a_split_that_no_stage_reads_is_not_missed(tmp_path, capsys, monkeypatch):
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
    monkeypatch.setattr(plan, "_cost", lambda *_: COST)
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


def test_an_obstacle_of_some_variants_names_them(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(
            [
                "plan",
                str(tiny.write(tmp_path)),
                *PLAN[:2],
                "--memory",
                "80GB",
                "--variants.kl.generator.batch_size",
                "9",
            ]
        )
    assert "generator.batch_size: 9 does not divide over 2 ranks; use a multiple of 2 (kl)" in capsys.readouterr().out


def test_a_batch_that_does_not_divide_into_parts_is_told_and_no_crash(recipe, capsys):
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


LINE = """
from torch import nn
from dmvae.training.stage import Networks, TrainingConfig, TrainingStage, Update, stage

@stage("line", after="tokenizer")
class Line(TrainingStage):
    Config = TrainingConfig
    draws = True

    def build(self):
        networks = Networks()
        networks.line = nn.Linear(1024, 512, bias=False)
        networks.trains["line"] = list(networks.line.parameters())
        networks.averaged = ("line",)
        return networks

    def updates(self, networks, batch, rng):
        yield Update("line", networks.line(rng.normal(len(batch.data), 1024)).mean())
"""
MIB = 2**20
COST = Cost(
    trained=1, frozen=0, weights=2, state=2**31, working=4, saved=2**30, spread=0, spread_gradients=0, flops=1.0
)


def test_operations_time_and_disk_of_one_product(tmp_path, capsys):
    """A matrix of 2 MiB, on 4 images a rank: every column but the peak by hand."""
    (tmp_path / "line.py").write_text(LINE)
    line = {"steps": 6, "batch_size": 8, "keep_at": [2, 3]}
    path = tiny.write(tmp_path, plugins=[str(tmp_path / "line.py")], line=line, run__keep_every=3)
    flops = 2 * (2 * 4 * 1024 * 512)  # forward, and the matrix's gradient
    main(["plan", str(path), *PLAN, "80GB", "--peak", f"{6 * flops / 7200 / 0.5 / 1e12}", "--utilisation", "0.5"])
    first, second = rows(capsys.readouterr().out, "line")
    assert first[4] == f"{1024 * 512 / 1e6:.2f} M"
    state = 4 * 2  # the matrix, two moments, the average
    disk = 3 * state + 3 * 2 + 2  # three checkpoints; it as it is after steps 2, 3 and 6; it
    assert [second[1], *second[4:]] == [f"{state}.0 MiB", f"{flops / 1e12:.3g}", "2.0 h", f"{disk}.0 MiB"]


def test_a_stage_that_trains_no_network_has_no_steps(tmp_path, capsys):
    path = str(tiny.write(tmp_path, variants={"matched": {}}, reference__distribution={"type": "gaussian"}))
    main(["plan", path, *PLAN[:2], "--memory", "80GB"])
    assert [row[1:-1] for row in rows(capsys.readouterr().out, "reference")] == [[""] * 5, [""] * 5]


def test_variants_that_train_the_same_have_one_table(tmp_path, capsys):
    variants = {"one": {}, "two": {"sample.steps": 3}, "three": {"generator.steps": 7}, "four": {"decoder.steps": 9}}
    main(["plan", str(tiny.write(tmp_path, variants=variants)), *PLAN[:2], "--memory", "80GB"])
    out = capsys.readouterr().out
    assert "two: trains the same as one" in out
    assert [row[1] for row in rows(out, "generator")[::2]] == ["6", "7", "6"]
    assert [row[1] for row in rows(out, "decoder")[::2]] == ["4", "4", "9"]


def test_of_an_objective_that_hands_over_the_dear_turns_are_counted(tmp_path, capsys):
    path, found = str(tiny.write(tmp_path, variants={"matched": {}}, matching__batch_size=48)), {}
    once = ["--matching.student_steps", "1", "--matching.steps", "40"]
    for name, over in (("dmd", ["--matching.objective.guidance", "1"]), ("hand_over", []), ("transport", [])):
        main(["plan", path, *PLAN[:2], "--memory", "80GB", "--matching.objective.type", name, *once, *over])
        found[name] = float(rows(capsys.readouterr().out, "matching")[1][4])
    assert found["hand_over"] == found["dmd"] > found["transport"]


def test_shards_are_what_a_rank_holds_of_the_flow_networks(tmp_path, capsys):
    model = {"width": 128, "depth": 3, "heads": 2}
    path = str(tiny.write(tmp_path, generator__model=model))
    network = load(path)["kl"].section("generator").model.build((4, 3, 3), 3)
    mib = 4 * sum(p.numel() for p in network.parameters() if p.requires_grad) / MIB
    found = {}
    for shard in ("false", "true"):
        main(["plan", path, "--gpus", "4", "--variant", "kl", "--memory", "80GB", "--run.shard", shard])
        _, row = rows(capsys.readouterr().out, "generator")
        found[shard] = [float(cell.split()[0]) for cell in row[1:4]]
    (state, step, peak), (part, rest, less) = found["false"], found["true"]
    assert state == pytest.approx(4 * mib, abs=0.2)  # weights, two moments, the average
    assert state - part == pytest.approx(0.75 * 4 * mib, abs=0.2)
    assert step - rest == pytest.approx(0.75 * mib, abs=0.2)  # gradients
    assert peak - less == pytest.approx(0.75 * 5 * mib, abs=0.3)


@pytest.mark.parametrize("data", [True, False])
def test_a_disk_without_room_is_told_and_what_variants_share_counts_once(tmp_path, capsys, monkeypatch, data):
    kl = tiny.RECIPE["variants"]["kl"]
    sharper = kl | {"decoder": {"steps": 4, "batch_size": 8}}
    variants = {"one": kl, "two": kl | {"sample": {"count": 24}}, "sharper": sharper}
    over = {} if data else {"data": {"type": "image_folder", "root": str(tmp_path / "nowhere"), "size": 12}}
    path = str(tiny.write(tmp_path, variants=variants, latents__mirrored=True, **over))
    monkeypatch.setattr(plan, "_cost", lambda *_: COST)
    trained = 3 * (COST.saved + COST.state) + COST.saved
    latents = 2 * 48 * 4 * 3 * 3 * 4 if data else 0  # of images and mirror images, float32
    needed = 3 * trained + 2 * latents  # one tokenizer, decoder and generator
    needed += (12 + 24 + 12) * (3 * 12 * 12 + 4 * 3 * 3 * 4)  # images, and what they are decoded from
    for free in (needed, needed - 1):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        recipes = load(path)
        told = [line for line in plan.print_plan(recipes, plan.Machine(1, 2**40, False)) if line.startswith("disk:")]
        assert len(told) == (free < needed)
    monkeypatch.setattr("dmvae.jobs.Job.state", "finished")
    again = plan.print_plan(recipes, plan.Machine(1, 2**40, False))
    assert any(line.startswith("disk:") for line in again) is not data, "what is there needs no room"
    gib = needed / 2**30
    assert told == [f"disk: the run may need {gib:.1f} GiB, and {tmp_path} has {gib:.1f} GiB free; see run.dir"]


def test_a_batch_above_the_data_is_made_smaller_as_in_a_run(tmp_path, capsys):
    """48 training images, over the ranks that are planned for."""
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


def test_a_stage_that_another_process_runs_is_not_told_as_interrupted(recipe, capsys):
    job = next(job for job in jobs_to_run(load(recipe), Path(load(recipe)["kl"].run.dir)) if job.variant == "kl")
    job.folder.mkdir(parents=True)
    (job.folder / "log.jsonl").touch()
    with locked(job.folder):
        main(["plan", recipe, *PLAN, "80GB"])
    main(["plan", recipe, *PLAN, "80GB"])
    assert [row[-1] for row in rows(capsys.readouterr().out, job.stage.name)[::2]] == ["running", "interrupted"]


def test_a_dry_run_of_one_stage_tells_what_stands_in_that_one_s_way(recipe, capsys):
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
    tried = []
    monkeypatch.setattr(HuggingFace, "build", lambda self, split: tried.append(split) or b"\xff".decode())
    path = tiny.write(tmp_path, data={"type": "huggingface", "root": "owner/name", "size": 12})
    for times in (1, 2):  # and anew by the next plan: the data may be there by then
        with pytest.raises(SystemExit):
            main(["plan", str(path)])
        assert len(tried) == times
        out = capsys.readouterr().out
        assert out.count("in the way: 'utf-8' codec") == out.count("in the way: ") == 1


def test_many_epochs_of_few_images_are_told(recipe, capsys):
    for steps, times in ((6, 0), (1201, 1)):  # of 8 images, of 48
        main(["plan", recipe, "--variant", "kl", "--generator.steps", str(steps)])
        assert capsys.readouterr().out.count("over 200 epochs of so few images") == times
