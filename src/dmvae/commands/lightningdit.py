"""Latents for LightningDiT's trainer (github.com/hustvl/LightningDiT): the files that its `ImgLatentDataset` reads."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from dmvae.config import Values
from dmvae.latents.store import LatentSet
from dmvae.runtime.console import Bar
from dmvae.runtime.done import read_done, require_intact
from dmvae.runtime.files import atomic_write, read_json, sweep_beside
from dmvae.stages.latents import MIRRORED


def export_latents(stage: Path, out: Path, *, unmirrored: bool) -> Values:
    """Write the latents of a finished stage `latents` to the folder `out`; returns entries for their trainer's config.

    Their reader takes every .safetensors file of a folder, in the order of names, and for each image, at random, its
    row of `latents` or of `latents_flip`, [n, C, H, W]: so both must exist. It computes (z - mean) / std in float32
    with statistics [1, C, 1, 1], so latents are written raw, in the dtype in which they are stored.
    Whitened latents are written normalised, with mean 0 and std 1: else their generator would learn latents that our
    tokenizer's `denormalize` does not undo. For drawn latents, the one stored sample of each posterior is written;
    their own extraction draws one too. The folder appears only when it is complete, or they could train on a part.

    unmirrored: write the plain latents as `latents_flip` too, for images that must not be mirrored.

    Raises ValueError for a folder that is no finished stage `latents`, that is damaged or holds only a part of the
    images, or whose mirror images are missing or, with `unmirrored`, not wanted.
    """
    done = read_done(stage)
    if not (stage / "latents").is_dir() or done is None:
        raise ValueError(f"{stage}: no finished stage `latents` is here; give RUN/VARIANT/latents")
    if (stored := done["config"].get("stored")) is not None:
        raise ValueError(
            f"{stage}: it holds the latents of at most {stored} images (latents.stored), for measures, and their "
            "trainer would learn from these alone; run the stage again with latents.stored: null"
        )
    mirrored = (stage / MIRRORED).is_dir()
    if mirrored == unmirrored:
        raise ValueError(
            f"{stage}: it holds mirror images, which --unmirrored would leave out; take them, or run the stage again "
            "with latents.mirrored: false"
            if mirrored
            else f"{stage}: it holds no mirror images, and LightningDiT's trainer takes them half the time; run the "
            "stage again with latents.mirrored: true (data of the type latents: with files that hold latents_flip), "
            "or, if images must not be mirrored, give --unmirrored: plain latents stand in their place"
        )
    plain = LatentSet(require_intact(stage) / "latents")
    flipped = LatentSet(stage / MIRRORED) if mirrored else plain
    labels = plain.labels.split([len(shard) for shard in plain.shards])
    mean, std = plain.mean, plain.std
    if plain.whitening is not None:
        mean, std = torch.zeros_like(mean), torch.ones_like(std)
    sweep_beside(out)  # a killed export leaves a folder as large as all latents
    with Bar("write", len(plain), "images") as bar, atomic_write(out) as part:
        part.mkdir()
        for number, (z, mirror, y) in enumerate(zip(plain.shards, flipped.shards, labels, strict=True)):
            if plain.whitening is not None:
                z, mirror = (plain.normalise(x).to(x.dtype) for x in (z, mirror))
            # safetensors refuses one tensor under two names
            shard = {"latents": z, "latents_flip": mirror if mirrored else z.clone(), "labels": y}
            save_file(shard, part / f"latents_rank00_shard{number:03d}.safetensors")
            bar.step(len(y))
        torch.save({"mean": mean.view(1, -1, 1, 1), "std": std.view(1, -1, 1, 1)}, part / "latents_stats.pt")
    return _config(plain, read_json(stage / "autoencoder/config.json", dict)["image_size"], out)


def _config(latents: LatentSet, image_size: int, out: Path) -> Values:
    """The config entries that follow from the latents, and those that `dmvae import official-generator` needs. Their
    defaults are 4 channels, no normalisation and a factor of 0.18215."""
    channels, side, _ = latents.shards[0].shape[1:]
    return {
        "data": {
            "data_path": str(out.absolute()),
            "image_size": image_size,
            "num_classes": int(latents.labels.max()) + 1,
            "latent_norm": True,
            "latent_multiplier": 1.0,
        },
        "vae": {"downsample_ratio": image_size // side},
        "model": {
            "in_chans": channels,
            "use_swiglu": True,
            "use_rope": True,
            "use_rmsnorm": True,
            "wo_shift": False,
        },
    }
