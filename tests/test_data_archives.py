"""The official archives, written tiny and read back pixel by pixel."""

import gzip
import io
import pickle
import tarfile
import time

import numpy as np
import pytest
import torch

from spaceless.data import archives, load
from spaceless.data.find import ARCHIVE_FILES, TAR_FILES
from spaceless.errors import DataError

NAMES = {"cifar-100": [f"fine_{i}" for i in range(100)], "cifar-10": [f"class_{i}" for i in range(10)]}
BATCH = 4  # images in each file


def contents(kind):
    """Return the files of a tiny archive and the images and labels that lie in them, (N, 3, 32, 32) and (N,)."""
    random = np.random.default_rng(0)
    names = NAMES["cifar-100" if "100" in kind else "cifar-10"]
    files, images, labels = {}, {}, {}
    for name in ARCHIVE_FILES[kind][:-1] if kind != "cifar-100-binary" else ARCHIVE_FILES[kind][:2]:
        images[name] = random.integers(0, 256, (BATCH, 3, 32, 32), dtype=np.uint8)
        labels[name] = random.integers(0, len(names), BATCH)
        flat, fine = images[name].reshape(BATCH, -1), labels[name].astype(np.uint8)
        coarse = np.full(BATCH, 19, np.uint8)
        if kind == "cifar-100-python":
            batch = {"data": flat, "fine_labels": labels[name].tolist(), "coarse_labels": coarse.tolist()}
            files[name] = pickle.dumps(batch, 2)
        elif kind == "cifar-10-batches-py":
            files[name] = pickle.dumps({b"data": flat, b"labels": labels[name].tolist()}, 2)
        else:
            front = [coarse, fine] if kind == "cifar-100-binary" else [fine]
            files[name] = np.column_stack([*front, flat]).tobytes()
    last = ARCHIVE_FILES[kind][-1]
    key = "fine_label_names" if "100" in kind else "label_names"
    # The names of CIFAR-10 are in protocol 0, as the official archive has them.
    files[last] = ("\n".join(names) + "\n\n").encode() if last.endswith(".txt") else pickle.dumps({key: names}, 0)
    train = [name for name in images if "test" not in name]
    test = next(name for name in images if "test" in name)
    joined = [np.concatenate([some[name] for name in train]) for some in (images, labels)]
    return files, [*joined, images[test], labels[test]], names


