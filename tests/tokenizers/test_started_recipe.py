"""Matching and decoder training that begin at a finished tokenizer: what trains, what is saved, what is refused."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import foreign
import pytest
import torch
import yaml

import dmvae
import tiny
from dmvae import Autoencoder, jobs, pipeline
from dmvae import config as configs
from dmvae.commands.plan import Machine, print_plan
from dmvae.inputs import Inputs
from dmvae.recipe import load, resolve
from dmvae.runtime.random import Random
from dmvae.runtime.shipped import recipe_file
from dmvae.tokenizers import TokenizerSource
from dmvae.tokenizers.adapted import AdaptedTokenizer, adapt, load_tokenizer, start
from dmvae.tokenizers.dmvae import DmvaeTokenizer
from dmvae.tokenizers.editor import Editor
from dmvae.tokenizers.network import TRAINED
from dmvae.training.loop import train
from dmvae.training.stage import Batch
from dmvae.training.trainer import Trainer

pytestmark = pytest.mark.slow

STARTED = dict.fromkeys(("encoder", "tokenizer", "autoencoder", "variants"))
TINY = {"steps": 2, "batch_size": 8}
SHORT = {"reference__steps": 2, "matching__steps": 4, "decoder__steps": 2}


def write(folder: Path, kind: str | None = "AutoencoderKL", **over) -> Path:
    source = {"pretrained": foreign.source(kind, folder)} if kind else {}
    return tiny.write(folder, **(STARTED | SHORT | source | over))


def trainer_of(job) -> Trainer:
    inputs = Inputs(job.recipe, job.variant, job.folder, job.reads, torch.device("cpu"))
    return Trainer(job.stage(job.recipe.section(job.stage), inputs))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A run of the stages that train an AutoencoderKL further, with draws from its posterior; and the latents'."""
    folder = tmp_path_factory.mktemp("started")
    tiny.run(write(folder, matching__noise="posterior", run__save_every=2), until="latents")
    return folder


def jobs_of(folder: Path) -> dict[str, jobs.Job]:
    return {job.stage.name: job for job in jobs.plan(load(folder / "recipe.yaml"), folder / "run")}


@torch.no_grad()
def test_the_result_loads_in_its_own_class_and_is_the_same(folder):
    from diffusers import AutoencoderKL

    latents = folder / "run/main/latents"
    ours, theirs = load_tokenizer(latents / "autoencoder"), AutoencoderKL.from_pretrained(latents / "diffusers").eval()
    assert type(ours) is AdaptedTokenizer
    before = foreign.diffusers_model("AutoencoderKL").state_dict()
    assert not any(torch.equal(value, before[name]) for name, value in theirs.state_dict().items())
    x = torch.rand(3, 3, 12, 12) * 2 - 1
    posterior = theirs.encode(x).latent_dist
    mine = ours.encode(x)
    assert ours.drawn
    assert torch.equal(mine.latent_dist.mean, posterior.mean)
    assert torch.equal(mine.latent_dist.std, posterior.std)
    assert torch.equal(ours.decode(posterior.mean).sample, theirs.decode(posterior.mean).sample)
    data = jobs_of(folder)["latents"]
    images = Inputs(data.recipe, "main", data.folder, {}, torch.device("cpu")).train_set.__getitems__(range(48))[0]
    z = ours.encode(images.float() / 127.5 - 1).latents
    scaled = (z - theirs.config.shift_factor) * theirs.config.scaling_factor
    assert scaled.mean().abs() < 1e-3
    assert abs(scaled.std() - 1) < 1e-3
    assert torch.allclose(ours.normalize(z).std(dim=(0, 2, 3)), torch.ones(4), atol=1e-2)


@torch.no_grad()
def test_the_page_s_lines_give_latents_of_standard_deviation_1(folder):
    """docs/existing_tokenizer.md, "The result": of latents that were drawn, samples and not means."""
    page = (Path(__file__).parents[2] / "docs/existing_tokenizer.md").read_text()
    (lines,) = (code for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "scaling_factor" in code)
    data = jobs_of(folder)["latents"]
    images = Inputs(data.recipe, "main", data.folder, {}, torch.device("cpu")).train_set.__getitems__(range(48))[0]
    there = {"images": images.float() / 127.5 - 1}
    torch.manual_seed(0)
    exec(lines.replace("runs/x/", f"{folder}/run/"), there)
    assert there["z"].mean().abs() < 0.05
    assert abs(there["z"].std() - 1) < 0.05


