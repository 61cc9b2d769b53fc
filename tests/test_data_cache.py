"""The cache of decoded images: used when sound, rewritten when not, never in the way."""

import os

import pytest
import torch

from spaceless.data import cache
from spaceless.data.cache import cache_file, cached
from spaceless.data.dataset import Parts


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda name: str(tmp_path / "cache" / name))
    path = tmp_path / "images.bin"
    path.write_text("first")
    return path


@pytest.fixture
def decode():
    """A decoder that counts how often it was needed."""

    def run():
        run.calls += 1
        images = torch.randint(0, 256, (4, 3, 5, 5), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
        return Parts(images, torch.tensor([0, 1, 0, 1]), images.flip(0), torch.tensor([1, 0, 1, 0]), ("ä", "bee"))

    run.calls = 0
    return run


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a[:4], b[:4], strict=True)) and a.class_names == b.class_names


def test_the_second_time_nothing_is_decoded(source, decode):
    first, second = cached([source], "v", decode), cached([source], "v", decode)
    assert same(first, second) and same(first, decode())
    assert decode.calls == 2  # once by the cache, once just now
    assert [path.name for path in cache_file([source], "v").parent.iterdir()] == [cache_file([source], "v").name]


def test_a_note_is_kept(source, decode):
    noted = cached([source], "v", lambda: decode()._replace(note="a caveat"))
    assert noted.note == cached([source], "v", decode).note == "a caveat"
    told = cached([source], "r", lambda: decode()._replace(reasons=("a: gone", "b: cut")))
    assert told.reasons == cached([source], "r", decode).reasons == ("a: gone", "b: cut")
    assert cached([source], "v", decode).reasons == ()
    assert cached([source], "w", decode).note == cached([source], "w", decode).note == ""


def test_any_change_is_noticed(source, decode, tmp_path):
    names = {cache_file([source], "v"), cache_file([source], "w")}
    source.write_text("longer text")
    names.add(cache_file([source], "v"))
    os.utime(source, ns=(1, 1))
    names.add(cache_file([source], "v"))
    other = tmp_path / "other.bin"
    other.write_text("longer text")
    os.utime(other, ns=(1, 1))
    names |= {cache_file([other], "v"), cache_file([source, other], "v")}
    assert len(names) == 6
    link, moved = tmp_path / "a.bin", tmp_path / "b/a.bin"
    link.symlink_to(source)
    names = {cache_file([link], "v")}
    moved.parent.mkdir()
    link.rename(moved)  # into another class folder
    names |= {cache_file([moved], "v"), cache_file([moved], "v", ["ä"]), cache_file([moved], "v", ["bee"])}
    source.unlink()
    names.add(cache_file([moved], "v"))
    assert len(names) == 5


def test_a_newer_state_replaces_the_earlier_one_of_the_same_set_only(source, decode, tmp_path):
    other = tmp_path / "other" / "images.bin"
    other.parent.mkdir()
    other.write_text("another set")
    kept = [cache_file([other], "v"), cache_file([source], "w")]
    cached([other], "v", decode)
    cached([source], "w", decode)
    for text in ("one", "another"):
        source.write_text(text)
        cached([source], "v", decode)
        assert set(kept[0].parent.iterdir()) == {*kept, cache_file([source], "v")}


def test_copies_of_an_older_format_are_not_used(source, decode, monkeypatch):
    monkeypatch.setattr(cache, "_FORMAT", 1)
    old = cache_file([source], "v")
    monkeypatch.undo()
    assert cache_file([source], "v").name != old.name
    assert cache._FORMAT > 1


@pytest.mark.parametrize("damage", [
    lambda content: content[: len(content) // 2],
    lambda content: b"",
    lambda content: content.replace(b"x_train", b"z_train"),
    lambda content: content[:300] + bytes([content[300] ^ 1]) + content[301:],  # one bit of one pixel
], ids=["cut", "empty", "renamed", "one bit"])
def test_a_broken_cache_is_ignored_and_rewritten(damage, source, decode):
    expected = cached([source], "v", decode)
    file = cache_file([source], "v")
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert same(cached([source], "v", decode), expected)
    assert decode.calls == 2
    assert same(cached([source], "v", decode), expected)
    assert decode.calls == 2


def test_a_cache_that_cannot_be_written_is_no_error(source, decode, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert same(cached([source], "v", decode), decode())


def test_a_failed_write_leaves_nothing_behind(source, decode, monkeypatch):
    def full(stream, **_):
        stream.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.np, "savez", full)
    assert same(cached([source], "v", decode), decode())
    assert list(cache_file([source], "v").parent.iterdir()) == []


def test_what_a_killed_process_was_writing_goes_at_the_next_write(source, decode):
    folder = cache_file([source], "v").parent
    folder.mkdir(parents=True, exist_ok=True)
    half = folder / ".some.npz.abcdefgh.tmp"
    half.write_bytes(b"half")
    cached([source], "v", decode)
    assert list(folder.iterdir()) == [cache_file([source], "v")]


def test_what_could_not_be_read_back_is_not_written(source, decode, monkeypatch):
    monkeypatch.setattr(cache, "MOST_BYTES", (1 << 20) + 100)
    cached([source], "v", decode)
    assert not cache_file([source], "v").exists()
