"""Weights that a generator, or a reference's teacher, starts from in place of random ones."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from dmvae import config as configs
from dmvae.config import Values
from dmvae.generators import GeneratorConfig
from dmvae.inputs import Inputs
from dmvae.models.artifact import M, artifact_class, require_weights
from dmvae.models.base import Model
from dmvae.runtime.done import require_intact
from dmvae.runtime.files import read_json
from dmvae.runtime.hashing import artifact_hash
from dmvae.runtime.words import counted
from dmvae.training.stage import TrainingConfig

OF_DATA = {"num_classes": "classes", "in_channels": "latent channels", "input_size": "latents along each side"}
"""Fields of every generator's config that follow from its data -> what they are called in messages."""


@dataclass(frozen=True, kw_only=True)
class Starting(TrainingConfig):
    """Fields of every stage whose network may start from weights that are there already."""

    start_from: Path | None = configs.added(None)
    """Folder of a generator or a teacher, from whose weights the network and its average start: that of another
    training (RUN/VARIANT/generator/generator), of a snapshot, or one that `dmvae import official-generator` wrote. Its
    `model`, latents' shape and number of classes have to be the same. Steps, warmup and optimizer begin anew. What the
    folder holds counts, not where it lies. null: random weights."""

    def identity(self, values: Values) -> Values:
        values = super().identity(values)
        return values if self.start_from is None else values | {"start_from": artifact_hash(self.start_from)}


def misfits(config: Starting, model: GeneratorConfig, stage: str, inputs: Inputs) -> Iterator[str]:
    """Why the stage's network cannot start from these weights, a sentence each; called before any stage runs."""
    if config.start_from is None:
        return
    try:
        with torch.device("meta"):
            network = model.build(inputs.latent_shape, inputs.num_classes)
        if isinstance(network, model.network):  # otherwise the stage itself refuses it
            _tensors(config.start_from, network, model, stage, values=False)
    except ValueError as error:
        yield str(error)


def start(network: Model, config: Starting, model: GeneratorConfig, stage: str, inputs: Inputs) -> None:
    """Load the weights of `start_from`, if it is given, into the network that `model` built. A training that resumes
    then replaces them by its checkpoint's. Raises ValueError for weights that do not fit."""
    if config.start_from is not None and inputs.weights:
        network.load_state_dict(_tensors(config.start_from, network, model, stage, values=True))


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


def _tensors(folder: Path, network: Model, model: GeneratorConfig, stage: str, *, values: bool) -> dict[str, Tensor]:
    """The weights in the folder, which must fit this network; without `values`, only their shapes, on the meta device.
    Raises ValueError that names the place, the tensors, and what to set."""
    try:
        _, config = generator_in(folder, [type(network)])
        found: dict[str, Tensor] = {}
        for file in (file for file in sorted(folder.glob("*.safetensors")) if "." not in file.stem):
            with safe_open(file, "pt") as held:
                for name in held.keys():  # noqa: SIM118  # not a mapping
                    shape = held.get_slice(name).get_shape()
                    found[name] = held.get_tensor(name) if values else torch.empty(shape, device="meta")
        if not found:
            raise ValueError(f"{folder}: its weights are no .safetensors; load them in diffusers and save them again")
        usual = {name: p.default for name, p in inspect.signature(type(network).__init__).parameters.items()}
        told: Values = {name: usual[name] for name in network.config if name in usual} | config
        own = {name: configs.plain_value(value) for name, value in network.config.items()}
        differ = {
            name: value for name, value in told.items() if not name.startswith("_") and own.get(name, value) != value
        }
        wrong = list(_unlike(found, network.state_dict()))
        if wrong or differ.keys() & OF_DATA:
            which = f" ({'; '.join(wrong)})" if wrong else ""
            how = "; ".join(_mended(differ, told, own, model, stage))
            raise ValueError(f"{folder}: its weights do not fit this {stage}.model{which}{how and f': {how}'}")
    except ValueError as error:
        raise ValueError(f"{stage}.start_from: {error}") from error
    return found


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
        yield f"{data}; use such data and such a tokenizer"
    known = [field.name for field in fields(model)]
    if fixed := [name for name in differ if name not in (*known, *OF_DATA)]:
        yield f"no field sets {', '.join(f'{name} {differ[name]} (here {own[name]})' for name in fixed)}"
    if differ.keys() & known:
        values = {name: told[name] for name in known if name in told}
        if getattr(model, "size", None) is not None:  # `size` would override some of these
            values = {"size": None} | values
        yield f"set {stage}.model: {{{', '.join(f'{k}: {configs.written(v)}' for k, v in values.items())}}}"
