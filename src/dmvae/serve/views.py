"""What the page shows, as plain values: each function answers one kind of request, from a `Folder`."""

from __future__ import annotations

import base64
import itertools
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from html import escape

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from dmvae.config import Values
from dmvae.evaluation.interpolation import slerp
from dmvae.evaluation.metrics import figures
from dmvae.evaluation.pairs import psnr
from dmvae.flow.guidance import require_taught
from dmvae.flow.samplers import Sampler, Sampling
from dmvae.jobs import Job
from dmvae.models.velocity import VelocityModel
from dmvae.registry import names
from dmvae.report import latent_map, table, training
from dmvae.report.html import duration
from dmvae.report.pictures import data_uri
from dmvae.runtime.done import require_intact
from dmvae.runtime.precision import autocast
from dmvae.runtime.words import few
from dmvae.serve.folder import Folder
from dmvae.spelling import nearest
from dmvae.stages.sample import SampleConfig, image_seed, normal_of
from dmvae.training.logging import read_figures
from dmvae.training.pictures import PICTURES

FRAMES = 17
"""Number of pictures of an interpolation, both ends included."""
MOST = {"count": 64, "steps": 1000}
"""Most samples of a request, and most steps of a sampler."""


def overview(folder: Folder) -> Values:
    """Methods, classes, images, samplers, and what is missing for each tab."""
    run = folder.run
    methods = [
        {
            "name": name,
            "colour": run.colour(name),
            "tokenizer": folder.tokenizer_stage(name),
            "sampling": _sampling(folder, name),
        }
        for name in run.variants
    ]
    no_tokenizer = [f"{m['name']}: no tokenizer is finished yet" for m in methods if not m["tokenizer"]]
    no_images = [] if folder.image_count else [folder.image_source]
    return {
        "name": run.name,
        "folder": str(run.dir),
        "methods": methods,
        "classes": [{"label": label, "name": name} for label, name in folder.classes.items()],
        "images": {"count": folder.image_count, "source": folder.image_source},
        "samplers": names(Sampler),
        "most": MOST,
        "frames": FRAMES,
        "missing": {
            "map": [
                f"{name}: its stage evaluate is not finished" for name in run.variants if name not in folder.pictures
            ],
            "between": no_images + no_tokenizer,
            "copies": no_images + no_tokenizer,
            "samples": [f"{m['name']}: no generator is finished yet" for m in methods if not m["sampling"]],
            "results": [] if run.methods else ["nothing is measured yet: no stage evaluate is finished"],
        },
    }


def _sampling(folder: Folder, method: str) -> Values | None:
    """How the recipe samples the method's generator; None if that is not finished."""
    if not (folder.finished(method, "generator") and folder.finished(method, "latents")):
        return None
    section = folder.run.recipes[method].section("sample") or SampleConfig()
    return {"method": section.method, "steps": section.steps, "guidance": section.guidance[0]}


def picture(image: Tensor) -> str:
    """A uint8 image [c, h, w] as a data URI of a PNG."""
    return data_uri(to_pil_image(image))


def latents(folder: Folder) -> Values:
    """The map: for each panel, its points in [0, 1]^2, their labels, and their indices in the file they come from."""
    clouds = latent_map.clouds_of(folder.run)
    panels: list[Values] = []
    place_of: dict[int, int] = {}
    how: dict[str, None] = {}  # a set in order
    for number, group in enumerate(latent_map.planes(clouds)):
        how[latent_map.embed(group)] = None
        every = np.concatenate([cloud.plane for cloud in group if cloud.plane is not None])
        low, span = every.min(axis=0), np.ptp(every, axis=0) + 1e-9
        for cloud in group:
            assert cloud.plane is not None
            place_of[id(cloud)] = len(panels)
            panels.append(
                {
                    "title": cloud.title,
                    "method": cloud.variant,
                    "reference": cloud.is_reference,
                    "plane": number,
                    "behind": place_of.get(id(cloud.reference)) if cloud.reference in group else None,
                    "points": ((cloud.plane - low) / span).round(4).tolist(),
                    "labels": cloud.labels[cloud.places].tolist(),
                    "places": cloud.places.tolist(),
                }
            )
    found = sorted({label for panel in panels for label in panel["labels"]})
    colours = latent_map.class_colours(found)
    classes = [{"label": label, "name": folder.run.class_name(label), "colour": colours[label]} for label in found]
    return {"how": " or ".join(how), "panels": panels, "classes": classes}


