"""The baselines: which networks move, what their latents are, and that each runs and resumes."""

import json

import pytest
import torch
from safetensors.torch import load_file

import tiny
from dmvae import Autoencoder
from dmvae.encoders.effnet import EffNetEncoder
from dmvae.inputs import Inputs
from dmvae.latents.store import LatentSet
from dmvae.runtime.random import Random
from dmvae.stages import STAGES
from dmvae.training.stage import Batch
from dmvae.training.trainer import Trainer

pytestmark = pytest.mark.slow

ALONE = {"reference": None, "matching": None, "decoder": None}
PUBLIC = {"enlarge": 8, "reduce": 32}


def aligned_to(target):
    alignment = {"target": target}
    return ALONE | {"encoder": None, "tokenizer": {"train_encoder": True, "kl_weight": 0.0, "alignment": alignment}}


VARIANTS = {
    "ae": ALONE | {"encoder": None, "tokenizer": {"train_encoder": True}},
    "vavae": ALONE
    | {
        "autoencoder.variational": True,
        "tokenizer": {
            "train_encoder": True,
            "start": "scratch",
            "kl_weight": 1e-4,
            "alignment": {"kind": "vf", "m1": 0},
        },
    },
    "vavae_l2": ALONE | {"tokenizer": {"train_encoder": True, "start": "scratch", "alignment": {"kind": "l2"}}},
    "repa_e": ALONE
    | {
        "tokenizer": {
            "train_encoder": True,
            "start": "scratch",
            "alignment": {"type": "repa_e", "width": 8, "model": tiny.DIT},
        },
    },
    "vavae_public": aligned_to({"type": "effnet"} | PUBLIC),
    "rae": ALONE | {"autoencoder.latent_channels": None, "tokenizer": {"noise": 0.8}, "generator.model.head_width": 16},
    "aae": {"matching.objective": {"type": "adversarial", "width": 8, "depth": 1}},
}
TOKENIZER = {"autoencoder.encoder", "autoencoder.bottleneck", "autoencoder.decoder"}


