"""The training loop of every stage: load, update, average, log, save."""

from __future__ import annotations

import time
from contextlib import closing, suppress
from pathlib import Path

import torch

from dmvae.inputs import kept_steps, snapshot
from dmvae.runtime import distributed
from dmvae.runtime.console import Bar
from dmvae.runtime.files import remove, write_json
from dmvae.runtime.precision import tuned, with_tf32
from dmvae.runtime.signals import Interrupted, signals, stop_later
from dmvae.runtime.words import few
from dmvae.training import checkpoint
from dmvae.training.adversary import idle_adversary
from dmvae.training.checkpoint import PLANNED
from dmvae.training.data import batches
from dmvae.training.health import LOOKBACK, ROLLED_BACK, Diverged, Unwell, going_back, hopeless, went_back
from dmvae.training.logging import Figures, losses, read_figures, values_of
from dmvae.training.pictures import write_picture
from dmvae.training.stage import AnyTraining, Facts
from dmvae.training.trainer import Trainer
from dmvae.training.watching import write_measured

CHECKPOINTS = "checkpoints"
"""Where in a stage's folder its state is kept until the stage is finished."""


def train(stage: AnyTraining) -> Facts:
    """Run the stage from its newest checkpoint to its end; returns the facts that its done.json keeps.

    Raises Diverged when a logged figure or a weight is not finite, or a figure leaves the stage's bounds; a stage with
    bounds goes back once, and raises the second time. Raises FloatingPointError where an update of one of several ranks
    does, and Interrupted after saving on a signal.
    """
    folder = stage.inputs.out / CHECKPOINTS
    trainer = Trainer(stage)
    inputs, config = stage.inputs, stage.config
    if 0 < config.steps < config.warmup:
        share = f"{config.steps / config.warmup:.0%} of what is given"
        inputs.say(
            f"warmup: {config.warmup} steps outlast the {config.steps} of training; learning rates end at {share}"
        )
    if config.ema != type(config).ema and not trainer.averages:
        inputs.say(f"ema: {config.ema} changes nothing: the stage's `networks.averaged` names no network")
    if stage.prolongs and distributed.is_main():
        write_json(folder / PLANNED, {"steps": config.steps})
    if trainer.resume(folder):
        every = inputs.sections.run.keep_every
        inputs.say(f"resumes at step {trainer.step} of {stage.config.steps}")
        if config.keeps(trainer.step, every):  # again, in case a kill left a part of it
            trainer.save_networks(inputs.out / snapshot(trainer.step))
        if missed := sorted(config.kept(trainer.step, every).difference(kept_steps(inputs.out))):
            told = f"{few(missed)} of keep_at or run.keep_every came before that and were not kept"
            inputs.say(f"{told}; remove {inputs.out} to train anew")
    with signals() as signalled:  # around going back too: a signal that comes then is not lost
        while True:
            try:
                facts = _to_the_end(trainer, folder, signalled)
                # only here: closing trackers and workers may take seconds, in which a signal may come
                stop_later(distributed.SharedFlag()(bool(signalled), now=True))
                return facts
            except (FloatingPointError, torch.linalg.LinAlgError) as found:
                since = trainer.health.ill_since()  # figures after that step mean nothing
                late = isinstance(found, Unwell) and since is not None and since <= found.step
                error = FloatingPointError(str(found)) if late else found
                named = error.bound.slows if isinstance(error, Unwell) else ()
                spoilt, can_slow = trainer.health.spoilt(), trainer.health.bounds and trainer.moves(named)
                if trainer.slowed or not can_slow or spoilt:
                    text = hopeless(stage.name, stage.inputs.out, error, trainer.slowed, spoilt)
                    if trainer.updating and distributed.world_size() > 1:  # the others may not know of it
                        raise FloatingPointError(text) from found
                    stop_later(distributed.SharedFlag()(bool(signalled), now=True))  # as a run may go on with others
                    raise Diverged(text) from found
                step = error.step if isinstance(error, Unwell) else since or trainer.step
                trouble = error.with_traceback(None)
            trainer.background.wait()
            del trainer  # frees its memory for the next one
            trainer = _rolled_back(stage, folder, trouble, step)


