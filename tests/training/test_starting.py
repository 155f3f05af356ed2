"""A generator, or a teacher, that starts from weights that are there already: it has them, their content counts, and
what does not fit is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import processes
import tiny
from dmvae import pipeline
from dmvae.generators import GeneratorConfig
from dmvae.inputs import Inputs
from dmvae.jobs import plan
from dmvae.models.artifact import save_network
from dmvae.models.dit import LightningDiT
from dmvae.recipe import load
from dmvae.registry import find, load_plugins
from dmvae.runtime import distributed, sharding
from dmvae.stages.generator import GeneratorStage
from dmvae.training.trainer import Trainer

FILE = "diffusion_pytorch_model.safetensors"
FITS = {"in_channels": 4, "input_size": 3, "num_classes": 3, **tiny.DIT}


def saved(folder, **over):
    """A network of that form in a folder, with weights that no initialization gives."""
    torch.manual_seed(5)
    model = LightningDiT(**(FITS | over))
    for p in model.parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p, std=0.2)
    save_network(model, folder)
    return folder


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def folder_of(path, stage="generator", variant="kl"):
    return next(
        job.folder for job in plan({variant: load(path)[variant]}, path.parent / "run") if job.stage.name == stage
    )


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    """A run with the stages before the generator, and before the reference."""
    folder = tmp_path_factory.mktemp("before")
    path = tiny.write(folder)
    tiny.run(path, "kl", until="latents")
    tiny.run(path, "matched", until="tokenizer")
    return folder / "run"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "network", "variant"), [("generator", "generator", "kl"), ("reference", "teacher", "matched")]
)
def test_a_stage_that_moves_nothing_ends_with_the_weights(tmp_path, before, stage, network, variant):
    shutil.copytree(before, tmp_path / "run", symlinks=True)
    there = saved(tmp_path / "there")
    over = {"steps": 1, "learning_rate": 0, "start_from": str(there)}
    path = tiny.write(tmp_path, **{f"{stage}__{name}": value for name, value in over.items()})
    tiny.run(path, variant, stage)
    assert same(load_file(there / FILE), load_file(folder_of(path, stage, variant) / network / FILE))


@pytest.mark.slow
def test_killed_and_resumed_is_as_never_killed(tmp_path, before):
    """The checkpoint's weights, and their average, are newer than the folder's."""
    found = []
    there = saved(tmp_path / "there")
    for name in ("whole", "killed"):
        shutil.copytree(before, tmp_path / name / "run", symlinks=True)
        over = {"generator__start_from": str(there), "generator__learning_rate": 1e-2, "run__save_every": 3}
        path = tiny.write(tmp_path / name, **over)
        if name == "killed":
            with tiny.cut(GeneratorStage, 4):
                tiny.run(path, "kl", "generator")
            assert (folder_of(path) / "checkpoints/step-00000003").is_dir()
        tiny.run(path, "kl", "generator")
        found.append(load_file(folder_of(path) / "generator" / FILE))
    assert same(*found)
    assert not same(found[0], load_file(there / FILE))


def test_content_counts_in_the_address_and_place_does_not(tmp_path):
    def addresses(folder):
        return tiny.folders_of(
            tiny.write(tmp_path, variants={"main": {}}, **({"generator__start_from": str(folder)} if folder else {}))
        )

    there = saved(tmp_path / "there")
    copy = Path(shutil.copytree(there, tmp_path / "copy"))
    without, given, moved = addresses(None), addresses(there), addresses(copy)
    weights = load_file(copy / FILE)
    weights["final_layer.linear.bias"] += 1
    save_file(weights, copy / FILE)
    others = addresses(copy)
    assert given == moved
    assert len({of["generator"] for of in (without, given, others)}) == 3
    assert without["reference"] == given["reference"]


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


def sharded(rank, path, out):
    distributed.start()
    job = next(job for job in plan({"kl": load(path)["kl"]}, path.parent / "run") if job.stage.name == "generator")
    stage = job.stage(
        job.recipe.section("generator"), Inputs(job.recipe, "", job.folder, job.reads, torch.device("cpu"))
    )
    trainer = Trainer(stage)
    network, average = trainer.networks.generator, trainer.averages["generator"]
    share = sum(p.to_local().numel() for p in network.parameters()) / sum(p.numel() for p in network.parameters())
    whole = {name: sharding.whole_tensor(value.detach()) for name, value in network.state_dict().items()}
    followed = [sharding.whole_tensor(value) for value in average.tensors]
    torch.save((share, whole, followed), f"{out}/{rank}")
    distributed.stop()


@pytest.mark.slow
def test_two_ranks_that_share_a_network_have_the_weights_in_parts(tmp_path):
    there = saved(tmp_path / "there")
    path = tiny.write(tmp_path, generator__start_from=str(there), run__shard=True)
    assert processes.on_ranks(sharded, path, str(tmp_path)) == [0, 0]
    wanted = load_file(there / FILE)
    trained = [wanted[name] for name, p in LightningDiT(**FITS).named_parameters() if p.requires_grad]
    for rank in range(2):
        share, whole, followed = torch.load(tmp_path / str(rank))
        assert share < 0.6
        assert same(whole, wanted)
        assert all(torch.equal(a, b) for a, b in zip(followed, trained, strict=True))


@pytest.mark.parametrize(
    ("form", "new"),
    [
        ({"num_classes": 7}, {"y_embedder.embedding_table.weight"}),
        ({"input_size": 6}, set()),
        (
            {"in_channels": 8, "num_classes": 7, "input_size": 6},
            {
                "x_embedder.proj.weight",
                "x_embedder.proj.bias",
                "y_embedder.embedding_table.weight",
                "final_layer.linear.weight",
                "final_layer.linear.bias",
            },
        ),
    ],
    ids=["classes", "positions", "all"],
)
def test_a_partial_start_takes_the_layers_that_fit_and_says_which(tmp_path, monkeypatch, form, new):
    """A layer whose weight has another shape keeps its own bias too, and positions are never taken."""
    there = saved(tmp_path / "there", **form)
    given = {"generator__start_from": str(there), "generator__start_partly": True}
    path = tiny.write(tmp_path, **given)
    job = next(job for job in plan({"kl": load(path)["kl"]}, tmp_path / "run") if job.stage.name == "generator")
    inputs, said = Inputs(job.recipe, "kl", job.folder, job.reads, torch.device("cpu")), []
    monkeypatch.setattr(inputs, "say", said.append)
    torch.manual_seed(0)
    section = job.recipe.section("generator")
    random = section.model.build(inputs.latent_shape, 3).state_dict()
    torch.manual_seed(0)
    network = job.stage(section, inputs).build().generator
    weights, state = load_file(there / FILE), network.state_dict()
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    assert set(state) - set(trained) == {"pos_embed"}
    assert torch.equal(state["pos_embed"], random["pos_embed"])
    for name in trained:
        assert torch.equal(state[name], (random if name in new else weights)[name]), name
    taken = sum(p.numel() for name, p in trained.items() if name not in new)
    total = sum(p.numel() for p in trained.values())
    (line,) = said
    assert line.startswith(f"starts with {taken:,} of {total:,} parameters from {there}; random: ")
    assert set(line.partition("random: ")[2].split(", ")) == (new or {"none"})


def test_gradients_reach_what_was_taken_and_what_was_not(tmp_path, before):
    shutil.copytree(before, tmp_path / "run", symlinks=True)
    there = saved(tmp_path / "there", num_classes=7, input_size=6)
    given = {"start_from": str(there), "start_partly": True, "learning_rate": 1e-2, "steps": 4}
    path = tiny.write(tmp_path, **{f"generator__{name}": value for name, value in given.items()})
    tiny.run(path, "kl", "generator")
    ends, starts = load_file(folder_of(path) / "generator" / FILE), load_file(there / FILE)
    moved = {name for name in ends if not torch.equal(ends[name], starts[name])}
    assert moved == set(ends), "all but positions learn, and positions are of another size"


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


def test_a_partial_start_counts_in_the_address_and_needs_weights(tmp_path):
    there = saved(tmp_path / "there")
    given = [{}, {"start_partly": False}, {"start_partly": True}]
    plain, said, partly = (
        tiny.folders_of(tiny.write(tmp_path, variants={"main": {"generator": {"start_from": str(there)} | over}}))
        for over in given
    )
    assert plain == said
    assert {name for name in plain if plain[name] != partly[name]} == {"generator", "sample", "evaluate"}
    with pytest.raises(ValueError, match=r"generator: start_partly: true needs weights to start from; give start_from"):
        load(tiny.write(tmp_path, generator__start_partly=True))
