"""The training loop of every stage: load, update, average, log, save."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path

import torch
from torch import nn

from dmvae.config import Values
from dmvae.datasets.loading import loader
from dmvae.datasets.pixels import as_input
from dmvae.models.artifact import save_network
from dmvae.runtime import distributed
from dmvae.runtime.console import Bar
from dmvae.runtime.precision import Precision, autocast
from dmvae.runtime.random import Random, seed_of
from dmvae.training import checkpoint
from dmvae.training.augment import random_flip
from dmvae.training.data import Order, require_batch
from dmvae.training.ema import Average
from dmvae.training.health import LOOKBACK, ROLLED_BACK, SLOWER, WINDOW, Health, Unwell, hopeless, went_back
from dmvae.training.logging import Figures
from dmvae.training.optim import adamw, learning_rate_factor
from dmvae.training.stage import AnyTraining, Batch, Facts, Networks, TrainingConfig, Update

CHECKPOINTS = "checkpoints"
"""Where in a stage's folder its state is kept until the stage is finished."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM arrived; the state was saved."""


class Trainer:
    """State of one training stage: networks, their optimizers and averages, the step, the time spent."""

    def __init__(self, stage: AnyTraining) -> None:
        self.stage, self.inputs = stage, stage.inputs
        self.config: TrainingConfig = stage.config
        self.key = (self.inputs.seed, stage.name)
        stage.prepare()
        torch.manual_seed(seed_of(*self.key, "init"))
        self.networks: Networks = stage.build()
        for module in self.networks.children():
            module.to(self.inputs.device, memory_format=torch.channels_last)
            distributed.replicate(module)
        if self.inputs.sections.run.shard:
            self._shard()
        rates = self.networks.learning_rates
        self.optimizers = {
            name: adamw(parameters, self.config, rates.get(name, self.config.learning_rate))
            for name, parameters in self.networks.trains.items()
        }
        averaged = {name: getattr(self.networks, name) for name in self.networks.averaged}
        self.averages = {name: Average(network, self.config.ema) for name, network in averaged.items()}
        self.health = Health(stage.bounds(), self.inputs.device)
        self.step, self.seconds = 0, 0.0
        self.images_seen = dict.fromkeys(self.networks.trains, 0)

    def _shard(self) -> None:
        """Shard the flow networks over the ranks, and replace their parameters in `trains` by the sharded ones."""
        trains, parts = self.networks.trains, self.networks.children()
        new = {old: p for module in parts for old, p in distributed.shard(module).items()}
        for name, parameters in trains.items():
            trains[name] = [new.get(p, p) for p in parameters]

    def apply(self, update: Update) -> Values:
        """Backward, clip, step and average for the parameters that the update names; returns its figures."""
        parameters = self.networks.trains[update.trains]
        if update.loss.ndim:
            shape = list(update.loss.shape)
            raise ValueError(f"{self.stage.name}: the loss of {update.trains!r} has shape {shape}; give a scalar")
        # The graph of a sharded network holds its gathered weights, not the shards, so `inputs` cannot name them.
        # Nothing else trains in that graph: the latents of a flow network are detached.
        sharded = distributed.is_sharded(parameters[0])
        update.loss.backward(inputs=None if sharded else parameters)
        distributed.average_gradients(parameters)
        clip = self.config.clip or float("inf")
        norm = distributed.whole_tensor(nn.utils.clip_grad_norm_(parameters, clip, foreach=True))
        optimizer = self.optimizers[update.trains]
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * learning_rate_factor(self.config, self.step)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        moved = {id(p) for p in parameters}
        for average in self.averages.values():
            if any(id(p) in moved for p in average.parameters):
                average.update()
        self.images_seen[update.trains] += self.config.batch_size
        figures = update.figures()
        self.health.add(figures)
        return figures | {f"{update.trains}/gradient_norm": norm}

    @property
    def slowed(self) -> bool:
        """Whether learning rates were lowered; checkpoints hold them."""
        rates = {name: self.networks.learning_rates.get(name, self.config.learning_rate) for name in self.optimizers}
        return any(o.param_groups[0]["base_lr"] < rates[name] for name, o in self.optimizers.items())

    def slow(self, names: Sequence[str]) -> None:
        """Lower the learning rates of these updates, of all where none are named."""
        for name, optimizer in self.optimizers.items():
            if not names or name in names:
                optimizer.param_groups[0]["base_lr"] *= SLOWER

    def require_finite(self) -> None:
        """Raise FloatingPointError for trained networks with weights or buffers that are not finite, so that they are
        never saved."""
        for name, module in self.networks.saved().items():
            held = [*module.parameters(), *(b for b in module.buffers() if b.is_floating_point() and b.numel())]
            norms = torch._foreach_norm([tensor.detach() for tensor in held])
            if not torch.stack([distributed.whole_tensor(norm).float() for norm in norms]).isfinite().all():
                raise FloatingPointError(f"weights of {name!r} became infinite or NaN by step {self.step}")

    def state_dict(self) -> Values:
        self.health.join()
        health = {"health": {"state": self.health.state}} if self.health.bounds else {}
        return health | {
            "networks": {name: module.state_dict() for name, module in self.networks.state().items()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "averages": {name: average.state_dict() for name, average in self.averages.items()},
            "progress": {"step": self.step, "seconds": self.seconds, "images_seen": self.images_seen},
        }

    def save(self, folder: Path) -> None:
        """Write a checkpoint into `folder`."""
        checkpoint.save(folder, self.step, self.state_dict(), LOOKBACK if self.health.bounds else 0)

    def resume(self, folder: Path) -> bool:
        """Continue from the newest intact checkpoint in `folder`; False where there is none."""
        state = self.state_dict()
        if checkpoint.load(folder, state, optional=("health",)) is None:
            return False
        for name, module in self.networks.state().items():
            module.load_state_dict(state["networks"][name])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        for name, average in self.averages.items():
            average.load_state_dict(state["averages"][name])
        if self.health.bounds:
            self.health.state.copy_(state["health"]["state"])
        progress = state["progress"]
        self.step, self.seconds, self.images_seen = progress["step"], progress["seconds"], progress["images_seen"]
        return True

    def save_networks(self, folder: Path) -> None:
        """Write every trained network to folder/NAME, with averaged weights where they are kept. All ranks must call
        it; one writes."""
        for name, module in self.networks.saved().items():
            with self.averages[name].applied() if name in self.averages else nullcontext():
                whole = distributed.whole_module(module)
                if distributed.is_main():
                    save_network(whole, folder / name)


def train(stage: AnyTraining) -> Facts:
    """Run the stage from its newest checkpoint to its end; returns the facts that its done.json keeps.

    Raises FloatingPointError when a logged figure or the weights are not finite, or a figure has left the stage's
    bounds: for a stage with bounds, the second time. Raises Interrupted after saving on a signal.
    """
    folder = stage.inputs.out / CHECKPOINTS
    trainer = Trainer(stage)
    if trainer.resume(folder):
        stage.inputs.say(f"resumes at step {trainer.step} of {stage.config.steps}")
    while True:
        try:
            return _to_the_end(trainer, folder)
        except FloatingPointError as error:
            if trainer.slowed or not trainer.health.bounds:
                raise FloatingPointError(hopeless(stage.name, stage.inputs.out, error, trainer.slowed)) from error
            trouble, step = error.with_traceback(None), trainer.step
        del trainer  # before the next takes its memory
        trainer = _rolled_back(stage, folder, trouble, step)


def _rolled_back(stage: AnyTraining, folder: Path, trouble: FloatingPointError, step: int) -> Trainer:
    """The training as it was well before the trouble, with smaller learning rates: at the newest checkpoint that is
    old enough, or at its start. It is saved at once, so that a kill does not undo this."""
    inputs, back = stage.inputs, distributed.broadcast(checkpoint.newest(folder, step - LOOKBACK))
    checkpoint.forget(folder, after=-1 if back is None else back)
    trainer = Trainer(stage)
    trainer.resume(folder)
    names = trouble.bound.slows if isinstance(trouble, Unwell) else ()
    trainer.slow(names)
    what = f"the learning rate of {', '.join(names)}" if names else "all learning rates"
    text = f"step {step}: {trouble}; it goes back to step {trainer.step}, with {what} times {SLOWER:g}"
    inputs.say(text)
    if distributed.is_main():
        with (inputs.out / ROLLED_BACK).open("a") as file:
            file.write(text + "\n")
    trainer.save(folder)
    return trainer


def _to_the_end(trainer: Trainer, folder: Path) -> Facts:
    """The steps from the trainer's on."""
    stage, config, inputs = trainer.stage, trainer.config, trainer.inputs
    run, device = inputs.sections.run, inputs.device
    steps = config.steps if trainer.networks.trains else 0
    if run.compile:
        compile_networks(trainer.networks, device)
    begun = time.monotonic() - trainer.seconds
    title = f"{inputs.variant}  {stage.name}"
    with (
        closing(Figures(inputs.out, run.tracker, trainer.step, f"{inputs.variant}/{stage.name}")) as figures,
        _told(stage.name),
        _signals() as signalled,
        closing(_batches(trainer, steps, signalled)) as data,
        Bar(title, steps, "images", trainer.step) as bar,
    ):
        last = stage.done(trainer.networks)
        while trainer.step < steps and not last:
            try:
                batch = Batch(*next(data), trainer.step, steps)
            except KeyboardInterrupt:  # while waiting for a batch; several ranks would wait for each other to save
                if distributed.world_size() == 1:
                    trainer.save(folder)
                raise Interrupted from None
            rng = Random(*trainer.key, trainer.step, device=device)
            torch.manual_seed(seed_of(*rng.key, "global", distributed.rank()))  # for an encoder's dropout
            for update in turns(stage.updates(trainer.networks, batch, rng), device, run.precision):
                figures.add(trainer.apply(update))
            trainer.step += 1
            trainer.seconds = time.monotonic() - begun
            last = trainer.step == steps or stage.done(trainer.networks)
            if trainer.step % WINDOW == 0 or last:
                trainer.health.judge()
            logs = trainer.step % run.log_every == 0 or last
            stops = distributed.any_rank(bool(signalled), trainer.step, trainer.step if last else steps)
            saves = trainer.step % run.save_every == 0 or stops
            row = None
            if logs or saves:
                row = figures.write(trainer.step, seconds=round(trainer.seconds, 3))
            if stops or saves or last:
                trainer.require_finite()
            if stops or (saves and not last):
                trainer.save(folder)
            if stops:
                raise Interrupted
            bar.step(per_step=config.batch_size, note=_losses(row))
    trainer.save_networks(inputs.out)
    facts = {"steps": trainer.step, "images_seen": trainer.images_seen, "seconds": round(trainer.seconds, 2)}
    return facts | ({"rolled_back": went_back(inputs.out)} if trainer.slowed else {})


def turns(updates: Iterator[Update], device: torch.device, precision: Precision) -> Iterator[Update]:
    """The stage's updates. Each is computed under autocast and yielded outside of it, where the backward pass runs."""
    while True:
        with autocast(device, precision):
            update = next(updates, None)
        if update is None:
            return
        yield update


def _batches(
    trainer: Trainer, steps: int, signalled: list[int]
) -> Generator[tuple[torch.Tensor, torch.Tensor], None, None]:
    """(data, labels) on the device from the current step on; empty tensors for a stage without a data set."""
    stage, config, inputs, world = trainer.stage, trainer.config, trainer.inputs, distributed.world_size()
    if config.batch_size % world:
        raise ValueError(f"{stage.name}.batch_size: {config.batch_size} does not divide over {world} ranks")
    dataset = stage.data()
    if dataset is None:
        local, device = config.batch_size // world, inputs.device
        while True:
            yield torch.empty(local, device=device), torch.empty(local, dtype=torch.int64, device=device)
    require_batch(stage.name, config.batch_size, len(dataset))
    order = Order(len(dataset), config.batch_size, trainer.key, trainer.step, steps)
    flips = inputs.data.flip and stage.flips
    for step, (data, labels) in enumerate(
        loader(dataset, order, inputs.sections.run.workers, inputs.device, lambda: bool(signalled)), trainer.step
    ):
        x = as_input(data, inputs.device)
        if flips:
            x = random_flip(x, Random(*trainer.key, "flip", step, device=inputs.device))
        yield x, labels.to(inputs.device, non_blocking=True)


def compile_networks(networks: Networks, device: torch.device) -> None:
    """Compile every network in place: the parts that it names in `compiled_parts`, else all of it. On a CPU, parts with
    convolutions are left uncompiled: oneDNN's kernels are faster there than compiled ones (python -m benchmarks.steps:
    compiled, the demo's decoder steps had 0.6 of their speed)."""
    # The adaptive weight differentiates the decoder's graph twice, so the first pass must not free its buffers.
    torch._functorch.config.donated_buffer = False
    for module in networks.children():
        named: Callable[[], list[nn.Module]] | None = getattr(module, "compiled_parts", None)
        for part in named() if named else [module]:
            if device.type != "cpu" or not _convolves(part):
                part.compile()


def _convolves(module: nn.Module) -> bool:
    """Whether it has a convolution whose windows overlap; a patch embedding is a matrix product."""
    return any(m.stride < m.kernel_size for m in module.modules() if isinstance(m, nn.Conv2d))


def _losses(row: dict[str, float] | None) -> str | None:
    """The losses of a row of figures, for the bar; None keeps what the bar shows."""
    if row is None:
        return None
    return "loss " + ", ".join(
        f"{name.removesuffix('/loss')} {value:.3f}" for name, value in row.items() if name.endswith("/loss")
    )


@contextmanager
def _told(stage: str) -> Iterator[None]:
    """Says of what is not finite what helps: the same settings end there again, and a changed field starts anew."""
    try:
        yield
    except (FloatingPointError, torch.linalg.LinAlgError) as error:
        what = error if isinstance(error, FloatingPointError) else "a matrix became NaN or infinite (no eigenvalues)"
        raise FloatingPointError(
            f"{stage}: {what}; from the same settings it always will: give a lower --{stage}.learning_rate or a longer "
            f"--{stage}.warmup, with which the stage begins again"
        ) from error


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Yields a list that is filled by the first Ctrl-C or SIGTERM; the loop then ends its step and saves. A second
    signal stops the process at once."""
    received: list[int] = []

    def handler(number: int, frame: object) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    try:
        before = {s: signal.signal(s, handler) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # only the main thread may set signal handlers
        before = {}
    try:
        yield received
    finally:
        for number, old in before.items():
            signal.signal(number, old)
