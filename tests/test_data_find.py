"""Where data sets are looked for, what a missing one says, and the download (from a local file)."""

import hashlib
import http.server
import io
import subprocess
import sys
import tarfile
import threading
from functools import partial
from pathlib import Path

import pytest

from spaceless.data.find import ARCHIVE_FILES, download, find, known, root_folder
from spaceless.errors import DataError, InputError, SpacelessError


@pytest.fixture(autouse=True)
def no_other_places(tmp_path, monkeypatch):
    """Keep the machine's own data out of the tests."""
    monkeypatch.delenv("SPACELESS_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_only_the_first_named_root_counts(tmp_path, monkeypatch):
    touch(tmp_path / "one/some.npz", tmp_path / "two/some.npz")
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda name: str(tmp_path / "three" / name))
    assert root_folder() == (tmp_path / "three/spaceless", "the user cache")
    monkeypatch.setenv("SPACELESS_DATA", str(tmp_path / "two"))
    assert find("some").path == tmp_path / "two/some.npz"
    assert find("some", tmp_path / "one").path == tmp_path / "one/some.npz"
    with pytest.raises(DataError, match="--data-root"):
        find("some", tmp_path / "empty")


def test_a_root_in_the_home_folder(tmp_path, monkeypatch):
    touch(tmp_path / "x/some.npz")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SPACELESS_DATA", "~/x")
    assert root_folder() == (tmp_path / "x", "$SPACELESS_DATA")
    assert find("some").path == find("some", Path("~/x")).path == tmp_path / "x/some.npz"


def test_a_link_goes_by_its_own_name(tmp_path):
    touch(tmp_path / "elsewhere/exif/train/a/1.png", tmp_path / "elsewhere/exif/test/a/1.png")
    (tmp_path / "root").mkdir()
    (tmp_path / "root/birds").symlink_to(tmp_path / "elsewhere/exif")
    listed = [entry.name for entry in known(tmp_path / "root")]
    assert listed[3:] == ["birds"]
    assert find("birds", tmp_path / "root").kind == "folders"


@pytest.mark.parametrize("kind", ARCHIVE_FILES)
def test_official_folders_are_recognised_by_their_files(kind, tmp_path):
    touch(*(tmp_path / "anything" / name for name in ARCHIVE_FILES[kind]))
    assert find(str(tmp_path / "anything")).kind == kind


@pytest.mark.parametrize(("entry", "kind"), [
    ("cifar-100-python/train", "cifar-100-python"),
    ("cifar-100-binary/train.bin", "cifar-100-binary"),
    ("cifar-100-python.tar.gz", "cifar-100-python"),
    ("cifar-100-binary.tar.gz", "cifar-100-binary"),
    ("cifar100/train-00000-of-00001.parquet", "parquet"),
    ("cifar100/cifar100/test.parquet", "parquet"),
    ("cifar100.npz", "npz"),
])
def test_every_form_goes_by_the_same_name(entry, kind, tmp_path):
    touch(tmp_path / entry)
    place = find("cifar100", tmp_path)
    assert (place.name, place.kind) == ("cifar100", kind)
    assert place.path == tmp_path / entry.split("/", maxsplit=1)[0]
    assert find(place).name == "cifar100"  # its path leads there as well, under the same name


def test_the_unpacked_official_archive_comes_first(tmp_path):
    touch(tmp_path / "cifar100.npz", tmp_path / "cifar100/train.parquet")
    assert find("cifar100", tmp_path).kind == "parquet"
    touch(tmp_path / "cifar-100-python.tar.gz")
    assert find("cifar100", tmp_path).path.name == "cifar-100-python.tar.gz"
    touch(tmp_path / "cifar-100-binary/train.bin")
    assert find("cifar100", tmp_path).path.name == "cifar-100-binary"


@pytest.mark.parametrize("files", [
    ("train-00000-of-00001.parquet", "valid-00000-of-00001.parquet"), ("train/0000.parquet", "test/0000.parquet"),
    ("default/train/0000.parquet", "default/test/0000.parquet"), ("data/train.parquet", "metadata.parquet"),
])
def test_parquet_as_hugging_face_keeps_it(files, tmp_path):
    touch(*(tmp_path / "set" / name for name in files))
    assert find("set", tmp_path).kind == "parquet"


@pytest.mark.parametrize("stray", ["metadata.parquet", "train/metadata.parquet", "more/metadata.parquet"])
def test_a_table_beside_class_folders_makes_no_parquet_set(stray, tmp_path):
    touch(*(tmp_path / "set" / name for name in ("train/a/1.png", "test/a/1.png", stray)))
    assert find("set", tmp_path).kind == "folders"


@pytest.mark.parametrize("test", ["test", "val", "validation", "valid"])
def test_class_folders(test, tmp_path):
    touch(tmp_path / "pets/train/cat/1.png", tmp_path / f"pets/{test}/cat/2.png")
    assert find("pets", tmp_path).kind == "folders"


