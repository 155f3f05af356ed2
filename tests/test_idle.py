"""Fields that are given and change nothing are told; those of the recipes of the package all do something."""

from pathlib import Path

import pytest

import tiny
from dmvae import cli
from dmvae.idle import IDLE, idle
from dmvae.recipe import load
from dmvae.stages import stages

RECIPES = sorted((Path(cli.__file__).parent / "recipes").rglob("*.yaml"))
PLAIN = {"size": "Mini/1", "head_width": 64, "width": 384, "depth": 12, "heads": 6}
FINISHED = {"pretrained": {"type": "diffusers", "path": "x"}, "autoencoder": None, "encoder": None, "tokenizer": None}
DMD = {"objective": {"type": "dmd"}, "balance": "gradient", "noise": "none"}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            {"losses.adversarial.learn_from": 0.25} | FINISHED,
            "losses.adversarial.learn_from: 0.25 changes nothing: it is a share of the stage tokenizer",
        ),
        ({"run.shard_bf16": True}, "run.shard_bf16: True changes nothing: it only acts with run.shard: true"),
        ({"run.reshard": False}, "run.reshard: False changes nothing"),
        (
            {"run.picture_every": 9},
            "run.picture_every: 9 changes nothing: no stage that makes pictures trains for so many steps",
        ),
        ({"matching.model.width": 48}, "matching.model: what is given changes nothing: the student is a copy"),
        (
            {"matching.target": 1.2},
            "matching.target: 1.2 changes nothing: it only acts with matching.balance: distance",
        ),
        ({"matching.objective.ratio_width": 64}, "matching.objective.ratio_width: 64 changes nothing"),
        ({"sample.last_step": 0.1}, "sample.last_step: 0.1 changes nothing: it only acts with sample.method: sde"),
        ({"sample.guidance_interval": [0.2, 0.5]}, "sample.guidance_interval: [0.2, 0.5] changes nothing"),
        ({"sample.guidance_channels": 2}, "sample.guidance_channels: 2 changes nothing: a guidance scale of 1 guides"),
        (
            {"generator.model": {"size": "Mini/1", "heads": 3}},
            "generator.model.width: 16, depth: 1, heads: 3 change nothing: generator.model.size says it",
        ),
        (
            {"matching.objective": {"type": "transport"}, "matching.label_dropout": 0.2},
            "matching.label_dropout: 0.2 changes nothing: its objective trains no velocity",
        ),
        (
            {"matching.objective": {"type": "transport"}, "matching.time_shift": 3.0},
            "matching.time_shift: 3.0 changes nothing: its objective asks no velocities",
        ),
        (
            {"matching.objective": {"type": "adversarial"}, "matching.time_shift": 3.0},
            "matching.time_shift: 3.0 changes nothing: its objective asks no velocities",
        ),
        (
            {"matching.objective": {"type": "adversarial"}, "matching.label_dropout": 1.0},
            "matching.label_dropout: 1.0 changes nothing: its objective trains no velocity",
        ),
        (
            {"matching.objective": {"type": "adversarial"}, "matching.model.width": 48},
            "matching.model: what is given changes nothing: the student is a copy of the teacher",
        ),
        (
            {"reference.distribution": {"type": "mixture", "fit": {"type": "features"}, "scale": "raw", "std": 0.9}},
            "reference.distribution.std: 0.9, scale: what is given change nothing: a mixture with `fit`",
        ),
        (
            {"reference.distribution": {"type": "mixture", "file": "x.safetensors", "components": 3}},
            "reference.distribution.components: 3 changes nothing: the file says it",
        ),
    ],
)
def test_what_nothing_reads_is_told(tmp_path, given, told):
    path = tiny.write(tmp_path, variants={"main": {"matching": DMD}}, sample__guidance=[1.0])
    assert idle(load(path)) == []
    (line,) = idle(load(path, given))
    assert line.startswith(told)


@pytest.mark.parametrize(
    ("given", "beside"),
    [
        ({"losses.adversarial.learn_from": 0.25}, {}),
        ({"run.shard_bf16": True}, {"run.shard": True}),
        ({"matching.target": 1.2}, {"matching.balance": "distance"}),
        ({"matching.target": 1.2}, {"matching.until": "arrived"}),
        ({"matching.objective.ratio_width": 64}, {"matching.objective.divergence": "forward_kl"}),
        ({"matching.model.width": 48}, {"reference.distribution": {"type": "gaussian"}}),
        ({"sample.last_step": 0.1}, {"sample.method": "sde"}),
        ({"sample.guidance_interval": [0.2, 0.5]}, {"sample.guidance": [1.0, 2.0]}),
        ({"sample.guidance_channels": 2}, {"sample.guidance": [1.0, 2.0]}),
        ({"generator.model": {"width": 48, "heads": 3}}, {}),
        ({"matching.time_shift": 3.0}, {"matching.objective": {"type": "teacher_loss"}}),
        ({"matching.label_dropout": 0.2}, {}),
        (
            {"matching.time_shift": 3.0},
            {"matching.objective": {"type": "hand_over", "far": {"type": "transport"}, "near": {"type": "dmd"}}},
        ),
        ({"reference.distribution": {"type": "mixture", "std": 0.9, "scale": "raw"}}, {}),
        ({"reference.distribution": {"type": "gaussian", "scale": "raw"}}, {}),
        ({"generator.model": {"size": "Mini/1", "head_width": 64}}, {"generator.model": PLAIN}),
    ],
)
def test_what_something_reads_is_not(tmp_path, given, beside):
    path = tiny.write(tmp_path, variants={"main": {"matching": DMD}}, sample__guidance=[1.0])
    assert idle(load(path, given | beside)) == []


def test_variants_are_named_where_they_are_not_all(tmp_path):
    path = tiny.write(tmp_path, variants={"a": {}, "b": {"sample.last_step": 0.1}, "c": {"sample.last_step": 0.1}})
    (line,) = idle(load(path))
    assert line.endswith("(b, c)") or line.endswith("(b and c)")


def test_a_dry_run_says_it(tmp_path, capsys):
    cli.main(["run", str(tiny.write(tmp_path)), "--variant", "kl", "--dry-run", "--sample.last_step", "0.1"])
    assert "sample.last_step: 0.1 changes nothing" in " ".join(capsys.readouterr().out.split())


def test_every_field_is_there():
    fields = {stage.name: stage.Config.__dataclass_fields__ for stage in stages()}
    for place in IDLE:
        section, names = place.split(".")[:2]
        assert section in ("run", "losses") or set(names.split("|")) <= set(fields[section])


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_that_come_with_the_package_have_none(path):
    told = [
        line for line in idle(load(path, {"data.root": "/"} if path.stem in ROOTS else None)) if "size_" not in line
    ]
    assert told == []


ROOTS = [path.stem for path in RECIPES if "--data.root" in path.read_text().split("name:")[0]]
