"""The diffusers pipeline: what a run leaves behind makes the pictures that the command line made."""

import json
import math
import shutil
from functools import partial

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from diffusers.training_utils import EMAModel
from pipeline_run import made
from safetensors.torch import load_file

from dmvae import Autoencoder, DMVAEPipeline, LightningDiT
from dmvae.datasets.pixels import to_uint8
from dmvae.interop.pipeline import build_pipeline
from dmvae.stages.sample import SampleConfig, generate_latents

pytestmark = pytest.mark.slow

DTYPE = "dtype" if tuple(map(int, diffusers.__version__.split(".")[:2])) >= (0, 40) else "torch_dtype"
"""What diffusers calls the precision that it is to load weights in."""
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module", params=["float32"])
def run(tmp_path_factory, request):
    """A run that has drawn its samples, its jobs, and the pipeline's folder."""
    return made(tmp_path_factory.mktemp("run"), request.param, until="sample")


@pytest.fixture
def pipeline(run):
    pipeline = DMVAEPipeline.from_pretrained(run[2])
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def seeded(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.mark.parametrize("scale", [1.0, 2.0])
@pytest.mark.parametrize("run", ["float32", "bfloat16"], indirect=True)
def test_the_same_seeds_give_the_pictures_of_the_command_line(run, pipeline, scale):
    shard = load_file(run[0] / f"kl/sample/guidance-{scale:g}/samples-00001.safetensors")
    with torch.autocast("cpu", torch.bfloat16, enabled=run[1][0].recipe.run.precision == "bfloat16"):
        out = pipeline(
            shard["labels"].tolist(),
            generator=seeded(*shard["seeds"].tolist()),
            num_inference_steps=2,
            guidance_scale=scale,
            time_shift=2.5,
            output_type="pt",
        )
    assert torch.equal(to_uint8(out.images * 2 - 1), shard["images"])


def test_a_pipeline_draws_by_every_sampler_what_the_stage_draws(pipeline):
    """Stochastic ones too: every image's noise is its own generator's."""
    labels, seeds = torch.tensor([0, 2]), [5, 6]
    for over in (
        {"method": "heun", "time_shift": 2.0, "steps": 3},
        {"method": "sde", "last_step": 0.1, "last_step_kind": "euler", "diffusion": "constant", "steps": 3},
        {"method": "dopri5", "rtol": 1e-2},
    ):
        config = SampleConfig(guidance_interval=(0.1, 0.9), **over)
        direct = generate_latents(pipeline.transformer, labels, seeds, config.settings(2.0), torch.device("cpu"))
        drawn = pipeline(
            labels.tolist(), generator=seeded(*seeds), guidance_scale=2.0, output_type="latent", **config.arguments()
        )
        assert torch.equal(drawn.images, direct)


def test_a_run_tells_how_often_velocities_were_asked_for(run):
    sample = run[0] / "kl/sample"
    assert json.loads((sample / "done.json").read_text())["evaluations"] == {"2": 2.0, "1": 2.0}
    for scale in (1, 2):
        assert set(load_file(sample / f"guidance-{scale}/samples-00000.safetensors")["evaluations"].tolist()) == {2}


def test_what_only_the_scheduler_s_steps_have_is_refused_with_another_method(pipeline):
    with pytest.raises(ValueError, match="callback_on_step_end: only with method 'euler', not 'heun'"):
        pipeline(0, method="heun", callback_on_step_end=lambda *_: None)
    pipeline.scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    with pytest.raises(ValueError, match=r"'heun' takes its own steps, and this pipeline has .* UniPCMultistep"):
        pipeline(0, method="heun")


def test_a_model_of_a_pipeline_is_asked_for_by_its_subfolder(run):
    with pytest.raises(ValueError, match="is a pipeline's: give subfolder='transformer' or 'vae'"):
        Autoencoder.from_pretrained(run[2])
    Autoencoder.from_pretrained(run[2], subfolder="vae")


def test_each_kind_of_output(pipeline):
    outputs = {
        kind: pipeline([0, 1], generator=seeded(1, 2), num_inference_steps=3, output_type=kind).images
        for kind in ("pil", "np", "pt", "latent")
    }
    assert [image.size for image in outputs["pil"]] == [(12, 12)] * 2
    assert outputs["np"].shape == (2, 12, 12, 3)
    assert outputs["pt"].shape == (2, 3, 12, 12)
    assert outputs["latent"].shape == (2, 4, 3, 3)
    x = pipeline.vae.decode(pipeline.vae.denormalize(outputs["latent"])).sample
    assert torch.allclose((x / 2 + 0.5).clamp(0, 1), outputs["pt"])
    assert torch.equal(torch.from_numpy(outputs["np"]).permute(0, 3, 1, 2), outputs["pt"])


def test_an_image_with_its_own_generator_does_not_depend_on_the_others(pipeline):
    both = pipeline([0, 1], generator=seeded(1, 2), output_type="latent", num_inference_steps=3).images
    alone = pipeline(1, generator=seeded(2), output_type="latent", num_inference_steps=3).images
    assert torch.allclose(both[1], alone[0], atol=1e-5)


def test_names_and_no_class(run, pipeline):
    name = next(iter(pipeline.labels))
    assert pipeline.labels[name] == 0
    kwargs = {"output_type": "latent", "num_inference_steps": 2}
    by_name = pipeline(name, generator=seeded(0), **kwargs).images
    assert torch.equal(by_name, pipeline([0], generator=seeded(0), **kwargs).images)
    assert not torch.equal(by_name, pipeline(None, generator=seeded(0), **kwargs).images)


def test_labels_may_be_numbers_of_numpy_and_torch(pipeline):
    def latents(labels):
        return pipeline(labels, generator=seeded(0), output_type="latent", num_inference_steps=2).images

    expected = latents([2])
    for labels in (np.int64(2), np.array([2]), [np.uint8(2)], torch.tensor([2])):
        assert torch.equal(latents(labels), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_makes_nearly_the_same_picture(run, pipeline, dtype):
    kwargs = {"class_labels": [0, 1], "num_inference_steps": 3, "output_type": "pt"}
    half = DMVAEPipeline.from_pretrained(run[2], **{DTYPE: dtype})
    half.set_progress_bar_config(disable=True)
    assert half.vae.dtype == half.transformer.dtype == dtype
    difference = half(generator=seeded(1, 2), **kwargs).images - pipeline(generator=seeded(1, 2), **kwargs).images
    assert difference.abs().max() < 0.05
    moved = pipeline.to(dtype)(generator=seeded(1, 2), **kwargs).images
    assert torch.allclose(moved, half(generator=seeded(1, 2), **kwargs).images, atol=0.02)


def test_callbacks_see_every_step_may_change_the_latents_and_may_stop(pipeline):
    steps = []

    def note(pipe, step, timestep, tensors):
        steps.append((step, round(float(timestep))))
        return {"latents": torch.zeros_like(tensors["latents"])} if step == 3 else None

    out = pipeline(0, num_inference_steps=4, output_type="latent", callback_on_step_end=note).images
    assert steps == [(0, 1000), (1, 750), (2, 500), (3, 250)]
    assert out.count_nonzero() == 0

    def stop(pipe, step, timestep, tensors):
        steps.append(step)
        pipe.interrupt = step == 1
        return tensors

    steps.clear()
    pipeline(0, num_inference_steps=4, output_type="latent", callback_on_step_end=stop)
    assert steps == [0, 1]


def test_it_shows_a_progress_bar(run, capsys):
    DMVAEPipeline.from_pretrained(run[2])(0, num_inference_steps=4, output_type="latent")
    assert "4/4" in capsys.readouterr().err


def test_the_parts_load_on_their_own(run):
    vae = Autoencoder.from_pretrained(run[2], subfolder="vae")
    transformer = LightningDiT.from_pretrained(run[2], subfolder="transformer")
    assert vae.config.latent_channels == transformer.config.in_channels
    assert vae.config.scaling_factor != 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"class_labels": [3]}, "class_labels: 3 is not a class of this model, which has 0 to 2"),
        ({"class_labels": [-1]}, "0 to 2"),
        ({"class_labels": []}, "class_labels is empty"),
        ({"class_labels": [True]}, "class_labels: True is no integer, name or None"),
        ({"class_labels": 1.7}, "class_labels: 1.7 is no integer, name or None"),
        ({"class_labels": [0, np.float32(1)]}, r"1\.0.* is no integer, name or None"),
        ({"class_labels": [0, 1], "generator": seeded(1)}, "generator: 1 of them for 2 class_labels"),
        ({"class_labels": 0, "generator": seeded(1, 2)}, "generator: 2 of them for 1 class_labels"),
        ({"class_labels": 0, "generator": 0}, r"generator: give torch.Generator\(\).manual_seed\(SEED\), .* got 0"),
        ({"class_labels": "sqare red"}, "no class is called 'sqare red'"),
        ({"class_labels": 0, "output_type": "pill"}, "output_type 'pill' is not one of pil"),
        ({"class_labels": 0, "latents": torch.zeros(1, 4, 4, 4)}, r"latents of shape \[1, 4, 4, 4\]"),
        ({"class_labels": 0, "num_inference_steps": 0}, r"num_inference_steps: .* 1 to 10\^6, got 0"),
        ({"class_labels": 0, "num_inference_steps": 2.5}, "num_inference_steps: expected a whole number, got 2.5"),
        ({"class_labels": 0, "guidance_scale": "x"}, "guidance_scale: expected a number, got 'x'"),
        ({"class_labels": 0, "guidance_scale": float("nan")}, "guidance_scale: expected a number, -1000 to 1000"),
        ({"class_labels": 0, "guidance_interval": (0, 2)}, r"guidance_interval\[1\]: expected a number, 0 to 1, got 2"),
        ({"class_labels": 0, "guidance_interval": (0.7, 0.2)}, "its first time is after its second"),
        ({"class_labels": 0, "guidance_channels": 0}, "guidance_channels: expected a whole number, 1 to 65536, got 0"),
        ({"class_labels": 0, "guidance_channels": 5}, "guidance_channels: 5 of latents that have 4; give fewer"),
        ({"class_labels": 0, "time_shift": 0}, "time_shift: expected a number, 0.001 to 1000, got 0"),
        ({"class_labels": 0, "method": "huen"}, "method: no sampler is called 'huen'; did you mean 'heun'"),
        ({"class_labels": 0, "methd": "heun"}, "methd: no such argument; did you mean 'method'"),
        ({"class_labels": 0, "steps": 5}, "steps: no such argument; known: method, "),
        ({"class_labels": 0, "last_step": 0.1}, "last_step: 0.1 would change nothing, as method 'euler' does not read"),
        ({"class_labels": 0, "callback_on_step_end_tensor_inputs": ["noise"]}, "noise"),
    ],
)
def test_a_mistake_is_an_error_that_says_what_would_be_right(pipeline, arguments, message):
    with pytest.raises(ValueError, match=message):
        pipeline(**arguments)


