"""The command line: finds the command, tells errors and exit codes. What commands do is in `dmvae.commands`.

Overrides are `--section.field value`: they are laid on the recipe and its variants as the last layer and read by the
same strict reader, so the same names, types and errors hold in all three.
"""

from __future__ import annotations

import atexit
import errno
import gc
import importlib
import io
import os
import signal
import sys
import threading
import warnings

import dmvae
from dmvae.commands.parser import UNENDED, USAGE, CheckFailed
from dmvae.registry import place_of
from dmvae.runtime.console import console, forget_lost, printable, require_printed
from dmvae.runtime.heap import keep_freed_memory
from dmvae.spelling import nearest

COMMANDS = {
    "run": ("run", "run", "run every unfinished stage of RECIPE, then write table and report"),
    "study": ("run", "run", "the same, for a recipe with many variants"),
    "STAGE": ("run", "run", "one stage of RECIPE, by its section: tokenizer, matching, ..."),
    "plan": ("run", "plan", "what RECIPE needs on --gpus N of --memory 80GB; what is in the way"),
    "report": ("run", "report", "write the table and the report of RUN_DIR again"),
    "serve": ("serve", "serve", "show RUN_DIR as an interactive page in a browser"),
    "recipes": ("recipes", "recipes", "list the recipes that come with dmvae"),
    "init": ("recipes", "init", "copy one of them, to edit it"),
    "encode": ("encode", "encode", "encode a folder of images with a tokenizer"),
    "decode": ("encode", "decode", "decode such latents into images"),
    "measure": ("measure", "measure_command", "measure folders of images, samples and tokenizers; check scores"),
    "import": ("convert", "import_", "turn the paper's released weights into our artifacts"),
    "export": ("convert", "export", "and back; samples as ADM's .npz; latents for LightningDiT's trainer"),
}
"""Name -> (module of `dmvae.commands`, function, what it does). Any other word is a stage's name."""


FIXES = {
    errno.ENOSPC: "; free some space, and the same command goes on; or move the folder to another disk, and name it",
    errno.EDQUOT: "; free some of your quota, and the same command goes on; or move the folder to another disk, and "
    "name it",
    errno.ENOLCK: "; this file system has no locks, so two processes could write one stage: name a folder on another",
    errno.EROFS: "; give --run_dir or --out a place that can be written, or copy the folder there",
}


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the `dmvae` command. Exit code 2: a mistake in what was asked; 1: the run failed; 3: trainings
    diverged, and all others have ended; 130: stopped."""
    atexit.register(_end_quickly)
    keep_freed_memory()
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A script's `&` makes a command ignore Ctrl-C. Trainings have handlers of their own; the rest shall stop too.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    arguments = [a for a in arguments if a != "--debug"]
    warnings.formatwarning = lambda message, *_: f"warning: {printable(str(message))}\n"
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a log in ascii gets a ? for an arrow
            stream.reconfigure(errors="replace")
    forget_lost()
    try:
        _dispatch(arguments)
        require_printed()  # raises for a full disk or a closed pipe here, not when Python exits
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt as stop:
        saved = "; the state was saved, the same command goes on" if type(stop).__name__ == "Interrupted" else ""
        _fail(f"stopped{saved}", 130, debug)
    except ValueError as error:
        _fail(f"{error}{place_of(error)}", 2, debug)
    except OSError as error:
        fix = FIXES.get(error.errno or 0, "")
        told = f"{error.strerror or error}: {error.filename or ''}".rstrip(": ")
        _fail(f"{told}{place_of(error)}{fix}", 1, debug)
    except (FloatingPointError, CheckFailed) as error:
        _fail(str(error), UNENDED if type(error).__name__ == "Unended" else 1, debug)


def _end_quickly() -> None:
    """At exit, Python's garbage collector would go through half a million objects of torch and diffusers: 1.5 s. With
    Triton (torch for GPUs) it has to: Triton would report the objects that remain as leaked, in 26 lines."""
    if "triton" not in sys.modules:
        gc.freeze()


def _dispatch(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        console.print(_usage())
        return
    if arguments[0] in ("-V", "--version"):
        console.print(f"dmvae {dmvae.__version__}")
        return
    command, *rest = arguments
    if command.startswith("-"):
        raise ValueError(f"no such option: {command}{nearest(command, ('--help', '--version'))}")
    if set(rest) in ({"-h"}, {"--help"}) and command in ("run", "study"):
        console.print(USAGE)  # without the seconds that torch takes to import
        return
    module, function, _ = COMMANDS.get(command, COMMANDS["STAGE"])
    body = getattr(importlib.import_module(f"dmvae.commands.{module}"), function)
    if module == "run" and function == "run":
        body(command, rest, [name for name in COMMANDS if name != "STAGE"])
    else:
        body(command, rest)


def _fail(message: str, code: int, debug: bool) -> None:
    if debug:
        raise
    print(f"dmvae: {printable(' '.join(message.split()))}", file=sys.stderr)
    sys.exit(code)


def _usage() -> str:
    lines = [f"  {name:<10} {text}" for name, (_, _, text) in COMMANDS.items()]
    return (
        "usage: dmvae COMMAND RECIPE [--run_dir DIR] [--variant NAME] [--dry-run]"
        "\n                            [--section.field value ...]"
        "\n       dmvae --version"
        "\n\n"
        + "\n".join(lines)
        + "\n\nRECIPE is a file, or a name that `dmvae recipes` lists."
        + "\n`dmvae run RECIPE --help` lists every field of the recipe and what it means."
    )
