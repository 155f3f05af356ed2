"""One image file, or the bytes of one, of any size and mode -> a square uint8 tensor; and a tensor -> a PNG file.

Shapes: c channels, h height, w width.
"""

from __future__ import annotations

import contextlib
import errno
import struct
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import ExifTags, Image, ImageFile, ImageOps, features
from PIL.TiffImagePlugin import PHOTOMETRIC_INTERPRETATION, TiffImageFile
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

from dmvae.datasets.memory import resize
from dmvae.ranges import Resampling
from dmvae.runtime.files import atomic_write

LASTING = frozenset([
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.EINVAL,
])  # fmt: skip
"""Errors of the file itself: its place, rights or bytes. Other errors are of a disk or a network, and may go away."""
ALWAYS = frozenset([".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"])
SOMETIMES = frozenset([
    ".apng", ".avif", ".avifs", ".dib", ".heic", ".heics", ".heif", ".heifs", ".hif", ".ico", ".j2k", ".jp2", ".jpe",
    ".jpx", ".jxl", ".pbm", ".pcx", ".pnm", ".qoi", ".sgi", ".tga", ".xbm", ".xpm",
])  # fmt: skip
"""Endings of images that Pillow reads in some builds, or with another package. No formats such as PostScript, for which
Pillow would start another program."""
NEVER = frozenset(
    [".arw", ".cr2", ".cr3", ".dng", ".eps", ".exr", ".hdr", ".nef", ".orf", ".pdf", ".psd", ".raf", ".rw2", ".svg"]
)
"""Endings of images that are not read: a warning names such files among others."""


def _readable() -> frozenset[str]:
    try:
        import pillow_heif

        pillow_heif.register_heif_opener()
    except ImportError:
        pass
    Image.init()
    return ALWAYS | {
        suffix
        for suffix, form in Image.registered_extensions().items()
        if suffix in SOMETIMES and form in Image.OPEN and (form != "AVIF" or features.check("avif"))
    }


SUFFIXES = _readable()
"""Endings of the images that are read on this machine."""
PIXELS = (5, *sorted(SUFFIXES))
"""A version number of how files become pixels, and the endings that are read here. It is in the keys of cached images:
a new version, or a decoder that is installed later, must not find the old ones."""


class BrokenImage(ValueError):
    """A file with an image's name that cannot be read as one."""


def read_image(path: Path, size: int, channels: int, resampling: Resampling = "square") -> Tensor:
    """uint8 [channels, size, size] of a file, as `decode` does. Raises BrokenImage naming the file, and ValueError
    where not the file but the disk fails."""
    try:
        return decode(path, size, channels, resampling)
    except BrokenImage as error:
        raise _broken(path, error) from error


def write_png(path: Path, image: Tensor) -> None:
    """Write an image [c, h, w], c = 1 or 3, uint8 or float in [0, 1]; a missing folder is made. Raises OSError."""
    with atomic_write(path) as part:
        to_pil_image(image).save(part, format="PNG")


def decode(file: Path | BytesIO, size: int, channels: int, resampling: Resampling = "square") -> Tensor:
    """uint8 [channels, size, size]: upright, then resampled.

    Transparent pixels are laid over white; 16-bit grey keeps its upper 8 bits; colour profiles are
    ignored; an animation gives its first frame. Raises BrokenImage, and ValueError where the disk fails.
    """
    try:
        with Image.open(file) as opened:
            pixels = _pixels(opened, channels)
    except MemoryError:
        raise
    except Exception as error:  # decoders raise almost any type on damaged bytes
        require_disk(error, file)
        told = str(error).replace(f" {file!r}", "")  # a BytesIO shows its address, which differs each time
        raise BrokenImage(told or type(error).__name__) from error
    return RESAMPLINGS[resampling](pixels, size)


def _square(pixels: Tensor, size: int) -> Tensor:
    """uint8 [c, h, w] -> uint8 [c, size, size]: the central square, resized once, antialiased bicubic."""
    return resize(pixels[None], size)[0].contiguous()


