"""Worker processes that raise, die or hang: the item is named, and nothing is left running."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import active_children

import pytest
import torch

from dmvae.datasets import loading
from dmvae.datasets.loading import passes
from dmvae.datasets.mixed import Chosen
from dmvae.registry import load_module
from dmvae.runtime.console import Bar, console
from dmvae.runtime.files import locked

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")


class Bad:
    """Twelve images, of which number 5 does what `harm` does."""

    def __init__(self, harm, name=None):
        self.harm = harm
        if name:
            self.name = lambda index: name

    def __len__(self):
        return 12

    def __getitem__(self, index):
        if index == 5:
            return self.harm()
        return torch.zeros(1, 4, 4, dtype=torch.uint8), index


def read(harm, workers=2, **options):
    return [labels.tolist() for _, labels in passes(Bad(harm, **options), 2, workers, CPU)]


@pytest.fixture(autouse=True)
def nothing_is_left_running():
    yield
    assert active_children() == []


def broken():
    raise KeyError("pixels")


@pytest.mark.parametrize("workers", [0, 2])
def test_an_item_that_raises_is_named_with_the_cause_and_the_place(workers):
    with pytest.raises(
        ValueError,
        match=r"^item 5 of the data could not be read: KeyError: 'pixels' \(test_loading.py, line \d+\); fix",
    ) as caught:
        read(broken, workers)
    assert caught.value.__cause__ is not None


def refused():
    raise ValueError("unreadable image: delete it")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_value_error_keeps_its_words(workers):
    with pytest.raises(ValueError, match=r"^unreadable image: delete it \(in item 5 of the data \(cat.png\)\)$"):
        read(refused, workers, name="cat.png")


@pytest.mark.parametrize(("name", "told"), [("", "item 5"), ("cat.png", "cat.png")])
def test_a_chosen_item_is_told_by_its_file_or_its_place_in_the_whole(name, told):
    bad = Bad(refused, name)
    bad.labels = torch.zeros(len(bad), dtype=torch.int64)
    with pytest.raises(ValueError, match=rf"^unreadable image: delete it \(in item 1 of the data \({told}\)\)$"):
        list(passes(Chosen(bad, torch.tensor([4, 5, 7])), 2, 0, CPU))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_that_does_not_fit_together_is_named(workers):
    with pytest.raises(ValueError, match=r"^a batch of 2 items from item 4 of the data on could not be read: "):
        read(lambda: (torch.zeros(1, 5, 5, dtype=torch.uint8), 5), workers)


@pytest.mark.parametrize(
    ("harm", "how"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "was killed by SIGKILL"),
        (lambda: os.kill(os.getpid(), signal.SIGSEGV), "was killed by SIGSEGV"),
        (lambda: os._exit(3), "ended itself with exit code 3"),
        (lambda: sys.exit(4), "ended itself with exit code 4"),
        (lambda: os._exit(0), "ended itself with exit code 0"),
    ],
)
def test_a_worker_that_dies_is_told_with_its_item(harm, how):
    with pytest.raises(ChildProcessError, match=rf"a data worker {how}.*, with item 5 of the data being read"):
        read(harm)


def test_a_worker_that_hangs_is_told_with_its_item_and_ended(monkeypatch):
    monkeypatch.setattr(loading, "PATIENCE", 1.0)
    with pytest.raises(TimeoutError, match=r"no batch came for 1 s, with item 5 of the data being read"):
        read(lambda: time.sleep(1000))


def test_a_worker_may_print_while_a_bar_is_drawn(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(console, "_force_terminal", True)
    monkeypatch.setattr(loading, "PATIENCE", 5.0)

    def odd():
        print("an odd image", file=sys.stderr, flush=True)
        return torch.zeros(1, 4, 4, dtype=torch.uint8), 5

    with Bar("read", 12) as bar, ThreadPoolExecutor(1) as draws:
        assert bar.progress is not None
        draws.submit(console._lock.acquire).result()  # as the thread that draws the bar does, ten times a second
        try:
            assert read(odd)[-1] == [10, 11]
        finally:
            draws.submit(console._lock.release).result()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere workers start as Python has it")
def test_workers_are_children_of_this_process_whatever_python_s_default_is(monkeypatch):
    """From Python 3.14 on the default is `forkserver`: a worker would see that its parent is another, and end."""
    monkeypatch.setattr(
        multiprocessing.context._default_context, "_actual_context", multiprocessing.get_context("spawn")
    )
    assert multiprocessing.get_start_method() == "spawn"
    assert read(lambda: (torch.zeros(1, 4, 4, dtype=torch.uint8), 5))[-1] == [10, 11]


PLUGIN = """
import torch

class Own:
    def __len__(self): return 3
    def __getitem__(self, i): return torch.full((1, 2, 2), i, dtype=torch.uint8), i
