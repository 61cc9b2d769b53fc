"""Augmentation: known crops by hand, a slow reference, and the statistics of the draws."""

import pytest
import torch
from torch.nn.functional import pad

from spaceless.data.augment import PADDING, Crops, apply_crops, draw_crops, normalise
from spaceless.seeds import generator


def crops(top, left, flipped):
    return Crops(torch.tensor(top), torch.tensor(left), torch.tensor(flipped))


def crop_flip(images, source, padding=PADDING):
    return apply_crops(images, draw_crops(len(images), source, padding), padding)


def reference(images, chosen, padding):
    """One image at a time, by slicing."""
    out = torch.empty_like(images)
    height, width = images.shape[2:]
    for i, (top, left, flipped) in enumerate(zip(*(choice.tolist() for choice in chosen), strict=True)):
        window = pad(images[i], (padding,) * 4)[:, top : top + height, left : left + width]
        out[i] = window.flip(2) if flipped else window
    return out


def test_known_crops_by_hand():
    image = torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 9]], dtype=torch.uint8)
    batch = image.expand(4, 1, 3, 3)
    out = apply_crops(batch, crops([1, 0, 0, 2], [1, 0, 0, 1], [False, False, True, False]), padding=1)
    assert out[:, 0].tolist() == [
        [[1, 2, 3], [4, 5, 6], [7, 8, 9]],  # the middle: unchanged
        [[0, 0, 0], [0, 1, 2], [0, 4, 5]],  # the upper left corner: zeros come in
        [[0, 0, 0], [2, 1, 0], [5, 4, 0]],  # the same window, mirrored
        [[4, 5, 6], [7, 8, 9], [0, 0, 0]],  # one row down
    ]
    assert out.dtype == torch.uint8


@pytest.mark.parametrize(("shape", "padding"), [((40, 3, 8, 8), 4), ((7, 1, 5, 9), 2), ((3, 2, 4, 4), 0)])
def test_equals_the_slow_reference(shape, padding):
    images = torch.randint(0, 256, shape, generator=generator(0, "images"), dtype=torch.uint8)
    chosen = draw_crops(shape[0], generator(1, "augment"), padding)
    assert torch.equal(apply_crops(images, chosen, padding), reference(images, chosen, padding))
    assert torch.equal(crop_flip(images, generator(1, "augment"), padding), reference(images, chosen, padding))


def test_images_that_are_no_contiguous_tensor():
    images = torch.randint(0, 256, (6, 8, 8, 3), generator=generator(0, "images"), dtype=torch.uint8)
    images = images.permute(0, 3, 1, 2)
    chosen = draw_crops(6, generator(2, "augment"))
    assert torch.equal(apply_crops(images, chosen), reference(images, chosen, 4))


def test_each_image_has_its_own_draw_uniform_over_all():
    chosen = draw_crops(81_000, generator(0, "augment"))
    cells = torch.bincount((chosen.top * 9 + chosen.left) * 2 + chosen.flipped, minlength=162)
    assert len(cells) == 162
    # 500 expected in each cell: chi-square with 161 degrees of freedom lies below 240 but once in 20,000 times.
    assert ((cells - 500.0).square() / 500).sum() < 240
    assert abs(chosen.flipped.float().mean() - 0.5) < 0.01
    same = torch.ones(64, 3, 32, 32, dtype=torch.uint8) * torch.arange(32, dtype=torch.uint8)
    assert len(torch.unique(crop_flip(same, generator(0, "augment")), dim=0)) > 30


def test_draws_follow_the_generator_alone():
    images = torch.randint(0, 256, (16, 3, 8, 8), generator=generator(0, "images"), dtype=torch.uint8)
    first = crop_flip(images, generator(3, "augment", 7))
    torch.rand(5)  # the global generator has no part in it
    assert torch.equal(first, crop_flip(images, generator(3, "augment", 7)))
    assert not torch.equal(first, crop_flip(images, generator(3, "augment", 8)))


def test_padding_is_black():
    white = torch.full((200, 3, 8, 8), 255, dtype=torch.uint8)
    assert crop_flip(white, generator(0, "augment")).unique().tolist() == [0, 255]


def test_normalise_by_hand():
    batch = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(1, 3, 1, 1)
    out = normalise(batch, (0.5, 0.2, 0.0), (0.25, 1.0, 0.5))
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.flatten(), torch.tensor([-2.0, 0.0, 2.0]), atol=1e-6, rtol=0)
    assert batch.flatten().tolist() == [0, 51, 255]  # the store is not written to


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_same_draws_on_every_device():
    images = torch.randint(0, 256, (16, 3, 8, 8), generator=generator(0, "images"), dtype=torch.uint8)
    here, there = (crop_flip(images.to(device), generator(0, "augment")) for device in ("cpu", "cuda"))
    assert torch.equal(here, there.cpu())
