"""Encoded images (PNG, JPEG, WebP, ...) to pixels: bounded before they are decoded, in threads, by name if broken."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from spaceless.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

Source = Path | bytes
UNREAD = "an image of mode"  # how the reason begins where an image is sound and yet not read

_FORMATS = {  # and the suffixes of their files
    "PNG": (".png", ".apng"), "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"), "WEBP": (".webp",), "BMP": (".bmp",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"), "TIFF": (".tif", ".tiff"), "GIF": (".gif",), "AVIF": (".avif",),
    "JPEG2000": (".jp2", ".j2k", ".jpx"),
}
_OPTIONAL = {"AVIF": "avif", "JPEG2000": "jpg_2000"}  # what pillow calls them among what it was built with
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")  # 8 bits a channel at most
_MOST_PIXELS = 1 << 26  # of one image; pillow itself warns from 1.3 times as many
_MOST_BYTES = 1 << 28  # of one file
_MOST_SCANS = 200  # of a JPEG; progressive ones have ten. Each may cost all pixels anew, and be empty
_MOST_SCANNED = 1 << 31  # pixels of all scans together
_SLOW_DECODERS = ("bmp_rle", "ppm", "ppm_plain")  # pillow's own in Python: up to a microsecond for each pixel
_MOST_SLOW_PIXELS = 1 << 22
_SHARE = 64  # images a thread takes at a time


class DifferentSizeError(DataError):
    """An image has not the size of the others, and no crop was asked for."""


@cache
def image_formats() -> dict[str, tuple[str, ...]]:
    """Return the formats that this machine's pillow decodes, each with the suffixes of its files in lower case."""
    from PIL import features

    built = features.get_supported()
    return {name: suffixes for name, suffixes in _FORMATS.items() if _OPTIONAL.get(name) in (None, *built)}


@cache
def image_suffixes() -> tuple[str, ...]:
    """Return the suffixes, in lower case, of files that are read as images."""
    return tuple(suffix for suffixes in image_formats().values() for suffix in suffixes)


def empty_pixels(
    count: int, size: int, what: str, cure: str = "choose a smaller image size, or keep fewer images",
) -> npt.NDArray[np.uint8]:
    """Return room for (count, 3, size, size) pixels, or raise DataError if this machine's memory cannot hold them."""
    needed, room = count * 3 * size * size, memory()
    if needed <= room:
        try:
            return np.empty((count, 3, size, size), np.uint8)
        except MemoryError:  # there is less left than there is
            pass
    raise DataError(
        what, found=f"{needed / 1e9:,.1f} GB of pixels ({count:,} images of {size} x {size})",
        expected=f"at most this machine's memory, {room / 1e9:,.1f} GB",
        cure=cure,
    )


