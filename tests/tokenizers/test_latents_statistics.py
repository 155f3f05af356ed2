"""`latents.statistics`: generators see latents as those who trained on the tokenizer before did."""

from pathlib import Path

import foreign
import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from dmvae import DMVAEPipeline
from dmvae import config as configs
from dmvae.latents.store import LatentSet
from dmvae.models.artifact import save_network
from dmvae.models.dit import LightningDiT
from dmvae.recipe import load
from dmvae.report.pipelines import write_pipelines
from dmvae.tokenizers import TokenizerSource
from dmvae.tokenizers.adapted import adapt, load_tokenizer, normalisation_of

ALONE = dict.fromkeys(
    ("encoder", "tokenizer", "reference", "matching", "decoder", "autoencoder", "variants", "sample", "evaluate")
)
OWN = {"latents": {"statistics": "own"}}
MEAN, STD = torch.tensor([0.5, -1.0, 0.0, 2.0]), torch.tensor([2.0, 1.0, 4.0, 0.5])


def write(folder: Path, pretrained: dict, **over) -> Path:
    folder.mkdir(exist_ok=True)
    given = {"pretrained": pretrained, "generator": None, "run__precision": "float32"}
    return tiny.write(folder, **ALONE | given | OWN | over)


def a_kl(folder: Path, **config) -> dict:
    """A source of an AutoencoderKL of diffusers with these fields in its config."""
    model = foreign.diffusers_model("AutoencoderKL")
    model.register_to_config(**config)
    model.save_pretrained(folder / "kl")
    return {"type": "diffusers", "path": str(folder / "kl")}


def ours(folder: Path) -> dict:
    """A source of a tokenizer of ours with MEAN and STD."""
    tiny.variational(folder / "vae", torch.ones(4))
    model = load_tokenizer(folder / "vae")
    model.set_statistics(MEAN, STD)
    save_network(model, folder / "own")
    return {"type": "dmvae", "path": str(folder / "own")}


