"""Problems of a recipe that can be found before any stage runs: a run stops at the first, a dry run lists them all."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from dmvae.blank import build_autoencoder, first_tokenizer
from dmvae.datasets import Split, open_dataset
from dmvae.datasets.items import described, require_items
from dmvae.evaluation.other_figures import require_apart
from dmvae.generators import networks as networks_of_generators
from dmvae.generators import require_works
from dmvae.inputs import Blueprint, Inputs
from dmvae.losses.discriminators import AdversarialConfig
from dmvae.models.base import Model
from dmvae.models.discriminator import learned
from dmvae.recipe import Recipe
from dmvae.registry import is_ours, place_of
from dmvae.runtime import distributed
from dmvae.runtime.words import counted
from dmvae.spelling import nearest
from dmvae.stages.generator import GeneratorTraining
from dmvae.tokenizers.adapted import adapt
from dmvae.training.data import require_batch, require_split
from dmvae.training.preparing import checkpoint_activations
from dmvae.training.stage import AnyStage, AnyTraining, Buildable, Networks, TrainingStage

Stages = Sequence[AnyStage]
_passed: set[tuple[object, ...]] = set()
"""Checks that have passed in this process: variants share parts, and building one takes up to a second."""


def lacking(recipe: Recipe, stages: Stages) -> Iterator[str]:
    """Packages and weights that these stages need and that are missing on this machine."""
    parts: list[tuple[str, Buildable]] = []
    if any(stage.trains_decoder for stage in stages) and recipe.losses.perceptual is not None:
        parts.append(("losses.perceptual", recipe.losses.perceptual))
    for stage in stages:
        parts += stage.parts(recipe.section(stage), recipe)
    for place, part in parts:
        yield from _complaint(place, _build, part, by=[part])
    if recipe.run.tracker == "wandb" and importlib.util.find_spec("wandb") is None:
        yield 'run.tracker: wandb is not installed: pip install "dmvae[wandb]"'


def adversaries(recipe: Recipe, stages: Stages) -> dict[str, AdversarialConfig]:
    """Place in the recipe -> adversary that these stages use; those of weight 0 are left out."""
    found = {}
    for stage in stages:
        if stage.trains_decoder:
            own = getattr(recipe.section(stage), "adversarial", None)
            found["losses" if own is None else stage.name] = recipe.losses.adversarial if own is None else own
    return {f"{section}.adversarial": adversary for section, adversary in found.items() if adversary.weight > 0}


def problems(recipe: Recipe, stages: Stages, ranks: int | None = None) -> Iterator[str]:
    """Settings of these stages that do not fit the data, the latents or the number of ranks (default: that of this
    process's group). The data set must be available."""
    yield from run_problems(recipe, stages, ranks or distributed.world_size())
    yield from _place_problems(recipe)
    yield from _complaint("", networks_of_generators)
    yield from _complaint("", require_apart)
    train = open_dataset(recipe.data, "train")
    n, classes = len(train), len(train.classes)
    images = (recipe.data.size, recipe.data.channels)
    inputs = Inputs(recipe, "", Path(), {}, torch.device("cpu"))
    for place, adversary in adversaries(recipe, stages).items():
        yield from _complaint(place, _try_discriminator, inputs, adversary, by=[images, adversary])
    if recipe.autoencoder is not None:
        parts = [images, recipe.autoencoder, recipe.autoencoder.encoder, recipe.autoencoder.decoder]
        yield from _complaint("autoencoder", _try_autoencoder, recipe, by=parts)
    if recipe.pretrained is not None and not is_ours(type(recipe.pretrained)):
        yield from _complaint("pretrained", _try_codec, recipe, by=[images, recipe.pretrained])
    if recipe.pretrained is not None and any(stage.trains_decoder for stage in stages):
        untrainable = list(_complaint("", _try_start, recipe))
        yield from untrainable
        if untrainable:  # the stages' own checks need that tokenizer
            return
    for split in dict.fromkeys(split for stage in stages for split in stage.splits):
        yield from _complaint("data", _try_data, recipe, split)
    for stage in stages:
        section = recipe.section(stage)
        if issubclass(stage, TrainingStage) and not stage.draws:
            yield from _complaint("", require_batch, stage.name, section.batch_size, stage.items(recipe, n))
        others = recipe.read_by(stage)
        found = list(stage.problems(section, inputs, others))
        yield from found
        if issubclass(stage, TrainingStage) and not found:  # networks may assume that these checks passed
            parts = [stage, section, others, recipe.data, recipe.autoencoder, recipe.pretrained, recipe.losses]
            found = list(_complaint("", blank_networks, recipe, stage, classes, by=parts))
            yield from found
            if isinstance(section, GeneratorTraining) and not found and not is_ours(section.model.network):
                parts = [section.model, recipe.data, recipe.autoencoder, recipe.pretrained]
                shape = inputs.latent_shape
                yield from _complaint("generator.model", require_works, section.model, shape, classes, by=parts)


def run_problems(recipe: Recipe, stages: Stages, ranks: int) -> Iterator[str]:
    """What is wrong with `run` and the batches on that many ranks; needs no data."""
    run = recipe.run
    if run.shard and ranks == 1:
        yield (
            "run.shard: a single rank has no other to share its weights with; start several "
            "(torchrun --nproc-per-node N -m dmvae run ...), or leave it out"
        )
    if run.accumulate > 1 and not any(issubclass(s, TrainingStage) and s.takes_parts for s in recipe.stages()):
        yield "run.accumulate: no stage of this recipe takes its batches in parts; see run.checkpointing"
    for stage in stages:
        section = recipe.section(stage)
        # a reference in closed form has no teacher, and a generator of 0 steps is taken as it is
        if issubclass(stage, TrainingStage) and section.steps > 0 and getattr(section, "trains", True):
            parts = run.accumulate if stage.takes_parts else 1
            split = {"batch_size": (section.batch_size, parts), "decoded": (getattr(section, "decoded", None), 1)}
            for name, (images, into) in split.items():
                if images is not None:
                    yield from _complaint("", require_split, f"{stage.name}.{name}", images, ranks, into)
    if run.checkpointing:
        yield from _checkpointing_problems(recipe)


def _place_problems(recipe: Recipe) -> Iterator[str]:
    place = Path(os.path.realpath(recipe.run.dir))  # unlike Path.resolve, it does not raise for a link to itself
    for folder in recipe.data.image_folders():
        if place.is_relative_to(folder.resolve()):
            inside = place.relative_to(folder.resolve()).parts
            if not any(part.startswith(".") for part in inside):  # data sets skip hidden folders
                yield (
                    f"run.dir: {recipe.run.dir} is inside the data's folder {folder}, and the next run would read this "
                    "run's pictures as data: give --run_dir another place"
                )


def _checkpointing_problems(recipe: Recipe) -> Iterator[str]:
    known: dict[str, None] = {}
    for stage in recipe.stages():
        if issubclass(stage, TrainingStage):
            networks = blank_networks(recipe, stage, 2)
            known |= dict.fromkeys(name for name, _ in networks.named_children())
            yield from _complaint(stage.name, checkpoint_activations, networks, recipe.run.checkpointing)
    for name in recipe.run.checkpointing:
        if name not in known:
            yield f"run.checkpointing: no stage of this recipe trains a network {name!r}{nearest(name, known)}"


def blank_networks(recipe: Recipe, stage: type[AnyTraining], num_classes: int) -> Networks:
    """A stage's networks on the meta device. Raises ValueError where the stage refuses its section, or where what its
    `build` returned is not `Networks` whose trained parameters are all saved."""
    reads = recipe.read_by(stage)
    with torch.device("meta"):  # a quarter of the time that fake tensors take
        networks: Networks = stage(recipe.section(stage), Blueprint(recipe, "", reads, num_classes)).build()
        for wrong in _unlike_networks(networks):
            raise ValueError(f"stage {stage.name}: {wrong}")
    return networks


def _unlike_networks(networks: object) -> Iterator[str]:
    """What is wrong with what a stage's `build` returned: what trains must be saved, and saved so that it can be
    loaded."""
    if not isinstance(networks, Networks):
        yield f"build returned {described(networks)}; give Networks"
        return
    saved = networks.saved()
    held = {p for module in saved.values() for p in module.parameters()}
    for update, parameters in networks.trains.items():
        if not isinstance(parameters, list) or not all(isinstance(p, torch.nn.Parameter) for p in parameters):
            yield f"trains[{update!r}] is {described(parameters)}; give a list of parameters"
        elif not parameters:
            yield f"nothing trains in the update {update!r}: no parameter of it requires a gradient"
        elif loose := [p for p in parameters if p not in held]:
            yield (
                f"{counted(len(loose), 'parameter')} of the update {update!r} would not be saved: put them into a "
                "module that is an attribute of Networks"
            )
    known = {name for name, _ in networks.named_children()}
    for what, names, there in (
        ("learning_rates", networks.learning_rates, set(networks.trains)),
        ("averaged", networks.averaged, known),
        ("decays", networks.decays, set(networks.averaged)),
        ("remembers", networks.remembers, known),
    ):
        for name in (name for name in names if name not in there):
            yield f"{what} names {name!r}, which does not exist{nearest(name, there)}"
    for name, module in saved.items():
        if isinstance(module, Model) and not is_ours(type(module)):
            yield from _not_remade(name, module)


def _not_remade(name: str, module: Model) -> Iterator[str]:
    """Why a plugin's network, saved to a folder, could not be loaded again as it is."""
    fix = "; put @register_to_config above the __init__ of its class, and give it arguments that JSON can hold"
    try:
        module.to_json_string()
        again = type(module).from_config(module.config)
    except Exception as error:
        yield f"{name}, a {type(module).__name__}, cannot be made from its config ({error}){fix}"
        return
    shapes, others = ({k: v.shape for k, v in m.state_dict().items()} for m in (module, again))
    if shapes != others:
        yield f"{name}: a {type(module).__name__} made from its config has other names or shapes of weights{fix}"


def _try_discriminator(inputs: Inputs, adversary: AdversarialConfig) -> None:
    """Raise ValueError where the adversary builds no discriminator of the recipe's images, or lacks its weights."""
    data = inputs.data
    if adversary.start_from is None and (told := adversary.absent()):
        raise ValueError(told)
    with torch.device("meta"):
        network = adversary.build(size=data.size, channels=data.channels)
        if not isinstance(network, adversary.network):
            wanted, told = adversary.network.__name__, type(network).__name__
            raise ValueError(f"{adversary.type!r}: build returned a {told}, no {wanted}")
        if not is_ours(type(network)):
            for wrong in _not_remade(adversary.type, network):
                raise ValueError(wrong)
        try:
            logits = network(torch.empty(2, data.channels, data.size, data.size))
        except (RuntimeError, TypeError, AssertionError) as error:
            raise ValueError(
                f"{adversary.type!r} cannot be run on images [n, {data.channels}, {data.size}, {data.size}]: {error}"
            ) from error
    if not isinstance(logits, torch.Tensor) or logits.numel() == 0 or not logits.is_floating_point():
        raise ValueError(
            f"{adversary.type!r} returns {described(logits)} for two images; give their logits, of any shape"
        )
    if adversary.start_from is not None:
        try:
            learned(adversary.start_from, network)
        except ValueError as error:
            raise ValueError(f"start_from: {error}") from error


def _try_autoencoder(recipe: Recipe) -> None:
    """Raise ValueError for an encoder that does not fit the images, and for an encoder or a decoder that returns
    another shape than it says."""
    data = recipe.data
    assert recipe.autoencoder is not None
    recipe.autoencoder.encoder.check(size=data.size)
    with torch.device("meta"):
        model = build_autoencoder(recipe)
        side = data.size // model.stride
        latents = torch.empty(2, model.config.latent_channels, side, side)
        pixels = torch.empty(2, data.channels, data.size, data.size)
        try:
            features = model.encoder(pixels)
            images = model.decoder(latents)
        except RuntimeError as error:  # torch's own, of shapes that do not fit together
            raise ValueError(f"it cannot be run on images of {data.size} pixels: {error}") from error
    for part, given in (("encoder", pixels), ("decoder", latents)):
        if given._version > 0:
            kind = getattr(recipe.autoencoder, part).type
            raise ValueError(
                f"{part}: {kind!r} changes its input in place, and the losses read that after it; make new tensors in "
                "its forward (x = 2 * x, not x *= 2), and no first layer with inplace=True"
            )
    if not is_ours(type(model.decoder)):
        _require_last_layer(recipe.autoencoder.decoder.type, model.decoder)
    for part, found, wanted in (
        ("encoder", features, (2, model.encoder.channels, side, side)),
        ("decoder", images, (2, data.channels, data.size, data.size)),
    ):
        _require_shape(f"{part}: {getattr(recipe.autoencoder, part).type!r}", found, wanted, "stride and channels")


def _try_codec(recipe: Recipe) -> None:
    """Raise ValueError for a finished tokenizer that does not take the recipe's images, or that returns other shapes
    than it says."""
    source, data = recipe.pretrained, recipe.data
    assert source is not None
    shape = (2, data.channels, data.size, data.size)

    def through() -> None:
        network = adapt(source, size=data.size, channels=data.channels, pretrained=False).network
        side, images = data.size // network.stride, torch.zeros(shape)
        latents = (2, network.latent_channels, side, side)
        _require_shape(f"{source.type!r}: encode", network.encode(images), latents, "sizes")
        if getattr(network, "has_spread", False):
            mean = network.posterior(images).mean
            _require_shape(f"{source.type!r}: posterior(images).mean", mean, latents, "sizes")
        _require_shape(f"{source.type!r}: decode", network.decode(torch.zeros(latents)), shape, "sizes")

    for device in ("meta", "cpu"):  # a network may ask for values, which meta tensors do not have
        try:
            with torch.device(device), torch.no_grad():
                return through()
        except ValueError:
            raise
        except Exception as error:
            if device == "cpu":
                told = f"({type(error).__name__}: {error})"
                raise ValueError(f"{source.type!r} cannot be run on images {list(shape)} {told}") from error


def _require_shape(what: str, found: object, wanted: tuple[int, ...], by: str) -> None:
    if not isinstance(found, torch.Tensor) or tuple(found.shape) != wanted:
        raise ValueError(f"{what} returns {described(found)}; its {by} say {list(wanted)}")


def _require_last_layer(kind: str, decoder: torch.nn.Module) -> None:
    last, names = getattr(decoder, "last_layer", None), dict(decoder.named_parameters(remove_duplicate=False))
    # safetensors cannot save a weight under two names
    twice = "last_layer" in names and sum(last is p for p in names.values()) > 1
    if twice or not isinstance(last, torch.Tensor) or not last.requires_grad:
        raise ValueError(
            f"decoder: {kind!r} needs a property last_layer (@property above it) that returns one of its weights, the "
            "one that makes the image"
        )


def _try_start(recipe: Recipe) -> None:
    """Raise ValueError for a finished tokenizer that cannot be trained further."""
    with torch.device("meta"):
        first_tokenizer(recipe, weights=False)


def _try_data(recipe: Recipe, split: Split) -> None:
    """Raise ValueError for a data set whose items are not what the recipe says."""
    named = tuple(open_dataset(recipe.data, "train").classes)
    if recipe.data.are_latents and split == "train":  # which were looked at as they were opened
        return
    require_items(recipe.data, open_dataset(recipe.data, split), split, named)


def _build(part: Buildable) -> None:
    part.build()


def _complaint(
    place: str, check: Callable[..., object], *given: object, by: Sequence[object] | None = None
) -> Iterator[str]:
    """The ValueError of check(*given) as a problem at a place of the recipe. by: what the result depends on; a check
    that has passed for parts of these classes and values is not repeated."""
    key = (check, *(part if isinstance(part, type) else (type(part), repr(part)) for part in by or ()))
    if by and key in _passed:
        return
    try:
        check(*given)
        _passed.add(key)
    except ValueError as error:
        text = f"{error}{place_of(error)}"
        yield f"{place}: {text}" if place else text
