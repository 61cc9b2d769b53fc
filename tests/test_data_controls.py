"""The made sets: what is drawn is what the geometry speaks of, and no leak tells the class to who has no places."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from made_arrangements import DIRECTIONS, leaks, placements, windows
from spaceless.data.controls import (
    PATTERN_SIZE,
    PATTERNS,
    TEXTURE_COPIES,
    control_size,
    make_control,
    marks,
)
from spaceless.errors import DataError
from spaceless.seeds import generator
from spaceless.trial import is_control

STRIDES = (1, 2, 4)


# --- the leak test: all placements, all windows ----------------------------------------------------------------------


@pytest.mark.parametrize(("distance", "side"), [(4, 1), (4, 3), (4, 4), (8, 4), (8, 7), (8, 8), (12, 10), (16, 14)])
def test_windows_without_places_do_not_tell_the_class(distance, side):
    size = control_size(f"arrangement-{distance}")
    assert leaks(distance, size, distance, side, STRIDES) == []


@pytest.mark.parametrize(("distance", "side"), [(4, 4), (8, 8)])
def test_the_check_notices_marks_near_the_border(distance, side):
    found = leaks(distance, control_size(f"arrangement-{distance}"), 0, side, STRIDES)
    assert {stride for stride, _, _ in found} == set(STRIDES)
    # One pixel less than the margin is enough: the window of a mark at the inner edge then ends at the border.
    assert leaks(distance, control_size(f"arrangement-{distance}") - 2, distance - 1, side, (1,)) == []
    assert leaks(distance, control_size(f"arrangement-{distance}") - 4, distance - 2, side, (1,)) != []


def test_the_check_notices_a_distance_that_is_no_multiple_of_the_stride():
    found = leaks(6, control_size("arrangement-6"), 6, 6, STRIDES)
    assert {stride for stride, _, _ in found} == {4}


def test_the_check_notices_ranges_that_are_no_multiples_of_the_stride():
    size = 3 * 8 + 10  # the pair can be placed at 10 columns and 18 rows, or the other way round
    assert len({x for x, *_ in placements(8, size, 8)["right"]}) == 10
    assert len({y for _, y, *_ in placements(8, size, 8)["right"]}) == 18
    assert {stride for stride, _, _ in leaks(8, size, 8, 8, STRIDES)} == {4}


def test_the_check_notices_a_window_that_sees_both_marks():
    for distance in (4, 8):
        found = leaks(distance, control_size(f"arrangement-{distance}"), distance, distance + 1, (1,))
        assert found == [(1, 0, 0)]


def test_window_numbers_tell_contents_apart():
    """The check's own foundation: equal numbers exactly for equal windows, against a comparison pixel by pixel."""
    places, size, side = [(4, 5, 8, 5), (5, 5, 9, 5)], 14, 3
    numbers = windows(places, size, side)
    images = np.full((2, size + 4, size + 4), 3)
    images[:, 2:-2, 2:-2] = 0
    for image, (red_x, red_y, green_x, green_y) in zip(images, places, strict=True):
        image[red_y + 2, red_x + 2], image[green_y + 2, green_x + 2] = 1, 2
    slow = np.lib.stride_tricks.sliding_window_view(images, (side, side), (1, 2))
    contents = {}
    for number, content in zip(numbers.ravel(), slow.reshape(-1, side * side), strict=True):
        contents.setdefault(number, set()).add(content.tobytes())
    assert all(len(each) == 1 for each in contents.values())
    assert len(contents) == len({c for each in contents.values() for c in each})


# --- what is drawn ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("distance", [4, 6, 8])
def test_every_drawn_image_is_one_of_the_enumerated(distance):
    name = f"arrangement-{distance}"
    data, size = make_control(name, seed=5), control_size(name)
    assert data.image_size == size == 3 * distance + 8
    assert data.class_names == tuple(DIRECTIONS)
    allowed = {kind: set(each) for kind, each in placements(distance, size, distance).items()}
    for images, labels in ((data.train_images, data.train_labels), (data.test_images, data.test_labels)):
        pixels = images.permute(0, 2, 3, 1).numpy()
        red, green = ((pixels == colour).all(3) for colour in ((255, 0, 0), (0, 255, 0)))
        assert (red.sum((1, 2)) == 1).all()
        assert (green.sum((1, 2)) == 1).all()
        rest = pixels[~(red | green)].reshape(len(pixels), -1, 3)
        assert (rest == rest[:, :1]).all()  # one colour, and far from that of the marks
        assert 70 <= rest.min() <= rest.max() < 84
        places = np.concatenate([np.argwhere(mark)[:, :0:-1] for mark in (red, green)], axis=1)
        for place, label in zip(places.tolist(), labels.tolist(), strict=True):
            assert tuple(place) in allowed[data.class_names[label]]


