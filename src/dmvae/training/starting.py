"""Weights that a generator, or a reference's teacher, starts from in place of random ones."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, cast

import torch
from safetensors import safe_open
from torch import Tensor

from dmvae import config as configs
from dmvae.config import Values
from dmvae.generators import GeneratorConfig
from dmvae.inputs import Inputs
from dmvae.latents.store import STATISTICS
from dmvae.losses.alignment.repa_e import FlowProjection, RepaE
from dmvae.models.artifact import M, artifact_class, require_weights
from dmvae.models.base import Model
from dmvae.ranges import Wait
from dmvae.runtime.done import require_intact
from dmvae.runtime.files import read_json
from dmvae.runtime.hashing import artifact_hash
from dmvae.runtime.words import counted
from dmvae.training.stage import TrainingConfig

OF_DATA = {"num_classes": "classes", "in_channels": "latent channels", "input_size": "latents along each side"}
"""Fields of every generator's config that follow from its data -> what they are called in messages."""
ALIGNMENT = "alignment"
"""The `start_from` that means the flow model of `tokenizer.alignment`."""


@dataclass(frozen=True, kw_only=True)
class Starting(TrainingConfig):
    """Fields of every stage whose network may start from weights that are there already."""

    steps: Wait
    """Training steps; 0 leaves the weights of `start_from` as they are."""
    start_from: Literal["alignment"] | Path | None = configs.added(None)
    """Folder of a generator or a teacher, from whose weights the network and its average start: that of another
    training (RUN/VARIANT/generator/generator), of a snapshot, or one that `dmvae import official-generator` wrote. Its
    `model`, latents' shape and number of classes have to be the same. Steps, warmup and optimizer begin anew. What the
    folder holds counts, not where it lies. "alignment": the flow model that trained along with the tokenizer
    (`tokenizer.alignment: {type: repa_e, ema: 0.9999}`). null: random weights."""
    start_partly: bool = configs.added(False)
    """With `start_from`: its latents' shape and number of classes may be others. Layers whose trained weights all have
    the same shape are taken, the others stay random, and fixed positions are the network's own; what was taken is
    printed. false: everything has to fit."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.start_from is None and self.steps == 0 and self.trains:
            raise ValueError("steps: 0 would leave random weights; give at least 1, or the weights in start_from")
        if self.start_from is None and self.start_partly:
            raise ValueError("start_partly: true needs weights to start from; give start_from, or leave it out")

    @property
    def trains(self) -> bool:
        """Whether the stage trains its network at all."""
        return True

    def identity(self, values: Values) -> Values:
        values = super().identity(values)
        return values | {"start_from": artifact_hash(self.start_from)} if isinstance(self.start_from, Path) else values


@dataclass(frozen=True)
class Given:
    """Weights to start from."""

    place: str
    """Where they are, for messages."""
    told: Values
    """The config of their network."""
    tensors: dict[str, Tensor]


def misfits(
    config: Starting, model: GeneratorConfig, stage: str, inputs: Inputs, others: Mapping[str, object]
) -> Iterator[str]:
    """Why the stage's network cannot start from these weights, a sentence each; called before any stage runs. others:
    the configs of the stages that it reads."""
    if config.start_from is None:
        return
    try:
        with torch.device("meta"):
            network = model.build(inputs.latent_shape, inputs.num_classes)
        if not isinstance(network, model.network):  # the stage itself refuses it
            return
        if isinstance(config.start_from, Path):
            given = _in_folder(config.start_from, network, values=False)
        else:
            given = _to_come(others.get("tokenizer"), network, stage, inputs)
        _fitting(given, network, config, model, stage)
    except ValueError as error:
        yield f"{stage}.start_from: {error}"


def start(network: Model, config: Starting, model: GeneratorConfig, stage: str, inputs: Inputs) -> None:
    """Load the weights of `start_from`, if it is given, into the network that `model` built. A training that resumes
    then replaces them by its checkpoint's. Raises ValueError for weights that do not fit."""
    if config.start_from is None or not inputs.weights:
        return
    try:
        if isinstance(config.start_from, Path):
            given = _in_folder(config.start_from, network, values=True)
        else:
            given = _along(inputs)
        taken = _fitting(given, network, config, model, stage)
    except ValueError as error:
        raise ValueError(f"{stage}.start_from: {error}") from error
    network.load_state_dict(network.state_dict() | taken)
    if config.start_partly:
        trained = {name: p.numel() for name, p in network.named_parameters() if p.requires_grad}
        new = [name for name in trained if name not in taken]
        share = f"{sum(trained[name] for name in trained.keys() & taken):,} of {sum(trained.values()):,} parameters"
        inputs.say(f"starts with {share} from {given.place}; random: {', '.join(new) or 'none'}")


