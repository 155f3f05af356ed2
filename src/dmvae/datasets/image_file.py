"""One image file, or the bytes of one, of any size and mode -> a square uint8 tensor; and a tensor -> a PNG file."""

from __future__ import annotations

import contextlib
import errno
import struct
from io import BytesIO
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import ExifTags, Image, ImageFile, ImageOps, features
from PIL.TiffImagePlugin import PHOTOMETRIC_INTERPRETATION, TiffImageFile
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2.functional import to_pil_image

from dmvae.datasets.memory import resize
from dmvae.runtime.files import atomic_write

LASTING = frozenset([
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.EINVAL,
])  # fmt: skip
"""Errors of a file that is so, or whose bytes lead a decoder astray. Others are of a disk or a network, which may be
well again."""
ALWAYS = frozenset([".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"])
SOMETIMES = frozenset([
    ".apng", ".avif", ".avifs", ".dib", ".heic", ".heics", ".heif", ".heifs", ".hif", ".ico", ".j2k", ".jp2", ".jpe",
    ".jpx", ".jxl", ".pbm", ".pcx", ".pnm", ".qoi", ".sgi", ".tga", ".xbm", ".xpm",
])  # fmt: skip
"""Endings of images that Pillow reads in some builds, or with a package beside it. Not those of other programs' files,
such as PostScript, which Pillow would hand to another program."""
NEVER = frozenset(
    [".arw", ".cr2", ".cr3", ".dng", ".eps", ".exr", ".hdr", ".nef", ".orf", ".pdf", ".psd", ".raf", ".rw2", ".svg"]
)
"""Endings of images that are not read: they are told where they lie among others."""


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
"""Endings of the images that are read."""
PIXELS = (5, *sorted(SUFFIXES))
"""Counts the ways of making pixels of files, and says what is read here: in the names of what is kept of images, so
that two do not mix, and what a decoder is installed for later is looked at anew."""


class BrokenImage(ValueError):
    """A file with an image's name that cannot be read as one."""


def read_image(path: Path, size: int, channels: int) -> Tensor:
    """uint8 [channels, size, size] of a file; `decode` says how. Raises BrokenImage naming the file, and ValueError
    where it is the disk that fails."""
    try:
        return decode(path, size, channels)
    except BrokenImage as error:
        raise _broken(path, error) from error


def write_png(path: Path, image: Tensor) -> None:
    """Write an image [c, h, w], uint8 or floats in [0, 1], in grey or colour; its folder is made where there is none.
    Raises OSError."""
    with atomic_write(path) as part:
        to_pil_image(image).save(part, format="PNG")


def decode(file: Path | BytesIO, size: int, channels: int) -> Tensor:
    """uint8 [channels, size, size]: upright, central square, antialiased bicubic.

    Transparent pixels are laid over white; 16-bit grey keeps its upper 8 bits; colour profiles are
    ignored; of an animation the first frame counts. Raises BrokenImage, and ValueError where it is the disk that fails.
    """
    try:
        with Image.open(file) as opened:
            pixels = _pixels(opened, channels)
    except MemoryError:
        raise
    except Exception as error:  # decoders raise almost any type on damaged bytes
        require_disk(error, file)
        told = str(error).replace(f" {file!r}", "")  # of bytes that is their address, another one each time
        raise BrokenImage(told or type(error).__name__) from error
    return resize(pixels[None], size)[0].contiguous()


def _pixels(image: ImageFile.ImageFile, channels: int) -> Tensor:
    """uint8 [channels, h, w] of an opened image, upright. A plain JPEG file in colour goes to torchvision's decoder,
    the same library with less around it, which gives the same pixels in two thirds of the time; others to Pillow."""
    upright = _orientation(image) == 1
    if upright and (image.format, image.mode, channels) == ("JPEG", "RGB", 3):
        assert image.fp is not None
        image.fp.seek(0)
        data = torch.frombuffer(bytearray(image.fp.read()), dtype=torch.uint8)
        with contextlib.suppress(RuntimeError):  # Pillow forgives more, and tells the rest
            return decode_jpeg(data, mode=ImageReadMode.RGB)
    if not upright:
        image.info.pop("exif", None)  # it has been read, and would be written anew, which a damaged block cannot be
        ImageOps.exif_transpose(image, in_place=True)
    values = torch.from_numpy(np.array(flatten(image, "L" if channels == 1 else "RGB")))
    return values[None] if channels == 1 else values.permute(2, 0, 1)


def _orientation(image: Image.Image) -> int:
    """1 is upright, which is what an image counts as whose EXIF block is damaged: its pixels need not be."""
    if image.format != "JPEG":  # to find the block Pillow reads some images' pixels, whose errors are not the block's
        image.load()
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except (SyntaxError, ValueError, struct.error, OSError):
        return 1


def check_header(path: Path) -> str:
    """What is wrong with a file, "" where it starts like an image; reads no pixels."""
    try:
        Image.open(path).close()
    except MemoryError:
        raise
    except Exception as error:
        require_disk(error, path)
        return str(_broken(path, error))
    return ""


def require_disk(error: Exception, what: object) -> None:
    """ValueError for an error that tells nothing of the file: no image is left out, or kept as broken, for it."""
    if isinstance(error, OSError) and error.errno not in (None, *LASTING):
        raise ValueError(f"{what} cannot be read: {error.strerror}") from error


def _broken(path: Path, error: Exception) -> BrokenImage:
    why = "empty file" if path.is_file() and path.stat().st_size == 0 else str(error) or type(error).__name__
    return BrokenImage(f"{path}: {why}")


def flatten(image: Image.Image, mode: Literal["L", "RGB"]) -> Image.Image:
    """An image of any mode as grey or colour, as `decode` says. Raises ValueError for floats, and for whole numbers
    that may have more than 16 bits or a sign: mode "I", but for PGM, and PNG, whose 16 bits older Pillows open so."""
    if image.mode == "I" and image.format not in ("PPM", "PNG"):
        raise ValueError("pixels of 32 bits, or with a sign, have no known range; save it with 8 or 16 bits")
    if image.mode.startswith("I"):  # "I" and "I;16*": Pillow itself would clip at 255
        pixels, clear = np.asarray(image).astype(np.int64).clip(0, 65535), image.info.get("transparency")
        if isinstance(image, TiffImageFile) and image.tag_v2.get(PHOTOMETRIC_INTERPRETATION) == 0:
            pixels = 65535 - pixels  # white is zero, which Pillow sees to where it is 8 bits
        image = Image.fromarray(np.where(pixels == clear, 255, pixels >> 8).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("float pixels have no known range; save it with 8 or 16 bits")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    if image.mode == mode:
        return image
    return image.convert("RGB").convert(mode)  # by way of RGB: palettes and CMYK have no direct grey