@pytest.mark.parametrize("distance", [4, 8])
def test_places_are_uniform_over_all_that_are_allowed(distance):
    size = control_size(f"arrangement-{distance}")
    for label, (name, allowed) in enumerate(placements(distance, size, distance).items()):
        draws = 200 * len(allowed)
        red, green = marks(torch.full((draws,), label), distance, size, generator(0, "test"))
        drawn, counts = torch.cat([red, green], 1).unique(dim=0, return_counts=True)
        assert {tuple(place) for place in drawn.tolist()} == set(allowed), name
        # chi-squared has a mean of its degrees of freedom and a variance of twice that
        free = len(allowed) - 1
        chi_squared = ((counts - 200.0) ** 2 / 200).sum().item()
        assert abs(chi_squared - free) < 4 * (2 * free) ** 0.5


@pytest.mark.parametrize("name", ["texture", "arrangement-4"])
def test_sizes_balance_and_seeds(name):
    data, again, other = make_control(name, 3), make_control(name, 3), make_control(name, 4)
    side = 32 if name == "texture" else 20
    assert data.train_images.shape == (4096, 3, side, side)
    assert data.test_images.shape == (2048, 3, side, side)
    assert data.train_labels.bincount().tolist() == [1024] * 4
    assert data.test_labels.bincount().tolist() == [512] * 4
    assert data.digest == again.digest
    assert data.digest != other.digest
    assert not torch.equal(data.train_images[:2048], data.test_images)
    follows = data.train_labels[:-1] * 4 + data.train_labels[1:]
    assert follows.bincount().min() > 4096 / 16 - 5 * 16  # the order is mixed: every class follows every class


def test_the_background_does_not_tell_the_class():
    for name in ("texture", "arrangement-4"):
        data = make_control(name)
        colours = data.train_images.flatten(2).double().quantile(0.5, dim=2)  # (N, 3): most pixels are background
        means = torch.stack([colours[data.train_labels == label].mean(0) for label in range(4)])
        error = colours.std(0) / 1024 ** 0.5
        assert ((means - colours.mean(0)).abs() < 4 * error).all()


# --- texture ---------------------------------------------------------------------------------------------------------


def test_patterns_have_four_pixels_and_none_is_a_shift_of_another():
    shapes = set()
    for pattern in PATTERNS:
        lit = np.argwhere(np.array(pattern))
        assert np.array(pattern).shape == (PATTERN_SIZE, PATTERN_SIZE)
        assert len(lit) == 4
        shapes.add(tuple(map(tuple, lit - lit.min(0))))
    assert len(shapes) == 4


def test_copies_of_one_pattern_never_touch_and_never_leave_the_image():
    """Taken apart greedily, each image consists of eight whole copies of its class's pattern and nothing else."""
    data = make_control("texture")
    lit = (data.train_images == 230).all(1).numpy()
    assert lit.reshape(4096, -1).sum(1).tolist() == [4 * TEXTURE_COPIES] * 4096
    for image, label in zip(lit[:400], data.train_labels[:400].tolist(), strict=True):
        pattern = np.argwhere(np.array(PATTERNS[label]))
        first = pattern[0]  # in reading order, as argwhere gives both
        left, boxes = {tuple(p) for p in np.argwhere(image).tolist()}, []
        while left:
            corner = np.array(min(left)) - first
            copy = {tuple(p) for p in (pattern + corner).tolist()}
            assert copy <= left
            left -= copy
            boxes.append(corner)
        assert len(boxes) == TEXTURE_COPIES
        assert np.min(boxes) >= 0
        assert np.max(boxes) <= 32 - PATTERN_SIZE
        apart = np.abs(np.array(boxes)[:, None] - np.array(boxes)[None]).max(2) + 99 * np.eye(TEXTURE_COPIES, dtype=int)
        assert apart.min() >= PATTERN_SIZE + 1  # at least one pixel of background between their 3x3 boxes


def test_single_pixels_of_a_texture_tell_nothing():
    """The multiset of pixel values holds 32 of one value and 992 of another, whatever the class."""
    data = make_control("texture")
    for label in range(4):
        pixels = data.train_images[data.train_labels == label].flatten(2).sort(2).values
        assert (pixels[:, :, -32:] == 230).all()
        assert (pixels[:, :, :-32] == pixels[:, :, :1]).all()


def test_texture_places_are_spread_over_the_image():
    lit = (make_control("texture").train_images == 230).all(1).double().mean(0)
    assert (lit[1:28, 1:28] > 0.01).all()


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["arrangement-", "arrangement-1", "arrangement-0", "arrangement-x", "arrangement--4",
                                  "arrangement-08", "arrangement-4.5", "arrangement-999", "arrangement-8 ", "textures"])
def test_a_name_that_means_nothing_or_far_too_much_is_refused(name):
    with pytest.raises(DataError, match="arrangement-"):
        make_control(name)


def test_what_is_a_control():
    assert is_control("texture")
    assert is_control("arrangement-4")
    assert not is_control("cifar100")
    assert not is_control("textures")
