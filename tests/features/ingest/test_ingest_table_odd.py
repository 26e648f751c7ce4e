"""`ingest table`: odd tables that are good all the same, a dry run, a limit."""

import csv
import gzip
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import feather

from antpipe.errors import DataError
from antpipe.features.ingest.rejects import Rejects
from antpipe.features.ingest.table.files import open_table, read_rows
from antpipe.features.ingest.table.times import Times, parse_time, to_milliseconds
from antpipe.features.ingest.table.values import pictures_of, to_id
from antpipe.features.ingest_table import ingest_table, table_source
from antpipe.settings.ingest import TableConfig
from antpipe.store.store import Store
from tests.support.commands import run, unfolded
from tests.support.releases import EVERYTHING, UNDESCRIBED, interactions, items, report
from tests.support.shops import make_domain


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def take(store: Store, visits: Path, goods: Path | None = None, **options: Any) -> None:
    """Ingest as Shop."""
    source, config = table_source(visits, goods), EVERYTHING if goods else UNDESCRIBED
    ingest_table(store, "Shop", source, config, TableConfig(**options))


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_rows_that_differ_only_in_where_a_comma_stands_are_two(store: Store, tmp_path: Path) -> None:
    take(store, write(tmp_path / "a.csv", 'user,item,time,a,b\nu,i,1,"x,y",z\nu,i,1,x,"y,z"\n'))
    assert report(store)["interactions"]["duplicate_lines"] == 0
    assert len(interactions(store.domain("Shop"))) == 2


def test_a_value_longer_than_128_kib_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", f"user,text\nu,{'x' * 200_000}\nv,y\n")
    csv.field_size_limit(131_072)
    rejects = Rejects(0)
    assert [row.values for row in read_rows(open_table(path, True), ["user"], rejects)] == [["u"], ["v"]]


def test_a_cut_file_is_refused_with_the_last_line_read(tmp_path: Path) -> None:
    content = gzip.compress(
        "".join(["user,item,time\n", *(f"{n * 7919 % 9973},i,{n}\n" for n in range(9000))]).encode()
    )
    path = tmp_path / "a.csv.gz"
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"breaks off or is corrupt after line [1-9]\d{2,}: "):
        list(read_rows(open_table(path, True), ["user"], Rejects(0)))


@pytest.mark.parametrize("name", ["a" * 300 + ".jpg", "é" * 200])
def test_a_name_too_long_for_a_file_is_a_missing_picture(tmp_path: Path, name: str) -> None:
    missing: list[str] = []
    assert pictures_of(name, tmp_path, missing) == ([], [])
    assert missing == [name[:200]]


def test_times_in_a_dictionary_are_dates_too(store: Store, tmp_path: Path, messages: list[str]) -> None:
    times = pa.array([datetime(1971, 1, 1, tzinfo=UTC)] * 2, pa.timestamp("ns", "Europe/Berlin")).dictionary_encode()
    table = pa.table({"user": ["a", "b"], "item": ["x", "y"], "time": times})
    feather.write_feather(table, str(tmp_path / "a.feather"))
    take(store, tmp_path / "a.feather")
    assert messages[-2] == "a.feather: 2 rows, times are dates (their type says so), from 1971-01-01 to 1971-01-01"


@pytest.mark.parametrize("value", [["a"], {"x": 1}])
def test_a_list_is_not_an_id(value: object) -> None:
    with pytest.raises(ValueError, match="is not a single value"):
        to_id(value, "user")


@pytest.mark.parametrize("text", ["1_000", "\u0663", "1_0.5"])
def test_only_plain_digits_are_a_time(text: str) -> None:
    with pytest.raises(ValueError, match="neither a number nor a date"):
        parse_time(text)


def test_an_order_with_fractions_that_would_not_fit_is_refused(tmp_path: Path) -> None:
    times = Times()
    for line, value in enumerate([9_223_372_036_854_775_000, "1.5"], 2):
        times.add(line, value)
    with pytest.raises(DataError, match=":2: time 9223372036854775000 lies beyond"):
        to_milliseconds(times, "order", tmp_path / "a.csv")
    plain = Times()
    plain.add(2, 9_223_372_036_854_775_000)
    assert to_milliseconds(plain, "order", tmp_path / "a.csv")[0].dtype == np.int64


