"""Two ranks end where one does, up to the order of additions."""

import subprocess
import sys

import pytest
import torch

import tiny

DATA = ("latents", "guidance-1")
"""What is no network: a rounding error there may cross a grey level."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    # SGD-like steps: Adam turns a rounding error in a gradient near zero into a full step.
    over = {"tokenizer__learning_rate": 1e-4, "matching__learning_rate": 1e-4, "matching__balance": "gradient"}
    over["losses__adversarial__norm"] = "batch"
    over["run__precision"] = "float32"  # bf16 would round the different order of additions up to what it can see
    result = tiny.command("run", str(tiny.write(one, **over)))
    assert result.returncode == 0, result.stderr
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29712"]
    result = subprocess.run(
        [*torchrun, "-m", "dmvae", "run", str(tiny.write(two, **over))],
        capture_output=True,
        text=True,
        env=tiny.environment(),
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return tiny.weights(one / "run"), tiny.weights(two / "run")


def test_the_weights_agree(runs):
    one, two = runs
    assert set(one) == set(two)
    apart = {name: (one[name] - two[name]).abs().max().item() for name in one if name.split("/")[2] not in DATA}
    assert max(apart.values()) < 1e-3, max(apart, key=apart.get)
    mean = sum(apart.values()) / len(apart)
    assert mean < 1e-4


def test_it_is_more_than_the_start(runs):
    """The networks did move by more than the tolerance, or the agreement would say nothing."""
    one, _ = runs
    final = one["matched/generator/generator/final_layer.linear.weight"]
    assert torch.equal(final, torch.zeros_like(final)) is False
