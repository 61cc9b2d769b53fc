"""Pickles are read without unpickling: plain data come back equal, and hostile files run nothing."""

import contextlib
import io
import os
import pickle
import pickletools
import struct
import sys
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spaceless.data import pickles
from spaceless.data.pickles import read_pickle
from spaceless.errors import DataError

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(min_size=1),
    lambda inner: st.lists(inner, max_size=4) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def python2_batch(images, labels):
    """Write a batch as Python 2 wrote the official archives: protocol 2, byte strings, `numpy.core`."""
    raw = images.tobytes()
    shape = b"".join(b"M" + struct.pack("<H", n) for n in images.shape)
    return (
        b"\x80\x02}q\x01(U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85U\x01b"
        b"\x87Rq\x05(K\x01" + shape + b"\x86cnumpy\ndtype\nq\x06U\x02u1K\x00K\x01\x87Rq\x07(K\x03U\x01|NNN"
        b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T" + struct.pack("<I", len(raw)) + raw
        + b"tbU\x06labelsq\x08]q\x09(" + b"".join(b"K" + bytes([label]) for label in labels) + b"eu."
    )


@settings(max_examples=60, deadline=None, derandomize=True)
@given(value=st.dictionaries(st.text(), PLAIN, max_size=4), protocol=st.integers(0, 5))
def test_plain_data_come_back_equal(value, protocol):
    # Below protocol 3 bytes are written as a call of _codecs.encode, which must come back as bytes all the same.
    assert read_pickle(pickle.dumps(value, protocol), "file") == value


@pytest.mark.parametrize("protocol", range(5))
@pytest.mark.parametrize("array", [
    np.arange(24, dtype=np.uint8).reshape(2, 12), np.arange(6).reshape(2, 3).astype(">i4"), np.float64([1.5, -2]),
    np.asfortranarray(np.arange(6, dtype=np.int64).reshape(2, 3)),
], ids=["bytes", "big-endian", "float", "by columns"])
def test_arrays_come_back_equal(array, protocol):
    read = read_pickle(pickle.dumps({"data": array, "more": 1}, protocol), "file")["data"]
    assert read.dtype == array.dtype
    np.testing.assert_array_equal(read, array)


def test_batches_of_python_2():
    images = np.arange(2 * 12, dtype=np.uint8).reshape(2, 12) * 10
    batch = python2_batch(images, [3, 9])
    official = pickle.loads(batch, encoding="latin1")  # our writing is what Python itself takes for such a file
    assert official["labels"] == [3, 9]
    read = read_pickle(batch, "file")
    assert read["labels"] == [3, 9]
    np.testing.assert_array_equal(read["data"], official["data"])
    np.testing.assert_array_equal(read["data"], images)


