"""The weights that RAE's authors release (github.com/bytetriper/RAE): DiT-DH, our `dmvae.models.dit_dh`.

Their time is 1 at noise, and their velocity noise - data, which no name says. Their files also hold the tables of
rotary positions, and number the head's blocks on from the backbone's.
"""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor, nn

from dmvae.config import Values
from dmvae.interop.lightningdit import rotary_tables
from dmvae.models.dit_dh import DiTDH, FourierTimes
from dmvae.runtime.weights import Shapes, mlp_ratio, require_shapes, square

SIGN = "s_embedder.proj.weight"
"""Name of a tensor that DiT-DH has and the other generators have not."""
PARTS = {
    "x_embedder": "s_embedder",
    "head_embedder": "x_embedder",
    "projection": "s_projector",
    "t_embedder.frequencies": "t_embedder.W",
}
"""Our names of parts -> theirs, where they differ."""


def config_of(shapes: Shapes, where: object) -> Values:
    """DiTDH's arguments for a state dict of these shapes. Raises ValueError where the shapes do not fit together."""
    telling = {SIGN: 4, "x_embedder.proj.weight": 4, "pos_embed": 3, "y_embedder.embedding_table.weight": 2}
    telling |= {"blocks.0.mlp.w3.weight": 2, "enc_feat_rope.freqs_cos": 2, "dec_feat_rope.freqs_cos": 2}
    (width, channels, patch, _), (head_width, *_), (_, tokens, _), (rows, _), (_, hidden), *rotated = require_shapes(
        shapes, telling, where
    )
    norms = [shape for name, shape in shapes.items() if re.fullmatch(r"blocks\.\d+\.norm1\.weight", name)]
    depth = sum(shape[0] == width for shape in norms)
    return {
        "in_channels": channels,
        "input_size": square(tokens, "pos_embed", where) * patch,
        "width": width,
        "depth": depth,
        "heads": width // rotated[0][1],
        "num_classes": rows - 1,
        "patch_size": patch,
        "mlp_ratio": mlp_ratio(width, hidden, 2 / 3),
        "head_width": head_width,
        "head_depth": len(norms) - depth,
        "head_heads": head_width // rotated[1][1],
    }


def official_name(name: str, depth: int) -> str:
    """Their name for a parameter of ours, in a network of so many blocks before the head."""
    if found := re.match(r"head_blocks\.(\d+)", name):
        return f"blocks.{depth + int(found[1])}{name[found.end() :]}"
    part = next((part for part in PARTS if re.match(rf"{re.escape(part)}(\.|$)", name)), "")
    return PARTS.get(part, "") + name.removeprefix(part)


def constants(model: DiTDH) -> dict[str, Tensor]:
    """What their files hold beside weights."""
    backbone = rotary_tables(model.rope_cos, model.rope_sin, "enc_feat_rope")
    return backbone | rotary_tables(model.head_cos, model.head_sin, "dec_feat_rope")


@torch.no_grad()
def turn(model: DiTDH) -> None:
    """Let the model's time run the other way: v(z, t) becomes -v(z, 1 - t), with the velocity's sign.

    The first layer on time sees sin(t f) and cos(t f) for frequencies f. As sin((1 - t) f) = sin f cos(t f) - cos f
    sin(t f), and the cosine alike, other weights of that layer do it exactly.
    """
    times, last = model.t_embedder, model.final_layer.linear
    assert isinstance(times, FourierTimes)
    layer, f = times.mlp[0], 2 * math.pi * times.frequencies.double()
    assert isinstance(layer, nn.Linear)
    assert isinstance(last, nn.Linear)
    of_sin, of_cos = layer.weight.double().chunk(2, dim=1)
    turned = (of_cos * f.sin() - of_sin * f.cos(), of_sin * f.sin() + of_cos * f.cos())
    layer.weight.copy_(torch.cat(turned, dim=1))
    for parameter in last.parameters():
        parameter.neg_()