def _adm(pixels: Tensor, size: int) -> Tensor:
    """uint8 [c, h, w] -> uint8 [c, size, size], as ADM prepares ImageNet (Dhariwal and Nichol 2021; `center_crop_arr`
    of guided-diffusion): both sides halved by boxes while the shorter has twice the size, one bicubic resize to it, the
    central crop. Pillow's rounding between these steps is a part of it."""
    image = to_pil_image(pixels)
    # the ends of a strip are cut off anyway, and at its new length it might not fit into memory
    image = _centre(image, *(min(side, STRIP * min(image.size)) for side in image.size))
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    return pil_to_tensor(_centre(image, size, size))


def _centre(image: Image.Image, width: int, height: int) -> Image.Image:
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


RESAMPLINGS: dict[Resampling, Callable[[Tensor, int], Tensor]] = {"square": _square, "adm": _adm}
STRIP = 64
"""How many times as long as wide an image may be for ADM's resampling to take all of it."""


def _pixels(image: ImageFile.ImageFile, channels: int) -> Tensor:
    """uint8 [channels, h, w] of an opened image, upright. Plain colour JPEG goes to torchvision's decoder, which uses
    the same library, gives the same pixels and takes two thirds of the time; all others go to Pillow."""
    upright = _orientation(image) == 1
    if upright and (image.format, image.mode, channels) == ("JPEG", "RGB", 3):
        assert image.fp is not None
        image.fp.seek(0)
        data = torch.frombuffer(bytearray(image.fp.read()), dtype=torch.uint8)
        with contextlib.suppress(RuntimeError):  # Pillow reads more damaged files, and its errors say more
            return decode_jpeg(data, mode=ImageReadMode.RGB)
    if not upright:
        image.info.pop("exif", None)  # exif_transpose would write the block again, which fails for a damaged one
        ImageOps.exif_transpose(image, in_place=True)
    values = torch.from_numpy(np.array(flatten(image, "L" if channels == 1 else "RGB")))
    return values[None] if channels == 1 else values.permute(2, 0, 1)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 for upright. A damaged EXIF block counts as 1: the pixels may be fine."""
    if image.format != "JPEG":  # getexif reads pixels in some formats: raise their errors here
        image.load()
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except (SyntaxError, ValueError, struct.error, OSError):
        return 1


def check_header(path: Path) -> str:
    """What is wrong with a file, "" if it starts like an image. Raises ValueError if the disk fails."""
    try:
        Image.open(path).close()
    except MemoryError:
        raise
    except Exception as error:
        require_disk(error, path)
        return str(_broken(path, error))
    return ""


def require_disk(error: Exception, what: object) -> None:
    """Raise ValueError for an error of the disk, not the file: no image may be left out or kept as broken for it."""
    if isinstance(error, OSError) and error.errno not in (None, *LASTING):
        raise ValueError(f"{what} cannot be read: {error.strerror}") from error


def _broken(path: Path, error: Exception) -> BrokenImage:
    why = "empty file" if path.is_file() and path.stat().st_size == 0 else str(error) or type(error).__name__
    return BrokenImage(f"{path}: {why}")


def flatten(image: Image.Image, mode: Literal["L", "RGB"]) -> Image.Image:
    """An image of any mode as grey or colour, as `decode` does. Raises ValueError for float pixels, and for integers
    that may have more than 16 bits or a sign: mode "I", but for PGM and PNG, where older Pillows open 16 bits so."""
    if image.mode == "I" and image.format not in ("PPM", "PNG"):
        raise ValueError("pixels of 32 bits, or with a sign, have no known range; save it with 8 or 16 bits")
    if image.mode.startswith("I"):  # "I" and "I;16*": Pillow itself would clip at 255
        pixels, clear = np.asarray(image).astype(np.int64).clip(0, 65535), image.info.get("transparency")
        if isinstance(image, TiffImageFile) and image.tag_v2.get(PHOTOMETRIC_INTERPRETATION) == 0:
            pixels = 65535 - pixels  # here white is zero; for 8 bits Pillow inverts itself
        image = Image.fromarray(np.where(pixels == clear, 255, pixels >> 8).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("float pixels have no known range; save it with 8 or 16 bits")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    if image.mode == mode:
        return image
    return image.convert("RGB").convert(mode)  # by way of RGB: Pillow turns no palette or CMYK into grey