def generator_in(folder: Path, known: Iterable[type[M]]) -> tuple[type[M], Values]:
    """Class and config of the generator in a folder, one of the `known` classes. Raises ValueError where there is none,
    or where its config, its weight files' headers or a finished stage's checksums show damage."""
    kind = artifact_class(require_intact(folder), known, "generator")
    require_weights(folder)
    return kind, read_json(folder / "config.json", dict)


def of_other_data(told: Values, own: Mapping[str, object]) -> str:
    """In words, how the data of a generator with the config `told` differ from `own`; "" where they do not."""
    differ = [
        f"{told.get(name)} {what} (here {own[name]})" for name, what in OF_DATA.items() if told.get(name) != own[name]
    ]
    return f"it was trained for {', '.join(differ)}" if differ else ""


def _in_folder(folder: Path, network: Model, *, values: bool) -> Given:
    """The generator in the folder, of the network's class; without `values`, only its tensors' shapes, on the meta
    device. Raises ValueError where there is none, or its files are damaged."""
    _, config = generator_in(folder, [type(network)])
    return Given(str(folder), config, _tensors(folder, values))


def _tensors(folder: Path, values: bool) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for file in (file for file in sorted(folder.glob("*.safetensors")) if "." not in file.stem):
        with safe_open(file, "pt") as held:
            for name in held.keys():  # noqa: SIM118  # not a mapping
                shape = held.get_slice(name).get_shape()
                found[name] = held.get_tensor(name) if values else torch.empty(shape, device="meta")
    if not found:
        raise ValueError(f"{folder}: its weights are no .safetensors; load them in diffusers and save them again")
    return found


def _to_come(tokenizer: object, network: Model, stage: str, inputs: Inputs) -> Given:
    """What the stage `tokenizer`, with that config, will keep of its alignment, without values. Raises ValueError where
    it keeps nothing, or a network of another class."""
    alignment = getattr(tokenizer, "alignment", None)
    if not (isinstance(alignment, RepaE) and alignment.ema is not None):
        raise ValueError(
            "alignment: no flow model trains along with the tokenizer and is kept; set tokenizer.alignment: "
            "{type: repa_e, ema: 0.9999}, or name a generator's folder"
        )
    with torch.device("meta"):
        flow = alignment.model.build(inputs.latent_shape, inputs.num_classes)
    if type(flow) is not type(network):
        raise ValueError(f"alignment: its flow model is of type {alignment.model.type}; give {stage}.model that type")
    return Given("tokenizer.alignment", dict(flow.config), flow.state_dict())


