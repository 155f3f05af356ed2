"""Latent diffusion's KL autoencoder as its checkpoints name it: shapes, and the encoder's forward pass."""

import torch
import torch.nn.functional as F

from dmvae.decoders.conv import SpatialAttention
from dmvae.models.layers import ResidualBlock

TINY = {"ch": 32, "ch_mult": (1, 2), "blocks": 1, "attention": (1,), "z": 4}
F16D32 = {"ch": 128, "ch_mult": (1, 1, 2, 2, 4), "blocks": 2, "attention": (4,), "z": 32}


def shapes(ch, ch_mult, blocks, attention, z) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor; attention: the levels that have it."""
    found: dict[str, tuple[int, ...]] = {}
    widths = [ch * m for m in ch_mult]
    last = len(widths) - 1

    def layer(name, *shape):
        found[f"{name}.weight"], found[f"{name}.bias"] = shape, shape[:1]

    def block(name, inside, out):
        layer(f"{name}.norm1", inside)
        layer(f"{name}.conv1", out, inside, 3, 3)
        layer(f"{name}.norm2", out)
        layer(f"{name}.conv2", out, out, 3, 3)
        if inside != out:
            layer(f"{name}.nin_shortcut", out, inside, 1, 1)

    def attend(name, width):
        layer(f"{name}.norm", width)
        for part in ("q", "k", "v", "proj_out"):
            layer(f"{name}.{part}", width, width, 1, 1)

    def middle(side):
        block(f"{side}.mid.block_1", widths[-1], widths[-1])
        attend(f"{side}.mid.attn_1", widths[-1])
        block(f"{side}.mid.block_2", widths[-1], widths[-1])

    layer("encoder.conv_in", ch, 3, 3, 3)
    for i, width in enumerate(widths):
        for j in range(blocks):
            block(f"encoder.down.{i}.block.{j}", width if j else widths[max(i - 1, 0)], width)
            if i in attention:
                attend(f"encoder.down.{i}.attn.{j}", width)
        if i < last:
            layer(f"encoder.down.{i}.downsample.conv", width, width, 3, 3)
    middle("encoder")
    layer("encoder.norm_out", widths[-1])
    layer("encoder.conv_out", 2 * z, widths[-1], 3, 3)
    layer("quant_conv", 2 * z, 2 * z, 1, 1)
    layer("post_quant_conv", z, z, 1, 1)
    layer("decoder.conv_in", widths[-1], z, 3, 3)
    middle("decoder")
    for i, width in enumerate(widths):
        for j in range(blocks + 1):
            block(f"decoder.up.{i}.block.{j}", width if j else widths[min(i + 1, last)], width)
            if i in attention:
                attend(f"decoder.up.{i}.attn.{j}", width)
        if i > 0:
            layer(f"decoder.up.{i}.upsample.conv", width, width, 3, 3)
    layer("decoder.norm_out", ch)
    layer("decoder.conv_out", 3, ch, 3, 3)
    return found


def random_checkpoint(leftovers: bool = True, **changes) -> dict[str, torch.Tensor]:
    """A tiny checkpoint with every tensor random, and what the training leaves behind."""
    random = torch.Generator().manual_seed(0)
    names = shapes(**(TINY | changes))
    if leftovers:
        names |= {"loss.logvar": (), "foundation_model.cls_token": (1, 1, 8), "linear_proj.weight": (8, 4, 1, 1)}
    return {name: 0.1 * torch.randn(shape, generator=random) for name, shape in names.items()}


def encode(weights: dict[str, torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    """The latents' mean, in arXiv 2112.10752's own order of layers, from our own blocks of the same names."""

    def conv(name, x, **kwargs):
        return F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], **kwargs)

    def part(make, name, x):
        own = {k.removeprefix(f"{name}."): v for k, v in weights.items() if k.startswith(f"{name}.")}
        if not own:
            return x
        module = make(own)
        module.load_state_dict(own)
        return module(x)

    def block(name, x):
        return part(lambda own: ResidualBlock(x.shape[1], len(own["conv1.bias"])), name, x)

    def attend(name, x):
        return part(lambda own: SpatialAttention(x.shape[1]), name, x)

    x = conv("encoder.conv_in", images, padding=1)
    for i in range(2):
        x = attend(f"encoder.down.{i}.attn.0", block(f"encoder.down.{i}.block.0", x))
        if i == 0:
            x = conv("encoder.down.0.downsample.conv", F.pad(x, (0, 1, 0, 1)), stride=2)
    x = attend("encoder.mid.attn_1", block("encoder.mid.block_1", x))
    x = block("encoder.mid.block_2", x)
    x = F.group_norm(x, 32, weights["encoder.norm_out.weight"], weights["encoder.norm_out.bias"], eps=1e-6)
    return conv("quant_conv", conv("encoder.conv_out", F.silu(x), padding=1)).chunk(2, dim=1)[0]
