"""The weights that the paper's authors release (github.com/sen-ye/dmvae): vae.pt, the generators' epN.pt; and other
authors' generators, of LightningDiT, SiT (`dmvae.interop.sit`) and RAE (`dmvae.interop.dit_dh`).

All sizes are read from the tensors' shapes. Names, shapes and the constants in the files (pixel normalisation, rotary
tables) must be those of our networks; otherwise the import raises ValueError. A file to read is a path, or
ORG/REPO/FILE on the Hugging Face hub.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from dmvae.config import Values
from dmvae.interop import dit_dh, lightningdit, sit
from dmvae.models.artifact import artifact_class, load_strictly
from dmvae.models.discriminator import PatchGAN
from dmvae.models.dit import DiffusionTransformer, LightningDiT
from dmvae.models.dit_dh import DiTDH
from dmvae.models.sit import SiT
from dmvae.runtime.done import require_intact
from dmvae.runtime.hub import hub_file
from dmvae.runtime.weights import (
    Shapes,
    check,
    count,
    mlp_ratio,
    pick,
    read_tensors,
    require_shapes,
    square,
    write_state_dict,
)
from dmvae.runtime.words import counted
from dmvae.tokenizers.autoencoder import Autoencoder

VITS = {384: ("small", 12, 6), 768: ("base", 12, 12), 1024: ("large", 24, 16)}
"""Width -> (timm's name for DINOv2's ViT of that width, depth, heads)."""
HEAD = 64  # the width of one: of these, and of an encoder whose heads are not given
SIGNS = {
    "encoder.model.patch_embed.proj.weight": "tokenizer",
    "bottle_neck.mlp.0.weight": "tokenizer",
    "x_embedder.proj.weight": "generator",
    "main.0.weight": "discriminator",
}
"""Tensor names that show what network a file is of."""

FLOWS: list[type[DiffusionTransformer]] = [LightningDiT, SiT]
M = TypeVar("M", bound=nn.Module)
N = TypeVar("N", Autoencoder, DiffusionTransformer)


def import_vae(
    file: Path,
    *,
    heads: int | None = None,
    weights: str | None = None,
    latent_mean: float = 0.0685,
    latent_scale: float = 0.1763,
) -> Autoencoder:
    """The authors' tokenizer, in evaluation mode.

    heads: those of the encoder's attention, which no shape shows; default width / 64. weights: "model" or "wo_ddp" for
    `vae_wo_ddp`, with which the authors sample and which is the default if the file has it; or "ema" for `vae_ema`.
    latent_mean, latent_scale: the statistics published with the weights, over all channels; scale is 1 / std.

    Raises ValueError for a file of other weights, listing the names and shapes that differ, and for a mean or a scale
    that is out of range.
    """
    if not 1e-30 < latent_scale < 1e30:
        raise ValueError(f"latent_scale {latent_scale}: must be positive, 1 / the latents' standard deviation")
    if not abs(latent_mean) < 1e30:
        raise ValueError(f"latent_mean {latent_mean}: must be a finite number, the latents' mean")
    known = {"wo_ddp": "vae_wo_ddp", "model": "vae_wo_ddp", "ema": "vae_ema"}
    state = _open(file, (known.get(weights, weights),) if weights else tuple(known.values()), "tokenizer")
    model = build_vae(state, file, heads=heads)
    model.latent_mean.fill_(latent_mean)
    model.latent_std.fill_(1 / latent_scale)
    model.register_to_config(scaling_factor=latent_scale, shift_factor=latent_mean)
    return model


def import_generator(
    file: Path,
    *,
    weights: Literal["ema", "model"] = "ema",
    heads: int | None = None,
    noise_at: Literal[0, 1] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> LightningDiT | SiT | DiTDH:
    """The authors' generator, teacher or student, in evaluation mode; or a SiT of its authors, or REPA's or REPA-E's;
    or RAE's DiT-DH.

    Of a SiT: heads: those of its attention, where its width is no published one's. noise_at: the time that its network
    has at noise, which no tensor shows; default 0 where the file is as SiT's own code writes it, else 1, as in REPA's
    code. Our own has 0 there: a network that has 1 is rewritten. say: is told what was taken to be so.

    Raises ValueError for other weights.
    """
    state = _open(file, (weights,), "generator")
    if sit.SIGN in state:
        return build_sit(state, file, heads=heads, noise_at=noise_at, say=say)
    kind = DiTDH if dit_dh.SIGN in state else LightningDiT
    for name, value in (("heads", heads), ("noise-at", noise_at)):
        if value is not None:
            raise ValueError(f"{file}: --{name} is of a SiT, and this is a {kind.__name__}; leave it out")
    return build_dit_dh(state, file) if kind is DiTDH else build_generator(state, file)


def latent_statistics(file: Path, *, weights: Literal["ema", "model"] = "ema") -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [C] of the latents of a SiT of REPA-E, for its tokenizer's `set_statistics`. Raises
    ValueError where the file holds none."""
    return sit.statistics(_open(file, (weights,), "generator"), file)


