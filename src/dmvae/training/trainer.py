"""A training stage's networks, optimizers and averages: one step of them, and their state."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from dmvae.config import Values
from dmvae.models.artifact import save_network
from dmvae.runtime import distributed, sharding
from dmvae.runtime.gradients import averaged
from dmvae.runtime.precision import autocast, uses_bf16
from dmvae.runtime.random import Random, seed_globally, seed_of
from dmvae.runtime.transfer import Loggable
from dmvae.training import checkpoint
from dmvae.training.ema import Average
from dmvae.training.health import LOOKBACK, SLOWER, WINDOW, Health
from dmvae.training.logging import Figures
from dmvae.training.optim import adamw, learning_rate_factor, rates_of
from dmvae.training.preparing import checkpoint_activations, compile_networks
from dmvae.training.stage import AnyTraining, Batch, Networks, TrainingConfig, Update
from dmvae.training.updates import as_turns, as_update

LATER = ("health", "networks.approach", "networks.approach.labels")
"""Entries that checkpoints of older versions lack."""


class Trainer:
    """State of one training stage: networks, their optimizers and averages, the step, the time spent."""

    def __init__(self, stage: AnyTraining) -> None:
        self.stage, self.inputs = stage, stage.inputs
        self.config: TrainingConfig = stage.config
        self.key, run = (self.inputs.seed, stage.name), self.inputs.sections.run
        if self.inputs.weights:  # a plan has no data to prepare
            stage.prepare()
        torch.manual_seed(seed_of(*self.key, "init"))
        self.networks: Networks = stage.build()
        checkpoint_activations(self.networks, run.checkpointing)
        for module in self.networks.children():
            self.inputs.place(module)
            distributed.replicate(module)
        for name, value in self.networks.named_buffers(recurse=False):  # buffers of the Networks itself
            setattr(self.networks, name, value.to(self.inputs.device))
        if run.compile:
            compile_networks(self.networks)
        if run.shard:
            self._shard()
        rates = self.networks.learning_rates
        self.optimizers = {
            name: adamw(parameters, self.config, rates.get(name, self.config.learning_rate))
            for name, parameters in self.networks.trains.items()
        }
        networks = {name: getattr(self.networks, name) for name in self.networks.averaged}
        decays = self.networks.decays
        self.averages = {name: Average(part, decays.get(name, self.config.ema)) for name, part in networks.items()}
        self.health = Health(stage.bounds(), self.inputs.device)
        self.background = checkpoint.Background()
        self.step, self.seconds, self.updating = 0, 0.0, False
        self.images_seen = dict.fromkeys(self.networks.trains, 0)

    def _shard(self) -> None:
        """Shard the flow networks over the ranks, and replace their parameters in `trains` by the sharded ones."""
        trains, run = self.networks.trains, self.inputs.sections.run
        bf16 = run.shard_bf16 and uses_bf16(self.inputs.device, run.precision)
        options = {"bf16": bf16, "in_node": run.shard_in_node, "reshard": run.reshard}
        parts = [sharding.shard(module, **options) for module in self.networks.children()]
        new = {old: p for part in parts for old, p in part.items()}
        for name, parameters in trains.items():
            trains[name] = [new.get(p, p) for p in parameters]

    def advance(self, batch: Batch, figures: Figures) -> bool:
        """One step; returns whether it was the last. It does not wait for the device, except inside `transfer.waits`;
        rows of the log, which do, are written between steps."""
        self.updating = True  # an error in an update may be this rank's alone
        for found in self.train_step(batch):
            figures.add(found)
        self.updating = False
        if not any(self.images_seen.values()):
            raise ValueError(f"stage {self.stage.name}: updates yielded no Update; give at least one a step")
        self.step += 1
        last = self.step == batch.steps or self.stage.done(self.networks)
        if self.step % WINDOW == 0 or last:
            self.health.end_window(self.step)
        return last

    def write_row(self, figures: Figures) -> dict[str, float]:
        """Write the means of the figures as the row of this step, as `Figures.write` does, with time and learning
        rates."""
        return figures.write(self.step, seconds=round(self.seconds, 3), **rates_of(self.optimizers))

    def train_step(self, batch: Batch) -> Iterator[dict[str, Loggable]]:
        """All updates of one step on this rank's share of the batch; yields figures to log. With `run.accumulate`, an
        update goes through all parts of the share before it moves its parameters."""
        run, device = self.inputs.sections.run, self.inputs.device
        seed_globally(seed_of(*self.key, self.step, "global", distributed.rank()), device)  # for an encoder's dropout
        count = run.accumulate if self.stage.takes_parts else 1
        data, labels = batch.data.chunk(count), batch.labels.chunk(count)
        images = [None] * count if batch.images is None else batch.images.chunk(count)
        given = [
            (
                replace(batch, data=data[i], labels=labels[i], images=images[i]),
                Random(*self.key, self.step, device=device, part=(i, count)),
            )
            for i in range(count)
        ]
        parts = [as_turns(self.stage.name, self.stage.updates(self.networks, *each)) for each in given]
        while True:
            for i, part in enumerate(parts):
                with autocast(device, run.precision):
                    found = next(part, None)
                if found is None:
                    return
                update = as_update(self.stage.name, found, self.networks.trains)
                self.backward(update, count, last=i == count - 1)
                name = update.trains
                yield update.figures()
            yield self.move(name)

    def backward(self, update: Update, parts: int = 1, last: bool = True) -> None:
        """Add the gradient of the update's loss, divided by `parts`, to the parameters that it names. With the last
        part, gradients are averaged over the ranks. Raises ValueError for a loss that is no scalar."""
        parameters = self.networks.trains[update.trains]
        # The graph of a sharded network holds its gathered weights, not the shards, so `inputs` cannot name them.
        # Nothing else trains in that graph: the latents of a flow network are detached.
        sharded = sharding.is_sharded(parameters[0])
        for module in self.networks.children():  # trades the memory of a whole gradient for less traffic
            sharding.defer_gradient_sync(module, defer=not last and not self.inputs.sections.run.reshard)
        with averaged(parameters, last):
            (update.loss / parts).backward(inputs=None if sharded else parameters)
        self.health.add(update.figures())

    def move(self, name: str) -> dict[str, Loggable]:
        """Clip, step and average the parameters of update `name` from their gradients; returns the gradient's norm."""
        parameters = self.networks.trains[name]
        clip = self.config.clip or float("inf")
        norm = sharding.whole_tensor(nn.utils.clip_grad_norm_(parameters, clip, foreach=True))
        self.health.see(norm, self.step + 1, first="" if self.images_seen[name] else name)
        optimizer = self.optimizers[name]
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * learning_rate_factor(self.config, self.step)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        moved = {id(p) for p in parameters}
        for average in self.averages.values():
            if any(id(p) in moved for p in average.parameters):
                average.update()
        self.images_seen[name] += self.config.batch_size
        return {f"{name}/gradient_norm": norm}

    @property
    def slowed(self) -> bool:
        """Whether learning rates were lowered after going back; read from the optimizers, which checkpoints hold."""
        rates = {name: self.networks.learning_rates.get(name, self.config.learning_rate) for name in self.optimizers}
        return any(o.param_groups[0]["base_lr"] < rates[name] for name, o in self.optimizers.items())

    def moves(self, names: Sequence[str]) -> bool:
        """Whether one of these updates (without names, of all) has a learning rate above 0, which can be lowered."""
        return any(
            o.param_groups[0]["base_lr"] > 0 for name, o in self.optimizers.items() if not names or name in names
        )

    def slow(self, names: Sequence[str]) -> None:
        """Lower the learning rates of these updates; without names, of all."""
        for name, optimizer in self.optimizers.items():
            if not names or name in names:
                optimizer.param_groups[0]["base_lr"] *= SLOWER

    def require_finite(self) -> None:
        """Raise FloatingPointError if a trained network has weights or buffers that are not finite: they must not be
        saved."""
        for name, module in self.networks.saved().items():
            held = [*module.parameters(), *(b for b in module.buffers() if b.is_floating_point() and b.numel())]
            # sharded and whole tensors cannot go through one call
            kinds = ([x.detach() for x in held if sharding.is_sharded(x) == sharded] for sharded in (True, False))
            norms = [norm for kind in kinds if kind for norm in torch._foreach_norm(kind)]
            if not torch.stack([sharding.whole_tensor(norm).float() for norm in norms]).isfinite().all():
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
        """Write a checkpoint into `folder`, while training goes on."""
        back = LOOKBACK if self.health.bounds else 0
        self.background.save(folder, self.step, self.state_dict(), back, self.inputs.sections.run.save_every)

    def resume(self, folder: Path) -> bool:
        """Continue from the newest intact checkpoint in `folder`; False where there is none."""
        state = self.state_dict()
        if checkpoint.load(folder, state, optional=LATER) is None:
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

    @contextmanager
    def as_saved(self) -> Iterator[None]:
        """Inside the block, the networks are as they are saved: averaged where averages are kept, and `finished`. All
        ranks must enter it."""
        with ExitStack() as saved:
            for average in self.averages.values():
                saved.enter_context(average.applied())
            saved.enter_context(self.stage.finished(self.networks))
            yield

    def save_networks(self, folder: Path) -> None:
        """Write every trained network to folder/NAME, with averaged weights where they are kept. All ranks must call
        it; one writes."""
        with self.as_saved():
            for name, module in self.networks.saved().items():
                whole = sharding.whole_module(module)
                if distributed.is_main():
                    save_network(whole, folder / name)
