"""Samples that an earlier snapshot or another generator guides: the formula, the stage, its pipeline, what is
refused."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

import tiny
from dmvae import DMVAEPipeline
from dmvae import config as configs
from dmvae import pipeline as pipelines
from dmvae.flow.guidance import guided
from dmvae.generators import load_generator
from dmvae.models.dit import LightningDiT
from dmvae.recipe import load
from dmvae.report.pipelines import write_pipelines
from dmvae.runtime.done import write_done
from dmvae.stages.sample import image_seed

KL = tiny.RECIPE["variants"]["kl"]
ROWS = {"plain": {"guidance": [1.0, 3.0]}, "guided": {"guidance": [1.0, 3.0], "guide": 2}}
ROWS["some"] = ROWS["guided"] | {"guidance_channels": 2}
FAST = {"generator__learning_rate": 1e-2, "generator__ema": 0.5, "run__precision": "float32", "evaluate": None}


def write(folder, keep_at=(2,), **over):
    variants = {name: configs.merge(KL, {"sample": row}) for name, row in ROWS.items()}
    return tiny.write(folder, **({"variants": variants, "generator__keep_at": list(keep_at)} | FAST | over))


def test_the_guide_takes_the_place_of_the_velocity_without_a_label():
    def strong(z_t, t, labels):
        return z_t * (1 + labels.view(-1, 1, 1, 1))

    def weak(z_t, t, labels):
        assert (labels < 9).all()
        return 0.5 * z_t + labels.view(-1, 1, 1, 1)

    z, t, labels = torch.randn(3, 1, 2, 2), torch.tensor([0.1, 0.5, 0.9]), torch.tensor([0, 1, 2])
    found = guided(strong, 3.0, 9, interval=(0.4, 1.0), guide=weak)(z, t, labels)
    a, b = strong(z, t, labels), weak(z, t, labels)
    assert torch.allclose(found[1:], (b + 3 * (a - b))[1:], atol=1e-5)
    assert torch.allclose(found[0], a[0], atol=1e-6)
    assert torch.equal(guided(strong, 1.0, 9, guide=weak)(z, t, labels), a)


@pytest.mark.slow
def test_a_snapshot_guides_the_stage_and_the_pipeline_alike(tmp_path):
    jobs = tiny.run(write(tmp_path))
    run_dir = tmp_path / "run"
    images = {
        (name, scale): load_file(run_dir / name / f"sample/guidance-{scale}/samples-00000.safetensors")["images"]
        for name in ROWS
        for scale in (1, 3)
    }
    assert torch.equal(images["plain", 1], images["guided", 1])
    assert not any(torch.equal(images[name, 3], images["guided", 3]) for name in ("plain", "some"))
    write_pipelines(jobs, run_dir)
    drawn = {}
    for name in ROWS:
        pipe = DMVAEPipeline.from_pretrained(run_dir / name / "pipeline")
        pipe.set_progress_bar_config(disable=True)
        seeds = [torch.Generator().manual_seed(image_seed(0, i)) for i in range(6)]
        arguments = {"guidance_scale": 3.0, "num_inference_steps": 2, "generator": seeds, "output_type": "pt"}
        found = pipe(
            [i % 3 for i in range(6)], **arguments, guidance_channels=ROWS[name].get("guidance_channels")
        ).images
        drawn[name] = (found * 255).round().byte()
        assert (drawn[name].int() - images[name, 3].int()).abs().max() <= 1
        assert (b"guidance_channels=2" in pipe.extras["README.md"]) == (name == "some")
    assert pipe.guide.config.num_classes == 3
    kept = load_generator(run_dir / "guided/generator/snapshots/step-00000002/generator")
    weights = pipe.guide.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in kept.state_dict().items())


@pytest.mark.slow
def test_another_generator_guides_the_stage_and_the_pipeline_by_its_folder(tmp_path, capsys):
    """The folder is a copy of the snapshot: so the images are the snapshot's."""
    run_dir, weak = tmp_path / "run", tmp_path / "weak"
    tiny.run(write(tmp_path))
    shutil.copytree(run_dir / "guided/generator/snapshots/step-00000002/generator", weak)
    rows = {"guided": ROWS["guided"], "elsewhere": {"guidance": [1.0, 3.0], "guide": str(weak)}}
    path = write(tmp_path, variants={name: configs.merge(KL, {"sample": row}) for name, row in rows.items()})
    jobs = tiny.run(path)
    for scale in (1, 3):
        one, other = (load_file(run_dir / name / f"sample/guidance-{scale}/samples-00000.safetensors") for name in rows)
        assert torch.equal(one["images"], other["images"])
    write_pipelines(jobs, run_dir)
    kept, own = (DMVAEPipeline.from_pretrained(run_dir / name / "pipeline").guide.state_dict() for name in rows)
    assert kept.keys() == own.keys()
    assert all(torch.equal(kept[name], own[name]) for name in kept)
    before = {job.folder for job in jobs}
    assert all(job.finished for job in tiny.run(path))
    weak.rename(tmp_path / "moved")
    write_pipelines(jobs, run_dir)  # what is written and whole stays
    assert (run_dir / "elsewhere/pipeline/guide/config.json").is_file()
    shutil.rmtree(run_dir / "elsewhere/pipeline")
    write_pipelines(jobs, run_dir)
    assert "none of elsewhere, because its guide is missing: there is no folder" in " ".join(
        capsys.readouterr().out.split()
    )
    moved = write(tmp_path, variants={"elsewhere": configs.merge(KL, {"sample": rows["elsewhere"]})})
    found = load(moved, {"sample.guide": str(tmp_path / "moved")})
    assert {job.folder for job in pipelines.plan(found, run_dir)} <= before


