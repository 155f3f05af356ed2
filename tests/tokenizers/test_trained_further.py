"""Stage `tokenizer` on a finished tokenizer: it begins there, what trains, what comes after, what is refused."""

from pathlib import Path

import foreign
import pytest
import torch

import tiny
from dmvae.commands.plan import Machine, print_plan
from dmvae.inputs import Inputs
from dmvae.jobs import plan
from dmvae.recipe import load
from dmvae.runtime.random import Random
from dmvae.tokenizers.adapted import AdaptedTokenizer, load_tokenizer
from dmvae.training.stage import Batch
from dmvae.training.trainer import Trainer

pytestmark = pytest.mark.slow

LEFT_OUT = dict.fromkeys(("encoder", "reference", "matching", "decoder", "autoencoder", "variants"))
TARGET = {"type": "effnet", "enlarge": 8, "reduce": 16}
"""Features for 2 pixels each, as the latents of an AutoencoderKL are here."""
ALIGNED = {"type": "repa_e", "width": 8, "model": tiny.DIT, "target": TARGET}


def write(folder: Path, kind: str = "AutoencoderKL", **over) -> Path:
    own = {"pretrained": foreign.source(kind, folder), "tokenizer__train_encoder": True}
    return tiny.write(folder, **(LEFT_OUT | own | over))


def trainer_of(path: Path) -> Trainer:
    job = plan(load(path), path.parent / "run")[0]
    inputs = Inputs(job.recipe, job.variant, job.folder, job.reads, torch.device("cpu"))
    return Trainer(job.stage(job.recipe.section(job.stage), inputs))


def moved(trainer: Trainer) -> list[tuple[str, set[str]]]:
    images, labels = trainer.stage.data().__getitems__(range(8))
    found = []
    for update in trainer.stage.updates(trainer.networks, Batch(images.float() / 127.5 - 1, labels, 0, 6), Random(0)):
        before = {name: p.clone() for name, p in trainer.networks.named_parameters()}
        tiny.apply(trainer, update)
        now = dict(trainer.networks.named_parameters())
        changed = {name for name, p in before.items() if not torch.equal(p, now[name])}
        found.append((update.trains, {n.removeprefix("autoencoder.network.model.").split(".")[0] for n in changed}))
    return found


def test_it_begins_at_the_finished_one_and_repa_e_moves_all_of_it(tmp_path):
    trainer = trainer_of(write(tmp_path, tokenizer__alignment=ALIGNED, tokenizer__kl_weight=1e-3))
    began = trainer.networks.autoencoder.network.model.state_dict()
    theirs = foreign.diffusers_model("AutoencoderKL").state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in began.items())
    assert moved(trainer) == [
        ("tokenizer", {"encoder", "quant_conv", "post_quant_conv", "decoder"}),
        ("projection", {"projection"}),
    ]


def test_a_frozen_encoder_stays(tmp_path):
    trainer = trainer_of(write(tmp_path, tokenizer__train_encoder=False))
    assert moved(trainer) == [("tokenizer", {"quant_conv", "post_quant_conv", "decoder"})]


def test_what_comes_after_reads_what_was_trained(tmp_path):
    """Matching and its reference, and the latents, which are saved in the tokenizer's own class too."""
    from diffusers import AutoencoderKL

    reference = {"steps": 2, "batch_size": 8, "model": tiny.DIT}
    matching = tiny.RECIPE["matching"] | {"steps": 2}
    path = write(tmp_path, reference=reference, matching=matching, tokenizer__alignment=ALIGNED)
    tiny.run(path, until="latents")
    main = tmp_path / "run/main"
    first, last = (load_tokenizer(main / stage / "autoencoder") for stage in ("tokenizer", "latents"))
    assert type(first) is type(last) is AdaptedTokenizer
    theirs = foreign.diffusers_model("AutoencoderKL").encoder.conv_in.weight
    trained = [model.network.model.encoder.conv_in.weight for model in (first, last)]
    assert len({float(w.detach().double().sum()) for w in (theirs, *trained)}) == 3
    own = AutoencoderKL.from_pretrained(main / "latents/diffusers")
    assert torch.equal(own.encoder.conv_in.weight, trained[1])


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"tokenizer__start": "pretrained"}, "start: 'pretrained' is of an encoder, and `pretrained` has one"),
        ({"tokenizer__alignment": {"weight": 0.1}}, "alignment.target: a `pretrained` tokenizer is aligned to another"),
        (
            {"tokenizer__alignment": ALIGNED | {"target": TARGET | {"enlarge": 4}}},
            "one feature per 4 pixels along each side, but a latent covers 2",
        ),
        ({"tokenizer__train_detail": True}, "train_detail: there is nothing to train"),
        ({"encoder": {}}, "needs no stage that trains one from the beginning; set encoder to null"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_runs(tmp_path, over, message):
    with pytest.raises(ValueError, match=message):
        tiny.run(write(tmp_path, **over))
    assert not (tmp_path / "run/main/tokenizer").exists()


def test_a_kl_term_needs_a_posterior(tmp_path):
    with pytest.raises(ValueError, match=r"kl_weight: a KL term .* this `pretrained` tokenizer has none: set it to 0"):
        tiny.run(write(tmp_path, "AutoencoderTiny", tokenizer__kl_weight=1e-3))


def test_one_that_cannot_be_trained_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'identity' can be used but not trained further"):
        tiny.run(write(tmp_path, "identity"))


def test_a_plan_counts_it_and_names_the_alignment_s_weights(tmp_path, capsys):
    alignment = ALIGNED | {"target": {"type": "timm", "model": "resnet18.a1_in1k"}}
    print_plan(load(write(tmp_path, tokenizer__alignment=alignment)), Machine.here())
    out = capsys.readouterr().out
    assert "tokenizer" in out
    assert "resnet18" in out
