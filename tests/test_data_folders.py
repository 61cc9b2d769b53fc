"""Class folders: labels by the names of folders, one square size, and folders that disagree refused."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from spaceless.data import load, open_images, verify
from spaceless.data.classes import class_files
from spaceless.data.images import image_formats
from spaceless.data.workers import decoded
from spaceless.errors import DataError

NOTES = "1 file of the class folders skipped as no image: train/cat/notes.txt"
pytestmark = pytest.mark.filterwarnings("ignore:.*skipped as no image")


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


def test_files_that_are_no_images_are_counted(pets):
    assert load(pets, image_size=8).note == open_images(pets, streamed=True).note == NOTES
    for name in ("train/dog/a.heic", "train/dog/deeper/a.xml", "train/dog/.DS_Store", "test/readme.txt"):
        (pets / name).parent.mkdir(exist_ok=True)
        (pets / name).write_text("no image")
    write(pets / "train/loose.png")
    with pytest.warns(UserWarning, match="4 files of the class folders"):  # also where the pixels are kept already
        assert load(pets, image_size=8).note == (
            "4 files of the class folders skipped as no image: train/cat/notes.txt, train/dog/a.heic, "
            "train/dog/deeper/a.xml, train/loose.png")
    assert "note: 4 files of the class folders skipped" in "\n".join(verify(pets, image_size=8).lines())


def test_folders_within_class_folders_belong_to_the_class(pets):
    flat = [str(path.relative_to(pets)) for path in class_files(pets).files]
    assert flat == ["train/cat/a.png", "train/cat/z.webp", "train/dog/a.jpg", "train/dog/b.png", "test/cat/1.png",
                    "test/dog/1.bmp"]
    for name in ("train/cat/b/2.png", "train/cat/b/1.png", "train/cat/b/c/0.png", "train/cat/a/9.png",
                 "train/cat/.hidden/1.png"):
        write(pets / name, 200)
    deep = [str(path.relative_to(pets)) for path in class_files(pets).train["cat"]]
    assert deep == [*flat[:2], "train/cat/a/9.png", "train/cat/b/1.png", "train/cat/b/2.png", "train/cat/b/c/0.png"]
    from torchvision.datasets import ImageFolder

    assert [str(path) for path, _ in ImageFolder(pets / "train").samples if "/.hidden" not in path] == [
        str(pets / name) for name in (*deep, *flat[2:4])]
    assert load(pets, image_size=8).train_labels.tolist() == [0] * 6 + [1] * 2
    assert open_images(pets, streamed=True).train_count == 8


@pytest.mark.parametrize(("suffix", "kind"), [
    (".JFIF", "JPEG"), (".jpe", "JPEG"), (".apng", "PNG"), (".pnm", "PPM"), (".avif", "AVIF"), (".jp2", "JPEG2000"),
])
def test_images_of_every_suffix_that_pillow_reads(suffix, kind, pets):
    if kind not in image_formats():
        pytest.skip(f"pillow without {kind}")
    Image.fromarray(np.full((8, 8, 3), 200, np.uint8)).save(pets / f"train/dog/c{suffix}", kind)
    data = load(pets, image_size=8)
    assert data.train_labels.tolist() == [0, 0, 1, 1, 1]
    assert (data.train_images[4].float() - 200).abs().max() < 3


def test_links_that_lead_nowhere_are_broken_images(pets):
    (pets / "train/dog/gone.png").symlink_to(pets / "absent.png")
    with pytest.warns(UserWarning, match=r"\(train/dog/gone\.png: .*FileNotFoundError: No such file or directory\)"):
        assert load(pets, image_size=8).train_count == 4
    assert open_images(pets, streamed=True).train_count == 5
    (problem,) = verify(pets, image_size=8).problems
    assert problem.startswith("train/dog/gone.png: ")
    write(pets / "absent.png", 200)
    assert load(pets, image_size=8).train_count == 5
    (pets / "train/bird").symlink_to(pets / "nowhere")
    with pytest.raises(DataError, match="train/bird: found a link that leads nowhere"):
        load(pets, image_size=8)


def test_links_in_a_ring_end(pets):
    ring, back, odd = (pets / "train/dog" / name for name in ("ring.png", "back", "odd"))
    ring.symlink_to(ring)
    odd.symlink_to(odd)
    back.symlink_to(pets / "train")
    (pets / "train/cat/deep").mkdir()
    write(pets / "train/cat/deep/1.png")
    (pets / "train/cat/deep/again").symlink_to(pets / "train/cat/deep")
    with pytest.warns(UserWarning, match=r"1 broken image left out: train/dog/ring\.png"):
        data = load(pets, image_size=8)
    assert data.train_labels.tolist() == [0, 0, 0, 1, 1]
    assert "4 files" in data.note and "train/dog/back" in data.note and "train/dog/odd" in data.note


def test_names_that_are_no_utf_8_can_be_written_down(tmp_path):
    root = tmp_path / "set"
    for split in ("train", "test"):
        for name in (b"caf\xe9", b"tea"):
            folder = os.fsdecode(os.fsencode(root / split) + b"/" + name)
            try:
                write(Path(folder) / "1.png", 50)
            except OSError:
                pytest.skip("a file system that takes UTF-8 only")
    bad = Path(os.fsdecode(os.fsencode(root / "train/tea") + b"/bad\xff.png"))
    write(bad, 50)
    cut(bad)
    with pytest.warns(UserWarning, match="left out"):
        data = load(root, image_size=8)
    stream = open_images(root, image_size=8, streamed=True)
    assert data.class_names == stream.class_names == ("caf\\xe9", "tea")
    assert data.train_images.flatten().unique().tolist() == [50]  # the right files were opened
    assert data.note == "1 broken image left out: train/tea/bad\\xff.png"
    (decoded_work,) = decoded(stream.train, 8, [(None, [0, 1, 2])], torch.device("cpu"), 0)
    assert decoded_work.numbers.tolist() == [0, 1]
    ((number, path, _),) = decoded_work.broken
    assert (number, path) == (2, "train/tea/bad\\xff.png")
    for text in (data.facts.model_dump_json(), *data.class_names, path, *verify(root, image_size=8).lines()):
        text.encode("utf-8")


def test_images_of_a_mode_that_is_not_read_are_not_called_broken(pets):
    deep = Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8))
    deep.save(pets / "train/dog/b.png")
    with pytest.warns(UserWarning, match="left out"):
        note = load(pets, image_size=8).note
    assert note.startswith("1 image of a mode that is not read left out: train/dog/b.png; ")
    deep.save(pets / "train/cat/a.png")
    with pytest.raises(DataError, match=r"mode I;16; 2 of 4 images are of a mode that is not read.*convert these to 8"):
        load(pets, image_size=8)
    cut(pets / "train/cat/a.png")
    with pytest.raises(DataError, match=r"2 of 4 images are broken or of a mode.*replace the others"):
        load(pets, image_size=8)


@pytest.mark.parametrize("pool", [False, True], ids=["files", "links"])
def test_what_was_decoded_is_used_for_the_same_files_in_the_same_classes_only(pool, tmp_path):
    def make(name, labels):
        for split in ("train", "test"):
            for number, label in enumerate(labels):
                path = tmp_path / name / split / label / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                if pool:
                    path.symlink_to(tmp_path / f"pool/{number}.png")
                else:
                    write(path, 100 * number)
        return load(tmp_path / name, image_size=8)

    for number in range(3):
        write(tmp_path / f"pool/{number}.png", 100 * number)
    assert make("one", "aab").train_labels.tolist() == [0, 0, 1]
    assert make("other", "abb").train_labels.tolist() == [0, 1, 1]
    for split in ("train", "test"):
        (tmp_path / "one" / split / "b").rename(tmp_path / "one" / split / "c")
    assert load(tmp_path / "one", image_size=8).class_names == ("a", "c")
    (tmp_path / "one/train/a/1.png").rename(tmp_path / "one/train/c/1.png")
    moved = load(tmp_path / "one", image_size=8)
    assert moved.train_labels.tolist() == [0, 1, 1]
    assert moved.train_images[:, 0, 0, 0].tolist() == [0, 100, 200]


def test_any_shape_becomes_one_square(pets):
    write(pets / "train/cat/wide.png", 200, (10, 30))
    assert load("pets", data_root=pets.parent, image_size=4).train_images.shape == (5, 3, 4, 4)


def test_an_image_size_is_required(pets):
    with pytest.raises(DataError, match=r"no image size.*give --image-size"):
        load(pets)


@pytest.mark.parametrize("other", ["val", "validation", "valid"])
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


def cut(path):
    path.write_bytes(path.read_bytes()[:40])


def test_a_broken_image_is_left_out_by_name(pets):
    cut(pets / "train/dog/a.jpg")  # not the last: those behind it must move up, with their labels
    for again in range(2):  # decoded, then from the cache
        with pytest.warns(UserWarning, match=r"pets: 1 broken image left out: train/dog/a\.jpg") as caught:
            data = load(pets, image_size=8)
        assert len(caught) == 1, again
        assert data.note == data.facts.note == f"1 broken image left out: train/dog/a.jpg; {NOTES}"
        assert "(train/dog/a.jpg: an image that cannot be decoded (" in str(caught[0].message)  # what no outcome keeps
        assert data.train_labels.tolist() == [0, 0, 1]
        assert (data.train_images.float().mean((1, 2, 3)) - torch.tensor([20, 60, 0])).abs().max() < 3
        assert (data.facts.train_images, data.facts.test_images) == (3, 2)


def test_images_behind_many_broken_ones_move_up_block_by_block(pets, monkeypatch):
    monkeypatch.setattr("spaceless.data.folders._BLOCK", 7)
    monkeypatch.setattr("spaceless.data.broken.LARGEST_SHARE", 0.2)
    for i in range(50):
        write(pets / f"train/cat/{i:02d}.png", 4 * i + 1)
    for i in (0, 13, 14, 49):
        cut(pets / f"train/cat/{i:02d}.png")
    with pytest.warns(UserWarning, match="4 broken images"):
        data = load(pets, image_size=8)
    kept = [4 * i + 1 for i in range(50) if i not in (0, 13, 14, 49)]
    assert data.train_images[:46, 0, 0, 0].tolist() == kept
    assert len(data.train_images) == len(data.train_labels) == 50


def test_too_many_broken_images_are_an_error_that_names_the_first(pets):
    cut(pets / "train/dog/b.png")
    cut(pets / "train/cat/z.webp")
    with pytest.raises(DataError, match=r"pets/train/cat/z\.webp: .*2 of 4 images are broken"):
        load(pets, image_size=8)


def test_a_class_of_broken_images_is_an_error(pets):
    cut(pets / "test/dog/1.bmp")
    with pytest.raises(DataError, match=r"pets/test/dog/1\.bmp: .*all images of class dog are broken"):
        load(pets, image_size=8)


def test_what_does_not_fit_into_memory_can_be_streamed(pets, monkeypatch):
    monkeypatch.setattr("spaceless.data.images.memory", lambda: 700)
    with pytest.raises(DataError, match="--recipe imagenet"):
        load(pets, image_size=8)
    with pytest.raises(DataError, match=r"no image size.*--recipe imagenet"):
        load(pets)


# --- ImageNet and Tiny-ImageNet as they come -------------------------------------------------------------------------


@pytest.fixture
def tiny(tmp_path):
    """Three classes; validation images in one folder, in another order than their labels."""
    root = tmp_path / "tiny-imagenet-200"
    synsets = ("n03", "n01", "n02")
    for number, synset in enumerate(synsets):
        for i in range(2):
            write(root / f"train/{synset}/images/{synset}_{i}.JPEG", 40 * number + 10 * i)
        (root / f"train/{synset}/{synset}_boxes.txt").write_text("n03_0.JPEG\t0\t0\t7\t7\n")
    lines = []
    for i, (synset, shade) in enumerate([("n02", 10), ("n03", 60), ("n01", 110), ("n02", 160)]):
        write(root / f"val/images/val_{i}.JPEG", shade)
        lines.append(f"val_{i}.JPEG\t{synset}\t0\t0\t7\t7\n")
    (root / "val/val_annotations.txt").write_text("".join(lines))
    write(root / "test/images/test_0.JPEG", 250)
    (root / "wnids.txt").write_text("\n".join(synsets))
    (root / "words.txt").write_text("n00\tentity\nn01\tgoldfish, Carassius auratus\nn02\ttailed frog\n")
    return root


def test_tiny_imagenet_as_it_comes_out_of_the_zip(tiny):
    data = load(tiny, image_size=8)
    assert (data.class_names, data.note) == (("goldfish, Carassius auratus", "tailed frog", "n03"), "")
    assert data.train_labels.tolist() == [0, 0, 1, 1, 2, 2]
    shades = data.train_images.float().mean((1, 2, 3))
    assert (shades - torch.tensor([40, 50, 80, 90, 0, 10])).abs().max() < 3
    assert data.test_labels.tolist() == [0, 1, 1, 2]
    assert (data.test_images.float().mean((1, 2, 3)) - torch.tensor([110, 10, 160, 60])).abs().max() < 3


def test_other_words_and_annotations_are_noticed_by_the_cache(tiny):
    load(tiny, image_size=8)
    words = tiny / "words.txt"
    state = words.stat()
    words.write_text(words.read_text().replace("tailed frog", "tailed toad"))
    os.utime(words, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert load(tiny, image_size=8).class_names[1] == "tailed toad"
    file = tiny / "val/val_annotations.txt"
    file.write_text(file.read_text().replace("val_0.JPEG\tn02", "val_0.JPEG\tn01"))
    assert load(tiny, image_size=8).test_labels.tolist() == [0, 0, 1, 2]


@pytest.mark.parametrize(("old", "new", "message"), [
    ("val_1.JPEG", "val_9.JPEG", r"line 2: 'val_9\.JPEG.*expected an image in images/"),
    ("val_1.JPEG", "../images/val_1.JPEG", "line 2"),
    ("val_1.JPEG", "val_0.JPEG", "line 2"),
    ("val_1.JPEG\tn03\t0\t0\t7\t7\n", "", r"no line for val_1\.JPEG"),
    ("val_1.JPEG\tn03", "val_1.JPEG", "line 2|only: "),
    ("\tn03\t", "\tn07\t", "2 classes in one split only: train/n03, val/n07"),
])
def test_annotations_that_do_not_fit_the_images(tiny, old, new, message):
    file = tiny / "val/val_annotations.txt"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(DataError, match=message):
        load(tiny, image_size=8)


def test_tiny_imagenet_sorted_into_folders_by_hand(tiny):
    for line in (tiny / "val/val_annotations.txt").read_text().splitlines():
        name, synset = line.split("\t")[:2]
        (tiny / "val" / synset).mkdir(exist_ok=True)
        (tiny / "val/images" / name).rename(tiny / "val" / synset / name)
    (tiny / "val/images").rmdir()
    assert load(tiny, image_size=8).test_labels.tolist() == [0, 1, 1, 2]  # and not test/images, a class of its own


def test_the_validation_images_of_imagenet_without_folders(tiny):
    flat = tiny.parent / "imagenet"
    write(flat / "train/n01/a.JPEG")
    write(flat / "val/ILSVRC2012_val_00000001.JPEG")
    write(flat / "val/ILSVRC2012_val_00000002.JPEG")
    message = r"imagenet/val: found 2 images and no class folders.*val/SYNSET/\*\.JPEG"
    with pytest.raises(DataError, match=message):
        load(flat, image_size=8)
    write(flat / "test/ILSVRC2012_test_00000001.JPEG")
    with pytest.raises(DataError, match=message):  # not about test/, which has no labels at all
        load(flat, image_size=8)


def test_one_class_is_none(tmp_path):
    write(tmp_path / "one/train/cat/1.png")
    write(tmp_path / "one/test/cat/1.png")
    with pytest.raises(DataError, match="1 class, expected at least 2"):
        load(tmp_path / "one", image_size=8)
