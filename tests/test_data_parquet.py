"""Parquet folders: columns told by type, images decoded exactly, and what cannot be told refused."""

import io
import json
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from spaceless.data import load, parquet
from spaceless.data.parquet import CIFAR100_FINE, RESPLIT_NOTE
from spaceless.errors import DataError

RANDOM = np.random.default_rng(0)
PIXELS = RANDOM.integers(0, 256, (5, 6, 6, 3), dtype=np.uint8)
LABELS = [0, 1, 2, 0, 1]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda name: str(tmp_path / "cache" / name))


def encoded(pixels, kind="PNG", **options):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


def images(pixels=PIXELS, kind="PNG", **options):
    return [{"bytes": encoded(image, kind, **options), "path": None} for image in pixels]


def write(folder, columns, name="train.parquet", metadata=None):
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns)
    pq.write_table(table.replace_schema_metadata(metadata) if metadata else table, folder / name)


def write_set(folder, columns, **options):
    for name in ("train.parquet", "test.parquet"):
        write(folder, columns, name, **options)
    return folder


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP"])
@pytest.mark.parametrize("column", ["img", "image", "picture"])
def test_read_back_pixel_by_pixel(kind, column, tmp_path):
    options = {"lossless": True} if kind == "WEBP" else {}
    write_set(tmp_path / "set", {"label": LABELS, column: images(kind=kind, **options)})
    data = load("set", data_root=tmp_path)
    np.testing.assert_array_equal(data.train_images.permute(0, 2, 3, 1), PIXELS)
    assert data.test_labels.tolist() == LABELS
    assert (data.class_names, data.note) == (("0", "1", "2"), "")


@pytest.mark.parametrize("options", [
    {"row_group_size": 2}, {"dictionary_pagesize_limit": 100, "data_page_size": 1, "write_batch_size": 1},
], ids=["three row groups", "a dictionary given up in the middle"])
def test_several_dictionaries(options, tmp_path):
    (tmp_path / "set").mkdir()
    table = pa.table({"img": images(), "label": LABELS})
    for name in ("train", "test"):
        pq.write_table(table, tmp_path / "set" / f"{name}.parquet", **options)
    data = load("set", data_root=tmp_path)
    np.testing.assert_array_equal(data.train_images.permute(0, 2, 3, 1), PIXELS)
    assert data.train_labels.tolist() == LABELS


def test_plain_binary_column_and_the_only_whole_number(tmp_path):
    plain = [image["bytes"] for image in images()]
    columns = {"weight": [0.5] * 5, "x": plain, "y": pa.array(LABELS, pa.uint8()), "image_id": [7] * 5}
    write_set(tmp_path / "set", columns)
    with pytest.warns(UserWarning, match="labels are the column y, the only one of whole numbers"):
        data = load("set", data_root=tmp_path)
    np.testing.assert_array_equal(data.train_images.permute(0, 2, 3, 1), PIXELS)
    assert data.train_labels.tolist() == LABELS
    assert data.facts.note == "labels are the column y, the only one of whole numbers"
    (tmp_path / "set/README.md").write_text("re-split")
    assert load("set", data_root=tmp_path).note == f"{RESPLIT_NOTE}; {data.note}"


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())], ids=str)
def test_labels_that_are_texts_are_numbered_in_alphabetical_order(kind, tmp_path):
    texts = pa.array(["owl", "emu", "jay", "owl", "emu"]).cast(kind)
    columns = {"image_id": [1, 0, 1, 0, 1], "image": images(), "label": texts}
    folder = write_set(tmp_path / "set", columns)
    write(folder, {name: column[1:3] for name, column in columns.items()}, "test.parquet")
    data = load(folder)
    assert (data.class_names, data.note) == (("emu", "jay", "owl"), "")
    assert (data.train_labels.tolist(), data.test_labels.tolist()) == ([2, 0, 1, 2, 0], [0, 1])
    write(folder, {"image": images()[:1], "label": ["kea"]}, "test.parquet")
    with pytest.raises(DataError, match=r"test\.parquet: found the label 'kea', expected one that occurs in the train"):
        load(folder)
    write(folder, {"image": images()[:1], "label": [1]}, "test.parquet")
    with pytest.raises(DataError, match=r"test\.parquet: found labels in column label, whole numbers, .*label, texts"):
        load(folder)


def with_names(*names, column="label"):
    return {"huggingface": json.dumps({"info": {"features": {column: {"names": names}}}})}


