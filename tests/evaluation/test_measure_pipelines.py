"""`dmvae measure samples` and `tokenizer` of a run's pipeline: what they refuse, what they measure beside the run's own
stage, and how they check it."""

import json
import shutil

import pytest
import torch
from PIL import Image

import tiny
from complaints import complain
from dmvae import cli
from dmvae.commands.score_files import read_scores
from dmvae.datasets.shapes import Shapes
from dmvae.losses.perceptual import LPIPSDistance, LPIPSPerceptual
from dmvae.report.pipelines import write_pipelines

pytestmark = pytest.mark.slow

FEATURES = "effnet-lite0@32"
STAGE = "run/kl/evaluate/metrics.json"


class MeanDistance(torch.nn.Module):
    """In LPIPS's place, whose VGG-16 needs larger images, and weights."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, a, b):
        return self.scale * (a - b).abs().mean((1, 2, 3))


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A folder: a finished `run`, images in `test`, what was measured of the run's pipeline in s.json and of its
    tokenizer in t.json, and a `copy` of the run, which itself lacks its recipe then."""
    folder = tmp_path_factory.mktemp("measured")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))  # one for all tests: features of references are kept
        patch.setattr(LPIPSPerceptual, "build", lambda self: LPIPSDistance(1.0, MeanDistance()))
        over = {"evaluate__metrics": ["frechet", "kernel", "memorisation"], "evaluate__lpips": True}
        jobs = tiny.run(tiny.write(folder, run__precision="float32", generator__ema=0.875, **over), "kl")
        (pipeline,) = write_pipelines(jobs, folder / "run")
        assert pipeline == folder / "run/kl/pipeline"
        (folder / "test").mkdir()
        images, _ = Shapes(size=12, channels=3, num_classes=3, test_count=24).build("test").__getitems__(range(24))
        for i, image in enumerate(images):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"test/{i:03}.png")
        common = ["--features", FEATURES, "--workers", "0", "--precision", "float32", "--json"]
        samples = ["measure", "samples", pipeline, "test", "--train", "test", "--count", "12", "--steps", "2"]
        samples += ["--guidance-interval", "0.2", "0.9", *common, folder / "s.json"]
        tokenizer = ["measure", "tokenizer", pipeline / "vae", folder / "test", "--batch-size", "7", "--lpips"]
        with pytest.MonkeyPatch.context() as there:
            there.chdir(folder)
            cli.main([str(a) for a in samples])
            cli.main([str(a) for a in [*tokenizer, *common, folder / "t.json"]])
        shutil.copytree(folder / "run", folder / "copy", symlinks=True)
        (folder / "run/kl/recipe.yaml").unlink()  # a check of the copy looks at nothing of the run itself
        yield folder


@pytest.fixture
def refused(measured, capsys):
    """refused(IMAGES, *OPTIONS) -> (exit code, what is said) where samples are to be compared with these images."""
    return lambda images, *options: complain(
        capsys, "measure", "samples", measured / "run/kl/pipeline", images, "--features", FEATURES, *options
    )


@pytest.fixture
def undrawn(monkeypatch):
    """What is told, is told before a sample is drawn."""
    monkeypatch.setattr("dmvae.commands.setting.features_of", None)


@pytest.fixture
def large(tmp_path):
    """Images of other than the pipeline's 12 pixels."""
    (tmp_path / "large").mkdir()
    for i in range(2):
        Image.new("RGB", (16, 16)).save(tmp_path / f"large/{i}.png")
    return tmp_path / "large"


@pytest.mark.parametrize(
    ("option", "message"),
    [(("--count", "0"), "expected a whole number, 1 to"), (("--time-shift", "0"), "0.001 to 1000, got 0.0")],
)
def test_numbers_that_no_sampler_takes_are_refused(measured, refused, option, message):
    code, said = refused(measured / "test", *option)
    assert (code, message in said) == (2, True), said


@pytest.mark.usefixtures("undrawn")
def test_images_of_another_size_or_shape_are_refused(refused, large, tmp_path):
    code, said = refused(large)
    assert (code, "draws images of 12 pixels, and those of" in said, "--size 12" in said) == (2, True, True)
    assert said.count("\n") == 1, "no bar of the pipeline's parts, which a log would hold as one long line"
    (tmp_path / "wide").mkdir()
    Image.new("RGB", (20, 12)).save(tmp_path / "wide/0.png")
    code, wide = refused(tmp_path / "wide")
    assert (code, "not square: give --size 12, the pipeline's, to crop" in wide) == (2, True), wide


