"""Figures of held-out data while a stage trains: what they are, and that the training does not see them."""

import math

import pytest
import torch
from steps import trainer_of

import tiny
from dmvae.datasets.mixed import mixed
from dmvae.datasets.pixels import as_input, to_uint8
from dmvae.evaluation.features import extractor_of
from dmvae.evaluation.frechet import frechet_distance_of_few
from dmvae.evaluation.pairs import psnr
from dmvae.flow.loss import flow_matching_loss
from dmvae.generators import load_generator
from dmvae.inputs import Inputs
from dmvae.models.transformer import LabelEmbedder
from dmvae.runtime.random import Random, seed_of
from dmvae.stages import generator as generator_stage
from dmvae.stages.measuring import generator_loss
from dmvae.stages.tokenizer import TokenizerStage
from dmvae.tokenizers.adapted import load_tokenizer
from dmvae.training.logging import Figures, read_figures
from dmvae.training.watching import write_measured

CPU = torch.device("cpu")
DRAWN = 10
MEASURED = {"tokenizer": "psnr", "reference": "loss", "matching": "psnr", "decoder": "psnr", "generator": "loss"}


def split(folder):
    """(rows of the training's own figures, {step: row} of those of held-out data), without times."""
    rows = [{k: x for k, x in row.items() if k != "seconds"} for row in read_figures(folder / "log.jsonl")]
    tested = [row for row in rows if any(name.startswith("test/") for name in row)]
    return [row for row in rows if row not in tested], {row.pop("step"): row for row in tested}


