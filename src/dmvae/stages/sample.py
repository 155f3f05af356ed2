"""Stage `sample`: images from the generator, the same number of every class or of classes drawn at random.

The noise of image i has its own seed (`image_seed`). So an image does not depend on the batch size or the number of
ranks, and the diffusers pipeline draws the same image from that seed. The first latents of the first guidance scale are
kept too, which `evaluate` compares with the data's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from safetensors import safe_open
from torch import Tensor, nn

from dmvae import config as configs
from dmvae.config import Values
from dmvae.datasets.mixed import balanced
from dmvae.datasets.pixels import to_uint8
from dmvae.flow.guidance import require_channels
from dmvae.flow.path import unlike
from dmvae.flow.samplers import Sampler, SamplerConfig, Sampling
from dmvae.flow.solver import trajectory
from dmvae.generators import Generator
from dmvae.generators import networks as networks_of_generators
from dmvae.inputs import Inputs, generator_of, kept_steps
from dmvae.latents.store import LatentSet
from dmvae.models.base import Tokenizer
from dmvae.models.velocity import VelocityModel
from dmvae.ranges import BatchSize, Count, Guidance
from dmvae.registry import find, is_ours, place_of
from dmvae.runtime import distributed
from dmvae.runtime.console import Bar
from dmvae.runtime.files import read_head, write_tensors
from dmvae.runtime.hashing import artifact_hash
from dmvae.runtime.precision import autocast, uses_bf16
from dmvae.runtime.random import Random
from dmvae.runtime.transfer import send
from dmvae.stages.generator import GeneratorTraining
from dmvae.stages.modelled import KEPT
from dmvae.training.preparing import compile_networks
from dmvae.training.stage import Facts, Stage, stage
from dmvae.training.starting import generator_in, of_other_data


@dataclass(frozen=True, kw_only=True)
class SampleConfig(SamplerConfig):
    """Sampling."""

    count: Count = 10000
    """Images per guidance scale, of the classes that `labels` says."""
    batch_size: BatchSize = 250
    """Images at a time, on each rank."""
    guidance: tuple[Guidance, ...] = (1.0,)
    """Guidance scales. Every scale gets a set of samples; tables rank by those of the first."""

    snapshot: Count | None = configs.added(None)
    """Step of the generator's snapshot to sample from, one of those that `generator.keep_at` or `run.keep_every` keep;
    null is the finished one."""
    guide: Count | Path | None = configs.added(None)
    """A weaker network that guides at scales other than 1, in place of the velocity without a label (autoguidance,
    arXiv 2406.02507): an earlier snapshot of the generator, by its step; or another generator trained on the same
    latents, by its folder. null is classifier-free guidance."""
    labels: Literal["equal", "random"] = configs.added("equal")
    """"equal": of every class the same number (the first classes get one more where it does not divide; fewer images
    than classes are of evenly spaced ones); "random": each image's class is drawn, all being as likely."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.guidance:
            raise ValueError("guidance needs at least one scale; 1.0 is no guidance")
        if len({f"{scale:g}" for scale in self.guidance}) < len(self.guidance):  # which names their folders
            raise ValueError(f"guidance: {list(self.guidance)} holds a scale twice")

    def identity(self, values: Values) -> Values:
        """With the content of a guide's files in place of their path, so that the path does not matter."""
        return values | {"guide": artifact_hash(self.guide)} if isinstance(self.guide, Path) else values


