"""The generator probe: the loss and Frechet distance of a small flow model, trained on latents for a fixed time.

It predicts the generator that the latents are made for, at a small part of its cost. Every setting is a constant of
this file: two numbers compare wherever they come from, if images, latents' shape and VERSION are the same.

Shapes: latents [n, C, H, W], normalised per channel; labels int64 [n].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from dmvae.datasets.mixed import spaced, stratified
from dmvae.datasets.pixels import to_uint8
from dmvae.evaluation.frechet import Statistics, frechet_distance
from dmvae.evaluation.interpolation import Decode
from dmvae.flow.loss import flow_matching_loss
from dmvae.flow.samplers import Sampling
from dmvae.flow.solver import sample
from dmvae.models.dit import LightningDiT
from dmvae.runtime.precision import full_precision

VERSION = 2
"""Goes up when a constant below changes, or the choice of held-out latents."""
WIDTH, DEPTH, HEADS = 64, 3, 4
STEPS, BATCH = 300, 128
LEARNING_RATE, BETAS, WARMUP, CLIP = 3e-3, (0.9, 0.95), 20, 1.0
"""AdamW without weight decay; the learning rate rises over WARMUP steps and falls linearly to zero at the end."""
HELD_OUT = 8
"""One latent in HELD_OUT of each class is kept from training; the loss is taken on at most HELD_OUT_MOST of these."""
HELD_OUT_MOST = 2000
SAMPLES, SAMPLING_STEPS, SAMPLING_BATCH = 2000, 16, 250
"""Samples by Euler steps without guidance, with labels in the data's shares."""


def generator_probe(
    latents: Tensor,
    labels: Tensor,
    *,
    seed: int = 0,
    steps: int = STEPS,
    decode: Decode | None = None,
    extractor: Callable[[Tensor], Tensor] | None = None,
    real: Statistics | None = None,
) -> dict[str, float]:
    """Train the probe; returns "probe_loss" and, with decoder, extractor and real statistics, "probe_gfd".

        probe_loss = mean |v(z_t, t, label) - (z - noise)|^2 over held-out latents, t spread evenly over (0, 1)
        probe_gfd  = Frechet distance between the data's features and those of SAMPLES decoded samples

    The loss is pi / 2 = 1.571 for standard normal noise, and lower the easier latents are to model. It does not depend
    on the decoder; the distance does. Both are functions of (latents, labels, seed): the caller's random state is
    neither used nor changed. Float32, on the latents' device. steps: only for tests.
    Raises ValueError for latents that are not square, and for fewer than 2 HELD_OUT of them.
    """
    _, channels, height, width = latents.shape
    if height != width or len(latents) < 2 * HELD_OUT:
        raise ValueError(f"the probe needs square latents, at least {2 * HELD_OUT} of them, not {[*latents.shape]}")
    labels = labels.to(latents.device)
    with torch.inference_mode(False), torch.enable_grad():
        held = torch.zeros_like(labels, dtype=torch.bool)
        held[stratified(labels, -(-len(labels) // HELD_OUT))] = True
        classes = int(labels.max()) + 1
        network = _train(latents[~held].float(), labels[~held], classes, seed, steps)
        network.requires_grad_(False)
        kept = held.nonzero()[:, 0]
        some = kept[stratified(labels[kept], HELD_OUT_MOST).to(kept.device)]
        result = {"probe_loss": _loss(network, latents[some].float(), labels[some], seed)}
        if decode is not None and extractor is not None and real is not None:
            samples = _samples(network, (channels, height, width), labels, seed)
            images = (to_uint8(decode(part).float()) for part in samples)
            result["probe_gfd"] = frechet_distance(real, Statistics.of(map(extractor, images)))
    return result


def _train(z: Tensor, labels: Tensor, classes: int, seed: int, steps: int) -> LightningDiT:
    """The probe, trained on latents z with their labels."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would change the GPUs' generators too
        network = LightningDiT(
            in_channels=z.shape[1],
            input_size=z.shape[2],
            width=WIDTH,
            depth=DEPTH,
            heads=HEADS,
            num_classes=classes,
        )
    network.to(z.device)
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, betas=BETAS, weight_decay=0.0, fused=True)
    chance = torch.Generator().manual_seed(seed)  # on the CPU, as all below, so that a GPU trains on the same numbers
    for step in range(steps):
        index = torch.randint(len(z), (BATCH,), generator=chance).to(z.device)
        batch, t = z[index], torch.rand(BATCH, generator=chance).to(z.device)
        noise = torch.randn(batch.shape, generator=chance).to(z.device)
        with full_precision(z):
            loss = flow_matching_loss(network, z=batch, labels=labels[index], t=t, noise=noise)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, CLIP, foreach=True)
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min((step + 1) / WARMUP, 1 - step / steps)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return network


@torch.no_grad()
def _loss(network: LightningDiT, z: Tensor, labels: Tensor, seed: int) -> float:
    """Mean loss over z. Times are evenly spaced and shuffled, which has less noise than drawing them."""
    chance = torch.Generator().manual_seed(seed + 1)
    order = torch.randperm(len(z), generator=chance).to(z.device)
    t = (order + 0.5) / len(z)
    total = 0.0
    for part, label, time in zip(
        z.split(SAMPLING_BATCH), labels.split(SAMPLING_BATCH), t.split(SAMPLING_BATCH), strict=True
    ):
        noise = torch.randn(part.shape, generator=chance).to(z.device)
        with full_precision(z):
            loss = flow_matching_loss(network, z=part, labels=label, t=time, noise=noise)
        total += float(loss) * len(part)
    return total / len(z)


@torch.no_grad()
def _samples(network: LightningDiT, shape: tuple[int, int, int], labels: Tensor, seed: int) -> Iterator[Tensor]:
    """SAMPLES sampled latents, in batches."""
    chance = torch.Generator().manual_seed(seed + 2)
    chosen = torch.linspace(0, len(labels) - 1, SAMPLES).long() if len(labels) < SAMPLES else spaced(labels, SAMPLES)
    for label in labels[chosen.to(labels.device)].split(SAMPLING_BATCH):
        noise = torch.randn(len(label), *shape, generator=chance).to(labels.device)
        with full_precision(labels):
            yield sample(network, noise, label, Sampling(steps=SAMPLING_STEPS))