def _rolled_back(stage: AnyTraining, folder: Path, trouble: Exception, step: int) -> Trainer:
    """The training from before the trouble, with smaller learning rates: from the newest checkpoint that is old enough,
    or from the start. Only checkpoints at multiples of `run.save_every` count: others depend on when the training was
    stopped, and the result must not. It is saved at once, so that a kill does not undo going back."""
    inputs, every = stage.inputs, stage.inputs.sections.run.save_every
    back = distributed.broadcast(checkpoint.newest(folder, step - LOOKBACK, every))
    checkpoint.forget(folder, after=-1 if back is None else back)
    if distributed.is_main():  # snapshots of steps that will run again
        for kept in kept_steps(inputs.out):
            if kept > (back or 0):
                remove(inputs.out / snapshot(kept))
    distributed.barrier()
    trainer = Trainer(stage)
    trainer.resume(folder)
    trainer.slow(trouble.bound.slows if isinstance(trouble, Unwell) else ())
    text = going_back(stage.name, trouble, step, trainer.step)
    inputs.say(text)
    if distributed.is_main():
        with (inputs.out / ROLLED_BACK).open("a") as file:
            file.write(text + "\n")
    trainer.save(folder)
    trainer.background.wait()
    return trainer


def _to_the_end(trainer: Trainer, folder: Path, signalled: list[int]) -> Facts:
    """Run the remaining steps and save the networks; returns facts. Raises Interrupted, after saving, for a signal."""
    stage, config, inputs = trainer.stage, trainer.config, trainer.inputs
    run = inputs.sections.run
    steps, alone = config.steps if trainer.networks.trains else 0, distributed.world_size() == 1
    begun, any_rank = time.monotonic() - trainer.seconds, distributed.SharedFlag()
    title, recipe = f"{inputs.variant}  {stage.name}", values_of(inputs.sections, stage.name)
    with (
        closing(trainer.background),
        closing(Figures(inputs.out, run.tracker, trainer.step, f"{inputs.variant}/{stage.name}", recipe)) as figures,
        tuned(),
        with_tf32(inputs.device, run.tf32),
        closing(batches(stage, trainer.key, trainer.step, steps, lambda: alone and bool(signalled))) as data,
        Bar(title, steps, "images", trainer.step) as bar,
    ):
        last, idle = stage.done(trainer.networks), ""
        while trainer.step < steps and not last:
            try:
                batch = next(data)
            except KeyboardInterrupt:
                if alone:  # a batch is late; several ranks would wait for it, to save in the same step
                    with suppress(FloatingPointError):  # trouble that is not saved now is found again on resuming
                        trainer.health.judge()
                        if figures.pending:  # as before every save: the next row begins with the next step
                            trainer.write_row(figures)
                        trainer.require_finite()
                        trainer.save(folder)
                        trainer.background.wait()
                        raise Interrupted from None
                raise
            last = trainer.advance(batch, figures)
            trainer.seconds = time.monotonic() - begun
            logs = trainer.step % run.log_every == 0 or last
            stops = any_rank(bool(signalled), now=last)
            saves = trainer.step % run.save_every == 0 or stops
            row = None
            if logs or saves:
                for warning in trainer.health.judge():
                    inputs.say(warning)
                row = trainer.write_row(figures)
            keeps = config.keeps(trainer.step, run.keep_every)
            if stops or saves or keeps or last:
                trainer.require_finite()
            if keeps:
                trainer.save_networks(inputs.out / snapshot(trainer.step))
            if stage.shows and run.picture_every > 0 and trainer.step % run.picture_every == 0:
                write_picture(trainer, figures)
            if stage.measured and run.measure_every > 0 and trainer.step % run.measure_every == 0:
                write_measured(trainer, figures)
            if saves and not last and not idle and (idle := _idle_adversary(trainer)):  # hours before the end, perhaps
                inputs.say(f"step {trainer.step}: {idle}")
            ends = last and stage.prolongs and run.keep_state and config.schedule == "constant"
            if stops or ends or (saves and not last):
                trainer.save(folder)
            if stops:
                trainer.background.wait()
                raise Interrupted
            bar.step(per_step=config.batch_size, note=losses(row))
        trainer.background.wait()
        trainer.save_networks(inputs.out)
    if told := _idle_adversary(trainer):
        inputs.say(told)
    facts = {"steps": trainer.step, "images_seen": trainer.images_seen, "seconds": round(trainer.seconds, 2)}
    return facts | ({"rolled_back": went_back(inputs.out)} if trainer.slowed else {})


def _idle_adversary(trainer: Trainer) -> str:
    """`idle_adversary` of the log so far; "" on other ranks than the first. A long log is read only where there is a
    discriminator to tell of."""
    there = distributed.is_main() and "discriminator" in trainer.networks.trains
    return idle_adversary(read_figures(trainer.inputs.out / "log.jsonl")) if there else ""
