"""Tokenizer `reshaped`: the same reconstructions whatever the bijection becomes, and what trains it."""

import json
import shutil
from pathlib import Path

import foreign
import pytest
import torch

import tiny
from dmvae.config import read
from dmvae.idle import idle
from dmvae.inputs import Inputs
from dmvae.jobs import plan
from dmvae.models.coupling import CouplingFlow
from dmvae.recipe import load
from dmvae.runtime.random import Random
from dmvae.tokenizers import TokenizerSource
from dmvae.tokenizers.adapted import adapt, load_tokenizer
from dmvae.training.stage import Batch
from dmvae.training.trainer import Trainer

LEFT_OUT = dict.fromkeys(("encoder", "tokenizer", "decoder", "autoencoder", "variants"))


def images(n: int = 4, size: int = 12) -> torch.Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def turned(flow: CouplingFlow) -> CouplingFlow:
    """With weights by which every layer does something."""
    torch.manual_seed(1)
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return flow


def write(folder: Path, kind: str = "AutoencoderKL", **over) -> Path:
    pretrained = {"type": "reshaped", "source": foreign.source(kind, folder), "layers": 2, "width": 8}
    reference = {"teacher": False, "distribution": {"type": "gaussian"}}
    matching = {"steps": 4, "batch_size": 16, "objective": {"type": "energy"}}
    return tiny.write(
        folder, **LEFT_OUT | {"pretrained": pretrained, "reference": reference, "matching": matching} | over
    )


def test_the_inverse_is_the_inverse():
    flow, z = turned(CouplingFlow(5, 3, 8)), torch.randn(2, 5, 3, 3)
    assert not torch.allclose(flow(z), z, atol=0.1)
    assert torch.allclose(flow(flow(z), inverse=True), z, atol=1e-4)
    assert torch.allclose(flow(flow(z, inverse=True)), z, atol=1e-4)


def test_a_layer_keeps_half_of_the_turned_channels():
    layer, z = turned(CouplingFlow(6, 1, 8)).layers[0], torch.randn(2, 6, 3, 3)
    before, after = (torch.einsum("dc,nchw->ndhw", layer.rotation, x) for x in (z, layer(z)))
    assert torch.allclose(after[:, :3], before[:, :3], atol=1e-5)
    assert not torch.allclose(after[:, 3:], before[:, 3:], atol=0.1)
    assert torch.allclose(layer.rotation @ layer.rotation.T, torch.eye(6), atol=1e-6)


def test_it_begins_as_the_identity_alike_in_every_process():
    first, second = CouplingFlow(4, 2, 8), CouplingFlow(4, 2, 8)
    z = torch.randn(2, 4, 3, 3)
    assert torch.allclose(first(z), z, atol=1e-6)
    assert all(torch.equal(a.rotation, b.rotation) for a, b in zip(first.layers, second.layers, strict=True))
    assert not torch.allclose(first.layers[0].rotation, first.layers[1].rotation, atol=0.1)


def test_a_single_channel_has_no_halves():
    with pytest.raises(ValueError, match="1 channel have no halves"):
        CouplingFlow(1, 1, 8)


@pytest.mark.parametrize("kind", ["AutoencoderKL", "AutoencoderRAE", "dmvae"])
def test_reconstructions_stay_whatever_the_bijection_is(tmp_path, kind):
    source = foreign.source(kind, tmp_path)
    x = images(size=16)
    plain = adapt(read(TokenizerSource, source, "source"), size=16, channels=3, pretrained=True)
    shaped = {"type": "reshaped", "source": source, "layers": 3, "width": 8}
    model = adapt(read(TokenizerSource, shaped, "source"), size=16, channels=3, pretrained=True)
    turned(model.network.flow)
    with torch.no_grad():
        z, moved = plain.encode(x).latents, model.encode(x).latents
        assert moved.shape == z.shape
        assert not torch.allclose(moved, z, atol=0.1)
        assert torch.allclose(model.decode(moved).sample, plain.decode(z).sample, atol=1e-3)


def test_its_flow_sees_latents_as_one_of_ours_normalises_them(tmp_path):
    ours = foreign.own_model()
    ours.set_statistics(torch.full((4,), 3.0), torch.full((4,), 2.0))
    ours.save_pretrained(tmp_path / "own")
    size = ours.config["image_size"]
    shaped = {"type": "reshaped", "source": {"type": "dmvae", "path": str(tmp_path / "own")}, "layers": 1, "width": 8}
    model = adapt(read(TokenizerSource, shaped, "source"), size=size, channels=3, pretrained=True)
    x = images(size=size)
    with torch.no_grad():
        z = ours.encode(x).latents
        assert torch.allclose(model.encode(x).latents, (z - 3) / 2, atol=1e-5)
        assert torch.allclose(model.decode((z - 3) / 2).sample, ours.decode(z).sample, atol=1e-3)


