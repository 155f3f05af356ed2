"""Diffusion transformers, which predict the velocity of latents: what they share, and LightningDiT.

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
from dmvae.spelling import nearest

SIZES = {
    "Mini": (256, 6, 4),
    "S": (384, 12, 6),
    "B": (768, 12, 12),
    "L": (1024, 24, 16),
    "XL": (1152, 28, 16),
    "1p0B": (1536, 24, 24),
    "1p6B": (1792, 28, 28),
}
"""Width, depth and heads of the published networks; the last two are LightningDiT's alone."""


def published(size: str) -> dict[str, int]:
    """width, depth, heads and patch_size of `SIZE/PATCH`: `"XL/1"` is the entry "XL" of `SIZES` with patches of 1.

    Raises ValueError for a name that is none.
    """
    name, _, patch = size.partition("/")
    if name not in SIZES or not (patch or "1").isdecimal() or int(patch or "1") < 1:
        raise ValueError(f"no network size is called {size!r}{nearest(size, [f'{known}/1' for known in SIZES])}")
    width, depth, heads = SIZES[name]
    return {"width": width, "depth": depth, "heads": heads, "patch_size": int(patch or "1")}


def require_heads(name: str, width: int, of: str, heads: int) -> None:
    if heads < 1:
        raise ValueError(f"{of} must be at least 1, got {heads}")
    if width < 1 or width % (4 * heads):
        raise ValueError(f"{name} {width} must be a multiple of 4 * {of} ({heads} heads)")


