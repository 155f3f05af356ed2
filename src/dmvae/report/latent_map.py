"""A map of latents in two dimensions: the reference and each method, in a common plane."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from html import escape

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import hsv_to_rgb, to_hex
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from dmvae.evaluation.latents import WIDE, normalised
from dmvae.latents.store import STATISTICS
from dmvae.models.whitening import mapped
from dmvae.recipe import method_of
from dmvae.references.report import REPORT
from dmvae.report.html import legend, panel, panels
from dmvae.report.pictures import data_uri
from dmvae.report.run import COLOURS, Run
from dmvae.report.summary import alike
from dmvae.runtime.words import few
from dmvae.transport.arrival import NEAR, mixing

POINTS, TOTAL = 1000, 3000
"""Most points of a panel, and of an embedding: t-SNE then takes about five seconds."""
TOGETHER = 6
"""Most panels that share a plane; with more, each reference and its methods have a plane of their own."""


@dataclass(eq=False)
class Cloud:
    """Normalised latents [n, d] of one panel, and their classes [n]; `reference` is the cloud to compare with.

    variant: the method whose latents they are; for a reference, the first method that has it. places: the indices of
    the latents that are drawn. plane: their positions [m, 2].
    """

    title: str
    variant: str
    latents: np.ndarray
    labels: np.ndarray
    reference: Cloud | None = None
    plane: np.ndarray | None = None
    is_reference: bool = False

    def __post_init__(self) -> None:
        self.places = np.arange(len(self.latents))


def latent_map(run: Run) -> str:
    clouds = clouds_of(run)
    if not clouds:
        return ""
    groups = planes(clouds)
    how = list(dict.fromkeys(embed(group) for group in groups))
    labels = sorted({int(label) for cloud in clouds for label in cloud.labels})
    palette = class_colours(labels)
    drawn = [panels((_panel(cloud, group, palette) for cloud in group), "maps") for group in groups]
    names = legend((run.class_name(label), palette[label]) for label in labels[:24])
    more = f'<p class="note">and {len(labels) - 24} more classes</p>' if len(labels) > 24 else ""
    return "\n".join(
        [_text(clouds), *_began(run), names, more, *drawn, f'<p class="note">{_how(how, len(groups))}</p>']
    )


def clouds_of(run: Run) -> list[Cloud]:
    """The clouds of the references, each once, then of the methods, each for its first seed only, and together where
    they have the same latents, as those that differ in their generators: their panels would show other images of one
    cloud, and look like two."""
    folders, encoded = run.folders("reference"), run.folders("latents")
    statistics = run.tensors("latents", f"latents/{STATISTICS}")
    pictures = {v: t for v, t in run.tensors("evaluate", "pictures.safetensors").items() if "map_latents" in t}
    maps = {v: t for v, t in run.tensors("reference", "map.safetensors").items() if {"latents", "labels"} <= t.keys()}
    first: dict[str, str] = {}
    for variant in (v for of in (pictures, maps) for v in run.variants if v in of):
        first.setdefault(method_of(variant, run.recipes[variant]), variant)
    maps = {v: t for v, t in maps.items() if v in first.values()}
    references: dict[str, Cloud] = {}
    for variant, tensors in maps.items():
        key = str(folders[variant])
        if key not in references:
            several = len({folders[v] for v in maps}) > 1
            title = f"reference of {variant}" if several else "reference"
            z = tensors["latents"].float()
            latents, labels = normalised(z, z).flatten(1).numpy(), tensors["labels"].numpy()
            references[key] = Cloud(title, variant, latents, labels, is_reference=True)
    clouds = list(references.values())
    together: dict[object, tuple[Cloud | None, list[str]]] = {}
    for variant in pictures:
        if variant not in first.values():
            continue
        fellows = (r for r in references.values() if run.recipes[r.variant].data == run.recipes[variant].data)
        own = references.get(str(folders.get(variant)), next(fellows, None))
        together.setdefault((encoded.get(variant, variant), id(own)), (own, []))[1].append(variant)
    for own, names in together.values():
        tensors = pictures[names[0]]
        z, labels = tensors["map_latents"].float(), tensors["map_labels"].numpy()
        if names[0] in statistics:
            z = _as_encoded(z, **statistics[names[0]])
        clouds.append(Cloud(few(names, 3), names[0], z.numpy(), labels, own))
    return [cloud for cloud in clouds if len(cloud.latents) > 2]


def _as_encoded(z: Tensor, mean: Tensor, std: Tensor, whitening: Tensor | None = None) -> Tensor:
    """Latents [n, C H W] as a generator learns them, by these statistics of the stage `latents` -> as the reference's
    samples are: not whitened, and normalised by their own statistics, whatever was given."""
    z = z.unflatten(1, (len(mean), -1, 1))
    if whitening is not None:
        z = mapped(torch.linalg.inv(whitening), z)
    return normalised(z, z).flatten(1)


def planes(clouds: list[Cloud]) -> list[list[Cloud]]:
    """The clouds in groups that share a plane, thinned to what an embedding takes; each method keeps other images.

    For latents that are samples of posteriors, the image's content seeds the noise, so all methods have the same noise
    for an image: t-SNE would put such twins side by side and away from the reference. The images of each method are
    chosen at random, since classes may alternate.
    """
    groups: dict[tuple[int, int], list[Cloud]] = {}
    for cloud in clouds:  # latents of different sizes have no common plane
        of = id(cloud.reference or cloud) if len(clouds) > TOGETHER else 0
        groups.setdefault((cloud.latents.shape[1], of), []).append(cloud)
    for group in groups.values():
        count = min(POINTS, TOTAL // len(group))
        methods = [cloud for cloud in group if not cloud.is_reference]
        drawn = np.random.default_rng(0).permutation(max((len(cloud.latents) for cloud in methods), default=0))
        for cloud in group:
            own = np.arange(len(cloud.latents))
            if cloud in methods and len(own) > 2 * len(methods):
                own = own[drawn[: len(own)] % len(methods) == methods.index(cloud)]
            cloud.places = own[np.unique(np.linspace(0, len(own) - 1, min(count, len(own))).round().astype(int))]
    return list(groups.values())


def embed(clouds: list[Cloud]) -> str:
    """Set `plane` of all clouds by one common embedding; returns its name, "t-SNE" or "PCA"."""
    drawn = [cloud.latents[cloud.places] for cloud in clouds]
    points = np.concatenate(drawn)
    plane, how = project(points if points.shape[1] > WIDE else points.astype(np.float64))
    ends = np.cumsum([len(points) for points in drawn])
    for cloud, part in zip(clouds, np.split(plane, ends[:-1]), strict=True):
        cloud.plane = part
    return how


def project(points: np.ndarray) -> tuple[np.ndarray, str]:
    """Points [n, d] -> (float [n, 2], "t-SNE" or "PCA"): t-SNE of the first 50 principal components if scikit-learn is
    installed."""
    centred = points - points.mean(axis=0)
    axes = _axes(centred)
    axes = axes * np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(axis=1)])[:, None]
    components = centred @ axes.T
    try:
        from sklearn.manifold import TSNE
        from threadpoolctl import threadpool_limits
    except ImportError:
        TSNE = None
    # t-SNE divides by the spread along the first component, and crashes without one
    if TSNE is None or len(points) < 50 or components.shape[1] < 3 or not components[:, 0].std() > 0:
        flat = np.zeros((len(points), 2))
        flat[:, : min(2, components.shape[1])] = components[:, :2]
        return flat, "PCA"
    steps = "max_iter" if "max_iter" in inspect.signature(TSNE).parameters else "n_iter"
    perplexity = min(30.0, len(points) / 5)
    tsne = TSNE(init="pca", random_state=0, perplexity=perplexity, angle=0.7, **{steps: 500})
    with threadpool_limits(1):  # its threads spin while they wait: on busy cores, several are slower than one
        return tsne.fit_transform(components.astype(np.float32)), "t-SNE"


def _axes(centred: np.ndarray) -> np.ndarray:
    """The first 50 principal axes [50, d] of centred points [n, d], or as many as there are."""
    n, d = centred.shape
    if d <= n:
        return np.linalg.svd(centred, full_matrices=False)[2][:50]
    # all n axes of wide points would take as much memory as they do, several times
    values, vectors = np.linalg.eigh((centred @ centred.T).astype(np.float64))
    kept = [i for i in range(n - 1, max(-1, n - 51), -1) if values[i] > 1e-10 * values[-1]]
    return (vectors[:, kept].T / np.sqrt(values[kept])[:, None]).astype(centred.dtype) @ centred


def class_colours(labels: list[int]) -> dict[int, str]:
    """Label -> a colour of medium lightness."""
    if len(labels) <= len(COLOURS):
        return dict(zip(labels, COLOURS, strict=False))
    hues = np.linspace(0, 1, len(labels), endpoint=False)
    return {label: to_hex(tuple(hsv_to_rgb((hue, 0.65, 0.82)))) for label, hue in zip(labels, hues, strict=True)}


def draw(cloud: Cloud, group: list[Cloud], palette: dict[int, str]) -> Image.Image:
    """A picture of `plot`, and of nothing else."""
    figure = Figure(figsize=(3.4, 3.4), dpi=200)
    figure.patch.set_alpha(0)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    plot(axes, cloud, group, palette)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba()))


def plot(axes: Axes, cloud: Cloud, group: list[Cloud], palette: dict[int, str]) -> None:
    """The cloud's points in their classes' colours, over its reference's in grey, in the group's plane."""
    assert cloud.plane is not None
    if cloud.reference is not None and cloud.reference in group:
        assert cloud.reference.plane is not None
        x, y = cloud.reference.plane.T
        axes.scatter(x, y, s=16, c="#8a8f98", alpha=0.18, linewidths=0)
    x, y = cloud.plane.T
    axes.scatter(x, y, s=7, c=[palette[int(label)] for label in cloud.labels[cloud.places]], alpha=0.85, linewidths=0)
    every = np.concatenate([other.plane for other in group if other.plane is not None])
    low, high = every.min(axis=0), every.max(axis=0)
    pad = 0.03 * (high - low) + 1e-6
    axes.set_xlim(low[0] - pad[0], high[0] + pad[0])
    axes.set_ylim(low[1] - pad[1], high[1] + pad[1])


def _panel(cloud: Cloud, group: list[Cloud], palette: dict[int, str]) -> str:
    image = draw(cloud, group, palette)
    body = (
        f'<img src="{data_uri(image)}" alt="{escape(cloud.title)}: latents in two dimensions" width="340" height="340">'
    )
    return panel(cloud.title, body, _note(cloud, group))


def _note(cloud: Cloud, group: list[Cloud]) -> str:
    if cloud.reference is None or cloud.reference not in group:
        return ""
    n = min(len(cloud.latents), len(cloud.reference.latents), POINTS)
    pair = (torch.from_numpy(x.latents[:n]).double() for x in (cloud, cloud.reference))
    return f"mixing with the reference, scale aside: {100 * mixing(*pair):.0f} %"


def _text(clouds: list[Cloud]) -> str:
    text = "<p>A point is the latent of one image, its colour the image's class. "
    if sum(not cloud.is_reference for cloud in clouds) > 1:
        text += "Methods show different images, where there are enough. "
    if any(cloud.reference for cloud in clouds):
        text += (
            "The <b>reference</b> is the distribution that matching aims at; it is drawn again in grey behind every "
            "method. Where coloured points cover the grey ones, that method's latents lie where the reference's do. "
            "Under each picture: how far the two are mixed, in all latent dimensions, not in the picture. It is "
            "50 % where the nearest neighbour of every other latent is a sample of the reference, and of every other "
            "sample a latent, and 0 % where the two lie apart or one lies inside the other. "
        )
    return text + "Latents are normalised per channel, so the map shows their shape and not their scale.</p>"


def _began(run: Run) -> list[str]:
    """How far each method's latents were from their reference before matching: if they began there, the map shows what
    matching kept, not what it did."""
    told = {}
    for variant, found in run.values("reference", REPORT).items():
        apart = found["distance"] / max(found["floor"], 1e-12)
        told[f"<b>{escape(variant)}</b>"] = (
            f"{apart:{'.2f' if apart < 10 else ',.0f'}} times as far from their reference as two sets of its "
            "samples are from each other"
            + (", so they began at it: the map shows what matching kept, not what it moved" * (apart <= NEAR))
        )
    return [f"<p>Before matching, the latents of {few(names)} were {what}.</p>" for what, names in alike(told).items()]


PLANES = {
    "t-SNE": "t-SNE keeps neighbours together; distances between far-apart groups and the sizes of groups mean little.",
    "PCA": "PCA is the flat view along the two directions of largest spread; groups that overlap here may lie apart.",
}


def _how(how: list[str], groups: int) -> str:
    text = f"The plane is {' or '.join(how)}, computed once for all panels together, so places compare between them. "
    if groups > 1:
        text = f"The plane is {' or '.join(how)}; each row of panels has its own, so places compare within a row only. "
    return text + " ".join(PLANES[name] for name in how)
