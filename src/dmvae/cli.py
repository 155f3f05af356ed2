"""The command line: one subcommand per stage, in stage order, plus run, study, report, and the tools beside a run.

Overrides are `--section.field value`: they are laid on the recipe file as one more layer and read by the
same strict reader as the file and its variants, so the same names, types and errors hold in all three.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from dmvae.registry import nearest
from dmvae.runtime.console import console, printable

STAGE_NAMES = ("encoder", "tokenizer", "reference", "matching", "decoder", "latents", "generator", "sample", "evaluate")


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the `dmvae` command. Exit code 2: a mistake in what was asked; 1: the run failed; 130: stopped."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"]
    warnings.formatwarning = lambda message, *_: f"warning: {printable(str(message))}\n"
    try:
        _dispatch(arguments)
    except KeyboardInterrupt as stop:
        saved = "; the state was saved, the same command goes on" if type(stop).__name__ == "Interrupted" else ""
        _fail(f"stopped{saved}", 130, debug)
    except ValueError as error:
        # a DataLoader's worker puts its whole traceback before the message
        _fail(str(error).rpartition("\nValueError: ")[2], 2, debug)
    except FloatingPointError as error:
        _fail(f"{error}; the last checkpoint is kept: lower the stage's learning_rate or raise its warmup", 1, debug)
    except OSError as error:
        _fail(f"{error.strerror or error}: {error.filename or ''}".rstrip(": "), 1, debug)


def _dispatch(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return
    command, *rest = arguments
    if command not in COMMANDS:
        raise ValueError(f"no such command: {command}{nearest(command, COMMANDS)}")
    COMMANDS[command][0](command, rest)


def _run(command: str, arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog=f"dmvae {command}", add_help=False, allow_abbrev=False)
    parser.add_argument("recipe", nargs="?")
    parser.add_argument("--run_dir", "--run-dir")
    parser.add_argument("--dry-run", "--dry_run", action="store_true")
    parser.add_argument("--variant", action="append", default=[])
    parser.add_argument("-h", "--help", action="store_true")
    known, rest = parser.parse_known_args(arguments)
    # an option before the recipe would take it for its value
    if known.recipe is None or (known.recipe != arguments[0] and not Path(known.recipe).is_file()):
        raise ValueError(f"usage: dmvae {command} RECIPE [--run_dir DIR] [--variant NAME] [--section.field value ...]")
    from dmvae.recipe import load
    from dmvae.runtime import distributed

    overrides = parse_overrides(rest)
    if known.run_dir:
        overrides["run.dir"] = known.run_dir
    try:
        recipes = whole = load(known.recipe, overrides)
    except RecursionError as error:
        raise ValueError(f"{known.recipe}: nested too deep to be a recipe") from error
    for name in known.variant:
        if name not in recipes:
            raise ValueError(f"--variant: no variant is called {name!r}{nearest(name, recipes)}")
    if known.variant:
        recipes = {name: recipes[name] for name in known.variant}
    if known.help:
        from dmvae.commands.help import print_fields

        return print_fields(next(iter(recipes.values())))
    if known.dry_run:
        from dmvae.commands.dryrun import print_plan

        return print_plan(recipes)
    from dmvae import pipeline

    distributed.start()
    try:
        run_dir = Path(next(iter(recipes.values())).run.dir)
        only = None if command in ("run", "study") else command
        jobs = pipeline.run(recipes, run_dir, only=only, variants=list(whole))
        if only is None and distributed.is_main():
            # The other variants of the recipe have their place in the table too, as far as they were run.
            _finish(pipeline.jobs_of(run_dir) if known.variant else jobs, run_dir)
    finally:
        distributed.stop()


def _finish(jobs: list[Any], run_dir: Path) -> None:
    from dmvae.report import write_report
    from dmvae.report.pipelines import write_pipelines
    from dmvae.report.summary import print_summary, write_summary
    from dmvae.runtime.files import locked

    with locked(run_dir):  # from other processes that have done the same run's other stages
        summary = write_summary(jobs, run_dir)
        path = write_report(run_dir, jobs)
        print_summary(summary)
        console.print(f"summary:  {run_dir / 'summary.json'}\nreport:   {path}")
        for folder in write_pipelines(jobs, run_dir):
            console.print(f"pipeline: {folder}")


def _report(command: str, arguments: list[str]) -> None:
    trust = "--trust" in arguments
    folders = [a for a in arguments if a != "--trust"]
    if len(folders) != 1 or folders[0].startswith("-"):
        raise ValueError("usage: dmvae report RUN_DIR [--trust]")
    from dmvae.commands.trust import require_no_code
    from dmvae.pipeline import jobs_of

    run_dir = Path(folders[0])
    if not trust:
        require_no_code(sorted(run_dir.glob("*/recipe.yaml")))
    _finish(jobs_of(run_dir), run_dir)


class Parser(argparse.ArgumentParser):
    """argparse whose complaints are a ValueError, like every other mistake in what was asked."""

    def error(self, message: str) -> Any:
        raise ValueError(f"{message}; `{self.prog} --help` tells the arguments")


def _import(command: str, arguments: list[str]) -> None:
    parser = Parser(prog=f"dmvae {command}", description="The authors' released weights -> our artifacts.")
    parser.add_argument("kind", choices=["official-vae", "official-generator"])
    parser.add_argument("file", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--encoder-heads", type=int, help="heads of the ViT; 64 channels per head unless given")
    parser.add_argument("--weights", help="which of the file's networks: ema or model; for a tokenizer ema or wo_ddp")
    parser.add_argument(
        "--latent-mean", type=float, default=0.0685, help="mean of the latents (published: %(default)s)"
    )
    parser.add_argument("--latent-scale", type=float, default=0.1763, help="1 / standard deviation (%(default)s)")
    known = parser.parse_args(arguments)
    _require_own(known.out)
    from dmvae.interop import official
    from dmvae.models.artifact import save_network

    model: Any
    if known.kind == "official-vae":
        statistics = {"latent_mean": known.latent_mean, "latent_scale": known.latent_scale}
        model = official.import_vae(known.file, heads=known.encoder_heads, weights=known.weights, **statistics)
    else:
        model = official.import_generator(known.file, weights=known.weights or "ema")
    save_network(model, known.out)
    count = sum(p.numel() for p in model.parameters()) / 1e6
    console.print(f"{type(model).__name__}, {count:.2f} M parameters: {known.out}")


def _require_own(out: Path) -> None:
    """ValueError for an `out` that holds, or is, anything but an artifact of before: it would be lost."""
    there = list(out.iterdir()) if out.is_dir() else [out] * out.exists()
    other = [path.name for path in there if path.name != "config.json" and ".safetensors" not in path.name]
    if other:
        raise ValueError(f"--out {out} would replace {other[0]!r}; name a new folder")


def _export(command: str, arguments: list[str]) -> None:
    parser = Parser(prog=f"dmvae {command}", description="Our tokenizer -> a file that the authors' code loads.")
    parser.add_argument("kind", choices=["official-vae"])
    parser.add_argument("folder", type=Path, help="folder of the tokenizer")
    parser.add_argument("--out", type=Path, required=True, help="file to write, .pt or .safetensors")
    known = parser.parse_args(arguments)
    from dmvae.interop import official

    official.export_vae(known.folder, known.out)
    console.print(str(known.out))


def _encode(command: str, arguments: list[str]) -> None:
    parser = Parser(prog=f"dmvae {command}", description="A folder of images -> shards of latents.")
    parser.add_argument("images", type=Path, help="folder of images, or of class folders")
    parser.add_argument("--size", type=int, help="height and width after resize and crop; the tokenizer's unless given")
    parser.add_argument("--shard-size", type=int, default=8192, help="images a file (%(default)s)")
    parser.add_argument("--workers", type=int, default=4, help="processes that read images (%(default)s)")
    parser.add_argument("--dtype", choices=["float32", "float16"], default="float32", help="on disk (%(default)s)")
    parser.add_argument("--format", dest="form", choices=["safetensors", "webdataset"], default="safetensors")
    _codec(parser, arguments, "encode_images")


def _decode(command: str, arguments: list[str]) -> None:
    parser = Parser(prog=f"dmvae {command}", description="Latents -> PNG files.")
    parser.add_argument("latents", type=Path, help="folder that encode wrote, or a .safetensors, .npy or .tar file")
    parser.add_argument("--normalized", action="store_true", help="latents are as flow models make them")
    _codec(parser, arguments, "decode_latents")


def _codec(parser: argparse.ArgumentParser, arguments: list[str], function: str) -> None:
    parser.add_argument("--tokenizer", required=True, help="folder or hub id of the tokenizer")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; what is there is kept")
    parser.add_argument("--batch-size", type=int, default=64, help="images at a time (%(default)s)")
    parser.add_argument("--precision", choices=["auto", "float32", "bfloat16"], default="auto")
    known = vars(parser.parse_args(arguments))
    from dmvae.commands import encode
    from dmvae.runtime import distributed
    from dmvae.tokenizers.adapted import load_tokenizer

    getattr(encode, function)(load_tokenizer(known.pop("tokenizer")), **known, device=distributed.start())


def _measure(command: str, arguments: list[str]) -> None:
    parser = Parser(
        prog=f"dmvae {command}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Measure images; every figure is named after its features and written with what it rests on.\n\n"
        "  folder A B                     images of A against those of B\n"
        "  samples PIPELINE REFERENCE     images that a pipeline draws, against a folder; none is kept\n"
        "  tokenizer TOKENIZER IMAGES     reconstructions of a folder's images, against them\n"
        "  --check FILE [--trust]         measure again what FILE holds, and tell whether it agrees; --trust runs the\n"
        "                                 code that a run's recipe names\n"
        "  --compare FILE FILE ...        files of scores side by side, if they compare\n\n"
        "Where a folder of reference images stands, a file of statistics may: ours, ADM's or JiT's .npz, or\n"
        "torch-fidelity's .pt. Where measured images stand, an .npz of samples (arr_0) may.",
    )
    parser.add_argument("kind", nargs="?", choices=["folder", "samples", "tokenizer"])
    parser.add_argument("paths", nargs="*", metavar="PATH")
    parser.add_argument("--features", nargs="+", action="extend", metavar="NAME", help=(
        "NAME[@RESOLUTION][=WEIGHTS]: effnet-lite0, inception, dinov2 or a timm model (effnet-lite0)"))  # fmt: skip
    parser.add_argument("--batch-size", type=int, default=64, help="images at a time (%(default)s)")
    parser.add_argument(
        "--size", type=int, help="crop and resize to this; images are square and of one size unless given"
    )
    parser.add_argument("--limit", type=int, help="images of a folder at most")
    parser.add_argument("--workers", type=int, default=4, help="processes that read images (%(default)s)")
    parser.add_argument("--train", metavar="FOLDER", help="training images, for the check of memorisation")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the scores and their manifest")
    parser.add_argument("--save-reference", metavar="FILE", help="keep the reference's features and statistics")
    parser.add_argument("--force", action="store_true", help="compare what was made differently, with a warning")
    parser.add_argument("--check", type=Path, metavar="FILE", help=argparse.SUPPRESS)
    parser.add_argument("--trust", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--compare", type=Path, nargs="+", metavar="FILE", help=argparse.SUPPRESS)
    only = parser.add_argument_group("tokenizer")
    only.add_argument("--lpips", action="store_const", const=True, help="LPIPS of VGG-16 too")
    only = parser.add_argument_group("samples")
    only.add_argument("--count", type=int, help="images, the same number of every class (10000)")
    only.add_argument("--steps", type=int, help="Euler steps (50)")
    only.add_argument("--guidance", type=float, help="guidance scale (1)")
    only.add_argument(
        "--guidance-interval", type=float, nargs=2, metavar=("LOW", "HIGH"), help="times in which it acts (0 1)"
    )
    only.add_argument("--time-shift", type=float, help="shift of the times towards noise (1)")
    only.add_argument("--seed", type=int, help="image i's seed is seed * 1,000,000 + i (0)")
    parser.add_argument("--precision", choices=["auto", "float32", "bfloat16"], help="of tokenizer and pipeline (auto)")
    known = {name: value for name, value in vars(parser.parse_args(arguments)).items() if value is not None}
    from dmvae.commands import check
    from dmvae.commands import measurements as commands
    from dmvae.runtime import distributed

    if "compare" in known:
        return console.print(check.side_by_side(known["compare"], force=known["force"]))
    if "check" in known:
        return _check(known["check"], known["trust"])
    if known.pop("trust"):
        raise ValueError("--trust goes with --check, where a run's recipe names code")
    kind, paths, file = known.pop("kind", None), known.pop("paths"), known.pop("json", None)
    if kind is None or len(paths) != 2:
        raise ValueError("usage: dmvae measure folder|samples|tokenizer PATH PATH [--features NAME ...] [--json FILE]")
    try:
        result = commands.measure(kind, paths, **known)
        if distributed.is_main():
            check.print_scores(result)
            if file is not None:
                commands.write_scores(result, file)
    finally:
        distributed.stop()


def _check(file: Path, trust: bool) -> None:
    from dmvae.commands.check import check

    apart, changed = check(file, trust=trust)
    for line in changed:
        console.print(f"changed: {line}")
    if apart:
        values = {
            name: (f"{was:.8g}", "missing" if now is None else f"{now:.8g}") for name, (was, now) in apart.items()
        }
        told = "; ".join(f"{name} was {was}, is {now}" for name, (was, now) in values.items())
        _fail(f"{file} does not agree: {told}", 1, debug=False)
    console.print(f"{file} agrees")


def parse_overrides(words: list[str]) -> dict[str, Any]:
    """["--a.b", "1", "--c=x"] -> {"a.b": 1, "c": "x"}; values are read as YAML."""
    overrides: dict[str, Any] = {}
    i = 0
    while i < len(words):
        word = words[i]
        if not word.startswith("--"):
            raise ValueError(f"unexpected argument {word!r}; overrides are written --section.field value")
        name, equals, value = word[2:].partition("=")
        if not equals:
            if i + 1 < len(words) and not words[i + 1].startswith("--"):
                i += 1
                value = words[i]
            else:
                value = "true"
        try:
            overrides[name] = yaml.safe_load(value)
        except (yaml.YAMLError, RecursionError) as error:
            raise ValueError(f"--{name}: {value[:200]!r} is not a YAML value") from error
        i += 1
    return overrides


def _fail(message: str, code: int, debug: bool) -> None:
    if debug:
        raise
    print(f"dmvae: {printable(' '.join(message.split()))}", file=sys.stderr)
    sys.exit(code)


COMMANDS: dict[str, tuple[Callable[[str, list[str]], None], str]] = {
    **{name: (_run, f"run the stage {name} of RECIPE") for name in STAGE_NAMES},
    "run": (_run, "run every stage of RECIPE that is not finished, then write the table and the report"),
    "study": (_run, "the same, for a recipe with many variants"),
    "report": (_report, "write the table and the report of RUN_DIR again"),
    "encode": (_encode, "encode a folder of images with a tokenizer"),
    "decode": (_decode, "decode such latents into images"),
    "measure": (_measure, "measure folders of images, samples and tokenizers; check and compare scores"),
    "import": (_import, "turn the paper's released weights into our artifacts"),
    "export": (_export, "and back"),
}


def _usage() -> str:
    lines = [f"  {name:<10} {text}" for name, (_, text) in COMMANDS.items()]
    return (
        "usage: dmvae COMMAND RECIPE [--run_dir DIR] [--variant NAME] [--dry-run] [--debug] [--section.field value ...]"
        "\n\n"
        + "\n".join(lines)
        + "\n\n`dmvae run RECIPE --help` lists every field of the recipe with its value and meaning."
    )
