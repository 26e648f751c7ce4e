"""Tables of strangers: pictures outside of their folder, pipes, and Arrow files whose offsets lead astray."""

import os
import struct
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from antpipe.errors import DataError
from antpipe.features.image.pictures import Picture, PictureFile, hashed
from antpipe.features.ingest.rejects import Rejects
from antpipe.features.ingest.table.files import open_table, read_rows
from antpipe.features.ingest.table.values import pictures_of
from antpipe.runtime.strangers import open_regular
from tests.support.commands import run
from tests.support.shops import picture


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A table in a folder, a picture below it, one beside the folder, and links to both."""
    folder = tmp_path / "shop"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "in.png").write_bytes(picture(1))
    (tmp_path / "out.png").write_bytes(picture(2))
    (folder / "link.png").symlink_to(tmp_path / "out.png")
    (folder / "own.png").symlink_to(folder / "sub" / "in.png")
    return folder


@pytest.mark.parametrize("name", ["../out.png", "link.png", "sub/../../out.png", "/etc/hostname"])
def test_a_picture_outside_of_the_folder_is_left_out(shop: Path, name: str) -> None:
    outside: list[str] = []
    assert pictures_of(name, shop, [], outside) == ([], [])
    assert outside == [name]


@pytest.mark.parametrize("name", ["sub/in.png", "own.png", "sub/../sub/in.png"])
def test_a_picture_below_the_folder_is_taken(shop: Path, name: str) -> None:
    outside: list[str] = []
    assert pictures_of(name, shop, [], outside)[1] == [str(shop / "sub" / "in.png")]
    assert outside == []


def test_allow_outside_takes_pictures_from_anywhere_and_without_it_they_are_told(shop: Path, tmp_path: Path) -> None:
    (shop / "t.csv").write_text("item_id,title,image\na,x,../out.png\nb,y,sub/in.png\n")
    line = ("ingest", "table", "--store", tmp_path / "s", "--domain", "N", "--items", shop / "t.csv")
    told = run(*line)
    assert "1 picture file(s) lie outside of" in told.err
    [own] = [one for row in files(tmp_path) for one in row]
    assert own.endswith("in.png")
    assert run(*line, "--allow-outside").code == 0
    assert sum(map(len, files(tmp_path))) == 2


def files(folder: Path) -> list[list[str]]:
    found: list[list[str]] = pq.read_table(folder / "s" / "N" / "items.parquet")["image_files"].to_pylist()
    return found


def test_a_pipe_is_no_picture_and_nobody_waits_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "p.png")
    assert hashed([Picture(0, "p.png", str(tmp_path / "p.png"))])[0].sha256 is None
    assert "not a regular file" in PictureFile(str(tmp_path / "p.png"), None).read().why


def test_a_name_with_a_zero_byte_is_that_of_no_picture() -> None:
    assert "null byte" in PictureFile("a\0.png", None).read().why


def test_a_file_beyond_the_limit_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(b"12345")
    with pytest.raises(OSError, match="larger than 4 bytes"):
        open_regular(tmp_path / "big", 4)
    with open_regular(tmp_path / "big", 5) as stream:
        assert stream.read() == b"12345"


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary(), pa.list_(pa.int32())])
@pytest.mark.parametrize("offset", [2**30, 4000, -(2**31)])
def test_bad_offsets_of_an_arrow_file_are_an_error(tmp_path: Path, kind: pa.DataType, offset: int) -> None:
    n = 36
    values = [[user // 6] if pa.types.is_list(kind) else f"u{user // 6}" for user in range(n)]
    columns = {"user": pa.array([f"u{one // 6}" for one in range(n)]), "odd": pa.array(values, kind)}
    table = pa.table(columns | {"item": [f"i{one % 6}" for one in range(n)], "timestamp": range(10**9, 10**9 + n)})
    with pa.ipc.new_file(str(tmp_path / "i.arrow"), table.schema) as writer:
        writer.write_table(table)
    wide, step = kind == pa.large_string(), 1 if pa.types.is_list(kind) else 2
    form = "<4q" if wide else "<4i"
    content = bytearray((tmp_path / "i.arrow").read_bytes())
    place = content.rindex(struct.pack(form, *(step * number for number in range(4))))
    struct.pack_into("<q" if wide else "<i", content, place + (16 if wide else 8), offset)
    (tmp_path / "i.arrow").write_bytes(content)
    (tmp_path / "t.csv").write_text("item_id,title\n" + "".join(f"i{one},t\n" for one in range(6)))
    line = ("ingest", "table", "--store", tmp_path / "s", "--domain", "N", "--min-user", "1", "--min-item", "1")
    found = run(*line, "--interactions", tmp_path / "i.arrow", "--items", tmp_path / "t.csv")
    assert found.code == 3
    assert "i.arrow: cannot be read" in found.err


ODD = {
    "intervals": pa.list_(pa.month_day_nano_interval()),
    "runs": pa.run_end_encoded(pa.int32(), pa.string()),
    "views": pa.list_view(pa.int8()),
    "wide": pa.decimal256(50, 2),
    "nested": pa.struct([("tags", pa.list_(pa.struct([("a", pa.string())])))]),
}


def test_columns_of_types_that_are_not_used_do_not_keep_the_others_from_being_read(tmp_path: Path) -> None:
    path, table = tmp_path / "t.arrow", pa.table({"item_id": ["a"], **{n: pa.nulls(1, k) for n, k in ODD.items()}})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    found = open_table(path, None)
    assert [row.values for row in read_rows(found, ["item_id", *ODD], Rejects(0))] == [["a", *[None] * len(ODD)]]


def test_a_name_within_a_column_that_is_not_utf8_is_refused_by_the_name_of_the_column(tmp_path: Path) -> None:
    path, table = tmp_path / "t.arrow", pa.table({"item_id": ["a"], "tags": [[{"inner": "b"}]]})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    path.write_bytes(path.read_bytes().replace(b"inner", b"inn\xffr"))
    with pytest.raises(DataError, match="column 'tags' of type"):
        list(read_rows(open_table(path, None), ["item_id"], Rejects(0)))
