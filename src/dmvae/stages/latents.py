"""Stage `latents`: encodes the training set once, or a part of it, on request with mirror images, and measures the
latents' mean, standard deviation and whitening matrix. Where training takes random crops (`data.resize`), it encodes
the centre. Latents that are encoded already (`data: {type: latents}`) it takes as they are.

A tokenizer of diffusers that was trained further is also saved in its own class.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from dmvae.datasets import Labelled
from dmvae.datasets.latents import Latents
from dmvae.datasets.mixed import Chosen, spaced
from dmvae.inputs import Inputs, build_tokenizer
from dmvae.latents.store import LatentSet
from dmvae.models.artifact import save_network
from dmvae.runtime import distributed
from dmvae.runtime.words import counted, few
from dmvae.sections import LatentsConfig
from dmvae.stages.editing import DRAWN
from dmvae.stages.elsewhere import take, unfit
from dmvae.training.stage import Facts, Stage, stage

MIRRORED = "mirrored"
"""Where in the stage's folder the mirror images' latents are, if there are any."""


@stage("latents")
class LatentsStage(Stage[LatentsConfig]):
    Config = LatentsConfig
    reads = ("tokenizer", "matching", "decoder")
    uses = ("pretrained",)

    def run(self) -> Facts:
        inputs, folder = self.inputs, self.inputs.out / "latents"
        tokenizer = inputs.tokenizer()
        if self.config.drawn:
            tokenizer.drawn = True
        images: Labelled = inputs.train_set
        if isinstance(images, Latents):
            take(inputs, tokenizer, images, ("latents", MIRRORED), self.config)
        else:
            if self.config.stored is not None:
                images = Chosen(images, spaced(images.labels, self.config.stored))
            inputs.encode(tokenizer, images, folder, self.name, whitened=self.config.whitening)
            if self.config.mirrored:
                inputs.encode(tokenizer, images, inputs.out / MIRRORED, f"{self.name}, mirrored", mirrored=True)
        latents = LatentSet(folder)
        tokenizer.set_statistics(latents.mean, latents.std, latents.whitening)
        if distributed.is_main():
            save_network(tokenizer.cpu(), inputs.out / "autoencoder")
            own = tokenizer.as_diffusers() if inputs.tokenizer_folder is not None else None
            if own is not None:
                save_network(own, inputs.out / "diffusers")
        distributed.barrier()
        return {"images": len(latents)}

    @classmethod
    def problems(cls, config: LatentsConfig, inputs: Inputs, others: Mapping[str, object]) -> Iterator[str]:
        if inputs.data.are_latents:
            yield from unfit(config, inputs, others)
        if config.stored is not None:
            data = inputs.train_set
            stored = data.labels[spaced(data.labels, config.stored)]
            left = sorted({*data.labels.tolist()} - {*stored.tolist()})
            if left:
                yield (
                    f"latents.stored: {config.stored} leaves out {counted(len(left), 'class', 'classes')} "
                    f"({few([data.classes[label] for label in left])}), of which nothing would be sampled; give more"
                )
        if config.whitening:
            channels, *sides = inputs.latent_shape
            tokens = min(len(inputs.train_set), config.stored or math.inf) * math.prod(sides)
            if tokens <= channels:
                yield (
                    f"latents.whitening: {tokens} places of latents do not tell how {channels} channels vary together; "
                    f"{'set latents.stored higher' if config.stored else 'use more images'}, or leave it out"
                )
        noise = getattr(others.get("matching"), "noise", None)
        if not config.drawn or noise in DRAWN:  # which draw already, `fixed` from any tokenizer
            return
        if not build_tokenizer(inputs.sections).has_spread:
            ours = inputs.sections.pretrained is None
            yield (
                "latents.drawn: true needs a tokenizer with a posterior"
                + (" (autoencoder.variational: true)" if ours else ", which this `pretrained` has not")
                + "; leave it out, or give it to those variants alone that have one: --variants.NAME.latents.drawn true"
            )
        elif noise == "none":
            yield (
                "latents.drawn: true would draw latents of which matching.noise: none has matched the means alone; "
                "leave it out, or set matching.noise: posterior, which draws them"
            )
