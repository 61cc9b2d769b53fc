""".npz files: every layout read back, and every kind of lie in a header refused before memory is spent."""

import io
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spaceless.data import load, npz
from spaceless.data.npz import KEYS, read_npz
from spaceless.errors import DataError

RANDOM = np.random.default_rng(0)
TRAIN, TEST = (RANDOM.integers(0, 256, (n, 5, 5, 3), dtype=np.uint8) for n in (6, 4))
LABELS = np.arange(6) % 3, np.arange(4) % 3


def arrays(keys=KEYS[0], **changes):
    made = dict(zip(keys, (TRAIN, LABELS[0], TEST, LABELS[1]), strict=True))
    return made | changes


def save(path, content):
    np.savez(path, **content)
    return path


@pytest.mark.parametrize("keys", KEYS, ids=["keras", "medmnist"])
@pytest.mark.parametrize("write", [np.savez, np.savez_compressed], ids=["stored", "deflated"])
def test_read_back_pixel_by_pixel(keys, write, tmp_path):
    write(tmp_path / "set.npz", **arrays(keys), val_images=np.zeros(3))  # further arrays are let alone
    data = load("set", data_root=tmp_path)
    np.testing.assert_array_equal(data.train_images.permute(0, 2, 3, 1), TRAIN)
    np.testing.assert_array_equal(data.test_images.permute(0, 2, 3, 1), TEST)
    assert data.train_labels.tolist() == LABELS[0].tolist()
    assert (data.name, data.class_names) == ("set", ("0", "1", "2"))


@pytest.mark.parametrize("layout", ["channels first", "grey", "grey last", "grey first", "by columns"])
def test_layouts(layout, tmp_path):
    change = {
        "channels first": lambda x: x.transpose(0, 3, 1, 2),
        "grey": lambda x: x[..., 0],
        "grey last": lambda x: x[..., :1],
        "grey first": lambda x: x[:, None, :, :, 0],
        "by columns": np.asfortranarray,
    }[layout]
    path = save(tmp_path / "set.npz", arrays(x_train=change(TRAIN), x_test=change(TEST)))
    expected = np.repeat(TRAIN[..., :1], 3, axis=3) if "grey" in layout else TRAIN
    np.testing.assert_array_equal(load(path).train_images.permute(0, 2, 3, 1), expected)


def test_three_pixels_wide_means_channels_last(tmp_path):
    tiny = RANDOM.integers(0, 256, (6, 3, 3, 3), dtype=np.uint8)
    path = save(tmp_path / "set.npz", arrays(x_train=tiny, x_test=tiny[:4]))
    np.testing.assert_array_equal(load(path).train_images.permute(0, 2, 3, 1), tiny)


@pytest.mark.parametrize("labels", [LABELS[0][:, None].astype(np.uint8), LABELS[0].astype(">i2")])
def test_labels_of_other_shapes_and_types(labels, tmp_path):
    assert load(save(tmp_path / "s.npz", arrays(y_train=labels))).train_labels.tolist() == LABELS[0].tolist()


def test_class_names_are_kept(tmp_path):
    names = np.array(["ant", "bee", "cicada"])
    assert load(save(tmp_path / "s.npz", arrays(class_names=names))).class_names == ("ant", "bee", "cicada")