def test_each_turn_trains_exactly_what_it_should(folder):
    def trained(trainer: Trainer, name: str) -> set[str]:
        own = {id(p): key for key, p in trainer.networks.named_parameters()}
        return {
            own[id(p)].removeprefix("autoencoder.network.model.").split(".")[0] for p in trainer.networks.trains[name]
        }

    found = jobs_of(folder)
    matching = trainer_of(found["matching"])
    assert trained(matching, "tokenizer") == {"encoder", "quant_conv", "post_quant_conv", "decoder"}
    assert trained(matching, "student") == {"student"}
    assert trained(trainer_of(found["decoder"]), "decoder") == {"post_quant_conv", "decoder"}
    frozen = replace(found["matching"].recipe.section("matching"), train_encoder=False)
    inputs = matching.inputs
    assert trained(Trainer(found["matching"].stage(frozen, inputs)), "tokenizer") == {
        *("quant_conv", "post_quant_conv", "decoder")
    }


@pytest.mark.parametrize("noise", ["none", "posterior", "fixed"])
def test_the_spread_learns_where_it_is_asked_for(folder, noise):
    """The last layer's second half gives the log-variance: only draws from the posterior send gradients there."""
    job = jobs_of(folder)["matching"]
    section = replace(job.recipe.section("matching"), noise=noise, noise_std=0.5 if noise == "fixed" else None)
    trainer = Trainer(job.stage(section, trainer_of(job).inputs))
    images, labels = trainer.stage.data().__getitems__(range(8))
    batch = Batch(images.float() / 127.5 - 1, labels, 0, 4)
    update = next(trainer.stage.updates(trainer.networks, batch, Random(0)))
    weight = trainer.networks.autoencoder.network.model.quant_conv.weight
    (gradient,) = torch.autograd.grad(update.loss, weight)
    assert (gradient[:4] != 0).all()
    assert (gradient[4:] != 0).all() == (noise == "posterior")
    assert update.log["adversarial/weight"] > 0


def test_cut_and_resumed_it_ends_as_uncut(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "again", symlinks=True)
    job = jobs_of(tmp_path / "again")["matching"]
    job = replace(job, folder=tmp_path / "cut")
    inputs = Inputs(job.recipe, job.variant, job.folder, job.reads, torch.device("cpu"))
    stage = job.stage(job.recipe.section(job.stage), inputs)
    with tiny.cut(type(stage), 3):
        train(stage)
    train(job.stage(job.recipe.section(job.stage), inputs))
    uncut = tiny.weights(folder / "run")
    model = load_tokenizer(tmp_path / "cut/autoencoder")
    for name, value in model.state_dict().items():
        assert torch.equal(value, uncut[f"main/matching/autoencoder/{name}"]), name


def test_other_weights_begin_anew(tmp_path):
    path = write(tmp_path)
    before = jobs_of(path.parent)
    model = foreign.diffusers_model("AutoencoderKL")
    torch.nn.init.zeros_(model.quant_conv.bias)
    model.save_pretrained(tmp_path / "model")
    after = jobs_of(path.parent)
    assert {name for name in before if before[name].folder == after[name].folder} == set()


def test_a_shape_that_other_variants_use_does_not_count(tmp_path):
    folders = [
        [job.folder.name for job in jobs.plan(load(write(tmp_path, autoencoder=shape)), tmp_path)]
        for shape in (None, tiny.RECIPE["autoencoder"])
    ]
    assert folders[0] == folders[1]


def test_a_dry_run_counts_what_trains(tmp_path, capsys):
    print_plan(load(write(tmp_path, generator=None, sample=None, evaluate=None)), Machine.here())
    out = capsys.readouterr().out
    assert "nothing stands in the way" in out
    assert "latents 4x6x6 (stride 2)" in out


def test_a_dry_run_tells_of_a_tokenizer_that_is_not_there_and_of_all_else(tmp_path):
    gone = {"type": "diffusers", "path": str(tmp_path / "gone")}
    variants = {"here": {"pretrained": foreign.source("AutoencoderKL", tmp_path)}, "gone": {"pretrained": gone}}
    over = STARTED | dict.fromkeys(("reference", "matching", "sample")) | {"decoder__steps": 2}
    recipes = load(tiny.write(tmp_path, **over | {"variants": variants, "evaluate__neighbours": 49}))
    told = print_plan(recipes, Machine(1, 2**40, False))
    assert any("no such folder" in line for line in told)
    assert any("49 neighbours are sought among 48" in line for line in told)


