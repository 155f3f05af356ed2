"""The diffusers pipeline: class labels -> images, from a tokenizer, a velocity network and a scheduler."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from huggingface_hub import snapshot_download
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from dmvae import config as configs
from dmvae.config import Values
from dmvae.datasets.pixels import to_uint8
from dmvae.flow.guidance import Velocity, guided, require_channels, require_taught
from dmvae.flow.samplers import SamplerConfig, Sampling, time_grid
from dmvae.flow.solver import trajectory
from dmvae.models.base import Model, Tokenizer
from dmvae.models.dit import LightningDiT
from dmvae.models.dit_dh import DiTDH
from dmvae.models.sit import SiT
from dmvae.ranges import Guidance, SamplerSteps
from dmvae.runtime.done import require_intact
from dmvae.runtime.words import few
from dmvae.spelling import nearest
from dmvae.tokenizers.adapted import HUB_ID, AdaptedTokenizer, require_scaled
from dmvae.tokenizers.autoencoder import Autoencoder

if TYPE_CHECKING:
    from typing_extensions import Self

OUTPUTS = ("pil", "np", "pt", "latent")
HUB = ("revision", "cache_dir", "token", "force_download", "local_files_only")
"""Options of `from_pretrained` that are passed on to the hub's client."""


class DMVAEPipeline(DiffusionPipeline):
    """`DMVAEPipeline.from_pretrained(folder_or_hub_id)(class_labels=[3, "coat"]).images`.

    transformer: LightningDiT, SiT, DiTDH or another velocity network. vae: a tokenizer with `decode` and `denormalize`.
    scheduler: a diffusers scheduler for flow matching that takes `sigmas`, such as FlowMatchEulerDiscreteScheduler.
    id2label: label as text -> class name. guide: a weaker network that guides in place of the transformer without a
    label (autoguidance). extras: the files beside a loaded one's weights, as the model card, which are saved with it.

    Raises ValueError where the transformer's latents are not the tokenizer's, or nothing says how they are scaled.
    """

    __module__ = "dmvae"
    transformer: Model
    vae: Tokenizer
    scheduler: Any
    guide: Model | None
    config: Any
    model_cpu_offload_seq: Any = "transformer->guide->vae"
    _callback_tensor_inputs = ("latents",)
    # optional here, so that our own error, with the fix, comes when images are asked for
    _optional_components = ["scheduler", "guide"]  # noqa: RUF012

    def __init__(
        self,
        transformer: LightningDiT | SiT | DiTDH | Model,  # diffusers looks for these very classes, not for derived ones
        vae: Autoencoder | AdaptedTokenizer | Tokenizer,
        scheduler: Any = None,
        id2label: dict[str, str] | None = None,
        guide: LightningDiT | SiT | DiTDH | Model | None = None,
    ):
        super().__init__()
        require_scaled(vae)
        channels, side = transformer.config.in_channels, transformer.config.input_size
        if (channels, side) != (vae.config.latent_channels, vae.latent_size):
            raise ValueError(
                f"the transformer generates latents {channels}x{side}x{side}, the tokenizer's are "
                f"{vae.config.latent_channels}x{vae.latent_size}x{vae.latent_size}: they were not trained together"
            )
        self.register_modules(transformer=transformer, vae=vae, scheduler=scheduler, guide=guide)
        self.register_to_config(id2label=id2label or {})
        self.extras: dict[str, bytes] = {}

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: object) -> Self:
        """As diffusers' own, from a folder or a hub id, together with its `extras`. Raises ValueError where there is
        no pipeline, and for a run's pipeline whose files have changed."""
        if kwargs.get("device_map") is None:  # our models are built in memory, see dmvae.models.base
            kwargs = {"low_cpu_mem_usage": False} | kwargs
        folder = Path(pretrained_model_name_or_path)
        if not folder.is_dir() and not HUB_ID.fullmatch(os.fspath(pretrained_model_name_or_path)):
            raise ValueError(f"{folder}: no such folder (looked from {Path.cwd()}), and no hub id, which is OWNER/NAME")
        if not folder.is_dir():  # diffusers downloads only the files of classes that it knows, not ours
            asked: Any = {name: kwargs.pop(name) for name in HUB if name in kwargs}
            folder = Path(snapshot_download(os.fspath(pretrained_model_name_or_path), **asked))
        if not (folder / "model_index.json").is_file():
            near = folder / "pipeline"
            how = f"did you mean {near}?" if near.is_dir() else "give a folder such as RUN/VARIANT/pipeline"
            raise ValueError(f"{folder}: no pipeline is here: no model_index.json; {how}")
        pipeline = super().from_pretrained(str(require_intact(folder)), **kwargs)
        pipeline.extras = {str(file.relative_to(folder)): file.read_bytes() for file in _extras(folder)}
        return pipeline

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        super().save_pretrained(save_directory, *args, **kwargs)
        self._write_extras(save_directory)

    def _upload_folder(self, working_dir: str | os.PathLike[str], *args: Any, **kwargs: Any) -> object:
        self._write_extras(working_dir)  # replaces the empty card that diffusers has just written
        return super()._upload_folder(working_dir, *args, **kwargs)

    def _write_extras(self, folder: str | os.PathLike[str]) -> None:
        for name, content in self.extras.items():
            path = Path(folder) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    @property
    def classes(self) -> dict[int, str]:
        """Label -> class name, for the classes that had training images; {} if the pipeline has no names."""
        return {int(i): name for i, name in self.config["id2label"].items()}

    @property
    def labels(self) -> dict[str, int]:
        """Class name -> label."""
        return {name: label for label, name in self.classes.items()}

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | str | Sequence[int | str | None] | None,
        *,
        guidance_scale: float = 1.0,
        num_inference_steps: int = 50,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., dict[str, Tensor]] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        **sampling: object,
    ) -> ImagePipelineOutput | Any:  # a tuple if not `return_dict`
        """One image for every label.

        Args:
            class_labels: numbers or names; None is "no class".
            guidance_scale: the velocity is v_guide + scale * (v - v_guide); 1 is no guidance. v_guide is the guide's
                velocity, or the transformer's without a label.
            num_inference_steps: steps from noise to data.
            generator: one for the batch, or a list of one for each image: then no image depends on the others.
            latents: noise [n, C, H, W] to start from, instead of the generator's.
            output_type: "pil"; "np" [n, h, w, c] or "pt" [n, c, h, w] in [0, 1]; "latent": normalised latents.
            callback_on_step_end: called with (pipeline, step, timestep, {"latents": z}); if it returns "latents", these
                replace z. Setting `pipeline.interrupt` ends the loop. Only with method "euler".
            sampling: the fields of `dmvae.flow.samplers.SamplerConfig` but for `steps`: method, time_shift, last_step,
                guidance_interval (from, to), guidance_channels, ... With method "euler", the default,
                `pipeline.scheduler` takes the steps; the other samplers take their own.

        Raises:
            ValueError: a label that the network does not have, or none at all; a velocity that a run's generator was
                not taught (`label_dropout` 0 or 1); a number out of its range; an unknown option, or one that the
                method does not read; generators or noise for another number of labels; no fitting scheduler.
        """
        if output_type not in OUTPUTS:
            raise ValueError(f"output_type {output_type!r} is not one of {', '.join(OUTPUTS)}")
        unknown = set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs)
        if unknown:
            raise ValueError(f"callback_on_step_end_tensor_inputs: {sorted(unknown)} is not in ['latents']")
        settings = _settings(guidance_scale, num_inference_steps, sampling)
        self._require_stepper(settings, callback_on_step_end is not None)
        device, config = self._execution_device, self.transformer.config
        labels = torch.tensor(self._label_numbers(class_labels), device=device)
        _require_generators(generator, len(labels))
        shape = (len(labels), config.in_channels, config.input_size, config.input_size)
        normal = partial(randn_tensor, shape, generator=generator, device=device, dtype=torch.float32)
        if latents is None:
            z = normal()
        elif latents.shape != shape:
            raise ValueError(f"latents of shape {list(latents.shape)}, expected {list(shape)}")
        else:
            z = latents.to(device, torch.float32)
        velocity = self._guided(settings, labels)
        self.interrupt = False
        if settings.method == "euler":
            z = self._scheduled(velocity, z, labels, settings, callback_on_step_end)
        else:
            for state in self.progress_bar(trajectory(velocity, z, labels, settings, normal)):
                z = state
        images = z if output_type == "latent" else self._decode(z, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _scheduled(
        self,
        velocity: Velocity,
        z: Tensor,
        labels: Tensor,
        settings: Sampling,
        callback: Callable[..., dict[str, Tensor]] | None,
    ) -> Tensor:
        """The noise z carried to latents by the scheduler's steps."""
        self._set_times(settings, z.device)
        with self.progress_bar(total=settings.steps) as bar:
            for i, timestep in enumerate(self.scheduler.timesteps):
                t = (1 - self.scheduler.sigmas[i]).to(z.device).expand(len(z))
                # diffusers' velocity points from data to noise
                z = self.scheduler.step(-velocity(z, t, labels), timestep, z, return_dict=False)[0]
                if callback is not None:
                    z = (callback(self, i, timestep, {"latents": z}) or {}).get("latents", z)
                bar.update()
                if self.interrupt:
                    break
        return z

    def _require_stepper(self, settings: Sampling, called_back: bool) -> None:
        """Raise ValueError for what only the scheduler's steps have, where a sampler takes its own."""
        if settings.method == "euler":
            return
        if type(self.scheduler) not in (FlowMatchEulerDiscreteScheduler, type(None)):
            raise ValueError(
                f"method: {settings.method!r} takes its own steps, and this pipeline has another scheduler, "
                f"{type(self.scheduler).__name__}; leave method out, or set pipeline.scheduler = "
                "diffusers.FlowMatchEulerDiscreteScheduler()"
            )
        if called_back:
            raise ValueError(f"callback_on_step_end: only with method 'euler', not {settings.method!r}; leave it out")

    def _guided(self, settings: Sampling, labels: Tensor) -> Velocity:
        own = partial(self._velocity, self.transformer)
        guide = partial(self._velocity, self.guide) if self.guide is not None else None
        config, channels = self.transformer.config, settings.guidance_channels
        require_channels(channels, config.in_channels)
        none, dropped = labels == config.num_classes, config.get("_label_dropout")
        asked = {"labelled": not none.all(), "unlabelled": bool(none.any()), "guides_itself": guide is None}
        require_taught(dropped, settings.guidance, **asked)
        return guided(own, settings.guidance, config.num_classes, settings.guidance_interval, guide, channels)

    def _velocity(self, network: Model, z_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        return network(z_t.to(network.dtype), t, labels).float()

    def _set_times(self, settings: Sampling, device: torch.device) -> None:
        set_timesteps, name = getattr(self.scheduler, "set_timesteps", None), type(self.scheduler).__name__
        # those of flow matching alone have no prediction_type; the others would take the velocity for noise
        predicts = getattr(getattr(self.scheduler, "config", None), "prediction_type", "flow_prediction")
        what = None
        if set_timesteps is None or "sigmas" not in inspect.signature(set_timesteps).parameters:
            what = f"{name} takes no sigmas" if self.scheduler else "it has none"
        elif predicts != "flow_prediction":
            what = f"this {name} has prediction_type {predicts!r} where 'flow_prediction' is needed"
        if what:
            raise ValueError(
                f"this pipeline needs a flow-matching scheduler, and {what}; "
                "set pipeline.scheduler = diffusers.FlowMatchEulerDiscreteScheduler()"
            )
        times = time_grid(settings.steps, settings.time_shift)
        # some schedulers compute with numpy arrays
        self.scheduler.set_timesteps(sigmas=(1 - times[:-1]).numpy(), device=device)

    def _decode(self, z: Tensor, output_type: str) -> Any:
        x = self.vae.decode(self.vae.denormalize(z).to(self.vae.dtype)).sample.float()
        if output_type == "pil":
            return [to_pil_image(image) for image in to_uint8(x).cpu()]
        x = (x / 2 + 0.5).clamp(0, 1)
        return x.permute(0, 2, 3, 1).cpu().numpy() if output_type == "np" else x

    def _label_numbers(self, class_labels: object) -> list[int]:
        one = isinstance(class_labels, str) or getattr(class_labels, "ndim", None) == 0
        if one or not isinstance(class_labels, Iterable):
            class_labels = [class_labels]
        numbers = [self._label_number(label) for label in class_labels]
        if not numbers:
            raise ValueError("class_labels is empty: give one for every image, None for no class")
        return numbers

    def _label_number(self, label: object) -> int:
        count = self.transformer.config.num_classes
        if label is None:
            return count
        if isinstance(label, str):
            alike = [number for number, name in self.classes.items() if name == label]
            if not alike:
                raise ValueError(f"class_labels: no class is called {label!r}{nearest(label, self.labels)}")
            if len(alike) > 1:
                raise ValueError(
                    f"class_labels: {len(alike)} classes are called {label!r}: give a number, {few(alike)}"
                )
            return alike[0]
        if isinstance(label, Tensor):
            label = label.item()
        if not isinstance(label, Integral) or isinstance(label, bool):
            raise ValueError(f"class_labels: {label!r} is no integer, name or None")
        if not 0 <= int(label) < count:
            raise ValueError(f"class_labels: {label} is not a class of this model, which has 0 to {count - 1}")
        names = self.config["id2label"]
        if names and str(int(label)) not in names:  # not `classes`, which is built anew at each use
            learned = few(list(self.classes))
            raise ValueError(f"class_labels: class {label} had no training image; those that had are {learned}")
        return int(label)


def _settings(guidance_scale: object, num_inference_steps: object, sampling: Values) -> Sampling:
    """What a call asks for, checked. Raises ValueError that names an argument which is not right."""
    known = [field.name for field in fields(SamplerConfig) if field.name != "steps"]
    for name in sampling:
        if name not in known:
            raise ValueError(f"{name}: no such argument{nearest(name, known)}")
    scale = configs.typed(Guidance, guidance_scale, "guidance_scale")
    assert isinstance(scale, float)
    steps = configs.typed(SamplerSteps, num_inference_steps, "num_inference_steps")
    config = configs.read(SamplerConfig, sampling | {"steps": steps})
    config.require_read()
    return config.settings(scale)


def _require_generators(given: object, count: int) -> None:
    generators = given if isinstance(given, list) else [given]
    if not all(one is None or isinstance(one, torch.Generator) for one in generators):
        raise ValueError(f"generator: give torch.Generator().manual_seed(SEED), or a list of such, got {given!r}")
    if isinstance(given, list) and len(given) != count:
        raise ValueError(
            f"generator: {len(given)} of them for {count} class_labels; give one for each label, or one alone, not in "
            "a list, for all"
        )


def _extras(folder: Path) -> list[Path]:
    """The files that a run leaves beside a pipeline's parts: model card, recipe, the code for diffusers, pictures."""
    names = ("README.md", "recipe.yaml", "pipeline.py")
    files = [*(folder / name for name in names), *sorted(folder.glob("pictures/*.png"))]
    return [file for file in files if file.is_file()]


def build_pipeline(
    transformer: Model, vae: Tokenizer, classes: Mapping[int, str], guide: Model | None = None
) -> DMVAEPipeline:
    """The pipeline, with a scheduler that takes the same Euler steps as `dmvae.flow.solver`. classes: label -> name,
    for the labels that the transformer has learned."""
    id2label = {str(label): name for label, name in classes.items()}
    scheduler = FlowMatchEulerDiscreteScheduler()
    guide = guide.eval() if guide is not None else None
    return DMVAEPipeline(transformer.eval(), vae.eval(), scheduler, id2label, guide)
