"""Fields that are given and change nothing are told; those of the recipes of the package all do something."""

from pathlib import Path

import pytest
import torch

import tiny
from dmvae import cli
from dmvae.idle import IDLE, idle
from dmvae.recipe import load
from dmvae.stages import stages
from plans import count_only

RECIPES = sorted((Path(cli.__file__).parent / "recipes").rglob("*.yaml"))
PLAIN = {"size": "Mini/1", "head_width": 64, "width": 384, "depth": 12, "heads": 6}
FINISHED = {"pretrained": {"type": "diffusers", "path": "x"}, "autoencoder": None, "encoder": None, "tokenizer": None}
DMD = {"objective": {"type": "dmd"}, "balance": "gradient", "noise": "none", "student_steps": 5}
PATCHES = {"type": "patchgan", "width": 64, "layers": 3, "norm": "batch"}
USUAL = {
    "autoencoder.bottleneck_width": 2048,
    "losses.adversarial": PATCHES,
    "sample.guidance": [1.0],
    "reference": {"batch_size": 256, "model": {"width": 384, "depth": 12, "heads": 6}},
}
"""What the tiny recipe gives, at its default."""
WHOLE = {"reference": None, "matching": None, "decoder": None}
PIXELS = WHOLE | FINISHED | {"pretrained": {"type": "identity"}}
GAUSSIAN = {"reference.distribution": {"type": "gaussian"}}
CHECKPOINT = {
    "autoencoder.encoder": {"type": "timm", "model": "vit_tiny_patch16_224", "checkpoint": "x.pt"},
    "encoder": None,
    "tokenizer.train_encoder": True,
}


