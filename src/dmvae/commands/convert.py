"""`dmvae import` and `export`: released weights and our artifacts; samples for ADM's evaluation suite;
latents for LightningDiT's trainer."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from torch import nn

from dmvae.commands.lightningdit import export_latents
from dmvae.commands.parser import Parser, add_resampling, require
from dmvae.config import Values
from dmvae.evaluation.images import FolderImages, Images, SampleFiles, are_samples, write_npz
from dmvae.interop import official
from dmvae.models.artifact import save_network
from dmvae.runtime.console import console
from dmvae.runtime.done import require_intact
from dmvae.runtime.files import require_place
from dmvae.runtime.words import counted
from dmvae.runtime.yaml_text import as_yaml

ARTIFACT = re.compile(r"config\.json|diffusion_pytorch_model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")
"""Files of a folder that `save_pretrained` wrote."""
NETWORKS = {"official-vae": "tokenizer", "official-generator": "generator"}
"""Kind of a weights file -> what it is of."""
OPTIONS = {
    "official-vae": ("encoder_heads", "latent_mean", "latent_scale"),
    "official-generator": ("heads", "noise_at"),
}
"""Options of one kind alone."""


def import_(command: str, arguments: list[str]) -> None:
    parser = Parser(
        prog=f"dmvae {command}",
        description="Convert released weights to our artifacts: the paper's, and "
        "generators of LightningDiT, SiT, REPA, REPA-E and RAE.",
    )
    parser.add_argument("kind", choices=[*NETWORKS])
    parser.add_argument("file", type=Path, help="of weights: its path, or ORG/REPO/FILE on the Hugging Face hub")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--encoder-heads", type=int, help="attention heads of the ViT (channels / 64)")
    parser.add_argument("--weights", help="which of the file's networks: ema or model; for a tokenizer ema or wo_ddp")
    parser.add_argument("--latent-mean", type=float, help="mean of the latents (0.0685, as published)")
    parser.add_argument("--latent-scale", type=float, help="1 / their standard deviation (0.1763)")
    parser.add_argument("--heads", type=int, help="attention heads of a SiT whose width is none of the published ones")
    parser.add_argument("--noise-at", type=int, choices=[0, 1], help="time of a SiT at noise: 0 SiT's code, 1 REPA's")
    known = parser.read(arguments)
    _require_own(known.out, known.file)
    model: nn.Module
    for of, names in OPTIONS.items():
        for name in names:
            if of != known.kind and getattr(known, name) is not None:
                option = name.replace("_", "-")
                raise ValueError(f"--{option} is of a {NETWORKS[of]}; leave it out for a {NETWORKS[known.kind]}")
    given = {name.removeprefix("encoder_"): getattr(known, name) for name in OPTIONS[known.kind]}
    given = {name: value for name, value in given.items() if value is not None}
    if known.kind == "official-vae":
        model = official.import_vae(known.file, weights=known.weights, **given)
    else:
        model = official.import_generator(known.file, weights=known.weights or "ema", say=console.print, **given)
    save_network(model, known.out)
    count = sum(p.numel() for p in model.parameters()) / 1e6
    console.print(f"{type(model).__name__}, {count:.2f} M parameters: {known.out}")


def _require_own(out: Path, read: Path) -> None:
    """Raise ValueError if writing to `out` would replace the file that is `read`, or anything that is no artifact."""
    there = list(out.iterdir()) if out.is_dir() else [out] * out.exists()
    other = [path.name for path in there if not ARTIFACT.fullmatch(path.name) or path.resolve() == read.resolve()]
    if other:
        raise ValueError(f"--out {out} would replace {other[0]!r}; name a new folder")


def export(command: str, arguments: list[str]) -> None:
    parser = Parser(
        prog=f"dmvae {command}",
        description="official-vae, official-generator: our tokenizer or generator -> a file that the authors' code "
        "loads. adm-samples: samples -> the .npz that ADM's evaluation suite reads. lightningdit-latents: a run's "
        "latents -> the shards that the trainer of LightningDiT reads.",
    )
    parser.add_argument("kind", choices=["official-vae", "official-generator", "adm-samples", "lightningdit-latents"])
    parser.add_argument(
        "folder",
        type=Path,
        help="of the tokenizer; of the generator (RUN/VARIANT/generator/generator); of a run's samples "
        "(RUN/VARIANT/sample/guidance-1), or of images; of a run's latents (RUN/VARIANT/latents)",
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="file to write, .pt or .safetensors; .npz of samples; folder of latents"
    )
    parser.add_argument(
        "--unmirrored", action="store_true", help="for images that must not be mirrored: write plain latents twice"
    )
    size = "of images in a folder: crop and resize them to this size"
    parser.add_argument("--size", type=int, default=argparse.SUPPRESS, help=size)
    add_resampling(parser)
    known = parser.read(arguments)
    prepared = {name: value for name, value in vars(known).items() if name in ("size", "resampling")}
    if prepared and known.kind != "adm-samples":
        raise ValueError(f"--{next(iter(prepared))} is of adm-samples; leave it out")
    if known.unmirrored and known.kind != "lightningdit-latents":
        raise ValueError("--unmirrored is of lightningdit-latents; leave it out")
    if known.kind in ("official-vae", "official-generator"):
        write = official.export_vae if known.kind == "official-vae" else official.export_generator
        write(known.folder, known.out, say=console.print)
        console.print(str(known.out))
    elif known.kind == "adm-samples":
        _export_samples(known.folder, known.out, prepared)
    else:
        _export_latents(known.folder, known.out, known.unmirrored)


def _export_samples(folder: Path, out: Path, prepared: Values) -> None:
    if out.suffix != ".npz":
        raise ValueError(f"--out {out}: samples are written as .npz, name it so")
    require_place("--out", out)
    require(1, size=prepared.get("size"))
    of_a_run = are_samples(folder)
    if of_a_run and prepared:
        name, value = next(iter(prepared.items()))
        raise ValueError(f"--{name} {value}: the samples of a run have one size; leave it out")
    images: Images = SampleFiles(require_intact(folder)) if of_a_run else FolderImages(folder, **prepared)
    write_npz(images, out)
    console.print(f"{counted(len(images), 'image')}: {out}")


def _export_latents(folder: Path, out: Path, unmirrored: bool) -> None:
    require_place("--out", out, folder=True)
    if out.is_dir() and (there := sorted(out.iterdir())):  # hours of their own extraction, perhaps
        raise ValueError(f"--out {out} holds {there[0].name!r}, and nothing is replaced; name a new folder")
    config = export_latents(folder, out, unmirrored=unmirrored)
    more = "num_classes is larger where the last classes have no images"
    console.print(f"{out}: put this into the config of LightningDiT's trainer ({more}):")
    console.print(as_yaml(config).rstrip())
