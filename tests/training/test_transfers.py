"""Between two rows of the log nothing waits for the device, but for what docs/performance.md lists: in a step no value
of a tensor is read."""

import re
from contextlib import ExitStack, nullcontext
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from steps import EDITED, STAGES, batch_of, place, trainer_of
from torch.utils._python_dispatch import TorchDispatchMode

from dmvae.evaluation.latents import scatter
from dmvae.matching import Matching
from dmvae.registry import names
from dmvae.runtime.transfer import covariance, listed, waits
from dmvae.stages import approach
from dmvae.training.logging import Figures
from dmvae.transport import two_sample

READS = {
    *("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "bincount", "histc", "multinomial"),
    *("_unique", "_unique2", "unique_dim", "unique_consecutive", "unique_dim_consecutive"),
    *("_linalg_eigh", "linalg_eig", "_linalg_eigvals", "linalg_eigvals", "_linalg_svd", "_linalg_check_errors"),
    *("linalg_lstsq", "linalg_matrix_exp"),
}
"""Operations that a GPU must have done before this process goes on: their result's size depends on values, or they look
whether they have succeeded. float(x), `if x` and torch.linalg's inverses and roots are made of these."""
METHODS = ("tolist", "cpu", "numpy", "__array__")
"""The same that are no operations to a tensor on the CPU, as `x.to("cpu")` is not."""
INDEXED = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index")


class Reads(TorchDispatchMode):
    """Finds what reads values: in `found`, or in `listed` within `waits`."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.listed: set[str] = set()
        self.methods = ExitStack()

    def __enter__(self):
        for name in (*METHODS, "to"):
            self.methods.enter_context(patch.object(torch.Tensor, name, self.seen(name)))
        return super().__enter__()

    def __exit__(self, *error):
        self.methods.close()
        return super().__exit__(*error)

    def seen(self, name):
        own = getattr(torch.Tensor, name)

        def method(tensor, *args, **kwargs):
            if name != "to" or "cpu" in (*args[:1], kwargs.get("device")):
                self.note(name)
            return own(tensor, *args, **kwargs)

        return method

    def note(self, what):
        if listed():
            self.listed.add(listed())
        else:
            self.found.append(f"{what}, {place()}")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name, kwargs = func._overloadpacket.__name__, kwargs or {}
        # one value is filled in where a mask is true, without a look at how often it is
        masks = name in INDEXED and any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])
        filled = len(args) > 2 and isinstance(args[2], torch.Tensor) and args[2].numel() == 1
        repeats = name == "repeat_interleave" and not kwargs.get("output_size")
        if name in READS or (masks and not filled) or repeats:
            self.note(name)
        return func(*args, **kwargs)


def waited(folder, stage, steps, **over):
    """{step: why} of the listed waits in so many steps of the loop; there are no others."""
    trainer, found = trainer_of(folder, stage, **over), {}
    figures = Figures(folder, "none", 0, "")
    assert len(trainer.inputs.train_set)  # open, as in a run
    for step in range(steps):
        batch = batch_of(trainer, step)
        with Reads() as reads:
            assert not trainer.advance(batch, figures)
        assert reads.found == [], f"step {step}"
        if reads.listed:
            found[step] = reads.listed
    trainer.health.judge()
    assert figures.write(steps)
    return found


def test_the_covariance_is_torch_s_bit_for_bit():
    x = torch.randn(50, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(covariance(x), torch.cov(x.T))
    assert torch.equal(covariance(x[:, :1].float()), torch.cov(x[:, :1].float().T).reshape(1, 1))


@pytest.mark.parametrize(
    "read",
    [
        lambda x: float(x.sum()),
        lambda x: bool(x[0, 0]),
        lambda x: x[0, 0].item(),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x.to("cpu"),
        lambda x: x.to(device="cpu", dtype=torch.float64),
        lambda x: x.numpy(),
        lambda x: x[x > 0],
        lambda x: x.masked_select(x > 0),
        lambda x: x.nonzero(),
        lambda x: x.unique(),
        lambda x: x.unique_consecutive(),
        lambda x: x.long().flatten().bincount(),
        lambda x: x.__setitem__(x > 0, torch.zeros(9)),
        lambda x: x.repeat_interleave(torch.ones(3, dtype=torch.int64), dim=0),
        lambda x: torch.equal(x, x),
        lambda x: torch.linalg.eigvalsh(x),
        lambda x: torch.linalg.eigh(x),
        lambda x: torch.linalg.svdvals(x),
        lambda x: torch.linalg.inv(x + torch.eye(3)),
        lambda x: torch.linalg.cholesky(x + torch.eye(3)),
        lambda x: torch.multinomial(x, 1),
    ],
)
def test_the_count_sees_what_waits(read):
    with Reads() as reads:
        read(torch.ones(3, 3))
    assert len(reads.found) >= 1
    with Reads() as reads, waits("why"):
        read(torch.ones(3, 3))
    assert (reads.found, reads.listed) == ([], {"why"})


@pytest.mark.parametrize("raises", [False, True])
def test_on_a_gpu_a_listed_wait_does_not_raise(monkeypatch, raises):
    mode = ["error"]
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: mode[0])
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda new: mode.__setitem__(0, new))
    seen = []
    with pytest.raises(KeyError) if raises else nullcontext(), waits("why"):
        seen.append((listed(), mode[0]))
        if raises:
            raise KeyError
    assert seen == [("why", 0)]
    assert (listed(), mode) == (None, ["error"])


def test_the_count_lets_pass_what_does_not():
    with Reads() as reads:
        x = torch.ones(3, 3)
        x[x > 0] = 2.0
        x.mean(), x[torch.tensor([0, 1])], x.to(torch.float64), x.masked_fill(x > 0, 1), torch.where(x > 0, x, 0)
    assert reads.found == []


def quick(monkeypatch):
    """The distance, of few latents, whose classifiers hardly train."""
    monkeypatch.setattr(approach, "RECENT", 32)
    train = two_sample._train
    monkeypatch.setattr(two_sample, "_train", lambda *given: train(*given[:-1], steps=2))


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_no_step_waits(tmp_path, monkeypatch, stage):
    """Also those in which a matching tells the distance, and in which its health is judged."""
    quick(monkeypatch)
    monkeypatch.setattr(approach, "SELDOM", 4)
    monkeypatch.setattr("dmvae.training.trainer.WINDOW", 3)
    over = {"matching__student_steps": 1, "matching__health_every": 3} if stage == "matching" else {}
    found = waited(tmp_path, stage, 8, **over)
    assert found == ({step: {"the distance, told"} for step in (3, 7)} if stage == "matching" else {})


@pytest.mark.slow
def test_a_matching_that_follows_the_distance_waits_when_it_is_measured(tmp_path, monkeypatch):
    quick(monkeypatch)
    over = EDITED | {"matching__noise": "reference", "matching__balance": "distance"}
    found = waited(tmp_path, "matching", 12, **over)
    assert found == {step: {"the distance, measured"} for step in (0, 10)}


@pytest.mark.slow
def test_a_matching_that_assigns_samples_waits_for_them(tmp_path):
    over = EDITED | {"matching__noise": "assigned", "matching__noise_bank": 16, "matching__noise_groups": 4}
    assert waited(tmp_path, "matching", 2, **over) == {step: {"noise: assigned"} for step in range(2)}


def reads_of_matching(folder, objective):
    """What a step of matching with this objective reads, without those that are listed by place."""
    trainer = trainer_of(folder, "matching", matching__objective=objective)
    with Reads() as reads:
        for step in range(2):
            trainer.advance(batch_of(trainer, step), Figures(folder, "none", 0, ""))
    return reads.found


@pytest.mark.slow
@pytest.mark.parametrize("objective", names(Matching))
def test_of_the_objectives_those_wait_that_are_listed(tmp_path, objective):
    page = (Path(__file__).parents[2] / "docs/performance.md").read_text()
    rows = re.findall(r"^\| .*`objective: (\w+)` .*\| each turn", page, re.MULTILINE)
    assert bool(reads_of_matching(tmp_path, {"type": objective})) == (objective in rows)


@pytest.mark.slow
@pytest.mark.parametrize("option", [{"labels": True}, {"along": ["principal"]}])
def test_so_do_options_of_theirs(tmp_path, option):
    page = (Path(__file__).parents[2] / "docs/performance.md").read_text()
    assert f"`objective.{next(iter(option))}" in page
    assert reads_of_matching(tmp_path, {"type": "transport", **option})


def test_a_figure_that_waits_is_made_with_the_row(tmp_path):
    asked = []
    figures = Figures(tmp_path, "none", 0, "")
    for value in (1.0, 2.0):
        figures.add({"rank": lambda value=value: asked.append(value) or torch.tensor(value), "loss": torch.ones(())})
    assert asked == []
    assert figures.write(2) == {"rank": 1.5, "loss": 1.0}
    assert asked == [1.0, 2.0]
    z = torch.full((4, 2, 2, 2), torch.nan)
    figures.add({"rank": scatter(z, "channels").effective_rank})
    with pytest.raises(FloatingPointError, match="rank became nan by step 3"):
        figures.write(3)
