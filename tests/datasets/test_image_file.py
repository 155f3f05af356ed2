import struct

import numpy as np
import pytest
import torch
from PIL import Image

from dmvae.datasets.image_file import BrokenImage, check_header, read_image
from dmvae.datasets.instance import as_image

RED = (220, 30, 40)


def flat(colour=RED, size=(24, 24), mode="RGB"):
    return Image.new(mode, size, colour)


def read(tmp_path, image, name="a.png", size=8, channels=3, **options):
    image.save(tmp_path / name, **options)
    return read_image(tmp_path / name, size, channels)


def is_colour(pixels, colour, tolerance=0):
    target = torch.tensor(colour).view(3, 1, 1)
    return pixels.shape == (3, 8, 8) and int((pixels.int() - target).abs().max()) <= tolerance


def test_every_mode_gives_its_colour(tmp_path):
    assert is_colour(read(tmp_path, flat()), RED)
    assert is_colour(read(tmp_path, flat().convert("P", palette=Image.Palette.ADAPTIVE)), RED)
    assert is_colour(read(tmp_path, flat().convert("RGBA")), RED)
    assert is_colour(read(tmp_path, flat(90, mode="L")), (90, 90, 90))
    assert is_colour(read(tmp_path, flat(1, mode="1")), (255, 255, 255))
    assert is_colour(read(tmp_path, flat((90, 255), mode="LA")), (90, 90, 90))
    assert is_colour(read(tmp_path, flat().convert("CMYK"), "a.jpg", quality=100), RED, 6)
    assert is_colour(read(tmp_path, flat(), "a.gif"), RED)
    assert is_colour(read(tmp_path, flat(), "a.webp", lossless=True), RED)
    assert is_colour(read(tmp_path, flat(), "a.bmp"), RED)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_are_white(tmp_path, mode):
    clear = {"RGBA": (9, 9, 9, 0), "LA": (9, 0), "P": 0}[mode]
    options = {"transparency": 0} if mode == "P" else {}
    assert is_colour(read(tmp_path, flat(clear, mode=mode), **options), (255, 255, 255))


def test_half_transparent_red_over_white(tmp_path):
    assert is_colour(read(tmp_path, flat((255, 0, 0, 128), mode="RGBA")), (255, 127, 127), 1)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm", "a.jp2"])
def test_16_bit_grey_keeps_its_upper_bits(tmp_path, name):
    pixels = read(tmp_path, Image.fromarray(np.full((20, 20), 0x7B12, np.uint16)), name)
    assert is_colour(pixels, (0x7B,) * 3)


@pytest.mark.parametrize(("dtype", "top"), [(np.uint16, 0x0100), (np.uint8, 0x01)])
@pytest.mark.parametrize("turned", [False, True])
def test_a_tiff_whose_white_is_zero_is_no_negative(tmp_path, dtype, top, turned):
    options = {"exif": Image.Exif()}
    options["exif"][0x0112] = 3 if turned else 1
    Image.fromarray(np.full((20, 20), top * 0x7B, dtype)).save(tmp_path / "a.tif", **options)
    data = (tmp_path / "a.tif").read_bytes()
    black_is_zero, white_is_zero = (struct.pack("<HHIHH", 262, 3, 1, value, 0) for value in (1, 0))
    assert data.count(black_is_zero) == 1
    (tmp_path / "a.tif").write_bytes(data.replace(black_is_zero, white_is_zero))
    assert is_colour(read_image(tmp_path / "a.tif", 8, 3), (0xFF - 0x7B,) * 3)


@pytest.mark.parametrize("value", [0x7B12, -5, 2**31 - 1])
def test_whole_numbers_of_an_unknown_range_are_refused(tmp_path, value):
    image = Image.fromarray(np.full((20, 20), value, np.int32))
    with pytest.raises(BrokenImage, match=r"a\.tif: pixels of 32 bits, .* no known range; save it with 8 or 16 bits"):
        read(tmp_path, image, "a.tif")
    with pytest.raises(ValueError, match=r"item 3: pixels of 32 bits, .* save it with 8 or 16 bits"):
        as_image(image, "item 3")


def test_a_transparent_16_bit_grey_is_white(tmp_path):
    pixels = np.full((20, 20), 0x7B12, np.uint16)
    assert is_colour(read(tmp_path, Image.fromarray(pixels), transparency=0x7B12), (255,) * 3)
    assert is_colour(read(tmp_path, Image.fromarray(pixels), transparency=0x7B13), (0x7B,) * 3)


def test_grey_output_is_luma(tmp_path):
    pixels = read(tmp_path, flat(), channels=1)
    assert pixels.shape == (1, 8, 8)
    assert int(pixels.unique()) == flat().convert("L").getpixel((0, 0))


