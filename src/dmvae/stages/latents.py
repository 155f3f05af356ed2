"""Stage `latents`: encodes the training set once, and measures the latents' mean and standard deviation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from dmvae import config as configs
from dmvae.inputs import Inputs
from dmvae.latents.store import LatentSet, encode_dataset
from dmvae.models.artifact import save_network
from dmvae.runtime import distributed

NAME = "latents"
READS = ("tokenizer", "matching", "decoder")
USES = ("pretrained",)


@dataclass(frozen=True, kw_only=True)
class LatentsConfig:
    """Encoding of the data set."""

    batch_size: int = 256
    """Images a step, per rank."""
    shard_size: int = 16384
    """Images a file."""
    dtype: Literal["float32", "float16"] = "float32"
    """Precision on disk."""

    def __post_init__(self) -> None:
        configs.require_positive(self, "batch_size", "shard_size")


def run(config: LatentsConfig, inputs: Inputs) -> dict[str, Any]:
    tokenizer = inputs.tokenizer()
    title = f"{inputs.variant}  {NAME}"
    encode_dataset(tokenizer, inputs.train_set, inputs.out / "latents", inputs, title=title)
    latents = LatentSet(inputs.out / "latents")
    tokenizer.set_statistics(latents.mean, latents.std)
    if distributed.is_main():
        save_network(tokenizer.cpu(), inputs.out / "autoencoder")
    distributed.barrier()
    return {"images": len(latents)}