class Reduced:
    """Pickles as whatever call it is given."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


def hostile():
    """Yield (name, pickle, what the error must say): each would call `evil.run` if it were unpickled."""
    run = b"evil\nrun\n"
    yield "reduce", b"cevil\nrun\n(S'x'\ntR.", "evil.run"
    yield "reduce in a dictionary", b"\x80\x02}(U\x04datac" + run + b"U\x01x\x85Ru.", "evil.run"
    yield "os.system", pickle.dumps({"a": Reduced(os.system, ("touch pwned",))}, 2), "system"
    yield "stack global", b"\x80\x04\x8c\x04evil\x8c\x03run\x93\x8c\x01x\x85R.", "evil.run"
    yield "dotted name", b"\x80\x04\x8c\x05numpy\x8c\x0fndarray.tofile0\x93.", "ndarray.tofile"
    yield "dotted module", b"\x80\x04\x8c\x08numpy.os\x8c\x06system\x93.", "numpy.os.system"
    yield "names of other type", b"\x80\x04K\x01K\x02\x93.", "damaged"
    yield "inst", b"(S'x'\ni" + run + b".", "INST"
    yield "obj", b"(c" + run + b"S'x'\no.", "evil.run"
    yield "obj of a known name", b"(cnumpy\nndarray\nK\x01o.", "OBJ"
    yield "extension", b"\x80\x02\x82\x01)R.", "EXT1"
    yield "wide extension", b"\x80\x02\x84\x01\x00\x00\x00)R.", "EXT4"
    yield "persistent id", b"\x80\x02U\x01xQ.", "BINPERSID"
    yield "persistent text id", b"Px\n.", "PERSID"
    yield "buffer", b"\x80\x05\x97.", "NEXT_BUFFER"
    yield "new object", b"\x80\x02cnumpy\nndarray\n)\x81.", "NEWOBJ"
    yield "a name as data", b"\x80\x02}U\x01acnumpy\nload\ns.", "numpy.load"
    yield "frombuffer", pickle.dumps({"a": np.arange(3)}, 5), "_frombuffer"
    yield "protocol 6", b"\x80\x06}.", "PROTO"
    yield "call of ndarray", b"\x80\x02cnumpy\nndarray\nK\x05\x85R.", "damaged"
    yield "state for a name", b"\x80\x02cnumpy\nndarray\n}b.", "damaged"
    yield "object array", pickle.dumps({"a": np.array([None])}, 2), "damaged"
    yield "structured array", pickle.dumps({"a": np.zeros(2, [("x", "u1")])}, 2), "damaged"
    yield "other codec", b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00rot13\x86R.", "damaged"
    yield "no dictionary", pickle.dumps([1, 2], 2), "not a dictionary"
    yield "empty", b"", "damaged"
    yield "cut", pickle.dumps({"a": list(range(9))}, 2)[:-3], "damaged"
    yield "empty stack", b"\x80\x02s.", "damaged"
    yield "no mark", b"\x80\x02K\x01t.", "damaged"
    yield "unknown memo", b"\x80\x02h\x07.", "damaged"
    yield "huge declared text", b"\x80\x02X\xff\xff\xff\x7fabc.", "damaged"
    short = python2_batch(np.zeros((2, 12), np.uint8), [])
    yield "wrong bytes for its shape", short.replace(b"M\x0c\x00", b"M\x0d\x00"), "shape (2, 13)"


@pytest.mark.parametrize(("content", "says"), [case[1:] for case in hostile()], ids=[case[0] for case in hostile()])
def test_hostile_pickles_run_nothing(content, says, tmp_path, monkeypatch):
    (tmp_path / "evil.py").write_text(
        "import pathlib\nmark = pathlib.Path(__file__).with_name('pwned')\nmark.touch()\ndef run(*_): mark.touch()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as caught:
        read_pickle(content, "/data/train")
    assert caught.value.exit_status == 2
    assert says in str(caught.value) and "/data/train" in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    assert not (tmp_path / "pwned").exists()
    assert "evil" not in sys.modules


def test_the_hostile_module_would_have_been_noticed(tmp_path, monkeypatch):
    (tmp_path / "evil_twin.py").write_text(
        "import pathlib\npathlib.Path(__file__).with_name('pwned').touch()\nrun = print\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    pickle.loads(b"cevil_twin\nrun\n(tR.")
    assert (tmp_path / "pwned").exists()
    del sys.modules["evil_twin"]


def doubled(times):
    """Return opcodes for nested pairs of one and the same tuple: 2 ** times leaves for whoever walks them."""
    return b")" + b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(times))


@pytest.mark.parametrize("content", [
    b"\x80\x02}" + doubled(100) + b"K\x01s.",  # as a key: hashing it would never end
    b"\x80\x04" + doubled(100) + b"\x8c\x03run\x93.",  # as a module: printing it would never end
    b"\x80\x02cnumpy\ndtype\n" + doubled(100) + b"K\x01\x86R.",
    b"\x80\x02cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03" + doubled(100) + b"NNNK\xffK\xffK\x00tb.",
    b"\x80\x02" + doubled(100) + b"Q.",
], ids=["key", "module", "type", "byte order", "persistent id"])
def test_exponential_nesting_is_refused_at_once(content):
    with pytest.raises(DataError):
        read_pickle(content, "file")


def test_memo_of_any_number_costs_nothing():
    assert read_pickle(b"\x80\x02}r\xff\xff\xff\x7f.", "file") == {}


def test_encoding_one_text_over_and_over_is_refused():
    text = b"X" + struct.pack("<I", 5000) + b"a" * 5000 + b"q\x00"
    call = b"c_codecs\nencode\nh\x00X\x06\x00\x00\x00latin1\x86R"
    assert len(read_pickle(b"\x80\x02}U\x01a" + text + b"s.", "file")["a"]) == 5000
    with pytest.raises(DataError, match="again and again"):
        read_pickle(b"\x80\x02]" + text + call * 20 + b".", "file")


def test_size_and_number_of_opcodes_are_bounded(monkeypatch):
    content = pickle.dumps({"a": list(range(50))}, 2)
    monkeypatch.setattr(pickles, "MOST_OPCODES", 40)
    with pytest.raises(DataError, match="over 40"):
        read_pickle(content, "file")
    monkeypatch.setattr(pickles, "LARGEST_FILE", 10)
    with pytest.raises(DataError, match="at most 10"):
        read_pickle(content, "file")


class Oracle(pickle._Unpickler):
    """Python's own reader in Python, to compare with: it may make arrays and nothing else."""

    def find_class(self, module, name):
        if (module, name) not in pickles._MEANINGS:
            raise pickle.UnpicklingError("hostile")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)

    def load_frame(self):
        self.read(8)  # frames say how to read ahead, nothing of what is read

    dispatch = pickle._Unpickler.dispatch | {pickle.FRAME[0]: load_frame}


