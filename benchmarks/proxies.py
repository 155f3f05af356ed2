"""How well each proxy ranks finished tokenizers as their generators do: Spearman's correlation with gFD.

    python -m benchmarks.proxies RUN [RUN ...] [--count N] [--no-probe]

Every variant of the runs that has latents and an evaluation with a gFD counts as one tokenizer. Its proxies are taken
here, of the first COUNT test images and all training latents, and kept beside RUN/VARIANT/latents, so that a second
call only prints. Few tokenizers say little: the table gives the share of random rankings that correlate
as strongly (p, two-sided), and the range of correlations over resampled tokenizers. Whatever tells tokenizers with a
matching stage from those without ranks well; "within" is the correlation of ranks among those of one kind. It is empty
where a proxy is the same for all. "online" is what the matching stage logs, here of batches of --batch latents; "log"
what it logged.
"""

from __future__ import annotations

import argparse
import json
import math
import warnings
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.tables import header, line
from dmvae.datasets import open_dataset
from dmvae.datasets.loading import passes
from dmvae.datasets.mixed import mixed
from dmvae.evaluation.features import Extractor
from dmvae.evaluation.frechet import Statistics
from dmvae.evaluation.interpolation import Decode
from dmvae.evaluation.online import online_proxies
from dmvae.evaluation.probe import VERSION, generator_probe
from dmvae.evaluation.proxies import codec, decoder_proxies, latent_proxies, linear_probe
from dmvae.latents.store import LatentSet
from dmvae.recipe import Recipe, load
from dmvae.runtime.hashing import digest
from dmvae.tokenizers.adapted import load_tokenizer
from dmvae.training.logging import read_figures

FROM_EVALUATE = ("rfd", "psnr", "generator_loss", "knn", "effective_rank", "kurtosis")
"""Figures of the evaluation that rank tokenizers too, for comparison; the loss is that of the full generator."""
BATCHES = 40
TRIALS = 20000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--count", type=int, default=2500, help="test images (default: %(default)s)")
    parser.add_argument(
        "--batch", type=int, default=32, help="latents a batch of the online proxies (default: %(default)s)"
    )
    parser.add_argument("--no-probe", action="store_true", help="leave out the generator probe, the slowest proxy")
    args = parser.parse_args()
    rows: dict[str, dict[str, float]] = {}
    matched: dict[str, bool] = {}
    folders = variants(args.runs)
    if len(folders) < 3:
        parser.error(f"{len(folders)} finished tokenizers cannot be ranked: give runs with 3 or more in all")
    if len(kinds := {_measured_by(folder) for folder in folders}) > 1:
        parser.error(f"their gFDs do not compare: {' and '.join(sorted(kinds))}; give runs of one kind at a time")
    for folder in folders:
        name = f"{folder.parent.name}/{folder.name}"
        rows[name] = proxies(folder, args.count, args.batch, not args.no_probe)
        matched[name] = (folder / "matching").exists()
        print(name, *(f"{key} {value:.4g}" for key, value in rows[name].items()), flush=True)
    print(table(rows, matched))


def variants(runs: list[Path]) -> list[Path]:
    """RUN/VARIANT of every variant whose evaluation has a gFD. Two that share their evaluation count once."""
    found: dict[Path, Path] = {}
    for run in runs:
        for path in sorted(run.glob("*/evaluate/metrics.json")):
            if path.parts[-3] != "stages" and "gfd" in json.loads(path.read_text()):
                found.setdefault(path.resolve(), path.parent.parent)
    return list(found.values())


def _measured_by(folder: Path) -> str:
    """In which features a variant was measured, and on which images."""
    metrics = json.loads((folder / "evaluate/metrics.json").read_text())
    images = metrics.get("manifest", {}).get("reference", {}).get("fingerprint", "unknown")
    return f"{metrics['features']} on images {images[:8]}"


def proxies(folder: Path, count: int, batch: int, probe: bool) -> dict[str, float]:
    """gFD and every proxy of one tokenizer; what is not yet in its file is taken now."""
    # Beside the latents, whose folder is named by all that they rest on: another tokenizer's are not taken for these.
    path = folder / "latents" / f"proxies-{count}-{batch}-{VERSION}-{digest(_measured_by(folder))}.json"
    kept: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}
    if "ifd" not in kept or (probe and "probe_loss" not in kept):
        kept |= measure(folder, count, batch, probe, alone="ifd" not in kept)
        path.write_text(json.dumps(kept, indent=1))
    metrics = json.loads((folder / "evaluate/metrics.json").read_text())
    known = metrics | metrics["latents"]
    known = {name: known[name] for name in ("gfd", *FROM_EVALUATE) if name in known}
    return known | kept | log_proxies(folder)


def measure(folder: Path, count: int, batch: int, probe: bool, alone: bool) -> dict[str, float]:
    """The probe's figures and, with `alone`, those of all other proxies."""
    recipe: Recipe = next(iter(load(folder / "recipe.yaml").values()))
    assert recipe.evaluate is not None
    device = torch.device("cpu")
    tokenizer = load_tokenizer(folder / "latents/autoencoder").eval()
    encode, decode = codec(tokenizer, device, recipe.run.precision)
    extractor = recipe.evaluate.features.build()
    images, labels = test_images(recipe, count)
    real = real_statistics(extractor, images, f"{recipe.data}{recipe.evaluate.features}{count}")
    latents = LatentSet(folder / "latents/latents")
    train_z, train_labels = latents.__getitems__(range(len(latents)))
    figures: dict[str, float] = {}
    if alone:
        z = torch.cat([encode(part) for part in images.split(250)])
        figures["linear_probe"] = linear_probe(train_z, train_labels, z, labels)
        figures |= latent_proxies(train_z, train_labels)
        figures |= decoder_proxies(encode, decode, tokenizer.stride, images, z, train_z, real, extractor)
        figures |= of_batches(train_z, train_labels, batch, decode)
    if probe:
        figures |= generator_probe(train_z, train_labels, decode=decode, extractor=extractor, real=real)
    return figures