"""


def test_a_worker_that_starts_with_no_module_finds_a_plugin_s(tmp_path, monkeypatch):
    """As on macOS, where workers are not forked."""
    monkeypatch.setattr(loading, "_START", "spawn")
    file = tmp_path / "own data.py"
    file.write_text(PLUGIN)
    batches = list(passes(load_module(str(file)).Own(), 2, 1, CPU))
    assert [(data.flatten(1)[:, 0].tolist(), labels.tolist()) for data, labels in batches] == [
        ([0, 1], [0, 1]),
        ([2], [2]),
    ]


def test_who_waits_for_a_batch_can_be_stopped():
    data = loading.loader(Bad(lambda: time.sleep(1000)), [[0, 1], [5]], 1, CPU, stops=lambda: True)
    with pytest.raises(KeyboardInterrupt):
        list(data)


def test_a_pass_that_is_left_ends_its_workers():
    batches = iter(passes(Bad(broken), 2, 2, CPU))
    next(batches)
    assert len(active_children()) == 2
    batches.close()
    assert active_children() == []


def test_a_worker_that_is_killed_with_a_lock_in_its_hands_keeps_nobody_waiting():
    """It holds the lock of the event by which torch ends workers for a moment before each batch."""
    batches = iter(passes(Bad(broken), 2, 2, CPU))
    next(batches)
    (iterator,) = loading._running
    assert iterator._workers_done_event._cond.acquire(timeout=5)
    ended = threading.Thread(target=batches.close, daemon=True)
    ended.start()
    ended.join(30)
    assert not ended.is_alive()
    assert active_children() == []


def test_ctrl_c_while_workers_start_is_not_lost(monkeypatch):
    """Python drops what is raised in its own hooks around a fork, and a worker that it reaches would end itself."""
    begin, lost = os.fork, []
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # behind `&`, shells have it ignored

    def fork():
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt as stop:
            lost.append(stop)
        return begin()

    monkeypatch.setattr(os, "fork", fork)
    with pytest.raises(KeyboardInterrupt):
        list(passes(Bad(int), 2, 2, CPU))
    signal.signal(signal.SIGINT, before)
    assert lost == []
    assert active_children() == []


SCRIPT = """
import multiprocessing, sys, time, torch
from pathlib import Path
from dmvae.datasets.loading import passes
from dmvae.datasets.mixed import Chosen
from dmvae.runtime.files import locked

class Data:
    def __len__(self): return 40
    def __getitem__(self, i):
        if i == 30: time.sleep(1000)
        return torch.zeros(1, 4, 4, dtype=torch.uint8), i

with locked(Path(sys.argv[1])):
    batches = iter(passes(Data(), 10, 2, torch.device("cpu")))
    next(batches)
    print(*(worker.pid for worker in multiprocessing.active_children()), flush=True)
    if sys.argv[2] == "raise": raise KeyError("in the middle")
    time.sleep(1000)
"""


def start(folder, what):
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder), what], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    workers = [int(pid) for pid in process.stdout.readline().split()]
    assert len(workers) >= 2
    return process, workers


def gone(pids):
    """Whether the processes end within five seconds."""
    for _ in range(50):
        if not any(os.path.exists(f"/proc/{pid}") for pid in pids):
            return True
        time.sleep(0.1)
    return False


def test_an_error_elsewhere_ends_the_process_and_a_worker_that_hangs(tmp_path):
    process, workers = start(tmp_path, "raise")
    _, error = process.communicate(timeout=20)
    assert "in the middle" in error
    assert gone(workers)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a worker that hangs outlives a killed process")
def test_a_kill_ends_the_workers_and_frees_the_lock(tmp_path):
    process, workers = start(tmp_path, "wait")
    process.kill()
    process.communicate()
    assert gone(workers)
    with locked(tmp_path, wait=False) as mine:
        assert mine


ALONE = """
import os, signal, sys, threading, time, torch
from dmvae.datasets import loading

loading._LAST = float(sys.argv[2])

class Data:
    def __len__(self): return 4
    def __getitem__(self, i):
        if i == 1:
            if sys.argv[1] == "is killed":  # whose connections would be broken a moment before
                threading.Timer(0.3, os.kill, (os.getppid(), signal.SIGKILL)).start()
            threading.Thread(target=lambda: {}["in a thread"]).start()
            sys.excepthook(KeyError, KeyError("as multiprocessing tells it"), None)
            open(sys.argv[3], "w")
        return torch.zeros(1, 4, 4, dtype=torch.uint8), i

list(loading.passes(Data(), 2, 1, torch.device("cpu")))
"""


@pytest.mark.parametrize("parent", ["lives", "is killed"])
def test_a_worker_tells_of_errors_in_its_threads_unless_its_parent_is_gone(parent, tmp_path):
    seconds = "0.3" if parent == "lives" else "60"
    told = subprocess.run(  # waits until nobody can write any more
        [sys.executable, "-c", ALONE, parent, seconds, str(tmp_path / "went on")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    ).stdout
    if parent == "lives":
        assert "in a thread" in told
        assert "as multiprocessing tells it" in told
    else:
        assert told == ""
    assert (tmp_path / "went on").exists() == (parent == "lives")


def test_a_pass_for_a_gpu_that_ends_early_ends_the_thread_that_pins_before_the_workers(monkeypatch):
    """Killed first, they would leave it half a message, and it a traceback on the terminal."""
    accelerator, told = torch.accelerator, []
    monkeypatch.setattr(accelerator, "is_available", lambda: True)
    monkeypatch.setattr(accelerator, "current_device_index", lambda: 0)
    monkeypatch.setattr(accelerator, "set_device_index", lambda index: None)
    monkeypatch.setattr(accelerator, "current_accelerator", lambda *_, **__: torch.device("cuda"))
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self, device=None: time.sleep(0.03) or self)
    monkeypatch.setattr(threading, "excepthook", told.append)
    cuts = [[0, 1, 2, 3]] * 60
    for _ in range(3):
        batches = iter(loading.loader(Bad(None), cuts, 2, torch.device("cuda")))
        for _ in range(4):
            next(batches)
        batches.close()
    assert told == []
    assert not active_children()
