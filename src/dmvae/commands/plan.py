"""`dmvae plan RECIPE` and `dmvae run RECIPE --dry-run`: what every stage needs on a machine, and what stands in its
way. Trains nothing."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import torch
from rich.table import Table
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from dmvae import checks, pipeline
from dmvae import config as configs
from dmvae.blank import build_tokenizer, latent_shape
from dmvae.claims import begun_anew
from dmvae.datasets import open_dataset
from dmvae.datasets.latents import Latents
from dmvae.encoders import EncoderConfig
from dmvae.hindrances import hindrances
from dmvae.idle import part
from dmvae.inputs import Blueprint
from dmvae.jobs import Job, plan
from dmvae.losses.discriminators import AdversarialConfig
from dmvae.prolonging import shorter
from dmvae.recipe import Recipe
from dmvae.registry import place_of
from dmvae.runtime import distributed
from dmvae.runtime.console import console, paragraph
from dmvae.runtime.files import held
from dmvae.runtime.words import counted, few
from dmvae.stages.editing import DRAWN
from dmvae.stages.elsewhere import is_linked
from dmvae.stages.modelled import KEPT
from dmvae.training.checkpoint import steps
from dmvae.training.counting import Cost, cost_of
from dmvae.training.loop import CHECKPOINTS
from dmvae.training.stage import AnyTraining, Stage, TrainingStage

GIB = 2**30
MARGIN = 1.1
"""Memory needed, as a multiple of the tensors': a GPU's context, libraries' work space and fragments come on top."""
CLASSES = 1000
"""Number of classes to plan with where the data are not here."""
FEW, OFTEN = 5000, 200
"""With fewer images and more epochs than these, the table says that fewer steps may do. (ImageNet generators: 800.)"""
LEGEND = (
    "memory of each rank: state is weights, moments and averages; step is activations and gradients; "
    "TFLOP are operations of a step, forward and backward; disk is the most that a stage's folder takes"
)


@dataclass(frozen=True)
class Machine:
    """What a recipe is planned for."""

    ranks: int
    """Processes, one per GPU."""
    memory: int
    """Bytes of each."""
    gpu: bool
    """Whether they are GPUs."""
    speed: float | None = None
    """Floating-point operations per second that each reaches; None where that is not known."""

    @classmethod
    def here(cls) -> Machine:
        """This machine, with the ranks that torchrun has started. Without a GPU, `memory` is all of the machine's."""
        ranks = distributed.launched()
        if torch.cuda.is_available():
            return cls(ranks, torch.cuda.get_device_properties(0).total_memory, True)
        return cls(ranks, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), False)

    def __str__(self) -> str:
        kind = "GPU" if self.gpu else "process"
        several = f"{kind}{'' if self.ranks == 1 else 's' if self.gpu else 'es'}"
        return f"{self.ranks} {several} of {self.memory / GIB:.0f} GiB"


def bytes_of(text: str) -> int:
    """ "80GB", "80 GiB" or a number of bytes. Raises ValueError for anything else."""
    found = re.fullmatch(r"(\d{1,15}(?:\.\d*)?|\.\d+)\s*(?:([KMGT])(I?)B?)?", text.strip().upper())
    if not found:
        raise ValueError(f"--memory: {text!r} is not an amount of memory such as 80GB or 80GiB")
    power = " KMGT".index(found[2] or " ")
    amount = int(float(found[1]) * (1024 if found[3] else 1000) ** power)
    if amount < 1e6:
        raise ValueError(f"--memory: {text} is {amount} bytes; give it with its unit, such as 80GB or 80GiB")
    return amount


