"""Augmentation: known crops by hand, a slow reference, and the statistics of the draws."""

import pytest
import torch
from torch.nn.functional import interpolate, pad

from spaceless.data.augment import (
    PADDING,
    Crops,
    ResizedCrops,
    apply_crops,
    apply_resized_crops,
    draw_crops,
    draw_resized_crops,
    normalise,
)
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


# --- resized crops ---------------------------------------------------------------------------------------------------


def resized_reference(images, chosen):
    """One image at a time: cut out, resize, mirror; not rounded yet."""
    out = torch.empty(images.shape)
    for i, (top, left, height, width, flipped) in enumerate(zip(*(choice.tolist() for choice in chosen), strict=True)):
        window = images[i : i + 1, :, top : top + height, left : left + width].float()
        full = interpolate(window, images.shape[2:], mode="bilinear", align_corners=False)[0]
        out[i] = full.flip(2) if flipped else full
    return out


def test_known_resized_crops_by_hand():
    image = torch.tensor([[0, 40, 80, 120]] * 4, dtype=torch.uint8).T  # rows of 0, 40, 80, 120
    batch = torch.stack([image, image, image.T, image.T])[:, None].contiguous()
    chosen = ResizedCrops(*map(torch.tensor, ([0, 1, 0, 0], [0, 0, 1, 1], [4, 2, 4, 4], [4, 4, 2, 2],
                                              [False, False, False, True])))
    out = apply_resized_crops(batch, chosen)[:, 0]
    assert torch.equal(out[0], image)  # all of it
    # Rows 1 and 2, 40 and 80, at twice the size: centres at -0.25, 0.25, 0.75, 1.25 of them; nothing from rows 0 and 3.
    assert out[1].tolist() == [[value] * 4 for value in (40, 50, 70, 80)]
    assert out[2].tolist() == [[40, 50, 70, 80]] * 4
    assert out[3].tolist() == [[80, 70, 50, 40]] * 4


@pytest.mark.parametrize("size", [1, 5, 32, 57])
def test_resized_crops_equal_the_slow_reference(size):
    images = torch.randint(0, 256, (50, 3, size, size), generator=generator(0, "images"), dtype=torch.uint8)
    chosen = draw_resized_crops(50, size, generator(1, "augment"))
    out = apply_resized_crops(images, chosen)
    assert out.dtype == torch.uint8
    assert (out.float() - resized_reference(images, chosen)).abs().max() < 0.501  # rounded, and nothing else


def test_resized_crops_lie_within_the_image_and_within_the_ranges():
    size = 64
    chosen = draw_resized_crops(20_000, size, generator(0, "augment"))
    assert all(int(edge.min()) > 0 and int(edge.max()) <= size for edge in (chosen.height, chosen.width))
    for start, edge in ((chosen.top, chosen.height), (chosen.left, chosen.width)):
        assert start.min() >= 0 and (start + edge).max() <= size
    area, ratio = chosen.height * chosen.width / size**2, chosen.width / chosen.height
    # Sides are rounded to whole pixels: 0.5 of at least sqrt(0.08 * 3/4) * 64 = 15.7, so 3.2 % of each.
    assert 0.08 * 0.968**2 < area.min() < 0.09 and 0.95 < area.max() <= 1
    assert 0.75 * 0.937 < ratio.min() < 0.77 and 1.31 < ratio.max() < 4 / 3 * 1.067
    assert abs(chosen.flipped.float().mean() - 0.5) < 0.015
    # Crops that leave room begin anywhere, also at both ends.
    half = chosen.height == 32
    assert sorted(chosen.top[half].unique().tolist()) == list(range(33))


def test_resized_crops_are_drawn_as_torchvision_draws_them():
    from torchvision.transforms import RandomResizedCrop

    size, count = 48, 4000
    ours = draw_resized_crops(count, size, generator(0, "augment"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        image = torch.zeros(1, size, size)
        draws = [RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(count)]
    theirs = torch.tensor(draws).T  # top, left, height, width
    for mine, other in zip(ours[:4], theirs, strict=True):
        # The largest distance of the distributions (Kolmogorov-Smirnov): above 0.044 once in a thousand times.
        steps = torch.arange(size + 1)[:, None]
        assert ((mine <= steps).float().mean(1) - (other <= steps).float().mean(1)).abs().max() < 0.044


def test_resized_crops_follow_the_generator_and_differ_from_image_to_image():
    first, again, other = (draw_resized_crops(64, 32, generator(3, "augment", step)) for step in (7, 7, 8))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert len(set(zip(*(choice.tolist() for choice in first), strict=True))) > 60