# -- rules, dry run, limit --------------------------------------------------------------------------------------

VISITS = "user,item,time\na,x,1500000000\n,x,1500000001\n\na,y,1500000002\nb,x,1500000003\n"
GOODS = "item,title\nx,Hat\ny,Cup\n"


def test_the_rules_are_logged_and_kept(store: Store, tmp_path: Path, messages: list[str]) -> None:
    visits = write(tmp_path / "v.csv", VISITS.replace("\n,x,1500000001", ""))
    take(store, visits, write(tmp_path / "g.csv", GOODS), map=("text=title",))
    rules = (
        "rules: identical lines once; repeats keep-all, equal times in file order; items without metadata dropped; at "
        "least 1 interactions per user, 1 per item; text: title"
    )
    assert rules in messages
    assert report(store)["rules"] == rules


def test_a_limit_counts_rows_good_or_not_and_is_part_of_the_fingerprint(store: Store, tmp_path: Path) -> None:
    visits, goods = write(tmp_path / "v.csv", VISITS), write(tmp_path / "g.csv", GOODS)
    line = f"ingest table --domain Shop --interactions {visits} --items {goods} --min-user 1 --min-item 1 --store"
    words = [*line.split(), str(store.root), "--max-rejects", "1"]
    outcome = run(*words, "--limit", "3")
    assert "limit 3, 1 line malformed" in unfolded(outcome.out)
    assert [row[:2] for row in interactions(store.domain("Shop"))] == [("a", "x"), ("a", "y")]
    assert report(store)["interactions"]["lines"] == 3
    assert "  fresh" in run(*words, "--limit", "3").out
    assert "  built" in run(*words).out
    assert report(store)["interactions"]["lines"] == 4


def test_a_limit_holds_for_binary_tables_and_for_a_catalogue_alone(store: Store, tmp_path: Path) -> None:
    feather.write_feather(pa.table({"item": ["x", "y", "z"], "title": ["X", "Y", "Z"]}), str(tmp_path / "g.feather"))
    ingest_table(store, "Shop", table_source(None, tmp_path / "g.feather"), EVERYTHING, TableConfig(limit=2))
    assert set(items(store.domain("Shop"))) == {"x", "y"}


def test_a_dry_run_writes_nothing(store: Store, tmp_path: Path) -> None:
    visits, goods = write(tmp_path / "v.csv", VISITS), write(tmp_path / "g.csv", GOODS)
    line = f"ingest table --domain Shop --interactions {visits} --items {goods} --min-user 1 --min-item 1 --store"
    outcome = run(*line.split(), str(store.root), "--max-rejects", "1", "--dry-run")
    assert "Shop  items  would be built\n    2 users, 2 items, 3 interactions" in outcome.out
    assert not store.root.exists()


def test_a_table_is_stale_once_the_named_domain_has_other_users(store: Store, tmp_path: Path) -> None:
    make_domain(store, "Target", [{"item_id": "t"}], [("b", "t", 1)])
    visits = write(tmp_path / "v.csv", VISITS.replace("\n,x,1500000001", ""))
    line = f"ingest table --domain Shop --interactions {visits} --min-user 1 --min-item 1 --keep-without-metadata"
    words = [*line.split(), "--store", str(store.root), "--drop-shared-users-from"]
    assert "1 shared user dropped" in unfolded(run(*words, "Target").out)
    assert "  fresh" in run(*words, "Target").out
    make_domain(store, "Target", [{"item_id": "t"}], [("a", "t", 1)])
    make_domain(store, "All", [{"item_id": "t"}], [("a", "t", 1), ("b", "t", 1)])
    everybody = run(*words, "All", "--force")
    assert everybody.code == 3
    assert "3 are of users of All" in everybody.err
    assert "--drop-shared-users-from" not in everybody.err.partition("next: ")[2]
    states = {row["artefact"]: row for row in run("status", "--store", store.root, "--json").json()["Shop"]}
    assert states["items"]["status"] == "stale"
    assert states["items"]["why"].startswith("the users of Target")
    assert "  built" in run(*words, "Target").out
    assert {row[0] for row in interactions(store.domain("Shop"))} == {"b"}
