"""Images that a pipeline draws when they are asked for; none is stored."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from dmvae import config as configs
from dmvae.datasets.pixels import to_uint8
from dmvae.flow.guidance import require_channels
from dmvae.runtime.hashing import digest
from dmvae.runtime.precision import Precision, autocast
from dmvae.stages.sample import SampleConfig, drawn_labels, image_seed, labels_told

BLOCK = 64
"""Images drawn at once."""


class Generated:
    """`sample.count` images of a DMVAEPipeline, of the classes that it has learned. Image i has a seed of its own, so
    that neither batches nor ranks change it. `labels` int64 [n] index the learned classes.

    Raises ValueError for a field that `sample.method` does not read, and for `guidance_channels` that the latents lack.
    """

    def __init__(
        self, pipeline: Any, sample: SampleConfig, *, seed: int, device: torch.device, precision: Precision = "auto"
    ) -> None:
        sample.require_read()
        require_channels(sample.guidance_channels, pipeline.transformer.config.in_channels)
        self.pipeline, self.sample, self.seed, self.device, self.precision = pipeline, sample, seed, device, precision
        pipeline.set_progress_bar_config(disable=True)
        self.learned = torch.tensor(sorted(pipeline.classes) or range(pipeline.transformer.config.num_classes))
        self.labels: Tensor | None = drawn_labels(sample, seed, len(self.learned))
        sampler = configs.plain(sample) | {"seed": seed}
        del sampler["batch_size"], sampler["guide"]  # the first changes nothing, the second is the pipeline's
        classes = [name for _, name in sorted(pipeline.classes.items())]
        self.facts = {"kind": "generated", "sampler": sampler, "labels": labels_told(sample.labels)}
        self.facts["classes"] = digest(tuple(classes))
        self.facts["size"] = pipeline.transformer.config.input_size * pipeline.vae.stride

    def __len__(self) -> int:
        return self.sample.count

    def batches(self, chosen: range, batch_size: int) -> Iterator[Tensor]:
        assert self.labels is not None
        # Always draw whole blocks of one size: networks round differently for other batch shapes, and an image shall
        # depend neither on batches nor on ranks.
        for start in range(chosen.start - chosen.start % BLOCK, chosen.stop, BLOCK):
            part = [i % len(self) for i in range(start, start + BLOCK)]
            with autocast(self.device, self.precision):
                images = self.pipeline(
                    class_labels=self.learned[self.labels[part]].tolist(),
                    generator=[torch.Generator().manual_seed(image_seed(self.seed, i)) for i in part],
                    guidance_scale=self.sample.guidance[0],
                    output_type="pt",
                    **self.sample.arguments(),
                ).images
            wanted = slice(max(0, chosen.start - start), chosen.stop - start)
            yield from to_uint8(images.float() * 2 - 1).cpu()[wanted].split(batch_size)  # as the stage `sample` rounds
