"""The weights that SiT's authors release (github.com/willisma/SiT), and those of REPA and REPA-E, who train SiT.

The names are those of `dmvae.models.sit`. The two kinds of files differ in what no name says:

- SiT's own last layer has twice the channels, of which their code drops the second half. Time runs as here.
- In REPA's and REPA-E's code, time runs from data, 0, to noise, 1, and the velocity is noise - data. Their files have
  projectors, by which tokens were aligned in training; later ones of REPA-E the statistics of the latents, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from dmvae.config import Values
from dmvae.models.dit import SIZES
from dmvae.models.sit import SiT
from dmvae.models.transformer import TimeEmbedder, time_frequencies
from dmvae.runtime.weights import Shapes, count, mlp_ratio, require_shapes, square

SIGN = "blocks.0.mlp.fc1.weight"
"""Name of a tensor that SiT has and LightningDiT has not."""
LAST = ("final_layer.linear.weight", "final_layer.linear.bias")
LEFT_OUT = ("projectors", "bn")
"""Parts that sampling does not need."""
STATISTICS = ("bn.running_mean", "bn.running_var")
HEADS = {width: heads for width, _, heads in SIZES.values()}
"""Width of a published SiT -> the heads of its attention."""


def config_of(shapes: Shapes, where: object, *, heads: int | None = None) -> Values:
    """SiT's arguments for a state dict of these shapes. heads: of its attention, which no shape shows; default those of
    the published network of that width. Raises ValueError where the shapes do not fit together."""
    telling = {"x_embedder.proj.weight": 4, "pos_embed": 3, SIGN: 2, "y_embedder.embedding_table.weight": 2}
    (width, channels, patch, _), (_, tokens, _), (hidden, _), (rows, _) = require_shapes(shapes, telling, where)
    if heads is None and width not in HEADS:
        raise ValueError(f"{where}: width {width} is of no published SiT; give the heads of its attention (--heads)")
    return {
        "in_channels": channels,
        "input_size": square(tokens, "pos_embed", where) * patch,
        "width": width,
        "depth": count(shapes, "blocks"),
        "heads": HEADS[width] if heads is None else heads,
        "num_classes": rows - 1,
        "patch_size": patch,
        "mlp_ratio": mlp_ratio(width, hidden),
    }


def velocity_part(state: Mapping[str, Tensor], where: object, *, asked: bool) -> tuple[dict[str, Tensor], int]:
    """A file's state dict without what sampling does not need; and the time at which its network sees noise: 0 where
    all is as in SiT's own files, else 1. asked: somebody says that it is a SiT, so that this is not judged.

    Raises ValueError for a last layer that fits neither kind; and, unless asked, for one whose second half is not 0:
    SiT's has no gradient and stays as it begins, while a DiT, which has the same names, learns variances there.
    """
    shapes = {name: value.shape for name, value in state.items()}
    telling = {"x_embedder.proj.weight": 4, LAST[0]: 2, LAST[1]: 1}
    (_, channels, patch, _), *last = require_shapes(shapes, telling, where)
    kept = {name: value for name, value in state.items() if name.partition(".")[0] not in LEFT_OUT}
    values, rows = channels * patch**2, {shape[0] for shape in last}
    if rows == {values}:
        return kept, 1
    if rows != {2 * values}:
        found = " and ".join(str(shape[0]) for shape in last)
        raise ValueError(
            f"{where}: {' and '.join(LAST)} have {found} rows; a SiT's have {values}, a patch, or twice that"
        )
    halves = {name: kept[name].unflatten(0, (patch**2, 2, channels)) for name in LAST}
    if not asked and any(not half.is_meta and half[:, 1].any() for half in halves.values()):
        raise ValueError(
            f"{where}: the second half of its last layer is not 0: by this it is a DiT, which predicts noise and its "
            "variances, and no velocity; if it is a SiT, say the time that it has at noise (--noise-at 0)"
        )
    own = len(kept) == len(state)
    return kept | {name: half[:, 0].flatten(0, 1) for name, half in halves.items()}, 0 if own else 1


def notes(state: Mapping[str, Tensor], assumed: int | None) -> Iterator[str]:
    """What whoever imports it has to know. assumed: the time at noise, where nobody said it."""
    if assumed is not None:
        whose = ("SiT's own", "REPA's")[assumed]
        yield f"taken for one of {whose} code, where time is {assumed} at noise; if it is not, --noise-at {1 - assumed}"
    if any(name in state for name in STATISTICS):
        yield (
            "its latents were normalised by its own statistics (bn), which belong into the tokenizer: "
            "tokenizer.set_statistics(*latent_statistics(FILE)), see docs/diffusers.md"
        )


def as_published(model: SiT) -> dict[str, Tensor]:
    """The state dict in SiT's own layout: a last layer of twice the channels, the second half of which is 0."""
    state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    for name in LAST:
        values = state[name].unflatten(0, (-1, model.config["in_channels"]))
        state[name] = torch.stack((values, torch.zeros_like(values)), dim=1).flatten(0, 2)
    return state


def statistics(state: Mapping[str, Tensor], where: object) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [C] by which the file's network had its latents normalised. Raises ValueError where
    the file does not hold them."""
    if missing := [name for name in STATISTICS if name not in state]:
        raise ValueError(f"{where}: holds no statistics of latents ({', '.join(missing)}): its authors' code has them")
    mean, variance = (state[name].float() for name in STATISTICS)
    return mean, variance.sqrt()


@torch.no_grad()
def turn(model: SiT) -> None:
    """Let the model's time run the other way: v(z, t) becomes -v(z, 1 - t), with the velocity's sign.

    The first layer on time sees cos(t f) and sin(t f) for frequencies f. As cos((1 - t) f) = cos f cos(t f) + sin f
    sin(t f), and the sine alike, other weights of that layer do it exactly.
    """
    times, last = model.t_embedder, model.final_layer.linear
    assert isinstance(times, TimeEmbedder)
    layer = times.mlp[0]
    assert isinstance(layer, nn.Linear)
    f = time_frequencies(layer.weight.device).double()
    assert isinstance(last, nn.Linear)
    of_cos, of_sin = layer.weight.double().chunk(2, dim=1)
    turned = (of_cos * f.cos() + of_sin * f.sin(), of_cos * f.sin() - of_sin * f.cos())
    layer.weight.copy_(torch.cat(turned, dim=1))
    for parameter in last.parameters():
        parameter.neg_()
