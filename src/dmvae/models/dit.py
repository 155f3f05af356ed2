"""LightningDiT: a diffusion transformer that predicts the velocity of latents.

Shapes: b batch, C latent channels, H W latent height and width, n tokens, d width, h heads, e head width.

Parameter names and layouts are those of the published LightningDiT weights, so that these load as they
are. Source: "Reconstruction vs. Generation" (arXiv 2501.01423), whose block is DiT's (arXiv 2212.09748)
with RMSNorm, SwiGLU, rotary positions and, in some of them, normalised queries and keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from dmvae.models.base import run_part
from dmvae.models.transformer import (
    Block,
    FinalLayer,
    LabelEmbedder,
    PatchEmbedder,
    RMSScale,
    TimeEmbedder,
    normalised,
    rope_tables,
    sincos_positions,
)
from dmvae.models.velocity import VelocityModel
from dmvae.registry import nearest

SIZES = {"Mini": (256, 6, 4), "S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16), "XL": (1152, 28, 16)}
"""Width, depth and heads of the published networks."""


def published(size: str) -> dict[str, int]:
    """width, depth, heads and patch_size of `SIZE/PATCH`: `"XL/1"` is the entry "XL" of `SIZES` with patches of 1.

    Raises ValueError for a name that is none.
    """
    name, _, patch = size.partition("/")
    if name not in SIZES or not (patch or "1").isdecimal() or int(patch or "1") < 1:
        raise ValueError(f"no network size is called {size!r}{nearest(size, [f'{known}/1' for known in SIZES])}")
    width, depth, heads = SIZES[name]
    return {"width": width, "depth": depth, "heads": heads, "patch_size": int(patch or "1")}


class LightningDiT(VelocityModel):
    """`velocity = model(z_t, t, labels)`.

    in_channels: C. input_size: H = W of the latents, a multiple of patch_size. num_classes: labels are
    0 .. num_classes - 1, and num_classes itself stands for "no label". mlp_ratio: the SwiGLU's hidden
    width is 2/3 of mlp_ratio * width, which costs as much as a plain MLP of mlp_ratio * width. head_width: width
    of a head of head_depth blocks (see `Head`); None is no head, which is the published network. qk_norm: whether
    queries and keys are RMS-normalised, as in the paper's generators and not in LightningDiT's own released ones.
    """

    _supports_gradient_checkpointing = True
    __module__ = "dmvae"  # the name under which artifacts find the class, wherever this file moves
    _no_split_modules = cast("None", ["Block"])  # as ModelMixin declares it
    _gradient_checkpointing_func: Callable[..., Tensor] | None = None

    @register_to_config
    def __init__(
        self,
        *,
        in_channels: int,
        input_size: int,
        width: int,
        depth: int,
        heads: int,
        num_classes: int,
        patch_size: int = 1,
        mlp_ratio: float = 4.0,
        head_width: int | None = None,
        head_depth: int = 2,
        qk_norm: bool = True,
    ):
        super().__init__()
        for name, value in (("patch_size", patch_size), ("depth", depth), ("heads", heads)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if input_size % patch_size:
            raise ValueError(f"input_size {input_size} is not a multiple of patch_size {patch_size}")
        for name, value in (("width", width), ("head_width", width if head_width is None else head_width)):
            if value < 1 or value % (4 * heads):
                raise ValueError(f"{name} {value} must be a multiple of 4 * heads ({heads} heads)")
        side = input_size // patch_size
        self.gradient_checkpointing = False
        self.x_embedder = PatchEmbedder(in_channels, patch_size, width)
        self.t_embedder = TimeEmbedder(width)
        self.y_embedder = LabelEmbedder(num_classes, width)
        # Fixed, yet a parameter: the published weights hold it, and its size is part of their counts.
        self.pos_embed = nn.Parameter(sincos_positions(side, width)[None], requires_grad=False)
        cos, sin = rope_tables(side, width // heads)
        self.register_buffer("rope_cos", cos, persistent=False)
        self.register_buffer("rope_sin", sin, persistent=False)
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio, qk_norm) for _ in range(depth))
        if head_width is not None:
            embedder = PatchEmbedder(in_channels, patch_size, head_width)
            self.head = Head(embedder, width, head_width, head_depth, heads, mlp_ratio, side, qk_norm)
        self.final_layer = FinalLayer(head_width or width, patch_size**2 * in_channels)
        self.initialize()

    def initialize(self) -> None:
        """Xavier for every Linear; zero for modulations and the last layer: each block starts as the identity."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.constant_(module.bias, 0.0)
        head: list[Any] = [self.head] if hasattr(self, "head") else []
        for embedder in (self.x_embedder, *(part.x_embedder for part in head)):
            nn.init.xavier_uniform_(embedder.proj.weight.flatten(1))
            nn.init.zeros_(embedder.proj.bias)
        embedders: list[Any] = [self.t_embedder.mlp[0], self.t_embedder.mlp[2], self.y_embedder.embedding_table]
        for layer in embedders:
            nn.init.normal_(layer.weight, std=0.02)
        parts: list[Any] = [*self.blocks, *(block for part in head for block in part.blocks), self.final_layer]
        for part in parts:
            nn.init.zeros_(part.adaLN_modulation[1].weight)
        nn.init.zeros_(self.final_layer.linear.weight)

    def forward(
        self, z_t: Tensor, t: Tensor, labels: Tensor, depth: int | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """z_t [b, C, H, W], t [b] in [0, 1] (0 noise, 1 data), labels int64 [b] in 0 .. num_classes -> velocity
        [b, C, H, W], float32; with `depth`, also the tokens [b, n, d] after that many blocks. Raises ValueError for t
        of another shape."""
        if not isinstance(t, Tensor) or t.shape != z_t.shape[:1]:
            told = list(t.shape) if isinstance(t, Tensor) else repr(t)
            raise ValueError(f"t: give times [{len(z_t)}], one for each latent; got {told}")
        x_bnd = self.x_embedder(z_t) + self.pos_embed
        # Every modulation starts with SiLU of the same condition, so it is applied once, here.
        c_b1d = F.silu(self.t_embedder(t) + self.y_embedder(labels))[:, None]
        blocks, first = [*self.blocks], depth or 0
        tokens = x_bnd = self._run(blocks[:first], x_bnd, c_b1d, self.rope_cos, self.rope_sin)
        x_bnd = self._run(blocks[first:], x_bnd, c_b1d, self.rope_cos, self.rope_sin)
        if self.config["head_width"] is not None:
            c_b1d = self.head.condition(x_bnd, c_b1d)
            x_bnd = self.head.x_embedder(z_t)
            x_bnd = self._run(self.head.blocks, x_bnd, c_b1d, self.head.rope_cos, self.head.rope_sin)
        velocity = self.unpatchify(self.final_layer(x_bnd, c_b1d))
        return velocity if depth is None else (velocity, tokens)

    def compiled_parts(self) -> list[nn.Module]:
        """What `run.compile` compiles: each block by itself, because equal blocks share one compiled graph."""
        head: list[nn.Module] = [*self.head.blocks] if self.config["head_width"] is not None else []
        return [*self.blocks, *head, self.final_layer]

    def _run(self, blocks: Iterable[nn.Module], x_bnd: Tensor, c: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        for block in blocks:
            x_bnd = run_part(self, block, x_bnd, c, cos, sin)
        return x_bnd

    def unpatchify(self, x_bno: Tensor) -> Tensor:
        """Tokens [b, n, p * p * C] (row, column, channel within a patch) -> [b, C, H, W]."""
        p = self.config["patch_size"]
        side = self.config["input_size"] // p
        x = x_bno.unflatten(-1, (p, p, -1)).unflatten(1, (side, side))
        return x.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


class Head(nn.Module):
    """A few wide blocks that get z_t again, conditioned at each token on the backbone's output there.

    A velocity has noise in all C channels of the latents; a network whose tokens are narrower than that cannot express
    it. Only this part needs the width: DDT (arXiv 2504.05741), RAE (arXiv 2510.11690). It has as many attention heads
    as the backbone.
    """

    rope_cos: Tensor
    rope_sin: Tensor

    def __init__(
        self,
        x_embedder: PatchEmbedder,
        width: int,
        head_width: int,
        depth: int,
        heads: int,
        mlp_ratio: float,
        side: int,
        qk_norm: bool,
    ):
        super().__init__()
        self.x_embedder = x_embedder
        self.norm = RMSScale(width)
        self.projection = nn.Linear(width, head_width)
        self.blocks = nn.ModuleList(Block(head_width, heads, mlp_ratio, qk_norm) for _ in range(depth))
        cos, sin = rope_tables(side, head_width // heads)
        self.register_buffer("rope_cos", cos, persistent=False)
        self.register_buffer("rope_sin", sin, persistent=False)

    def condition(self, x_bnd: Tensor, c_b1d: Tensor) -> Tensor:
        """The backbone's tokens [b, n, d] and its condition [b, 1, d] -> the head's, per token: [b, n, head width]."""
        return F.silu(self.projection(normalised(x_bnd) * self.norm() + c_b1d))
