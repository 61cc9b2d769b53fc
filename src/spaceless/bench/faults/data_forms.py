"""Forms of data sets: CIFAR's archives, arrays, parquet files and class folders, as small as they can be."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import tarfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from spaceless.bench.faults.form import SIDE, Form, MalformedError, Sound


def _read_data(path: Path, image_size: int | None = None) -> None:
    from spaceless.data import load

    data = load(path, image_size=image_size)
    for images, labels in ((data.train_images, data.train_labels), (data.test_images, data.test_labels)):
        shape = (len(labels), 3, data.image_size, data.image_size)
        if str(images.dtype) != "torch.uint8" or tuple(images.shape) != shape or not len(labels):
            raise MalformedError(f"images {images.dtype} {tuple(images.shape)} for {len(labels)} labels")
        if str(labels.dtype) != "torch.int64" or int(labels.min()) < 0 or int(labels.max()) >= data.classes:
            raise MalformedError(f"labels {labels.dtype} {int(labels.min())}..{int(labels.max())}")
    if not all(isinstance(name, str) for name in data.class_names):
        raise MalformedError(f"class names {data.class_names[:3]!r}")


def _read_folders(path: Path) -> None:
    from spaceless.data import open_images

    _read_data(path, SIDE)
    streamed = open_images(path, streamed=True)
    if len(streamed.digest) != 64 or streamed.train_count != len(streamed.train_labels):
        raise MalformedError("a stream without a digest")


def _random(*shape: int) -> Any:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def _cifar_pickles() -> Sound:
    labels = [0, 1, 2, 1]
    batch = {"data": _random(4, 3072), "fine_labels": labels, "coarse_labels": [0] * 4, "filenames": ["a.png"] * 4}
    meta = {"fine_label_names": ["a", "b", "c"], "coarse_label_names": ["d", "e"]}
    files = {f"cifar-100-python/{name}": pickle.dumps(content, 2)
             for name, content in (("train", batch), ("test", batch), ("meta", meta))}
    other = {"data": batch["data"], "labels": labels}
    victims = (("cifar-100-python/train", pickle.dumps(other, protocol)) for protocol in (2, 3, 4, 5))
    return Sound(files, (*files.items(), *victims), "cifar-100-python")


def _cifar_binary() -> Sound:
    records = np.concatenate([np.tile(np.array([0, 1], np.uint8), (4, 1)), _random(4, 3072)], 1).tobytes()
    files = {f"cifar-100-binary/{name}": content for name, content in (
        ("train.bin", records), ("test.bin", records), ("fine_label_names.txt", b"a\nb\nc\n"))}
    return Sound(files, tuple(files.items()), "cifar-100-binary")


def _packed() -> Sound:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in _cifar_pickles().files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    files = {"cifar-100-python.tar.gz": gzip.compress(stream.getvalue(), 1, mtime=0)}
    return Sound(files, tuple(files.items()), "cifar-100-python.tar.gz")


def _npz() -> Sound:
    images, labels, names = _random(4, SIDE, SIDE, 3), np.array([0, 1, 2, 1]), np.array(["a", "b", "c"])
    victims = []
    for save in (np.savez_compressed, np.savez):
        stream = io.BytesIO()
        save(stream, x_train=images, y_train=labels, x_test=images, y_test=labels, class_names=names)
        victims.append(("set.npz", stream.getvalue()))
    return Sound(dict(victims[:1]), tuple(victims), "set.npz")


def _encoded(form: str, mode: str = "RGB", size: int = SIDE, **options: Any) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(_random(size, size, 3)).convert(mode).save(stream, form, **options)
    return stream.getvalue()


def _parquet() -> Sound:
    import pyarrow as pa
    import pyarrow.parquet as pq

    images = [_encoded("PNG"), _encoded("JPEG"), _encoded("PNG", "L"), _encoded("PNG")]
    labels = [0, 1, 2, 1]
    features = {"info": {"features": {"label": {"names": ["a", "b", "c"]}}}}
    victims = []
    for column in (images, [{"bytes": image, "path": "a.png"} for image in images]):
        table = pa.table({"image": column, "label": labels})
        table = table.replace_schema_metadata({b"huggingface": json.dumps(features).encode()})
        for options in ({}, {"compression": "zstd"}, {"use_dictionary": False, "compression": "none"},
                        {"data_page_version": "2.0", "row_group_size": 2}):
            stream = io.BytesIO()
            pq.write_table(table, stream, **options)
            victims.append(("set/train.parquet", stream.getvalue()))
    files = {"set/train.parquet": victims[0][1], "set/test.parquet": victims[0][1]}
    return Sound(files, tuple(victims), "set")


def _folders() -> Sound:
    kept = {f"set/{split}/{name}/1.png": _encoded("PNG") for split in ("train", "test") for name in ("a", "b")}
    victims = [
        _encoded("PNG"), _encoded("PNG", "P"), _encoded("PNG", "RGBA"), _encoded("PNG", "1"), _encoded("JPEG"),
        _encoded("JPEG", "CMYK"), _encoded("JPEG", progressive=True, size=32), _encoded("JPEG", "L"), _encoded("WEBP"),
        _encoded("WEBP", "RGBA", lossless=True), _encoded("WEBP", save_all=True, append_images=[]), _encoded("BMP"),
        _encoded("BMP", "P"), _encoded("PPM"), _encoded("PPM", "L"), _encoded("GIF", "P"), _encoded("TIFF"),
        _encoded("TIFF", compression="tiff_lzw"), _encoded("TIFF", compression="tiff_adobe_deflate"),
        _encoded("TIFF", compression="jpeg"), _encoded("TIFF", "1", compression="group4"), _encoded("TIFF", "CMYK"),
    ]
    return Sound(kept, tuple(("set/test/b/1.png", victim) for victim in victims), "set")


def _lists() -> Sound:
    """Tiny-ImageNet as it comes: the classes of its test images stand in a list."""
    files = {f"set/train/n0{i}/images/n0{i}_0.JPEG": _encoded("JPEG") for i in range(2)}
    files |= {f"set/val/images/val_{i}.JPEG": _encoded("JPEG") for i in range(2)}
    files["set/val/val_annotations.txt"] = b"val_0.JPEG\tn00\t0\t0\t7\t7\nval_1.JPEG\tn01\t0\t0\t7\t7\n"
    files["set/words.txt"] = b"n00\tgoldfish, Carassius auratus\nn01\ttench\n"
    return Sound(files, tuple((name, files[name]) for name in ("set/val/val_annotations.txt", "set/words.txt")), "set")


DATA = (
    Form("CIFAR batches in pickles", 18, _cifar_pickles, _read_data),
    Form("CIFAR batches in binary", 3, _cifar_binary, _read_data),
    Form("packed CIFAR archives", 6, _packed, _read_data),
    Form(".npz files", 14, _npz, _read_data),
    Form("parquet files", 12, _parquet, partial(_read_data, image_size=SIDE)),
    Form("images in class folders", 18, _folders, partial(_read_data, image_size=SIDE)),
    Form("names and lists of class folders", 4, _lists, _read_folders, named=True, anew=True),
)