@stage("sample")
class SampleStage(Stage[SampleConfig]):
    Config = SampleConfig
    reads = ("latents", "generator")
    needs = ("generator",)

    @classmethod
    def code(cls, config: SampleConfig) -> tuple[type, ...]:
        return (cls, find(Sampler, config.method))

    def run(self) -> Facts:
        config, inputs = self.config, self.inputs
        autoencoder = inputs.encoding_tokenizer().to(inputs.device).eval()
        generator = self._generator(config.snapshot, "snapshot")
        guide = self._generator(config.guide, "guide") if config.guide is not None else None
        assert guide is None or isinstance(guide, VelocityModel)
        if inputs.sections.run.compile:  # not the decoder, which runs once where the generator runs in every step
            assert isinstance(generator, nn.Module)
            networks = {"generator": generator} if guide is None else {"generator": generator, "guide": guide}
            compile_networks(nn.ModuleDict(networks))
        # the generator has learned nothing of classes without images
        known = LatentSet(inputs.reads["latents"] / "latents").labels.unique()
        labels = known[drawn_labels(config, inputs.seed, len(known))]
        with Bar(f"{inputs.variant}  {self.name}", config.count * len(config.guidance), "images") as bar:
            for scale in config.guidance:
                folder = samples_folder(inputs.out, scale)
                folder.mkdir(parents=True, exist_ok=True)
                for number, start in enumerate(range(0, config.count, config.batch_size)):
                    chunk = labels[start : start + config.batch_size]
                    path = folder / f"samples-{number:05d}.safetensors"
                    if number % distributed.world_size() == distributed.rank() and read_head(path) is None:
                        seeds = [image_seed(inputs.seed, i) for i in range(start, start + len(chunk))]
                        told: list[Tensor] = []  # nothing of a generator that is no flow
                        settings = replace(config.settings(scale, guide), evaluated=told.append)
                        with autocast(inputs.device, inputs.sections.run.precision):
                            images, z = generate(generator, autoencoder, chunk, seeds, settings, inputs.device)
                        drawn = {"images": images, "labels": chunk, "seeds": torch.tensor(seeds)}
                        if told:
                            drawn["evaluations"] = told[0]
                        if scale == config.guidance[0] and start < KEPT:
                            drawn["latents"] = z
                        write_tensors(path, drawn)
                    bar.step(len(chunk))
        distributed.barrier()
        evaluations = {f"{scale:g}": _evaluations(samples_folder(inputs.out, scale)) for scale in config.guidance}
        bf16 = uses_bf16(inputs.device, inputs.sections.run.precision)
        return {"images": config.count, "bf16": bf16, "evaluations": evaluations}

    def _generator(self, of: int | Path | None, field: str) -> Generator:
        """The generator of that step, or in that folder, on the device."""
        name = generator_at(of, self.inputs, field)
        return self.inputs.generator("generator", name).to(self.inputs.device).eval()

    @classmethod
    def problems(cls, config: SampleConfig, inputs: Inputs, others: Mapping[str, object]) -> Iterator[str]:
        training, every = others["generator"], inputs.sections.run.keep_every
        assert isinstance(training, GeneratorTraining)
        for name, otherwise in (("snapshot", "for the finished generator"), ("guide", "for the one without a label")):
            step = getattr(config, name)
            if isinstance(step, int) and not (step <= training.steps and training.keeps(step, every)):
                yield (
                    f"sample.{name}: step {step} is none of those that are kept: generator.keep_at is "
                    f"{list(training.keep_at)}, run.keep_every {every}, generator.steps {training.steps}; add it to "
                    f"generator.keep_at, or set {name} to null {otherwise}"
                )
        if isinstance(config.guide, int) and config.guide >= (config.snapshot or training.steps):
            yield (
                f"sample.guide: step {config.guide} is no earlier than the network that it guides, of step "
                f"{config.snapshot or training.steps}; give an earlier one"
            )
        everywhere = config.guidance_interval == (0.0, 1.0) and config.guidance_channels is None
        if training.label_dropout == 1 and (set(config.guidance) != {0.0} or not everywhere):
            yield (
                "generator.label_dropout: 1 teaches no velocity with a label, and samples are asked for by label; give "
                "a share such as 0.1, or sample.guidance [0.0], at all times and in all channels"
            )
        flow = issubclass(training.model.network, VelocityModel)
        if config.guide is None and flow and training.label_dropout == 0 and set(config.guidance) != {1.0}:
            yield (
                f"sample.guidance: {list(config.guidance)} asks for velocities without a label, which "
                "generator.label_dropout: 0 teaches nobody; give that a share such as 0.1, guidance [1.0], or a "
                "sample.guide"
            )
        if config.guide is not None and set(config.guidance) == {1.0}:
            yield "sample.guide: a guidance scale of 1 asks nothing to guide; add others to sample.guidance"
        if config.guide is not None and not flow:
            yield f"sample.guide: {training.model.type!r} has no velocity to guide; set it to null"
        if isinstance(config.guide, Path) and (unfit := _unfit(config.guide, inputs)):
            yield f"sample.guide: {unfit}"
        if config.guidance_channels is not None:
            channels = inputs.latent_shape[0]
            try:
                require_channels(config.guidance_channels, channels)
            except ValueError as error:
                yield f"sample.{error}"
        if flow and not is_ours(find(Sampler, config.method)):  # a mistake would show after all training
            noise, labels = torch.zeros(2, *inputs.latent_shape), torch.zeros(2, dtype=torch.int64)
            try:
                for _ in trajectory(_still, noise, labels, config.settings(), lambda: torch.zeros_like(noise)):
                    pass
            except ValueError as error:
                yield f"sample.method: {error}{place_of(error)}"
            except RuntimeError:  # it may make tensors on the GPU where it will run; the stage will tell
                pass

    @classmethod
    def require(cls, config: SampleConfig, inputs: Inputs) -> None:
        if "generator" in inputs.reads:
            generator_at(config.snapshot, inputs, "snapshot")
            generator_at(config.guide, inputs, "guide")


