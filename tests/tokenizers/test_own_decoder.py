"""Decoders of one encoder: they share its generator; and a stage `decoder` with an adversary of its own."""

import json

import foreign
import pytest
import torch
from safetensors.torch import load_file

import tiny
from dmvae.jobs import plan
from dmvae.recipe import load

pytestmark = pytest.mark.slow

JUDGE = {"type": "features", "encoder": {"type": "effnet", "enlarge": 2, "reduce": 32}, "width": 8, "start": 0.5}
KL = tiny.RECIPE["variants"]["kl"]
VARIANTS = {
    "matched": {},
    "longer": {"decoder.steps": 3},
    "judged": {"decoder.adversarial": JUDGE},
    "kl": KL,
    "kl_decoder": KL | {"decoder": {"steps": 2, "batch_size": 8}},
}
SHORT = {f"{stage}__steps": 2 for stage in ("encoder", "tokenizer", "reference", "matching", "decoder", "generator")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("decoders")
    path = tiny.write(folder, variants=VARIANTS, evaluate=None, run__log_every=1, sample__count=6, **SHORT)
    tiny.run(path)
    return path


def folders(path, stage):
    return {job.variant: job.folder for job in plan(load(path), path.parent / "run") if job.stage.name == stage}


def same_latents(one, other):
    files = sorted(file.name for file in (one / "latents").glob("*.safetensors"))
    assert files
    for file in files:
        here, there = (load_file(folder / "latents" / file) for folder in (one, other))
        assert here.keys() == there.keys()
        assert all(torch.equal(here[key], there[key]) for key in there)


def test_decoders_of_one_encoder_share_its_generator_and_no_samples(finished):
    generators, samples = folders(finished, "generator"), folders(finished, "sample")
    assert generators["matched"] == generators["longer"] == generators["judged"]
    assert generators["kl"] == generators["kl_decoder"] != generators["matched"]
    assert len(set(samples.values())) == len(VARIANTS)


def test_their_latents_are_the_same_bit_for_bit(finished):
    found = folders(finished, "latents")
    for name, other in (("longer", "matched"), ("judged", "matched"), ("kl_decoder", "kl")):
        same_latents(found[name], found[other])


def test_one_s_samples_are_its_own_decoder_s(finished):
    found = {
        name: load_file(next((f / "guidance-1").iterdir()))["images"] for name, f in folders(finished, "sample").items()
    }
    assert not torch.equal(found["matched"], found["longer"])
    assert not torch.equal(found["kl"], found["kl_decoder"])


def test_an_adversary_of_its_own_starts_anew_and_joins_when_it_says(finished):
    folder = folders(finished, "decoder")["judged"]
    assert json.loads((folder / "discriminator/config.json").read_text())["_class_name"] == "FeatureGAN"
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    joined = [("adversarial/real" in row, "adversarial/weight" in row) for row in rows]
    assert joined[0] == (False, False)
    assert joined[-1] == (True, True)
    before = folders(finished, "matching")["judged"]
    assert json.loads((before / "discriminator/config.json").read_text())["_class_name"] == "PatchGAN"


def test_a_random_one_is_refused_before_anything_runs(tmp_path):
    judge = JUDGE | {"encoder": {"type": "conv", "stride": 4}}
    path = tiny.write(tmp_path, decoder__adversarial=judge)
    with pytest.raises(ValueError, match=r"matched: decoder\.adversarial: encoder: 'conv' would be random"):
        tiny.run(path)
    assert not (tmp_path / "run/matched").exists()


@pytest.mark.parametrize("kind", ["AutoencoderKL", "AutoencoderTiny", "AutoencoderDC", "vavae", "dmvae"])
def test_a_finished_tokenizer_whose_decoder_is_trained_shares_the_generator_of_the_one_as_it_is(tmp_path, kind):
    alone = dict.fromkeys(("reference", "matching"))
    over = dict.fromkeys(("encoder", "tokenizer", "autoencoder", "generator", "sample", "evaluate"))
    over |= {
        "pretrained": foreign.source(kind, tmp_path),
        "generator": {"steps": 1, "batch_size": 8, "model": tiny.DIT},
    }
    path = tiny.write(tmp_path, variants={"as_it_is": alone | {"decoder": None}, "trained": alone}, **over)
    for name in ("as_it_is", "trained"):
        tiny.run(path, name, until="latents")
    assert len(set(folders(path, "generator").values())) == 1
    found = folders(path, "latents")
    assert found["trained"] != found["as_it_is"]
    same_latents(found["trained"], found["as_it_is"])
