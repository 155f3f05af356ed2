"""`dmvae measure`: its arguments, and what it prints."""

from __future__ import annotations

import argparse
from pathlib import Path

from diffusers.utils import logging

from dmvae.commands.check import check, print_scores, side_by_side
from dmvae.commands.measurements import fits, measure
from dmvae.commands.parser import CheckFailed, Parser, add_plugins, add_resampling
from dmvae.commands.score_files import write_scores
from dmvae.config import Values
from dmvae.registry import load_plugins
from dmvae.runtime import distributed
from dmvae.runtime.console import console
from dmvae.runtime.files import require_place


def measure_command(command: str, arguments: list[str]) -> None:
    parser = _parser(command)
    known: Values = {k: v for k, v in vars(parser.parse_intermixed_args(arguments)).items() if v is not None}
    load_plugins(known.pop("plugins"))
    given = [name for name, value in known.items() if value not in ([], parser.get_default(name))]
    for mode, beside in {"compare": ("force",), "check": ("trust",)}.items():
        if mode in known and (idle := [name for name in given if name not in (mode, *beside)]):
            raise ValueError(f"--{mode}: {', '.join(idle)} would change nothing; leave it out")
    if "compare" in known:
        return console.print(side_by_side(known["compare"], force=known["force"]))
    if "check" in known:
        if distributed.launched() > 1:
            raise ValueError("--check keeps its results from earlier ones, each process by itself: leave torchrun out")
        return _check(known["check"], known["trust"])
    if known.pop("trust"):
        raise ValueError("--trust goes with --check, where a run's recipe names code")
    kind, paths, file = known.pop("kind", None), known.pop("paths"), known.pop("json", None)
    for option, written in {
        "json": file,
        "save-reference": known.get("save_reference"),
        "picture": known.get("picture"),
    }.items():
        if written is not None:
            require_place(f"--{option}", Path(written))
    if kind == "latents":  # defaults of options for images would be refused
        known = {name: value for name, value in known.items() if name in given}
    if kind is None or not fits(kind, paths):
        raise ValueError(
            "usage: dmvae measure folder|samples|tokenizer PATH PATH [--features NAME ...] [--json FILE], or dmvae "
            "measure latents PATH [PATH] [--json FILE] [--picture FILE]"
        )
    if kind == "samples":
        logging.disable_progress_bar()  # loading a pipeline's parts takes a second
    try:
        result = measure(kind, paths, **known)
        if distributed.is_main():
            print_scores(result)
            if file is not None:
                write_scores(result, file)
    finally:
        distributed.stop()


