"""`ingest amazon`: users of other domains, a dry run, a limit, and formats that are named instead of detected."""

from pathlib import Path

import pytest

from antpipe.errors import DataError, UsageError
from antpipe.settings.ingest import AmazonConfig, IngestConfig
from antpipe.store.next_command import build_command
from antpipe.store.store import Store
from tests.support.commands import run
from tests.support.releases import (
    EVERYTHING,
    ingest_release,
    interactions,
    product,
    publish,
    report,
    review,
    review_2023,
    small_shop,
    snapshot,
)
from tests.support.shops import make_domain

WITHOUT_TARGET = IngestConfig(min_user=1, min_item=1, drop_shared_users_from=("Target",))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return small_shop(tmp_path / "source")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store with the domain Target, whose users are a and q."""
    store = Store(tmp_path / "store")
    make_domain(store, "Target", [{"item_id": "t"}], [("a", "t", 1), ("q", "t", 2)])
    return store


# -- users of other domains -------------------------------------------------------------------------------------


def test_users_of_a_named_domain_are_dropped_and_counted(store: Store, source: Path) -> None:
    result = ingest_release(store, source, "Shop", WITHOUT_TARGET)
    assert interactions(store.domain("Shop")) == [("b", "x", 3000, 5.0)]
    assert report(store)["shared_users"] == {"from": ["Target"], "users": 1, "interactions": 2}
    assert result.figures["shared_users_dropped"] == 1


def test_users_of_other_domains_go_before_the_k_core(store: Store, source: Path) -> None:
    publish(source / "Shop_5.json.gz", *(review(user, "x", n) for n, user in enumerate("abc")), review("b", "y", 9))
    config = IngestConfig(min_user=1, min_item=3, drop_shared_users_from=("Target",))
    with pytest.raises(DataError, match="no interaction is left") as caught:
        ingest_release(store, source, "Shop", config)
    assert "1 are of users of Target, " in caught.value.message


def test_an_ingest_is_stale_once_the_named_domain_has_other_users(store: Store, source: Path) -> None:
    ingest_release(store, source, "Shop", WITHOUT_TARGET)
    assert ingest_release(store, source, "Shop", WITHOUT_TARGET).status == "fresh"
    make_domain(store, "Target", [{"item_id": "t"}], [("b", "t", 1)])
    assert ingest_release(store, source, "Shop", WITHOUT_TARGET).status == "built"
    assert {row[0] for row in interactions(store.domain("Shop"))} == {"a"}


def test_status_notices_that_the_named_domain_has_other_users(store: Store, source: Path) -> None:
    ingest_release(store, source, "Shop", WITHOUT_TARGET)
    words = ("status", "--domains", "Shop", "--store", store.root, "--json")
    assert run(*words).json()["Shop"][0]["status"] == "fresh"
    make_domain(store, "Target", [{"item_id": "t"}], [("b", "t", 1)])
    state = run(*words).json()["Shop"][0]
    assert (state["artefact"], state["status"]) == ("items", "stale")
    assert state["why"] == "the users of Target, who were left out, changed since"
    assert state["next_command"].startswith("antpipe ingest amazon --domains Shop")
    (store.root / "Target" / "users.parquet").write_bytes(b"")  # what cannot be read does not stop `status`
    assert run(*words).code == 0


def test_the_order_of_rows_in_the_named_domain_does_not_matter(store: Store, source: Path) -> None:
    ingest_release(store, source, "Shop", WITHOUT_TARGET)
    make_domain(store, "Target", [{"item_id": "t"}], [("q", "t", 5), ("a", "t", 6)])
    assert ingest_release(store, source, "Shop", WITHOUT_TARGET).status == "fresh"


def test_the_command_that_rebuilds_the_domain_repeats_the_flag(store: Store, source: Path) -> None:
    ingest_release(store, source, "Shop", WITHOUT_TARGET)
    (store.root / "Shop" / "items.parquet").unlink()
    command = store.domain("Shop").state("items").next_command
    assert "--drop-shared-users-from Target" in command


def test_the_domain_itself_and_an_unknown_one_cannot_be_named(store: Store, source: Path) -> None:
    for name, error in (("Shop", UsageError), ("Nowhere", DataError)):
        config = IngestConfig(drop_shared_users_from=(name,))
        with pytest.raises(error, match=name):
            ingest_release(store, source, "Shop", config)
    assert store.domains() == ["Target"]


def test_a_domain_of_shared_users_alone_is_refused_with_a_command_that_keeps_them(store: Store, source: Path) -> None:
    publish(source / "Shop_5.json.gz", review("a", "x"), review("q", "y"))
    with pytest.raises(DataError, match="2 are of users of Target") as caught:
        ingest_release(store, source, "Shop", WITHOUT_TARGET)
    assert caught.value.next_command
    assert "--drop-shared-users-from" not in caught.value.next_command


# -- dry run ----------------------------------------------------------------------------------------------------


def test_a_dry_run_gives_the_figures_of_the_ingest_and_writes_nothing(store: Store, source: Path) -> None:
    before = snapshot(store.root)
    planned = ingest_release(store, source, "Shop", EVERYTHING, dry_run=True)
    assert planned.status == "would be built"
    assert snapshot(store.root) == before
    assert ingest_release(store, source, "Shop", EVERYTHING).figures == planned.figures
    assert ingest_release(store, source, "Shop", EVERYTHING, dry_run=True).status == "fresh"
    assert ingest_release(store, source, "Shop", EVERYTHING, dry_run=True, force=True).status == "would be built"


def test_a_dry_run_makes_no_store(tmp_path: Path, source: Path) -> None:
    words = (
        f"ingest amazon --source {source} --domains Shop --store {tmp_path}/none --min-user 1 --min-item 1 --dry-run"
    )
    outcome = run(*words.split())
    assert outcome.out.startswith("Shop  items  would be built\n    2 users, 2 items, 3 interactions, ")
    assert not (tmp_path / "none").exists()


def test_a_dry_run_refuses_what_the_ingest_refuses(store: Store, source: Path) -> None:
    with pytest.raises(DataError, match="no interaction is left"):
        ingest_release(store, source, "Shop", IngestConfig(), dry_run=True)


# -- limit ------------------------------------------------------------------------------------------------------


def test_a_limit_reads_the_first_review_lines_and_is_in_the_report(store: Store, source: Path) -> None:
    publish(source / "Shop_5.json.gz", review("a", "x"), review("a", "x"), review("b", "y"), b"never read")
    result = ingest_release(store, source, "Shop", EVERYTHING, options=AmazonConfig(limit=3))
    facts = report(store)
    assert (facts["interactions"]["lines"], facts["interactions"]["kept"], facts["limit"]) == (3, 2, 3)
    assert facts["items"]["lines"] == 3
    assert result.figures["limit"] == 3
    assert "--limit 3" in build_command(store.domain("Shop"), "items")


def test_another_limit_reads_again(store: Store, source: Path) -> None:
    for limit, status in ((2, "built"), (2, "fresh"), (1, "built"), (0, "built")):
        assert ingest_release(store, source, "Shop", EVERYTHING, options=AmazonConfig(limit=limit)).status == status
    assert "limit" not in ingest_release(store, source, "Shop", EVERYTHING).figures


def test_a_limit_counts_malformed_lines_and_not_the_header(store: Store, source: Path) -> None:
    (source / "Shop_5.json.gz").unlink()
    lines = ["user,item,rating,timestamp", "a,x,5,1", "broken", "b,y,5,1", "c,y,5,1"]
    (source / "Shop.csv").write_text("\n".join(lines))
    config = IngestConfig(min_user=1, min_item=1, max_rejects=1)
    ingest_release(store, source, "Shop", config, options=AmazonConfig(limit=3))
    facts = report(store)["interactions"]
    assert (facts["lines"], facts["malformed"], facts["kept"]) == (3, 1, 2)
    assert store.domain("Shop").table("rejects")["line"].to_pylist() == [3]


# -- formats ----------------------------------------------------------------------------------------------------


def test_a_review_format_can_be_named(store: Store, source: Path) -> None:
    """A line of 2023 that also has the keys of 2018 is read as 2018 unless the format is named."""
    publish(source / "Shop_5.json.gz", review_2023("new", "x") | review("old", "x"))
    for wanted, user in (("auto", "old"), ("reviews-2023", "new"), ("reviews-2018", "old")):
        options = AmazonConfig(review_format=wanted)
        ingest_release(store, source, "Shop", EVERYTHING, options=options)
        assert interactions(store.domain("Shop"))[0][0] == user


def test_a_domain_from_complete_reviews_can_be_asked_for(store: Store, source: Path) -> None:
    publish(source / "Shop.json.gz", review("c", "x"))
    ingest_release(store, source, "Shop", EVERYTHING, options=AmazonConfig(files="complete"))
    assert {row[0] for row in interactions(store.domain("Shop"))} == {"c"}
    assert "--files complete" in build_command(store.domain("Shop"), "items")


def test_prices_of_2023_are_numbers_texts_or_missing(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "new"
    prices = {"a": 12.5, "b": "12.50", "c": None, "d": "from 12.50", "e": "—"}
    publish(folder / "Shop.jsonl", *(review_2023("u", item, n) for n, item in enumerate(prices)))
    publish(folder / "meta_Shop.jsonl", *({"parent_asin": item, "price": price} for item, price in prices.items()))
    ingest_release(store, folder, "Shop", EVERYTHING)
    found = dict(zip("abcde", store.domain("Shop").table("items")["price"].to_pylist(), strict=True))
    assert (found["a"], found["b"], found["c"], found["e"]) == (12.5, 12.5, None, None)


def test_a_missing_folder_leads_to_the_download(store: Store, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        ingest_release(store, tmp_path / "none", "Shop", EVERYTHING)
    assert str(caught.value.next_command).endswith("--download")
    publish(tmp_path / "some" / "meta_Shop.json.gz", product("x"))
    with pytest.raises(DataError) as caught:
        ingest_release(store, tmp_path / "some", "Shop", EVERYTHING)
    assert str(caught.value.next_command).endswith("--download")
