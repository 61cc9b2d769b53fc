"""Headers of parquet pages: their sizes add up to those of the chunk, and damage is a ValueError."""

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spaceless.data.pages import Page, pages

OPTIONS = [
    {}, {"compression": "none"}, {"compression": "zstd", "use_dictionary": False}, {"data_page_version": "2.0"},
    {"data_page_size": 100, "write_batch_size": 10}, {"write_statistics": False}, {"write_page_checksum": True},
    {"row_group_size": 30},
]


def written(**options) -> tuple[io.BytesIO, pq.FileMetaData]:
    stream = io.BytesIO()
    values = [b"%d" % (i % 70) * 40 for i in range(100)]
    table = pa.table({"a": values, "b": list(range(100)), "c": [{"d": value} for value in values]})
    pq.write_table(table, stream, **options)
    return stream, pq.ParquetFile(stream).metadata


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_pages_and_their_headers_fill_the_chunk_packed_and_unpacked(options):
    stream, metadata = written(**options)
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        for chunk in map(group.column, range(group.num_columns)):
            start = chunk.dictionary_page_offset if chunk.has_dictionary_page else chunk.data_page_offset
            found = list(pages(stream, start, chunk.total_compressed_size))
            assert len(found) >= 1 + chunk.has_dictionary_page
            headers = chunk.total_compressed_size - sum(page.packed for page in found)
            assert headers == chunk.total_uncompressed_size - sum(page.unpacked for page in found) > 0


def header(*fields: bytes) -> bytes:
    return b"".join(fields) + b"\0"


KIND, UNPACKED, PACKED = b"\x15\x00", b"\x15\xc8\x01", b"\x15\x06"  # 0, 100, 3


NESTED = b"\x2c\x15\x02\x1c\x18\x02ab\x00\x11\x17" + b"8" * 8 + b"\x13\x01\x00"  # struct, text, flag, double, byte


@pytest.mark.parametrize("further", [(), (NESTED,)], ids=["plain", "nested"])
def test_a_header_by_hand(further):
    content = header(KIND, UNPACKED, PACKED, *further) + b"abc"
    assert list(pages(io.BytesIO(b"..." + 2 * content), 3, 2 * len(content))) == [Page(100, 3)] * 2


@pytest.mark.parametrize(("content", "says"), [
    (b"", "no end"), (b"\x15", "no end"), (header(KIND, UNPACKED), "without a size"), (header(KIND), "without a size"),
    (header(KIND, b"\x15\x01", PACKED), "without a size"),  # -1 bytes
    (header(KIND, UNPACKED, b"\x15\x01"), "without a size"), (b"\x15" + b"\xff" * 30, "without an end"),
    (header(KIND, UNPACKED, PACKED, b"\x19\x10"), "of type 9"),
    (header(KIND, UNPACKED, PACKED, b"\x1c" * 40), "too deep"),
    (header(KIND, UNPACKED, PACKED, b"\x18\xff\xff\xff\xff\x0f"), "no end"),
], ids=range(10))
def test_damage_is_a_value_error(content, says):
    with pytest.raises(ValueError, match=says):
        list(pages(io.BytesIO(content), 0, 1000))