def memory() -> int:
    """Return how many bytes of memory this machine has."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not every system tells
        return 1 << 36


def image_size_of(source: Source, name: str) -> tuple[int, int]:
    """Return width and height of an image in pixels, from its header alone."""
    width, height = opened_image(source, name, lambda image: image.size)
    return width, height


def decode_into(
    pixels: npt.NDArray[np.uint8], sources: Sequence[Source], name_of: Callable[[int], str], *, crop: bool,
    broken: dict[int, DataError] | None = None,
) -> None:
    """Decode `sources` into `pixels` (N, 3, S, S) as RGB, in as many threads as there are processors.

    Args:
        pixels: Filled in place.
        sources: N files or encoded images.
        name_of: Names image i in an error.
        crop: Resize the shorter side to S (bilinear, antialiased) and cut the centre out, as torchvision's
            `Resize(S)` and `CenterCrop(S)` do; otherwise every image must be S x S.
        broken: Gathers what is wrong with image i, whose pixels are then left as they were; None raises it.

    Raises:
        DataError: An image is broken, too large or not of 8 bits a channel; it is the first such one. With `broken`,
            never.
        DifferentSizeError: An image is not S x S and `crop` is off.

    """
    size = pixels.shape[-1]

    def share(start: int) -> None:
        for i in range(start, min(start + _SHARE, len(sources))):
            name = name_of(i)
            try:
                pixels[i] = opened_image(sources[i], name, partial(_planes, size=size, crop=crop, name=name))
            except DataError as error:
                if broken is None:
                    raise
                broken[i] = error

    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        try:
            for _ in pool.map(share, range(0, len(sources), _SHARE)):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def opened_image(source: Source, name: str, use: Callable[[Image.Image], Any]) -> Any:
    """Open an image, check what its header claims, and return what `use` makes of it.

    Raises:
        DataError: It is too large, not of 8 bits a channel, or cannot be decoded; `name` is named.

    """
    from PIL import Image

    try:
        size = len(source) if isinstance(source, bytes) else source.stat().st_size
        if size > _MOST_BYTES:
            raise _broken(name, f"{size:,} bytes", f"at most {_MOST_BYTES:,}")
        content = source if isinstance(source, bytes) else source.read_bytes()
        with Image.open(io.BytesIO(content), formats=tuple(image_formats())) as image:
            pixels = image.width * image.height
            if pixels > _MOST_PIXELS:
                raise _broken(name, f"{image.width} x {image.height} pixels", f"at most {_MOST_PIXELS:,} in all")
            if image.mode not in _MODES:
                raise DataError(
                    name, found=f"{UNREAD} {image.mode}", expected="8 bits a channel, in RGB or grey",
                    cure="convert it to 8-bit RGB or grey",
                )
            if image.tile and image.tile[0][0] in _SLOW_DECODERS and pixels > _MOST_SLOW_PIXELS:
                found = f"{image.width} x {image.height} pixels of the kind {image.tile[0][0]}"
                raise _broken(name, found, f"at most {_MOST_SLOW_PIXELS:,} in all, or another format")
            scans, most = content.count(b"\xff\xda"), min(_MOST_SCANS, _MOST_SCANNED // max(1, pixels))
            if content[:2] == b"\xff\xd8" and scans > most:
                raise _broken(name, f"{scans:,} scans", f"at most {most}")
            return use(image)
    except (DataError, MemoryError):
        raise
    except Exception as error:  # decoders raise nearly anything on broken bytes, and all of it means the same
        told = (isinstance(error, OSError) and error.strerror) or str(error)
        told = re.sub(r" ?<[^<>]* object at 0x[0-9a-fA-F]+>", "", told)  # another one in every run
        detail = f"{type(error).__name__}: {told}".splitlines()[0][:120]
        raise _broken(name, f"an image that cannot be decoded ({detail})", "PNG, JPEG, WebP, ...") from error


def _planes(image: Image.Image, size: int, crop: bool, name: str) -> npt.NDArray[np.uint8]:
    """Return (3, size, size)."""
    if image.size != (size, size) and not crop:
        raise DifferentSizeError(
            name, found=f"{image.width} x {image.height} pixels", expected=f"{size} x {size} like the first image",
            cure="give an image size, so that all are resized and cropped",
        )
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    if image.size != (size, size):
        rgb = centre(rgb, size, size, name)
    return np.asarray(rgb).transpose(2, 0, 1)


def centre(image: Image.Image, shorter: int, size: int, name: str) -> Image.Image:
    """Return the middle size x size pixels of an image whose shorter side is made `shorter` pixels (at least `size`).

    Bilinear and antialiased, with the roundings of torchvision's `Resize` and `CenterCrop`.

    Raises:
        DataError: The image is a strip so thin that it would grow beyond all bounds.

    """
    from PIL import Image

    short, long = sorted(image.size)
    scaled = shorter * long // short
    if scaled * shorter > _MOST_PIXELS:
        raise _broken(name, f"{image.width} x {image.height} pixels", "an image that is not a thin strip")
    shape = (shorter, scaled) if image.width <= image.height else (scaled, shorter)
    left, top = (round((edge - size) / 2) for edge in shape)
    return image.resize(shape, Image.Resampling.BILINEAR).crop((left, top, left + size, top + size))


def _broken(name: str, found: str, expected: str) -> DataError:
    return DataError(name, found=found, expected=expected, cure="remove or replace this image")
