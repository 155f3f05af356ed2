"""Whether the diffusers pipeline of a run makes the images that `dmvae sample` made, from their seeds alone: how many
of their values differ, and by how much at most, in steps of 1 / 255.

    python -m benchmarks.same_images runs/demo/matched
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
import yaml
from diffusers.utils import logging
from safetensors.torch import load_file

from dmvae import DMVAEPipeline
from dmvae import config as configs
from dmvae.datasets.pixels import to_uint8
from dmvae.stages.sample import SampleConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", type=Path, help="RUN/VARIANT")
    folder = parser.parse_args().method
    logging.disable_progress_bar()
    for needed in ("recipe.yaml", "sample/done.json", "pipeline/model_index.json"):
        if not (folder / needed).is_file():
            parser.error(f"no {folder / needed}; give RUN/VARIANT of a run that has ended")
    sample = configs.read(SampleConfig, yaml.safe_load((folder / "recipe.yaml").read_text())["sample"], "sample")
    scale = sample.guidance[0]
    shard = load_file(folder / f"sample/guidance-{scale:g}/samples-00000.safetensors")
    pipeline = DMVAEPipeline.from_pretrained(folder / "pipeline")
    pipeline.set_progress_bar_config(disable=True)
    bf16 = json.loads((folder / "sample/done.json").read_text())["bf16"]
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        images = pipeline(
            shard["labels"].tolist(),
            generator=[torch.Generator().manual_seed(seed) for seed in shard["seeds"].tolist()],
            guidance_scale=scale,
            output_type="pt",
            **sample.arguments(),
        ).images
    apart = (to_uint8(images * 2 - 1).int() - shard["images"].int()).abs()
    count = f"{int((apart > 0).sum())} of {apart.numel()} values differ"
    print(f"{len(images)} images: {count}, by {int(apart.max())} at most")


if __name__ == "__main__":
    main()