def test_compiled_networks_draw_the_same_images_and_are_saved_as_they_were(run, pipeline, tmp_path):
    pipeline.guide = LightningDiT.from_config(pipeline.transformer.config)
    call = partial(pipeline, [0, None], num_inference_steps=2, guidance_scale=2.0, output_type="np")
    before = call(generator=seeded(1, 2)).images
    pipeline.transformer, pipeline.guide = (
        torch.compile(network, backend="eager") for network in (pipeline.transformer, pipeline.guide)
    )
    assert np.array_equal(call(generator=seeded(1, 2)).images, before)
    pipeline.save_pretrained(tmp_path)
    assert load_file(tmp_path / WEIGHTS).keys() == load_file(run[2] / WEIGHTS).keys()


def test_another_scheduler_that_takes_sigmas_solves_the_same_equation(pipeline, monkeypatch):
    """dz / dt = -z ends in noise / e. UniPC computes with its sigmas; of order 2, it is nearer than Euler."""
    noise = torch.randn(1, *pipeline(class_labels=[1], num_inference_steps=1, output_type="latent").images.shape[1:])
    monkeypatch.setattr(pipeline, "_velocity", lambda network, z_t, t, labels: -z_t)
    off = {}
    for scheduler in (
        FlowMatchEulerDiscreteScheduler(),
        UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
    ):
        monkeypatch.setattr(pipeline, "scheduler", scheduler)
        z = pipeline(class_labels=[1], num_inference_steps=8, latents=noise, output_type="latent").images
        off[type(scheduler).__name__] = float((z - noise / math.e).norm() / noise.norm())
    assert off["UniPCMultistepScheduler"] < 0.5 * off["FlowMatchEulerDiscreteScheduler"] < 0.02