@pytest.mark.parametrize("kind", ["vavae", "AutoencoderDC", "AutoencoderTiny", "dmvae"])
def test_the_parts_are_all_there_is_and_gradients_reach_them(kind, tmp_path):
    source = configs.read(TokenizerSource, foreign.source(kind, tmp_path))
    model = start(source, size=12, channels=3, pretrained=True)
    assert isinstance(model, Autoencoder if kind == "dmvae" else AdaptedTokenizer)
    parts = model.parts()
    modules = (*parts.encoder, *parts.bottleneck, *parts.decoder)
    assert {id(p) for m in modules for p in m.parameters()} == {id(p) for p in model.parameters()}
    assert parts.last_layer.shape[0] == 3
    model(torch.rand(1, 3, 12, 12) * 2 - 1).sample.square().mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@torch.no_grad()
def test_what_was_trained_or_used_here_before_is_a_start_again(folder, tmp_path):
    """The artifact of a foreign class, and ours behind an adapter, as `latents` saves one that nothing trained."""
    for path, cls in ((folder / "run/main/latents/autoencoder", AdaptedTokenizer), (tmp_path / "used", Autoencoder)):
        if cls is Autoencoder:
            source = configs.read(TokenizerSource, foreign.source("dmvae", tmp_path))
            adapt(source, size=12, channels=3, pretrained=True).save_pretrained(path)
        source = DmvaeTokenizer(path=str(path))
        model = start(source, size=12, channels=3, pretrained=True)
        assert type(model) is cls
        x = torch.rand(2, 3, 12, 12) * 2 - 1
        assert torch.equal(model(x).sample, load_tokenizer(path)(x).sample)


def test_who_gave_samples_gives_samples_where_its_decoder_is_trained(tmp_path):
    """`latents.drawn` of a run that trained nothing stands in the adapter, which training takes off."""
    model = load_tokenizer(tiny.variational(tmp_path / "vae", torch.ones(4)))
    adapted = adapt(DmvaeTokenizer(path=str(tmp_path / "vae")), size=12, channels=3, pretrained=True)
    adapted.drawn = True
    adapted.save_pretrained(tmp_path / "used")
    again = start(DmvaeTokenizer(path=str(tmp_path / "used")), size=12, channels=3, pretrained=True)
    x = torch.rand(2, 3, 12, 12) * 2 - 1
    assert type(again) is type(model)
    assert torch.equal(again.encode(x).latents, adapted.encode(x).latents)
    assert not torch.equal(again.encode(x).latents, model.encode(x).latents)


def test_the_page_s_recipes_are_some():
    page = (Path(__file__).parents[2] / "docs/existing_tokenizer.md").read_text()
    found = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    matched, further, decoded, shaped, encoded, kept = map(yaml.safe_load, found)
    names = [stage.name for stage in resolve(matched)["main"].stages()]
    assert names[:4] == ["reference", "matching", "decoder", "latents"]
    recipe = resolve(matched | dict.fromkeys(("reference", "matching", "decoder")) | further)["main"]
    assert [stage.name for stage in recipe.stages()][:2] == ["tokenizer", "latents"]
    alignment = recipe.section("tokenizer").alignment
    assert alignment.target.patch_size == 8 * alignment.patch, "a feature for each patch of the autoencoder's latents"
    recipe = resolve(matched | dict.fromkeys(("reference", "matching")) | decoded)["main"]
    assert [stage.name for stage in recipe.stages()][:2] == ["decoder", "latents"]
    assert not recipe.section("decoder").adversarial.encoder.starts_random
    recipe = resolve(matched | {"decoder": None} | shaped)["main"]
    assert [stage.name for stage in recipe.stages()][:3] == ["reference", "matching", "latents"]
    assert (recipe.section("matching").objective.type, recipe.section("matching").balance) == ("transport", "fixed")
    assert [stage.name for stage in resolve(encoded)["main"].stages()] == ["latents", "generator", "sample", "evaluate"]
    recipe = resolve(encoded | kept)["main"]
    assert (recipe.latents.statistics, recipe.section("generator").steps) == (Path("latents_stats.pt"), 0)
    assert all(re.search(rf"`{name}`", page) for name in TRAINED)


def test_a_tokenizer_of_ours_may_take_samples_of_the_reference(tmp_path):
    path = write(tmp_path, "dmvae", matching__noise="reference", reference__distribution={"type": "gaussian"})
    job = jobs_of(path.parent)["matching"]
    pipeline.run(load(path), tmp_path / "run", "reference")
    trainer = trainer_of(job)
    assert isinstance(trainer.networks.autoencoder.editor, Editor)
    inner = trainer.networks.autoencoder.encoder.state_dict()
    assert all(torch.equal(inner[k], v) for k, v in foreign.own_model().encoder.state_dict().items())


