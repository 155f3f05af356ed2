"""Stage `latents`: encodes the training set once, its mirror images too where asked, and measures the latents' mean and
standard deviation. Of images that training crops at random (`data.resize`) it encodes the centre.

A tokenizer of diffusers that was trained further is saved a second time, in its own class.
"""

from __future__ import annotations

from dmvae.latents.store import LatentSet
from dmvae.models.artifact import save_network
from dmvae.runtime import distributed
from dmvae.sections import LatentsConfig
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
        inputs.encode(tokenizer, inputs.train_set, folder, self.name)
        if self.config.mirrored:
            inputs.encode(tokenizer, inputs.train_set, inputs.out / MIRRORED, f"{self.name}, mirrored", mirrored=True)
        latents = LatentSet(folder)
        tokenizer.set_statistics(latents.mean, latents.std)
        if distributed.is_main():
            save_network(tokenizer.cpu(), inputs.out / "autoencoder")
            own = tokenizer.as_diffusers() if inputs.tokenizer_folder is not None else None
            if own is not None:
                save_network(own, inputs.out / "diffusers")
        distributed.barrier()
        return {"images": len(latents)}
