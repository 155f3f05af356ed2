"""`dmvae plan`: what steps, networks and files cost, by hand and for every objective."""

import shutil
from contextlib import suppress
from types import SimpleNamespace

import pytest
from torch._subclasses.fake_tensor import DataDependentOutputException

import tiny
from dmvae.cli import main
from dmvae.commands import plan
from dmvae.matching import Matching
from dmvae.recipe import load
from dmvae.registry import find, is_ours, names
from dmvae.stages.matching import MatchingStage
from plans import COST, PLAN, count_only, rows

pytestmark = pytest.mark.slow
TWO = plan.Machine(2, 80 * 10**9, True)


def plan_alone(path, stage, **over):
    """Print the plan of one stage, for two GPUs: the others would be counted, too."""
    plan.print_plan(load(path, {key.replace("__", "."): value for key, value in over.items()}), TWO, only=stage)


def test_matching_class_by_class_is_told_as_not_counted(tmp_path, capsys):
    over = {"type": "transport", "labels": True, "slices": 6, "samples": 96, "along": ["random"]}
    path = tiny.write(
        tmp_path, matching__objective=over, matching__student_warmup=0, matching__batch_size=12, variants={"kl": {}}
    )
    plan_alone(path, "matching")
    assert "matching: not counted, because its step depends on the values of tensors" in capsys.readouterr().out


LESS = {"variants": {"main": {}}, "losses": {"adversarial": {"weight": 0.0}}, "matching__student_steps": 1}
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
    path = tiny.write(tmp_path, matching__objective=objective, reference__distribution=reference, **LESS)
    with suppress(DataDependentOutputException):  # told as not counted
        cost = plan._cost(MatchingStage, load(path)["main"], 3, plan.Machine(1, 2**40, False))
        assert cost.trained > 0


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


def test_operations_time_and_disk_of_one_product(tmp_path, capsys, monkeypatch):
    """A matrix of 2 MiB, on 4 images a rank: every column but the peak by hand."""
    count_only(monkeypatch, "line")
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
    plan_alone(
        tiny.write(tmp_path, variants={"matched": {}}, reference__distribution={"type": "gaussian"}), "reference"
    )
    assert [row[1:-1] for row in rows(capsys.readouterr().out, "reference")] == [[""] * 5, [""] * 4]


def test_variants_that_train_the_same_have_one_table(tmp_path, capsys, monkeypatch):
    count_only(monkeypatch)
    variants = {"one": {}, "two": {"sample.steps": 3}, "three": {"generator.steps": 7}, "four": {"decoder.steps": 9}}
    main(["plan", str(tiny.write(tmp_path, variants=variants)), *PLAN[:2], "--memory", "80GB"])
    out = capsys.readouterr().out
    assert "two: trains the same as one" in out
    assert [row[1] for row in rows(out, "generator")[::2]] == ["6", "7", "6"]
    assert [row[1] for row in rows(out, "decoder")[::2]] == ["4", "4", "9"]


def test_of_an_objective_that_hands_over_the_dear_turns_are_counted(tmp_path, capsys):
    path, found = tiny.write(tmp_path, matching__batch_size=48, **LESS), {}
    for name, over in (("dmd", {"matching__objective__guidance": 1}), ("hand_over", {}), ("transport", {})):
        plan_alone(path, "matching", matching__objective__type=name, matching__steps=40, **over)
        found[name] = float(rows(capsys.readouterr().out, "matching")[1][4])
    assert found["hand_over"] == found["dmd"] > found["transport"]


def test_shards_are_what_a_rank_holds_of_the_flow_networks(tmp_path, capsys, monkeypatch):
    count_only(monkeypatch, "generator")
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
    count_only(monkeypatch, others=COST)
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