def test_its_flow_sees_latents_as_an_artifact_of_an_artifact_normalises_them(tmp_path):
    """Each run that used a tokenizer as it is has put an adapter around it, with statistics of its own."""
    source = foreign.source("AutoencoderKL", tmp_path)
    for mean in (3.0, 5.0):
        model = adapt(read(TokenizerSource, source, "source"), size=16, channels=3, pretrained=True)
        model.set_statistics(torch.full((4,), mean), torch.full((4,), 2.0))
        model.save_pretrained(tmp_path / f"{mean}")
        source = {"type": "dmvae", "path": str(tmp_path / f"{mean}")}
    shaped = {"type": "reshaped", "source": source, "layers": 1, "width": 8}
    adapt(read(TokenizerSource, shaped, "source"), size=16, channels=3, pretrained=True).save_pretrained(tmp_path / "r")
    x = images(size=16)
    with torch.no_grad():
        z, known = model.encode(x).latents, load_tokenizer(tmp_path / "r")
        assert torch.allclose(known.encode(x).latents, (z - 5) / 2, atol=1e-5)
        assert torch.allclose(known.decode((z - 5) / 2).sample, model.decode(z).sample, atol=1e-3)


@pytest.mark.parametrize("kind", ["AutoencoderKL", "vavae", "dmvae"])
def test_its_artifact_needs_no_file_of_the_source(tmp_path, kind):
    (tmp_path / "source").mkdir()
    shaped = {"type": "reshaped", "source": foreign.source(kind, tmp_path / "source"), "layers": 1, "width": 8}
    model = adapt(read(TokenizerSource, shaped, "source"), size=16, channels=3, pretrained=True)
    turned(model.network.flow)
    model.save_pretrained(tmp_path / "saved")
    shutil.rmtree(tmp_path / "source")
    with torch.no_grad():
        assert torch.equal(
            load_tokenizer(tmp_path / "saved").encode(images(size=16)).latents, model.encode(images(size=16)).latents
        )


def trainer_of(path: Path, stage: str) -> Trainer:
    job = next(job for job in plan(load(path), path.parent / "run") if job.stage.name == stage)
    inputs = Inputs(job.recipe, job.variant, job.folder, job.reads, torch.device("cpu"))
    return Trainer(job.stage(job.recipe.section(job.stage), inputs))


@pytest.mark.parametrize(("stage", "part"), [("matching", "flow"), ("decoder", "inner")])
def test_a_matching_trains_the_bijection_alone_and_a_decoder_the_decoder(tmp_path, stage, part):
    path = write(tmp_path, decoder={"steps": 4, "batch_size": 8})
    tiny.run(path, until="reference" if stage == "matching" else "matching")
    trainer = trainer_of(path, stage)
    data, labels = trainer.stage.data().__getitems__(range(8))
    before = {name: p.clone() for name, p in trainer.networks.named_parameters()}
    for update in trainer.stage.updates(trainer.networks, Batch(data.float() / 127.5 - 1, labels, 0, 4), Random(0)):
        tiny.apply(trainer, update)
    moved = {name for name, p in trainer.networks.named_parameters() if not torch.equal(p, before[name])}
    own = {name for name in moved if not name.startswith("discriminator.")}
    assert own
    where = "autoencoder.network." + {"flow": "flow.", "inner": "inner.network.model."}[part]
    assert all(name.startswith(where) for name in own)
    if part == "inner":
        assert {name.removeprefix(where).split(".")[0] for name in own} == {"post_quant_conv", "decoder"}
    assert (part == "inner") == any(name.startswith("discriminator.") for name in moved)


@pytest.mark.slow
def test_a_run_moves_latents_and_no_reconstruction(tmp_path):
    after = dict.fromkeys(("generator", "sample", "evaluate"))
    tiny.run(write(tmp_path, matching__steps=20, matching__learning_rate=2e-2, **after))
    rows = [json.loads(line) for line in (tmp_path / "run/main/matching/log.jsonl").read_text().splitlines()]
    losses = [row["matching/loss"] for row in rows]
    assert sum(losses[-3:]) < 0.6 * sum(losses[:3])
    x = images()
    model = load_tokenizer(tmp_path / "run/main/latents/autoencoder")
    source = read(TokenizerSource, foreign.source("AutoencoderKL", tmp_path), "source")
    plain = adapt(source, size=12, channels=3, pretrained=True)
    with torch.no_grad():
        z = model.encode(x).latents
        assert not torch.allclose(z, plain.encode(x).latents, atol=0.1)
        assert torch.allclose(model.decode(z).sample, plain(x).sample, atol=1e-3)


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"matching__balance": "gradient"}, "balance: gradient or distance has nothing to go by"),
        ({"matching__noise": "fixed", "matching__noise_std": 0.5}, "noise: fixed has nothing to go by"),
        ({"matching__noise": "assigned"}, "for which the files of this `pretrained`"),
        ({"tokenizer": {"steps": 2, "batch_size": 8, "train_encoder": True}}, "there is nothing to learn"),
    ],
)
def test_what_has_nothing_to_go_by_is_refused(tmp_path, over, message):
    with pytest.raises(ValueError, match=message):
        tiny.run(write(tmp_path, **over))
    assert not (tmp_path / "run/main/reference").exists()


def test_what_a_matching_of_it_does_not_read_is_told(tmp_path):
    told = idle(load(write(tmp_path, matching__decoded=8, losses__l1=0.5)))
    assert any("decoded: 8" in line for line in told)
    assert any("losses.l1" in line for line in told)
    told = idle(load(write(tmp_path, losses__l1=0.5, decoder={"steps": 2, "batch_size": 8})))
    assert not any("losses.l1" in line for line in told)
