"""Files of somebody who means harm, and data workers that fail."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import save_file

from benchmarks.tortures import LIMIT, Row, attempt
from benchmarks.tortures.processes import run
from dmvae import cli
from dmvae.commands import shards
from dmvae.commands.check import check
from dmvae.datasets.image_scan import scan
from dmvae.encoders.timm import TimmEncoder
from dmvae.evaluation.images import npz_images
from dmvae.evaluation.reference_statistics import read_statistics
from dmvae.runtime.weights import read_tensors
from dmvae.tidying import tidy
from dmvae.tokenizers.adapted import load_tokenizer
from dmvae.training import checkpoint


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.place),))


def hostile(folder: Path) -> Iterator[Row]:
    """Files that would run code, write elsewhere, hang or fill memory."""
    ran, out = folder / "RAN", folder / "in"
    precious = folder / "precious"
    precious.write_text("mine")
    home = Path.cwd()
    attacks = [*_running(out, ran), *_misleading(out, precious)]
    row = Row("hostile files", len(attacks))
    for name, told, act in attacks:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        try:
            said, _ = attempt(row, act, name)
        finally:
            os.chdir(home)
        if told not in said:
            row.count("silent uses", f"{name}: not said: {said[-200:]}")
        if ran.exists():
            row.count("silent uses", f"{name}: its code ran")
            ran.rmdir()
        if sorted(p.name for p in folder.iterdir()) != ["in", "precious"] or precious.read_text() != "mine":
            row.count("losses", f"{name}: written outside the folder")
    yield row


Attack = tuple[str, str, Callable[[], Any]]
"""Its name, what is said of it, and what is asked of the program."""


def _running(out: Path, ran: Path) -> Iterator[Attack]:
    """Those whose code would make the folder `ran`."""

    def saved(name: str, value: Any) -> Path:
        torch.save(value, out / name)
        return out / name

    def forged() -> None:
        checkpoint.save(out, 1, {"w": torch.ones(2), "step": Evil(ran)})
        checkpoint.load(out, {"w": torch.zeros(2), "step": 0})

    def recipe() -> None:
        _put(out / "evil.py", f"import os; os.mkdir({str(ran)!r})")
        _put(out / "main/recipe.yaml", yaml.safe_dump({"plugins": [str(out / "evil.py")], "name": "x"}))

    evaluate = {"kind": "evaluate", "run_dir": str(out), "variant": "main"}
    yield "weights that run code", "asks for posix.mkdir", lambda: read_tensors(saved("x.pt", {"w": Evil(ran)}))
    yield (
        "an old pickle as weights",
        "asks for posix.mkdir",
        lambda: read_tensors(_put(out / "x.pt", pickle.dumps(Evil(ran), protocol=2))),
    )
    yield "statistics that run code", "asks for posix.mkdir", lambda: read_statistics(saved("x.pt", {"mu": Evil(ran)}))
    yield "a checkpoint that runs code", "asks for posix.mkdir", forged
    yield (
        "a timm encoder's own loader",
        "checkpoint_path",
        lambda: TimmEncoder(
            model="resnet10t", pretrained=False, kwargs={"checkpoint_path": str(saved("x.pth", Evil(ran)))}
        ).build(size=32, channels=3),
    )
    yield (
        "object arrays",
        "Object arrays cannot",
        lambda: (np.savez(out / "x.npz", arr_0=np.array([Evil(ran)])), npz_images(out / "x.npz")),
    )
    yield (
        "a check of a run with plugins",
        "code that would be run",
        lambda: (recipe(), check(_put(out / "x.json", {"metrics": {}, "manifest": {"call": evaluate}}))),
    )
    yield "a report of a run with plugins", "code that would be run", lambda: (recipe(), cli.main(["report", str(out)]))


def _misleading(out: Path, precious: Path) -> Iterator[Attack]:
    """Those that would write elsewhere, to `precious` say, hang, fill memory or end in a traceback."""

    def scored(**call: Any) -> None:
        os.chdir(out)
        call = {"kind": "folder", "paths": ["a", "b"], **call}
        check(_put(out / "x.json", {"metrics": {}, "manifest": {"call": call}}))

    def lying(shape: tuple[int, ...]) -> Path:
        head = io.BytesIO()
        np.lib.format.write_array_header_1_0(head, {"descr": "|u1", "fortran_order": False, "shape": shape})
        with zipfile.ZipFile(out / "x.npz", "w") as file:
            file.writestr("arr_0.npy", head.getvalue() + b"few")
        return out / "x.npz"

    def escape(name: str) -> None:
        save_file({"latents": torch.zeros(1, 4, 4, 4)}, out / "x.safetensors", {"names": json.dumps([name])})
        shards.read_names(out / "x.safetensors")

    def listing() -> None:
        done = {"seconds": 1, "files": {"../../../precious": [0, 0]}}
        folder = _put(out / "stages/tokenizer-1/done.json", done).parent
        tidy([folder], verify=True)

    def fifo() -> None:
        os.mkfifo(out / "x.png")
        (out / "y.png").symlink_to("/dev/zero")
        scan(out)

    deep = "a: " + "[" * 5000 + "]" * 5000
    yield "an array of a lying shape", "no .npz of samples", lambda: npz_images(lying((10**7, 10**7, 3, 3)))
    yield "an array of a huge count", "no .npz of samples", lambda: npz_images(lying((10**30,)))
    yield "a check that writes", "takes no 'save_reference'", lambda: scored(options={"save_reference": str(precious)})
    yield "a check with options of other types", "is no value for it", lambda: scored(options={"batch_size": {"a": 1}})
    yield "names that lead out of a folder", "no file below", lambda: escape("../precious.png")
    yield "an absolute name", "no file below", lambda: escape("/precious.png")
    yield "a list of a stage's files that leads out of it", "no file of its folder", listing
    yield "a recipe nested too deep", "nested too deep", lambda: cli.main(["run", str(_put(out / "r.yaml", deep))])
    yield (
        "a tokenizer nested too deep",
        "no config of a tokenizer",
        lambda: load_tokenizer(_put(out / "t/config.json", "[" * 100_000).parent),
    )
    yield "scores nested too deep", "not a file of scores", lambda: check(_put(out / "x.json", "[" * 100_000))
    yield "a FIFO and a device among images", "no images", fifo


def _put(path: Path, content: bytes | str | dict[str, Any]) -> Path:
    """The path, after the content is written there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content) if isinstance(content, dict) else content
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


