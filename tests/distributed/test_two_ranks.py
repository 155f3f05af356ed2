"""Two ranks end where one does, up to the order of additions; with sharded flow networks too."""

import shutil
import subprocess
import sys
import time

import pytest
import torch

import tiny

DATA = ("latents", "guidance-1")
"""What is no network: a rounding error there may cross a grey level."""
IDLE = "discriminator/main.2.bias"
"""A bias before a batch norm, which takes it away again: its gradient is rounding, of which Adam makes full steps."""
# SGD-like steps: Adam turns a rounding error in a gradient near zero into a full step.
OVER = {
    "tokenizer__learning_rate": 1e-4,
    "matching__learning_rate": 1e-4,
    "matching__balance": "gradient",
    # A student that has not moved yet equals its teacher up to rounding, which the balance would blow up.
    "matching__student_warmup": 2,
    "losses__adversarial__norm": "batch",
    "run__precision": "float32",  # bf16 would round the different order of additions up to what it can see
}


TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29712")


def apart(one, two) -> dict[str, float]:
    kept = [name for name in one if name.split("/")[2] not in DATA and not name.endswith(IDLE)]
    return {name: (one[name] - two[name]).abs().max().item() for name in kept}


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    result = tiny.command("run", str(tiny.write(folder, **OVER)))
    assert result.returncode == 0, result.stderr
    return folder / "run"


@pytest.mark.parametrize("shard", [False, True])
def test_the_weights_agree(one, tmp_path, shard):
    recipe = tiny.write(tmp_path, **OVER, run__shard=shard)
    result = subprocess.run(
        [*TORCHRUN, "-m", "dmvae", "run", str(recipe)], capture_output=True, text=True, env=tiny.environment()
    )
    assert result.returncode == 0, result.stderr[-3000:]
    a, b = tiny.weights(one), tiny.weights(tmp_path / "run")
    assert set(a) == set(b)
    gaps = apart(a, b)
    assert max(gaps.values()) < 1e-3, max(gaps, key=gaps.get)
    assert sum(gaps.values()) / len(gaps) < 1e-4


def test_it_is_more_than_the_start(one):
    """The networks did move by more than the tolerance, or the agreement would say nothing."""
    final = tiny.weights(one)["matched/generator/generator/final_layer.linear.weight"]
    assert torch.equal(final, torch.zeros_like(final)) is False


def test_two_sharded_ranks_are_stopped_and_one_process_goes_on(one, tmp_path):
    """The signal reaches the ranks in different steps; they save in the same one."""
    whole, stopped = (tmp_path / name for name in ("whole", "stopped"))
    longer = ("--variant", "kl", "--generator.steps", "600", "--run.save_every", "10000")
    recipes = []
    for folder in (whole, stopped):
        shutil.copytree(one, folder / "run", symlinks=True)
        recipes.append(str(tiny.write(folder, **OVER, run__shard=True)))
    result = tiny.command("generator", recipes[0], *longer)
    assert result.returncode == 0, result.stderr
    command = [*TORCHRUN, "-m", "dmvae", "generator", recipes[1], *longer]
    with subprocess.Popen(
        command, env=tiny.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as ranks:
        until = time.monotonic() + 120
        copied = set(stopped.glob("run/stages/generator-*/log.jsonl"))
        while not any(log.read_text() for log in set(stopped.glob("run/stages/generator-*/log.jsonl")) - copied):
            assert ranks.poll() is None, "it ended before it could be stopped"
            assert time.monotonic() < until
            time.sleep(0.01)
        ranks.terminate()
    result = tiny.command("generator", recipes[1], *longer)
    assert "resumes at step" in result.stdout, result.stderr
    a, b = (
        tiny.weights(folder / "run")["kl/generator/generator/final_layer.linear.weight"] for folder in (whole, stopped)
    )
    assert (a - b).abs().max() < 1e-4 < a.abs().max() / 10