def print_plan(recipes: dict[str, Recipe], machine: Machine, only: str | None = None) -> list[str]:
    """Print a table for each variant (one table for variants that train the same, also from several seeds, and have
    come as far), the sum for all, and what stands in the way; returns these obstacles. only: the stage that would run
    alone."""
    console.print(f"for {machine}")
    obstacles: dict[str, list[str]] = {}
    jobs = _jobs(recipes)
    everything = [job for of in jobs.values() for job in of]
    chosen = [job for job in everything if only in (None, job.stage.name)]
    for line in begun_anew(Path(next(iter(recipes.values())).run.dir), chosen):
        console.print(line)
    to_do: dict[str, tuple[int, float]] = {}
    alike: dict[str, str] = {}
    for variant, recipe in recipes.items():
        stages = [stage for stage in recipe.stages() if only in (None, stage.name)]
        items, classes, text, found = _data(recipe, stages)
        try:
            shape = "x".join(map(str, latent_shape(recipe)))
        except ValueError as error:  # without its tokenizer there is nothing to count
            for line in (*found, str(error)):
                obstacles.setdefault(line, []).append(variant)
            continue
        there = {job.stage: job for job in jobs.get(variant, ())}
        begun = {stage: _begun(there[stage]) if there else ("?", 0) for stage in stages}
        states = {stage: state for stage, (state, _) in begun.items()}
        trained, seedless = [of for of in stages if issubclass(of, TrainingStage)], replace(recipe, seed=0)
        first = alike.setdefault(repr([(_without_data(seedless, of.name), states[of]) for of in trained]), variant)
        about = f"{text}; latents {shape} (stride {build_tokenizer(recipe).stride})"
        same = f"trains the same as {first}" + (", from another seed" if recipe.seed != recipes[first].seed else "")
        console.print(f"\n{variant}: {about if first == variant else same}")
        found += _lacking(recipe, stages, machine, items is not None)
        costs: dict[type[Stage], Cost] = {}
        for stage in stages:
            if issubclass(stage, TrainingStage):
                try:
                    with console.status(f"counts a step of {stage.name}"):  # tens of seconds for large networks
                        cost = _cost(stage, recipe, classes, machine)
                    if cost.trained:  # a reference in closed form, or one without a teacher, takes no steps
                        costs[stage] = cost
                except ValueError as error:  # the stage itself would raise it; it may be listed already, with its place
                    found += [] if any(str(error) in line for line in found) else [f"{error}{place_of(error)}"]
                except AssertionError:  # a stage with problems that are listed may fail to build
                    if not any(line.startswith(f"{stage.name}.") for line in found):
                        raise
                except (DataDependentOutputException, DynamicOutputShapeException):
                    console.print(f"{stage.name}: not counted, because its step depends on the values of tensors")
        sizes = {stage: _disk(stage.name, recipe, costs.get(stage), items) for stage in stages}
        for stage, size in sizes.items():
            if states[stage] != "finished":
                name = there[stage].folder.name if there else _without_data(recipe, stage.name)
                to_do[name] = size, _seconds(stage, recipe, costs, machine, begun[stage][1])
        if first == variant:
            console.print(_stages(recipe, items, costs, states))
            console.print(_needs(recipe, machine, costs, sizes))
        found += _too_much(recipe, machine, costs)
        for line in dict.fromkeys(found):
            obstacles.setdefault(line, []).append(variant)
    if alike:
        console.print(f"\n{LEGEND}")
        console.print(_in_all(to_do.values()))
    for variant, line in hindrances([job for job in chosen if not job.finished], everything):
        obstacles.setdefault(line, []).append(variant)
    obstacles |= {line: list(recipes) for line in _disk_problems(recipes, sum(size for size, _ in to_do.values()))}
    for line, where in obstacles.items():
        paragraph(f"  in the way: {line}" + (f" ({few(where)})" if len(where) < len(recipes) else ""), 4)
    if not obstacles:
        console.print("  nothing stands in the way")
    return list(obstacles)


def _data(recipe: Recipe, stages: checks.Stages) -> tuple[int | None, int, str, list[str]]:
    """(training images or None where the data are not here, classes, a line about them, what is missing)."""
    try:
        train = open_dataset(recipe.data, "train")
        for split in {split for stage in stages for split in stage.splits}:
            open_dataset(recipe.data, split)
    except ValueError as error:
        told = f"{error}{place_of(error)}"
        return None, CLASSES, f"data {recipe.data.type} cannot be opened here", [told]
    return len(train), len(train.classes), pipeline.about_data(recipe).removeprefix("data: "), []


def _jobs(recipes: dict[str, Recipe]) -> dict[str, list[Job]]:
    """The jobs of each variant whose data are here."""
    found: dict[str, list[Job]] = {}
    for variant, recipe in recipes.items():
        with suppress(ValueError):  # `_data` reports it
            found[variant] = plan({variant: recipe}, Path(recipe.run.dir))
    return found


