"""Streamed class folders: the same batches by any number of workers and processes and after any resume."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from made_folders import CMYK, GREY, TRUNCATED, make_folders, truncate, write
from spaceless.data import Stream, find, open_images
from spaceless.data.feed import steps_per_epoch, training_batches
from spaceless.data.feed import test_batches as batches_of_a_test
from spaceless.data.stream import MEAN, STD, open_stream
from spaceless.data.workers import Draw, decoded
from spaceless.distributed import Share
from spaceless.errors import DataError, InputError
from spaceless.trial import RECIPES

CPU = torch.device("cpu")
RECIPE = RECIPES["imagenet"].model_copy(update={"epochs": 2, "batch_size": 5})  # of 18 images: 5 + 5 + 5 + 3
SIZE = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_folders(tmp_path_factory.mktemp("data") / "imagenet")


@pytest.fixture(autouse=True)
def no_workers(monkeypatch):
    monkeypatch.setenv("SPACELESS_WORKERS", "0")


@pytest.fixture
def data(folder) -> Stream:
    return open_stream(find(folder), SIZE)


def batches(data, first=0, seed=0, share=Share(), recipe=RECIPE):  # noqa: B008
    return list(training_batches(data, recipe, seed, first, CPU, share))


def same(one, other):
    return (torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)
            and one.broken == other.broken)


def test_what_is_known_without_decoding(folder, data):
    assert (data.name, data.classes, data.train_count, data.test_count) == ("imagenet", 3, 18, 9)
    assert data.train_labels.tolist() == [0] * 6 + [1] * 6 + [2] * 6
    assert data.train.path(0) == "train/n00/0.JPEG" and data.train.path(17) == "train/n02/5.JPEG"
    assert data.test.path(3) == "val/n01/0.JPEG"
    assert (data.mean, data.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)) == (MEAN, STD)
    assert open_images(folder, streamed=True).image_size == 224
    facts = data.facts
    assert (facts.source, facts.train_images, facts.test_images, facts.image_size) == ("imagenet", 18, 9, SIZE)
    assert facts.digest == data.digest == data.resized(8).digest


def test_only_class_folders_are_streamed(folder, tmp_path):
    images, labels = np.zeros((4, 8, 8, 3), np.uint8), np.array([0, 1, 0, 1])
    np.savez(tmp_path / "set.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    assert not isinstance(open_images(tmp_path / "set.npz", streamed=True), Stream)
    assert isinstance(open_images(folder, streamed=True), Stream)


def test_the_digest_is_of_paths_sizes_and_labels(tmp_path):
    def digest() -> str:
        return open_stream(find(tmp_path / "set")).digest

    make_folders(tmp_path / "set")
    seen = [digest()]
    assert digest() == seen[0]
    (tmp_path / "set").rename(tmp_path / "elsewhere")
    assert open_stream(find(tmp_path / "elsewhere")).digest == seen[0]
    (tmp_path / "elsewhere").rename(tmp_path / "set")
    image = tmp_path / "set/train/n00/0.JPEG"
    image.write_bytes(image.read_bytes() + b"\0")
    seen.append(digest())
    image.rename(image.with_name("00.JPEG"))
    seen.append(digest())
    for split in ("train", "val"):
        (tmp_path / "set" / split / "n01").rename(tmp_path / "set" / split / "n03")
    seen.append(digest())
    assert len(set(seen)) == 4


def test_a_draw_is_that_of_a_set_in_memory(folder, data):
    few = data.subset(7, 4)
    kept = open_images(folder, image_size=SIZE, streamed=True).subset(12, 4)
    assert (few.train_count, few.test_count, kept.train_count) == (7, 4, 12)
    assert few.train_labels.bincount().tolist() in ([3, 2, 2], [2, 3, 2], [2, 2, 3])
    paths = [few.train.path(i) for i in range(7)]
    assert paths == sorted(paths) and set(paths) < {kept.train.path(i) for i in range(12)}
    assert [int(label) for label in few.train_labels] == [int(path[8]) for path in paths]  # train/n0X/
    assert data.subset(18, 9) is data
    with pytest.raises(InputError, match=r"train images of imagenet: found 19, expected 1\.\.18"):
        data.subset(19)


def test_every_epoch_has_every_sound_image_once_and_names_the_broken_one(data):
    found = batches(data)
    per_epoch = steps_per_epoch(18, 5)
    assert per_epoch == 4 and len(found) == 8
    for epoch in (found[:per_epoch], found[per_epoch:]):
        assert sorted(torch.cat([batch.labels for batch in epoch]).tolist()) == [0] * 6 + [1] * 5 + [2] * 6
        ((broken,),) = [batch.broken for batch in epoch if batch.broken]
        assert broken.path == TRUNCATED and "cannot be decoded" in broken.reason
        assert [len(batch.images) + len(batch.broken) for batch in epoch] == [5, 5, 5, 3]
    assert all(batch.images.dtype == torch.uint8 and batch.images.shape[1:] == (3, SIZE, SIZE) for batch in found)
    assert not torch.equal(found[0].labels, found[per_epoch].labels)  # another order


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a machine of two processors
def test_batches_do_not_depend_on_the_number_of_workers(data, monkeypatch, workers):
    alone, tested = batches(data), list(batches_of_a_test(data, 4, CPU))
    monkeypatch.setenv("SPACELESS_WORKERS", str(workers))
    assert all(same(a, b) for a, b in zip(alone, batches(data), strict=True))
    assert all(same(a, b) for a, b in zip(tested, batches_of_a_test(data, 4, CPU), strict=True))


def test_resuming_at_any_step_gives_the_same_batches_and_decodes_none_before_it(data, monkeypatch):
    whole = batches(data)
    opened = []
    pristine = Image.open

    def recorded(source, *arguments, **options):
        opened.append(source)
        return pristine(source, *arguments, **options)

    monkeypatch.setattr(Image, "open", recorded)
    for first in range(len(whole) + 1):
        opened.clear()
        rest = batches(data, first)
        assert len(rest) == len(whole) - first
        assert all(same(a, b) for a, b in zip(whole[first:], rest, strict=True))
        assert len(opened) == sum(len(batch.images) + len(batch.broken) for batch in whole[first:])


@pytest.mark.parametrize("count", [1, 2, 3])
def test_shares_of_the_processes_make_up_the_whole(folder, tmp_path, count):
    root = make_folders(tmp_path / "sound", broken=False)
    for data in (open_stream(find(root), SIZE), open_stream(find(folder), SIZE)):
        whole = batches(data)
        shares = [batches(data, share=Share(rank, count)) for rank in range(count)]
        for step, batch in enumerate(whole):
            parts = [mine[step] for mine in shares]
            if not batch.broken:
                assert all(torch.equal(part.images, batch.images[rank::count]) for rank, part in enumerate(parts))
                assert all(torch.equal(part.labels, batch.labels[rank::count]) for rank, part in enumerate(parts))
            else:
                assert sorted(b for part in parts for b in part.broken) == sorted(batch.broken)
                assert {image.numpy().tobytes() for part in parts for image in part.images} == {
                    image.numpy().tobytes() for image in batch.images}
        tested = [b for rank in range(count) for b in batches_of_a_test(data, 4, CPU, Share(rank, count))]
        assert sorted(torch.cat([b.labels for b in tested]).tolist()) == data.test_labels.tolist()


def test_a_share_of_nothing_is_an_empty_batch(data, monkeypatch):
    for workers in ("0", "1"):
        monkeypatch.setenv("SPACELESS_WORKERS", workers)
        *_, last = batches(data, share=Share(3, 4))  # three images for four processes
        assert last.images.shape == (0, 3, SIZE, SIZE) and last.labels.shape == (0,)


def test_crops_depend_on_seed_epoch_and_image_alone(data):
    def crop(seed: int, epoch: int, numbers: list[int]) -> torch.Tensor:
        (found,) = decoded(data.train, SIZE, [(Draw(seed, epoch), numbers)], CPU, 0)
        return found.images

    both = crop(0, 0, [3, 0])
    assert torch.equal(both[1:], crop(0, 0, [0])) and torch.equal(both[:1], crop(0, 0, [3]))
    assert not torch.equal(crop(0, 0, [0]), crop(0, 1, [0]))
    assert not torch.equal(crop(0, 0, [0]), crop(1, 0, [0]))
    before = torch.get_rng_state()
    crop(0, 0, [0, 1])
    assert torch.equal(before, torch.get_rng_state())  # without workers this is the training's own


def test_crops_are_random_in_place_size_and_orientation(tmp_path):
    root = tmp_path / "ramp"
    ramp = np.zeros((60, 60, 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(60)[:, None] * 4, np.arange(60) * 4  # red tells the row, green the column
    for name in ("train/a/1.png", "train/b/1.png", "val/a/1.png", "val/b/1.png"):
        write(root / name)
        Image.fromarray(ramp).save(root / name)
    data = open_stream(find(root), SIZE)
    work = [(Draw(0, epoch), [0]) for epoch in range(300)]
    crops = torch.cat([found.images for found in decoded(data.train, SIZE, work, CPU, 0)]).float() / 4
    heights = crops[:, 0, -1, 12] - crops[:, 0, 0, 12]
    widths = crops[:, 1, 12, -1] - crops[:, 1, 12, 0]
    assert 110 < int((widths < 0).sum()) < 190  # mirrored: half of 300, five standard deviations
    area = heights * widths.abs() / 3600
    assert area.min() < 0.12 and area.max() > 0.8 and 0.4 < area.mean() < 0.6
    assert (heights > 0).all()
    (pair,) = decoded(data.train, SIZE, [(Draw(0, 0), [0, 1])], CPU, 0)  # the same picture twice
    assert not torch.equal(*pair.images)
    assert crops[:, 0, 0, 0].min() < 2 and crops[:, 0, 0, 0].max() > 25  # the first row of the crop


@pytest.mark.parametrize("size", [224, 24, 17])
def test_the_evaluation_cuts_as_torchvision_does(data, size):
    from torchvision.transforms import CenterCrop, Compose, Resize

    transform = Compose([Resize({224: 256, 24: 27, 17: 19}[size]), CenterCrop(size)])  # 24 * 256 / 224 = 27.4, 19.4
    found = torch.cat([batch.images for batch in batches_of_a_test(data.resized(size), 4, CPU)])
    for number, pixels in enumerate(found):
        with Image.open(data.test.folder / data.test.path(number)) as image:
            np.testing.assert_array_equal(pixels.permute(1, 2, 0), transform(image.convert("RGB")))


def test_grey_and_cmyk_become_three_colours(data, folder):
    numbers = [i for i in range(18) if data.train.path(i) in (GREY, CMYK)]
    grey, cmyk = next(decoded(data.train, SIZE, [(None, numbers)], CPU, 0)).images
    assert torch.equal(grey[0], grey[1]) and torch.equal(grey[0], grey[2])
    with Image.open(folder / CMYK) as image:
        expected = np.asarray(image.convert("RGB")).mean((0, 1))
    assert cmyk.float().mean((1, 2)).numpy() == pytest.approx(expected, abs=25)  # the middle of it


def test_bounds_hold_for_streamed_images_too(tmp_path, monkeypatch):
    root = make_folders(tmp_path / "set", broken=False)
    deep = Image.fromarray(np.arange(900, dtype=np.uint16).reshape(30, 30))
    deep.save(root / "val/n00/0.JPEG", "PNG")
    write(root / "val/n01/0.JPEG", (30, 300))
    monkeypatch.setattr("spaceless.data.images._MOST_PIXELS", 8999)
    data = open_stream(find(root), SIZE)
    reasons = {b.path: b.reason for batch in batches_of_a_test(data, 4, CPU) for b in batch.broken}
    assert reasons == {"val/n00/0.JPEG": "an image of mode I;16", "val/n01/0.JPEG": "300 x 30 pixels"}


def test_a_batch_without_two_sound_images_is_an_error(tmp_path):
    root = make_folders(tmp_path / "set", broken=False)
    for i in range(6):
        truncate(root / f"train/n00/{i}.JPEG")
    with pytest.raises(DataError, match="at least 2 sound images in every batch"):
        batches(open_stream(find(root), SIZE), recipe=RECIPE.model_copy(update={"batch_size": 2}))


def test_a_recipe_that_cuts_in_another_way_is_refused(data):
    with pytest.raises(InputError, match="found crop_flip, expected resized_crop"):
        batches(data, recipe=RECIPES["paper"])


def test_what_is_no_set_is_refused(tmp_path, data):
    write(tmp_path / "one/train/a/1.png")
    write(tmp_path / "one/test/a/1.png")
    with pytest.raises(DataError, match="1 class, expected at least 2"):
        open_stream(find(tmp_path / "one"))
    with pytest.raises(InputError, match="image size"):
        data.resized(0)
