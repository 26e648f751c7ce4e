"""Stray quotes in tables: rows between two of them are never lost in silence, and texts with line breaks are read."""

import csv
import gzip
import io
import json
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from antpipe.errors import DataError
from antpipe.features.ingest.rejects import Rejects
from antpipe.features.ingest.table.files import open_table, read_rows
from antpipe.features.ingest_table import ingest_table, table_source
from antpipe.settings.ingest import IngestConfig, TableConfig
from antpipe.store.next_command import build_command
from antpipe.store.store import Store
from tests.support.commands import run
from tests.support.places import check_refusal

KEEP_ALL = IngestConfig(min_user=1, min_item=1, keep_without_metadata=True, max_rejects=1000)
START = 1_600_000_000


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def write(path: Path, header: list[str], rows: list[list[str]], delimiter: str) -> Path:
    """The values as they are: nothing is quoted."""
    content = "".join(delimiter.join(row) + "\n" for row in (header, *rows)).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def visits(headlines: dict[int, str], count: int = 40) -> list[list[str]]:
    """user, item, headline, time; headlines by row, `ok` elsewhere."""
    return [[f"u{n // 6}", f"i{n * 7 % 11}", headlines.get(n, "ok"), str(START + n)] for n in range(count)]


def goods(titles: dict[int, str], count: int = 40) -> list[list[str]]:
    """id, title, price; titles by row, a word elsewhere."""
    return [[f"p{n}", titles.get(n, f"Pan no. {n}"), f"{n}.50" if n % 3 else ""] for n in range(count)]


VISITS, GOODS = ["user_id", "item_id", "headline", "timestamp"], ["item_id", "title", "price"]
SEPARATORS = [("t.csv", ","), ("t.tsv", "\t"), ("t.csv.gz", ";"), ("t.tsv.gz", "\t")]


def ingest(store: Store, visits: Path | None, goods: Path | None, quotes: bool | None = None) -> None:
    ingest_table(store, "Shop", table_source(visits, goods), KEEP_ALL, TableConfig(quotes=quotes))


def values_of(path: Path, quotes: bool | None = None) -> list[list[object]]:
    """All rows; none may be malformed."""
    table = open_table(path, quotes)
    return [row.values for row in read_rows(table, table.columns, Rejects(0))]


@pytest.mark.parametrize(("name", "delimiter"), SEPARATORS)
def test_interactions_between_two_stray_quotes_are_not_lost(
    store: Store, tmp_path: Path, name: str, delimiter: str
) -> None:
    path = write(tmp_path / name, VISITS, visits({10: '"Wow great', 30: 'It is 12"'}), delimiter)
    with pytest.raises(DataError, match=rf"{name}:12: .*quote.*'headline'.* line 32") as caught:
        ingest(store, path, None)
    assert "--no-quotes" in str(caught.value.next_command)
    ingest(store, path, None, quotes=False)
    assert store.domain("Shop").entry("items")["statistics"]["interactions"] == 40


@pytest.mark.parametrize(("name", "delimiter"), SEPARATORS)
def test_items_between_two_stray_quotes_are_not_lost(store: Store, tmp_path: Path, name: str, delimiter: str) -> None:
    path = write(tmp_path / name, GOODS, goods({3: '"Best', 20: 'Pan of 12"'}), delimiter)
    with pytest.raises(DataError, match=rf"{name}:5: .*quote.*'title'.* line 22"):
        ingest(store, None, path)
    ingest(store, None, path, quotes=False)
    assert store.domain("Shop").rows() == 40


@pytest.mark.parametrize("first", [0, 1, 38])
def test_two_lines_that_become_one_are_noticed_wherever_they_are(tmp_path: Path, first: int) -> None:
    path = write(tmp_path / "t.csv", VISITS, visits({first: '"Wow great', first + 1: 'It is 12"'}), ",")
    with pytest.raises(DataError, match=f"t.csv:{first + 2}: .*quote"):
        values_of(path)