@pytest.mark.parametrize(
    ("dropped", "refused", "drawn"),
    [(0.0, [([0, None], 1.0), ([0], 2.0)], [([0], 1.0)]), (1.0, [([0, None], 1.0)], [([None], 2.0), ([0], 0.0)])],
)
def test_velocities_that_a_run_s_generator_was_not_taught_are_refused(pipeline, dropped, refused, drawn):
    assert pipeline.transformer.config["_label_dropout"] == 0.1  # the recipe's
    pipeline.transformer.register_to_config(_label_dropout=dropped)
    draw = partial(pipeline, num_inference_steps=1, output_type="latent")
    for labels, scale in refused:
        with pytest.raises(ValueError, match=rf"label_dropout: {dropped:g} taught this generator no velocity with"):
            draw(labels, guidance_scale=scale)
    for labels, scale in drawn:
        assert draw(labels, guidance_scale=scale).images.isfinite().all()


def test_a_scheduler_that_is_missing_or_does_not_fit_is_named_with_the_fix(run, pipeline, tmp_path):
    pipeline.scheduler = DDIMScheduler()
    with pytest.raises(ValueError, match=r"DDIMScheduler takes no sigmas; set .*FlowMatchEulerDiscreteScheduler"):
        pipeline(0)
    # both take sigmas: the first would leave out the last step, the second take the velocity for noise
    for scheduler in (EulerDiscreteScheduler(), UniPCMultistepScheduler(use_flow_sigmas=True)):
        pipeline.scheduler = scheduler
        with pytest.raises(ValueError, match=r"prediction_type 'epsilon' where 'flow_prediction' .*; set pipeline"):
            pipeline(0)
    without = build_pipeline(pipeline.transformer, pipeline.vae, dict(enumerate("abc")))
    without.scheduler = None
    without.save_pretrained(tmp_path / "without")
    with pytest.raises(ValueError, match="it has none; set"):
        DMVAEPipeline.from_pretrained(tmp_path / "without")(0)
    shutil.copytree(run[2], tmp_path / "lost")
    shutil.rmtree(tmp_path / "lost" / "scheduler")
    with pytest.raises((OSError, ValueError), match="scheduler"):
        DMVAEPipeline.from_pretrained(tmp_path / "lost")


