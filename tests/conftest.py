"""One thread: the networks here are so small that more threads only slow them."""

import gc
import logging
import os
import sys
from collections import Counter

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"  # no test downloads, nor waits for an answer

import pytest
import torch

import processes
from dmvae import registry

torch.set_num_threads(1)
processes.trust_the_power()
logging.disable(logging.DEBUG)  # else torch's twenty lines about each checkpoint bury a failure


def pytest_collection_finish():
    """Python searches for garbage seldom, and not among what libraries brought: a twentieth of the tests' time."""
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)


def pytest_collection_modifyitems(items):
    """Files with many slow tests first: all workers would wait for one that begins last."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture
def plain_report(monkeypatch):
    """No charts in reports that this test makes and does not read, as `processes.PLAIN` for commands."""
    monkeypatch.setattr("dmvae.report.training.lines", lambda *_, **__: "")
    monkeypatch.setattr("dmvae.report.latent_map.latent_map", lambda _: "")


@pytest.fixture(autouse=True)
def no_mode_left():
    """A default device that a test left on broke tests of torch.compile, in whatever file came later."""
    yield
    assert torch._C._len_torch_function_stack() == 0, "a mode of torch is still on, such as a default device"


@pytest.fixture(autouse=True)
def own_registry():
    """Plugins of one test are not there in the next, of whatever file."""
    yield
    for module in [module for module in sys.modules if module.startswith(registry.PLUGIN)]:
        registry.forget(module)
        del sys.modules[module]