def _begun(job: Job) -> tuple[str, int]:
    """(the job's state, its steps that are behind it). An unfinished training that goes on from a checkpoint, of its
    own or of a shorter training, has its step as state; one that another process runs is "running"."""
    if job.finished:
        return job.state, 0
    own, found = steps(job.folder / CHECKPOINTS), shorter(job)
    step = own[-1] if own else found[1] if found else 0
    state = f"from step {step:,}" if step else job.state
    return "running" if held(job.folder) else state, step


def _without_data(recipe: Recipe, name: str) -> str:
    """A key in place of the stage's folder name, which needs the data. Variants share a stage if they have it and all
    stages before it in common; stages of latents alone do not depend on a decoder."""
    stages = {stage.name: stage for stage in recipe.stages()}
    before = list(stages.values())[: list(stages).index(name)]
    if stages[name].of_latents:
        before = [stage for stage in before if not stage.keeps_latents]
    upto = [configs.identity(recipe.section(stage)) for stage in (*before, stages[name])]
    parts = (recipe.data, recipe.autoencoder, recipe.pretrained, recipe.losses, recipe.latents)
    return repr([name, recipe.seed, *parts, *upto])


_counted: dict[str, Cost] = {}


def _cost(stage: type[AnyTraining], recipe: Recipe, classes: int, machine: Machine) -> Cost:
    """The cost of a step; a stage that variants share is counted once."""
    reads = recipe.read_by(stage)
    run = replace(recipe.run, dir="-")  # which changes no cost
    parts = (recipe.section(stage), recipe.losses, recipe.autoencoder, recipe.pretrained, run)
    key = repr([stage, reads, *parts, recipe.data.size, recipe.data.channels, classes, machine.ranks, machine.gpu])
    if key not in _counted:
        inputs = Blueprint(recipe, "", reads, classes)
        _counted[key] = cost_of(stage, inputs, ranks=machine.ranks, gpu=machine.gpu)
    return _counted[key]


def _memory(recipe: Recipe, cost: Cost, machine: Machine) -> tuple[float, float]:
    """(bytes of weights, moments and averages, bytes of a step beyond them) on each rank."""
    shard = 1 - 1 / machine.ranks if recipe.run.shard else 0.0
    return cost.weights + cost.state - shard * cost.spread, cost.working - shard * cost.spread_gradients


def _stages(recipe: Recipe, items: int | None, costs: dict[type[Stage], Cost], states: dict[type[Stage], str]) -> Table:
    table = Table("stage", "steps", "batch", "epochs", "trained", "frozen", "to do")
    often = False
    for stage, state in states.items():
        row, section = [""] * 5, recipe.section(stage)
        if stage in costs and issubclass(stage, TrainingStage):
            cost, seen = costs[stage], section.steps * section.batch_size
            row = [f"{section.steps:,}", str(section.batch_size), f"{seen / items:.1f}" if items else "?"]
            row += [f"{count / 1e6:.2f} M" for count in (cost.trained, cost.frozen)]
            often |= not stage.draws and items is not None and items < FEW and seen > OFTEN * items
        table.add_row(stage.name, *row, state)
    if often:
        table.caption = f"over {OFTEN} epochs of so few images: fewer steps may do as well, see docs/small_data.md"
    return table


def _needs(recipe: Recipe, machine: Machine, costs: dict[type[Stage], Cost], sizes: dict[type[Stage], int]) -> Table:
    timed = bool(machine.speed)
    table = Table("stage", "state", "step", "peak", "TFLOP", *["time"] * timed, "disk")
    total = 0.0
    for stage, size in sizes.items():
        row = [""] * (4 + timed)
        if (cost := costs.get(stage)) is not None:
            held, working = _memory(recipe, cost, machine)
            seconds = _seconds(stage, recipe, costs, machine)
            total += seconds
            row = [*map(_size, (held, working, held + working)), f"{cost.flops / 1e12:.3g}"]
            row += [_time(seconds)] * timed
        table.add_row(stage.name, *row, _size(size))
    if machine.speed and total:
        table.caption = f"{_time(total)} of training at {machine.speed / 1e12:.0f} TFLOP/s a GPU"
    return table


def _seconds(
    stage: type[Stage], recipe: Recipe, costs: dict[type[Stage], Cost], machine: Machine, begun: int = 0
) -> float:
    """Of training the stage from step `begun` on; 0 where that is not known."""
    cost = costs.get(stage)
    return cost.flops * (recipe.section(stage).steps - begun) / machine.speed if cost and machine.speed else 0.0