def import_discriminator(file: Path) -> PatchGAN:
    """The authors' PatchGAN, from a file that holds only its state dict, in evaluation mode. Raises ValueError for
    other weights."""
    return build_discriminator(_open(file, (), "discriminator"), file)


def export_vae(autoencoder: Autoencoder | Path, file: Path, say: Callable[[str], None] = lambda text: None) -> None:
    """Write a tokenizer, or the one saved in a folder, as the authors' code reads it: under `vae_wo_ddp`.

    Tensors are written bit for bit. Their format has no place for the latents' statistics, for a spread that they are
    drawn with, and for an unusual number of heads; `say` is told them. Raises ValueError for a tokenizer of another
    architecture.
    """
    model = _network(autoencoder, [Autoencoder], "tokenizer")
    encoder, where = model.config["encoder"], "this tokenizer has no form in the authors' layout"
    told_by_shapes = {"embed_dim", "depth", "num_heads", "mlp_ratio", "reg_tokens"}
    others = [k for k in encoder.get("kwargs", {}) if k not in told_by_shapes and not k.endswith("_rate")]
    reasons = {
        f"its encoder {encoder.get('model', encoder['type'])!r} is no DINOv2 ViT of timm": (
            encoder["type"] != "timm" or not re.match("vit_.*dinov2", encoder["model"])
        ),
        f"its encoder has arguments that theirs lacks ({', '.join(others)})": others,
        "its encoder resizes images (resolution)": encoder.get("resolution") not in (None, model.config["image_size"]),
        "its bottleneck is variational": model.config["variational"],
        "its latents have detail from pixels (detail_width)": model.config["detail_width"] is not None,
        "its bottleneck has no hidden layer": not model.config["bottleneck_width"],
    }
    if found := [reason for reason, holds in reasons.items() if holds]:
        raise ValueError(f"{where}: {'; '.join(found)}")
    state = {official_name(k): v.detach().cpu().contiguous() for k, v in weights_of(model).items()} | pixel_constants()
    with torch.device("meta"):  # only write what can be read back
        vit: Any = model.encoder.model
        heads = vit.blocks[0].attn.num_heads
        build_vae({k: v.to("meta") for k, v in state.items()}, where, heads=heads)
    write_state_dict(Path(file), "vae_wo_ddp", state)
    whole = "--latent-mean {shift_factor:.4g} --latent-scale {scaling_factor:.4g}".format_map(model.config)
    say(f"the file has no place for the latents' statistics; over all channels they are {whole}")
    if model.drawn:
        say("it has none for the spread that latents are drawn with (fixed_std) either: theirs gives means alone")
    if heads * HEAD != vit.embed_dim:
        say(f"it does not show that the encoder has {heads} heads: import it with --encoder-heads {heads}")


def export_generator(
    generator: LightningDiT | SiT | Path, file: Path, say: Callable[[str], None] = lambda text: None
) -> None:
    """Write a generator, or the one saved in a folder, as the authors' code reads it, or SiT's authors' code a SiT:
    under `ema`.

    Tensors are written bit for bit, and `import_generator` gives the same network again; `say` is told where it has to
    be given `heads`. Statistics of latents stay in the tokenizer. Raises ValueError for another architecture.
    """
    model, where = _network(generator, FLOWS, "generator"), "this generator has no form in the authors' layout"
    build: Callable[[Mapping[str, Tensor], str], nn.Module] = build_generator
    if isinstance(model, SiT):
        heads = model.config["heads"]
        state, build = sit.as_published(model), partial(build_sit, heads=heads)
        if sit.HEADS.get(model.config["width"]) != heads:
            say(f"the file does not show that its attention has {heads} heads: import it with --heads {heads}")
    else:
        assert isinstance(model, LightningDiT)
        if model.config["head_width"] is not None:
            raise ValueError(f"{where}: it has a wide head behind its blocks (head_width), which theirs lacks")
        tables = lightningdit.rotary_tables(model.rope_cos, model.rope_sin)
        state = {k: v.detach().cpu().contiguous() for k, v in (weights_of(model) | tables).items()}
    with torch.device("meta"):  # what could not be read back is not written
        build({k: v.to("meta") for k, v in state.items()}, where)
    write_state_dict(Path(file), "ema", state)