WRONG = {
    "float pixels": ({"x_train": TRAIN / 255}, "x_train: found float64 pixels"),
    "wide pixels": ({"x_test": TEST.astype(np.int64)}, "x_test: found int64 pixels"),
    "objects": ({"y_train": np.array([{}] * 6)}, "y_train: found Python objects"),
    "object pixels": ({"x_train": np.array([None])}, "x_train: found Python objects"),
    "volumes": ({"x_train": np.zeros((6, 5, 5, 5), np.uint8)}, "(6, 5, 5, 5)"),
    "one image": ({"x_train": np.zeros((5, 5), np.uint8)}, "(5, 5)"),
    "not square": ({"x_train": np.zeros((6, 5, 4, 3), np.uint8)}, "(6, 5, 4, 3)"),
    "float labels": ({"y_train": LABELS[0] / 1.0}, "y_train: found float64 labels"),
    "several labels": ({"y_train": np.zeros((6, 14), int)}, "(6, 14)"),
    "too few labels": ({"y_train": LABELS[0][:5]}, "int64 (5,)"),
    "negative label": ({"y_test": LABELS[1] - 1}, "-1..1"),
    "absurd label": ({"y_test": LABELS[1] + (1 << 62)}, "test labels"),
    "empty": ({"x_train": TRAIN[:0], "y_train": LABELS[0][:0]}, "none"),
    "one class": ({"y_train": LABELS[0] * 0, "y_test": LABELS[1] * 0}, "1 class"),
    "names that are numbers": ({"class_names": np.arange(3)}, "class_names"),
    "names that are objects": ({"class_names": np.array(["a", "b", None])}, "class_names: found Python objects"),
    "fewer names than labels": ({"class_names": np.array(["a", "b"])}, "0..2, expected 0..1"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arrays_are_named(case, tmp_path):
    changes, says = WRONG[case]
    path = save(tmp_path / "set.npz", arrays(**changes))
    with pytest.raises(DataError) as caught:
        load(path)
    assert says in str(caught.value) and "set.npz" in str(caught.value)
    assert caught.value.exit_status == 2


def test_missing_arrays_and_the_cure_for_floats(tmp_path):
    with pytest.raises(DataError, match=r"arrays images, labels, expected x_train.* or train_images"):
        load(save(tmp_path / "s.npz", {"images": TRAIN, "labels": LABELS[0]}))
    with pytest.raises(DataError, match=r"255 \* images"):
        load(save(tmp_path / "s.npz", arrays(x_train=TRAIN.astype(np.float32) / 255)))


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def rewritten(path, member, content):
    """Write an .npz whose `member` has this content."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for key, array in arrays().items():
            archive.writestr(f"{key}.npy", content if key == member else npy(array))
    return path


def with_header(text):
    """Return an .npy that claims `text` and holds a hundred bytes."""
    header = text.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(100)


LIES = {
    "more than there is": with_header("{'descr': '|u1', 'fortran_order': False, 'shape': (1000, 1000, 1000, 3)}"),
    "less than there is": with_header("{'descr': '|u1', 'fortran_order': False, 'shape': (1, 2, 2, 3)}"),
    "negative": with_header("{'descr': '|u1', 'fortran_order': False, 'shape': (-1, -100)}"),
    "overflow": with_header("{'descr': '|u1', 'fortran_order': False, 'shape': (4294967296, 4294967296, 10)}"),
    "code in the header": with_header("{'descr': __import__('os').system('touch pwned'), 'shape': (1,)}"),
    "objects": with_header("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}"),
    "no header": b"\x93NUMPY\x01\x00\xff\xff{",
    "open bracket": with_header("{'descr': ("),
    "version 9": npy(TRAIN).replace(b"NUMPY\x01", b"NUMPY\x09"),
    "no array": b"hello",
    "nothing": b"",
    "cut": npy(TRAIN)[:-1],
    "pickle": b"\x80\x04cos\nsystem\n",
}


@pytest.mark.parametrize("case", LIES)
def test_headers_that_lie(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"set\.npz"):
        read_npz(rewritten(tmp_path / "set.npz", "x_train", LIES[case]))
    assert not (tmp_path / "pwned").exists()


def test_damaged_files(tmp_path):
    path = save(tmp_path / "set.npz", arrays())
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[whole.index(TRAIN.tobytes()) + 40] ^= 1  # one bit of one pixel: only the checksum can tell
    for content in (whole[: len(whole) // 2], b"", b"PK\x03\x04", bytes(flipped)):
        path.write_bytes(content)
        with pytest.raises(DataError, match="damaged"):
            load(path)


@pytest.mark.parametrize("packing", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_packings_that_numpy_never_writes_are_refused(packing, tmp_path):
    path = tmp_path / "set.npz"
    with zipfile.ZipFile(path, "w", packing) as archive:
        for key, array in arrays().items():
            archive.writestr(f"{key}.npy", npy(array))
    with pytest.raises(DataError, match=r"set\.npz: x_train: found compression method \d+"):
        load(path)


def test_more_than_the_memory_is_refused_before_it_is_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(npz, "memory", lambda: 600)
    with pytest.raises(DataError, match="at most 600"):
        load(save(tmp_path / "set.npz", arrays()))


def test_names_without_end_are_cut_in_the_message(tmp_path):
    path = save(tmp_path / "set.npz", {"a" * 60_000 + str(i): np.zeros(1) for i in range(8)})
    with pytest.raises(DataError, match=r"found arrays aaa") as caught:
        load(path)
    assert len(str(caught.value)) < 700


def test_the_zip_directory_may_not_claim_more_than_the_limit(tmp_path, monkeypatch):
    path = save(tmp_path / "set.npz", arrays())
    monkeypatch.setattr(npz, "MOST_BYTES", 500)
    with pytest.raises(DataError, match="at most 500"):
        load(path)


def test_the_zip_directory_may_not_lie_about_the_size(tmp_path):
    path = rewritten(tmp_path / "set.npz", "x_train", npy(np.zeros((600, 5, 5, 3), np.uint8)))
    real, claimed = (128 + n * 75 for n in (600, 6000))
    content = path.read_bytes().replace(real.to_bytes(4, "little"), claimed.to_bytes(4, "little"))
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"set\.npz"):
        load(path)


def test_arrays_longer_than_one_piece(tmp_path, monkeypatch):
    monkeypatch.setattr(npz, "_PIECE", 7)
    monkeypatch.setattr(npz, "_LONGEST_HEADER", 130)  # two bytes of the values come with the header
    path = save(tmp_path / "set.npz", arrays())
    np.testing.assert_array_equal(load(path).train_images.permute(0, 2, 3, 1), TRAIN)


def test_a_header_without_end_is_not_read_to_the_end(tmp_path):
    long = (60 << 20).to_bytes(4, "little")
    path = rewritten(tmp_path / "set.npz", "x_train", b"\x93NUMPY\x02\x00" + long + b" " * (60 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=r"set\.npz: found a damaged file"):
            read_npz(path)
        assert tracemalloc.get_traced_memory()[1] < 2 << 20
    finally:
        tracemalloc.stop()


def test_what_unpacks_to_far_more_than_images_do_is_a_bomb(tmp_path, monkeypatch):
    many = np.zeros((100_000, 5, 5, 3), np.uint8)
    path = tmp_path / "set.npz"
    np.savez_compressed(path, **arrays(x_train=many, y_train=np.arange(100_000) % 3))
    assert load(path).train_count == 100_000  # few bytes enough are read whatever their ratio
    monkeypatch.setattr(npz, "_ALWAYS", 1 << 20)
    limit = npz._LARGEST_RATIO * path.stat().st_size
    with pytest.raises(DataError, match=rf"bytes unpacked, expected at most {limit:,}"):
        load(path)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data())
def test_broken_bytes_raise_nothing_but_data_error(data, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "fuzz.npz"
    content = bytearray(save(path, arrays()).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        read_npz(path)
    except DataError as error:
        assert "fuzz.npz" in str(error)