def test_lines_swallowed_late_in_a_long_file_are_noticed(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", VISITS, visits({5000: '"Wow great', 5003: 'It is 12"'}, 6000), ",")
    with pytest.raises(DataError, match=r"t\.csv:5002: .*quote"):
        values_of(path)


def test_quotes_of_different_columns_pair_up_too(store: Store, tmp_path: Path) -> None:
    """The row they make has too few values: it must not pass as one malformed row either."""
    rows = visits({10: '"Wow great'})
    rows[30][1] = 'i"'
    with pytest.raises(DataError, match="quote"):
        ingest(store, write(tmp_path / "t.csv", VISITS, rows, ","), None)


def test_a_quote_in_the_first_or_last_column_swallows_nothing_in_silence(tmp_path: Path) -> None:
    for column in (0, 3):
        rows = visits({})
        rows[4][column], rows[9][column] = f'"{rows[4][column]}', f'{rows[9][column]}"'
        with pytest.raises(DataError, match=r"t\.tsv:6: .*quote"):
            values_of(write(tmp_path / "t.tsv", VISITS, rows, "\t"))


def test_a_limit_checks_the_quotes_of_the_rows_that_it_reads(store: Store, tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", VISITS, visits({1: '"Wow great', 30: 'It is 12"'}), ",")
    with pytest.raises(DataError, match=r"t\.csv:3: .*quote"):
        ingest_table(store, "Shop", table_source(path, None), KEEP_ALL, TableConfig(limit=3))


# -- what is meant to have line breaks --------------------------------------------------------------------------------

POEMS = [
    "Soft and warm.\nMade of wool, cotton, and love.\n\nHand wash, do not tumble dry",
    'Features:\n- 12" wide, 3" deep\n- comes in red, green\n',
    "One\r\nTwo, three\r\nFour, five, six",
    "However, it is good\nStill, we like it",
    '{\n  "colour": "red",\n  "size": 12\n}',
    "<p>Soft, warm</p>\n<p>Red, green</p>",
]


def quoted(path: Path, header: list[str], rows: list[list[str]], delimiter: str = ",") -> Path:
    """As a CSV writer writes them."""
    stream = io.StringIO()
    writer = csv.writer(stream, delimiter=delimiter)
    writer.writerows([header, *rows])
    path.write_bytes(stream.getvalue().encode())
    return path


@pytest.mark.parametrize(("name", "delimiter"), [("t.csv", ","), ("t.tsv", "\t")])
@pytest.mark.parametrize("width", [2, 3, 4])
def test_descriptions_with_line_breaks_are_read_whole(tmp_path: Path, name: str, delimiter: str, width: int) -> None:
    rows = [[f"p{n}", poem, f"{n}.50", "Ada"][:width] for n, poem in enumerate(POEMS * 5)]
    path = quoted(tmp_path / name, ["item_id", "description", "price", "brand"][:width], rows, delimiter)
    assert values_of(path) == rows


def test_how_many_texts_have_line_breaks_is_logged(store: Store, tmp_path: Path, messages: list[str]) -> None:
    rows = [["p1", "one line", "3"], ["p2", "two\nlines", "4"], ["p3", "three\nlines\nhere", "5"]]
    ingest(store, None, quoted(tmp_path / "t.csv", ["item_id", "description", "price"], rows))
    [told] = [line for line in messages if "quotes" in line]
    assert told.startswith("t.csv: 2 rows have line breaks inside quotes, the longest from line 5 to line 7")
    assert "--no-quotes" in told
    assert store.domain("Shop").rows() == 3


def test_quotes_are_not_mentioned_if_every_row_is_a_line(store: Store, tmp_path: Path, messages: list[str]) -> None:
    rows = [["p1", 'a "good", wide pan', "3"], ["p2", "two", "4"]]
    ingest(store, None, quoted(tmp_path / "t.csv", ["item_id", "description", "price"], rows))
    assert not any("quotes" in line for line in messages)


def test_a_text_that_does_look_like_rows_is_read_if_the_user_says_so(store: Store, tmp_path: Path) -> None:
    rows = [["p1", "sizes,1\np2,3 x 4,7\np3,5 x 6", "3"], ["p4", "plain", "4"]]
    path = quoted(tmp_path / "t.csv", ["item_id", "description", "price"], rows)
    with pytest.raises(DataError, match="--quotes"):
        values_of(path)
    assert values_of(path, quotes=True) == rows
    ingest(store, None, path, quotes=True)
    assert store.domain("Shop").item_ids() == ["p1", "p4"]
    assert "--quotes" in build_command(store.domain("Shop"), "items")


def test_the_command_line_refuses_and_reads_with_either_flag(tmp_path: Path) -> None:
    path = write(tmp_path / "t.tsv", VISITS, visits({10: '"Wow great', 30: 'It is 12"'}), "\t")
    words = [
        "ingest",
        "table",
        "--domain",
        "S",
        "--store",
        tmp_path / "store",
        "--interactions",
        path,
        "--json",
        "--keep-without-metadata",
        "--min-user",
        "1",
        "--min-item",
        "1",
    ]
    check_refusal(run(*words), 3, "t.tsv:12", "quote", "headline", next_command="--no-quotes")
    for flag, count in (("--no-quotes", 40), ("--quotes", 20)):
        outcome = run(*words, flag)
        assert outcome.code == 0, outcome.err
        assert json.loads(outcome.out)[0]["figures"]["interactions"] == count


def test_a_catalogue_stays_fresh_whether_quotes_are_named_or_not(store: Store, tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", GOODS, goods({}), ",")
    ingest(store, None, path)
    results = [
        ingest_table(store, "Shop", table_source(None, path), KEEP_ALL, TableConfig(quotes=quotes))
        for quotes in (None, True)
    ]
    assert [result.status for result in results] == ["fresh", "fresh"]


TEXT = st.sampled_from(["ok", "fine", '"Wow', 'It is 12"', '"', '12" pan', 'a "b" c', '""', '"x" y', "two words"])


@settings(max_examples=150, deadline=None)
@given(st.lists(TEXT, min_size=12, max_size=12), st.sampled_from([",", "\t"]))
def test_no_row_vanishes_whatever_quotes_the_texts_hold(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], delimiter: str
) -> None:
    folder = tmp_path_factory.mktemp("stray")
    rows = visits(dict(enumerate(texts)), len(texts))
    path = write(folder / ("t.csv" if delimiter == "," else "t.tsv"), VISITS, rows, delimiter)
    table, rejects = open_table(path, None), Rejects(1000)
    try:
        found = list(read_rows(table, table.columns, rejects))
    except DataError as error:
        assert "quote" in error.message
        return
    assert len(found) + len(rejects.rows) == len(rows)


@settings(max_examples=150, deadline=None)
@given(st.text('ab1,"\n\r;é', max_size=80).map(str.encode))
def test_every_record_of_any_text_is_a_row_or_a_reject_or_the_file_is_refused(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.mktemp("wild") / "t.csv"
    path.write_bytes(b"u,i\n" + content)
    table, rejects = open_table(path, None), Rejects(1000)
    try:
        rows = list(read_rows(table, table.columns, rejects))
    except DataError as error:
        assert "quote" in error.message
        return
    assert all(1 < row.line <= row.last for row in rows)


def test_interactions_most_of_which_lie_inside_quotes_are_refused(store: Store, tmp_path: Path) -> None:
    text = '"said' + "\nmuch more\nand more" * 2 + '"'
    path = write(tmp_path / "t.csv", VISITS, visits(dict.fromkeys(range(0, 40, 2), text)), ",")
    with pytest.raises(DataError, match="80 of its lines are inside quoted values") as caught:
        ingest(store, path, None)
    assert "--no-quotes" in str(caught.value.next_command)
    ingest(store, path, None, quotes=True)
    assert store.domain("Shop").entry("items")["report"]["interactions"]["line_breaks"]["rows"] == 20


@pytest.mark.parametrize(
    "titles",
    [
        {3: r'"screen of 5\""', 20: r'"screen of 6\""'},  # the lines in between look like rows
        {3: r'"screen of 5\""'},  # the quote is never closed
        {3: r'"a \"large\" screen"'},
        dict.fromkeys(range(30), r'"a \"large\" screen"'),
        {3: r'"screen of 5\""', 4: '"a, b"'},
    ],
)
@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz"])
def test_quotes_after_backslashes_are_said_to_be_that_and_written_doubled_by_the_next_command(
    tmp_path: Path, store: Store, titles: dict[int, str], name: str
) -> None:
    path = write(tmp_path / name, GOODS, goods(titles), ",")
    config = IngestConfig(min_user=1, min_item=1, keep_without_metadata=True)
    with pytest.raises(DataError, match=r'quotes inside values are written ."') as caught:
        ingest_table(store, "Shop", table_source(None, path), config, TableConfig())
    assert "--no-quotes" not in f"{caught.value.message} {caught.value.next_command}"
    if "sed" in str(caught.value.next_command):
        subprocess.run(["bash", "-c", str(caught.value.next_command)], cwd=tmp_path, check=True)
        read = values_of(tmp_path / "t-doubled.csv")
        assert next(row[1] for row in read if "screen" in str(row[1])) in ('screen of 5"', 'a "large" screen')
