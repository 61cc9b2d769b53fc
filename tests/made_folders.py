"""Class folders as people have them: JPEGs of all sizes, one grey, one CMYK, one truncated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

GREY, CMYK, TRUNCATED = "train/n01/1.JPEG", "train/n02/2.JPEG", "train/n01/2.JPEG"
CLASSES, TRAIN, TEST = 3, 6, 3  # images of each class


def write(path: Path, shape: tuple[int, int] = (40, 30), mode: str = "RGB", seed: int = 0) -> Path:
    """Write an image of `shape` (height, width): blocks of colour, so that JPEG keeps what it shows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    blocks = Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    blocks.resize(shape[::-1], Image.Resampling.BILINEAR).convert(mode).save(path)
    return path


def truncate(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])


def make_folders(root: Path, test: str = "val", broken: bool = True) -> Path:
    """Make `root` with `train/` and `test/`, 18 + 9 images of three classes."""
    number = 0
    for split, count in (("train", TRAIN), (test, TEST)):
        for label in range(CLASSES):
            for i in range(count):
                name, number = f"{split}/n0{label}/{i}.JPEG", number + 1
                mode = {GREY: "L", CMYK: "CMYK"}.get(name, "RGB")
                write(root / name, (20 + 7 * number % 50, 20 + 11 * number % 60), mode, number)
    if broken:
        truncate(root / TRUNCATED)
    return root
