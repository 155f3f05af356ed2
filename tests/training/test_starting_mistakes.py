"""Weights that a generator, or a teacher, cannot start from: each is refused before any stage, with the fix."""

import json

import pytest
from starts import FILE, saved

import tiny
from dmvae import pipeline
from dmvae.generators import GeneratorConfig
from dmvae.models.artifact import save_network
from dmvae.recipe import load
from dmvae.registry import find, load_plugins


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (
            {"width": 32, "depth": 2},
            r"\.start_from: .*there: its weights .* \(14 tensors unknown, such as blocks\.1\..*; 26 tensors of another "
            r"shape, such as pos_embed \[1, 9, 32\], here \[1, 9, 16\] and .*: "
            r"set STAGE\.model: \{type: flow, width: 32, depth: 2",
        ),
        (
            {"num_classes": 7},
            r"y_embedder\S* \[8, 16\], here \[4, 16\]\): it was trained for 7 classes \(here 3\); use such data",
        ),
        (
            {"in_channels": 8, "input_size": 4},
            r"for 8 latent channels \(here 4\), 4 latents along each side \(here 3\); use",
        ),
        ({"mlp_ratio": 2.0}, r"3 tensors of another shape.*: no field sets mlp_ratio 2\.0 \(here 4\.0\)"),
    ],
    ids=["size", "classes", "latents", "ratio"],
)
@pytest.mark.parametrize("stage", ["generator", "reference"])
def test_what_does_not_fit_is_refused_before_any_stage(tmp_path, stage, form, message):
    path = tiny.write(tmp_path, **{f"{stage}__start_from": str(saved(tmp_path / "there", **form))})
    with pytest.raises(ValueError, match=(rf"matched: {stage}.*" + message).replace("STAGE", stage)):
        pipeline.run(load(path), tmp_path / "run")
    assert not list(tmp_path.glob("run/stages/*"))


def test_numbers_that_a_published_size_stands_for_are_asked_for_instead(tmp_path):
    path = tiny.write(tmp_path, generator__start_from=str(saved(tmp_path / "there")), generator__model={"size": "S/1"})
    with pytest.raises(
        ValueError, match=r"154 tensors missing.* set generator\.model: \{type: flow, size: null, width: 16, depth: 1, "
    ):
        pipeline.run(load(path), tmp_path / "run")


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("nothing", r"nothing: no generator is here: no such folder \(looked from .*\); give the folder"),
        ("", r"no generator is here: no config.json; did you mean \S+/generator\?"),
        ("cut", r"cut/diffusion_pytorch_model\.safetensors: damaged or cut off"),
    ],
)
def test_a_folder_that_is_none_is_refused(tmp_path, folder, message):
    saved(tmp_path / "generator")
    (saved(tmp_path / "cut") / FILE).write_bytes((tmp_path / "cut" / FILE).read_bytes()[:-9])
    path = tiny.write(tmp_path, generator__start_from=str(tmp_path / folder))
    with pytest.raises(ValueError, match=rf"kl: generator\.start_from: .*{message}"):
        pipeline.run({"kl": load(path)["kl"]}, tmp_path / "run")


def test_what_is_neither_a_path_nor_a_name_is_told_both(tmp_path):
    with pytest.raises(ValueError, match=r"generator\.start_from: 3 is not 'alignment' or a path"):
        load(tiny.write(tmp_path, generator__start_from=3))


def test_weights_of_before_a_field_came_and_of_another_kind_of_file_are_told_so(tmp_path):
    there = saved(tmp_path / "there")
    config = json.loads((there / "config.json").read_text())
    del config["qk_norm"]
    (there / "config.json").write_text(json.dumps(config))
    model = tiny.DIT | {"qk_norm": False}
    path = tiny.write(tmp_path, generator__start_from=str(there), variants={"main": {"generator.model": model}})
    with pytest.raises(ValueError, match=r"such as blocks\.0\.attn\.\S+_norm.*set generator\.model: \{.*qk_norm: true"):
        pipeline.run(load(path), tmp_path / "run")
    (there / FILE).rename(there / "diffusion_pytorch_model.bin")
    with pytest.raises(ValueError, match=r"there: its weights are no \.safetensors"):
        pipeline.run(load(path), tmp_path / "run")