def _along(inputs: Inputs) -> Given:
    """The flow model that the stage `tokenizer` kept. Prints how far its last batches of latents are from those here,
    where these are stored: it saw latents normalised by each batch, so it fits where both are normalised alike."""
    folder = inputs.reads["tokenizer"] / "projection"
    config = generator_in(folder, [FlowProjection])[1]
    tensors = _tensors(folder, values=True)
    if "latents" in inputs.reads:
        here = inputs.tensors("latents", f"latents/{STATISTICS}")
        # batch norm's averages begin at 0 and 1, which have this share of them still (its momentum is 0.1)
        start = 0.9 ** int(tensors["norm.num_batches_tracked"])
        mean = tensors["norm.running_mean"] / (1 - start)
        std = ((tensors["norm.running_var"] - start) / (1 - start)).clamp_min(1e-12).sqrt()
        away = ((here["mean"] - mean) / std).abs().max()
        wider = (here["std"] / std).log().abs().max().exp() - 1
        inputs.say(
            "starts from the flow model of tokenizer.alignment; latents of a channel differ from those of its last "
            f"batches by at most {away:.2f} standard deviations in the mean, and {wider:.0%} in the standard deviation"
        )
    prefix = "flow."
    flow = {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    return Given("tokenizer.alignment", cast("Values", config["network"]), flow)


def _fitting(given: Given, network: Model, config: Starting, model: GeneratorConfig, stage: str) -> dict[str, Tensor]:
    """The tensors that the network takes: all, or with `start_partly` those that fit. Raises ValueError that names the
    place, the tensors, and what to set, where they do not fit."""
    usual = {name: p.default for name, p in inspect.signature(type(network).__init__).parameters.items()}
    told: Values = {name: usual[name] for name in network.config if name in usual} | given.told
    own = {name: configs.plain_value(value) for name, value in network.config.items()}
    differ = {name: value for name, value in told.items() if not name.startswith("_") and own.get(name, value) != value}
    wrong, taken = list(_unlike(given.tensors, network.state_dict())), given.tensors
    if config.start_partly:
        wrong, taken = [], _layers(given.tensors, network)
        told |= {name: own[name] for name in OF_DATA}
        differ = {name: value for name, value in differ.items() if name not in OF_DATA}
    if wrong or differ:
        which = f" ({'; '.join(wrong)})" if wrong else ""
        how = "; ".join(_mended(differ, told, own, model, stage))
        raise ValueError(f"{given.place}: its weights do not fit this {stage}.model{which}{how and f': {how}'}")
    if not taken:
        raise ValueError(f"{given.place}: no layer of it fits this {stage}.model; leave start_from out")
    return taken


def _layers(found: Mapping[str, Tensor], network: Model) -> dict[str, Tensor]:
    """The tensors of layers that fit whole: a bias means nothing beside another weight. What does not train is taken
    where it has the same shape: the frequencies of DiT-DH's times are drawn, and the layers behind them know no others.
    Positions follow from the shape."""
    trained = {name: p.shape for name, p in network.named_parameters() if p.requires_grad}
    fits = {name for name, shape in trained.items() if name in found and found[name].shape == shape}
    broken = {name.rpartition(".")[0] for name in trained.keys() - fits}
    taken = {name: found[name] for name in trained if name in fits and name.rpartition(".")[0] not in broken}
    fixed = {name: p.shape for name, p in network.named_parameters() if not p.requires_grad}
    same = {name: found[name] for name, shape in fixed.items() if name in found and found[name].shape == shape}
    return taken and taken | same


def _unlike(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> Iterator[str]:
    """How tensors differ from those that are wanted: for each way, their number and the first two names."""
    ways = {
        "missing": [name for name in wanted if name not in found],
        "unknown": [name for name in found if name not in wanted],
        "of another shape": [
            f"{name} {list(found[name].shape)}, here {list(wanted[name].shape)}"
            for name in wanted
            if name in found and found[name].shape != wanted[name].shape
        ],
    }
    for way, names in ways.items():
        if names:
            yield f"{counted(len(names), 'tensor')} {way}, such as {' and '.join(names[:2])}"


def _mended(
    differ: Values, told: Values, own: Mapping[str, object], model: GeneratorConfig, stage: str
) -> Iterator[str]:
    """What the user has to change so that the network has the config `told`. differ: the values in which it differs."""
    if data := of_other_data(told, own):
        yield f"{data}; use such data and such a tokenizer, or set {stage}.start_partly: true"
    known = [field.name for field in fields(model)]
    if fixed := [name for name in differ if name not in (*known, *OF_DATA)]:
        yield f"no field sets {', '.join(f'{name} {differ[name]} (here {own[name]})' for name in fixed)}"
    if differ.keys() & known:
        values: Values = {"type": model.type}
        if getattr(model, "size", None) is not None:  # `size` would override some of these
            values["size"] = None
        values |= {name: told[name] for name in known if name in told}
        yield f"set {stage}.model: {{{', '.join(f'{k}: {configs.written(v)}' for k, v in values.items())}}}"