def write(folder, **variants):
    return tiny.write(folder, **USUAL, variants=variants or {"main": {"matching": DMD}})


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
        (
            {"run.measure_every": 9},
            "run.measure_every: 9 changes nothing: no stage that is measured trains for so many steps",
        ),
        ({"run.measure_samples": 9}, "run.measure_samples: 9 changes nothing: no generator is measured while it"),
        ({"matching.model.width": 48}, "matching.model changes nothing: the student is a copy"),
        (
            {"matching.target": 1.2},
            "matching.target: 1.2 changes nothing: it only acts with matching.balance: distance",
        ),
        ({"matching.objective.ratio_width": 64}, "matching.objective.ratio_width: 64 changes nothing"),
        ({"sample.last_step": 0.1}, "sample.last_step: 0.1 changes nothing: it only acts with sample.method: sde"),
        (
            {"sample.diffusion": "sbdm"},
            "sample.diffusion changes nothing: it only acts with sample.method: sde",
        ),
        ({"sample.rtol": 0.1}, "sample.rtol: 0.1 changes nothing: it only acts with sample.method: dopri5"),
        (
            {"sample.method": "dopri5", "sample.time_shift": 2.0},
            "sample.time_shift: 2.0 changes nothing: sample.method: dopri5 chooses its times",
        ),
        (
            {"sample.method": "sde", "sample.last_step": 0.0, "sample.last_step_kind": "euler"},
            "sample.last_step_kind changes nothing: it only acts with sample.method: sde and a last",
        ),
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
            "matching.time_shift: 3.0 changes nothing: its objective trains no velocity",
        ),
        (
            {
                "matching.objective": {"type": "transport"},
                "matching.time_distribution": "logit_normal",
                "matching.time_mean": 0.5,
            },
            "matching.time_distribution, time_mean: 0.5 change nothing: its objective trains no velocity",
        ),
        (
            {"matching.objective": {"type": "teacher_loss"}, "matching.time_shift": 3.0},
            "matching.time_shift: 3.0 changes nothing: its objective trains no velocity",
        ),
        (
            {"matching.objective": {"type": "adversarial"}, "matching.label_dropout": 1.0},
            "matching.label_dropout: 1.0 changes nothing: its objective trains no velocity",
        ),
        (
            {"matching.objective": {"type": "adversarial"}, "matching.model.width": 48},
            "matching.model changes nothing: the student is a copy of the teacher",
        ),
        (
            {"reference.distribution": {"type": "mixture", "fit": {"type": "features"}, "scale": "raw", "std": 0.9}},
            "reference.distribution.std: 0.9, scale change nothing: a mixture with `fit`",
        ),
        (
            {"reference.distribution": {"type": "mixture", "file": "x.safetensors", "components": 3}},
            "reference.distribution.components: 3 changes nothing: the file says it",
        ),
        ({"run.keep_every": 9}, "run.keep_every: 9 changes nothing: no stage trains for so many steps"),
        (PIXELS | {"data.flip": True}, "data.flip: True changes nothing: no stage trains on images"),
        (PIXELS | {"losses.l1": 0.5}, "losses.l1: 0.5 changes nothing: no stage trains a decoder"),
        (PIXELS | {"losses.adversarial.weight": 0.9}, "losses.adversarial.weight: 0.9 changes nothing: no stage"),
        (
            PIXELS | {"decoder": {"steps": 9, "adversarial": PATCHES}, "losses.adversarial.weight": 0.9},
            "losses.adversarial.weight: 0.9 changes nothing: no stage trains a decoder against it; what",
        ),
        (
            {"losses.adversarial": {"augment": False, "cutout": 0.2}},
            "losses.adversarial.cutout: 0.2 changes nothing: augment: false blanks nothing",
        ),
        ({"losses.adversarial.start": 0.25} | FINISHED, "losses.adversarial.start: 0.25 changes nothing: it is a"),
        (
            FINISHED | {"losses.adversarial": {"weight": 0.0, "start": 0.25, "augment": False, "cutout": 0.2}},
            "losses.adversarial.start: 0.25, augment: False, cutout: 0.2 change nothing: weight: 0 trains no disc",
        ),
        (
            {"decoder.adversarial": PATCHES | {"weight": 0.0, "width": 32}},
            "decoder.adversarial.width: 32 changes nothing: weight: 0 trains no discriminator",
        ),
        (
            FINISHED | {"autoencoder": {"encoder": {"type": "conv"}, "latent_channels": 8}},
            "autoencoder.encoder, latent_channels: 8, decoder change nothing: `p",
        ),
        (
            {"autoencoder.latent_channels": None, "autoencoder.bottleneck_width": 64},
            "autoencoder.bottleneck_width: 64 changes nothing: latent_channels: null is no bottleneck",
        ),
        (
            WHOLE | {"autoencoder.detail_width": 16},
            "autoencoder.detail_width: 16 changes nothing: the network stays at zero",
        ),
        (CHECKPOINT, "autoencoder.encoder.checkpoint changes nothing: the encoder begins with random"),
        (
            CHECKPOINT | {"encoder": {"steps": 4, "start": "scratch"}, "tokenizer.train_encoder": False},
            "autoencoder.encoder.checkpoint changes nothing: the encoder begins with random weights",
        ),
        (
            {"tokenizer.alignment": {"kind": "l2", "m1": 0.1}},
            "tokenizer.alignment.m1: 0.1 changes nothing: they are of kind: vf",
        ),
        (
            GAUSSIAN | {"reference.time_shift": 3.0, "reference.ema": 0.5, "reference.model.width": 48},
            "reference.ema: 0.5, time_shift: 3.0, model change nothing: no teacher is trained",
        ),
        ({"reference.drawn": True}, "reference.drawn: True changes nothing: the tokenizer has no posteriors"),
        (
            {"reference.distribution": {"type": "effnet", "reduction_steps": 5}},
            "reference.distribution.reduction_steps: 5 changes nothing: no MLP is learned",
        ),
        (
            {"reference.distribution": {"type": "features", "reduction_width": 8}},
            "reference.distribution.reduction_width: 8 changes nothing: no MLP is learned",
        ),
        (
            {"reference.distribution": {"type": "noise_states", "of": {"type": "effnet", "reduction_steps": 5}}},
            "reference.distribution.of.reduction_steps: 5 changes nothing: no MLP is learned",
        ),
        (
            {"reference.distribution": {"type": "text", "captions": "x.parquet", "templates": ["a {}"]}},
            "reference.distribution.templates: ['a {}'] changes nothing: captions are in their place",
        ),
        (
            {"reference.distribution": {"type": "text", "label_column": "kind"}},
            "reference.distribution.label_column changes nothing: they are of captions in files",
        ),
        ({"matching.noise_width": 32}, "matching.noise_width: 32 changes nothing: no samples are edited"),
        (
            {"matching.objective": {"type": "transport"}, "matching.student_steps": 3},
            "matching.student_steps: 3 changes nothing: its objective trains no student",
        ),
        (
            {"matching.objective": {"type": "hand_over", "near": {"type": "dmd", "guidance": 5.0, "ratio_width": 64}}},
            "matching.objective.near.ratio_width: 64 changes nothing: it only acts with a divergence",
        ),
        (GAUSSIAN | {"matching.label_dropout": 0.2}, "matching.label_dropout: 0.2 changes nothing: its objective"),
        (GAUSSIAN | {"matching.objective.guidance": 3.0}, "matching.objective.guidance: 3.0 changes nothing: the"),
        (
            {"generator.model": PLAIN | {"size": None, "head_width": None, "head_depth": 4, "head_heads": 4}},
            "generator.model.head_depth: 4, head_heads: 4 change nothing",
        ),
    ],
)
def test_what_nothing_reads_is_told(tmp_path, given, told):
    path = write(tmp_path)
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
        ({"sample.last_step": 0.1, "sample.diffusion": "sbdm"}, {"sample.method": "sde"}),
        ({"sample.rtol": 0.1}, {"sample.method": "dopri5"}),
        ({"sample.guidance_interval": [0.2, 0.5]}, {"sample.guidance": [1.0, 2.0]}),
        ({"sample.guidance_channels": 2}, {"sample.guidance": [1.0, 2.0]}),
        ({"generator.model": {"width": 48, "heads": 3}}, {}),
        ({"matching.time_shift": 3.0}, {"matching.objective": {"type": "student_loss"}}),
        ({"matching.label_dropout": 0.2}, {}),
        (
            {"matching.time_shift": 3.0},
            {"matching.objective": {"type": "hand_over", "far": {"type": "transport"}, "near": {"type": "dmd"}}},
        ),
        ({"reference.distribution": {"type": "mixture", "std": 0.9, "scale": "raw"}}, {}),
        ({"reference.distribution": {"type": "gaussian", "scale": "raw"}}, {}),
        ({"generator.model": {"size": "Mini/1", "head_width": 64}}, {"generator.model": PLAIN}),
        ({"run.keep_every": 8}, {}),
        ({"data.flip": True}, {}),
        ({"data.flip": True, "latents.stored": 8}, PIXELS),
        ({"losses.adversarial.weight": 0.9}, {"decoder.adversarial": PATCHES}),
        ({"losses.adversarial.start": 0.25}, {}),
        ({"losses.adversarial.cutout": 0.2}, {}),
        ({"autoencoder.latent_channels": 8, "autoencoder.bottleneck_width": 64}, {}),
        ({"autoencoder.detail_width": 16}, {}),
        ({"autoencoder.detail_width": 16, "tokenizer.train_detail": True}, WHOLE),
        ({"autoencoder.detail_width": 16}, WHOLE | {"generator": None, "sample": None, "evaluate": None}),
        (CHECKPOINT, {"tokenizer.train_encoder": False}),
        (CHECKPOINT, {"tokenizer.start": "pretrained"}),
        (CHECKPOINT, {"tokenizer.alignment": {}}),
        (CHECKPOINT, {"encoder": {"steps": 4, "start": "public"}}),
        ({"latents.mirrored": True}, {"generator": None, "sample": None}),  # `dmvae export lightningdit-latents`
        ({"matching": {"steps": 8, "balance": "gradient"}}, {}),  # which gets no target
        ({"tokenizer.alignment": {"m1": 0.1}}, {}),
        ({"reference.time_shift": 3.0, "reference.ema": 0.5}, {}),
        ({"reference.drawn": True}, {"autoencoder.variational": True}),
        ({"reference.drawn": True}, FINISHED),
        ({"reference.distribution": {"type": "effnet", "reduction": "bottleneck", "reduction_steps": 5}}, {}),
        ({"reference.distribution": {"type": "text", "templates": ["a {}"]}}, {}),
        ({"matching.noise_width": 32, "matching.noise_bank": 64}, {"matching.noise": "reference"}),
        ({"matching.student_steps": 3}, {"matching.objective": {"type": "adversarial"}}),
        (
            {"matching.objective": {"type": "hand_over", "near": {"type": "dmd", "guidance": 5.0, "ratio_width": 64}}},
            {"matching.objective.near.divergence": "forward_kl"},
        ),
        ({"matching.objective.guidance": 3.0}, {}),
        ({"matching.objective.guidance": 1.0}, GAUSSIAN),
        ({"generator.model.head_depth": 4, "generator.model.head_width": 64}, {}),
    ],
)
def test_what_something_reads_is_not(tmp_path, given, beside):
    path = write(tmp_path)
    assert idle(load(path, given | beside)) == []


