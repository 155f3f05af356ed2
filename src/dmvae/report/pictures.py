"""Image grids: samples by class, originals beside reconstructions. PNG data URIs, enlarged by the browser."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from dmvae.report.html import details
from dmvae.report.run import Run, class_name

LARGEST = 96
"""Longer sides of images are reduced to this, pixels, so that the page has a few megabytes only."""
CLASS_ROWS = 12
ONE_CLASS_ROWS = 4
"""Rows of samples if there is only one class."""
STRIP = 8


def data_uri(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def strip(images: Sequence[Tensor], slots: int, label: str, colour: str = "transparent") -> str:
    """uint8 images [c, h, w] in one row of `slots`, as an <img>; slots without an image stay transparent."""
    tiles = [_tile(image) for image in images[:slots]]
    if not tiles:
        return ""
    width, height = tiles[0].size
    gap = max(1, width // 24)
    row = Image.new("RGBA", (slots * width + (slots - 1) * gap, height))
    for i, tile in enumerate(tiles):
        row.paste(tile, (i * (width + gap), 0))
    mark = f' style="--mark:{colour}"'
    small = ' class="pixels"' if width <= 64 else ""
    return f'<img{small} src="{data_uri(row)}" width="{row.width}" height="{height}" alt="{escape(label)}"{mark}>'


def _tile(image: Tensor) -> Image.Image:
    picture = to_pil_image(image).convert("RGB")
    if max(picture.size) > LARGEST:
        picture.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    return picture


def samples(run: Run) -> str:
    """A grid with a row for each class and a strip of samples for each method; the first guidance scale is open, others
    are folded. Methods with other classes have a grid of their own."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for variant in run.folders("sample"):
        alike.setdefault(run.classes_of[variant], []).append(variant)
    return "\n".join(filter(None, (_samples(run, classes, variants) for classes, variants in alike.items())))


def _samples(run: Run, classes: Sequence[str], variants: list[str]) -> str:
    rows = {scale: _rows(run, scale, variants) for scale in run.scales()}
    grids = {scale: grid for scale in rows if (grid := _sample_grid(run, scale, classes, variants, rows[scale]))}
    if not grids:
        return ""
    (scale, first), *others = grids.items()
    count = max(1, len(classes))
    shown = len(rows[scale])
    some = f" {shown} of {count} classes are shown, evenly spaced among those sampled." if shown < count else ""
    what, of = "Each row is one class, each block of columns one method.", " of each class"
    if len(classes) == 1:
        what, of = "Each block of columns is one method.", ""
    head = (
        f"<p>{what}{some} The samples are the first{of}, "
        f"not picked by hand. Guidance scale w = {scale:g}{', no guidance' if scale == 1 else ''}.</p>"
    )
    return "\n".join([head, first, *(details(f"Guidance scale w = {s:g}", grid) for s, grid in others)])


def _rows(run: Run, scale: float, variants: Sequence[str]) -> list[int]:
    """At most CLASS_ROWS of the sampled classes, evenly spaced."""
    there = sorted(set().union(*(run.sampled(variant, scale) for variant in variants)))
    return [there[i] for i in np.linspace(0, len(there) - 1, min(len(there), CLASS_ROWS)).round().astype(int)]


def _sample_grid(run: Run, scale: float, classes: Sequence[str], variants: list[str], rows: list[int]) -> str:
    slots = {1: 16, 2: 8, 3: 6}.get(len(variants), 5)
    lines = ONE_CLASS_ROWS if len(rows) == 1 else 1
    found = {variant: run.samples(variant, scale, rows, lines * slots) for variant in variants}
    found = {variant: by_label for variant, by_label in found.items() if any(by_label.values())}
    rows = [label for label in rows if any(by_label[label] for by_label in found.values())]
    if not rows:
        return ""
    cells = ['<span class="corner"></span>', *(_name(run, variant) for variant in found)]
    longest = max(len(images) for by_label in found.values() for images in by_label.values())
    for label, start in ((label, start) for label in rows for start in range(0, longest, slots)):
        name = class_name(classes, label)
        cells.append(f'<span class="class">{escape(name if start == 0 else "")}</span>')
        for variant, by_label in found.items():
            images = by_label[label][start : start + slots]
            cells.append(strip(images, slots, f"{variant}: samples of {name}", run.colour(variant)) or "<span></span>")
    grid = "\n".join(cells)
    return f'<div class="scroll"><div class="grid" style="--methods:{len(found)}">\n{grid}\n</div></div>'


def _name(run: Run, *variants: str) -> str:
    names = ", ".join(f'<i style="background:{run.colour(variant)}"></i>{escape(variant)}' for variant in variants)
    return f'<span class="method">{names}</span>'


def reconstructions(run: Run) -> str:
    """Blocks of test images, each with every method's reconstruction of it underneath; methods of the same latents, as
    those that differ in their generators, have one decoder and one row."""
    encoded = run.folders("latents")
    pictures = {v: t for v, t in run.tensors("evaluate", "pictures.safetensors").items() if "reconstructions" in t}
    if not pictures:
        return ""
    sources: list[tuple[Tensor, dict[object, list[str]]]] = []
    for variant, tensors in pictures.items():  # methods that saw the same images stand under one row of them
        same = next((of for images, of in sources if torch.equal(images, tensors["originals"])), None)
        if same is None:
            sources.append((tensors["originals"], same := {}))
        same.setdefault(encoded.get(variant, variant), []).append(variant)
    blocks = []
    for originals, by_decoder in sources:
        for start in range(0, len(originals), STRIP):
            part = slice(start, start + STRIP)
            lines = ['<span class="method plain">original</span>', strip(list(originals[part]), STRIP, "test images")]
            for names in by_decoder.values():
                images = list(pictures[names[0]]["reconstructions"][part])
                lines += [_name(run, *names), strip(images, STRIP, f"{', '.join(names)}: reconstructions")]
            blocks.append('<div class="pairs">' + "\n".join(lines) + "</div>")
    text = (
        "<p>The top row of each block has test images, on which no stage was trained. Below them is each method's own "
        "copy: the image encoded to latents and decoded again. Generated images come out of the same decoder.</p>"
    )
    return text + '<div class="blocks">' + "\n".join(blocks) + "</div>"