def _parser(command: str) -> Parser:
    parser = Parser(
        prog=f"dmvae {command}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Measure images. Every figure is named after its features, and written with how it was made.\n\n"
        "  folder A B                     images of A against those of B\n"
        "  samples PIPELINE REFERENCE     images that a pipeline draws, against a folder; they are not kept\n"
        "  tokenizer TOKENIZER IMAGES     reconstructions of a folder's images, against them\n"
        "  latents A [B]                  the shape of latents in files, against a Gaussian or those of B; --limit is\n"
        "                                 10000\n"
        "  --check FILE [--trust]         measure again what FILE holds, and say whether it agrees; --trust runs the\n"
        "                                 code that a run's recipe names\n"
        "  --compare FILE FILE ...        files of scores side by side, if they compare\n\n"
        "In place of a folder of reference images you can give a file of statistics: ours, ADM's or JiT's .npz, or\n"
        "torch-fidelity's .pt. In place of measured images, an .npz of samples (arr_0) or a run's samples\n"
        "(RUN/VARIANT/sample/guidance-1).",
    )
    parser.add_argument("kind", nargs="?", choices=["folder", "samples", "tokenizer", "latents"])
    parser.add_argument("paths", nargs="*", metavar="PATH")
    parser.add_argument("--features", nargs="+", action="extend", metavar="NAME", help=(
        "NAME[@RESOLUTION][=WEIGHTS]: effnet-lite0, inception, dinov2, a timm model, or "
        "tokenizer=FOLDER (effnet-lite0)"))  # fmt: skip
    parser.add_argument("--batch-size", type=int, default=64, help="images at a time (%(default)s)")
    parser.add_argument(
        "--size", type=int, help="crop and resize images to this; without it, all must be square and of one size"
    )
    add_resampling(parser)
    parser.add_argument("--limit", type=int, help="use at most this many images of a folder; of --train always all")
    parser.add_argument("--workers", type=int, default=4, help="processes that read images (%(default)s)")
    parser.add_argument("--train", metavar="FOLDER", help="training images, for the check of memorisation")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the scores and their manifest")
    parser.add_argument(
        "--save-reference", metavar="FILE", help="keep the reference's features and statistics (.safetensors)"
    )
    parser.add_argument(
        "--force", action="store_true", help="compare what was made differently; a warning names the differences"
    )
    parser.add_argument("--check", type=Path, metavar="FILE", help=argparse.SUPPRESS)
    parser.add_argument("--trust", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--compare", type=Path, nargs="+", metavar="FILE", help=argparse.SUPPRESS)
    only = parser.add_argument_group("tokenizer")
    only.add_argument("--lpips", action="store_const", const=True, help="also LPIPS (VGG-16)")
    _add_of_latents(parser)
    only = parser.add_argument_group("samples")
    only.add_argument("--count", type=int, help="images (10000)")
    only.add_argument(
        "--method", metavar="NAME", help="the sampler: euler, midpoint, heun, dopri5, sde, or a plugin's (euler)"
    )
    only.add_argument("--steps", type=int, help="its steps, of dopri5 at most (50)")
    only.add_argument("--last-step", type=float, help="size of the sde's last step, without noise; 0 is none (0.04)")
    only.add_argument("--last-step-kind", choices=["mean", "euler"], help="what that step follows (mean)")
    only.add_argument("--diffusion", metavar="FORM", help="noise of the sde over time, by SiT's names (sigma)")
    only.add_argument("--atol", type=float, help="error that a step of dopri5 may make (1e-6)")
    only.add_argument("--rtol", type=float, help="the same as a share of the value (0.001)")
    only.add_argument("--guidance", type=float, help="guidance scale (1)")
    only.add_argument(
        "--guidance-interval", type=float, nargs=2, metavar=("LOW", "HIGH"), help="times, noise 0 to data 1 (0 1)"
    )
    only.add_argument(
        "--guidance-channels", type=int, metavar="K", help="it acts in the first K channels of the latents alone (all)"
    )
    only.add_argument("--labels", choices=["equal", "random"], help="as many of every class, or random ones (equal)")
    only.add_argument("--time-shift", type=float, help="shift of the times towards noise (1)")
    only.add_argument("--seed", type=int, help="image i's seed is seed * 1,000,000 + i (0)")
    parser.add_argument("--precision", choices=["auto", "float32", "bfloat16"], help="of tokenizer and pipeline (auto)")
    add_plugins(parser)
    return parser


def _add_of_latents(parser: Parser) -> None:
    only = parser.add_argument_group("latents")
    only.add_argument("--picture", metavar="FILE", help="draw them, and what they are compared with (.png, .svg, .pdf)")
    only.add_argument(
        "--uniformity", action="store_const", const=True, help="also how even their map by t-SNE is, as VA-VAE has it"
    )


def _check(file: Path, trust: bool) -> None:
    apart, changed = check(file, trust=trust)
    for line in changed:
        console.print(f"changed: {line}")
    if apart:
        values = {
            name: (f"{was:.8g}", "missing" if now is None else f"{now:.8g}") for name, (was, now) in apart.items()
        }
        told = "; ".join(f"{name} was {was}, is {now}" for name, (was, now) in values.items())
        raise CheckFailed(f"{file} does not agree: {told}")
    console.print(f"{file} agrees")
