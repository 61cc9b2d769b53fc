"""Broken images: the sentence about them, the limits, and each warned about once."""

import pytest
import torch

from spaceless.data.broken import Broken, LeftOut, broken_note, first_reasons, left_out_note, refuse_too_many
from spaceless.errors import DataError

NAMES = ("cat", "dog")


def lost(*numbers):
    return {i: Broken(i, f"train/{i}.jpg", f"bad {i}") for i in numbers}


def test_the_note_names_the_first_five_in_order():
    assert broken_note([]) == ""
    assert broken_note(["a"]) == "1 broken image left out: a"
    assert broken_note({"b", "a"}) == "2 broken images left out: a, b"
    assert broken_note(list("gfedcba")) == "7 broken images left out: a, b, c, d, e and 2 more"


@pytest.mark.parametrize(("images", "broken", "fits"), [
    (10, 1, True), (10, 2, False),  # one is always an accident
    (200, 2, True), (200, 3, False), (1000, 10, True), (1000, 11, False),
])
def test_more_than_one_in_a_hundred_is_an_error_that_names_the_first(images, broken, fits):
    labels = torch.arange(images) % 2
    chosen = lost(*range(7, 7 + broken)) if images > 10 else lost(*range(broken))
    if fits:
        refuse_too_many(chosen, labels, NAMES, "/data")
    else:
        first = min(chosen)
        with pytest.raises(DataError, match=rf"/data/train/{first}\.jpg: found bad {first}; {broken} of {images:,} im"):
            refuse_too_many(chosen, labels, NAMES, "/data")


def test_a_class_without_any_sound_image_is_an_error():
    labels = torch.tensor([0] * 400 + [1])
    refuse_too_many(lost(3), labels, NAMES, "/data")
    with pytest.raises(DataError, match=r"/data/train/400\.jpg: .*all images of class dog are broken"):
        refuse_too_many(lost(400), labels, NAMES, "/data")
    refuse_too_many({}, torch.tensor([0, 0]), NAMES, "/data")  # a class that never had any is no business of ours


def test_a_mode_that_is_not_read_is_told_from_what_is_broken():
    images = [Broken(0, "c", "an image of mode I;16"), Broken(1, "a", "cut"), Broken(2, "b", "an image of mode LAB")]
    assert left_out_note(images) == "1 broken image left out: a; 2 images of a mode that is not read left out: b, c"
    assert left_out_note([]) == left_out_note(()) == ""
    assert first_reasons(images) == ("a: cut", "b: an image of mode LAB", "c: an image of mode I;16")
    assert [image.unread for image in images] == [True, False, True]
    labels = torch.tensor([0, 1, 0, 1])
    with pytest.raises(DataError, match=r"all images of class cat are of a mode that is not read, .*; convert these"):
        refuse_too_many({0: images[0], 2: images[2]}, labels, NAMES, "/data")


def test_each_is_warned_about_once():
    left_out = LeftOut("/data", torch.arange(400) % 2, NAMES, lost(9).values())
    with pytest.warns(UserWarning, match=r"/data/train/5\.jpg is left out: bad 5") as caught:
        left_out.add(lost(5, 9).values())
        left_out.add(lost(5).values())
    assert len(caught) == 1  # 9 was known from before
    left_out.join(lost(7).values())
    left_out.add(lost(7).values())
    assert len(caught) == 1  # another process has warned about 7
    assert left_out.paths == ("train/5.jpg", "train/7.jpg", "train/9.jpg")


@pytest.mark.filterwarnings("ignore:.*is left out")
def test_what_others_met_counts_towards_the_limit():
    left_out = LeftOut("/data", torch.arange(200) % 2, NAMES)
    left_out.join(lost(1, 2).values())
    with pytest.raises(DataError, match="3 of 200 images"):
        left_out.add(lost(3).values())
