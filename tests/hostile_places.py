"""Places where a hostile file can lie: sound sets of every form, one file of which is replaced."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from hostile_pickles import ZEROS, batch
from spaceless.data import load
from spaceless.data.find import ARCHIVE_FILES, TAR_FILES
from spaceless.paper import load_study
from spaceless.records import sealed
from spaceless.store import read_outcome, read_trial

SOUND = pickle.dumps(batch(), 2)
ARRAYS = {"x_train": ZEROS.reshape(4, 3, 32, 32), "y_train": np.array([0, 1, 0, 2]),
          "x_test": ZEROS.reshape(4, 3, 32, 32), "y_test": np.array([0, 1, 0, 2]),
          "class_names": np.array(["a", "b", "c"])}
STUDY = """
title = "T"
asks = "?"
[[series]]
model = "chain:4-M-8"
data = "arrangement-4"
methods = ["shuffle"]
ks = [0]
"""


@dataclass(frozen=True)
class Place:
    """A form of data: `put` writes it with `content` in one file (None: sound), `read` reads what `put` returned."""

    name: str
    file: str  # what an error has to name
    put: Callable[[Path, bytes | None], Path]
    read: Callable[[Path], object] = load

    def __str__(self) -> str:
        return self.name


def _archive(kind: str, file: str) -> Place:
    def put(folder: Path, content: bytes | None) -> Path:
        path = folder / kind
        if not path.exists():
            path.mkdir()
            for name in ARCHIVE_FILES[kind]:
                (path / name).write_bytes(SOUND)
        (path / file).write_bytes(SOUND if content is None else content)
        return path

    return Place(f"{kind} {file}", f"{kind}/{file}", put)


def _tar(packed: str, file: str) -> Place:
    kind = TAR_FILES[packed]

    def put(folder: Path, content: bytes | None) -> Path:
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w") as archive:
            for name in ARCHIVE_FILES[kind]:
                inside = SOUND if content is None or name != file else content
                info = tarfile.TarInfo(f"{kind}/{name}")
                info.size = len(inside)
                archive.addfile(info, io.BytesIO(inside))
        (folder / packed).write_bytes(gzip.compress(stream.getvalue(), 1))
        return folder / packed

    return Place(f"{packed} {file}", f"{packed}/{file}", put)


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def objects(content: bytes) -> bytes:
    """Return an .npy of one object whose pickle is `content`."""
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + content


def _npz(member: str, wrap: Callable[[bytes], bytes] = bytes) -> Place:
    sound = {name: npy(array) for name, array in ARRAYS.items()}

    def put(folder: Path, content: bytes | None) -> Path:
        with zipfile.ZipFile(folder / "set.npz", "w") as archive:
            for name, inside in sound.items():
                hostile = content is not None and name == member
                archive.writestr(f"{name}.npy", wrap(content) if hostile else inside)
        return folder / "set.npz"

    return Place(f"npz {member} {'objects' if wrap is objects else 'as it is'}", "set.npz", put)


def _whole_npz(folder: Path, content: bytes | None) -> Path:
    """NumPy's own `load` unpickles a file that is no zip, whatever it is called."""
    if content is None:
        return _npz("x_train").put(folder, None)
    (folder / "set.npz").write_bytes(content)
    return folder / "set.npz"


def png() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "PNG")
    return stream.getvalue()


def write_parquet(path: Path, images: list[bytes], extension: bytes | None = None) -> None:
    """Write images and labels; `extension` is what pyarrow before 14.0.1 unpickled (CVE-2023-47248)."""
    metadata = None if extension is None else {
        b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": extension}
    schema = pa.schema([pa.field("image", pa.binary(), metadata=metadata), pa.field("label", pa.int64())])
    pq.write_table(pa.table({"image": images, "label": list(range(len(images)))}, schema=schema), path)


def _parquet_file(folder: Path, content: bytes | None) -> Path:
    for split in ("train", "test"):
        if content is None or split == "test":
            write_parquet(folder / f"{split}.parquet", [png()] * 3)
        else:
            (folder / f"{split}.parquet").write_bytes(content)
    return folder


def _parquet_image(folder: Path, content: bytes | None) -> Path:
    write_parquet(folder / "train.parquet", [png()] * 3)
    write_parquet(folder / "test.parquet", [png()] * 2 + [png() if content is None else content])
    return folder


def _image_file(folder: Path, content: bytes | None) -> Path:
    for split in ("train", "test"):
        for name in ("a", "b"):
            (folder / split / name).mkdir(parents=True, exist_ok=True)
            (folder / split / name / "1.png").write_bytes(png())
    (folder / "test" / "b" / "1.png").write_bytes(png() if content is None else content)
    return folder


def _text(name: str, read: Callable[[Path], object], sound: Callable[[], bytes]) -> Place:
    def put(folder: Path, content: bytes | None) -> Path:
        (folder / name).write_bytes(sound() if content is None else content)
        return folder / name

    return Place(name, name, put, read)


def _an_outcome() -> bytes:
    from made_outcomes import outcome

    return outcome("shuffle", 1).model_dump_json().encode()


def _a_trial() -> bytes:
    return json.dumps(json.loads(_an_outcome())["trial"]).encode()


DATA = (
    _archive("cifar-100-python", "train"), _archive("cifar-100-python", "meta"),
    _archive("cifar-10-batches-py", "data_batch_3"), _archive("cifar-10-batches-py", "batches.meta"),
    _archive("imagenet32", "val_data"),
    _tar("cifar-100-python.tar.gz", "train"), _tar("cifar-100-python.tar.gz", "meta"),
    _tar("cifar-10-python.tar.gz", "test_batch"),
    _npz("x_train"), _npz("x_train", objects), _npz("class_names", objects), Place("npz", "set.npz", _whole_npz),
    Place("parquet", "train.parquet", _parquet_file), Place("image in parquet", "test.parquet: row 2", _parquet_image),
    Place("image in a folder", "test/b/1.png", _image_file, lambda path: load(path, image_size=8)),
)
TEXTS = (
    _text("outcome.json", read_outcome, _an_outcome), _text("trial.json", lambda p: read_trial(p.parent), _a_trial),
    _text("study.toml", load_study, STUDY.encode),
)


def put_state(folder: Path, step: int, trial: str, content: bytes, plain: object = None) -> Path:
    """Write a training state whose manifest agrees with it, so that only what parses it can object."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"state-{step:09d}.safetensors"
    path.write_bytes(content)
    path.with_suffix(".json").write_bytes(sealed({
        "trial": trial, "step": step, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest(),
        "state": plain if plain is not None else {}}))
    return path


def zipped_state(content: bytes) -> bytes:
    """Return a file as `torch.save` writes it, with the pickle `content` in it."""
    sound, hostile = io.BytesIO(), io.BytesIO()
    torch.save({"step": 1}, sound)
    with zipfile.ZipFile(sound) as old, zipfile.ZipFile(hostile, "w") as new:
        for info in old.infolist():
            new.writestr(info.filename, content if info.filename.endswith("data.pkl") else old.read(info))
    return hostile.getvalue()