def test_splits_that_mean_their_labels_in_different_ways(tmp_path):
    columns = {"img": images(), "label": LABELS}
    folder = write_set(tmp_path / "set", columns, metadata=with_names("x", "y", "z"))
    write(folder, columns, "test.parquet", metadata=with_names("y", "x", "z"))
    with pytest.raises(DataError, match=r"test\.parquet: found class 0 called 'y', expected 'x', as in train\.parquet"):
        load(folder)
    write(folder, columns, "test.parquet", metadata=with_names("x", "y"))
    with pytest.raises(DataError, match=r"test\.parquet: found 2 class names, expected 3"):
        load(folder)
    write(folder, columns, "test.parquet")
    assert load(folder).class_names == ("x", "y", "z")
    write(folder, {**columns, "fine_label": LABELS})
    with pytest.raises(DataError, match=r"test\.parquet: found labels in column label, .*column fine_label, .*train"):
        load(folder)


@pytest.mark.parametrize("unlabelled", [{"label": [-1] * 5}, {"label": pa.array([None] * 5, pa.int64())}, {}],
                         ids=["-1", "empty", "no column"])
def test_a_test_split_without_labels_is_passed_over(unlabelled, tmp_path):
    folder = write_set(tmp_path / "set", {"img": images(), "label": LABELS})
    write(folder, {"img": images(), **unlabelled}, "test.parquet")
    with pytest.raises(DataError):
        load(folder)
    write(folder, {"img": images()[:2], "label": [2, 1]}, "validation.parquet")
    assert load(folder).test_labels.tolist() == [2, 1]


@pytest.mark.parametrize("names", [
    ("train-00000-of-00001.parquet", "valid-00000-of-00001.parquet"), ("train/0000.parquet", "test/0000.parquet"),
    ("default/train/0000.parquet", "default/test/0000.parquet"), ("data/train.parquet", "data/test.parquet"),
])
def test_layouts_of_hugging_face(names, tmp_path):
    for name, labels in zip(names, (LABELS, LABELS[::-1]), strict=True):
        write((tmp_path / "set" / name).parent, {"img": images(), "label": labels}, (tmp_path / "set" / name).name)
    write(tmp_path / "set", {"rows": [1]}, "metadata.parquet")
    data = load("set", data_root=tmp_path)
    assert (data.train_labels.tolist(), data.test_labels.tolist()) == (LABELS, LABELS[::-1])
    if "/0000" in names[0]:
        first = tmp_path / "set" / names[0]
        first.rename(first.with_name("0001.parquet"))
        with pytest.raises(DataError, match=r"1 parts like 0001\.parquet, expected 2"):
            load("set", data_root=tmp_path)


def test_the_fine_label_is_preferred(tmp_path):
    columns = {"img": images(), "coarse_label": [0] * 5, "label": [1] * 5, "fine_label": LABELS}
    write_set(tmp_path / "set", columns)
    assert load("set", data_root=tmp_path).train_labels.tolist() == LABELS


@pytest.mark.parametrize(("columns", "says"), [
    ({"img": images(), "a": LABELS, "b": LABELS}, "2 columns of whole numbers that may be labels: a, b"),
    ({"img": images(), "image_id": LABELS}, "0 columns of whole numbers that may be labels"),
    ({"img": images(), "index": LABELS}, "0 columns of whole numbers that may be labels"),
    ({"img": images(), "y": LABELS, "label": [0.5] * 5}, "a column label of double"),
    ({"img": images(), "a": [0.5] * 5}, "0 columns of whole numbers"),
    ({"x": images(), "y": images(), "label": LABELS}, "2 columns of encoded images (bytes): x, y"),
    ({"text": ["t"] * 5, "label": LABELS}, "0 columns of encoded images"),
    ({"img": images()[:4] + [None], "label": LABELS}, "without image or label"),
    ({"img": images(), "label": LABELS[:4] + [None]}, "without image or label"),
    ({"img": images()[:0], "label": pa.array([], pa.int64())}, "columns"),
], ids=["two labels", "an id", "an index", "odd label", "no label",
        "two images", "no image", "empty image", "empty label", "no rows"])
def test_columns_that_do_not_tell(columns, says, tmp_path):
    with pytest.raises(DataError) as caught:
        load(write_set(tmp_path / "set", columns))
    assert says in str(caught.value) and "train.parquet" in str(caught.value)
    assert caught.value.exit_status == 2


def test_no_rows(tmp_path):
    folder = write_set(tmp_path / "set", {"img": images(), "label": LABELS})
    pq.write_table(pa.table({"img": images(), "label": LABELS}).slice(0, 0), folder / "test.parquet")
    with pytest.raises(DataError, match=r"test\.parquet: found no rows"):
        load(folder)