REFUSED = {
    "VQModel": ({}, r"pretrained: a VQModel can be used but not trained further; AutoencoderKL, "),
    "identity": ({}, "pretrained: a tokenizer of type 'identity' can be used but not trained further"),
    "AutoencoderKL": (
        {"data__channels": 1},
        "AutoencoderKL has 3 image channels, the data 1: .* set data.channels to 3",
    ),
    "vavae": ({"data__size": 13}, "13 is not a multiple of 2"),
    "AutoencoderTiny": (
        {"matching__train_encoder": False},
        "matching.train_encoder: with a frozen encoder and no bottleneck, nothing can move",
    ),
    "AutoencoderDC": ({"matching__noise": "posterior"}, "matching.noise: 'posterior' needs a tokenizer with one"),
    "dmvae": ({"data__size": 24}, r"trained with data.size 12, not 24; set it to that"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_does_not_fit_is_said_before_any_stage(kind, tmp_path):
    over, message = REFUSED[kind]
    with pytest.raises(ValueError, match=message):
        tiny.run(write(tmp_path, kind, **over))
    assert not (tmp_path / "run/stages").exists()


def test_a_random_target_is_refused_without_a_stage_that_such_a_recipe_cannot_have(tmp_path):
    alignment = {"target": {"type": "conv", "width": 8, "stride": 2, "out_channels": 8}}
    over = {"tokenizer": {"train_encoder": True, "steps": 2, "alignment": alignment}, "reference": None}
    path = write(tmp_path, "AutoencoderKL", matching=None, decoder=None, **over)
    with pytest.raises(
        ValueError, match=r"would be random; .* an encoder with public weights \(type: timm or effnet\)$"
    ):
        tiny.run(path)


def test_files_that_do_not_fit_are_named(tmp_path):
    (tmp_path / "empty").mkdir()
    reference = {"type": "features", "reduction": "pca"}
    for source, over, message in (
        ({"type": "diffusers", "path": str(tmp_path / "empty")}, {}, "neither a folder with a config.json nor"),
        ({"type": "dmvae", "path": str(tmp_path / "empty")}, {}, "empty: no tokenizer is here"),
        (
            foreign.source("AutoencoderKL", tmp_path),
            {"matching__noise": "reference"},
            "'reference' puts another network",
        ),
        (
            foreign.source("AutoencoderKL", tmp_path),
            {"reference__distribution": reference},
            "reference.distribution: it needs the encoder that a recipe names under `autoencoder`",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            tiny.run(write(tmp_path, None, pretrained=source, **over))


def test_an_editor_of_samples_has_no_use_for_a_posterior(tmp_path):
    over = {"autoencoder.variational": True, "matching.noise": "assigned"}
    with pytest.raises(ValueError, match=r"'assigned' has no use for a posterior; set autoencoder\.variational: false"):
        tiny.run(tiny.write(tmp_path, variants={"x": over}))


def test_a_tokenizer_that_edits_samples_is_no_start(tmp_path):
    model = foreign.own_model().with_editor(torch.zeros(4, 4, 3, 3), torch.zeros(4), torch.ones(4))
    model.save_pretrained(tmp_path / "edited")
    source = {"type": "dmvae", "path": str(tmp_path / "edited")}
    with pytest.raises(ValueError, match="writes images into samples of the reference that it was matched to"):
        tiny.run(write(tmp_path, None, pretrained=source))


def test_the_shipped_recipe_runs_from_the_tokenizer_that_its_head_makes(tmp_path, monkeypatch, plain_report):
    monkeypatch.chdir(tmp_path)
    head = recipe_file("existing_tokenizer").read_text().replace("\n#", " ")
    exec(re.search(r'python -c "(.*?)"', head)[1])
    short = {f"{stage}.{name}": n for stage in ("reference", "matching", "decoder") for name, n in TINY.items()}
    shapes = {"type": "shapes", "size": 16, "channels": 3, "num_classes": 2, "count": 16, "test_count": 8}
    short |= {f"variants.reconstructed.tokenizer.{name}": n for name, n in TINY.items()}
    off = dict.fromkeys(("losses.perceptual", "generator", "sample", "evaluate"))
    run = dmvae.run("existing_tokenizer", **{"pretrained.path": "vae", "data": shapes}, **short, **off)
    assert run.tokenizer("matched").config["source"]["type"] == "diffusers"
    for name in ("matched", "as_it_is"):
        assert run.latents(name)
    assert Path("runs/existing_tokenizer/matched/latents/diffusers/config.json").exists()
