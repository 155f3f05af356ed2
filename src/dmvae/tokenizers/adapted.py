"""A finished tokenizer of any origin with the interface and the artifact format of our own.

Shapes: n images, c channels, h w height and width, C latent channels, H W = h / stride, w / stride.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn

from dmvae import config as configs
from dmvae.config import Values
from dmvae.models.artifact import artifact_class, load_strictly
from dmvae.models.base import DecoderOutput, EncoderOutput, Parts, PointDistribution, Tokenizer
from dmvae.registry import require_members
from dmvae.runtime.done import require_intact
from dmvae.runtime.files import read_json
from dmvae.runtime.hashing import digest
from dmvae.runtime.hub import FILE, WEIGHTS
from dmvae.runtime.precision import full_precision, without_tf32
from dmvae.tokenizers import Codec, Normalisation, TokenizerSource
from dmvae.tokenizers.autoencoder import Autoencoder
from dmvae.tokenizers.network import own_size


def spread_of(tokenizer: Tokenizer) -> str:
    """A hash of how the tokenizer draws its latents, which its weights do not show; "" where it gives means."""
    fixed = tokenizer.config.get("fixed_std")
    return digest("drawn", None if fixed is None else list(fixed)) if tokenizer.drawn else ""


class AdaptedTokenizer(Tokenizer):
    """`model.decode(model.encode(x).latents).sample`, as our Autoencoder.

    source: a resolved TokenizerSource as a mapping. image_size, in_channels: of the images. latent_channels: always the
    network's own. scaling_factor: None before `set_statistics`. The artifact holds the foreign network's config and
    weights: it needs no other file.
    """

    __module__ = "dmvae"  # the name under which artifacts find the class
    network: Codec

    @register_to_config
    def __init__(
        self,
        *,
        source: Values,
        image_size: int = 32,
        in_channels: int = 3,
        latent_channels: int | None = None,
        scaling_factor: float | None = None,
        shift_factor: float = 0.0,
        drawn: bool = False,
        fixed_std: list[float] | None = None,
        whitened: bool = False,
    ):
        super().__init__()
        known = configs.read(TokenizerSource, dict(source), "source")
        self.network, self.source_scaled = _built(known, image_size, in_channels), known.scaled
        inside = getattr(getattr(self.network, "model", None), "drawn", False)
        self.register_to_config(latent_channels=self.network.latent_channels, drawn=drawn or inside)
        self.register_statistics(self.network.latent_channels)

    @property
    def stride(self) -> int:
        """Image pixels per latent, along each side."""
        return self.network.stride

    @property
    def unscaled(self) -> bool:
        """Whether `set_statistics` was never called."""
        return self.config["scaling_factor"] is None

    @property
    def has_spread(self) -> bool:
        return self.spread is not None or self._network_spreads

    @property
    def _network_spreads(self) -> bool:
        return bool(getattr(self.network, "has_spread", False))

    def parts(self) -> Parts:
        find: Callable[[], Parts] | None = getattr(self.network, "parts", None)
        if find is None:
            raise ValueError(
                f"a tokenizer of type {self.config['source']['type']!r} can be used but not trained further: what its "
                "build returns has no parts(), see dmvae.tokenizers.Codec"
            )
        return find()

    def enable_slicing(self) -> None:
        """As the network's own class does it; also the three below. Raises ValueError for a class that cannot."""
        self._told("enable_slicing")

    def disable_slicing(self) -> None:
        self._told("disable_slicing")

    def enable_tiling(self) -> None:
        self._told("enable_tiling")

    def disable_tiling(self) -> None:
        self._told("disable_tiling")

    def _told(self, name: str) -> None:
        model = getattr(self.network, "model", None)
        known = getattr(model, name, None)
        if known is None:
            raise ValueError(f"{type(model or self.network).__name__} has no {name}")
        try:
            known()
        except NotImplementedError as error:  # since diffusers 0.42 every class has the method
            raise ValueError(str(error)) from error

    def as_diffusers(self) -> ModelMixin | None:
        """The network in its own class of diffusers, for code without this package, with the latents' statistics as its
        scaling_factor, and shift_factor where the class has one; before `set_statistics` with its own. None for a
        network that is not of diffusers.

        `(z - shift_factor) * scaling_factor` has mean 0 and standard deviation 1 over all channels together.
        """
        model = getattr(self.network, "model", None)
        if not isinstance(model, ModelMixin) or isinstance(model, Tokenizer):
            return None
        if self.unscaled:
            return model
        own: Values = {name: self.config[name] for name in ("scaling_factor", "shift_factor")}
        # Statistics per channel are of the untrained latents, and diffusers prefers them to the two.
        own |= dict.fromkeys(("latents_mean", "latents_std"))
        model.register_to_config(**{name: value for name, value in own.items() if name in model.config})
        return model

    @apply_forward_hook
    def encode(self, x: Tensor, rng: torch.Generator | None = None) -> EncoderOutput:
        self.check_images(x)
        spreads = self._network_spreads
        own = x.to(self.dtype)
        known = self.network.posterior(own) if spreads else PointDistribution(self.network.encode(own))
        return self._output(known, x, rng)

    def carry(self, z: Tensor) -> Tensor:
        found: Callable[[Tensor], Tensor] | None = getattr(self.network, "carry", None)
        return z if found is None else found(z)

    @apply_forward_hook
    def decode(self, z: Tensor) -> DecoderOutput:
        self.check_latents(z)
        z = z.to(self.dtype)
        if torch.is_grad_enabled():
            return DecoderOutput(sample=self.network.decode(z))
        with full_precision(z), without_tf32(z.device):  # as our Autoencoder's, or figures would not compare
            return DecoderOutput(sample=self.network.decode(z))


HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
ARTIFACTS: tuple[type[Tokenizer], ...] = (Autoencoder, AdaptedTokenizer)


def adapt(source: TokenizerSource, *, size: int, channels: int, pretrained: bool) -> AdaptedTokenizer:
    """The source's tokenizer for `size` x `size` images; with `pretrained`, its weights, else random ones.

    Raises ValueError where files are missing or images do not fit.
    """
    return adapt_resolved(source.resolve(), size=size, channels=channels, pretrained=pretrained)


def adapt_resolved(source: TokenizerSource, *, size: int, channels: int, pretrained: bool) -> AdaptedTokenizer:
    """As `adapt`, of a source that is resolved: without `pretrained` no file is read, and none has to be there."""
    model = AdaptedTokenizer(source=configs.plain(source), image_size=size, in_channels=channels)
    if pretrained:
        model.network = _built(source, size, channels, pretrained=True)
    return model


def _built(source: TokenizerSource, size: int, channels: int, pretrained: bool = False) -> Codec:
    network = source.build(size=size, channels=channels, pretrained=pretrained)
    require_members(source, network, ("encode", "decode", "latent_channels", "stride"))
    if not isinstance(network, nn.Module):
        what = f"{type(network).__name__}, which is no nn.Module: its weights would not be saved"
        raise ValueError(f"{source.type!r}: build returned a {what}")
    return network


def start(source: TokenizerSource, *, size: int, channels: int, pretrained: bool) -> Tokenizer:
    """The source's tokenizer as `adapt` gives it, to be trained further; if it is one of ours, without the adapter.

    Raises ValueError where `adapt` does, and for a tokenizer that cannot be trained further on such images.
    """
    adapted = adapt(source, size=size, channels=channels, pretrained=pretrained)
    model = innermost(adapted)
    if adapted.drawn:  # an adapter that a run has put around it may say so alone
        model.drawn = True
    trained = {"data.channels": ("in_channels", channels), "data.size": ("image_size", size)}
    for field, (name, ours) in trained.items():
        if model.config[name] != ours:
            raise ValueError(
                f"this tokenizer was trained with {field} {model.config[name]}, not {ours}; set it to that"
            )
    model.parts()
    model.whiten(None)  # training changes the latents that the matrix was measured on
    return model


def innermost(model: Tokenizer) -> Tokenizer:
    """The tokenizer of ours inside adapters, or the model itself where it adapts none."""
    while isinstance(inner := getattr(getattr(model, "network", None), "model", None), Tokenizer):
        model = inner
    return model


