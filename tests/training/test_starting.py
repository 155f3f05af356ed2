"""A generator, or a teacher, that starts from weights that are there already: it has them, and their content counts."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from starts import FILE, FITS, saved

import processes
import tiny
from dmvae.inputs import Inputs
from dmvae.jobs import plan
from dmvae.models.artifact import save_network
from dmvae.models.dit import LightningDiT
from dmvae.models.dit_dh import DiTDH
from dmvae.recipe import load
from dmvae.runtime import distributed, sharding
from dmvae.stages.generator import GeneratorStage
from dmvae.training.trainer import Trainer


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


def test_a_partial_start_of_dit_dh_takes_the_frequencies_of_its_times(tmp_path):
    """They are drawn and never train: a time embedding with others than it learned with says other times."""
    head = {"head_width": 16, "head_depth": 1, "head_heads": 2}
    there = DiTDH(**(FITS | head | {"num_classes": 7}))
    save_network(there, tmp_path / "there")
    model = {"type": "dit_dh", **tiny.DIT, **head}
    given = {"start_from": str(tmp_path / "there"), "start_partly": True, "model": model}
    path = tiny.write(tmp_path, **{f"generator__{name}": value for name, value in given.items()})
    job = next(job for job in plan({"kl": load(path)["kl"]}, tmp_path / "run") if job.stage.name == "generator")
    inputs = Inputs(job.recipe, "kl", job.folder, job.reads, torch.device("cpu"))
    network = job.stage(job.recipe.section("generator"), inputs).build().generator
    assert same(network.t_embedder.state_dict(), there.t_embedder.state_dict())
