"""Sources whose rows are not in order of time: every reader says so, and says nothing of good ones."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from antpipe import api
from antpipe.store.order import order_of
from antpipe.store.store import Store
from tests.support.commands import run
from tests.support.releases import product, publish, review

Row = tuple[str, str, int]  # user, item, time
START = 1_500_000_000


def good_rows(users: int = 40) -> list[Row]:
    """Users who met 4 to 8 of 30 items, one a minute, in an order that has nothing to do with the ids."""
    rng = np.random.default_rng(1)
    return [
        (f"U{user:02}", f"B{item:02}", START + 60 * time)
        for user in range(users)
        for time, item in enumerate(rng.permutation(30)[: rng.integers(4, 9)])
    ]


def spoilt(rows: list[Row], reverse: bool = False) -> list[Row]:
    """The same users, items and times, but the items of each user sorted by id."""
    times = [time for _, _, time in rows]
    in_order = sorted(rows, key=lambda row: row[1], reverse=reverse)
    return [
        (user, item, time) for (user, item, _), time in zip(sorted(in_order, key=lambda r: r[0]), times, strict=True)
    ]


def frame(rows: list[Row]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")


def goods(rows: list[Row]) -> pl.DataFrame:
    return pl.DataFrame({"item_id": sorted({item for _, item, _ in rows})}).with_columns(title=pl.lit("A thing"))


def as_table(store: Path, _: Path, rows: list[Row]) -> None:
    api.data.ingest_table(store, "Shop", interactions=frame(rows), items=goods(rows), min_user=1, min_item=1)


def as_amazon(store: Path, folder: Path, rows: list[Row]) -> None:
    publish(folder / "Shop_5.json.gz", *(review(*row) for row in rows))
    publish(folder / "meta_Shop.json.gz", *(product(item) for item in goods(rows)["item_id"]))
    api.data.ingest_amazon(store, "Shop", source=folder, min_user=1, min_item=1)


def as_recbole(store: Path, folder: Path, rows: list[Row]) -> None:
    folder.mkdir(exist_ok=True)
    names = {"user_id": "user_id:token", "item_id": "item_id:token", "timestamp": "timestamp:float"}
    frame(rows).rename(names).write_csv(folder / "Shop.inter", separator="\t")
    goods(rows).rename({"item_id": "item_id:token", "title": "title:token_seq"}).write_csv(
        folder / "Shop.item", separator="\t"
    )
    api.data.import_recbole(store, "Shop", folder, min_user=1, min_item=1)


def as_unisrec(store: Path, folder: Path, rows: list[Row]) -> None:
    folder.mkdir(exist_ok=True)
    number = {item: place for place, item in enumerate(goods(rows)["item_id"])}
    lines: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    for user in dict.fromkeys(user for user, _, _ in rows):
        walk = [str(number[item]) for one, item, _ in rows if one == user]
        parts = ["train"] * (len(walk) - 3) + ["valid", "test"]
        for end, part in enumerate(parts, 1):
            lines[part].append(f"{int(user[1:])}\t{' '.join(walk[:end])}\t{walk[end]}")
    for part, some in lines.items():
        text = "\n".join(["user_id:token\titem_id_list:token_seq\titem_id:token", *some])
        (folder / f"Shop.{part}.inter").write_text(f"{text}\n")
    api.data.import_unisrec(store, "Shop", folder)


READERS = [as_table, as_amazon, as_recbole, as_unisrec]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.parametrize("read", READERS)
def test_a_good_source_gives_no_warning(
    read: Callable[[Path, Path, list[Row]], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    read(tmp_path / "store", tmp_path / "source", good_rows())
    assert warnings(caplog) == []


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("read", READERS)
def test_a_source_sorted_by_item_gives_a_warning_with_the_figure(
    read: Callable[[Path, Path, list[Row]], None], reverse: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    read(tmp_path / "store", tmp_path / "source", spoilt(good_rows(), reverse))
    [warning] = warnings(caplog)
    assert warning.startswith("domain Shop: 100.0% of 40 users have their items in the order of ids")
    assert "their order is probably not that in time; check the times of the source" in warning


@pytest.mark.parametrize("read", READERS)
def test_the_warning_is_repeated_when_there_is_nothing_to_do(
    read: Callable[[Path, Path, list[Row]], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    read(tmp_path / "store", tmp_path / "source", spoilt(good_rows()))
    first = warnings(caplog)
    caplog.clear()
    read(tmp_path / "store", tmp_path / "source", spoilt(good_rows()))
    assert len(first) == 1
    assert warnings(caplog) == first


def test_a_dry_run_warns_too(tmp_path: Path) -> None:
    frame(spoilt(good_rows())).write_csv(tmp_path / "visits.csv")
    words = ["ingest", "table", "--domain", "Shop", "--interactions", tmp_path / "visits.csv", "--store", tmp_path]
    outcome = run(*words, "--keep-without-metadata", "--min-user", "1", "--min-item", "1", "--dry-run")
    assert outcome.code == 0
    assert "antpipe: warning: domain Shop: 100.0% of 40 users" in outcome.err


def test_rows_of_equal_times_are_in_the_order_of_the_file_and_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    as_table(tmp_path / "store", tmp_path, [(user, item, START) for user, item, _ in good_rows()])
    [warning] = warnings(caplog)
    assert warning.startswith("domain Shop: 100.0% of positions have the same time as the position before")
    order = order_of(Store(tmp_path / "store").domain("Shop"))
    assert order is not None
    assert (order.basis, order.tied) == ("rows", 1.0)


def test_the_rows_of_the_file_are_named_as_the_order_if_there_are_no_times(
    tmp_path: Path, messages: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    rows = frame(good_rows())
    wanted = {"min_user": 1, "min_item": 1, "time_unit": "order", "keep_without_metadata": True}
    api.data.ingest_table(tmp_path, "NoTimes", interactions=rows.drop("timestamp"), **wanted)
    api.data.ingest_table(tmp_path, "Positions", interactions=rows, **wanted)
    assert any(message.startswith("NoTimes: order by the rows of the file; ") for message in messages)
    assert any(message.startswith("Positions: order by numbers that are not times; ") for message in messages)
    assert warnings(caplog) == []


@pytest.mark.parametrize("users", [1, 2, 5])
def test_a_table_of_few_users_gives_no_warning(users: int, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    as_table(tmp_path / "store", tmp_path, spoilt(good_rows(users)))
    assert warnings(caplog) == []


def test_users_of_one_item_and_a_catalogue_alone_give_no_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    as_table(tmp_path / "store", tmp_path, [(f"u{number}", "x", START + number) for number in range(30)])
    api.data.ingest_table(tmp_path / "store", "Catalogue", items=goods(good_rows()))
    assert warnings(caplog) == []


def test_the_sample_shops_give_no_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    api.data.ingest_sample(tmp_path, users=80, items=60)
    assert run("stats", "--store", tmp_path).err == ""
    assert warnings(caplog) == []


def test_build_sequences_warns_of_test_targets_that_nobody_trains_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rng = np.random.default_rng(2)
    rows = [
        (f"U{user:02}", item, START + time)
        for user in range(40)
        for time, item in enumerate([*(f"B{item:02}" for item in rng.permutation(9)[:6]), f"New{user % 8}"])
    ]
    as_table(tmp_path, tmp_path, rows)
    assert warnings(caplog) == []
    api.features.build_sequences(tmp_path, "Shop")
    [warning] = warnings(caplog)
    assert warning.startswith("domain Shop: 100.0% of test targets never occur in the training part")


@pytest.mark.slow
@pytest.mark.realdata
@pytest.mark.parametrize("name", ["Beauty", "Sports", "Toys", "Games"])
def test_the_published_tables_are_in_order_and_their_sorted_copies_are_not(
    name: str, real_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    visits = pl.read_csv(real_data / "tables" / f"{name}.interactions.csv.gz")
    copy = visits.sort("user_id", "item_id").with_columns(timestamp=pl.int_range(pl.len()).over("user_id"))
    for domain, rows in (("InOrder", visits), ("Sorted", copy)):
        api.data.ingest_table(tmp_path, domain, interactions=rows, keep_without_metadata=True)
        api.features.build_sequences(tmp_path, domain)
    [warning] = warnings(caplog)
    assert warning.startswith(f"domain Sorted: 100.0% of {visits['user_id'].n_unique()} users have their items in")
    good, bad = api.overview.stats(tmp_path, ["InOrder", "Sorted"])["domains"]
    assert good.cold.test < 0.02
    assert bad.cold.test > 4 * good.cold.test


@pytest.mark.realdata
def test_times_that_are_days_are_warned_of_where_they_decide_three_positions_of_four(
    real_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    usual, degenerate = ["Gift_Cards", "Magazine_Subscriptions"], ["All_Beauty", "AMAZON_FASHION"]
    settings = {"source": real_data / "amazon2018", "keep_without_metadata": True}
    api.data.ingest_amazon(tmp_path, [*usual, *degenerate], **settings)
    ties = [one for one in warnings(caplog) if "have the same time as the position before" in one]
    assert [one.split(":")[0] for one in ties] == ["domain All_Beauty", "domain AMAZON_FASHION"]
    assert not any(name in one for name in usual for one in warnings(caplog))
