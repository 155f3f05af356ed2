"""From pip: the wheel holds the recipes, and they are found by name."""

import itertools
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from benchmarks.wheel import ROOT, build

import dmvae
import processes
from dmvae import cli
from dmvae import config as configs
from dmvae.checks import blank_networks
from dmvae.evaluation.manifest import versions
from dmvae.options import flat
from dmvae.recipe import load
from dmvae.report.summary import environment
from dmvae.runtime.shipped import about, recipe_file, shipped
from dmvae.stages.generator import GeneratorStage


@pytest.fixture(autouse=True)
def _empty(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_they_are_listed_with_a_line_each(capsys):
    cli.main(["recipes"])
    out = capsys.readouterr().out
    assert re.search(r"\ndemo +Fashion-MNIST: a distribution-matched tokenizer, the same without the matching", out)
    for name, file in shipped().items():
        assert len(about(file)) > 20
        assert f"{name} " in out


@pytest.mark.parametrize(
    ("study", "matched", "seed"),
    [
        ("tiny_imagenet_32", "ssl", "@1"),
        ("tiny_imagenet_32", "matched", "@1"),
        ("tiny_imagenet", "matched", ""),
        ("references", "ssl", "@1"),
    ],
)
def test_a_study_s_control_differs_from_what_is_matched_by_the_pull_alone(study, matched, seed):
    """So a table can say what matching does, and not what steps, rates or a start do."""
    recipes = load(recipe_file(f"studies/{study}"))
    ours, control = (flat(configs.plain(recipes[f"{matched}{of}{seed}"]), whole=False) for of in ("", "_zero"))
    assert {place for place in ours | control if ours.get(place) != control.get(place)} == {"matching.weight"}
    assert control["matching.weight"] == 0


@pytest.mark.slow
def test_the_baselines_of_imagenet_train_for_their_authors_epochs():
    """Of 1,281,167 images, less those that fill no batch. What is rounded in the file is near what its comments say."""
    recipes = load(recipe_file("studies/imagenet256_baselines"))
    vavae, rae, guide = (recipes[name] for name in ("vavae", "rae_800", "rae_guide"))
    (snapshot,) = rae.generator.keep_at
    for steps, batch_size, epochs in (
        (vavae.tokenizer.steps, vavae.tokenizer.batch_size, 50),
        (rae.tokenizer.steps, rae.tokenizer.batch_size, 16),
        (rae.tokenizer.warmup, rae.tokenizer.batch_size, 1),
        (rae.generator.steps, rae.generator.batch_size, 800),
        (snapshot, rae.generator.batch_size, 80),
        (rae.generator.decay_from * rae.generator.steps, rae.generator.batch_size, 40),
        (guide.generator.steps, guide.generator.batch_size, 14),
    ):
        assert steps == epochs * (1_281_167 // batch_size)
    assert rae.generator.time_shift == rae.sample.time_shift == pytest.approx((768 * 16 * 16 / 4096) ** 0.5, rel=1e-4)
    assert vavae.tokenizer.kl_weight == pytest.approx(1e-6 * (32 * 16 * 16) / (3 * 256 * 256), rel=1e-2)
    assert vavae.sample.time_shift == pytest.approx(1 / 0.3, rel=1e-4)
    for name, size, heads in (("rae_800", "XL/1", 16), ("rae_guide", "S/1", 6), ("rae_800", "B/1", 12)):
        given = load(recipe_file("studies/imagenet256_baselines"), {f"variants.{name}.generator.model.size": size})[
            name
        ]
        model = blank_networks(given, GeneratorStage, 1000).generator
        blocks = (model.blocks[0], *model.head_blocks)
        assert [block.attn.heads for block in blocks] == [heads, 16, 16], "RAE's configs: num_heads: [heads, 16]"
        assert model.config.head_width == 2048
    for recipe in (vavae, rae, guide):
        assert blank_networks(recipe, GeneratorStage, 1000).trains


UNRUN = "not yet run to its end"


def test_they_say_what_to_expect_or_that_nobody_has_run_them():
    """`dmvae recipes` prints the first sentence of the head, so that is where it stands."""
    for name, file in shipped().items():
        first, *more = itertools.takewhile(lambda line: line.startswith("#"), file.read_text().splitlines())
        head = " ".join([first, *more])
        if re.search(f"{UNRUN}|not been run to its end|dry-run|few steps only", head):
            assert UNRUN in first, name
            assert UNRUN in about(file), name
        else:
            assert re.search(r"\bexpect\b|docs/results", head, re.IGNORECASE), name


def test_a_name_that_is_no_file_is_looked_up(capsys):
    assert load("demo")["kl"].name == "Fashion-MNIST demo"
    assert recipe_file("ablations") == recipe_file("studies/ablations")
    assert recipe_file("cifar10").parent.name == "recipes", "the recipe goes before the study of that name"
    with pytest.raises(ValueError, match="no such recipe: dmo; did you mean 'demo'"):
        load("dmo")
    Path("demo").mkdir()
    assert load("demo")["kl"].name == "Fashion-MNIST demo", "a folder of data, or of a run, may be called so"
    Path("over.yaml").write_text("extends: demo")
    assert load("over.yaml")["main"].name == "Fashion-MNIST demo"
    Path("data").mkdir()
    with pytest.raises(ValueError, match=r"no such recipe: data \(that is a folder\)"):
        load("data")
    Path("demo").rmdir()
    Path("demo").write_text("name: mine")
    with pytest.raises(ValueError, match="demo: data: this field is required"):
        load("demo")


def test_init_copies_one_to_edit(tmp_path, capsys):
    cli.main(["init", "studies/ablations", "mine.yaml"])
    assert "dmvae study mine.yaml" in Path("mine.yaml").read_text()
    mine, theirs = load("mine.yaml"), load("ablations")
    assert {k: configs.plain(v) for k, v in mine.items()} == {k: configs.plain(v) for k, v in theirs.items()}
    cli.main(["init", "demo"])
    assert Path("demo.yaml").exists()
    for arguments, message in (
        (["demo"], "demo.yaml exists; name another file"),
        (["mine.yaml", "x.yaml"], "mine.yaml is a file of yours"),
        (["dmo"], "did you mean 'demo'"),
    ):
        with pytest.raises(SystemExit):
            cli.main(["init", *arguments])
        assert message in capsys.readouterr().err


def test_version_and_help_need_no_recipe_and_no_torch():
    code = "import sys, dmvae.cli; dmvae.cli.main(sys.argv[1:]); assert 'torch' not in sys.modules"
    for arguments, wanted in (
        (["--version"], f"dmvae {dmvae.__version__}"),
        (["--help"], "recipes"),
        (["run", "--help"], "--variants.NAME.section.field"),
        (["recipes"], "imagenet256"),
    ):
        result = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=processes.environment()
        )
        assert result.returncode == 0, result.stderr
        assert wanted in result.stdout


def test_files_that_name_the_version_agree():
    """pyproject.toml takes it from the package; finished stages do not depend on it (tests/test_compatibility.py)."""
    changelog = re.search(r"^## (\S+?)(,| |$)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert changelog is not None
    assert changelog[1] == dmvae.__version__
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == dmvae.__version__
    assert versions()["dmvae"] == environment()["dmvae"] == dmvae.__version__


@pytest.mark.slow
def test_the_wheel_holds_recipes_pages_and_types(tmp_path):
    """`make wheel` also tries it in a fresh environment."""
    wheel = build(tmp_path)
    assert wheel.name.startswith(f"dmvae-{dmvae.__version__}-")
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {f"dmvae/recipes/{name}.yaml" for name in shipped()}
    wanted |= {"dmvae/py.typed", "dmvae/report/page.css", "dmvae/cli.py"}
    assert wanted <= names