def test_networks_that_were_not_trained_together_are_refused(pipeline):
    other = LightningDiT(in_channels=5, input_size=3, width=16, depth=1, heads=2, num_classes=3)
    with pytest.raises(ValueError, match="5x3x3, the tokenizer's are 4x3x3"):
        DMVAEPipeline(other, pipeline.vae, FlowMatchEulerDiscreteScheduler())


def test_a_name_of_two_classes_is_asked_for_by_number(pipeline):
    names = dict(pipeline.config["id2label"])
    pipeline.register_to_config(id2label=names | {"2": names["0"]})
    with pytest.raises(ValueError, match="2 classes are called 'circle': give a number, 0, 2"):
        pipeline("circle")


def test_a_pipeline_from_a_pipeline_draws_the_same(pipeline):
    draw = lambda pipe: pipe([1], generator=seeded(3), num_inference_steps=2, output_type="pt").images
    other = DMVAEPipeline.from_pipe(pipeline)
    other.set_progress_bar_config(disable=True)
    assert torch.equal(draw(other), draw(pipeline))


def test_a_device_map_is_left_to_diffusers(run, monkeypatch):
    """Which refuses it beside `low_cpu_mem_usage=False`."""
    asked = []
    base = DMVAEPipeline.__mro__[1]
    monkeypatch.setattr(base, "from_pretrained", classmethod(lambda cls, path, **options: asked.append(options) or cls))
    DMVAEPipeline.from_pretrained(run[2], device_map="cpu")
    DMVAEPipeline.from_pretrained(run[2])
    assert asked == [{"device_map": "cpu"}, {"low_cpu_mem_usage": False}]


def test_a_cast_to_half_precision_warns_of_nothing(pipeline, capfd):
    """As diffusers 0.42 would, of networks that name no module to keep in float32."""
    assert pipeline.to(torch.bfloat16).transformer.dtype == torch.bfloat16
    assert capfd.readouterr().err == ""


def test_an_average_of_diffusers_is_saved_and_loaded(pipeline, tmp_path):
    vae = pipeline.vae
    assert Autoencoder.from_config(vae.config).config.scaling_factor == vae.config.scaling_factor != 1.0
    average = EMAModel(vae.parameters(), model_cls=Autoencoder, model_config=vae.config)
    average.save_pretrained(tmp_path)
    assert Autoencoder.from_pretrained(tmp_path).config.scaling_factor == vae.config.scaling_factor
    again = EMAModel.from_pretrained(tmp_path, Autoencoder)
    assert all(torch.equal(a, b) for a, b in zip(again.shadow_params, vae.parameters(), strict=True))


def test_a_tokenizer_of_diffusers_as_it_is_is_refused(pipeline):
    with pytest.raises(ValueError, match=r"vae: AutoencoderTiny is none of ours; .*: adapt, set_statistics"):
        DMVAEPipeline(pipeline.transformer, diffusers.AutoencoderTiny())
