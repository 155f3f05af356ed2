"""The diffusers folder that a run leaves for every generator: run_dir/VARIANT/pipeline."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from dmvae import config as configs
from dmvae.config import Values
from dmvae.datasets import open_dataset
from dmvae.evaluation.metrics.frechet import distances
from dmvae.generators import load_generator
from dmvae.interop.pipeline import build_pipeline
from dmvae.pipeline import Job
from dmvae.report.figures import shown
from dmvae.runtime.files import atomic_write, within
from dmvae.stages.sample import image_seed
from dmvae.tokenizers.adapted import load_tokenizer

FIGURES = ("psnr", "ssim", "rfd", "gfd", "coverage", "agreement", "generator_loss", "knn")
"""Those that the card shows."""


def write_pipelines(jobs: list[Job], run_dir: Path) -> list[Path]:
    """Write the pipeline of every finished generator, unless it is there; its card is always written anew."""
    folders: dict[str, dict[str, Job]] = {}
    for job in jobs:
        if job.finished:
            folders.setdefault(job.variant, {})[job.stage.name] = job
    return [
        _write(stages, within(run_dir / variant / "pipeline", run_dir))
        for variant, stages in folders.items()
        if "generator" in stages
    ]


def _write(stages: dict[str, Job], out: Path) -> Path:
    job = stages["generator"]
    source = {name: stages[name].folder.name for name in ("latents", "generator")}
    recipe = yaml.safe_dump(configs.plain(job.recipe), sort_keys=False)
    text = card(job, stages, recipe)
    stamp = out / "source.json"
    if _source(stamp) != source:
        transformer = load_generator(job.folder / "generator")
        # for the manifests of what measures its samples
        transformer.register_to_config(_ema=job.recipe.section("generator").ema)
        vae = load_tokenizer(stages["latents"].folder / "autoencoder")
        classes = open_dataset(job.recipe.data, "train").classes
        with atomic_write(out) as part:
            build_pipeline(transformer, vae, classes, text).save_pretrained(part)
            (part / stamp.name).write_text(json.dumps(source))
    for name, content in (("README.md", text), ("recipe.yaml", recipe)):
        with atomic_write(out / name) as part:
            part.write_text(content)
    return out


def _source(stamp: Path) -> object:
    """What a pipeline was made of; None without one, or where it cannot be read: it is then made anew."""
    try:
        return json.loads(stamp.read_text())
    except (OSError, ValueError, RecursionError):
        return None


def card(job: Job, stages: dict[str, Job], recipe: str) -> str:
    """The model card: how to use it, what it scored, and the exact recipe."""
    metrics: Values = {}
    if "evaluate" in stages:
        metrics = json.loads((stages["evaluate"].folder / "metrics.json").read_text())
    figures = shown(key for key in FIGURES if key in metrics)
    rows = "\n".join(f"| {figure.heading} | {figure.show(metrics[key])} |" for key, figure in figures.items())
    table = (
        f"rFD and gFD are {distances(metrics['features'])}.\n\n| figure | value |\n| --- | --- |\n{rows}\n"
        if metrics
        else "It was not measured: the recipe has no `evaluate` section, or the stage has not run.\n"
    )
    return f"""---
library_name: diffusers
pipeline_tag: unconditional-image-generation
tags: [dmvae, latent-diffusion, image-tokenizer]
---

# {job.recipe.name}: {job.variant}

A class-conditional latent flow model on a tokenizer that `dmvae` trained.

```python
import torch
from dmvae import DMVAEPipeline

pipeline = DMVAEPipeline.from_pretrained(FOLDER_OR_HUB_ID)
generator = [torch.Generator().manual_seed({_first_seed(job)})]
{_autocast(stages)}image = pipeline(class_labels=[0], generator=generator{_arguments(job)}).images[0]
```

{_claim(job)} The tokenizer alone:
`dmvae.{_tokenizer_class(stages)}.from_pretrained(FOLDER_OR_HUB_ID, subfolder="vae")`.

## Figures

{table}
## Recipe

`dmvae run recipe.yaml` trains it again.

```yaml
{recipe}```
"""


def _arguments(job: Job) -> str:
    """The pipeline's arguments that repeat the recipe's samples, as source text."""
    sample = job.recipe.section("sample")
    if sample is None:
        return ""
    arguments = {
        "num_inference_steps": sample.steps,
        "guidance_scale": sample.guidance[0],
        "guidance_interval": tuple(sample.guidance_interval),
        "time_shift": sample.time_shift,
    }
    return "".join(f", {name}={value!r}" for name, value in arguments.items())


def _claim(job: Job) -> str:
    sample = job.recipe.section("sample")
    method = sample.method if sample else "euler"
    if method == "euler":
        return "With these arguments it is the first image that `dmvae sample` made of the recipe below."
    return f"The pipeline takes Euler steps; the samples measured below were made with the {method} sampler."


def _autocast(stages: dict[str, Job]) -> str:
    """The context in which the recipe's samples were made, where it was not float32."""
    bf16 = "sample" in stages and stages["sample"].facts().get("bf16")
    return "with torch.autocast(pipeline.device.type, torch.bfloat16):\n    " if bf16 else ""


def _first_seed(job: Job) -> int:
    return image_seed(job.recipe.seed, 0)


def _tokenizer_class(stages: dict[str, Job]) -> str:
    config = json.loads((stages["latents"].folder / "autoencoder" / "config.json").read_text())
    return config["_class_name"]
