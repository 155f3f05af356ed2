"""Two ranks end where one does, up to the order of additions; with sharded flow networks too."""

import json
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import processes
import tiny
from dmvae.evaluation import classification, manifolds, neighbours, rows
from dmvae.references.gaussian import Gaussian
from dmvae.runtime import distributed
from dmvae.runtime.joined import joined
from dmvae.runtime.random import Random
from dmvae.stages import approach, measuring
from dmvae.training.logging import read_figures

pytestmark = pytest.mark.slow

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
    "latents__shard_size": 20,  # so that each rank has a part
    "sample__batch_size": 5,
    "run__precision": "float32",  # bf16 would round the different order of additions up to what it can see
}


TRAINING = ("encoder", "tokenizer", "reference", "matching", "decoder", "generator")
STILL = {f"{stage}__learning_rate": 0.0 for stage in TRAINING}
LIMITS = {"discriminator": 0.1, "autoencoder": 0.3, "vae": 0.3, "initial": 0.05}
"""How far apart networks may end, as a share of the way that they went. Those whose gradients come through the
adversary meet Adam's full steps; all others, the flow networks among them, stay below 0.005."""
DISTANCES = (manifolds, neighbours, classification)
"""What computes distances, by rows."""
FLOWS = ("reference", "matching", "decoder", "latents", "generator", "sample")
"""Stages with flow networks, which are sharded, and those that read what they made."""


def distances(one, two) -> dict[str, float]:
    """VARIANT/STAGE/NETWORK -> Euclidean distance of its weights."""
    squares: dict[str, float] = {}
    for name in one:
        network = "/".join(name.split("/")[:3])
        if name.split("/")[2] not in DATA and not name.endswith(IDLE):
            square = (one[name].double() - two[name].double()).square().sum().item()
            squares[network] = squares.get(network, 0.0) + square
    return {network: square**0.5 for network, square in squares.items()}


def run(folder, ranks, **over):
    """What `dmvae run` does on so many ranks, without the report at its end, which takes as long."""
    path = tiny.write(folder, **(OVER | over))
    if ranks == 1:
        tiny.run(path)
    else:
        assert processes.on_ranks(tiny.on_rank, path, timeout=300) == [0, 0]
    return folder / "run"


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return run(tmp_path_factory.mktemp("one"), 1, evaluate=None)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return run(tmp_path_factory.mktemp("two"), 2, evaluate=None, run__measure_every=2)


@pytest.fixture(scope="module")
def ways(one, tmp_path_factory):
    """How far each network went from its first weights."""
    start = run(tmp_path_factory.mktemp("start"), 1, sample=None, evaluate=None, **STILL)
    return distances(tiny.weights(one), tiny.weights(start))


def apart(one, other, ways):
    """VARIANT/STAGE/NETWORK -> distance as a share of the way, of those that are too far apart."""
    a, b = tiny.weights(one), tiny.weights(other)
    assert set(a) == set(b)
    shares = {network: distance / ways[network] for network, distance in distances(a, b).items()}
    return {network: share for network, share in shares.items() if share > LIMITS.get(network.split("/")[2], 0.005)}


def held_out(folder):
    """{step: figure of held-out data}, each in a row of its own."""
    rows = read_figures(folder / "log.jsonl")
    return {row["step"]: x for row in rows for name, x in row.items() if name.startswith("test/")}


def test_the_weights_agree(one, two, ways):
    """Also where two ranks look at their networks while they train, and one does not."""
    assert apart(one, two, ways) == {}
    for stage in TRAINING[1:]:
        for folder in two.glob(f"stages/{stage}-*"):
            steps = range(2, tiny.RECIPE[stage]["steps"] + 1, 2)
            assert [*held_out(folder)] == [*steps], "one rank writes"


def test_what_is_encoded_and_drawn_agrees(one, two):
    """Of networks that differ by rounding: in the same files, of the same labels and seeds."""
    for pattern, several in (("*/latents/latents/latents-*.safetensors", 3), ("*/sample/guidance-*/samples-*", 2)):
        files = [sorted(file.relative_to(run) for file in run.glob(pattern)) for run in (one, two)]
        assert files[0] == files[1]
        assert len(files[0]) >= 2 * several, "so that each rank has a part"
        for file in files[0]:
            a, b = (load_file(run / file) for run in (one, two))
            assert a.keys() == b.keys()
            for name in a:
                if name in ("labels", "seeds"):
                    assert torch.equal(a[name], b[name]), file
                else:
                    x, y = a[name].double(), b[name].double()
                    assert (x - y).norm() <= 0.02 * x.norm(), (file, name)


def test_the_weights_of_sharded_flow_networks_agree(one, two, ways, tmp_path):
    shutil.copytree(two, tmp_path / "run", symlinks=True)
    for stage in FLOWS:
        for folder in (tmp_path / "run" / "stages").glob(f"{stage}-*"):
            shutil.rmtree(folder)
    watched = {"run__picture_every": 2, "run__measure_every": 2}
    assert apart(one, run(tmp_path, 2, evaluate=None, run__shard=True, **watched), ways) == {}
    # of gathered networks, seen between two steps
    assert [len([*it.glob("*.png")]) for it in (tmp_path / "run").glob("stages/generator-*/pictures")] == [3, 3]
    assert len([*(tmp_path / "run" / "stages").glob("matching-*")]) == 1
    for folder in (tmp_path / "run" / "stages").glob("generator-*"):
        sharded, whole = (held_out(of / "stages" / folder.name) for of in (tmp_path / "run", two))
        assert [*sharded] == [*whole] == [2, 4, 6]
        assert [*sharded.values()] == pytest.approx([*whole.values()], rel=1e-3)


