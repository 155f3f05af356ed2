"""Samples that an earlier snapshot guides: the formula, the stage, its pipeline, what is refused."""

import pytest
import torch
from safetensors.torch import load_file

import tiny
from dmvae import DMVAEPipeline
from dmvae import config as configs
from dmvae import pipeline as pipelines
from dmvae.flow.guidance import guided
from dmvae.generators import load_generator
from dmvae.recipe import load
from dmvae.report.pipelines import write_pipelines
from dmvae.stages.sample import image_seed

KL = tiny.RECIPE["variants"]["kl"]
ROWS = {"plain": {"guidance": [1.0, 3.0]}, "guided": {"guidance": [1.0, 3.0], "guide": 2}}
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
    assert not torch.equal(images["plain", 3], images["guided", 3])
    write_pipelines(jobs, run_dir)
    drawn = {}
    for name in ROWS:
        pipe = DMVAEPipeline.from_pretrained(run_dir / name / "pipeline")
        pipe.set_progress_bar_config(disable=True)
        seeds = [torch.Generator().manual_seed(image_seed(0, i)) for i in range(6)]
        arguments = {"guidance_scale": 3.0, "num_inference_steps": 2, "generator": seeds, "output_type": "pt"}
        found = pipe([i % 3 for i in range(6)], **arguments).images
        drawn[name] = (found * 255).round().byte()
        assert (drawn[name].int() - images[name, 3].int()).abs().max() <= 1
    assert pipe.guide.config.num_classes == 3
    kept = load_generator(run_dir / "guided/generator/snapshots/step-00000002/generator")
    weights = pipe.guide.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in kept.state_dict().items())


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
