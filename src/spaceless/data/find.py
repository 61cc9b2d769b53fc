"""Where data sets are: from a name or a path to the folder or file that holds the set, and the one download."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
import tempfile
from dataclasses import dataclass
from difflib import get_close_matches
from http.client import HTTPException
from pathlib import Path

import platformdirs

from spaceless.errors import DataError, SpacelessError, unknown_name

ROOT_VARIABLE = "SPACELESS_DATA"
DOWNLOADABLE = {"cifar10": "CIFAR10", "cifar100": "CIFAR100"}  # name -> class in torchvision.datasets

# An official archive unpacks to a folder with these files; the first named tells it from any other folder.
ARCHIVE_FILES = {
    "cifar-100-python": ("train", "test", "meta"),
    "cifar-100-binary": ("train.bin", "test.bin", "fine_label_names.txt"),
    "cifar-10-batches-py": (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"),
    "cifar-10-batches-bin": (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin", "batches.meta.txt"),
    "imagenet32": (*(f"train_data_batch_{i}" for i in range(1, 11)), "val_data"),
}
TAR_FILES = {
    "cifar-100-python.tar.gz": "cifar-100-python",
    "cifar-100-binary.tar.gz": "cifar-100-binary",
    "cifar-10-python.tar.gz": "cifar-10-batches-py",
    "cifar-10-binary.tar.gz": "cifar-10-batches-bin",
}
_OFFICIAL = {  # looked for in this order: unpacked before packed, since reading a packed one takes seconds longer
    "cifar10": ("cifar-10-batches-py", "cifar-10-batches-bin", "cifar-10-python.tar.gz", "cifar-10-binary.tar.gz"),
    "cifar100": ("cifar-100-python", "cifar-100-binary", "cifar-100-python.tar.gz", "cifar-100-binary.tar.gz"),
    "imagenet32": (),
}
TEST_FOLDERS = ("test", "val", "validation", "valid")
_SPLITS = ("train", *TEST_FOLDERS)
_EXPECTED = "a CIFAR or ImageNet-32 archive, parquet files, an .npz, or train/CLASS/ and test/CLASS/ folders"


@dataclass(frozen=True)
class Location:
    """A place that holds a data set: `kind` is a key of `ARCHIVE_FILES`, or `parquet`, `npz` or `folders`."""

    name: str
    path: Path
    kind: str

    def __fspath__(self) -> str:
        """Let a location stand wherever a path can."""
        return str(self.path)


@dataclass(frozen=True)
class Known:
    """A name, the places it is looked for in (in order), and what was found there, if anything."""

    name: str
    places: tuple[Path, ...]
    found: Location | None


def root_folder(data_root: Path | None = None) -> tuple[Path, str]:
    """Return the one folder that names are looked for in, and who named it: `--data-root`, else the variable, else us.

    Only the first of the three counts: whoever names a folder does not want a different copy from elsewhere.
    """
    if data_root is not None:
        return Path(data_root).expanduser(), "--data-root"
    if os.environ.get(ROOT_VARIABLE):
        return Path(os.environ[ROOT_VARIABLE]).expanduser(), f"${ROOT_VARIABLE}"
    return Path(platformdirs.user_cache_dir("spaceless")), "the user cache"


def find(name_or_path: str | os.PathLike[str], data_root: Path | None = None) -> Location:
    """Return where the data set is: the path itself if it holds one, else NAME under the data root.

    Raises:
        DataError: There is none; the message names every place that was looked in.

    """
    name = os.fspath(name_or_path)
    given = Path(name).expanduser()
    kind = _kind(given) if name and "\0" not in name else None
    if kind:
        return Location(_stem(given), given.resolve(), kind)
    if not re.fullmatch(r"\w[\w.-]*", name):  # a path, or nothing that may be joined to a root
        known_path = name and "\0" not in name and given.exists()
        raise DataError(
            f"data {name!r}", found="no data set in it" if known_path else "no such path",
            expected=_EXPECTED if known_path else "a name, or the path of a data set", cure="correct the path",
        )
    root, origin = root_folder(data_root)
    for place in _places(name, root):
        kind = _kind(place)
        if kind:
            return Location(name, place, kind)
    raise _missing(name, given, root, origin)


def _missing(name: str, given: Path, root: Path, origin: str) -> DataError:
    places = _places(name, root)
    unreadable = [str(place) for place in (given, *places) if place.exists()]
    found = f"no {', '.join(place.name for place in places)} in {root} ({origin}{'' if root.is_dir() else ', missing'})"
    found += f", and no path {name}"
    if unreadable:
        found += f" ({', '.join(unreadable)} holds no data set)"
    near = get_close_matches(name, [known_set.name for known_set in known(root)], n=1)
    if name in DOWNLOADABLE:
        cure = f"run `spaceless data {name} --download`, or set {ROOT_VARIABLE} to the folder that holds it"
    elif near and near[0] != name:
        cure = f"did you mean {near[0]!r}?"
    else:
        cure = f"give its path, or set {ROOT_VARIABLE} to the folder that holds it"
    return DataError(f"data {name!r}", found=found, expected=_EXPECTED if unreadable else "one of these", cure=cure)


def known(data_root: Path | None = None) -> list[Known]:
    """Return the sets known by name, found or not, followed by whatever else lies under the data root."""
    root, _ = root_folder(data_root)
    listed: list[Known] = []
    for name in _OFFICIAL:
        places = _places(name, root)
        found = next((Location(name, place, kind) for place in places if (kind := _kind(place))), None)
        listed.append(Known(name, places, found))
    taken = {place for entry in listed for place in entry.places}
    others = sorted(root.iterdir()) if root.is_dir() else []
    # By the name that it has here, wherever a link leads: only that one is found again.
    return listed + [Known(name, (place,), Location(name, place, kind)) for place in others
                     if place not in taken and (kind := _kind(place)) and (name := _official(place) or _own(place))]


def _places(name: str, root: Path) -> tuple[Path, ...]:
    return tuple(root / entry for entry in (*_OFFICIAL.get(name, ()), name, f"{name}.npz"))


def _stem(path: Path) -> str:
    """Return the name a path goes by: the official name of an official archive, else its own."""
    return _official(path) or _own(path.resolve())


def _official(path: Path) -> str:
    return next((name for name, entries in _OFFICIAL.items() if path.name in entries), "")


def _own(path: Path) -> str:
    return printable(path.name.removesuffix(".npz"))


def _kind(path: Path) -> str | None:
    """Return what a path holds, from its name and the names in it; nothing is opened."""
    try:
        if path.is_file():
            return "npz" if path.suffix == ".npz" else TAR_FILES.get(path.name)
        for kind, files in ARCHIVE_FILES.items():
            if archive_file(path, files[0]).is_file():
                return kind
        # A table of metadata beside class folders, or in a split of them, makes no set of parquet files.
        tables = parquet_files(path)
        if tables and not (_class_folders(path) and all(_named_by_split(table) != "train" for table in tables)):
            return "parquet"
        if (path / "train").is_dir() and any((path / test).is_dir() for test in TEST_FOLDERS):
            return "folders"
    except OSError:  # not ours to read
        return None
    return None


def archive_file(folder: Path, name: str) -> Path:
    """Return the path of an archive's file, which may lie one folder deeper (ImageNet-32 comes as two archives)."""
    deeper = sorted(folder.glob(f"Imagenet32*/{name}"))
    return deeper[0] if deeper else folder / name