def test_class_names_of_hugging_face(tmp_path):
    features = {"label": {"names": ["ant", "bee", "cicada"], "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    write_set(tmp_path / "set", {"img": images(), "label": LABELS}, metadata=metadata)
    assert load("set", data_root=tmp_path).class_names == ("ant", "bee", "cicada")


@pytest.mark.parametrize("text", ["{", "[]", '{"info": {"features": {"label": {"names": [1, 2]}}}}', "[" * 100_000])
def test_odd_metadata_mean_no_names(text, tmp_path):
    write_set(tmp_path / "set", {"img": images(), "label": LABELS}, metadata={"huggingface": text})
    assert load("set", data_root=tmp_path).class_names == ("0", "1", "2")


def test_fine_names_of_cifar100(tmp_path):
    assert len(set(CIFAR100_FINE)) == 100
    assert list(CIFAR100_FINE) == sorted(CIFAR100_FINE)
    assert (CIFAR100_FINE[0], CIFAR100_FINE[49], CIFAR100_FINE[99]) == ("apple", "mountain", "worm")
    write_set(tmp_path / "set", {"img": images(), "fine_label": [0, 1, 2, 3, 99]})
    assert load("set", data_root=tmp_path).class_names == CIFAR100_FINE


@pytest.mark.parametrize("text", ["A RE-SPLIT copy", "the split is **not the official** one"])
def test_the_readme_may_own_up_to_another_split(text, tmp_path):
    write_set(tmp_path / "set", {"img": images(), "label": LABELS})
    (tmp_path / "set/README.md").write_text("# A set\n\nAll images.\n")
    assert load("set", data_root=tmp_path).note == ""
    (tmp_path / "set/README.md").write_text(text)
    data = load("set", data_root=tmp_path)
    assert data.note == data.facts.note == data.resized(3).note == data.subset(2).note == RESPLIT_NOTE
    for other in ("official split, not the official colours", "This copy is not re-split.", "The official re-splitter"):
        (tmp_path / "set/README.md").write_text(other)
        assert load("set", data_root=tmp_path).note == ""


def test_parts_come_in_order_and_none_may_be_missing(tmp_path):
    folder = tmp_path / "set"
    write(folder, {"img": images(PIXELS[3:]), "label": LABELS[3:]}, "train-00001-of-00002.parquet")
    write(folder, {"img": images(), "label": LABELS}, "validation-00000-of-00001.parquet")
    with pytest.raises(DataError, match="1 parts like train-00001-of-00002"):
        load(folder)
    write(folder, {"img": images(PIXELS[:3]), "label": LABELS[:3]}, "train-00000-of-00002.parquet")
    data = load(folder)
    np.testing.assert_array_equal(data.train_images.permute(0, 2, 3, 1), PIXELS)
    assert data.train_labels.tolist() == data.test_labels.tolist() == LABELS
    write(folder, {"img": images(PIXELS[:2]), "label": [1, 0]}, "test.parquet")
    assert load(folder).test_labels.tolist() == [1, 0]  # a test split goes before the validation split


def test_a_split_or_the_choice_of_a_set_is_missing(tmp_path):
    folder = tmp_path / "set"
    write(folder, {"img": images(), "label": LABELS})
    with pytest.raises(DataError, match=r"train\.parquet, expected train-\*\.parquet and test-\*\.parquet"):
        load(folder)
    for inner in ("one", "two"):
        write_set(tmp_path / "both" / inner, {"img": images(), "label": LABELS})
    with pytest.raises(DataError, match="several data sets: one, two"):
        load(tmp_path / "both")


def test_broken_images_and_files_are_named(tmp_path):
    broken = [*images()[:3], {"bytes": images()[3]["bytes"][:60], "path": None}, images()[4]]
    folder = write_set(tmp_path / "set", {"img": broken, "label": LABELS})
    with pytest.raises(DataError, match=r"train\.parquet: row 3: found an image that cannot be decoded"):
        load(folder)
    whole = (folder / "test.parquet").read_bytes()
    badly_named = whole.replace(b"label", b"labe\xc1")
    for content in (badly_named, whole[:-30], whole[:50], b"", b"PAR1", whole[:100] + bytes(200) + whole[300:]):
        (folder / "train.parquet").write_bytes(content)
        with pytest.raises(DataError, match=r"train\.parquet"):
            load(folder)


def test_images_of_different_sizes_need_an_image_size(tmp_path):
    mixed = [*images()[:4], {"bytes": encoded(np.full((12, 6, 3), 7, np.uint8)), "path": None}]
    folder = write_set(tmp_path / "set", {"img": mixed, "label": LABELS})
    with pytest.raises(DataError, match=r"row 4: found 6 x 12 pixels, expected 6 x 6.*give an image size"):
        load(folder)
    data = load(folder, image_size=6)
    np.testing.assert_array_equal(data.train_images[:4].permute(0, 2, 3, 1), PIXELS[:4])
    assert data.train_images[4].unique().tolist() == [7]


def test_images_of_one_size_are_resized_like_those_of_any_other_form(tmp_path):
    folder = write_set(tmp_path / "set", {"img": images(), "label": LABELS})
    assert load(folder, image_size=12).digest == load(folder).resized(12).digest


def test_labels_out_of_range(tmp_path):
    with pytest.raises(DataError, match=r"-1\.\.1"):
        load(write_set(tmp_path / "minus", {"img": images(), "label": [-1, 0, 1, 0, 1]}))
    with pytest.raises(DataError, match="train labels"):
        load(write_set(tmp_path / "much", {"img": images(), "label": [1 << 62, 0, 1, 0, 1]}))


@pytest.mark.parametrize(("told", "says"), [
    (3, "over 3 rows"), (7, "5 rows, expected the 7"), (1 << 40, "GB of pixels"), (-1, "over -1 rows"),
])
def test_a_number_of_rows_that_is_not_so(told, says, tmp_path):
    folder = write_set(tmp_path / "set", {"img": images(), "label": LABELS})
    sound = (folder / "train.parquet").read_bytes()
    assert sound.count(b"\x16\x0a\x19\x1c") == 1  # num_rows = 5 (zigzag), then the list of one row group
    value, varint = told << 1 ^ told >> 63, b""
    while value > 127:
        varint, value = varint + bytes([value & 127 | 128]), value >> 7
    changed = sound.replace(b"\x16\x0a\x19\x1c", b"\x16" + varint + bytes([value]) + b"\x19\x1c")
    longer = int.from_bytes(sound[-8:-4], "little") + len(changed) - len(sound)
    (folder / "train.parquet").write_bytes(changed[:-8] + longer.to_bytes(4, "little") + b"PAR1")
    with pytest.raises(DataError, match=rf"train\.parquet: found .*{says}"):
        load(folder)


def test_a_page_that_unpacks_to_far_more_than_images_do(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "_ALWAYS", 1 << 16)
    folder = write_set(tmp_path / "set", {"img": images(), "label": LABELS})
    assert load(folder).train_count == 5
    table = pa.table({"img": [bytes(1 << 20)] * 2, "label": [0, 1]})
    pq.write_table(table, folder / "train.parquet", compression="zstd")
    says = r"train\.parquet: found a page of 1,048,\d+ bytes unpacked, expected at most 65,536"
    with pytest.raises(DataError, match=says):
        load(folder)


@pytest.mark.parametrize("nested", [False, True])
def test_one_image_again_and_again_is_in_memory_once(nested, tmp_path):
    image = encoded(PIXELS[0]) + bytes(1 << 19)  # what follows the image is not looked at
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 200, pa.int32()), [image])
    table = pa.table({"img": column, "label": [0, 1] * 100})
    if nested:
        table = pa.table({"img": pa.StructArray.from_arrays([column], ["bytes"]), "label": [0, 1] * 100})
    folder = tmp_path / "set"
    folder.mkdir()
    for split in ("train", "test"):
        pq.write_table(table, folder / f"{split}.parquet", store_schema=False)
    before = pa.default_memory_pool().max_memory()
    tracemalloc.start()
    try:
        data = load(folder)
        ours = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert data.train_count == 200
    np.testing.assert_array_equal(data.train_images[199].permute(1, 2, 0), PIXELS[0])
    assert max(ours, pa.default_memory_pool().max_memory() - before) < 20 << 20


def test_a_page_that_means_values_which_its_dictionary_has_not(tmp_path):
    folder = write_set(tmp_path / "set", {"img": images(), "label": LABELS})
    table = pa.table({"img": [image["bytes"] for image in images()], "label": LABELS})
    pq.write_table(table, folder / "train.parquet", compression="none", write_statistics=False)
    sound = (folder / "train.parquet").read_bytes()
    chunk = pq.ParquetFile(folder / "train.parquet").metadata.row_group(0).column(0)
    said = []
    for place in range(chunk.data_page_offset, chunk.data_page_offset + 40):
        (folder / "train.parquet").write_bytes(sound[:place] + b"\xff" + sound[place + 1:])
        try:
            load(folder)
        except DataError as error:
            said.append(str(error))
    assert any("Dictionary indices invalid" in text for text in said)
