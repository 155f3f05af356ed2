"""`dmvae encode` and `decode`: their arguments."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from dmvae.commands.codec import decode_latents, encode_images
from dmvae.commands.parser import Parser, add_plugins, add_resampling
from dmvae.registry import load_plugins
from dmvae.runtime import distributed
from dmvae.runtime.files import require_place
from dmvae.tokenizers.adapted import open_tokenizer


def encode(command: str, arguments: list[str]) -> None:
    parser = Parser(prog=f"dmvae {command}", description="Encode a folder of images into shards of latents.")
    parser.add_argument("images", type=Path, help="folder of images, or of class folders")
    parser.add_argument("--size", type=int, help="height and width after resize and crop (the tokenizer's)")
    add_resampling(parser)
    parser.add_argument("--shard-size", type=int, default=8192, help="images per file (%(default)s)")
    parser.add_argument("--workers", type=int, default=4, help="processes that read images (%(default)s)")
    parser.add_argument("--dtype", choices=["float32", "float16"], default="float32", help="on disk (%(default)s)")
    parser.add_argument("--format", dest="form", choices=["safetensors", "webdataset"], default="safetensors")
    _codec(parser, arguments, encode_images)


def decode(command: str, arguments: list[str]) -> None:
    parser = Parser(prog=f"dmvae {command}", description="Decode latents into PNG files.")
    parser.add_argument("latents", type=Path, help="folder that encode wrote, or a .safetensors, .npy or .tar file")
    parser.add_argument("--normalized", action="store_true", help="latents are as flow models make them")
    _codec(parser, arguments, decode_latents)


def _codec(parser: Parser, arguments: list[str], function: Callable[..., object]) -> None:
    parser.add_argument(
        "--tokenizer",
        required=True,
        help="folder of a tokenizer; folder or hub id of one of diffusers; a checkpoint of latent diffusion's format",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write; what is there is kept")
    parser.add_argument("--batch-size", type=int, default=64, help="images at a time (%(default)s)")
    parser.add_argument("--precision", choices=["auto", "float32", "bfloat16"], default="auto")
    add_plugins(parser)
    known = vars(parser.read(arguments))
    load_plugins(known.pop("plugins"))
    require_place("--out", known["out"], folder=True)
    # what is decoded has its own size: for `decode` any will do, of a tokenizer whose files name none
    otherwise = None if function is encode_images else 256
    tokenizer = open_tokenizer(known.pop("tokenizer"), known.get("size"), otherwise=otherwise)
    function(tokenizer, **known, device=distributed.start())