def parquet_files(folder: Path) -> list[Path]:
    """Return the parquet files of a folder, else those one level below it, as Hugging Face repositories keep them.

    The last place is `CONFIG/SPLIT/*.parquet`. The first with a training split counts, else the first with any file.
    """
    levels = [sorted(folder.glob("*.parquet")), sorted(folder.glob("*/*.parquet"))]
    if not any(split_of(file) == "train" for level in levels for file in level):
        # By name, since the folders of a million images lie as deep.
        levels.append(sorted(file for split in _SPLITS for file in folder.glob(f"*/{split}/*.parquet")))
    with_training = [level for level in levels if any(split_of(file) == "train" for file in level)]
    return next(iter(with_training or filter(None, levels)), [])


def split_of(file: Path) -> str:
    """Return the split that a parquet file is of, from its name (`train-*`), else from its folder's; empty if none."""
    if split := _named_by_split(file):
        return split
    return file.parent.name if file.parent.name in _SPLITS else ""


def set_folder(file: Path) -> Path:
    """Return the folder of the set that a parquet file belongs to: the one above that of its split, if it has one."""
    split_folder = not _named_by_split(file) and file.parent.name in _SPLITS
    return file.parent.parent if split_folder else file.parent


def _named_by_split(file: Path) -> str:
    return next((split for split in _SPLITS if re.match(rf"{split}\b", file.name)), "")


def _class_folders(path: Path) -> bool:
    """Return whether folders that may be classes lie in `train/`, beside a test split."""
    if not any((path / test).is_dir() for test in TEST_FOLDERS) or not (path / "train").is_dir():
        return False
    with os.scandir(path / "train") as entries:
        return any(not entry.name.startswith(".") and entry.is_dir() for entry in entries)


def printable(path: str | os.PathLike[str]) -> str:
    """Return a path as text that any file can hold: bytes that are no UTF-8 are written as their numbers."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def download(name: str, root: Path | None = None) -> Location:
    """Fetch an official CIFAR archive with torchvision, check its MD5 and unpack it under the data root.

    Raises:
        InputError: `name` is not `cifar10` or `cifar100`.
        SpacelessError: It could not be fetched, or is not the official archive; nothing is left behind.

    """
    if name not in DOWNLOADABLE:
        raise unknown_name("data to download", name, DOWNLOADABLE)
    import torchvision

    source = getattr(torchvision.datasets, DOWNLOADABLE[name])
    folder, _ = root_folder(root)
    target = folder / source.base_folder
    if not target.exists():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # Unpacked aside and then renamed: an interrupted download must not look like a data set.
            with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as aside:
                with contextlib.redirect_stdout(sys.stderr):  # standard output may be carrying JSON
                    torchvision.datasets.utils.download_and_extract_archive(
                        source.url, aside, filename=source.filename, md5=source.tgz_md5,
                    )
                shutil.move(Path(aside) / source.base_folder, target)
        except (OSError, RuntimeError, EOFError, HTTPException) as error:
            raise SpacelessError(
                f"download of {name}", found=f"{type(error).__name__}: {error}"[:300], expected=source.url,
                cure=f"try again, or fetch it elsewhere and put {source.filename} into {folder}",
            ) from error
    return Location(name, target, source.base_folder)