@pytest.mark.parametrize("over", [{"distribution": {"type": "gaussian"}}, {"teacher": False}])
def test_a_start_of_a_teacher_that_nothing_trains_is_refused(tmp_path, over):
    given = {f"reference__{name}": value for name, value in over.items()}
    objective = {"matching__objective": {"type": "transport"}}
    path = tiny.write(tmp_path, reference__start_from=str(saved(tmp_path / "there")), **objective, **given)
    with pytest.raises(ValueError, match=r"matched: reference\.start_from: no teacher is trained here; leave it out"):
        pipeline.run(load(path), tmp_path / "run")


def test_a_teacher_without_steps_is_refused(tmp_path):
    """A reference with a velocity in closed form needs none, as other tests have it."""
    with pytest.raises(ValueError, match="reference: steps: 0 would leave random weights"):
        load(tiny.write(tmp_path, reference__steps=0))


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (
            {"width": 32},
            r"there: its weights do not fit this generator\.model: set generator\.model: \{.*width: 32",
        ),
        (
            {"heads": 4, "num_classes": 7},
            r"generator\.model: set generator\.model: \{.*width: 16, depth: 1, heads: 4",
        ),
        ({"mlp_ratio": 2.0, "num_classes": 7}, r"no field sets mlp_ratio 2\.0 \(here 4\.0\)"),
    ],
)
def test_a_partial_start_is_not_one_of_another_network(tmp_path, form, message):
    given = {"generator__start_from": str(saved(tmp_path / "there", **form)), "generator__start_partly": True}
    with pytest.raises(ValueError, match=rf"generator\.start_from: .*{message}"):
        pipeline.run(load(tiny.write(tmp_path, **given)), tmp_path / "run")


def test_other_heads_are_refused_though_every_shape_fits(tmp_path):
    there = saved(tmp_path / "there", heads=4, qk_norm=False)
    path = tiny.write(tmp_path, generator__start_from=str(there), generator__model=tiny.DIT | {"qk_norm": False})
    with pytest.raises(ValueError, match=r"do not fit this generator\.model: set generator\.model: \{.*heads: 4"):
        pipeline.run(load(path), tmp_path / "run")


PLUGIN = """
import torch
from dataclasses import dataclass
from diffusers.configuration_utils import register_to_config
from dmvae.generators import GeneratorConfig
from dmvae.models.base import Model
from dmvae.registry import register


class Means{n}(Model):
    @register_to_config
    def __init__(self, *, in_channels, input_size, num_classes):
        super().__init__()
        self.means = torch.nn.Parameter(torch.zeros(num_classes + 1, in_channels, input_size, input_size))

    def loss(self, z, labels, rng):
        return (self.means[labels] - z).square().mean()

    def sample(self, noise, labels, settings, normal=None):
        return self.means[labels] + noise


@register("means{n}")
@dataclass(frozen=True, kw_only=True)
class MeansConfig(GeneratorConfig):
    network = Means{n}

    def build(self, latent_shape, num_classes):
        return Means{n}(in_channels=latent_shape[0], input_size=latent_shape[1], num_classes=num_classes)
"""


def test_where_no_layer_fits_a_partial_start_is_refused(tmp_path):
    (tmp_path / "means.py").write_text(PLUGIN.replace("{n}", "Partly"))
    load_plugins([str(tmp_path / "means.py")])
    network = find(GeneratorConfig, "meansPartly").network
    save_network(network(in_channels=4, input_size=3, num_classes=7), tmp_path / "there")
    given = {"start_from": str(tmp_path / "there"), "start_partly": True, "model": {"type": "meansPartly"}}
    path = tiny.write(tmp_path, plugins=[str(tmp_path / "means.py")], variants={"main": {"generator": given}})
    with pytest.raises(ValueError, match=r"there: no layer of it fits this generator\.model; leave start_from out"):
        pipeline.run(load(path), tmp_path / "run")