def point(folder: Folder, method: str, place: int, reference: bool) -> Values:
    """The pictures of one point of the map: a test image and its reconstruction; for a sample of the reference, what
    the method's decoder makes of it. Raises ValueError for a point that is not there."""
    model = folder.tokenizer(method)
    shape = (1, model.config.latent_channels, model.latent_size, model.latent_size)
    if reference:
        home = folder.run.folders("reference").get(method)
        if home is None:
            raise ValueError(f"{method} has no reference: its stage reference has not run")
        to = load_file(require_intact(home / "normalisation.safetensors"))
        z = _row(load_file(require_intact(home / "map.safetensors"))["latents"].flatten(1), place).view(shape)
        z = z * to["std"].view(-1, 1, 1) + to["mean"].view(-1, 1, 1)
        return {"copy": picture(folder.decode(method, z, raw=True)[0])}
    if method not in folder.pictures:
        raise ValueError(f"{method} has no map: its stage evaluate is not finished")
    z = _row(folder.pictures[method]["map_latents"], place).view(shape)
    recipes = folder.run.recipes  # test images are those of the first method's data set
    own = recipes[method].data == next(iter(recipes.values())).data
    original = picture(folder.image(place)) if own and place < folder.image_count else None
    return {"original": original, "copy": picture(folder.decode(method, z)[0])}


def _row(rows: Tensor, place: int) -> Tensor:
    if not 0 <= place < len(rows):
        raise ValueError(f"there is no point {place}; there are {len(rows)}, from 0")
    return rows[place].float()


def image(folder: Folder, index: int) -> Values:
    """A test image alone."""
    return {"original": picture(folder.image(index))}


def copies(folder: Folder, method: str, index: int) -> Values:
    """A test image's reconstruction, its PSNR as text, and the stage whose tokenizer made it."""
    original = folder.image(index)
    copy = folder.decode(method, folder.encode(method, original[None]))[0]
    figure = figures()["psnr"]
    text = f"{figure.title} {figure.show(psnr(original[None], copy[None]).item())} {figure.unit}"
    return {"copy": picture(copy), "psnr": text, "stage": folder.tokenizer_stage(method)}


def between(folder: Folder, method: str, a: int, b: int, path: str) -> Values:
    """FRAMES pictures, decoded between image a's latent and image b's, in one picture side by side.

    path: "linear", z = (1 - s) z_a + s z_b; or "slerp", on the great circle between them. Raises ValueError for
    another.
    """
    if path not in ("linear", "slerp"):
        raise ValueError(f"path {path!r} is neither 'linear' nor 'slerp'")
    z = folder.encode(method, torch.stack([folder.image(a), folder.image(b)]))
    shares = torch.linspace(0, 1, FRAMES).tolist()
    way = (lambda s: torch.lerp(z[:1], z[1:], s)) if path == "linear" else (lambda s: slerp(z[:1], z[1:], s))
    frames = folder.decode(method, torch.cat([way(share) for share in shares]))
    return {"strip": picture(torch.cat(list(frames), dim=2)), "stage": folder.tokenizer_stage(method)}


def samples(
    folder: Folder, method: str, label: int | None, *, count: int, guidance: float, steps: int, seed: int, sampler: str
) -> Iterator[Values]:
    """Draw `count` images of a class: {"step", "of"} after every step, then {"images": [...]}.

    label: None is "no class". Image i starts from the noise that the stage `sample` gives image i of a recipe with
    this seed, so different methods start from the same noise. Raises ValueError, before the first value, for a label or
    settings that the generator does not take.
    """
    generator, section = folder.generator(method), folder.run.recipes[method].section("sample") or SampleConfig()
    if (learned := folder.learned.get(method)) is None:
        raise ValueError(f"{method}'s generator has been finished since this page was loaded: load it again")
    guide = folder.guide(method)
    dropped = folder.run.recipes[method].section("generator").label_dropout
    itself = guide is None and isinstance(generator, VelocityModel)
    require_taught(dropped, guidance, labelled=label is not None, unlabelled=label is None, guides_itself=itself)
    if label is None:
        label = generator.config.num_classes
    elif label not in learned:
        raise ValueError(f"class {label} is not one that {method}'s generator has learned; those are {few(learned)}")
    settings = replace(section, method=sampler, steps=steps).settings(guidance, guide)
    return _draw(folder, method, torch.full((count,), label), [image_seed(seed, i) for i in range(count)], settings)