def normalised(path: Path):
    """(what the generator learns, the same latents raw, the finished tokenizer), of all images."""
    (job,) = tiny.run(path)
    stored, model = LatentSet(job.folder / "latents"), load_tokenizer(job.folder / "autoencoder")
    everything = range(len(stored))
    torch.testing.assert_close(stored[0][0], model.normalize(stored.stored([0])[0])[0])
    return stored.__getitems__(everything)[0], stored.stored(everything)[0], model


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ({}, lambda z: z * 0.18215),
        ({"scaling_factor": 0.3611, "shift_factor": 0.1159}, lambda z: (z - 0.1159) * 0.3611),
        (
            {"latents_mean": [0.5, -1.0, 0.0, 2.0], "latents_std": [2.0, 1.0, 4.0, 0.5], "scaling_factor": 0.5},
            lambda z: (z - MEAN.view(-1, 1, 1)) * 0.5 / STD.view(-1, 1, 1),
        ),
    ],
    ids=["sd", "flux", "playground"],
)
def test_diffusers_own_scale_is_what_its_pipelines_do(tmp_path, config, wanted):
    z, raw, model = normalised(write(tmp_path, a_kl(tmp_path, **config)))
    torch.testing.assert_close(z, wanted(raw))
    torch.testing.assert_close(model.denormalize(z), raw, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("stage", [False, True], ids=["as it is", "its decoder trained"])
def test_a_tokenizer_of_ours_keeps_its_statistics(tmp_path, stage):
    over = {"decoder": {"steps": 2, "batch_size": 8}} if stage else {}
    path = write(tmp_path, ours(tmp_path), **over)
    tiny.run(path, only="decoder") if stage else None
    (job,) = [job for job in tiny.run(path) if job.stage.name == "latents"]
    model = load_tokenizer(job.folder / "autoencoder")
    assert torch.equal(model.latent_mean, MEAN)
    assert torch.equal(model.latent_std, STD)
    stored = LatentSet(job.folder / "latents")
    z, raw = stored.__getitems__([3])[0], stored.stored([3])[0]
    torch.testing.assert_close(z, (raw - MEAN.view(-1, 1, 1)) / STD.view(-1, 1, 1))


def test_a_matrix_that_whitened_them_is_kept_too(tmp_path):
    vae = {"type": "dmvae", "path": str(tiny.variational(tmp_path / "vae", torch.ones(4)))}
    first, raw, _ = normalised(write(tmp_path / "first", vae, latents={"whitening": 1.0}))
    folder = next(tmp_path.glob("first/run/stages/latents-*/autoencoder"))
    second, again, model = normalised(write(tmp_path / "second", {"type": "dmvae", "path": str(folder)}))
    torch.testing.assert_close(again, raw)
    torch.testing.assert_close(second, first)
    assert model.config["whitened"]
    of = load_file(next(tmp_path.glob("first/run/stages/latents-*/latents/statistics.safetensors")))
    file = tmp_path / "named.safetensors"
    save_file(of, file)
    third, _, _ = normalised(write(tmp_path / "third", vae, latents={"statistics": str(file)}))
    torch.testing.assert_close(third, first)


@pytest.mark.parametrize("kind", ["whitened", "behind an adapter"])
def test_those_of_a_tokenizer_whose_decoder_is_trained_are_all_kept(tmp_path, kind):
    source = a_kl(tmp_path) if kind == "whitened" else {"type": "dmvae", "path": str(tmp_path / "vae")}
    tiny.variational(tmp_path / "vae", torch.ones(4))
    first, _, _ = normalised(write(tmp_path / "first", source, latents={"whitening": 1.0}))
    pretrained = {"type": "dmvae", "path": str(next(tmp_path.glob("first/run/stages/latents-*/autoencoder")))}
    jobs = tiny.run(write(tmp_path / "second", pretrained, decoder={"steps": 2, "batch_size": 8}))
    stored, model = LatentSet(jobs[-1].folder / "latents"), load_tokenizer(jobs[-1].folder / "autoencoder")
    torch.testing.assert_close(stored.__getitems__(range(len(stored)))[0], first)
    torch.testing.assert_close(model.denormalize(first), stored.stored(range(len(stored)))[0], atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_after_a_matching_they_are_the_reference_s(tmp_path):
    over = {"matching": {"objective": {"type": "transport"}}, "reference": {"teacher": False}}
    off = dict.fromkeys(("generator", "sample", "evaluate", "decoder"))
    jobs = tiny.run(tiny.write(tmp_path, variants={"main": over | off | OWN}))
    folders = {job.stage.name: job.folder for job in jobs}
    model = load_tokenizer(folders["latents"] / "autoencoder")
    wanted = load_file(folders["reference"] / "normalisation.safetensors")
    assert torch.equal(model.latent_mean, wanted["mean"])
    assert torch.equal(model.latent_std, wanted["std"])


def test_a_file_of_lightningdit_s_gives_them_and_counts_by_its_content(tmp_path):
    def address(statistics):
        over = {"latents": {"statistics": str(statistics)}, "generator": {}}
        return tiny.folders_of(write(tmp_path, a_kl(tmp_path), **over))

    file, other = tmp_path / "latents_stats.pt", tmp_path / "elsewhere" / "latents_stats.pt"
    other.parent.mkdir()
    for place, std in ((file, STD), (other, STD)):
        torch.save({"mean": MEAN.view(1, 4, 1, 1), "std": std.view(1, 4, 1, 1)}, place)
    here, there = address(file), address(other)
    assert here == there
    torch.save({"mean": MEAN.view(1, 4, 1, 1), "std": 2 * STD.view(1, 4, 1, 1)}, other)
    changed, plain, said = address(other), address("measured"), address("own")
    assert len({of["latents"] for of in (here, changed, plain, said)}) == 4
    without = tiny.folders_of(write(tmp_path, a_kl(tmp_path), latents={}, generator={}))
    assert without == plain
    z, raw, _ = normalised(write(tmp_path / "run", a_kl(tmp_path), latents={"statistics": str(file)}))
    torch.testing.assert_close(z, (raw - MEAN.view(-1, 1, 1)) / STD.view(-1, 1, 1))


@pytest.mark.slow
def test_a_generator_that_is_there_fits_and_its_pipeline_is_one(tmp_path):
    """With its weights as they are, images come from its latents by the scale that it was trained at."""
    generator = LightningDiT(in_channels=4, input_size=6, num_classes=3, **tiny.DIT)
    save_network(generator, tmp_path / "there")
    given = {"model": tiny.DIT, "start_from": str(tmp_path / "there"), "steps": 0}
    path = write(tmp_path, a_kl(tmp_path), generator=given)
    jobs = tiny.run(path)
    write_pipelines(jobs, tmp_path / "run")
    pipe = DMVAEPipeline.from_pretrained(tmp_path / "run/main/pipeline")
    z = torch.randn(2, 4, 6, 6)
    torch.testing.assert_close(pipe.vae.denormalize(z), z / 0.18215)
    assert pipe.vae.config.scaling_factor == pytest.approx(0.18215)
    weights = pipe.transformer.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in generator.state_dict().items())


@pytest.mark.parametrize("kind", ["identity", "vavae"])
def test_who_brings_none_is_told_before_any_stage(tmp_path, kind):
    source = {"type": "identity", "patch": 4} if kind == "identity" else foreign.source(kind, tmp_path)
    with pytest.raises(ValueError, match=r"latents\.statistics: own asks for those that the tokenizer brings, and it"):
        tiny.run(write(tmp_path, source))
    assert not list(tmp_path.glob("run/stages/*"))


def test_a_tokenizer_that_is_trained_here_brings_none(tmp_path):
    with pytest.raises(ValueError, match=r"latents\.statistics: own asks for those that the tokenizer brings"):
        tiny.run(tiny.write(tmp_path, variants={"kl": tiny.RECIPE["variants"]["kl"] | OWN}))
    assert not list(tmp_path.glob("run/stages/*"))


def test_one_of_ours_without_statistics_is_told_as_its_latents_begin(tmp_path):
    vae = {"type": "dmvae", "path": str(tiny.variational(tmp_path / "vae", torch.ones(4)))}
    with pytest.raises(
        ValueError, match=r"own asks for those that the tokenizer brings, and it brings none; set it to"
    ):
        tiny.run(write(tmp_path, vae))


@pytest.mark.parametrize(
    ("kind", "scale"),
    [("AutoencoderDC", 1.0), ("AutoencoderTiny", 1.0), ("VQModel", 0.18215), ("AutoencoderRAE", None)],
)
def test_each_class_of_diffusers_brings_what_its_config_says(tmp_path, kind, scale):
    """RAE's normalises inside, if at all; a bijection's latents are others than those of the tokenizer behind it."""
    source = foreign.source(kind, tmp_path)
    size = 56 if kind == "AutoencoderRAE" else 12
    found = normalisation_of(adapt(configs.read(TokenizerSource, source, ""), size=size, channels=3, pretrained=False))
    assert (found is None) == (scale is None)
    if found is not None:
        assert found.whitening is None
        torch.testing.assert_close(found.mean, torch.zeros_like(found.mean))
        torch.testing.assert_close(found.std, torch.full_like(found.std, 1 / scale))
    behind = configs.read(TokenizerSource, {"type": "reshaped", "source": source, "layers": 1, "width": 4}, "")
    assert normalisation_of(adapt(behind, size=size, channels=3, pretrained=False)) is None


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"mean": MEAN}, "holds no std; give a mean and a std for 4 channels"),
        ({"mean": MEAN, "std": torch.ones(3)}, "holds 3 numbers of std; give"),
        ({"mean": MEAN, "std": STD, "whitening": torch.eye(3)}, "holds 9 numbers of whitening; give"),
        ({"mean": MEAN, "std": STD, "whitening": torch.ones(4, 4)}, "its whitening has no inverse"),
        ({"mean": MEAN, "std": {"a": 1}}, "its statistics are no tensors"),
        ({"mean": MEAN, "std": torch.zeros(4)}, "its numbers have to be finite, and those of std above 0"),
        (None, "no such file; check the path"),
    ],
)
def test_a_file_without_them_is_told(tmp_path, tensors, message):
    file = tmp_path / "stats.pt"
    if tensors is not None:
        torch.save(tensors, file)
    with pytest.raises(ValueError, match=rf"latents\.statistics: \S*stats\.pt: {message}"):
        tiny.run(write(tmp_path, a_kl(tmp_path), latents={"statistics": str(file)}))


def test_statistics_of_other_channels_in_a_config_are_told(tmp_path):
    with pytest.raises(ValueError, match="its latents_mean and latents_std have 3 and 3 numbers, latents 4"):
        tiny.run(write(tmp_path, a_kl(tmp_path, latents_mean=[0.0] * 3, latents_std=[1.0] * 3)))


def test_whitening_is_measured_with_them(tmp_path):
    with pytest.raises(ValueError, match=r"latents: whitening: its matrix is measured as statistics are; set it to 0"):
        load(write(tmp_path, a_kl(tmp_path), latents={"statistics": "own", "whitening": 0.5}))