def normalisation_of(model: Tokenizer) -> Normalisation | None:
    """What the tokenizer brings: statistics that a stage or an import filled in, else those of its files' config; None
    for neither."""
    if bool((model.latent_mean != 0).any() or (model.latent_std != 1).any()):
        return Normalisation(model.latent_mean, model.latent_std, model.whitening)
    network = getattr(model, "network", None)
    if isinstance(inner := getattr(network, "model", None), Tokenizer):
        return normalisation_of(inner)
    return getattr(network, "normalisation", None)


def require_scaled(model: object) -> None:
    """Raise ValueError unless a generator's latents can be decoded by the model: for none of ours, and for another's
    before `set_statistics` whose generators know its latents scaled."""
    if not hasattr(model, "denormalize"):
        raise ValueError(f"vae: {type(model).__name__} is none of ours; docs/diffusers.md: adapt, set_statistics")
    if not isinstance(model, AdaptedTokenizer) or not model.unscaled:
        return
    known, inner = normalisation_of(model), innermost(model)
    if known is None and isinstance(inner, AdaptedTokenizer) and inner.unscaled and not inner.source_scaled:
        raise ValueError(
            "vae: generators know this tokenizer's latents scaled, and it does not say how; give the numbers that came "
            "with the generator: vae.set_statistics(mean, std), docs/diffusers.md"
        )
    if known is not None and bool((known.mean != 0).any() or (known.std != 1).any()):
        raise ValueError(
            "vae: nothing says how the generator's latents are scaled. As the tokenizer's files have it: "
            "vae.set_statistics(*dmvae.tokenizers.adapted.normalisation_of(vae)); not at all: "
            "vae.set_statistics(torch.zeros(C), torch.ones(C)); docs/diffusers.md"
        )


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The Autoencoder or AdaptedTokenizer in an artifact's folder, in evaluation mode.

    Raises ValueError for a folder that holds neither, where the weights do not fit the config, and where a file differs
    from the checksum that its stage recorded (done.json).
    """
    require_intact(Path(folder))
    return load_strictly(tokenizer_class(folder), folder)


def open_tokenizer(place: str, size: int | None = None, otherwise: int | None = None) -> Tokenizer:
    """The tokenizer at `place`: a folder of ours (`load_tokenizer`), or another's (`adapt`): a diffusers autoencoder,
    given as a folder with config.json or as a hub id, or a checkpoint of latent diffusion's, given as a file here or as
    ORG/REPO/FILE on the hub. size: pixels that another's is adapted to; unless given, what its config says
    (`sample_size`, or the size that a RAE returns), and `otherwise` where it says none.

    Raises ValueError where there is neither, or no size is known.
    """
    on_hub = not Path(place).exists() and FILE.fullmatch(place) and place.endswith(WEIGHTS)
    file, kind = Path(place) / "config.json", "vavae" if on_hub or Path(place).is_file() else "diffusers"
    if kind == "diffusers" and (Path(place).is_dir() or not HUB_ID.fullmatch(place)):
        ours = {cls.__name__ for cls in ARTIFACTS}
        if not file.is_file() or read_json(file, dict).get("_class_name") in ours:
            return load_tokenizer(place)
    try:
        source = configs.read(TokenizerSource, {"type": kind, "path": place}, "source").resolve()
        config: Values = getattr(source, "config", None) or {}
        found = size or own_size(config) or otherwise
        if not isinstance(found, int):
            where = "a checkpoint tells no image size" if kind == "vavae" else "its config has no sample_size"
            raise ValueError(f"{place}: {where}; give --size")
        return adapt(source, size=found, channels=int(config.get("in_channels", 3)), pretrained=True)
    except ValueError as error:
        told = str(error).replace("pretrained.path: ", "").replace("pretrained: ", "")
        raise ValueError(told.replace("set data.size to", "give --size")) from error


def tokenizer_class(folder: str | Path) -> type[Tokenizer]:
    """Autoencoder or AdaptedTokenizer, as the folder's config.json says; ValueError where it is neither."""
    try:
        return artifact_class(folder, ARTIFACTS, "tokenizer")
    except ValueError as error:
        hint = "; a recipe takes autoencoders of diffusers under pretrained: {type: diffusers, path: FOLDER}"
        raise ValueError(f"{error}{hint if ' holds ' in str(error) else ''}") from error