@pytest.mark.slow
def test_every_stage_is_measured_and_ends_in_the_same_weights(tmp_path):
    own = {"run__precision": "float32", "run__log_every": 2, "generator__ema": 0.5, "latents__whitening": 0.5}
    found = []
    for name, every in (("without", 0), ("with", 2)):
        (tmp_path / name).mkdir()
        path = tiny.write(tmp_path / name, **own, run__measure_every=every, run__measure_samples=every * DRAWN // 2)
        jobs = {job.stage.name: job for job in tiny.run(path, "matched", until="generator")}
        rows = {stage: split(jobs[stage].folder) for stage in ("encoder", *MEASURED)}
        found.append((tiny.weights(tmp_path / name / "run"), rows))
    (weights, plain), (same, rows) = found
    assert all(torch.equal(tensor, weights[name]) for name, tensor in same.items())
    for stage, (means, tested) in rows.items():
        assert means == plain[stage][0]
        assert plain[stage][1] == {}
        steps = range(2, tiny.RECIPE[stage]["steps"] + 1, 2) if stage in MEASURED else []
        names = [f"test/{MEASURED.get(stage)}", *(["test/gfd"] if stage == "generator" else [])]
        assert {step: [*row] for step, row in tested.items()} == dict.fromkeys(steps, names)

    inputs = Inputs(jobs["sample"].recipe, "matched", tmp_path, {}, CPU)
    test_set, count = inputs.test_set, len(inputs.test_set)
    images = torch.stack([torch.as_tensor(test_set[i][0]) for i in range(count)])
    with torch.no_grad():
        for stage in ("tokenizer", "matching", "decoder"):
            tokenizer = load_tokenizer(jobs[stage].folder / "autoencoder").eval()
            copies = to_uint8(tokenizer.decode(tokenizer.encode(as_input(images, CPU)).latents).sample)
            last = rows[stage][1][tiny.RECIPE[stage]["steps"]]
            assert last["test/psnr"] == pytest.approx(float(psnr(images, copies).mean()), abs=1e-3), "as it is saved"

        tokenizer = load_tokenizer(jobs["latents"].folder / "autoencoder").eval()
        z = tokenizer.normalize(tokenizer.encode(as_input(images, CPU)).latents)
        source = torch.Generator().manual_seed(seed_of("generator_loss", 0))
        t, noise = torch.rand(count, generator=source), torch.randn(z.shape, generator=source)
        generator = load_generator(jobs["generator"].folder / "generator").eval()
        loss = flow_matching_loss(generator, z=z, labels=test_set.labels, t=t, noise=noise)
        labels = torch.arange(DRAWN) % 3
        noise = Random.alone(0, "generator", "measure", 0).normal(DRAWN, *z.shape[1:])
        settings = jobs["sample"].recipe.section("sample").settings(1.0)
        drawn = tokenizer.decode(tokenizer.denormalize(generator.sample(noise, labels, settings, None))).sample
    extractor = extractor_of(jobs["evaluate"].recipe.section("evaluate").features)
    some = torch.stack([torch.as_tensor(mixed(test_set)[i][0]) for i in range(DRAWN)])
    apart = frechet_distance_of_few(extractor(some), extractor(to_uint8(drawn)))
    assert rows["generator"][1][6]["test/loss"] == pytest.approx(float(loss), rel=1e-4)
    assert rows["generator"][1][6]["test/gfd"] == pytest.approx(apart, rel=1e-3)


@pytest.mark.slow
def test_a_training_that_goes_on_has_the_same_rows(tmp_path, monkeypatch):
    updates, found = TokenizerStage.updates, []

    def stops(self, networks, batch, rng):
        if batch.step == 5:
            raise RuntimeError("stopped")
        return updates(self, networks, batch, rng)

    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
        every = {f"run__{what}_every": n for what, n in (("measure", 2), ("save", 2), ("log", 3))}
        path = tiny.write(tmp_path / name, tokenizer__warmup=4, **every)
        if name == "stopped":
            with monkeypatch.context() as patch:
                patch.setattr(TokenizerStage, "updates", stops)
                with pytest.raises(RuntimeError, match="stopped"):
                    tiny.run(path, "kl", "tokenizer")
        tiny.run(path, "kl", "tokenizer")
        (folder,) = (tmp_path / name).glob("run/stages/tokenizer-*")
        found.append(split(folder))
    assert found[0] == found[1]
    means, tested = found[0]
    assert [*tested] == [2, 4, 6]
    rates = {row["step"]: row["tokenizer/learning_rate"] for row in means}
    assert rates == pytest.approx({step: 1e-4 * min(1, step / 4) for step in (2, 3, 4, 6)})


@pytest.mark.parametrize("stage", [*MEASURED])
def test_what_cannot_be_measured_is_told_and_changes_nothing(tmp_path, monkeypatch, stage):
    trainer = trainer_of(tmp_path, stage)
    modes = [module.training for module in trainer.networks.modules()]
    before = {name: tensor.clone() for name, tensor in trainer.networks.state_dict().items()}
    state = torch.get_rng_state()

    def write(step):
        figures = Figures(tmp_path, "none", step - 1, "")
        trainer.step = step
        write_measured(trainer, figures)

    def draws(self, network):
        torch.rand(1)
        return {"odd": torch.tensor(2.0), "lost": math.nan}

    for measure, why in ((lambda self, network: 1 / 0, "division by zero"), (draws, "test/lost is nan")):
        with monkeypatch.context() as patch:
            patch.setattr(type(trainer.stage), "measure", measure)
            with pytest.warns(UserWarning, match=rf"{stage}, step 7: no figures of test data \({why}\); the training"):
                write(7)
    write(8)
    write(9)
    _, tested = split(tmp_path)
    assert [*tested] == [8, 9]
    assert tested[8] == tested[9], "data and noise are the same at every step"
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in trainer.networks.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.networks.state_dict().items())


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"run__measure_samples": 1}, "run: measure_samples: 1 sample is no set"),
        ({"run__measure_samples": 9, "evaluate": None}, r"run.measure_samples: .*; give a section evaluate"),
    ],
)
def test_samples_that_cannot_be_measured_are_told_before_anything_runs(tmp_path, over, message):
    with pytest.raises(ValueError, match=message):
        tiny.run(tiny.write(tmp_path, run__measure_every=2, **over))
    assert not (tmp_path / "run/matched").exists()


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_a_network_that_learned_no_labels_is_asked_by_none(tmp_path, monkeypatch, share):
    forward, asked = LabelEmbedder.forward, set()
    monkeypatch.setattr(
        LabelEmbedder, "forward", lambda self, labels: asked.update(labels.tolist()) or forward(self, labels)
    )
    monkeypatch.setattr(generator_stage, "labels_of", lambda folder: torch.arange(3))
    for name in ("reference", "generator"):
        stage = (trainer := trainer_of(tmp_path, name, **{f"{name}__label_dropout": share}, sample=None)).stage
        network = getattr(trainer.networks, stage.measured)
        with torch.no_grad():
            stage.measure(network)
            assert asked == ({3} if share == 1 else {0, 1, 2})
            asked.clear()
    inputs = stage.inputs
    inputs.reads |= {"generator": tmp_path}
    inputs.configs |= {"generator": stage.config}
    with torch.no_grad():
        stage.picture(network)
    generator_loss(torch.randn(3, *inputs.latent_shape), torch.arange(3), inputs)
    assert asked == ({3} if share == 1 else {0, 1, 2})
