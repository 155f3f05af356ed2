"""The layout of LightningDiT's authors, which the paper's generators share: what its shapes tell, and its tables."""

from __future__ import annotations

from torch import Tensor

from dmvae.config import Values
from dmvae.runtime.weights import Shapes, count, mlp_ratio, require_shapes, square


def config_of(shapes: Shapes, where: object) -> Values:
    """LightningDiT's arguments for a state dict of these shapes; the label table's last row is "no label"."""
    qk_norm = any(name.endswith("attn.q_norm.weight") for name in shapes)
    of_head, axes = ("blocks.0.attn.q_norm.weight", 1) if qk_norm else ("feat_rope.freqs_cos", 2)
    telling = {"x_embedder.proj.weight": 4, "pos_embed": 3, of_head: axes}
    telling |= {"blocks.0.mlp.w3.weight": 2, "y_embedder.embedding_table.weight": 2}
    (width, channels, patch, _), (_, tokens, _), (*_, head_width), (_, hidden), (rows, _) = require_shapes(
        shapes, telling, where
    )
    if width % head_width:
        raise ValueError(f"{where}: width {width} is no multiple of the head width {head_width} ({of_head})")
    return {
        "in_channels": channels,
        "input_size": square(tokens, "pos_embed", where) * patch,
        "width": width,
        "depth": count(shapes, "blocks"),
        "heads": width // head_width,
        "num_classes": rows - 1,
        "patch_size": patch,
        "mlp_ratio": mlp_ratio(width, hidden, 2 / 3),
        "qk_norm": qk_norm,
    }


def rotary_tables(cos: Tensor, sin: Tensor, name: str = "feat_rope") -> dict[str, Tensor]:
    """Our tables of cosines and sines as the authors keep them: without the signs that members of a pair take, which
    our sines have."""
    tables = {"cos": cos, "sin": sin.unflatten(-1, (-1, 2)) * sin.new_tensor([-1, 1])}
    return {f"{name}.freqs_{kind}": table.reshape(len(table), -1) for kind, table in tables.items()}
