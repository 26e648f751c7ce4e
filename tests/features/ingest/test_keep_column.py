"""Extra columns of the items that ingest table keeps."""

import datetime as dt
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_series_equal

from antpipe.features.ingest.table.kept import typed
from antpipe.store.store import Store
from tests.support.commands import Outcome, run

ORDERS = "user_id,item_id,timestamp\n" + "".join(f"u{n},i{m},{1_600_000_000 + m}\n" for n in range(3) for m in range(3))


def ingest(folder: Path, items: str | pl.DataFrame, *words: str) -> Outcome:
    path = folder / ("items.csv" if isinstance(items, str) else "items.parquet")
    if isinstance(items, str):
        path.write_text(items, encoding="utf-8")
    else:
        items.write_parquet(path)
    (folder / "orders.csv").write_text(ORDERS, encoding="utf-8")
    at = ("--domain", "Shop", "--interactions", folder / "orders.csv", "--items", path, "--store", folder / "store")
    return run("ingest", "table", *at, "--min-user", "1", "--min-item", "1", *words)


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        (["yes", "No", " true ", ""], pl.Boolean, [True, False, True, None]),
        ([True, None, False], pl.Boolean, [True, None, False]),
        (["1", "-20", None], pl.Int64, [1, -20, None]),
        (["1", "2.5", "1e3"], pl.Float64, [1.0, 2.5, 1000.0]),
        ([1, 2.5], pl.Float64, [1.0, 2.5]),
        ([Decimal("49.90"), None, Decimal("5E+1")], pl.Float64, [49.9, None, 50.0]),
        ([Decimal(2**63 - 1)], pl.Int64, [2**63 - 1]),
        ([Decimal(10**30)], pl.String, [str(10**30)]),
        ([Decimal("1E+400"), Decimal(1)], pl.String, ["1E+400", "1"]),
        ([2**64 - 1, 1, None], pl.String, [str(2**64 - 1), "1", None]),
        ([2**63 - 1, -(2**63)], pl.Int64, [2**63 - 1, -(2**63)]),
        (["1234567890123456789", "-9223372036854775808"], pl.Int64, [1234567890123456789, -(2**63)]),
        (["9223372036854775808", "1"], pl.String, ["9223372036854775808", "1"]),
        (["9007199254740993", "0.5"], pl.String, ["9007199254740993", "0.5"]),
        (["9" * 5000], pl.String, ["9" * 5000]),
        (["1e400", "2"], pl.String, ["1e400", "2"]),
        (["007", "1"], pl.String, ["007", "1"]),
        (["1", "yes"], pl.String, ["1", "yes"]),
        (["-", "."], pl.String, ["-", "."]),
        (["2024-01-01", "nan"], pl.String, ["2024-01-01", "nan"]),
        ([["a", 1], None], pl.List(pl.String), [["a", "1"], None]),
        (["", None], pl.String, [None, None]),
        ([], pl.String, []),
    ],
)
def test_a_kept_column_has_the_type_that_all_its_values_have(values: list[Any], kind: Any, expected: list[Any]) -> None:
    assert_series_equal(typed(values, "x"), pl.Series("x", expected, kind))


def test_kept_columns_stand_in_the_catalogue_after_the_usual_ones(tmp_path: Path) -> None:
    items = "item_id,title,in_stock,stock\ni0,A,yes,3\ni1,B,no,\ni2,C,,5\n"
    done = ingest(tmp_path, items, "--keep-column", "stock,in_stock")
    assert done.code == 0, done.err
    assert "keep=stock+in_stock" in done.err
    table = pl.DataFrame(Store(tmp_path / "store").domain("Shop").table("items"))
    assert table.columns[-2:] == ["stock", "in_stock"]
    assert table["stock"].to_list() == [3, None, 5]
    assert table["in_stock"].to_list() == [True, False, None]
    assert ingest(tmp_path, items, "--keep-column", "stock,in_stock").out.startswith("Shop  items  fresh")
    assert ingest(tmp_path, items, "--keep-column", "stock").out.startswith("Shop  items  built")


def test_dates_and_lists_of_parquet_keep_their_kind_and_items_without_metadata_have_none(tmp_path: Path) -> None:
    items = pl.DataFrame(
        {
            "item_id": ["i0", "i1"],
            "title": ["A", "B"],
            "since": [dt.date(2024, 1, 2), None],
            "tags": [["x"], ["y", "z"]],
        }
    )
    done = ingest(tmp_path, items, "--keep-column", "since,tags", "--keep-without-metadata")
    assert done.code == 0, done.err
    table = pl.DataFrame(Store(tmp_path / "store").domain("Shop").table("items"))
    assert table["since"].to_list() == [dt.datetime(2024, 1, 2), None, None]
    assert table["tags"].to_list() == [["x"], ["y", "z"], None]


def test_a_catalogue_without_interactions_keeps_columns_too(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("item_id,title,stock\ni0,A,3\ni1,B,\n", encoding="utf-8")
    at = ("--domain", "Shop", "--items", tmp_path / "items.csv", "--store", tmp_path / "store")
    done = run("ingest", "table", *at, "--keep-column", "stock")
    assert done.code == 0, done.err
    assert Store(tmp_path / "store").domain("Shop").table("items")["stock"].to_pylist() == [3, None]


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("stok", 3, "--keep-column stok: there are 0 columns of that name; columns there: item_id, title, price"),
        ("price", 2, "--keep-column price: every catalogue has a column of that name"),
    ],
)
def test_a_column_that_cannot_be_kept_is_refused_by_name(tmp_path: Path, name: str, code: int, message: str) -> None:
    refused = ingest(tmp_path, "item_id,title,price\ni0,A,1\n", "--keep-column", name)
    assert (refused.code, message in refused.err) == (code, True)


def test_kept_columns_need_a_table_of_items(tmp_path: Path) -> None:
    (tmp_path / "orders.csv").write_text(ORDERS, encoding="utf-8")
    words = ("--domain", "Shop", "--interactions", tmp_path / "orders.csv", "--keep-without-metadata")
    refused = run("ingest", "table", *words, "--keep-column", "stock", "--store", tmp_path / "store")
    assert (refused.code, "--keep-column names columns of --items" in refused.err) == (2, True)


def test_a_subset_has_the_kept_columns_of_its_domain(tmp_path: Path) -> None:
    items = "item_id,title,stock\ni0,A,3\ni1,B,4\ni2,C,5\n"
    assert ingest(tmp_path, items, "--keep-column", "stock").code == 0
    store = ("--store", tmp_path / "store")
    assert run("build-sequences", "--domains", "Shop", *store).code == 0
    made = run("subset", "--domains", "Shop", "--target-users", "2", *store)
    assert made.code == 0, made.err
    [part] = set(Store(tmp_path / "store").domains()) - {"Shop"}
    assert pl.DataFrame(Store(tmp_path / "store").domain(part).table("items"))["stock"].to_list() == [3, 4, 5]