SHORT = {"encoder__steps": 2, "reference__steps": 2, "decoder__steps": 2, "generator__steps": 1, "sample__steps": 1}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Every variant, run to its end: (jobs by variant and stage, run folder)."""
    folder = tmp_path_factory.mktemp("baselines")
    path = tiny.write(folder, variants=VARIANTS, run__precision="float32", **SHORT)
    jobs = [job for variant in VARIANTS for job in tiny.run(path, variant)]
    return {(job.variant, job.stage.name): job for job in jobs}, folder / "run"


def trainer_of(job):
    inputs = Inputs(job.recipe, job.variant, job.folder, job.reads, torch.device("cpu"))
    trainer = Trainer(job.stage(job.recipe.section(job.stage), inputs))
    images, labels = trainer.stage.data().__getitems__(range(8))
    return trainer, images.float() / 127.5 - 1, labels


def moves(trainer, batch):
    """[(update's name, parts that it moved)] over one step; a part is a network, or a child of the autoencoder."""
    found = []
    for update in trainer.stage.updates(trainer.networks, batch, Random(0)):
        before = {
            name: {k: v.clone() for k, v in m.state_dict().items()} for name, m in trainer.networks.named_children()
        }
        tiny.apply(trainer, update)
        changed = {
            f"{name}.{key.split('.')[0]}" if name == "autoencoder" else name
            for name, module in trainer.networks.named_children()
            for key, value in module.state_dict().items()
            if not torch.equal(before[name][key], value)
        }
        found.append((update.trains, changed))
    return found


def test_every_baseline_runs_to_its_figures(finished):
    _, run_dir = finished
    for variant in VARIANTS:
        assert "psnr" in json.loads((run_dir / variant / "evaluate/metrics.json").read_text()), variant


def test_a_plain_autoencoder_trains_whole_and_has_no_kl(finished):
    trainer, x, y = trainer_of(finished[0]["ae", "tokenizer"])
    assert moves(trainer, Batch(x, y, 0, 6)) == [("tokenizer", TOKENIZER)]
    first = next(trainer.stage.updates(trainer.networks, Batch(x, y, 0, 6), Random(0)))
    assert first.log["tokenizer/kl"] == 0


@pytest.mark.parametrize("variant", ["vavae", "vavae_l2", "repa_e"])
def test_alignment_moves_the_projection_in_its_own_turn_and_never_the_target(finished, variant):
    trainer, x, y = trainer_of(finished[0][variant, "tokenizer"])
    assert moves(trainer, Batch(x, y, 5, 6)) == [
        ("tokenizer", TOKENIZER),
        ("projection", {"projection"}),
        ("discriminator", {"discriminator"}),
    ]
    assert not trainer.networks.target.training


def test_alignment_s_gradient_reaches_the_encoder_at_the_ratio_asked_for(finished):
    trainer, x, y = trainer_of(finished[0]["vavae", "tokenizer"])
    first = next(trainer.stage.updates(trainer.networks, Batch(x, y, 0, 6), Random(0)))
    log = tiny.apply(trainer, first)
    assert log["health/gradient_alignment"] == pytest.approx(
        0.1 * log["health/gradient_reconstruction"].item(), rel=1e-4
    )
    assert {"alignment/cosine", "alignment/distance"} <= set(log)


def test_the_target_is_the_trained_encoder_and_the_tokenizer_starts_from_scratch(finished):
    job = finished[0]["vavae", "tokenizer"]
    trained = load_file(job.reads["encoder"] / "encoder" / "model.safetensors")
    trainer, _, _ = trainer_of(job)
    target, own = trainer.networks.target.state_dict(), trainer.networks.autoencoder.encoder.state_dict()
    assert all(torch.equal(target[name], value) for name, value in trained.items())
    assert not torch.equal(own["layers.0.weight"], trained["layers.0.weight"])


def test_latents_are_aligned_to_another_network_than_the_one_that_trains(finished):
    trainer, x, y = trainer_of(finished[0]["vavae_public", "tokenizer"])
    trained = EffNetEncoder(**PUBLIC).build(size=12, channels=3, pretrained=True).state_dict()
    target = trainer.networks.target
    assert all(torch.equal(trained[name], value) for name, value in target.state_dict().items())
    assert trainer.networks.projection.weight.shape == (target.channels, 4, 1, 1)
    assert moves(trainer, Batch(x, y, 0, 6)) == [("tokenizer", TOKENIZER), ("projection", {"projection"})]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (
            {"type": "effnet", "enlarge": 4, "reduce": 32},
            "target: this encoder has one feature per 8 pixels along each side, but a latent covers 4; give",
        ),
        ({"type": "conv", "width": 8, "stride": 4, "out_channels": 8}, "alignment: its target, .* would be random"),
    ],
)
def test_a_target_that_cannot_be_one_stops_the_run_before_its_first_stage(tmp_path, target, message):
    with pytest.raises(ValueError, match=message):
        tiny.run(tiny.write(tmp_path, variants={"x": aligned_to(target)}))
    assert not (tmp_path / "run/x/tokenizer").exists()


def test_the_artifact_has_no_projection_and_no_target(finished):
    _, run_dir = finished
    assert set(load_file(run_dir / "vavae/tokenizer/autoencoder/diffusion_pytorch_model.safetensors")) == set(
        Autoencoder.from_pretrained(run_dir / "vavae/latents/autoencoder").state_dict()
    )
    assert not (run_dir / "vavae/tokenizer/target").exists()


def test_a_flow_model_that_trains_along_weighs_as_repa_e_has_it(finished):
    """The alignment's gradient at the latents is `weight` times its own, whatever the reconstruction's."""
    trainer, x, y = trainer_of(finished[0]["repa_e", "tokenizer"])
    job = finished[0]["repa_e", "tokenizer"]
    for parameter in trainer.networks.projection.parameters():  # zeros would let no gradient through
        torch.nn.init.normal_(parameter, std=0.2)
    z = trainer.networks.autoencoder.encode(x).latents.detach().requires_grad_()
    alignment = job.recipe.section(job.stage).alignment
    loss, _, _ = alignment.losses(trainer.networks.projection, z, y, trainer.networks.target(x), Random(0))
    (pull,) = torch.autograd.grad(loss, z)
    first = next(trainer.stage.updates(trainer.networks, Batch(x, y, 0, 6), Random(0)))
    log = tiny.apply(trainer, first)
    assert log["health/gradient_alignment"] == pytest.approx(1.5 * pull.norm().item(), rel=1e-4)
    assert log["alignment/cosine"] == pytest.approx(loss.item())


@pytest.mark.parametrize("start", ["pretrained", None])
def test_an_encoder_that_trains_starts_from_its_trained_weights_unless_told_otherwise(tmp_path, start):
    over = {"variants": {"x": ALONE | {"tokenizer.train_encoder": True, "tokenizer.start": start}}}
    job = {j.stage.name: j for j in tiny.run(tiny.write(tmp_path, **over), "x", until="encoder")}["tokenizer"]
    trained = load_file(job.reads["encoder"] / "encoder" / "model.safetensors")
    trainer, _, _ = trainer_of(job)
    own = trainer.networks.autoencoder.encoder.state_dict()
    assert all(torch.equal(own[name], value) for name, value in trained.items())


