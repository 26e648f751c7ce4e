"""Cells as programs write them: lists, records, missing values, several addresses, ids that were numbers."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from antpipe.errors import UsageError
from antpipe.features.ingest.literals import parsed, texts_of
from antpipe.features.ingest.table.columns import parse_map
from antpipe.features.ingest.table.rows import describe
from antpipe.features.ingest.table.values import described, levels_of, listed, pictures_of, to_id, to_rating
from antpipe.features.ingest.text import MISSING_WORDS
from antpipe.features.ingest_table import ingest_table, table_source
from antpipe.settings.ingest import TableConfig
from antpipe.store.store import Store
from tests.support.releases import EVERYTHING

SIMPLE = st.none() | st.booleans() | st.integers() | st.floats(allow_infinity=False, allow_nan=False) | st.text()
NESTED = st.recursive(SIMPLE, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=3))


@given(st.lists(NESTED, max_size=5))
def test_what_python_prints_of_a_list_is_that_list(value: list[Any]) -> None:
    read = parsed(str(value))
    assert read == str(value) or texts_of(read, frozenset()) == texts_of(value, frozenset())


@given(st.text(alphabet="[]{}()'\", :\\axN1n.e-", max_size=40))
def test_any_text_in_brackets_is_read_or_stays_a_text(text: str) -> None:
    assert all(isinstance(one, str) for one in texts_of(parsed(text), MISSING_WORDS))


@pytest.mark.parametrize(
    ("cell", "texts"),
    [
        ("['Beauty', 'Hair Care']", ["Beauty", "Hair Care"]),
        ("['Beauty' 'Hair Care']", ["Beauty", "Hair Care"]),  # numpy
        ("array(['a', 'b'], dtype=object)", ["a", "b"]),
        ("[array(['a'], dtype=object), array(['b'], dtype=object)]", ["a", "b"]),
        ("('a', \"it's\")", ["a", "it's"]),
        ("{'a', 'b'}", ["a", "b"]),
        ("['a', None, nan, 'nan']", ["a"]),
        ("[['a', 'b'], ['c']]", ["a", "b", "c"]),
        ("[{'name': 'Acme', 'id': 3}, {'name': 'Best'}]", ["Acme", "Best"]),
        ('["a", "b"]', ["a", "b"]),
        (r"['caf\xe9 \u00fc', 'a\nb']", ["café ü", "a\nb"]),
        ("[1, 2.5]", ["1", "2.5"]),
        ("[]", []),
        ("[Used] Book", ["[Used] Book"]),
        ("[sic]", ["[sic]"]),
        ("{Set of 2}", ["{Set of 2}"]),
        ("(Limited Edition)", ["(Limited Edition)"]),
        ("[" * 1000 + "]" * 1000, ["[" * 1000 + "]" * 1000]),
        ("['a', __import__('os')]", ["['a', __import__('os')]"]),
    ],
)
def test_lists_and_records_in_a_cell_are_their_texts(cell: str, texts: list[str]) -> None:
    assert listed(cell) == texts


def test_a_record_keeps_the_names_of_its_fields_in_descriptions_alone() -> None:
    assert described("{'Brand': 'Acme', 'Colour': 'red', 'Size': None}") == ["Brand: Acme", "Colour: red"]
    assert described({"name": "Acme", "id": 3}) == ["Acme"]
    assert levels_of("{'a': 'Toys'}") == ["Toys"]


def test_of_several_category_paths_the_first_counts() -> None:
    assert levels_of("[['Clothing', 'Men'], ['Shoes']]") == ["Clothing", "Men"]


@pytest.mark.parametrize("word", ["nan", "NaN", "None", "null", "NULL", r"\N", "<NA>", " nan "])
def test_words_for_missing_values_are_no_text_and_no_rating(word: str) -> None:
    assert listed(word) == []
    assert to_rating(word) != to_rating(word)  # NaN


@pytest.mark.parametrize(("written", "rating"), [("4,5", 4.5), (" -0,25 ", -0.25), ("4.5", 4.5), (4, 4.0)])
def test_a_rating_may_have_a_decimal_comma(written: object, rating: float) -> None:
    assert to_rating(written) == rating


@pytest.mark.parametrize("written", ["1,600", "4,5,6", ",", "4,", 10**400, "9" * 400, -(10**400), "inf", "four"])
def test_what_is_no_rating_is_malformed(written: object) -> None:
    with pytest.raises(ValueError, match=r"is not a (finite )?number"):
        to_rating(written)


def test_a_rating_of_hundreds_of_digits_is_a_malformed_row(tmp_path: Path) -> None:
    line = '{"user_id": "a", "item_id": "x", "timestamp": 1, "rating": %s}\n'
    (tmp_path / "t.jsonl").write_text(line % 4 + line % ("9" * 400))
    store = Store(tmp_path / "store")
    config = replace(EVERYTHING, keep_without_metadata=True, max_rejects=1)
    ingest_table(store, "Shop", table_source(tmp_path / "t.jsonl", None), config, TableConfig())
    assert store.domain("Shop").table("rejects")["line"].to_pylist() == [2]


def test_an_empty_name_of_the_rating_says_that_there_is_none(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("user,item,time,rating\na,x,1,good\n")
    store, config = Store(tmp_path / "store"), replace(EVERYTHING, keep_without_metadata=True)
    ingest_table(store, "Shop", table_source(tmp_path / "t.csv", None), config, TableConfig(map=("rating=",)))
    assert store.domain("Shop").table("interactions")["rating"].to_pylist() == [None]


@pytest.mark.parametrize("role", ["user", "item"])
def test_users_and_items_must_have_a_column(role: str) -> None:
    with pytest.raises(UsageError, match=f"--map {role}=: name each role once, as {role}=COLUMN"):
        parse_map(TableConfig(map=(f"{role}=",)))


@pytest.mark.parametrize("text", ["NA", "None of the above", "Nanny"])
def test_other_texts_stay(text: str) -> None:
    assert listed(text) == [text]


A, B = "https://x.example/1.jpg", "https://x.example/1b.jpg"


@pytest.mark.parametrize("between", [",", ", ", ";", " ; ", " ", "|", " | ", "\n"])
def test_addresses_between_separators_are_several(tmp_path: Path, between: str) -> None:
    assert pictures_of(A + between + B, tmp_path, []) == ([A, B], [])
    assert pictures_of(A + between, tmp_path, []) == ([A], [])


@pytest.mark.parametrize(
    "url", ["https://x.example/a,b.jpg", "https://x.example/w_100|h_5/a.jpg", "https://x.example/a;v=1,2|3.jpg"]
)
def test_bars_and_commas_inside_an_address_belong_to_it(tmp_path: Path, url: str) -> None:
    assert pictures_of(url, tmp_path, []) == ([url], [])
    assert pictures_of(f"{url}|{url}x", tmp_path, []) == ([url, f"{url}x"], [])


def test_an_address_without_a_scheme_is_one(tmp_path: Path) -> None:
    assert pictures_of("//x.example/1.jpg, //x.example/2.jpg", tmp_path, []) == (
        ["https://x.example/1.jpg", "https://x.example/2.jpg"],
        [],
    )


@pytest.mark.parametrize(
    "value",
    [
        {"hi_res": [A, None], "large": ["https://l.example/1.jpg", B]},
        [{"hi_res": A}, {"large": B, "thumb": "t"}],
        [[A], [B]],
        [{"url": A, "id": 1}, {"src": B}],
        f"['{A}', '{B}']",
        f"[{{'large': '{A}', 'hi_res': None}}, {{'hi_res': '{B}'}}]",
    ],
)
def test_addresses_in_lists_and_records_are_found(tmp_path: Path, value: Any) -> None:
    assert pictures_of(value, tmp_path, [])[0] == [A, B]


def test_files_between_separators_are_several(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg", "c,d.jpg"):
        (tmp_path / name).touch()
    missing: list[str] = []
    files = [Path(name).name for name in pictures_of("a.jpg|b.jpg;gone.jpg", tmp_path, missing)[1]]
    assert (files, missing) == (["a.jpg", "b.jpg"], ["gone.jpg"])
    assert [Path(name).name for name in pictures_of("c,d.jpg", tmp_path, missing)[1]] == ["c,d.jpg"]


def test_ids_that_are_all_texts_of_floats_are_told(tmp_path: Path, messages: list[str]) -> None:
    (tmp_path / "items.csv").write_text("item_id,title\n7.0,A\n8.0,B\n")
    store = Store(tmp_path / "store")
    ingest_table(store, "Shop", table_source(None, tmp_path / "items.csv"), EVERYTHING, TableConfig())
    assert any("every item is a number such as 7.0, as programs write" in message for message in messages)
    assert to_id(7.0, "item") == "7"


def test_structs_and_nested_lists_of_parquet_become_texts(tmp_path: Path) -> None:
    table = pa.table(
        {
            "item_id": ["a", "b"],
            "title": ["One", "Two"],
            "brand": [{"name": "Acme"}, None],
            "categories": [[["Toys", "Games"], ["Other"]], []],
            "features": [[{"key": "x", "size": 3}], None],
        }
    )
    pq.write_table(table, tmp_path / "items.parquet")
    store = Store(tmp_path / "store")
    ingest_table(store, "Shop", table_source(None, tmp_path / "items.parquet"), EVERYTHING, TableConfig())
    rows = store.domain("Shop").table("items").to_pylist()
    assert [row["text"] for row in rows] == ["One. Toys, Games. Acme. key: x size: 3", "Two"]
    assert rows[0]["category"] == ["Toys", "Games"]


LONG = 100_000


@pytest.mark.parametrize(
    ("role", "cell"),
    [
        ("category", f"[{'1' * LONG}x]"),
        ("category", f"[1.{'1' * LONG}x]"),
        ("category", f"a{' ' * LONG}b"),
        ("category", f"a |{' ' * LONG}b"),
        ("image", f"a{' ' * LONG}b"),
        ("image", f"a{',' * LONG}b"),
    ],
)
def test_a_long_cell_takes_a_moment(role: str, cell: str, tmp_path: Path) -> None:
    begin = time.perf_counter()
    describe("x", {role: [cell]}, (), tmp_path, [])
    assert time.perf_counter() - begin < 0.5


def test_a_long_cell_takes_a_moment_with_a_separator_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(f"item_id,title,category\nx,X,a{' ' * LONG}b / c\n")
    store, begin = Store(tmp_path / "store"), time.perf_counter()
    table = TableConfig(category_separator="/")
    ingest_table(store, "Shop", table_source(None, tmp_path / "t.csv"), EVERYTHING, table)
    assert time.perf_counter() - begin < 3
    assert store.domain("Shop").table("items")["category"].to_pylist() == [["a b", "c"]]


def test_levels_are_split_at_marks_between_blanks(tmp_path: Path) -> None:
    def levels(cell: str) -> list[str]:
        found: list[str] = describe("x", {"category": [cell]}, (), tmp_path, [])["category"]
        return found

    assert levels("a > b>c  |d| e") == ["a", "b>c", "d", "e"]
    assert levels("a | </span>b | c") == ["a"]
