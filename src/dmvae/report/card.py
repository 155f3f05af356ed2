"""The model card of a pipeline: how to use it, what it scored (also for a hub to read), and the exact recipe."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import replace

from dmvae.config import Values
from dmvae.evaluation.metrics.frechet import distances
from dmvae.flow.samplers import Sampler, SamplerConfig
from dmvae.jobs import Job
from dmvae.registry import find, is_ours
from dmvae.report.figures import of_few, shown
from dmvae.runtime.done import require_intact
from dmvae.runtime.files import read_json
from dmvae.runtime.yaml_text import as_yaml
from dmvae.stages.sample import image_seed
from dmvae.tokenizers.adapted import tokenizer_class

FIGURES = ("psnr", "ssim", "rfd", "gfd", "coverage", "agreement", "generator_loss", "knn")
"""Keys of the figures that the card shows."""
TASK = "unconditional-image-generation"


def card(job: Job, stages: dict[str, Job], recipe: str, pictures: dict[str, str], label: int) -> str:
    """The card as Markdown. pictures: file beside the card -> caption. label: the first sample's class."""
    metrics: Values = {}
    if "evaluate" in stages:
        metrics = read_json(require_intact(stages["evaluate"].folder / "metrics.json"), dict)
    figures = shown(key for key in FIGURES if key in metrics)
    rows = "\n".join(f"| {figure.heading} | {figure.show(metrics[key])} |" for key, figure in figures.items())
    few = of_few([metrics.get("manifest", {})])
    table = (
        f"rFD and gFD are {distances(metrics['features'])}.{f' {few}' if few else ''}\n\n"
        f"| figure | value |\n| --- | --- |\n{rows}\n"
        if metrics
        else "It was not measured: the recipe has no `evaluate` section, or the stage has not run.\n"
    )
    shows = "".join(f"\n![{_as_it_is(text)}]({name})" for name, text in pictures.items()) + ("\n" if pictures else "")
    tokenizer = tokenizer_class(require_intact(stages["latents"].folder / "autoencoder"))
    return f"""---
{_head(job, metrics, pictures)}---

# {job.recipe.name}: {job.variant}

A latent flow model on a tokenizer that {_origin(stages, job.recipe.pretrained is not None)}.
{shows}
```sh
pip install dmvae
```

(If no package index has it, build a wheel in its checkout with `pip wheel --no-deps .` and install that.)

```python
import torch
from dmvae import DMVAEPipeline

pipeline = DMVAEPipeline.from_pretrained(FOLDER_OR_HUB_ID)
generator = [torch.Generator().manual_seed({image_seed(job.recipe.seed, 0)})]
{_autocast(stages)}image = pipeline(class_labels=[{label}], generator=generator{_arguments(job)}).images[0]
```

{_claim(job)} With `dmvae` installed,
`diffusers.DiffusionPipeline.from_pretrained(FOLDER, custom_pipeline=FOLDER, trust_remote_code=True)` gives the same
pipeline, with FOLDER = `huggingface_hub.snapshot_download(HUB_ID)` from a hub. The tokenizer alone:
`dmvae.{tokenizer.__name__}.from_pretrained(FOLDER_OR_HUB_ID, subfolder="vae")`.

## Figures

{table}
## Recipe

`dmvae run recipe.yaml` trains it again.

```yaml
{recipe}```
"""


def _as_it_is(text: str) -> str:
    """A class name, which may be anything, as Markdown shows it unchanged."""
    return re.sub(r"[\\`*_\[\]<>&]", r"\\\g<0>", " ".join(text.split()))


def _head(job: Job, metrics: Values, pictures: dict[str, str]) -> str:
    """The YAML that hubs read: library, tags, pictures, and the figures as a model-index."""
    data = job.recipe.data
    head: Values = {
        "library_name": "dmvae",
        "pipeline_tag": TASK,
        "tags": ["dmvae", "diffusers", "latent-diffusion", "image-tokenizer", "flow-matching"],
    }
    if pictures:
        head["widget"] = [{"text": text, "output": {"url": name}} for name, text in pictures.items()]
    figures = shown(key for key in FIGURES if isinstance(metrics.get(key), int | float) and math.isfinite(metrics[key]))
    if figures:
        scores = [
            {"type": key, "name": figure.label, "value": figure.in_unit(metrics[key])}
            for key, figure in figures.items()
        ]
        dataset = {"name": f"{data.type}, {data.size} px", "type": data.type, "split": "test"}
        result = {"task": {"type": TASK}, "dataset": dataset, "metrics": scores}
        head["model-index"] = [{"name": f"{job.recipe.name}: {job.variant}", "results": [result]}]
    return as_yaml(head)


def _arguments(job: Job) -> str:
    """The pipeline's arguments that repeat the recipe's samples, as source text."""
    sample = job.recipe.section("sample")
    if sample is None:
        return ""
    usual = SamplerConfig().arguments()
    always = ("num_inference_steps", "guidance_interval", "time_shift")
    given = (sample if _known(sample.method) else replace(sample, method="euler")).arguments()
    arguments = {name: value for name, value in given.items() if name in always or value != usual[name]}
    arguments["guidance_scale"] = sample.guidance[0]
    return "".join(f", {name}={value!r}" for name, value in arguments.items())


def _known(method: str) -> bool:
    """Whether a pipeline knows the sampler without a plugin."""
    return is_ours(find(Sampler, method))


def _origin(stages: Iterable[str], pretrained: bool) -> str:
    """Who made the tokenizer, in words. stages: the names of the variant's."""
    if not pretrained:
        return "`dmvae` trained"
    further = {"tokenizer", "matching", "decoder"} & {*stages}
    return f"was there already (`pretrained` below){' and that `dmvae` trained further' if further else ''}"


def _claim(job: Job) -> str:
    sample = job.recipe.section("sample")
    if sample is None:
        return "The recipe below draws no samples: the arguments are the pipeline's own."
    if _known(sample.method):
        return "With these arguments it is the first image that `dmvae sample` made of the recipe below."
    return f"It takes Euler steps; the samples measured below were made with the sampler {sample.method}, a plugin's."


def _autocast(stages: dict[str, Job]) -> str:
    """Source text of the autocast context in which the recipe's samples were made; "" for float32."""
    bf16 = "sample" in stages and stages["sample"].facts().get("bf16")
    return "with torch.autocast(pipeline.device.type, torch.bfloat16):\n    " if bf16 else ""