WORKER = """
import os, signal, sys, time, torch
from dmvae.datasets import loading

class Data:
    def __len__(self): return 40
    def __getitem__(self, i):
        if i == 13:
            exec(sys.argv[1])
        return torch.zeros(1, 4, 4, dtype=torch.uint8), i

loading.PATIENCE = 3.0
try:
    for batch in loading.passes(Data(), 4, 2, torch.device("cpu")):
        exec(sys.argv[2])
except (ValueError, OSError) as error:
    sys.exit(f"one line: {error}")
"""


def workers(_: Path, rounds: int) -> Iterator[Row]:
    """Data workers that raise, die or hang, and a process that ends while they do; 0 rounds are some of these."""
    harms = {
        "raise": "raise KeyError('pixels')",
        "exit": "sys.exit(3)",
        "end at once": "os._exit(0)",
        "killed": "os.kill(os.getpid(), signal.SIGKILL)",
        "crash": "os.kill(os.getpid(), signal.SIGSEGV)",
        "hang": "time.sleep(10**6)",
    }
    cases = [(name, harm, "pass", "item 13") for name, harm in harms.items()]
    cases += [  # of the two, whichever comes first
        (f"{name}, and an error elsewhere", harm, "raise ValueError('elsewhere')", "item 13|elsewhere")
        for name, harm in harms.items()
    ]
    cases = cases * rounds or [*cases[: len(harms)], cases[-1]]
    row = Row("workers that raise, die, hang", len(cases))
    for name, harm, meanwhile, told in cases:
        said = run([sys.executable, "-c", WORKER, harm, meanwhile], row, name, LIMIT)
        if "Traceback" in said or "one line" not in said:
            row.count("tracebacks", f"{name}: {said[-150:]}")
        elif not re.search(told, said):
            row.count("silent uses", f"{name}: the item is not named: {said[-150:]}")
    yield row
