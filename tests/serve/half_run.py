"""A tiny run that is half finished, and the page of it."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import uvicorn

import tiny
from dmvae import pipeline
from dmvae.commands.serve import configured, read
from dmvae.jobs import jobs_of
from dmvae.recipe import load
from dmvae.serve.folder import Folder, Networks
from dmvae.serve.server import Site, listen


def build(folder: Path) -> Path:
    """The variant `kl` is finished; `matched` has its reference, and has begun its matching."""
    recipes = load(tiny.write(folder, run__precision="float32"))
    run_dir = Path(recipes["kl"].run.dir)
    pipeline.run({"kl": recipes["kl"]}, run_dir, variants=recipes)
    for stage in ("encoder", "tokenizer", "reference"):
        pipeline.run({"matched": recipes["matched"]}, run_dir, stage, variants=recipes)
    matching = next(job for job in jobs_of(run_dir) if job.stage.name == "matching")
    matching.folder.mkdir()
    (matching.folder / "log.jsonl").write_text('{"step": 4, "student/loss": 1.5}\n')
    return run_dir


def opened(run_dir: Path, *, data: bool = True, trust: bool = False) -> Folder:
    return read(run_dir, Networks(torch.device("cpu")), data=data, trust=trust)


@contextmanager
def served(run_dir: Path) -> Iterator[int]:
    """The port at which the page answers."""
    site = Site(lambda: opened(run_dir))
    with listen("127.0.0.1", 0) as door:
        server = uvicorn.Server(configured(site, local=True))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [door]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield door.getsockname()[1]
        server.should_exit = True
        thread.join()