def test_variants_are_named_where_they_are_not_all(tmp_path):
    path = tiny.write(tmp_path, variants={"a": {}, "b": {"sample.last_step": 0.1}, "c": {"sample.last_step": 0.1}})
    (line,) = idle(load(path))
    assert line.endswith("(b, c)") or line.endswith("(b and c)")


def test_what_another_variant_reads_stands_at_the_top(tmp_path):
    edited = {"matching": DMD | {"noise": "reference"}}
    path = write(tmp_path, a={"matching": DMD}, b=edited)
    assert idle(load(path, {"matching.noise_width": 32})) == []
    (line,) = idle(load(path, {"variants.a.matching.noise_width": 32}))
    assert line.endswith("(a)")


def test_a_share_of_test_images_is_none_beside_a_folder_of_them(tmp_path):
    data = {"type": "image_folder", "root": str(tmp_path / "data"), "size": 12, "valid_fraction": 0.2}
    path = write(tmp_path, main={"matching": DMD, "data": data})
    (tmp_path / "data/train").mkdir(parents=True)
    assert idle(load(path)) == []
    (tmp_path / "data/val").mkdir()
    (line,) = idle(load(path))
    assert line == "data.valid_fraction: 0.2 changes nothing: data.root has train and test images apart"


@pytest.mark.slow
def test_it_changes_nothing(tmp_path):
    short = {
        "encoder": None,
        "tokenizer": {"steps": 1, "train_encoder": True},
        "reference.steps": 1,
        "matching.steps": 4,
        "matching.model": tiny.DIT,
    }
    given = short | GAUSSIAN | {"matching.objective.guidance": 2.0, "matching.noise": "none"}
    more = {
        "matching.label_dropout": 0.6,
        "matching.noise_width": 32,
        "reference.batch_size": 4,
        "reference.drawn": True,
    }
    found = []
    for name, over in (("few", {}), ("more", more | {"matching.objective.guidance": 7.0})):
        (tmp_path / name).mkdir()
        path = tiny.write(tmp_path / name, variants={"main": given | over})
        told = idle(load(path))
        assert all(any(key.rpartition(".")[2] in line for line in told) for key in over)
        tiny.run(path, until="matching")
        found.append({key: x for key, x in tiny.weights(tmp_path / name / "run").items() if "/matching/" in key})
    few, many = found
    assert few
    assert few.keys() == many.keys()
    assert all(torch.equal(few[key], many[key]) for key in few)


def test_a_dry_run_says_it(tmp_path, capsys, monkeypatch):
    count_only(monkeypatch)
    cli.main(["run", str(tiny.write(tmp_path)), "--variant", "kl", "--dry-run", "--sample.last_step", "0.1"])
    assert "sample.last_step: 0.1 changes nothing" in " ".join(capsys.readouterr().out.split())


def test_every_field_is_there():
    fields = {stage.name: stage.Config.__dataclass_fields__ for stage in stages()}
    for place in IDLE:
        section, names = place.split(".")[:2]
        assert section in ("run", "data", "autoencoder", "losses") or set(names.split("|")) <= set(fields[section])


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_that_come_with_the_package_have_none(path):
    """Of all variants, and of each that is chosen alone."""
    recipes = load(path, {"data.root": "/"} if path.stem in ROOTS else None)
    assert idle(recipes) == []
    assert [line for name in recipes for line in idle({name: recipes[name]}, recipes)] == []


ROOTS = [path.stem for path in RECIPES if "--data.root" in path.read_text().split("name:")[0]]