def _in_all(to_do: Collection[tuple[int, float]]) -> str:
    """A line about these (bytes on the disk, seconds) of stages."""
    disk, seconds = (sum(amounts) for amounts in zip(*to_do, strict=True)) if to_do else (0, 0.0)
    amounts = [f"{_time(seconds)} of training"] * bool(seconds) + [f"{_size(disk)} of disk"] * bool(disk)
    return f"to do, shared stages once: {', '.join([counted(len(to_do), 'stage'), *amounts])}"


def _size(amount: float) -> str:
    return f"{amount / GIB:.1f} GiB" if amount >= GIB / 10 else f"{amount / 2**20:.1f} MiB" if amount else ""


def _time(seconds: float) -> str:
    """With the largest unit that is not longer than the time."""
    units = ((86400, "days"), (3600, "h"), (60, "min"), (1, "s"), (0, "ms"))
    size, unit = next((size, unit) for size, unit in units if seconds >= size)
    return f"{seconds / (size or 1e-3):.1f} {unit}"


def _lacking(recipe: Recipe, stages: checks.Stages, machine: Machine, data: bool) -> Iterator[str]:
    places = [f"{stage.name}.{name}" for stage in stages for name in ("target", "alignment.target")]
    places += ["autoencoder.encoder"] if recipe.pretrained is None else []
    networks = {place: part(recipe, place) for place in places} | checks.adversaries(recipe, stages)
    for place, network in networks.items():
        if isinstance(network, EncoderConfig | AdversarialConfig):
            yield from (f"{place}: {told}" for told in network.missing())
    yield from checks.lacking(recipe, stages)
    if data:
        yield from checks.problems(recipe, stages, machine.ranks)
    else:
        yield from checks.run_problems(recipe, stages, machine.ranks)


def _too_much(recipe: Recipe, machine: Machine, costs: dict[type[Stage], Cost]) -> Iterator[str]:
    """Stages whose step does not fit the memory of a rank."""
    for stage, cost in costs.items():
        peak = MARGIN * sum(_memory(recipe, cost, machine))
        if peak > machine.memory:
            parts = ", run.accumulate" if getattr(stage, "takes_parts", False) else ""
            yield (
                f"memory: {stage.name} needs about {_size(peak)} on each rank, and a rank has {_size(machine.memory)}; "
                f"use more ranks{parts}, run.checkpointing, or run.shard"
            )


def _disk(name: str, recipe: Recipe, cost: Cost | None, items: int | None) -> int:
    """Bytes that a stage's folder comes to hold: networks, checkpoints (after stops two more), latents or images."""
    section = recipe.section(name)
    if cost is not None:  # two checkpoints and one that is written, snapshots, and the final networks
        held = 5 if getattr(section, "rollback", False) else 3  # two more are kept to roll back to
        every = recipe.run.keep_every
        kept = (section.steps // every if every else 0) + sum(not every or step % every > 0 for step in section.keep_at)
        return held * (cost.saved + cost.state) + (kept + 1) * cost.saved
    if name == "latents":
        if items is not None and is_linked(recipe):
            return 0
        size = 2 if recipe.latents.dtype == "float16" else 4
        if recipe.latents.drawn or part(recipe, "matching.noise") in DRAWN:
            size *= 3  # their posteriors' means and deviations too
        stored = min((n for n in (items, recipe.latents.stored) if n is not None), default=0)
        data = open_dataset(recipe.data, "train") if items is not None and recipe.data.are_latents else None
        mirrored = recipe.mirrored or (isinstance(data, Latents) and data.files.mirrored)
        return stored * (1 + mirrored) * prod(latent_shape(recipe)) * size
    if name == "sample":
        images = section.count * len(section.guidance) * recipe.data.channels * recipe.data.size**2
        return images + min(section.count, KEPT) * prod(latent_shape(recipe)) * 4
    return 0


def _disk_problems(recipes: dict[str, Recipe], needed: int) -> Iterator[str]:
    """An obstacle if the run folder's disk has too little room."""
    folder = Path(next(iter(recipes.values())).run.dir).absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needed > free:
        yield f"disk: the run may need {_size(needed)}, and {folder} has {_size(free) or 'nothing'} free; see run.dir"