@pytest.mark.usefixtures("undrawn")
def test_a_broken_image_is_told(measured, refused, tmp_path):
    (tmp_path / "cut").mkdir()
    for i in range(3):
        whole = (measured / f"test/{i:03}.png").read_bytes()
        (tmp_path / f"cut/{i}.png").write_bytes(whole[: 60 if i == 1 else None])
    code, broken = refused(tmp_path / "cut", "--workers", 0)
    assert (code, "1 of 3 images: unreadable image" in broken) == (2, True), broken


@pytest.mark.usefixtures("undrawn")
def test_training_images_that_are_not_there_or_do_not_fit_are_refused(measured, refused, large, tmp_path):
    for train, message in ((tmp_path / "absent", "no such folder"), (large, "draws images of 12 pixels")):
        code, missed = refused(measured / "test", "--train", train)
        assert (code, message in missed) == (2, True), missed


def test_the_stage_s_figures_have_names_that_tell_the_features(measured):
    stage = read_scores(measured / STAGE)
    assert stage["gfd"] == stage["metrics"][f"gfd_{FEATURES}"]
    expected = {f"{name}_{FEATURES}" for name in ("gkid", "memorisation", "rfd", "rkid")} | {"psnr", "lpips_vgg16"}
    assert expected <= set(stage["metrics"])
    assert stage["lpips"] == stage["metrics"]["lpips_vgg16"]


def test_the_command_and_the_stage_agree_on_the_same_samples(measured):
    stage = read_scores(measured / STAGE)["metrics"]
    found = read_scores(measured / "s.json")["metrics"] | read_scores(measured / "t.json")["metrics"]
    for name in (*(f"{name}_{FEATURES}" for name in ("gfd", "gkid", "rfd", "rkid")), "psnr", "ssim", "lpips_vgg16"):
        # samples come in other batches than the stage's: on some processors a grey level of theirs rounds otherwise
        close = 1e-3 if name.startswith("g") else 1e-5
        assert found[name] == pytest.approx(stage[name], rel=close), name


def test_the_manifests_tell_how_samples_were_drawn_and_by_which_weights(measured):
    stage, samples, tokenizer = (read_scores(measured / file)["manifest"] for file in (STAGE, "s.json", "t.json"))
    assert stage["measured"]["sampler"]["steps"] == 2
    assert samples["measured"]["ema"] == 0.875
    assert samples["measured"]["sampler"]["guidance_interval"] == [0.2, 0.9]
    weights = [manifest["features"]["lpips_vgg16"]["weights"] for manifest in (tokenizer, stage)]
    assert weights[0] == weights[1]


def test_a_check_agrees_from_whatever_folder_and_of_a_copied_run(measured, monkeypatch, capsys):
    monkeypatch.chdir("/")
    for file in ("s.json", "t.json", "copy/kl/evaluate/metrics.json"):
        capsys.readouterr()
        cli.main(["measure", "--check", str(measured / file)])
        assert "agrees" in capsys.readouterr().out


def test_a_check_of_what_is_no_file_is_refused(tmp_path, capsys):
    code, said = complain(capsys, "measure", "--check", tmp_path / "none.json")
    assert (code, "none.json: no such file; give one that" in said) == (2, True)
    code, said = complain(capsys, "measure", "--check", tmp_path)
    assert (code, f"{tmp_path}: that is a folder; give" in said) == (2, True)


def test_a_check_names_the_figures_of_a_stage_that_were_changed(measured, tmp_path, capsys):
    shutil.copytree(measured / "copy", tmp_path / "copy", symlinks=True)
    file = tmp_path / "copy/kl/evaluate/metrics.json"
    stage = read_scores(file)
    stage["knn"] += 0.1
    stage["latents"]["effective_rank"] *= 2
    file.write_text(json.dumps(stage))
    code, said = complain(capsys, "measure", "--check", file)
    assert code == 1
    assert "knn was" in said
    assert "latents.effective_rank was" in said


def test_a_check_names_a_figure_of_samples_that_was_changed(measured, capsys):
    scores = read_scores(measured / "s.json")
    scores["metrics"][f"gfd_{FEATURES}"] *= 1.01
    (measured / "changed.json").write_text(json.dumps(scores))
    code, said = complain(capsys, "measure", "--check", measured / "changed.json")
    assert code == 1
    assert f"gfd_{FEATURES} was" in said
