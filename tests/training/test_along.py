"""REPA-E's generator that trains along with the tokenizer: its average is kept, and the stage `generator` starts from
it, or takes it as it is."""

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

import processes
import tiny
from dmvae import pipeline
from dmvae.generators.flow import FlowModelConfig
from dmvae.inputs import Inputs
from dmvae.jobs import plan
from dmvae.latents.store import LatentSet
from dmvae.losses.alignment.repa_e import RepaE
from dmvae.models.artifact import save_network
from dmvae.recipe import load
from dmvae.stages.tokenizer import TokenizerStage
from dmvae.training import starting
from dmvae.training.stage import Batch
from dmvae.training.trainer import Trainer

FILE = "diffusion_pytorch_model.safetensors"
ALIGNMENT = {"type": "repa_e", "width": 8, "model": tiny.DIT, "ema": 0.15}
SIT = {"type": "sit"} | tiny.DIT
ALONG = dict.fromkeys(("reference", "matching", "decoder", "sample", "evaluate")) | {
    "tokenizer": {"train_encoder": True, "start": "scratch", "alignment": ALIGNMENT},
    "generator": {"start_from": "alignment", "steps": 0},
}


def write(folder, over=None, **more):
    folder.mkdir(exist_ok=True)
    return tiny.write(folder, variants={"main": ALONG | (over or {})}, run__precision="float32", **more)


def flow_of(folder):
    """The flow model in the folder of a stage `tokenizer`."""
    tensors = load_file(folder / "projection" / FILE)
    return {name.removeprefix("flow."): tensor for name, tensor in tensors.items() if name.startswith("flow.")}


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run to its report, and what it printed."""
    folder = tmp_path_factory.mktemp("along")
    tiny.run(write(folder, {"sample": {}, "evaluate": {}}))
    return folder / "run/main"


@pytest.mark.slow
def test_with_no_steps_the_generator_is_the_one_that_trained_along(finished):
    assert same(flow_of(finished / "tokenizer"), load_file(finished / "generator/generator" / FILE))
    assert (finished / "evaluate/metrics.json").exists()


@pytest.mark.slow
def test_one_of_another_kind_is_taken_as_that(tmp_path):
    over = {"tokenizer.alignment.model": SIT, "generator.model": SIT}
    tiny.run(write(tmp_path, over))
    folder = tmp_path / "run/main"
    assert same(flow_of(folder / "tokenizer"), load_file(folder / "generator/generator" / FILE))


@pytest.mark.slow
def test_what_is_kept_is_the_average_of_the_steps(finished, tmp_path, monkeypatch):
    """By a decay of its own, beside the tokenizer's."""
    jobs = {job.stage.name: job for job in plan(load(finished.parents[1] / "recipe.yaml"), finished.parent)}
    job = jobs["tokenizer"]
    inputs = Inputs(job.recipe, "main", tmp_path, job.reads, torch.device("cpu"))
    trainer = Trainer(TokenizerStage(job.recipe.section("tokenizer"), inputs))
    flow = trainer.networks.projection.flow
    wanted = flow.blocks[0].attn.qkv.weight.detach().clone()
    x, y = torch.randn(8, 3, 12, 12), torch.arange(8) % 3
    for step in range(3):
        list(trainer.train_step(Batch(x, y, step, 6)))
        decay = min(0.15, (1 + step) / (10 + step))
        wanted = decay * wanted + (1 - decay) * flow.blocks[0].attn.qkv.weight.detach()
    last = flow.blocks[0].attn.qkv.weight.detach().clone()
    trainer.save_networks(tmp_path)
    kept = flow_of(tmp_path)["blocks.0.attn.qkv.weight"]
    torch.testing.assert_close(kept, wanted)
    assert not torch.equal(kept, last)
    assert torch.equal(flow.blocks[0].attn.qkv.weight, last)


@pytest.mark.slow
def test_its_latents_are_normalised_as_it_saw_them(finished):
    """By every batch in training, and by the whole set here: mean 0 and deviation 1 both times."""
    z = torch.cat([LatentSet(finished / "latents/latents").__getitems__([i])[0] for i in range(48)])
    torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(z.std((0, 2, 3)), torch.ones(4), atol=1e-2, rtol=0)


def test_after_few_batches_too_the_latents_are_compared_with_these(tmp_path):
    """Batch norm's averages begin at mean 0 and variance 1, and are mostly that after two batches."""
    projection = RepaE(width=8, model=FlowModelConfig(**tiny.DIT)).projection((4, 3, 3), 3, 8)
    z, told = 1 + 0.1 * torch.randn(64, 4, 3, 3), []
    for _ in range(2):
        projection.norm(z)
    save_network(projection, tmp_path / "projection")
    here = {"mean": z.mean((0, 2, 3)), "std": z.std((0, 2, 3))}
    reads = {"tokenizer": tmp_path, "latents": tmp_path}
    starting._along(SimpleNamespace(reads=reads, tensors=lambda *_: here, say=told.append))
    assert told[0].endswith("by at most 0.00 standard deviations in the mean, and 0% in the standard deviation")


