"""A batch in parts and activations computed again: the same weights in less memory."""

from dataclasses import replace

import pytest
import torch

import tiny
from dmvae import checks
from dmvae.inputs import Inputs
from dmvae.recipe import load
from dmvae.runtime.random import Random
from dmvae.training.stage import Batch
from dmvae.training.trainer import Trainer


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    # Small steps: Adam turns a rounding error in a gradient near zero into a full step.
    slow = {"generator__learning_rate": 1e-4, "reference__learning_rate": 1e-4}
    path = tiny.write(tmp_path_factory.mktemp("parts"), run__precision="float32", **slow)
    matched = tiny.run(path, "matched", until="tokenizer")
    found = {job.stage.name: job for job in tiny.run(path, "kl", until="latents")}
    return found | {job.stage.name: job for job in matched if job.stage.name == "reference"}


def trained(job, **run):
    """The trained networks' weights after four steps."""
    recipe = replace(job.recipe, run=replace(job.recipe.run, **run))
    inputs = Inputs(recipe, job.variant, job.folder.parent / "unused", job.reads, torch.device("cpu"))
    trainer = Trainer(job.stage(recipe.section(job.stage), inputs))
    items = trainer.stage.data()
    data, labels = items.__getitems__(range(8)) if items else (torch.empty(8), torch.empty(8, dtype=torch.int64))
    data = data if data.is_floating_point() else data / 127.5 - 1
    for step in range(4):
        for _ in trainer.train_step(Batch(data, labels, step, 4)):
            pass
        trainer.step += 1
    return [p.detach() for parameters in trainer.networks.trains.values() for p in parameters]


@pytest.fixture(scope="module")
def whole(jobs):
    return {name: trained(jobs[name]) for name in ("tokenizer", "reference", "generator")}


@pytest.mark.parametrize("parts", [2, 4])
@pytest.mark.parametrize("stage", ["reference", "generator"])
def test_parts_of_a_batch_end_at_the_weights_of_the_whole(jobs, whole, stage, parts):
    found = trained(jobs[stage], accumulate=parts)
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(found, whole[stage], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(found, whole[stage], strict=True))


@pytest.mark.parametrize(("stage", "network"), [("tokenizer", "autoencoder"), ("generator", "generator")])
def test_activations_computed_again_change_no_bit(jobs, whole, stage, network):
    found = trained(jobs[stage], checkpointing=(network,))
    assert all(torch.equal(a, b) for a, b in zip(found, whole[stage], strict=True))


def test_parts_draw_what_the_whole_draws():
    whole, parts = Random(0, 3), [Random(0, 3, part=(i, 2)) for i in range(2)]
    for draw in (lambda rng, n: rng.normal(n, 2), lambda rng, n: rng.uniform(n), lambda rng, n: rng.integers(9, n)):
        assert torch.equal(draw(whole, 8), torch.cat([draw(rng.on_cpu(), 4) for rng in parts]))


def test_draws_on_the_cpu_go_on_whatever_the_device():
    """The second draw is not the first again."""
    here, elsewhere = Random(0, 3), Random(0, 3)
    elsewhere._cpu = None  # as on a GPU
    for _ in range(2):
        assert torch.equal(here.on_cpu().normal(8, 2), elsewhere.on_cpu().normal(8, 2))
        assert torch.rand(3, generator=here.on_cpu()).tolist() == torch.rand(3, generator=elsewhere.on_cpu()).tolist()
    assert elsewhere.on_cpu() is elsewhere.on_cpu()
    assert elsewhere.on_cpu() is not elsewhere
    for made in (Random.alone(0, 3), Random(0, 3, part=(1, 2))):
        made._cpu = None
        assert (made.on_cpu().place, made.on_cpu().parts) == (made.place, made.parts)


@pytest.mark.parametrize(
    ("over", "ranks", "message"),
    [
        ({"generator__batch_size": 9}, 2, "generator.batch_size: 9 does not divide over 2 ranks; use a multiple of 2"),
        (
            {"run__accumulate": 3},
            2,
            r"reference.batch_size: 8 does not divide over 2 ranks in 3 parts each \(run.accumulate\).*multiple of 6",
        ),
        ({"matching__decoded": 5}, 2, "matching.decoded: 5 does not divide over 2 ranks; use a multiple of 2"),
        ({"run__shard": True}, 1, "run.shard: a single rank has no other to share its weights with"),
        ({"run__checkpointing": ["discriminator"]}, 1, "run.checkpointing: 'discriminator', a PatchGAN, has no blocks"),
        ({"run__checkpointing": ["generater"]}, 1, "no stage of this recipe trains a network 'generater'.*generator"),
        ({"reference": None, "matching": None, "generator": None, "sample": None, "run__accumulate": 2}, 1,
         "run.accumulate: no stage of this recipe takes its batches in parts"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told(tmp_path, over, ranks, message):
    recipe = load(tiny.write(tmp_path, **over))["matched"]
    found = "\n".join(checks.problems(recipe, recipe.stages(), ranks))
    with pytest.raises(ValueError, match=message):
        raise ValueError(found)


def test_a_batch_on_which_nothing_trains_need_not_divide(tmp_path):
    """A reference in closed form has no teacher, and its batch size is told to change nothing."""
    closed = {"reference": {"distribution": {"type": "gaussian"}}, "matching.model": tiny.DIT}
    recipes = load(tiny.write(tmp_path, variants={"teacher": {}, "closed": closed}))
    told = {name: list(checks.run_problems(recipe, recipe.stages(), 3)) for name, recipe in recipes.items()}
    only = [text for text in told["teacher"] if text not in told["closed"]]
    assert only == ["reference.batch_size: 8 does not divide over 3 ranks; use a multiple of 3"]
    assert "matching.batch_size: 8 does not divide over 3 ranks; use a multiple of 3" in told["closed"]


def test_parts_are_counted_from_one(tmp_path):
    with pytest.raises(ValueError, match=r"run\.accumulate: .*0"):
        load(tiny.write(tmp_path, run__accumulate=0))