def test_images(recipe: Recipe, count: int) -> tuple[Tensor, Tensor]:
    """(uint8 images, labels) of the first test images, in the order that an evaluation takes them in."""
    rows, device = [], torch.device("cpu")
    for images, labels in passes(mixed(open_dataset(recipe.data, "test")), 250, recipe.run.workers, device):
        rows.append((images, labels))
        if sum(len(part) for part, _ in rows) >= count:
            break
    images, labels = (torch.cat(column)[:count] for column in zip(*rows, strict=True))
    return images, labels


_real: dict[str, Statistics] = {}


def real_statistics(extractor: Extractor, images: Tensor, key: str) -> Statistics:
    """Statistics of the test images' features, taken once for all tokenizers."""
    if key not in _real:
        _real[key] = Statistics.of(extractor(part).float() for part in images.split(250))
    return _real[key]


def of_batches(z: Tensor, labels: Tensor, batch: int, decode: Decode) -> dict[str, float]:
    """Means over batches of what the matching stage logs of one."""
    order = torch.randperm(len(z), generator=torch.Generator().manual_seed(0))[: BATCHES * batch]
    figures = [online_proxies(z[part], labels[part], decode) for part in order.split(batch)]
    return {
        name.replace("proxy/", "online "): sum(float(f[name]) for f in figures) / len(figures) for name in figures[0]
    }


def log_proxies(folder: Path) -> dict[str, float]:
    """The student's loss over the last fifth of the matching stage, where there was one: a generator that is trained
    on the latents anyway. A critic is none."""
    rows = [row for row in read_figures(folder / "matching/log.jsonl") if "critic/accuracy" not in row]
    losses = [row["student/loss"] for row in rows[-max(1, len(rows) // 5) :] if "student/loss" in row]
    return {"log student_loss": sum(losses) / len(losses)} if losses else {}


def table(rows: dict[str, dict[str, float]], matched: dict[str, bool]) -> str:
    """The correlations in Markdown, the strongest first."""
    heads = ["proxy", "tokenizers", "correlation", "p", "90 % of resamples", "within", "p", "values"]
    lines: list[tuple[float, list[str]]] = []
    for name in dict.fromkeys(name for row in rows.values() for name in row if name != "gfd"):
        having = [key for key in rows if name in rows[key]]
        if len(having) < 3:
            continue
        x, y = (torch.tensor([rows[key][column] for key in having], dtype=torch.float64) for column in (name, "gfd"))
        kind = torch.tensor([matched[key] for key in having])
        value, p, low, high = correlation(x, y, torch.zeros_like(kind))
        within, p_within, *_ = correlation(x, y, kind)
        cells = [str(len(having)), f"{value:+.2f}", f"{p:.3f}", f"{low:+.2f} to {high:+.2f}"]
        cells += [f"{within:+.2f}", f"{p_within:.3f}", f"{float(x.min()):.4g} to {float(x.max()):.4g}"]
        strength = 0.0 if math.isnan(value) else abs(value)
        lines.append((strength, [name, *("" if "nan" in cell else cell for cell in cells)]))
    return "\n".join([header(heads), *(line(cells) for _, cells in sorted(lines, key=lambda pair: -pair[0]))])


def correlation(x: Tensor, y: Tensor, kind: Tensor) -> tuple[float, float, float, float]:
    """Correlation of the ranks of x and y [n] within each kind [n] (Spearman's where all are of one), its two-sided
    permutation p, and the 5 % and 95 % quantiles of its bootstrap distribution; all NaN where x or y does not vary."""
    generator = torch.Generator().manual_seed(0)
    n, value = len(x), spearman(x, y, kind)
    if not value.isfinite():
        return math.nan, math.nan, math.nan, math.nan
    # Permutations within the kinds: sort by kind and chance, and give each place what chance alone put there.
    chance = torch.rand(TRIALS, n, generator=generator, dtype=torch.float64) + kind
    shuffled = torch.empty(TRIALS, n, dtype=torch.int64)
    shuffled[:, kind.long().argsort(stable=True)] = chance.argsort(1)
    as_strong = spearman(x.expand(TRIALS, n), y[shuffled], kind.expand(TRIALS, n)).abs() >= value.abs() - 1e-9
    drawn = torch.randint(n, (TRIALS // 10, n), generator=generator)
    again = spearman(x[drawn], y[drawn], kind[drawn])
    low, high = again[again.isfinite()].quantile(torch.tensor([0.05, 0.95], dtype=torch.float64)).tolist()
    return float(value), float((1 + as_strong.sum()) / (1 + TRIALS)), low, high


def spearman(x: Tensor, y: Tensor, kind: Tensor) -> Tensor:
    """Pearson's correlation, along the last dimension, of ranks within each kind less their mean; [...]."""
    a, b = ranks(x, kind), ranks(y, kind)
    return (a * b).sum(-1) / (a.square().sum(-1) * b.square().sum(-1)).sqrt()


def ranks(x: Tensor, kind: Tensor) -> Tensor:
    """Ranks among those of one kind, about their mean: half of how many are below less how many are above."""
    same = kind[..., None, :] == kind[..., :, None]
    apart = (x[..., :, None] - x[..., None, :]).sign()
    return (apart * same).sum(-1) / 2


if __name__ == "__main__":
    warnings.filterwarnings("ignore", message="a Frechet distance of")
    main()