@pytest.mark.slow
def test_cut_and_resumed_it_ends_as_uncut(tmp_path):
    weights = []
    for name in ("whole", "cut"):
        starts = {"generator": {"start_from": "alignment", "steps": 4, "batch_size": 8}}
        path = write(tmp_path / name, starts, run__save_every=3)
        if name == "cut":
            with tiny.cut(TokenizerStage, 4):
                tiny.run(path)
        tiny.run(path)
        weights.append(tiny.weights(path.parent / "run"))
    assert same(*weights)
    whole = weights[0]
    moved = whole["main/generator/generator/final_layer.linear.bias"]
    assert not torch.equal(moved, whole["main/tokenizer/projection/flow.final_layer.linear.bias"])


@pytest.mark.slow
def test_on_two_ranks_the_same_is_kept_and_taken_whole_or_in_parts(finished, tmp_path):
    one = tiny.weights(finished.parent)
    for name, shard in (("whole", False), ("parts", True)):
        path = write(tmp_path / name, run__shard=shard)
        assert processes.on_ranks(tiny.on_rank, path, timeout=300) == [0, 0]
        two = tiny.weights(path.parent / "run")
        folder = path.parent / "run/main"
        assert same(flow_of(folder / "tokenizer"), load_file(folder / "generator/generator" / FILE))
        for key in ("flow.blocks.0.mlp.w3.weight", "flow.final_layer.linear.weight", "norm.running_mean"):
            key = f"main/tokenizer/projection/{key}"
            torch.testing.assert_close(two[key], one[key], atol=1e-4, rtol=1e-3)


def test_only_who_asks_has_other_fingerprints(tmp_path):
    def of(alignment, generator):
        over = {"tokenizer": ALONG["tokenizer"] | {"alignment": ALIGNMENT | alignment}, "generator": generator}
        return tiny.folders_of(write(tmp_path, over))

    plain = {name: value for name, value in ALIGNMENT.items() if name != "ema"}
    bare = tiny.folders_of(write(tmp_path, {"tokenizer": ALONG["tokenizer"] | {"alignment": plain}, "generator": {}}))
    said, kept = of({"ema": None}, {}), of({}, {})
    assert bare == said
    assert kept["tokenizer"] != said["tokenizer"]
    taken = of({}, ALONG["generator"])
    assert taken["latents"] == kept["latents"]
    assert taken["generator"] != kept["generator"]


def test_a_change_of_the_flow_model_alone_trains_its_heir_again(tmp_path):
    """Its folder is that of the tokenizer, which the generator reads only where it starts from there."""
    recipe = load(write(tmp_path))["main"]
    reads = {job.stage.name: set(job.reads) for job in plan({"main": recipe}, tmp_path)}
    assert reads["generator"] == {"latents", "tokenizer"}
    recipe = load(write(tmp_path, {"generator": {}}))["main"]
    reads = {job.stage.name: set(job.reads) for job in plan({"main": recipe}, tmp_path)}
    assert reads["generator"] == {"latents"}


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"tokenizer.alignment": ALIGNMENT | {"ema": None}}, r"alignment: no flow model .* ema: 0\.9999}"),
        ({"tokenizer.alignment": None}, "alignment: no flow model trains along with the tokenizer and is kept; set"),
        (
            {"generator.model": tiny.DIT | {"width": 32, "heads": 4}},
            r"tokenizer\.alignment: its weights do not fit this generator\.model .*set generator\.model: \{.*width: 16",
        ),
        ({"generator.model": tiny.DIT | {"heads": 4}}, r"set generator\.model: \{.*heads: 2"),
        (
            {"tokenizer.alignment.model": SIT, "generator.start_partly": True},
            r"alignment: its flow model is of type sit; give generator\.model that type",
        ),
        (
            {"tokenizer.alignment.model": SIT, "generator.model": SIT, "reference": {"start_from": "alignment"}},
            r"reference\.start_from: alignment: .* of type sit; give reference\.model that type",
        ),
        ({"latents.whitening": 1.0}, r"saw no whitened latents; set latents\.whitening to 0"),
        ({"generator.start_from": None}, r"generator: steps: 0 would leave random weights; give at least 1, or"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_stage(tmp_path, over, message):
    with pytest.raises(ValueError, match=message):
        pipeline.run(load(write(tmp_path, over)), tmp_path / "run")
    assert not list(tmp_path.glob("run/stages/*"))
