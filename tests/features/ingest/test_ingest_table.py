"""`ingest table`: what is read from tables of any shop, how it is cleaned, and what is refused."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from antpipe.errors import DataError, UsageError
from antpipe.features.ingest.table.values import pictures_of
from antpipe.features.ingest_table import TableSource, ingest_table, table_source
from antpipe.settings.ingest import IngestConfig, TableConfig
from antpipe.store.artefacts import StageResult
from antpipe.store.store import Store
from tests.support.commands import run
from tests.support.places import check_refusal
from tests.support.releases import EVERYTHING, UNDESCRIBED, interactions, items, report, snapshot

EVENTS = "user_id,item_id,timestamp,rating\n"
VISITS = EVENTS + "a,x,1500000000,5\na,y,1500000001,\nb,x,1500000002,1\n"
GOODS = "id,title,price,brand\nx,Red scarf,$5.00,Ada\ny,Blue cup,,\nunsold,Hat,3,\n"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def files(folder: Path, visits: str | bytes | None = VISITS, goods: str | bytes | None = GOODS) -> TableSource:
    """The source of two CSV files with this content."""
    paths: list[Path | None] = []
    for name, content in (("visits.csv", visits), ("goods.csv", goods)):
        if content is None:
            paths.append(None)
            continue
        paths.append(folder / name)
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return table_source(*paths)


def ingest(
    store: Store,
    source: TableSource,
    config: IngestConfig = EVERYTHING,
    table: TableConfig = TableConfig(),  # noqa: B008
    force: bool = False,
) -> StageResult:
    return ingest_table(store, "Shop", source, config, table, force=force)


def test_interactions_and_items_become_a_domain(store: Store, tmp_path: Path, messages: list[str]) -> None:
    ingest(store, files(tmp_path))
    shop = store.domain("Shop")
    assert interactions(shop) == [
        ("a", "x", 1_500_000_000_000, 5.0),
        ("a", "y", 1_500_000_001_000, None),
        ("b", "x", 1_500_000_002_000, 1.0),
    ]
    assert items(shop)["x"] | {"item": 0} == {
        "item": 0,
        "item_id": "x",
        "title": "Red scarf",
        "text": "Red scarf. Ada",
        "price": 5.0,
        "currency": "USD",
        "category": [],
        "image_urls": [],
        "image_files": [],
    }
    assert shop.item_ids() == ["x", "y", "unsold"]
    assert shop.core_rows() == 2
    assert "goods.csv: comma-separated, item=id title=title price=price brand=brand" in messages
    assert messages[-2] == "visits.csv: 3 rows, times are s, from 2017-07-14 02:40:00 to 2017-07-14 02:40:02"


def test_the_counts_of_each_file_add_up(store: Store, tmp_path: Path) -> None:
    visits = VISITS + "a,x,1500000000,5\n,x,1500000000,5\nb,x\nb,x,soon,1\nb,x,5,good\n"
    goods = GOODS + "x,Again,1,\n,No id,1,\n"
    ingest(store, files(tmp_path, visits, goods), IngestConfig(min_user=1, min_item=1, max_rejects=9))
    for facts in (report(store)["interactions"], report(store)["items"]):
        assert facts["lines"] == facts["kept"] + facts["duplicate_lines"] + facts["malformed"]
    facts = report(store)["interactions"]
    assert (facts["lines"], facts["kept"], facts["duplicate_lines"], facts["malformed"]) == (8, 3, 1, 4)
    assert report(store)["items"]["duplicate_lines"] == 1
    rejects = store.domain("Shop").table("rejects").to_pylist()
    assert [(row["file"], row["line"], row["reason"][:12]) for row in rejects] == [
        ("visits.csv", 6, "no user id"),
        ("visits.csv", 7, "2 value(s), "),
        ("visits.csv", 8, "time 'soon' "),
        ("visits.csv", 9, "rating 'good"),
        ("goods.csv", 6, "no item id"),
    ]


def test_the_first_row_of_an_item_counts(store: Store, tmp_path: Path) -> None:
    ingest(store, files(tmp_path, goods=GOODS + "x,Again,1,\n"))
    assert items(store.domain("Shop"))["x"]["title"] == "Red scarf"


def test_malformed_rows_are_refused_with_file_and_line(store: Store, tmp_path: Path) -> None:
    source = files(tmp_path, VISITS.encode() + b"\xff,x,1500000000,5\n")
    with pytest.raises(DataError, match=r"visits\.csv:5: not UTF-8") as caught:
        ingest(store, source)
    assert "--max-rejects 1" in str(caught.value.next_command)
    assert not store.root.exists()


def test_malformed_rows_belong_to_their_own_file_even_if_another_one_has_its_name(store: Store, tmp_path: Path) -> None:
    visits, goods = tmp_path / "a" / "data.csv", tmp_path / "c" / "data.csv"
    for path, content in ((visits, VISITS.encode()), (goods, b"id,title\nx,Hat\ny,Cup\nz,\xff\nv,\xff\n")):
        path.parent.mkdir()
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"c/data\.csv:4: not UTF-8; 2 of 4 rows are like this") as caught:
        ingest(store, table_source(visits, goods))
    assert str(goods) in str(caught.value.next_command)


def test_the_rules_of_ingest_amazon_hold(store: Store, tmp_path: Path) -> None:
    visits = (
        EVENTS
        + "".join(f"u{n % 3},x,{1_500_000_000 + n},\n" for n in range(6))
        + "u0,y,1500000009,\nu9,x,1500000009,\n"
    )
    config = IngestConfig(min_user=2, min_item=2, repeats="keep-all")
    ingest(store, files(tmp_path, visits, "id,title\nx,Scarf\n"), config)
    facts = report(store)
    assert facts["without_metadata"] == {"users": 1, "items": 1, "interactions": 1, "kept": False}
    assert facts["k_core"] == {"rounds": 1, "users_dropped": 1, "items_dropped": 0, "interactions_dropped": 1}
    assert len(interactions(store.domain("Shop"))) == 6
    ingest(
        store, files(tmp_path, visits, "id,title\nx,Scarf\n"), IngestConfig(min_user=1, min_item=1, repeats="keep-last")
    )
    assert [row[:2] for row in interactions(store.domain("Shop"))] == [
        ("u0", "x"),
        ("u1", "x"),
        ("u2", "x"),
        ("u9", "x"),
    ]


def test_users_of_another_domain_can_be_dropped(store: Store, tmp_path: Path) -> None:
    ingest(store, files(tmp_path))
    (tmp_path / "more").mkdir()
    source = files(tmp_path / "more", VISITS + "c,x,1500000009,\n")
    config = IngestConfig(min_user=1, min_item=1, drop_shared_users_from=("Shop",))
    ingest_table(store, "Source", source, config, TableConfig())
    assert [row[0] for row in interactions(store.domain("Source"))] == ["c"]
    assert report(store, "Source")["shared_users"] == {"from": ["Shop"], "users": 2, "interactions": 3}
    assert ingest_table(store, "Source", source, config, TableConfig()).status == "fresh"
    ingest(store, files(tmp_path, VISITS + "d,x,1500000009,\n"))
    assert ingest_table(store, "Source", source, config, TableConfig()).status == "built"


def test_items_can_be_absent(store: Store, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="without --items") as caught:
        ingest(store, files(tmp_path, goods=None))
    assert str(caught.value.next_command).endswith("--keep-without-metadata")
    ingest(store, files(tmp_path, goods=None), UNDESCRIBED)
    assert {item: row["text"] for item, row in items(store.domain("Shop")).items()} == {"x": "", "y": ""}


def test_without_interactions_a_domain_is_a_catalogue_of_all_items(store: Store, tmp_path: Path) -> None:
    ingest(store, files(tmp_path, visits=None), IngestConfig())
    shop = store.domain("Shop")
    assert shop.item_ids() == ["unsold", "x", "y"]
    assert shop.table("interactions").num_rows == shop.table("users").num_rows == 0
    assert run("quantize-price", "--domains", "Shop", "--store", store.root).code == 0
    outcome = run("build-sequences", "--domains", "Shop", "--store", store.root)
    goods = tmp_path / "goods.csv"
    check_refusal(
        outcome,
        3,
        "Shop",
        "catalogue without interactions",
        next_command=f"antpipe ingest table --domains Shop --store {store.root} --items {goods} --interactions FILE",
    )


def test_neither_file_is_a_usage_error(store: Store) -> None:
    with pytest.raises(UsageError, match="--interactions and --items"):
        ingest(store, table_source(None, None))


def test_rows_without_times_are_refused_unless_the_user_says_that_they_are_in_order(
    store: Store, tmp_path: Path
) -> None:
    source = files(tmp_path, "user,item\na,y\nb,x\na,x\na,y\n")
    with pytest.raises(DataError, match="no column looks like the time; columns there: user, item") as caught:
        ingest(store, source)
    assert str(caught.value.next_command).endswith("--time-unit order")
    ingest(store, source, EVERYTHING, TableConfig(time_unit="order"))
    assert interactions(store.domain("Shop")) == [
        ("a", "y", 2, None),
        ("a", "x", 4, None),
        ("a", "y", 5, None),
        ("b", "x", 3, None),
    ]


def test_an_order_cannot_be_split_by_time_and_overlaps_with_nothing(store: Store, tmp_path: Path) -> None:
    words = ("ingest", "table", "--interactions", tmp_path / "visits.csv", "--items", tmp_path / "goods.csv")
    files(tmp_path, "user,item,time\na,y,0\na,x,1\nb,x,0\n")
    for name in ("One", "Two"):
        assert run(*words, "--domain", name, "--min-user", "1", "--min-item", "1", "--store", store.root).code == 0
    outcome = run("build-sequences", "--domains", "One,Two", "--store", store.root)
    assert (outcome.code, outcome.err) == (0, "")
    outcome = run("build-sequences", "--domains", "One", "--split", "time", "--store", store.root)
    check_refusal(outcome, 3, "One", "only an order", next_command="--split leave-one-out")


def test_texts_are_the_columns_of_the_map_or_the_parts_of_an_item(store: Store, tmp_path: Path) -> None:
    goods = 'id,title,brand,category,description\nx,Red &amp; blue,Ada.,"Home | Decor > Scarves",<b>Warm</b>\ny,B,,,\n'
    ingest(store, files(tmp_path, goods=goods))
    shop = items(store.domain("Shop"))
    assert shop["x"]["text"] == "Red & blue. Home, Decor, Scarves. Ada. Warm"
    assert shop["x"]["category"] == ["Home", "Decor", "Scarves"]
    ingest(store, files(tmp_path, goods=goods), table=TableConfig(map=("text=brand+description",)))
    assert [items(store.domain("Shop"))[item]["text"] for item in "xy"] == ["Ada. Warm", ""]


def test_lists_of_parquet_and_json_are_lists(store: Store, tmp_path: Path) -> None:
    urls = ["http://a/1.jpg", "http://a/2.jpg"]
    table = pa.table(
        {"id": ["x", "y"], "categories": [["Home", "Decor"], None], "images": [urls, []], "price": [2.5, None]}
    )
    pq.write_table(table, tmp_path / "goods.parquet")
    ingest(store, table_source(None, tmp_path / "goods.parquet"))
    row = items(store.domain("Shop"))["x"]
    assert (row["category"], row["image_urls"], row["price"]) == (["Home", "Decor"], urls, 2.5)
    quoted = json.dumps(urls).replace('"', '""')
    ingest(store, files(tmp_path, None, f'id,images\nx,"{quoted}"\ny,http://a/3.jpg|http://a/4.jpg\n'), force=True)
    shop = items(store.domain("Shop"))
    assert [shop[item]["image_urls"] for item in "xy"] == [urls, ["http://a/3.jpg", "http://a/4.jpg"]]


def test_picture_files_stand_beside_the_table_and_missing_ones_are_logged(
    store: Store, tmp_path: Path, messages: list[str]
) -> None:
    (tmp_path / "pics").mkdir()
    (tmp_path / "pics" / "x.jpg").write_bytes(b"a picture")
    ingest(store, files(tmp_path, goods="id,image\nx,pics/x.jpg\ny,pics/y.jpg\n"))
    assert items(store.domain("Shop"))["x"]["image_files"] == [str(tmp_path / "pics" / "x.jpg")]
    assert any("goods.csv: 1 picture file(s) are not there, for example pics/y.jpg" in line for line in messages)


@pytest.mark.parametrize("value", [None, "", "a" * 5000, "bad\x00name", "nowhere.jpg", float("nan"), [None]])
def test_a_value_that_is_not_a_picture_is_never_an_error(tmp_path: Path, value: Any) -> None:
    assert pictures_of(value, tmp_path, []) == ([], [])


def test_a_second_run_is_fresh_until_a_file_or_a_rule_changes(store: Store, tmp_path: Path) -> None:
    source = files(tmp_path)
    ingest(store, source)
    before = snapshot(store.root)
    assert ingest(store, source).status == "fresh"
    assert snapshot(store.root) == before
    assert ingest(store, source, table=TableConfig(time_unit="s")).status == "built"
    more = files(tmp_path, VISITS + "b,y,1500000003,\n")
    assert ingest(store, more, table=TableConfig(time_unit="s")).status == "built"
    assert len(interactions(store.domain("Shop"))) == 4


def test_another_source_does_not_replace_a_domain_unless_forced(store: Store, tmp_path: Path) -> None:
    ingest(store, files(tmp_path))
    (tmp_path / "other").mkdir()
    other = files(tmp_path / "other", EVENTS + "c,x,1500000000,\n")
    before = snapshot(store.root)
    with pytest.raises(DataError, match="domain Shop holds data from `ingest table` of") as caught:
        ingest(store, other)
    assert str(caught.value.next_command).endswith("--force")
    assert snapshot(store.root) == before
    ingest(store, other, force=True)
    assert [row[0] for row in interactions(store.domain("Shop"))] == ["c"]


def test_moved_files_are_the_same_source_and_pictures_move_along(store: Store, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.jpg").write_bytes(b"a picture")
        ingest(store, files(tmp_path / name, goods="id,image\nx,x.jpg\ny,\n"))
    assert items(store.domain("Shop"))["x"]["image_files"] == [str(tmp_path / "two" / "x.jpg")]


@pytest.mark.parametrize(
    ("config", "goods", "says", "advice"),
    [
        (IngestConfig(), GOODS, "3 have users with fewer than 5", "--min-user 1 --min-item 1"),
        (EVERYTHING, "id,title\nz,Hat\n", "3 have items without metadata", "--keep-without-metadata"),
    ],
)
def test_nothing_left_says_where_it_went(
    store: Store, tmp_path: Path, config: IngestConfig, goods: str, says: str, advice: str
) -> None:
    with pytest.raises(DataError, match=says) as caught:
        ingest(store, files(tmp_path, goods=goods), config)
    assert advice in str(caught.value.next_command)


@pytest.mark.parametrize(
    ("visits", "goods", "says"),
    [
        (EVENTS, GOODS, r"visits\.csv: it has a header, but no row"),
        (VISITS, "id,title\n", r"goods\.csv: it has a header, but no row"),
        ("user,when\na,1\n", GOODS, "no column looks like the item; columns there: user, when"),
        (VISITS, "a,b\n1,2\n", "no column looks like the item; columns there: a, b"),
    ],
)
def test_a_file_without_rows_or_ids_is_refused(
    store: Store, tmp_path: Path, visits: str, goods: str, says: str
) -> None:
    with pytest.raises(DataError, match=says):
        ingest(store, files(tmp_path, visits, goods))


def test_a_column_of_the_map_in_neither_file_is_refused_with_those_there(store: Store, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"visits\.csv has user_id, item_id, timestamp, rating; goods\.csv has id"):
        ingest(store, files(tmp_path), table=TableConfig(map=("item=sku",)))


def test_status_names_the_command_that_repeats_the_ingest(store: Store, tmp_path: Path) -> None:
    ingest(store, files(tmp_path))
    (store.root / "Shop" / "items.parquet").unlink()
    source = f"--interactions {tmp_path / 'visits.csv'} --items {tmp_path / 'goods.csv'}"
    assert f"ingest table --domains Shop --store {store.root} {source} --min-user 1 --min-item 1" in run(
        "status", "--store", store.root
    ).out.replace("\n   ", "")


def test_formats_give_the_same_domain(store: Store, tmp_path: Path) -> None:
    ingest(store, files(tmp_path))
    expected = interactions(store.domain("Shop"))
    rows = [line.split(",") for line in VISITS.splitlines()[1:]]
    columns = {
        "user": [row[0] for row in rows],
        "item": [row[1] for row in rows],
        "time": [int(row[2]) for row in rows],
        "rating": [float(row[3]) if row[3] else None for row in rows],
    }
    pq.write_table(pa.table(columns), tmp_path / "visits.parquet")
    (tmp_path / "visits.tsv.gz").write_bytes(gzip.compress(VISITS.replace(",", "\t").encode()))
    for name in ("visits.parquet", "visits.tsv.gz"):
        ingest(store, table_source(tmp_path / name, tmp_path / "goods.csv"), force=True)
        assert interactions(store.domain("Shop")) == expected


CELL = st.sampled_from(["a", "b", "x", "", "1500000000", "5", '"', "é", "\udcff", "a,b"])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(CELL, min_size=1, max_size=5), max_size=8))
@example([["", ""]])
def test_counts_add_up_for_any_rows(tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]]) -> None:
    folder = tmp_path_factory.mktemp("wild")
    lines = [",".join(row) for row in rows]
    content = (VISITS + "".join(f"{line}\n" for line in lines)).encode("utf-8", "surrogateescape")
    store = Store(folder / "store")
    table = TableConfig(quotes=False, time_unit="order")
    ingest(store, files(folder, content), IngestConfig(min_user=1, min_item=1, max_rejects=99), table)
    facts = report(store)["interactions"]
    assert facts["lines"] == 3 + len([row for row in rows if any(row)])  # a line of commas alone is empty
    assert facts["lines"] == facts["kept"] + facts["duplicate_lines"] + facts["malformed"]


@pytest.mark.slow
@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "users", "items_met", "rows"),
    [("Beauty", 22_363, 12_101, 198_502), ("Sports", 35_598, 18_357, 296_337), ("Toys", 19_412, 11_924, 167_597)],
)
def test_the_tables_of_papers_come_out_as_papers_count_them(
    real_data: Path, store: Store, messages: list[str], name: str, users: int, items_met: int, rows: int
) -> None:
    folder = real_data / "tables"
    ingest(store, table_source(folder / f"{name}.interactions.csv.gz", folder / f"{name}.items.csv.gz"), IngestConfig())
    statistics = store.domain("Shop").entry("items")["statistics"]
    assert (statistics["users"], statistics["items"], statistics["interactions"]) == (users, items_met, rows)
    assert any("times are an order" in line for line in messages)


@pytest.mark.slow
@pytest.mark.realdata
def test_items_of_games_that_no_title_describes_can_be_kept(real_data: Path, store: Store) -> None:
    files = (real_data / "tables" / f"Games.{kind}.csv.gz" for kind in ("interactions", "items"))
    ingest(store, table_source(*files), IngestConfig(keep_without_metadata=True))
    assert store.domain("Shop").entry("items")["statistics"]["users"] == 50_546


@pytest.mark.realdata
def test_published_catalogues_are_read(real_data: Path, store: Store) -> None:
    ingest(store, table_source(None, real_data / "tables" / "apparel_catalogue.csv.gz"))
    statistics = store.domain("Shop").entry("items")["statistics"]
    assert (statistics["items"], statistics["with_image_url"]) == (16_434, 1.0)
    table = TableConfig(map=("category=articleType",))
    ingest(store, table_source(None, real_data / "images" / "hires_items.csv"), table=table, force=True)
    assert items(store.domain("Shop"))["2994"]["text"] == "Carlton London Men Black Sandal. Sandals"