def same(one, other):
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        return type(one) is type(other) and one.dtype == other.dtype and np.array_equal(one, other)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


IMAGES = np.arange(24, dtype=np.uint8).reshape(2, 12)
BATCHES = [python2_batch(IMAGES, [3, 9]), *(pickle.dumps({"data": IMAGES, "labels": [3, 9]}, n) for n in range(5))]
OPCODES = "".join(sorted(op.code for op in pickletools.opcodes)).encode("latin-1")


@st.composite
def mutated(draw):
    """Draw a sound batch with bytes changed, put in, left out, or copied from one place to another."""
    content = bytearray(draw(st.sampled_from(BATCHES)))
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(content) - 1))
        match draw(st.sampled_from(["change", "opcode", "put in", "leave out", "copy"])):
            case "change":
                content[place] = draw(st.integers(0, 255))
            case "opcode":
                content[place] = draw(st.sampled_from(list(OPCODES)))
            case "put in":
                content[place:place] = bytes([draw(st.sampled_from(list(OPCODES)))])
            case "leave out":
                del content[place : place + draw(st.integers(1, 4))]
            case "copy":
                start = draw(st.integers(0, len(content) - 1))
                content[place:place] = content[start : start + draw(st.integers(1, 20))]
        if not content:
            break
    return bytes(content)


@settings(max_examples=500, deadline=2000, derandomize=True)
@given(content=mutated())
def test_a_mutated_batch_is_refused_or_read_as_python_reads_it(content):
    try:
        read = read_pickle(content, "file")
    except DataError as error:
        assert str(error).startswith("file: ")
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy on odd types
        expected = Oracle(io.BytesIO(content), encoding="latin1").load()
    expected = {key.decode("latin-1") if isinstance(key, bytes) else key: value for key, value in expected.items()}
    assert list(read) == list(expected)
    assert all(same(read[key], expected[key]) for key in read)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(data=st.data())
def test_broken_bytes_raise_nothing_but_data_error(data):
    content = bytearray(pickle.dumps({"data": np.arange(12, dtype=np.uint8).reshape(2, 6), "labels": [1, 2]},
                                     data.draw(st.integers(0, 4))))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(DataError):
        assert isinstance(read_pickle(bytes(content), "file"), dict)
