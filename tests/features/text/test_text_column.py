import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from antpipe.errors import DataError, IntegrityError
from antpipe.features.shards.plan import Shard, content_of
from antpipe.features.text.column import ROWS_AT_ONCE, TextColumn, is_blank


def column(folder: Path, texts: "list[str | None] | pa.Array", group: int = 1000) -> TextColumn:
    table = pa.table({"item": np.arange(len(texts)), "text": texts})
    table = table.replace_schema_metadata({"antpipe": json.dumps({"fingerprint": "one", "id_table": "two"})})
    pq.write_table(table, folder / "items.parquet", row_group_size=group)
    return TextColumn(str(folder / "items.parquet"), "antpipe ingest --help", "one", "antpipe embed-text --help")


def test_items_replaced_since_the_work_began_are_refused(tmp_path: Path) -> None:
    reader = replace(column(tmp_path, ["wool"]), fingerprint="before")
    for read in (lambda: reader.scan(1), lambda: reader(Shard(0, np.arange(1)))):
        with pytest.raises(DataError, match="items changed while text was built from them") as caught:
            read()
        assert caught.value.next_command == "antpipe embed-text --help"


@pytest.mark.parametrize("group", [3, 1000, 2 * ROWS_AT_ONCE])
def test_rows_are_found_in_any_row_group(tmp_path: Path, group: int) -> None:
    texts = [f"text {row}" for row in range(ROWS_AT_ONCE + 50)] if group > 3 else [f"text {row}" for row in range(20)]
    reader = column(tmp_path, texts, group)
    for rows in ([0], [len(texts) - 1], [0, 1, 7, 8, 9, len(texts) - 2], list(range(len(texts)))):
        assert reader(Shard(0, np.array(rows))) == [texts[row] for row in rows]


def test_a_scan_gives_the_content_and_size_of_each_text(tmp_path: Path) -> None:
    content, sizes = column(tmp_path, ["wool", "", None, "größe", " \t\n", "wool"], 2).scan(6)
    expected = [content_of(b"wool"), bytes(16), bytes(16), content_of("größe".encode()), bytes(16), content_of(b"wool")]
    assert [row.tobytes() for row in content] == expected
    assert sizes.tolist() == [4, 0, 0, 7, 0, 4]


@pytest.mark.parametrize("text", ["", " ", "\u00a0\u2003", "\x00\x07\x1b", "\u200b\ufeff", "\n \x85"])
def test_white_space_and_control_characters_are_blank(text: str) -> None:
    assert is_blank(text)


@pytest.mark.parametrize("text", ["a", "\x00a", " . ", "漢", "🙂", "\U000e01f0", "\ue000"])
def test_anything_else_is_not_blank(text: str) -> None:
    assert not is_blank(text)


def test_bytes_that_are_not_utf8_are_refused_with_the_file_and_the_next_command(tmp_path: Path) -> None:
    raw = b"goodb\xffd"
    texts = pa.Array.from_buffers(
        pa.string(), 2, [None, pa.py_buffer(np.array([0, 4, 7], np.int32)), pa.py_buffer(raw)]
    )
    with pytest.raises(IntegrityError, match=r"items.parquet: a text in row 0 or soon after is not UTF-8") as caught:
        column(tmp_path, texts).scan(2)
    assert caught.value.next_command == "antpipe ingest --help"


def test_parquet_cannot_hold_half_a_surrogate_pair(tmp_path: Path) -> None:
    with pytest.raises((pa.ArrowInvalid, UnicodeEncodeError)):
        column(tmp_path, ["\ud83d"])
