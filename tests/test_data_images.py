"""Decoding: bounds checked from the header, colours and crops against torchvision, the first broken image named."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from spaceless.data import images
from spaceless.data.images import DifferentSizeError, decode_into, empty_pixels, image_size_of
from spaceless.errors import DataError

RANDOM = np.random.default_rng(0)


def encoded(image, kind="PNG", **options):
    stream = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(stream, kind, **options)
    return stream.getvalue()


def decode(sources, size, crop=False):
    pixels = np.zeros((len(sources), 3, size, size), np.uint8)
    decode_into(pixels, sources, lambda i: f"image {i}", crop=crop)
    return pixels


def claiming(width, height):
    """Return a PNG whose header claims a size and which holds nothing."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + bytes(12)


def test_many_images_in_threads_keep_their_places():
    pixels = RANDOM.integers(0, 256, (300, 4, 4, 3), dtype=np.uint8)
    np.testing.assert_array_equal(decode([encoded(image) for image in pixels], 4), pixels.transpose(0, 3, 1, 2))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_every_mode_becomes_rgb(mode):
    image = Image.fromarray(RANDOM.integers(0, 256, (4, 4, 3), dtype=np.uint8)).convert(mode)
    kind = "TIFF" if mode == "CMYK" else "PNG"
    np.testing.assert_array_equal(decode([encoded(image, kind)], 4)[0].transpose(1, 2, 0), image.convert("RGB"))


@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (31, 33), (16, 16), (9, 50), (17, 8)])
def test_crop_equals_torchvision(shape):
    transforms = pytest.importorskip("torchvision.transforms")
    image = Image.fromarray(RANDOM.integers(0, 256, (*shape, 3), dtype=np.uint8))
    expected = transforms.Compose([transforms.Resize(16), transforms.CenterCrop(16)])(image)
    np.testing.assert_array_equal(decode([encoded(image)], 16, crop=True)[0].transpose(1, 2, 0), expected)


def test_the_first_broken_image_is_named():
    good = encoded(np.zeros((4, 4, 3), np.uint8))
    sources = [good] * 200
    sources[70] = sources[150] = good[:-25]
    with pytest.raises(DataError, match="image 70: found an image that cannot be decoded"):
        decode(sources, 4)


@pytest.mark.parametrize("content", [b"", b"no image", b"GIF89a", b"%!PS-Adobe-3.0 EPSF\n%%BoundingBox: 0 0 4 4\n"])
def test_what_is_no_image(content):
    with pytest.raises(DataError, match="cannot be decoded"):
        decode([content], 4)


@pytest.mark.parametrize(("width", "height"), [(8193, 8193), (60_000, 60_000), (2**31 - 1, 1)])
def test_bombs_are_refused_by_their_header(width, height, recwarn):
    with pytest.raises(DataError, match="bomb: found"):
        image_size_of(claiming(width, height), "bomb")


def test_a_jpeg_of_scans_without_end_is_refused():
    sound = encoded(np.zeros((16, 16, 3), np.uint8), "JPEG", progressive=True)
    last = sound.rindex(b"\xff\xda")
    many = sound[:last] + sound[last:-2] * 300 + b"\xff\xd9"
    assert decode([sound], 16).shape == (1, 3, 16, 16)
    with pytest.raises(DataError, match=r"image 0: found 3\d\d scans, expected at most 200"):
        decode([many], 16)


def run_length_encoded(width, height):
    """Return a BMP whose rows each begin with one pixel and then end."""
    header = struct.pack("<IHHIIiiHHIIIIII", 2000, 0, 0, 1078, 40, width, height, 1, 8, 1, 0, 0, 0, 256, 0)
    return b"BM" + header + bytes(1024) + b"\x01\x00\x00\x00" * height


@pytest.mark.parametrize(("content", "kind"), [
    (run_length_encoded(4096, 1025), "bmp_rle"), (b"P6 4096 1025 7\n", "ppm"), (b"P3 4096 1025 255\n", "ppm_plain"),
])
def test_what_is_decoded_pixel_by_pixel_may_not_be_large(content, kind):
    assert decode([run_length_encoded(16, 16)], 16).shape == (1, 3, 16, 16)
    with pytest.raises(DataError, match=rf"found 4096 x 1025 pixels of the kind {kind}, expected at most 4,194,304"):
        decode([content], 16, crop=True)


def test_strips_that_would_grow_are_refused():
    strip = encoded(np.zeros((1, 60_000, 3), np.uint8))
    with pytest.raises(DataError, match="thin strip"):
        decode([strip], 224, crop=True)


def test_modes_that_are_not_read_are_to_be_converted():
    deep = Image.fromarray(np.arange(16, dtype=np.uint16).reshape(4, 4))
    for content, mode in ((encoded(deep), "I;16"), (encoded(Image.new("LAB", (4, 4)), "TIFF"), "LAB")):
        with pytest.raises(DataError, match=f"mode {mode}, expected 8 bits a channel.*; convert it to 8-bit RGB or g"):
            decode([content], 4)


def test_what_is_told_is_the_same_in_every_run():
    with pytest.raises(DataError) as caught:
        decode([b"no image"], 4)
    assert "(UnidentifiedImageError: cannot identify image file)" in str(caught.value)


def test_suffixes_are_those_of_what_this_pillow_was_built_with(monkeypatch):
    from PIL import features

    monkeypatch.setattr(features, "get_supported", list)
    try:
        for each in (images.image_formats, images.image_suffixes):
            each.cache_clear()
        assert ".jfif" in images.image_suffixes() and ".avif" not in images.image_suffixes()
        assert decode([encoded(np.zeros((4, 4, 3), np.uint8))], 4).shape == (1, 3, 4, 4)
    finally:
        for each in (images.image_formats, images.image_suffixes):
            each.cache_clear()


def test_another_size_without_a_crop():
    with pytest.raises(DifferentSizeError, match="image 1: found 5 x 4 pixels, expected 4 x 4"):
        decode([encoded(np.zeros((4, 4, 3), np.uint8)), encoded(np.zeros((4, 5, 3), np.uint8))], 4)


def test_files_too_large_and_files_that_are_gone(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(np.zeros((4, 4, 3), np.uint8)))
    assert image_size_of(path, "a") == (4, 4)
    monkeypatch.setattr(images, "_MOST_BYTES", 10)
    with pytest.raises(DataError, match="at most 10"):
        image_size_of(path, "a")
    with pytest.raises(DataError, match="FileNotFoundError"):
        image_size_of(tmp_path / "absent.png", "absent")


def test_pixels_that_do_not_fit_into_memory(monkeypatch):
    monkeypatch.setattr(images, "memory", lambda: 16_000_000_000)
    with pytest.raises(DataError, match=r"192\.9 GB of pixels .*memory, 16\.0 GB; choose a smaller image size"):
        empty_pixels(1_281_167, 224, "imagenet")
    assert empty_pixels(10, 4, "small").shape == (10, 3, 4, 4)