def _still(z_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    """The velocity of what does not move, by which a sampler is tried."""
    return torch.zeros_like(z_t)


def _evaluations(folder: Path) -> float | None:
    """How often the velocity was asked for, for an image, in the mean over those in a folder; None where nobody tells:
    a generator that is no flow, or an earlier version."""
    counts = []
    for path in folder.glob("samples-*.safetensors"):
        with safe_open(path, "pt") as file:
            if "evaluations" not in file.keys():  # noqa: SIM118 - it is no mapping
                return None
            counts.append(file.get_tensor("evaluations"))
    return float(torch.cat(counts).double().mean())


def _unfit(folder: Path, inputs: Inputs) -> str:
    """Why the network in a folder cannot guide the recipe's generator, as far as its config and the headers of its
    weights tell; "" for no reason."""
    try:
        kind, config = generator_in(folder, networks_of_generators().values())
    except ValueError as error:
        return str(error)
    if not issubclass(kind, VelocityModel):
        return f"{folder}: a {kind.__name__} has no velocity to guide with; give a flow model's folder"
    channels, side, _ = inputs.latent_shape
    data = of_other_data(config, {"in_channels": channels, "input_size": side, "num_classes": inputs.num_classes})
    return f"{folder}: {data}; give a generator of the same latents and classes" if data else ""


def generator_at(of: int | Path | None, inputs: Inputs, field: str = "snapshot") -> str:
    """The place of a generator, below its stage's folder or anywhere: of the snapshot of a step, of the one in a
    folder, or for None of the finished one. Raises ValueError, naming `field`, where no snapshot of that step was
    kept."""
    name = generator_of(of)
    if isinstance(of, int) and not inputs.has("generator", name):
        folder = inputs.reads["generator"]
        kept = kept_steps(folder)
        there = f"there are those of {', '.join(map(str, kept))}" if kept else "there are none"
        raise ValueError(
            f"sample.{field}: the generator of step {of} was not kept, {there}; remove {folder} to train it anew "
            "with generator.keep_at"
        )
    return name


@torch.no_grad()  # not inference_mode: under it autocast keeps no weight that it has cast, and casts all in every step
def generate(
    generator: Generator,
    autoencoder: Tokenizer,
    labels: Tensor,
    seeds: list[int],
    settings: Sampling,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """(uint8 images [n, c, h, w], their latents [n, C, H, W], normalised, float32), on the CPU: one for each of labels
    [n] and seeds."""
    z = generate_latents(generator, labels, seeds, settings, device)
    images = autoencoder.decode(autoencoder.denormalize(z)).sample
    return to_uint8(images.float()).cpu().contiguous(), z.float().cpu().contiguous()


def generate_latents(
    generator: Generator, labels: Tensor, seeds: list[int], settings: Sampling, device: torch.device
) -> Tensor:
    """Normalised latents [n, C, H, W] on the device, one for each of labels [n] and seeds. Raises ValueError for a
    generator that returns another shape."""
    normal = normal_of(generator, seeds, device)
    noise = normal()
    found = generator.sample(noise, labels.to(device), settings, normal)
    if told := unlike(found, noise):
        raise ValueError(
            f"{type(generator).__name__} sampled {told} for {len(noise)} labels; give latents {list(noise.shape)}"
        )
    return found


def normal_of(generator: Generator, seeds: list[int], device: torch.device) -> Callable[[], Tensor]:
    """A function that draws new noise for a generator's latents at each call: [n, C, H, W] on the device, each image's
    from its own seed."""
    shape = (generator.config.in_channels, generator.config.input_size, generator.config.input_size)
    sources = [torch.Generator().manual_seed(seed) for seed in seeds]
    return lambda: send(torch.stack([torch.randn(shape, generator=source) for source in sources]), device)


def image_seed(seed: int, i: int) -> int:
    """The seed of image i of a recipe's samples: below 2^32, as torch's CPU generator uses 32 bits."""
    return (seed * 1_000_000 + i) % 2**32


def drawn_labels(config: SampleConfig, seed: int, num_classes: int) -> Tensor:
    """int64 [count], from 0 to num_classes - 1, as `config.labels` says. Random ones are drawn all at once, so that
    neither batches nor ranks change them."""
    if config.labels == "random":
        return Random.alone("sample labels", seed).integers(num_classes, config.count)
    return balanced(config.count, num_classes)


def labels_told(labels: str) -> str:
    """`sample.labels` as manifests write it: "balanced" for "equal", their word before there was a choice."""
    return "balanced" if labels == "equal" else labels


def samples_folder(stage_folder: Path, scale: float) -> Path:
    """Where the samples of one guidance scale lie."""
    return stage_folder / f"guidance-{scale:g}"