class DiffusionTransformer(VelocityModel):
    """Base of velocity networks on tokens, one for each patch of latents: DiT's design (arXiv 2212.09748).

    A constructor calls `embed`, makes `blocks`, called as (tokens [b, n, d], condition [b, 1, d], *self.rotation), and
    a `final_layer`, and calls `initialize`. Its arguments are at least in_channels, input_size, width, depth, heads,
    num_classes and patch_size.
    """

    _supports_gradient_checkpointing = True
    _gradient_checkpointing_func: Callable[..., Tensor] | None = None
    t_embedder: nn.Module
    blocks: nn.ModuleList
    final_layer: nn.Module

    def embed(self) -> int:
        """Make what comes before the blocks, of the config's sizes; tokens along each side. Raises ValueError for sizes
        that do not fit."""
        sizes = self.config
        for name in ("patch_size", "depth"):
            if sizes[name] < 1:
                raise ValueError(f"{name} must be at least 1, got {sizes[name]}")
        if sizes.input_size % sizes.patch_size:
            raise ValueError(f"input_size {sizes.input_size} is not a multiple of patch_size {sizes.patch_size}")
        require_heads("width", sizes.width, "heads", sizes.heads)
        side: int = sizes.input_size // sizes.patch_size
        self.gradient_checkpointing = False
        self.x_embedder = PatchEmbedder(sizes.in_channels, sizes.patch_size, sizes.width)
        self.t_embedder = TimeEmbedder(sizes.width)
        self.y_embedder = LabelEmbedder(sizes.num_classes, sizes.width)
        # Fixed, yet a parameter: the published weights hold it, and its size is part of their counts.
        self.pos_embed = nn.Parameter(sincos_positions(side, sizes.width)[None], requires_grad=False)
        return side

    def initialize(self) -> None:
        """Xavier for every Linear; zero for modulations and the last layer: each block starts as the identity."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.constant_(module.bias, 0.0)
        for module in self.modules():
            if isinstance(module, PatchEmbedder):
                assert module.proj.bias is not None
                nn.init.xavier_uniform_(module.proj.weight.flatten(1))
                nn.init.zeros_(module.proj.bias)
        times: Any = self.t_embedder
        for layer in (times.mlp[0], times.mlp[2], self.y_embedder.embedding_table):
            nn.init.normal_(layer.weight, std=0.02)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear) and ("adaLN_modulation" in name or name == "final_layer.linear"):
                nn.init.zeros_(module.weight)

    def forward(
        self, z_t: Tensor, t: Tensor, labels: Tensor, depth: int | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """z_t [b, C, H, W], t [b] in [0, 1] (0 noise, 1 data), labels int64 [b] in 0 .. num_classes -> velocity
        [b, C, H, W], float32; with `depth`, also the tokens [b, n, d] after that many blocks. Raises ValueError for t
        of another shape, and for latents of another size."""
        if not isinstance(t, Tensor) or t.shape != z_t.shape[:1]:
            told = list(t.shape) if isinstance(t, Tensor) else repr(t)
            raise ValueError(f"t: give times [{len(z_t)}], one for each latent; got {told}")
        x_bnd = self.x_embedder(z_t)
        if x_bnd.shape[1] != self.pos_embed.shape[1]:
            built = [self.config.in_channels, self.config.input_size, self.config.input_size]
            raise ValueError(f"z_t: latents {list(z_t.shape[1:])}; this network was built for {built}: build another")
        x_bnd = x_bnd + self.pos_embed
        time_b1d = self.t_embedder(t)[:, None]
        c_b1d = self.condition(time_b1d + self.y_embedder(labels)[:, None])
        blocks, first = [*self.blocks], depth or 0
        tokens = x_bnd = self._run(blocks[:first], x_bnd, c_b1d, *self.rotation)
        x_bnd = self._run(blocks[first:], x_bnd, c_b1d, *self.rotation)
        velocity = self.unpatchify(self.last(x_bnd, time_b1d, c_b1d, z_t))
        return velocity if depth is None else (velocity, tokens)

    @property
    def rotation(self) -> tuple[Tensor, ...]:
        """cos and sin of rotary positions, where the blocks take some."""
        return ()

    def condition(self, embedded: Tensor) -> Tensor:
        """The sum of the embeddings of time and label -> the condition [b, 1, d] of the blocks."""
        return F.silu(embedded)  # with which every modulation starts: once for all, here

    def last(self, x_bnd: Tensor, time_b1d: Tensor, c_b1d: Tensor, z_t: Tensor) -> Tensor:
        """What the blocks give -> the values of each patch [b, n, p * p * C]."""
        values: Tensor = self.final_layer(x_bnd, c_b1d)
        return values

    def compiled_parts(self) -> list[nn.Module]:
        """What `run.compile` compiles: each block by itself, because equal blocks share one compiled graph."""
        return [*self.blocks, self.final_layer]

    def _run(self, blocks: Iterable[nn.Module], x_bnd: Tensor, *rest: Tensor) -> Tensor:
        """The tokens behind these blocks."""
        for block in blocks:
            x_bnd = run_part(self, block, x_bnd, *rest)
        return x_bnd

    def unpatchify(self, x_bno: Tensor) -> Tensor:
        """Tokens [b, n, p * p * C] (row, column, channel within a patch) -> [b, C, H, W]."""
        p = self.config["patch_size"]
        side = self.config["input_size"] // p
        x = x_bno.unflatten(-1, (p, p, -1)).unflatten(1, (side, side))
        return x.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


class LightningDiT(DiffusionTransformer):
    """`velocity = model(z_t, t, labels)`.

    in_channels: C. input_size: H = W of the latents, a multiple of patch_size. num_classes: labels are
    0 .. num_classes - 1, and num_classes itself stands for "no label". mlp_ratio: the SwiGLU's hidden
    width is 2/3 of mlp_ratio * width, which costs as much as a plain MLP of mlp_ratio * width. head_width: width
    of a head of head_depth blocks (see `Head`) with head_heads attention heads, None for as many as `heads`; a
    head_width of None is no head, which is the published network. qk_norm: whether queries and keys are
    RMS-normalised, as in the paper's generators and not in LightningDiT's own released ones.
    """

    __module__ = "dmvae"  # the name under which artifacts find the class, wherever this file moves
    _no_split_modules = cast("None", ["Block"])  # as ModelMixin declares it

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
        head_heads: int | None = None,
    ):
        super().__init__()
        side = self.embed()
        if head_width is not None:
            own = ("heads", heads) if head_heads is None else ("head_heads", head_heads)
            require_heads("head_width", head_width, *own)
        cos, sin = rope_tables(side, width // heads)
        self.register_buffer("rope_cos", cos, persistent=False)
        self.register_buffer("rope_sin", sin, persistent=False)
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio, qk_norm) for _ in range(depth))
        if head_width is not None:
            embedder = PatchEmbedder(in_channels, patch_size, head_width)
            self.head = Head(embedder, width, head_width, head_depth, own[1], mlp_ratio, side, qk_norm)
        self.final_layer = FinalLayer(head_width or width, patch_size**2 * in_channels)
        self.initialize()

    @property
    def rotation(self) -> tuple[Tensor, ...]:
        return self.rope_cos, self.rope_sin

    def last(self, x_bnd: Tensor, time_b1d: Tensor, c_b1d: Tensor, z_t: Tensor) -> Tensor:
        if self.config["head_width"] is not None:
            c_b1d = self.head.condition(x_bnd, c_b1d)
            x_bnd = self.head.x_embedder(z_t)
            x_bnd = self._run(self.head.blocks, x_bnd, c_b1d, self.head.rope_cos, self.head.rope_sin)
        return super().last(x_bnd, time_b1d, c_b1d, z_t)

    def compiled_parts(self) -> list[nn.Module]:
        head: list[nn.Module] = [*self.head.blocks] if self.config["head_width"] is not None else []
        return [*head, *super().compiled_parts()]


class Head(nn.Module):
    """A few wide blocks that get z_t again, conditioned at each token on the backbone's output there.

    A velocity has noise in all C channels of the latents; a network whose tokens are narrower than that cannot express
    it. Only this part needs the width: DDT (arXiv 2504.05741), RAE (arXiv 2510.11690).
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
