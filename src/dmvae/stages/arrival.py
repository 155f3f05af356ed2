"""The distance of a finished tokenizer's latents to the reference that they were matched to."""

from __future__ import annotations

from dataclasses import asdict

import torch
from torch import Tensor

from dmvae.config import Values
from dmvae.evaluation.latents import sliced_distance
from dmvae.inputs import Inputs
from dmvae.references import Reference
from dmvae.runtime.random import Random
from dmvae.stages.reference import MAP_POINTS, config_of
from dmvae.transport.arrival import measure, told_by_class, told_with_class

SAMPLES, LEAST = 5120, 64
"""Samples of the reference that latents are compared with, and latents at least."""


def at_the_end(inputs: Inputs, reference: Reference, raw: Tensor, labels: Tensor, drawn: bool) -> Values:
    """Metrics of raw test latents [n, C, H, W] with labels [n], after the reference's normalisation; class by class
    too, where the reference's labels mean something. drawn: whether they are drawn from posteriors, for the verdict."""
    to = inputs.tensors("reference", "normalisation.safetensors")
    here = (raw - to["mean"].view(-1, 1, 1)) / to["std"].view(-1, 1, 1)
    there = inputs.tensors("reference", "map.safetensors")["latents"]
    figures: Values = {"distance_to_reference": sliced_distance(there.flatten(1), here[:MAP_POINTS].flatten(1))}
    if len(here) < LEAST:
        return figures
    y, of = reference.sample(SAMPLES, Random.alone(inputs.seed, "arrival"))
    shuffled = torch.randperm(len(here), generator=torch.Generator().manual_seed(inputs.seed))
    found = measure(here[shuffled], y.float(), inputs.seed)
    verdict = found.verdict + (" (of latents with their noise, not of their means)" if drawn else "")
    by_class = _by_class(inputs, here, labels, y.float(), of)
    if classes := by_class["classes"]:
        farthest = max(classes, key=lambda name: classes[name]["token_accuracy"])
        share = classes[farthest]["token_accuracy"]
        verdict += f"; of its classes {farthest} is farthest, with {share:.0%} of its tokens told apart"
    elif known := by_class["class_known"]:
        verdict += f"; a network that knows the class tells {known['token_accuracy']:.0%} of the tokens apart"
    return figures | {"arrival": asdict(found) | {"verdict": verdict} | by_class} | found.figures()


def _by_class(inputs: Inputs, z: Tensor, labels: Tensor, y: Tensor, of: Tensor) -> Values:
    """Accuracies of classifiers, by class, between latents z [n, C, H, W] with labels [n] and samples y with labels
    `of`; empty where the reference's labels mean nothing."""
    names = inputs.test_set.classes
    if not config_of(inputs).distribution.labelled_for(inputs) or len(names) < 2:
        return {"class_known": {}, "classes": {}}
    told = told_by_class(z, labels, y, of, inputs.seed)
    return {
        "class_known": told_with_class(z, labels, y, of, inputs.seed),
        "classes": {names[label]: figures for label, figures in told.items()},
    }
