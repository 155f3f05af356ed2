"""What is done to networks before they train: compilation, and activation checkpointing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from dmvae.models.base import compiled_parts_of
from dmvae.training.stage import Networks


def checkpoint_activations(networks: Networks, names: Iterable[str]) -> None:
    """Turn on activation checkpointing in the networks of these names; names that are not there belong to other stages.
    Raises ValueError for a network that has no such blocks."""
    for name, network in networks.named_children():
        if name in names:
            try:
                enable: Any = network.enable_gradient_checkpointing
                enable()
            except (AttributeError, ValueError) as error:
                raise ValueError(
                    f"run.checkpointing: {name!r}, a {type(network).__name__}, has no blocks that can be computed "
                    "again; leave it out"
                ) from error


def compile_networks(networks: nn.Module, **options: object) -> None:
    """Compile every child in place: the parts that it names in `compiled_parts`, else all of it. `options` are
    torch.compile's. Batches have one size, so parts are compiled for fixed shapes.

    A compiled part is a single node of autograd: a gradient through a piece of it runs all of it. So a decoder does not
    compile its last layers, which the adaptive weight differentiates on their own, twice a step (see
    `ConvolutionalDecoder.compiled_parts`).
    """
    torch._dynamo.reset()  # what earlier stages compiled would count against the limit on the next line
    torch._dynamo.config.recompile_limit = 64  # parts of one class, each with and without gradient
    # `align` differentiates its projection twice, so buffers must survive the first pass.
    torch._functorch.config.donated_buffer = False
    for network in networks.children():
        for part in compiled_parts_of(network, [network]):
            part.compile(dynamic=False, **options)
