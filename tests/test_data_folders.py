"""Class folders: labels by the names of folders, one square size, and folders that disagree refused."""

import numpy as np
import pytest
import torch
from PIL import Image

from spaceless.data import load
from spaceless.errors import DataError


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda name: str(tmp_path / "cache" / name))


def write(path, shade=0, shape=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*shape, 3), shade, np.uint8)).save(path)


@pytest.fixture
def pets(tmp_path):
    """Two classes; the shade of each image tells which file it came from."""
    root = tmp_path / "pets"
    for shade, name in enumerate(["train/dog/b.png", "train/cat/a.png", "train/dog/a.jpg", "train/cat/z.webp",
                                  "test/cat/1.png", "test/dog/1.bmp"]):
        write(root / name, 20 * shade)
    (root / "train/cat/notes.txt").write_text("no image")
    (root / "train/cat/.hidden.png").write_text("no image")
    return root


def test_labels_and_images_in_alphabetical_order(pets):
    data = load(pets, image_size=8)
    assert data.class_names == ("cat", "dog")
    assert data.train_labels.tolist() == [0, 0, 1, 1]
    shades = data.train_images.float().mean((1, 2, 3))
    assert (shades - torch.tensor([20, 60, 40, 0])).abs().max() < 3  # JPEG and WebP lose a little
    assert data.test_images[:, 0, 0, 0].tolist() == [80, 100]


def test_any_shape_becomes_one_square(pets):
    write(pets / "train/cat/wide.png", 200, (10, 30))
    assert load("pets", data_root=pets.parent, image_size=4).train_images.shape == (5, 3, 4, 4)


def test_an_image_size_is_required(pets):
    with pytest.raises(DataError, match=r"no image size.*give --image-size"):
        load(pets)


@pytest.mark.parametrize("other", ["val", "validation"])
def test_unlabelled_test_images_are_passed_over(pets, other):
    write(pets / other / "cat/1.png", 7)
    write(pets / other / "dog/1.png", 9)
    assert load(pets, image_size=8).test_images[:, 0, 0, 0].tolist() == [80, 100]
    for folder in ("cat", "dog"):
        (pets / "test" / folder).rename(pets / f"unused_{folder}")
    write(pets / "test/ILSVRC_1.png")
    assert load(pets, image_size=8).test_images[:, 0, 0, 0].tolist() == [7, 9]


def test_folders_that_disagree(pets):
    write(pets / "test/bird/1.png")
    write(pets / "train/fish/1.png")
    with pytest.raises(DataError, match="2 classes in one split only: test/bird, train/fish") as caught:
        load(pets, image_size=8)
    assert caught.value.exit_status == 2


def test_empty_folders(pets):
    (pets / "train/bird").mkdir()
    with pytest.raises(DataError, match="bird: found no images"):
        load(pets, image_size=8)
    (pets.parent / "none/train").mkdir(parents=True)
    (pets.parent / "none/test").mkdir()
    with pytest.raises(DataError, match="train: found no class folders"):
        load(pets.parent / "none", image_size=8)


def test_a_broken_image_is_named(pets):
    path = pets / "train/dog/b.png"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DataError, match=r"pets/train/dog/b\.png: found an image that cannot be decoded"):
        load(pets, image_size=8)


def test_one_class_is_none(tmp_path):
    write(tmp_path / "one/train/cat/1.png")
    write(tmp_path / "one/test/cat/1.png")
    with pytest.raises(DataError, match="1 class, expected at least 2"):
        load(tmp_path / "one", image_size=8)
