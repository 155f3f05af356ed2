"""Images that a pipeline generates to be measured: alike in any batch, with every option."""

import warnings

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from dmvae.commands.check import check
from dmvae.commands.generated import Generated
from dmvae.commands.measurements import measure
from dmvae.commands.score_files import write_scores
from dmvae.interop.pipeline import DMVAEPipeline
from dmvae.models.dit import LightningDiT
from dmvae.runtime import distributed
from dmvae.stages.sample import SampleConfig, drawn_labels, image_seed
from dmvae.tokenizers.autoencoder import Autoencoder

pytestmark = pytest.mark.usefixtures("cache")

FEATURES = "effnet-lite0@32"
DECODER = {"type": "conv", "width": 8, "multipliers": [1, 2], "attention": False}


def small_pipeline():
    torch.manual_seed(0)
    transformer = LightningDiT(in_channels=4, input_size=3, num_classes=3, width=16, depth=1, heads=2)
    torch.nn.init.normal_(transformer.final_layer.linear.weight, std=0.1)
    for p in transformer.parameters():  # zeros would let no label through
        if not p.any():
            torch.nn.init.normal_(p, std=0.1)
    encoder = {"type": "conv", "width": 8, "stride": 4, "out_channels": 8}
    shape = {"latent_channels": 4, "decoder": DECODER, "image_size": 12}
    vae = Autoencoder(encoder=encoder, bottleneck_width=8, **shape)
    return DMVAEPipeline(transformer, vae, FlowMatchEulerDiscreteScheduler(), {str(i): str(i) for i in range(3)})


def test_batches_of_generated_images_change_nothing():
    images = Generated(small_pipeline(), SampleConfig(count=70, steps=2), seed=0, device=torch.device("cpu"))
    whole = torch.cat(list(images.batches(range(70), 70)))
    assert whole.shape == (70, 3, 12, 12)
    for size in (1, 7):
        assert torch.equal(torch.cat(list(images.batches(range(70), size))), whole)
    parts = [torch.cat(list(images.batches(part, 16))) for part in (range(30), range(30, 70))]
    assert torch.equal(torch.cat(parts), whole), "two ranks draw what one draws"


def test_generated_images_are_the_pipeline_s_with_every_option():
    pipeline = small_pipeline()
    options = {"steps": 4, "guidance": (3.0,), "guidance_interval": (0.2, 0.9), "time_shift": 2.0}
    options |= {"guidance_channels": 2, "labels": "random"}

    def drawn(seed=5, **over):
        images = Generated(pipeline, SampleConfig(count=3, **options | over), seed=seed, device=torch.device("cpu"))
        return torch.cat(list(images.batches(range(3), 3)))

    images = drawn()
    direct = pipeline(
        drawn_labels(SampleConfig(count=3, labels="random"), 5, 3).tolist(),
        generator=[torch.Generator().manual_seed(image_seed(5, i)) for i in range(3)],
        num_inference_steps=4,
        guidance_scale=3.0,
        guidance_interval=(0.2, 0.9),
        guidance_channels=2,
        time_shift=2.0,
        output_type="pt",
    ).images
    assert (images.float() - 255 * direct).abs().max() <= 1
    for over in (
        {"steps": 5},
        {"guidance": (1.0,)},
        {"guidance_interval": (0.0, 1.0)},
        {"guidance_channels": None},
        {"labels": "equal"},
        {"time_shift": 1.0},
        {"method": "heun"},
        {"seed": 6},
    ):
        assert not torch.equal(drawn(**over), images), over


@pytest.mark.slow
def test_samples_of_a_sampler_are_measured_and_measured_again(tmp_path, folders):
    small_pipeline().save_pretrained(tmp_path / "pipeline")
    options = {"features": [FEATURES], "parts": ["frechet"], "size": 12, "count": 4, "steps": 2}
    sde = measure("samples", [str(tmp_path / "pipeline"), str(folders[0])], method="sde", last_step=0.2, **options)
    sampler = sde["manifest"]["measured"]["sampler"]
    assert (sampler["method"], sampler["steps"], sampler["last_step"]) == ("sde", 2, 0.2)
    write_scores(sde, tmp_path / "scores.json")
    assert check(tmp_path / "scores.json") == ({}, [])
    euler = measure("samples", [str(tmp_path / "pipeline"), str(folders[0])], **options)
    assert euler["metrics"] != sde["metrics"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "eular"}, "method: no sampler is called 'eular'; did you mean 'euler'"),
        ({"last_step": 0.1}, "last_step: 0.1 would change nothing, as method 'euler' does not read it"),
        ({"steps": 0}, r"steps: expected a whole number, 1 to 10\^6, got 0"),
        ({"batch": 3}, "measure samples takes no --batch"),
    ],
)
def test_a_sampler_that_cannot_be_is_told(tmp_path, options, message):
    small_pipeline().save_pretrained(tmp_path / "pipeline")
    with pytest.raises(ValueError, match=message):
        measure("samples", [str(tmp_path / "pipeline"), str(tmp_path)], features=[FEATURES], **options)


def test_options_of_guidance_are_told_by_the_first_rank_where_nothing_is_guided(tmp_path, monkeypatch):
    small_pipeline().save_pretrained(tmp_path / "pipeline")
    (tmp_path / "none").mkdir()
    given = {"features": [FEATURES], "guidance_interval": [0.2, 0.8], "guidance_channels": 2}

    def told(**more):
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            with pytest.raises(ValueError, match="no images in"):
                measure("samples", [str(tmp_path / "pipeline"), str(tmp_path / "none")], **given, **more)
        return [text for one in found if "guides nothing" in (text := str(one.message))]

    assert told(guidance=2.0) == []
    assert [text.partition(":")[0] for text in told()] == ["--guidance-interval", "--guidance-channels"]
    monkeypatch.setattr(distributed, "is_main", lambda: False)
    assert told() == []