def write_folder(folder, files):
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def write_tar(path, files, kind):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in reversed(files.items()):  # the order in the archive must not matter
            info = tarfile.TarInfo(f"{kind}/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "tar.gz"])
@pytest.mark.parametrize("kind", list(TAR_FILES.values()))
def test_read_back_pixel_by_pixel(kind, packed, tmp_path):
    files, expected, names = contents(kind)
    if packed:
        write_tar(tmp_path / next(tar for tar, folder in TAR_FILES.items() if folder == kind), files, kind)
    else:
        write_folder(tmp_path / kind, files)
    data = load("cifar100" if "100" in kind else "cifar10", data_root=tmp_path)
    for read, want in zip(
        (data.train_images, data.train_labels, data.test_images, data.test_labels), expected, strict=True,
    ):
        np.testing.assert_array_equal(read.numpy(), want)
    assert data.class_names == tuple(names)
    assert (data.note, data.image_size, data.train_labels.dtype) == ("", 32, torch.int64)
    assert len(data.train_images) == (BATCH if "100" in kind else 5 * BATCH)


def test_resized_on_request(tmp_path):
    write_folder(tmp_path / "cifar-100-python", contents("cifar-100-python")[0])
    native = load("cifar100", data_root=tmp_path)
    assert load("cifar100", data_root=tmp_path, image_size=16).digest == native.resized(16).digest


@pytest.mark.parametrize("nested", [False, True])
def test_imagenet32_counts_its_labels_from_1(nested, tmp_path):
    random = np.random.default_rng(0)
    pixels = {name: random.integers(0, 256, (2, 3 * 16), dtype=np.uint8) for name in ARCHIVE_FILES["imagenet32"]}
    for i, (name, flat) in enumerate(pixels.items()):
        inner = ("Imagenet32_val" if name == "val_data" else "Imagenet32_train") if nested else "."
        (tmp_path / "imagenet32" / inner).mkdir(parents=True, exist_ok=True)
        batch = {"data": flat, "labels": [1 + i, 1000], "mean": flat.mean(0)}
        (tmp_path / "imagenet32" / inner / name).write_bytes(pickle.dumps(batch, 3))
    data = load("imagenet32", data_root=tmp_path)
    np.testing.assert_array_equal(data.train_images[4].flatten(), pixels["train_data_batch_3"][0])
    assert data.train_labels.tolist() == [label for i in range(10) for label in (i, 999)]
    assert data.test_labels.tolist() == [10, 999]
    assert data.classes == 1000


def broken_python(**changes):
    batch = {"data": np.zeros((2, 3072), np.uint8), "fine_labels": [0, 1]} | changes
    return pickle.dumps({key: value for key, value in batch.items() if value is not None}, 2)


BROKEN = {
    "float pixels": (broken_python(data=np.zeros((2, 3072), np.float32)), "float32"),
    "no pixels": (broken_python(data=None), "data of type NoneType"),
    "flat pixels": (broken_python(data=np.zeros(3072, np.uint8)), "(3072,)"),
    "not square": (broken_python(data=np.zeros((2, 3071), np.uint8)), "3071 values"),
    "no labels": (broken_python(fine_labels=None), "labels"),
    "too few labels": (broken_python(fine_labels=[1]), "labels"),
    "text as labels": (broken_python(fine_labels=["1", "2"]), "labels"),
    "huge labels": (broken_python(fine_labels=[1, 1 << 80]), "labels"),
    "label out of range": (broken_python(fine_labels=[0, 100]), "0..100, expected 0..99"),
    "truncated": (broken_python()[:-40], "damaged pickle"),
    "hostile": (b"cos\nsystem\n(S'touch pwned'\ntR.", "os.system"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_batches_name_the_file(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content, says = BROKEN[case]
    write_folder(tmp_path / "cifar-100-python", contents("cifar-100-python")[0] | {"train": content})
    with pytest.raises(DataError) as caught:
        load("cifar100", data_root=tmp_path)
    assert says in str(caught.value) and "cifar-100-python" in str(caught.value)
    assert caught.value.exit_status == 2
    assert not (tmp_path / "pwned").exists()


def test_missing_and_cut_files_are_named(tmp_path):
    files = contents("cifar-10-batches-bin")[0]
    write_folder(tmp_path / "cifar-10-batches-bin", files)
    (tmp_path / "cifar-10-batches-bin/data_batch_3.bin").unlink()
    with pytest.raises(DataError, match=r"data_batch_3\.bin: found no such file"):
        load("cifar10", data_root=tmp_path)
    (tmp_path / "cifar-10-batches-bin/data_batch_3.bin").write_bytes(files["data_batch_3.bin"][:-1])
    with pytest.raises(DataError, match=r"data_batch_3\.bin.*a multiple of 3,073"):
        load("cifar10", data_root=tmp_path)


@pytest.mark.parametrize("meta", [
    {"other": 1}, {"fine_label_names": 5}, {"fine_label_names": "abc"}, {"fine_label_names": {"a": "b"}},
    {"fine_label_names": np.arange(3)}, {"fine_label_names": []}, {"fine_label_names": ["a", ("b",)]},
], ids=str)
def test_class_names_must_be_there(meta, tmp_path):
    files = contents("cifar-100-python")[0]
    write_folder(tmp_path / "cifar-100-python", files | {"meta": pickle.dumps(meta, 2)})
    with pytest.raises(DataError, match="meta: found no class names"):
        load("cifar100", data_root=tmp_path)


def test_batches_of_different_sizes(tmp_path):
    files = contents("cifar-10-batches-py")[0]
    small = pickle.dumps({"data": np.zeros((1, 12), np.uint8), "labels": [0]}, 2)
    write_folder(tmp_path / "cifar-10-batches-py", files | {"data_batch_2": small})
    with pytest.raises(DataError, match=r"cifar-10-batches-py: found batches of shapes"):
        load("cifar10", data_root=tmp_path)


def test_damaged_tars(tmp_path, monkeypatch):
    files = contents("cifar-100-python")[0]
    path = tmp_path / "cifar-100-python.tar.gz"
    write_tar(path, {name: files[name] for name in ("train", "meta")}, "cifar-100-python")
    with pytest.raises(DataError, match="no test in it"):
        load(path)
    write_tar(path, files, "cifar-100-python")
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"not a tar", b"", whole[:2000] + bytes(200) + whole[2200:]):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"cifar-100-python\.tar\.gz"):
            load(path)
    path.write_bytes(whole)
    assert load(path).train_count == BATCH
    monkeypatch.setattr(archives, "_MOST_UNPACKED", 1000)
    with pytest.raises(DataError, match=r"cifar-100-python\.tar\.gz: found over 1,000 bytes"):
        load(path)


def header(kind, size):
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, size
    return info.tobuf(tarfile.USTAR_FORMAT)


HOSTILE_TARS = {
    "long names of long names": ((header(b"L", 512) + b"a" * 512) * 900, "no meta, test, train"),
    "digits that take quadratic time": (header(b"x", 1 << 20) + b"1" * (1 << 20), "no meta, test, train"),
    "a sparse size that is none": (header(b"x", 512) + b"22 GNU.sparse.size=xx\n".ljust(512, b"\0"), "no meta"),
    "sparse": (header(b"S", 512) + bytes(512), "damaged"),
    "negative": (b"".join([header(b"0", 0)[:124], b"\xff" * 12, header(b"0", 0)[136:]]), "damaged"),
    "a name of a terabyte": (header(b"L", 1 << 40) if 1 << 40 < 8**11 else header(b"L", 8**11 - 1), "bytes unpacked"),
    "more than there is": (header(b"0", 5000) + bytes(512), "early end"),
    "any number of members": (header(b"0", 0) * 5000, "over 1,000 members"),
}


@pytest.mark.parametrize("case", HOSTILE_TARS)
def test_hostile_tars(case, tmp_path):
    content, says = HOSTILE_TARS[case]
    path = tmp_path / "cifar-100-python.tar.gz"
    path.write_bytes(gzip.compress(content, 1))
    begun = time.process_time()
    with pytest.raises(DataError, match=says) as caught:
        load(path)
    assert path.name in str(caught.value)
    assert time.process_time() - begun < 2


def test_extended_headers_and_folders_are_passed_over(tmp_path):
    files, expected, _ = contents("cifar-100-python")
    path = tmp_path / "cifar-100-python.tar.gz"
    with tarfile.open(path, "w:gz", format=tarfile.PAX_FORMAT) as archive:
        folder = tarfile.TarInfo("cifar-100-python")
        folder.type, folder.size = tarfile.DIRTYPE, 1000  # without content, whatever it says
        archive.addfile(folder)
        for name, content in files.items():
            info = tarfile.TarInfo(f"cifar-100-python/{name}")
            info.size, info.pax_headers = len(content), {"comment": "a" * 2000}
            archive.addfile(info, io.BytesIO(content))
    np.testing.assert_array_equal(load(path).train_images.numpy(), expected[0])


def test_links_in_a_tar_are_not_followed(tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(contents("cifar-100-python")[0]["train"])
    path = tmp_path / "cifar-100-python.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name in ARCHIVE_FILES["cifar-100-python"]:
            info = tarfile.TarInfo(f"cifar-100-python/{name}")
            info.type, info.linkname = tarfile.SYMTYPE, str(secret)
            archive.addfile(info)
    with pytest.raises(DataError, match="no meta, test, train in it"):
        load(path)