def _draw(folder: Folder, method: str, labels: Tensor, seeds: list[int], settings: Sampling) -> Iterator[Values]:
    networks, generator = folder.networks, folder.generator(method)
    normal = normal_of(generator, seeds, networks.device)
    arguments = (normal(), labels.to(networks.device), settings, normal)
    if isinstance(generator, VelocityModel):
        states, steps = generator.trajectory(*arguments), settings.steps
    else:  # a generator without intermediate states
        states, steps = (generator.sample(*arguments) for _ in range(1)), 1
    precision, z = folder.run.recipes[method].run.precision, arguments[0]
    for step in itertools.count(1):
        # the lock is held for one step: other requests take turns, and none waits for a client that has gone
        with networks.busy, torch.inference_mode(), autocast(networks.device, precision):
            state = next(states, None)
        if state is None:
            break
        z = state
        yield {"step": step, "of": max(step, steps)}
    yield {"images": [picture(x) for x in folder.decode(method, z)]}


def results(folder: Folder) -> Values:
    """The report's summary and table, as HTML; while methods train, the table is from when the run last ended."""
    found, left = table.results(folder.run), dict.fromkeys(job.variant for job in folder.run.jobs if not job.finished)
    before = f"Not finished: {', '.join(left)}. Their rows in the table are from when the run last ended."
    note = f'<p class="note">{escape(before)}</p>' if left else ""
    return {"html": table.summary(folder.run) + note + found if found else ""}


def progress(folder: Folder) -> Values:
    """ "stages": every stage's state; "order": the stages' names in order; "logged": those that have curves."""
    stages = [{"method": job.variant, "stage": job.stage.name, **_state(job)} for job in folder.run.jobs]
    order = folder.run.stages()
    return {"stages": stages, "order": order, "logged": [name for name in order if folder.run.trained(name)]}


def curves(folder: Folder, stage: str) -> Values:
    """A stage's curves so far, as HTML. Raises ValueError for a stage that the run lacks."""
    if stage not in folder.run.stages():
        raise ValueError(f"no stage is called {stage!r}{nearest(stage, folder.run.stages())}")
    inside = training.health(folder.run) if stage == "matching" else ""
    lines = f'<p class="note">{training.HOW_TO_READ}</p>{training.stage_curves(folder.run, stage)}{inside}'
    return {"html": _newest(folder, stage) + lines}


def _newest(folder: Folder, stage: str) -> str:
    """The newest picture of each unfinished training of the stage, as HTML."""
    going = {job.folder: job.variant for job in folder.run.jobs if job.stage.name == stage and not job.finished}
    found = {method: max((home / PICTURES).glob("step-*.png"), default=None) for home, method in going.items()}
    return "".join(
        f'<figure><img src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}" alt=""'
        f' style="width: auto; max-width: 100%"><figcaption>{escape(method)}, {escape(path.stem)}</figcaption></figure>'
        for method, path in found.items()
        if path is not None
    )


def _state(job: Job) -> Values:
    if job.finished:
        return {"state": "finished", "text": duration(job.facts()["seconds"])}
    if job.state == "new":
        return {"state": "new", "text": "not begun"}
    log, steps = job.folder / "log.jsonl", getattr(job.recipe.section(job.stage), "steps", None)
    rows = read_figures(log)
    if not rows or not steps:
        return {"state": "begun", "text": "begun"}
    ago = duration(max(0.0, time.time() - log.stat().st_mtime))
    text = f"step {rows[-1]['step']:,} of {steps:,}, written {ago} ago"
    return {"state": "begun", "text": text, "share": rows[-1]["step"] / steps}


def lines(values: Iterator[Values]) -> Iterator[str]:
    """Values as lines of JSON; an error in the middle is a last line {"error": ...}."""
    try:
        for value in values:
            yield json.dumps(value) + "\n"
    except (ValueError, FloatingPointError, OSError) as error:
        yield json.dumps({"error": str(error)}) + "\n"
