"""Images that a pipeline generates to be measured: alike in any batch, with every option."""

import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from dmvae.commands.generated import Generated
from dmvae.interop.pipeline import DMVAEPipeline
from dmvae.models.dit import LightningDiT
from dmvae.stages.sample import SampleConfig, drawn_labels, image_seed
from dmvae.tokenizers.autoencoder import Autoencoder

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
        {"seed": 6},
    ):
        assert not torch.equal(drawn(**over), images), over
