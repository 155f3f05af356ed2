"""Plugins: one file outside the package adds a member of any family, or a stage."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from torch import nn

import processes
import tiny
from dmvae import config as configs
from dmvae import pipeline
from dmvae.datasets import open_dataset
from dmvae.evaluation.feature_set import reference_features
from dmvae.evaluation.features import Extractor, FeaturesConfig, extractor_of
from dmvae.evaluation.features.timm import TimmFeatures
from dmvae.evaluation.images import DatasetImages, TensorImages
from dmvae.jobs import plan
from dmvae.recipe import load
from dmvae.registry import load_plugins
from dmvae.runtime.random import Random
from plugin_source import recipe_with_plugins, renamed


@pytest.mark.slow
def test_a_plugin_of_each_kind_runs_from_a_file_outside_the_package(tmp_path):
    path, run_dir = recipe_with_plugins(tmp_path), tmp_path / "run"
    result = processes.command("run", str(path), **processes.PLAIN)
    assert result.returncode == 0, result.stderr
    assert "moment/mean" in (run_dir / "main/matching/log.jsonl").read_text()
    assert "sharpen/mean" in (run_dir / "main/sharpen/log.jsonl").read_text()
    assert (run_dir / "main/sharpen/sharpener/model.safetensors").exists()
    tokenizer = json.loads((run_dir / "main/latents/autoencoder/config.json").read_text())
    assert tokenizer["decoder"] == {"type": "blocks", "width": 8}
    assert json.loads((run_dir / "means/generator/generator/config.json").read_text())["_class_name"] == "ClassMeans"
    assert not (run_dir / "means/pipeline").exists(), "which nothing could load"
    summary = json.loads((run_dir / "summary.json").read_text())
    assert {"brightness", "contrast", "latent_norm", "gfd"} <= set(summary["methods"]["means"])
    assert summary["methods"]["leaps"]["gfd"] != summary["methods"]["main"]["gfd"]
    for title in ("brightness gap", "contrast gap", "latent norm"):
        assert title in result.stdout
        assert title in (run_dir / "report.html").read_text()
    one = processes.command("sharpen", str(path), **processes.PLAIN)
    assert "main/sharpen: skip (finished)" in one.stdout
    dry = processes.command("run", str(path), "--dry-run")
    assert [line for line in dry.stdout.splitlines() if "sharpen" in line]
    assert "nothing stands in the way" in dry.stdout
    said = processes.command("run", str(path), "--help").stdout
    assert "--sharpen.strength" in said
    assert "SharpenConfig(" not in said  # what dataclass writes in place of a docstring


@pytest.mark.slow
def test_the_readme_s_reference_runs(tmp_path):
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    (tmp_path / "rings.py").write_text(readme.split("```python\n# rings.py\n")[1].split("```")[0])
    assert "--reference.distribution.type rings" in readme
    path = tiny.write(tmp_path, plugins=[str(tmp_path / "rings.py")])
    recipe = tmp_path / "mine.yaml"
    over = {"distribution": {"type": "rings", "width": 0.2}, "steps": 2}
    recipe.write_text(yaml.safe_dump({"extends": path.name, "reference": over}))
    tiny.run(recipe)
    assert "width: 0.2" in (tmp_path / "run/main/recipe.yaml").read_text()


def test_a_plugin_that_takes_a_name_of_ours_is_told_so(tmp_path):
    source = renamed("mine_").replace('"mine_two_points"', '"gaussian"')
    (tmp_path / "mine.py").write_text(source.replace("TwoPoints", "GaussianReference"))
    path = tiny.write(tmp_path, plugins=[str(tmp_path / "mine.py")])
    for _ in range(2):
        with pytest.raises(
            ValueError, match=r"the name 'gaussian' is taken by class \w+ of \S+/references/gaussian.py"
        ):
            load(path)


def test_two_plugins_that_take_one_name_are_told_by_class_and_file(tmp_path):
    for name in ("one", "two"):
        (tmp_path / f"{name}.py").write_text(renamed("both_"))
    path = tiny.write(tmp_path, plugins=["one.py", "two.py"])
    with pytest.raises(ValueError, match=rf"two.py, .* is taken by class (\w+) of {re.escape(str(tmp_path))}/one.py"):
        load(path)


def test_a_folder_without_plugins_is_told(tmp_path):
    with pytest.raises(ValueError, match=r"plugins: .* holds no \.py file"):
        load_plugins([tmp_path])


def test_a_recipe_names_its_plugins_for_any_folder_to_find(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(renamed("other_"))
    monkeypatch.chdir(tmp_path)
    recipe = load(tiny.write(tmp_path, plugins=["mine.py"]))["kl"]
    assert recipe.plugins == (str(tmp_path / "mine.py"),)


@pytest.mark.slow
def test_an_encoder_with_dropout_resumes_to_the_same_weights(tmp_path, monkeypatch):
    """It draws from torch's own generator, which nothing here counts."""
    (tmp_path / "mine.py").write_text(renamed("wet_").replace("nn.AvgPool2d(4)", "nn.AvgPool2d(4), nn.Dropout(0.5)"))
    found = []
    for name in ("whole", "stopped"):
        folder = tmp_path / name
        folder.mkdir()
        plugins = [str(tmp_path / "mine.py")]
        over = {"autoencoder__encoder": {"type": "wet_pool"}, "tokenizer__steps": 8, "run__save_every": 3}
        path = tiny.write(folder, plugins=plugins, **over)
        if name == "stopped":
            monkeypatch.setattr(pipeline, "_finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                tiny.run(path, "kl", "tokenizer")
            assert list(folder.glob("run/stages/tokenizer-*/checkpoints/step-00000006"))
            monkeypatch.undo()
        tiny.run(path, "kl", "tokenizer")
        found.append(tiny.weights(folder / "run"))
    assert found[0].keys() == found[1].keys()
    assert [name for name, value in found[0].items() if not torch.equal(value, found[1][name])] == []


def test_a_plugin_that_is_edited_runs_its_new_code_under_a_new_address(tmp_path):
    """In the same process, as in a notebook: what uses it runs again, by the code that is there."""
    path = recipe_with_plugins(tmp_path, renamed("edit_"), "edit_")
    before = tiny.folders_of(path)
    assert tiny.folders_of(path) == before
    source = (tmp_path / "mine.py").read_text()
    old = "return (2.0 * (labels % 2) - 1)"
    assert old in source
    (tmp_path / "mine.py").write_text(source.replace(old, "return (3.0 * (labels % 2) - 1)"))
    after = tiny.folders_of(path)
    # every kind of part is in this one file
    assert {name for name in before if before[name] == after[name]} == set()
    distribution = load(path)["main"].reference.distribution
    samples = distribution.build(SimpleNamespace(latent_shape=(4, 3, 3), num_classes=10)).sample(8, Random(0))[0]
    assert set(samples.unique().tolist()) == {-1.0, 2.0}


FLAT = """
from dataclasses import dataclass
import torch
from dmvae.datasets import DatasetConfig
from dmvae.registry import register


class Flat:
    classes, fingerprint, labels = ("a", "b", "c"), "the same", torch.arange(48) % 3

    def __len__(self):
        return 48

    def __getitem__(self, i):
        return torch.full((3, 12, 12), 5, dtype=torch.uint8), i % 3


@register("edit_flat")
@dataclass(frozen=True, kw_only=True)
class FlatImages(DatasetConfig):
    def build(self, split):
        return Flat()
"""


def test_a_data_set_that_is_edited_counts_whatever_its_fingerprint_says(tmp_path):
    """It may name the files that it reads, and not what is made of them."""
    plugin, found = tmp_path / "mine.py", []
    path = tiny.write(tmp_path, plugins=[str(plugin)], data={"type": "edit_flat", "size": 12}, variants={"main": {}})
    for text in (FLAT, FLAT.replace("12), 5", "12), 6"), FLAT):
        plugin.write_text(text)
        stages = tiny.folders_of(path)
        images = DatasetImages(open_dataset(load(path)["main"].data, "train"))
        found.append((stages, images.facts["fingerprint"]))
    (before, real), (after, other), again = found
    assert again == (before, real) != (after, other)
    assert real != other
    assert [name for name in before if before[name] == after[name]] == []


EXTRACTOR = """
from dataclasses import dataclass
from pathlib import Path
from torch import nn
from dmvae.evaluation.features import Extractor, FeaturesConfig
from dmvae.registry import register


class Scaled(nn.Module):
    def forward(self, x):
        return 2.0 * x.mean(dim=(2, 3))


@register("edit_scaled")
@dataclass(frozen=True, kw_only=True)
class ScaledConfig(FeaturesConfig):
    file: Path

    @property
    def name(self):
        return "scaled"

    def build(self):
        return Extractor(Scaled(), 3, None, (0.0,) * 3, (1.0,) * 3, name=self.name)
"""


def test_an_extractor_that_is_edited_computes_kept_features_of_real_images_anew(tmp_path):
    plugin, weights = tmp_path / "mine.py", tmp_path / "weights"
    plugin.write_text(EXTRACTOR)
    weights.write_text("one")
    images = TensorImages(torch.arange(4 * 3 * 8 * 8, dtype=torch.uint8).view(4, 3, 8, 8))

    def kept():
        load_plugins([plugin])
        extractor = extractor_of(configs.read(FeaturesConfig, {"type": "edit_scaled", "file": str(weights)}))
        found = reference_features([extractor], images, 4, "", folder=tmp_path / "kept")
        return found[0].pool, len(list((tmp_path / "kept").glob("features-*")))

    before, files = kept()
    assert (kept()[1], files) == (1, 1)
    plugin.write_text(EXTRACTOR.replace("2.0 *", "3.0 *"))
    after, files = kept()
    assert files == 2
    assert torch.allclose(after, 1.5 * before)
    weights.write_text("two")
    assert kept()[1] == 3


def test_what_is_kept_of_an_extractor_of_ours_is_found_as_before(tmp_path, monkeypatch):
    (tmp_path / "weights").write_text("one")
    built = Extractor(nn.Flatten(), 3, None, (0.0,) * 3, (1.0,) * 3, name="ours")
    before = built.manifest()
    monkeypatch.setattr(TimmFeatures, "build", lambda self: built)
    assert extractor_of(TimmFeatures(model="test_vit", weights=tmp_path / "weights")).manifest() == before


DERIVED = """
from dataclasses import dataclass

from dmvae.decoders.conv import ConvDecoder
from dmvae.generators.flow import FlowModelConfig
from dmvae.losses.alignment.pointwise import Pointwise
from dmvae.losses.discriminators.patchgan import PatchGANConfig
from dmvae.registry import register

for base in (ConvDecoder, FlowModelConfig, Pointwise, PatchGANConfig):
    for name in ("derived_a", "derived_b"):
        cls = type(f"{base.__name__}_{name}", (base,), {"__doc__": "One.", "__module__": __name__})
        register(name)(dataclass(frozen=True, kw_only=True)(cls))
"""


@pytest.mark.parametrize(
    ("place", "stage"),
    [
        ("autoencoder.decoder", "tokenizer"),
        ("losses.adversarial", "decoder"),
        ("generator.model", "generator"),
        ("tokenizer.alignment", "tokenizer"),
    ],
)
def test_two_classes_that_derive_from_one_of_ours_have_stages_of_their_own(tmp_path, place, stage):
    (tmp_path / "mine.py").write_text(DERIVED)
    found = set()
    for name in ("derived_a", "derived_b"):
        path = tiny.write(tmp_path, variants={"main": {}}, plugins=[str(tmp_path / "mine.py")])
        values = yaml.safe_load(path.read_text())
        section, field = place.split(".")
        values[section] = {key: value for key, value in values[section].items() if not key.startswith("decoder_")}
        values[section][field] = (values[section].get(field) or {}) | {"type": name}
        path.write_text(yaml.safe_dump(values))
        found.add(tiny.folders_of(path)[stage])
    assert len(found) == 2


def test_stages_metrics_and_samplers_of_plugins_count_where_they_are_used(tmp_path):
    (tmp_path / "mine.py").write_text(renamed("part_"))
    over = {
        "nothing": {},
        "metric": {"evaluate__metrics": ["frechet", "part_brightness"]},
        "sampler": {"sample__method": "part_leap"},
        "stage": {"part_sharpen": {"steps": 2, "batch_size": 8}},
    }
    found = {}
    for edit in ("", "\n# edited\n"):
        (tmp_path / "mine.py").write_text(renamed("part_") + edit)
        for name, values in over.items():
            path = tiny.write(tmp_path, plugins=[str(tmp_path / "mine.py")], variants={"main": {}}, **values)
            found[name, edit] = tiny.folders_of(path)
    for name, changed in {"nothing": set(), "metric": {"evaluate"}, "sampler": {"sample", "evaluate"}}.items():
        a, b = found[name, ""], found[name, "\n# edited\n"]
        assert {stage for stage in a if a[stage] != b[stage]} == changed, name
    a, b = found["stage", ""], found["stage", "\n# edited\n"]
    assert a["part_sharpen"] != b["part_sharpen"]
    assert a["tokenizer"] == b["tokenizer"]


def test_files_that_a_stage_of_a_plugin_names_count_where_it_is_used(tmp_path):
    source = renamed("file_").replace("SharpenConfig(TrainingConfig)", "SharpenConfig(Starting)")
    source = source.replace("    strength: float = 1.0", "    file: Path")
    more = "from pathlib import Path\nfrom dmvae.training.starting import Starting\n"
    (tmp_path / "mine.py").write_text(more + source)
    file, start = tmp_path / "points.npz", tmp_path / "start"
    file.write_text("one")
    start.mkdir()
    (start / "config.json").write_text("{}")

    def folders():
        section = {"steps": 2, "batch_size": 8, "file": str(file), "start_from": str(start)}
        over = {"plugins": [str(tmp_path / "mine.py")], "variants": {"main": {}}, "file_sharpen": section}
        return tiny.folders_of(tiny.write(tmp_path, **over))

    before = folders()
    start = start.rename(tmp_path / "elsewhere")  # which the section of ours counts by what it holds
    assert folders() == before
    file.write_text("two")
    after = folders()
    assert {stage for stage in before if before[stage] != after[stage]} == {"file_sharpen"}


def test_a_copy_of_a_plugin_counts_as_the_same(tmp_path):
    """As runs of two checkouts name them."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.py").write_text(renamed("twice_"))
        load_plugins([tmp_path / name / "mine.py"])


@pytest.mark.slow
def test_an_ema_of_a_stage_that_averages_no_network_is_told(tmp_path, capsys):
    path = recipe_with_plugins(tmp_path, renamed("ema_"), "ema_")
    for ema, told in (None, False), (0.5, True):
        given = {} if ema is None else {"ema_sharpen.ema": ema}
        jobs = plan({"main": load(path, given)["main"]}, tmp_path / "run")
        pipeline.execute(next(job for job in jobs if job.stage.name == "ema_sharpen"))
        assert ("ema: 0.5 changes nothing: the stage's `networks.averaged` names no" in capsys.readouterr().out) == told