def build_vae(state: Mapping[str, Tensor], where: object, *, heads: int | None = None) -> Autoencoder:
    """The tokenizer with this state dict, in the authors' names. Raises ValueError if it does not fit."""
    model = Autoencoder(**vae_config({k: v.shape for k, v in state.items()}, where, heads=heads))
    return fill(model, state, pixel_constants(), where)


def build_generator(state: Mapping[str, Tensor], where: object) -> LightningDiT:
    """The generator with this state dict, in the authors' names. Raises ValueError if it does not fit."""
    model = LightningDiT(**lightningdit.config_of({k: v.shape for k, v in state.items()}, where))
    return fill(model, state, lightningdit.rotary_tables(model.rope_cos, model.rope_sin), where)


def build_dit_dh(state: Mapping[str, Tensor], where: object) -> DiTDH:
    """The DiT-DH with this state dict, in RAE's names, its time turned. Raises ValueError if it does not fit."""
    model = DiTDH(**dit_dh.config_of({k: v.shape for k, v in state.items()}, where))
    named = partial(dit_dh.official_name, depth=model.config.depth)
    dit_dh.turn(fill(model, state, dit_dh.constants(model), where, named))
    return model


def build_sit(
    state: Mapping[str, Tensor],
    where: object,
    *,
    heads: int | None = None,
    noise_at: int | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> SiT:
    """The SiT with this state dict, as `import_generator` has it. Raises ValueError if it does not fit."""
    own, usual = sit.velocity_part(state, where, asked=noise_at is not None)
    for text in sit.notes(state, None if noise_at is not None else usual):
        say(text)
    model = fill(SiT(**sit.config_of({k: v.shape for k, v in own.items()}, where, heads=heads)), own, {}, where)
    if (usual if noise_at is None else noise_at) == 1:
        sit.turn(model)
    return model


def build_discriminator(state: Mapping[str, Tensor], where: object) -> PatchGAN:
    """The discriminator with this state dict. Raises ValueError if it does not fit."""
    [(width, channels, *_)] = require_shapes({k: v.shape for k, v in state.items()}, {"main.0.weight": 4}, where)
    layers = sum(v.ndim == 4 for v in state.values()) - 2
    return fill(PatchGAN(in_channels=channels, width=width, layers=layers), state, {}, where)


def official_name(name: str) -> str:
    """The authors' name for a parameter of ours."""
    return re.sub(r"^bottleneck\.", "bottle_neck.mlp.", name)


def fill(
    model: M,
    state: Mapping[str, Tensor],
    constants: Mapping[str, Tensor],
    where: object,
    named: Callable[[str], str] = official_name,
) -> M:
    """Load the authors' state dict into `model`. named: our name of a parameter -> theirs. Raises ValueError for
    unknown, missing or misshapen tensors, for NaN or infinity, and where the file's constants differ from
    `constants`."""
    own = {named(k): v for k, v in weights_of(model).items()}
    check(state, {k: v.shape for k, v in (own | dict(constants)).items()}, where, f"our {type(model).__name__}")
    if bad := [name for name, value in state.items() if not value.is_meta and not value.isfinite().all()]:
        raise ValueError(
            f"{where}: NaN or infinity in {counted(len(bad), 'tensor')}, {bad[0]} first: a damaged or diverged file"
        )
    for name, expected in constants.items():
        value = state[name].to(expected.dtype)
        if value.is_meta or expected.is_meta:
            continue
        gap = (value - expected).abs().max().item()
        if not gap <= 1e-4 + torch.finfo(state[name].dtype).eps:  # angles may round differently, no more
            raise ValueError(
                f"{where}: {name} ({value.flatten()[:3].tolist()}, ...) differs by up to {gap:.2g} from what our "
                f"{type(model).__name__} computes ({expected.flatten()[:3].tolist()}, ...): another network's weights"
            )
    model.load_state_dict({k: state.get(named(k), v) for k, v in model.state_dict().items()})
    return model.eval()


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """A model's state dict without the latents' statistics, which the authors' files do not hold."""
    ours = ("latent_mean", "latent_std", "whitening", "colouring")
    return {k: v for k, v in model.state_dict().items() if k not in ours}


def pixel_constants() -> dict[str, Tensor]:
    """Means and deviations, [1, 3, 1, 1] each, that take images from [-1, 1] to [0, 1], and then to ImageNet's
    normalisation; our encoder does both in one step."""
    values = {"de_scale.mean": (0.5,) * 3, "de_scale.std": (0.5,) * 3}
    values |= {"scale.mean": IMAGENET_DEFAULT_MEAN, "scale.std": IMAGENET_DEFAULT_STD}
    return {f"encoder.{name}": torch.tensor(value).view(1, 3, 1, 1) for name, value in values.items()}


def vae_config(shapes: Shapes, where: object, *, heads: int | None) -> Values:
    """Autoencoder's arguments for a state dict of these shapes. Raises ValueError where they do not fit together."""
    levels = [f"decoder.up.{i}.block.0.conv1.weight" for i in range(max(1, count(shapes, "decoder.up")))]
    telling = {"encoder.model.patch_embed.proj.weight": 4, "encoder.model.pos_embed": 3}
    telling |= {"encoder.model.blocks.0.mlp.fc1.weight": 2, "bottle_neck.mlp.0.weight": 2}
    telling |= {"bottle_neck.mlp.2.weight": 2, "decoder.conv_out.weight": 4} | dict.fromkeys(levels, 4)
    patches, (_, tokens, width), (hidden, _), middle, last, out, *convs = require_shapes(shapes, telling, where)
    patch, registers = patches[2], "encoder.model.reg_token" in shapes
    if patch & (patch - 1):
        raise ValueError(f"{where}: patch size {patch} is no power of two, so the authors' decoder does not undo it")
    if heads is None and width % HEAD:
        raise ValueError(f"{where}: encoder width {width} is no multiple of {HEAD}; give its heads (--encoder-heads)")
    heads = width // HEAD if heads is None else heads
    if heads < 1 or width % heads:
        raise ValueError(f"{where}: encoder width {width} does not divide by {heads} heads; correct --encoder-heads")
    # As in timm, position embeddings include the class token only if there are no registers.
    size = patch * square(tokens if registers else tokens - 1, "encoder.model.pos_embed", where)
    name, depth, usual_heads = VITS.get(width, VITS[1024])
    usual: Values = {"embed_dim": width if width in VITS else 1024, "depth": depth, "num_heads": usual_heads}
    usual |= {"mlp_ratio": 4.0, "reg_tokens": 4}
    own: Values = {"embed_dim": width, "depth": count(shapes, "encoder.model.blocks"), "num_heads": heads}
    own |= {"mlp_ratio": mlp_ratio(width, hidden)}
    if registers:
        own["reg_tokens"] = require_shapes(shapes, {"encoder.model.reg_token": 3}, where)[0][1]
    decoder_width = math.gcd(*(conv[0] for conv in convs))
    return {
        "encoder": {
            "type": "timm",
            "model": f"vit_{name}_patch14_{'reg4_' if registers else ''}dinov2",
            "patch_size": patch,
            "img_size": size,
            "pretrained": False,
            "kwargs": {k: v for k, v in own.items() if v != usual[k]},
        },
        "image_size": size,
        "in_channels": out[0],
        "latent_channels": last[0],
        "bottleneck_width": middle[0],
        "decoder": {
            "type": "conv",
            "width": decoder_width,
            "multipliers": [conv[0] // decoder_width for conv in convs],
            "blocks": count(shapes, "decoder.up.0.block") - 1,
            "attention": any(name.startswith("decoder.mid.attn_1.") for name in shapes),
        },
    }


def _open(file: Path, wanted: tuple[str, ...], what: str) -> dict[str, Tensor]:
    tensors = read_tensors(hub_file(file))
    names = [f".{k}.{inner}" for k, v in tensors.items() for inner in (v if isinstance(v, Mapping) else [""])]
    kinds = {kind for name in names for sign, kind in SIGNS.items() if name.rstrip(".").endswith(f".{sign}")}
    if kinds and what not in kinds:
        raise ValueError(f"{file}: holds the weights of a {' and a '.join(sorted(kinds))}, not of a {what}")
    return pick(tensors, wanted, file)


def _network(given: N | Path, known: list[type[N]], what: str) -> N:
    """The network itself, or the one that was saved in the folder."""
    if isinstance(given, nn.Module):
        return given
    folder = Path(given)
    return load_strictly(artifact_class(require_intact(folder), known, what), folder)