def test_exif_orientation_turns_the_image(tmp_path):
    image = flat((0, 0, 0))
    image.paste((255, 255, 255), (0, 0, 24, 12))  # upper half white
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise: the upper half becomes the right
    pixels = read(tmp_path, image, "a.jpg", exif=exif, quality=100)
    assert pixels[:, :, 6:].min() > 240
    assert pixels[:, :, :2].max() < 15


@pytest.mark.parametrize("shape", [(40, 24), (24, 40), (301, 100), (8, 9)])
def test_the_central_square_is_kept(tmp_path, shape):
    w, h = shape
    side = min(shape)
    image = flat((0, 0, 255), shape)
    left, top = (w - side) // 2, (h - side) // 2
    image.paste(RED, (left, top, left + side + (w - side) % 2, top + side + (h - side) % 2))
    pixels = read(tmp_path, image)
    assert pixels.shape == (3, 8, 8)
    inner = pixels[:, 2:-2, 2:-2]  # the kernel of the outermost pixels reaches past the crop
    assert torch.equal(inner, torch.tensor(RED, dtype=torch.uint8).view(3, 1, 1).expand_as(inner))


def test_small_images_are_enlarged(tmp_path):
    assert is_colour(read(tmp_path, flat(size=(3, 5))), RED)


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_it_is_pillow_s_cropping_and_resizing_within_a_grey_level(tmp_path, name):
    noise = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((960, 640))
    pixels = read(tmp_path, image, name, size=64)
    with Image.open(tmp_path / name) as stored:
        theirs = np.asarray(stored.crop((160, 0, 800, 640)).resize((64, 64), Image.Resampling.BICUBIC))
    assert np.abs(pixels.permute(1, 2, 0).numpy().astype(int) - theirs).max() <= 1


@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"progressive": True}, {"quality": 20}])
def test_jpeg_files_have_pillow_s_pixels(tmp_path, options):
    """Noise in colour, in which another transform or another way to enlarge the colours would show."""
    noise = np.random.default_rng(0).integers(0, 256, (37, 37, 3), dtype=np.uint8)
    pixels = read(tmp_path, Image.fromarray(noise), "a.jpg", size=37, **options)
    with Image.open(tmp_path / "a.jpg") as stored:
        assert np.array_equal(pixels.permute(1, 2, 0), np.asarray(stored))


@pytest.mark.parametrize("at", [0.3, 0.5, 0.9])
@pytest.mark.parametrize("mode", ["RGB", "P"])
def test_pixels_that_are_damaged_are_no_damaged_exif_block(tmp_path, mode, at):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).convert(mode)
    noise.save(tmp_path / "a.png")
    data = bytearray((tmp_path / "a.png").read_bytes())
    for i in range(8):
        data[int(at * len(data)) + i] ^= 0xFF
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(BrokenImage, match=r"a\.png"):
        read_image(tmp_path / "a.png", 8, 3)


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.jpg"])
def test_an_image_whose_exif_block_is_damaged_counts_as_upright(tmp_path, name):
    pixels = read(
        tmp_path, flat(), name, exif=b"Exif\0\0xxxxnonsense", **({"lossless": True} if "webp" in name else {})
    )
    assert is_colour(pixels, RED, 3)


def test_jpeg_files_of_four_colours_go_to_pillow(tmp_path):
    assert is_colour(read(tmp_path, flat().convert("CMYK"), "a.jpg", quality=100), RED, 3)


def test_a_fine_pattern_is_averaged_not_aliased(tmp_path):
    board = np.indices((512, 512)).sum(0) % 2 * 255
    pixels = read(tmp_path, Image.fromarray(board.astype(np.uint8)))
    assert 124 <= int(pixels.min()) <= int(pixels.max()) <= 131


def test_the_size_asked_for_keeps_pixels(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    assert np.array_equal(read(tmp_path, Image.fromarray(array)).permute(1, 2, 0), array)


def test_broken_files_are_named(tmp_path):
    flat(size=(200, 200)).save(tmp_path / "cut.jpg")
    whole = (tmp_path / "cut.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("hello")
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "float.tif")
    for name in ("cut.jpg", "empty.png", "text.png", "float.tif", "absent.png"):
        with pytest.raises(BrokenImage, match=name):
            read_image(tmp_path / name, 8, 3)
    with pytest.raises(BrokenImage, match=r"cut\.jpg: image file is truncated"):
        read_image(tmp_path / "cut.jpg", 8, 3)
    assert check_header(tmp_path / "empty.png") == f"{tmp_path / 'empty.png'}: empty file"
    assert check_header(tmp_path / "cut.jpg") == ""  # the damage is behind the header