@torch.no_grad()
def test_rae_s_latents_are_the_frozen_encoder_s_features(finished):
    jobs, run_dir = finished
    trainer, x, _ = trainer_of(jobs["rae", "tokenizer"])
    model = Autoencoder.from_pretrained(run_dir / "rae/latents/autoencoder")
    assert (model.config.latent_channels, model.config.bottleneck_width) == (8, None)
    z = model.encode(x).latents
    assert torch.equal(z, model.encoder(x))
    trained = load_file(jobs["rae", "tokenizer"].reads["encoder"] / "encoder" / "model.safetensors")
    assert all(torch.equal(model.encoder.state_dict()[name], value) for name, value in trained.items())
    assert not trainer.networks.autoencoder.encoder.training
    seen, _ = LatentSet(run_dir / "rae/latents/latents").__getitems__(range(8))
    assert torch.allclose(seen, model.normalize(z), atol=1e-4)


def test_rae_moves_decoder_and_discriminator(finished):
    trainer, x, y = trainer_of(finished[0]["rae", "tokenizer"])
    assert moves(trainer, Batch(x, y, 5, 6)) == [
        ("tokenizer", {"autoencoder.decoder"}),
        ("discriminator", {"discriminator"}),
    ]


@pytest.mark.parametrize("stage", ["tokenizer", "decoder"])
def test_noise_is_on_what_the_decoder_sees_in_training(tmp_path, monkeypatch, stage):
    over = {"autoencoder.latent_channels": None, "reference": None, "matching": None, f"{stage}.noise": 0.8}
    path = tiny.write(tmp_path, variants={"x": over})
    jobs = {j.stage.name: j for j in tiny.run(path, "x", until="tokenizer")}
    trainer, x, y = trainer_of(jobs[stage])
    model, seen = trainer.networks.autoencoder, []
    decode = model.decode
    monkeypatch.setattr(model, "decode", lambda z: seen.append(z) or decode(z))
    next(trainer.stage.updates(trainer.networks, Batch(x, y, 0, 6), Random(0)))
    z = model.encode(x).latents
    strength = ((seen[0] - z) / z.std(dim=(0, 2, 3), keepdim=True)).flatten(1).std(1)
    wanted = 0.8 * Random(0).normal(8).abs()
    assert torch.allclose(strength, wanted, rtol=0.35)
    seen.clear()
    model(x)
    assert torch.equal(seen[0], z)


def test_aae_moves_the_critic_every_step_and_the_tokenizer_every_second(finished):
    trainer, x, y = trainer_of(finished[0]["aae", "matching"])
    assert moves(trainer, Batch(x, y, 0, 8)) == [
        ("tokenizer", TOKENIZER),
        ("discriminator", {"discriminator"}),
        ("student", {"student"}),
    ]
    assert moves(trainer, Batch(x, y, 1, 8)) == [("student", {"student"})]
    assert type(trainer.networks.student).__name__ == "Critic"


def test_aae_reads_the_reference_where_its_stage_left_it(finished):
    jobs, run_dir = finished
    assert not (run_dir / "aae/matching/latents").exists()
    trainer, _, _ = trainer_of(jobs["aae", "matching"])
    z, _ = trainer.stage.reference.sample(4, Random(0))
    assert z.shape == (4, 4, 3, 3)


@pytest.mark.parametrize(("variant", "stage"), [("aae", "matching"), ("vavae", "tokenizer")])
def test_interrupted_it_ends_in_the_same_weights(finished, tmp_path, variant, stage):
    _, whole = finished
    variants = {variant: VARIANTS[variant]}
    path = tiny.write(tmp_path, variants=variants, run__precision="float32", run__save_every=3, **SHORT)
    with tiny.cut(next(known for known in STAGES if known.name == stage), 5):
        tiny.run(path, variant, until=stage)
    assert list(tmp_path.glob(f"run/stages/{stage}*/checkpoints/step-00000003"))
    tiny.run(path, variant, until=stage)
    ours = {name: value for name, value in tiny.weights(tmp_path / "run").items() if f"/{stage}/" in name}
    theirs = tiny.weights(whole)
    assert {name.split("/")[2] for name in ours} >= ({"student"} if stage == "matching" else {"projection"})
    assert [name for name, value in ours.items() if not torch.equal(value, theirs[name])] == []