def guide_of(folder, **over):
    """A saved generator that fits the tiny recipe's."""
    numbers = {"in_channels": 4, "input_size": 3, "num_classes": 3} | tiny.DIT
    LightningDiT(**numbers | over).save_pretrained(folder)
    return folder


def test_a_guide_counts_by_the_content_of_its_files(tmp_path):
    def address(guide):
        path = write(tmp_path, variants=None, **tiny_kl(), sample__guidance=[3.0], sample__guide=guide)
        return tiny.folders_of(path)

    def tiny_kl():
        return {name: value for name, value in KL.items() if name != "autoencoder"} | {"autoencoder__variational": True}

    first = address(str(guide_of(tmp_path / "a")))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b/README.md").write_text("a card")
    assert address(str(tmp_path / "b")) == first
    other = address(str(guide_of(tmp_path / "a")))  # other random weights in the same place
    assert {stage for stage in first if first[stage] != other[stage]} == {"sample"}
    assert address(None)["sample"] not in (first["sample"], other["sample"])


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("absent", r"absent: no generator is here: .*, such as RUN/VARIANT/generator/generator"),
        ("above", r"above: no generator is here: .*did you mean .*above/generator\?"),
        ("wide", r"wide: it was trained for 5 latent channels \(here 4\); give a generator of the same latents"),
        ("more", r"more: it was trained for 7 classes \(here 3\), 6 latents along each side \(here 3\); give"),
        ("bare", "bare: no weights are here"),
        ("cut", "cut/diffusion_pytorch_model.safetensors: damaged or cut off"),
        ("vae", "vae: holds Autoencoder, not DiTDH or LightningDiT"),
        ("stage/generator", "stage/generator/diffusion_pytorch_model.safetensors is corrupt: it is not as it was"),
    ],
)
def test_a_folder_that_cannot_guide_is_refused_before_any_stage(tmp_path, folder, message):
    guide_of(tmp_path / "above/generator")
    guide_of(tmp_path / "wide", in_channels=5)
    guide_of(tmp_path / "more", input_size=6, num_classes=7)
    (guide_of(tmp_path / "bare") / "diffusion_pytorch_model.safetensors").unlink()
    cut = guide_of(tmp_path / "cut") / "diffusion_pytorch_model.safetensors"
    cut.write_bytes(cut.read_bytes()[:-8])
    (guide_of(tmp_path / "vae") / "config.json").write_text('{"_class_name": "Autoencoder"}')
    guide_of(tmp_path / "stage/generator")
    write_done(tmp_path / "stage", {"seconds": 1})
    guide_of(tmp_path / "stage/generator")  # other random weights, of the same size
    path = write(tmp_path, variants__guided__sample__guide=str(tmp_path / folder))
    with pytest.raises(ValueError, match=rf"guided: sample\.guide: .*{message}"):
        pipelines.run(load(path), tmp_path / "run")
    assert not list(tmp_path.glob("run/stages/*"))


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"generator__keep_at": []}, r"sample\.guide: step 2 is none of those that are kept: .*set guide to null"),
        ({"variants__guided__sample__guidance": [1.0]}, r"sample\.guide: a guidance scale of 1 asks nothing to guide"),
        (
            {"variants__guided__sample__snapshot": 2},
            r"sample\.guide: step 2 is no earlier than the network",
        ),
        ({"generator__steps": 2}, r"sample\.guide: step 2 is no earlier than .*, of step 2; give an earlier one"),
    ],
)
def test_what_would_guide_nothing_is_refused_before_any_stage(tmp_path, over, message):
    with pytest.raises(ValueError, match=message):
        pipelines.run(load(write(tmp_path, **over)), tmp_path / "run")
    assert not list(tmp_path.glob("run/stages/*"))


@pytest.mark.slow
def test_snapshots_that_a_finished_generator_did_not_keep_are_missed_before_any_stage(tmp_path):
    """A variant with another decoder shares the generator."""
    guided = configs.merge(KL, {"sample": ROWS["guided"], "decoder": {"steps": 2, "batch_size": 8}})
    tiny.run(write(tmp_path, keep_at=(), variants={"plain": KL}), until="generator")
    path = write(tmp_path, variants={"plain": KL, "guided": guided})
    before = {f.name for f in tmp_path.glob("run/stages/*")}
    with pytest.raises(ValueError, match=r"guided: sample\.guide: the generator of step 2 was not kept.*remove "):
        tiny.run(path)
    assert {f.name for f in tmp_path.glob("run/stages/*")} == before