def test_two_sharded_ranks_are_stopped_and_one_process_goes_on(one, tmp_path):
    """The signal reaches the ranks in different steps; they save in the same one."""
    whole, stopped = (tmp_path / name for name in ("whole", "stopped"))
    anew = ("--generator.warmup", "1")  # else it goes on from the training of `one`, whose log comes along
    longer = ("--variant", "kl", "--generator.steps", "300", *anew, "--run.save_every", "10000")
    recipes = []
    for folder in (whole, stopped):
        shutil.copytree(one, folder / "run", symlinks=True)
        recipes.append(str(tiny.write(folder, **OVER, run__shard=True)))
    result = processes.command("generator", recipes[0], *longer, "--run.shard", "false")
    assert result.returncode == 0, result.stderr
    copied = set(stopped.glob("run/stages/generator-*/log.jsonl"))
    ranks = processes.started(2, "generator", recipes[1], *longer)
    until = time.monotonic() + 120
    while not any(log.read_text() for log in set(stopped.glob("run/stages/generator-*/log.jsonl")) - copied):
        assert not any(rank.ended() for rank in ranks), "it ended before it could be stopped"
        assert time.monotonic() < until
        time.sleep(0.01)
    until = time.monotonic() + 30  # after as long torchrun and SLURM kill
    for rank in ranks:  # as torchrun sends it
        rank.signal(signal.SIGTERM)
        time.sleep(0.02)
    assert [rank.result(timeout=until - time.monotonic()).returncode for rank in ranks] == [130, 130]
    result = processes.command("generator", recipes[1], *longer, "--run.shard", "false")
    assert "resumes at step" in result.stdout, result.stderr
    a, b = (
        tiny.weights(folder / "run")["kl/generator/generator/final_layer.linear.weight"] for folder in (whole, stopped)
    )
    assert (a - b).abs().max() < 1e-4 < a.abs().max() / 10


def measure(rank, path, note):
    """The stage `evaluate` on this rank, few rows of distances at a time; the note says how many rows it computed."""
    computed = {module.__name__: 0 for module in DISTANCES}

    def counted(module):
        def by_rows(compute, x, chunk, *, shared=False):
            def count(chosen):
                computed[module.__name__] += chosen.stop - chosen.start
                return compute(chosen)

            return rows.by_rows(count, x, chunk, shared=shared)

        return by_rows

    def meeting(inputs, opened=measuring.open_reference):
        distributed.barrier()  # as a reference that one rank fits for all
        return opened(inputs)

    measuring.open_reference = meeting
    for module in DISTANCES:
        module.CHUNK, module.by_rows = 5, counted(module)
    with joined():
        tiny.run(path, "matched", "evaluate")
    Path(note, str(rank)).write_text(json.dumps(computed))


def test_two_ranks_measure_what_one_measures(one, tmp_path):
    """Each takes half of the images, on the same networks, and half of the distances: not a digit differs, but for what
    names the call."""
    found, computed = [], []
    for count in (1, 2):
        folder = tmp_path / str(count)
        shutil.copytree(one, folder / "run", symlinks=True)
        path = tiny.write(
            folder, **OVER, evaluate__metrics=["frechet", "kernel", "manifold", "per-class", "memorisation"]
        )
        assert processes.on_ranks(measure, path, str(folder), count=count) == [0] * count
        (metrics,) = (folder / "run" / "stages").glob("evaluate-*/metrics.json")
        found.append({k: v for k, v in json.loads(metrics.read_text()).items() if k != "manifest"})
        computed.append([json.loads((folder / str(rank)).read_text()) for rank in range(count)])
    assert found[0] == found[1]
    assert found[0].keys() >= {"precision", "recall", "density", "coverage", "agreement", "memorisation", "knn"}
    ((whole,), halves) = computed
    for name, n in whole.items():
        shares = [half[name] for half in halves]
        assert sum(shares) == n, name
        assert 0.3 * n < min(shares), name


def told(rank, folder):
    """What a rank takes for the distance where its processor has another last digit."""
    approach.RECENT = 32
    approach.multiples = lambda *_: {"whole": 1.5 + 1e-12 * rank, "told": 3.0}
    with joined():
        memory = approach.Approach((2, 2, 2), 1.0, 1.1)
        memory.remember(torch.randn(16, 2, 2, 2))
        found = memory.measure(Gaussian((2, 2, 2), 3, 1.0), Random(0))
        (folder / f"{rank}.txt").write_text(repr((memory.distance, found)))


def normed(rank, folder):
    """Features whose mean is three hundred thousand deviations, in float32."""
    with joined():
        norm = distributed.BatchNorm2d(2).train()
        x = 300 + 1e-3 * torch.randn(8, 2, 4, 4, generator=torch.Generator().manual_seed(rank))
        (folder / f"{rank}.txt").write_text(str(bool(norm(x).isfinite().all() and norm.running_var.isfinite().all())))


def test_batch_norm_of_ranks_is_finite_where_rounding_is_larger_than_the_variance(tmp_path):
    assert processes.on_ranks(normed, tmp_path, timeout=100) == [0, 0]
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)] == ["True", "True"]


def test_ranks_take_one_distance_for_the_measured(tmp_path):
    assert processes.on_ranks(told, tmp_path, timeout=100) == [0, 0]
    first, second = ((tmp_path / f"{rank}.txt").read_text() for rank in (0, 1))
    assert first == second
    assert first.startswith("(1.5, ")