def test_a_missing_set_names_every_place_and_the_cure(tmp_path):
    with pytest.raises(DataError) as caught:
        find("cifar100", tmp_path)
    message = str(caught.value)
    for place in ("cifar-100-python", "cifar-100-binary", "cifar-100-python.tar.gz", "cifar-100-binary.tar.gz",
                  "cifar100,", "cifar100.npz", str(tmp_path), "--data-root", "no path cifar100"):
        assert place in message
    cure = "run `spaceless data cifar100 --download`, or set SPACELESS_DATA to the folder that holds it"
    assert message.endswith(cure)
    assert message.count("\n") <= 2
    assert caught.value.exit_status == 2


def test_a_missing_root_and_a_misspelt_name_are_told(tmp_path):
    with pytest.raises(DataError, match=r"absent \(--data-root, missing\).*did you mean 'cifar100'"):
        find("cifra100", tmp_path / "absent")
    touch(tmp_path / "flowers.npz")
    with pytest.raises(DataError, match="did you mean 'flowers'"):
        find("flower", tmp_path)
    with pytest.raises(DataError, match="give its path, or set SPACELESS_DATA"):
        find("zzz", tmp_path)


def test_a_folder_without_data_is_passed_over_but_named(tmp_path):
    (tmp_path / "work/cifar100").mkdir()  # lies in the current folder: the name means the data set all the same
    with pytest.raises(DataError, match=r"\(cifar100 holds no data set\)"):
        find("cifar100", tmp_path)
    touch(tmp_path / "cifar100.npz")
    assert find("cifar100", tmp_path).path == tmp_path / "cifar100.npz"
    with pytest.raises(DataError, match=r"no data set in it.*parquet"):
        find(str(tmp_path / "work/cifar100"))


NO_NAMES = ["../cifar100", "a/b", "/absent/cifar100", "..", ".", "", "-x", "a\0b", "~/absent", "a b"]


@pytest.mark.parametrize("name", NO_NAMES)
def test_names_that_are_no_names(name, tmp_path, monkeypatch):
    touch(tmp_path / "data/cifar100/train.parquet")  # where the first would lead, were it joined to the root
    (tmp_path / "data/base").mkdir()
    (tmp_path / "data/base/a b").mkdir()
    monkeypatch.chdir(tmp_path / "data/base/a b")
    with pytest.raises(DataError):
        find(name, tmp_path / "data/base")


def test_known_lists_what_was_found_and_what_else_is_there(tmp_path):
    touch(tmp_path / "cifar-10-batches-bin/data_batch_1.bin", tmp_path / "flowers.npz", tmp_path / "notes.txt")
    (tmp_path / "decoded").mkdir()
    listed = {entry.name: entry for entry in known(tmp_path)}
    assert list(listed) == ["cifar10", "cifar100", "imagenet32", "flowers"]
    assert listed["cifar10"].found.path == tmp_path / "cifar-10-batches-bin"
    assert listed["cifar100"].found is None
    assert tmp_path / "cifar-100-python.tar.gz" in listed["cifar100"].places
    assert listed["flowers"].found.kind == "npz"
    assert [entry.found for entry in known(tmp_path / "absent")] == [None, None, None]


@pytest.fixture
def served(tmp_path, monkeypatch):
    """Let torchvision fetch a tiny archive from this machine in place of the real one."""
    torchvision = pytest.importorskip("torchvision")
    source = tmp_path / "served/cifar-100-python.tar.gz"
    source.parent.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=source.parent))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with tarfile.open(source, "w:gz") as archive:
        for name in ARCHIVE_FILES["cifar-100-python"]:
            info = tarfile.TarInfo(f"cifar-100-python/{name}")
            info.size = 4
            archive.addfile(info, io.BytesIO(b"data"))
    url = f"http://127.0.0.1:{server.server_port}/{source.name}"
    monkeypatch.setattr(torchvision.datasets.CIFAR100, "url", url)
    checksum = hashlib.md5(source.read_bytes()).hexdigest()
    monkeypatch.setattr(torchvision.datasets.CIFAR100, "tgz_md5", checksum)
    yield torchvision.datasets.CIFAR100
    server.shutdown()
    server.server_close()


def test_download_unpacks_under_the_root_and_is_found(served, tmp_path, capsys):
    place = download("cifar100", tmp_path / "new/root")
    assert place == find("cifar100", tmp_path / "new/root")
    assert sorted(path.name for path in (tmp_path / "new/root").iterdir()) == ["cifar-100-python"]
    assert capsys.readouterr().out == ""
    assert download("cifar100", tmp_path / "new/root") == place  # there already: nothing is fetched


def test_a_failed_download_leaves_nothing_behind(served, tmp_path, monkeypatch):
    monkeypatch.setattr(served, "tgz_md5", "0" * 32)
    with pytest.raises(SpacelessError, match=r"fetch it elsewhere and put cifar-100-python\.tar\.gz into") as caught:
        download("cifar100", tmp_path / "root")
    assert caught.value.exit_status == 1
    monkeypatch.setattr(served, "url", served.url.replace("python", "absent"))
    with pytest.raises(SpacelessError, match="absent"):
        download("cifar100", tmp_path / "root")
    assert list((tmp_path / "root").iterdir()) == []


def test_download_of_other_names_is_refused():
    with pytest.raises(InputError, match="cifar10, cifar100"):
        download("imagenet")


def test_finding_imports_nothing_heavy():
    code = "import sys, spaceless.data; print([m for m in ('PIL', 'pyarrow', 'torchvision') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
