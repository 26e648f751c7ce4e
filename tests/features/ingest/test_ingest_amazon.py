"""`ingest amazon`: what is read from the releases, how it is cleaned, and when it is read again."""

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from antpipe.errors import DataError
from antpipe.settings.ingest import AmazonConfig, IngestConfig
from antpipe.store.store import Store
from tests.support.releases import (
    EVERYTHING,
    UNDESCRIBED,
    Line,
    encode,
    ingest_release,
    interactions,
    items,
    product,
    publish,
    report,
    review,
    review_2023,
    small_shop,
    snapshot,
)
from tests.support.shops import make_domain


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return small_shop(tmp_path / "source")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def filled(store: Store, source: Path) -> Store:
    """A store that holds the domain already."""
    ingest_release(store, source, "Shop", EVERYTHING)
    return store


# -- what is read ---------------------------------------------------------------------------------------------


def test_reviews_and_metadata_of_2018_become_a_domain(store: Store, source: Path) -> None:
    result = ingest_release(store, source, "Shop", EVERYTHING)
    assert (result.domain, result.artefact, result.status) == ("Shop", "items", "built")
    domain = store.domain("Shop")
    assert interactions(domain) == [("a", "x", 1000, 5.0), ("a", "y", 2000, 5.0), ("b", "x", 3000, 5.0)]
    assert domain.item_ids() == ["x", "y"]
    assert items(domain)["x"]["text"] == "Title x. Shop"


def test_reviews_of_2023_have_milliseconds_and_parents(store: Store, source: Path) -> None:
    folder = source.parent / "new"
    publish(folder / "Shop.jsonl", review_2023("a", "p", 1234, asin="child"), review_2023("b", "p", 5, rating=None))
    images = [
        {"thumb": "https://i/t.jpg", "large": "https://i/l.jpg", "hi_res": "https://i/h.jpg", "variant": "MAIN"},
        {"thumb": "https://i/t2.jpg", "large": "https://i/l2.jpg", "hi_res": None, "variant": "PT01"},
    ]
    publish(
        folder / "meta_Shop.jsonl",
        {
            "parent_asin": "p",
            "title": "Oil",
            "main_category": "All Beauty",
            "categories": [],
            "store": "Acme",
            "features": ["Soft"],
            "description": ["For wood"],
            "price": 12.5,
            "images": images,
            "details": {"a": [1]},
        },
    )
    ingest_release(store, folder, "Shop", EVERYTHING)
    assert interactions(store.domain("Shop")) == [("a", "p", 1234, 5.0), ("b", "p", 5, None)]
    assert items(store.domain("Shop"))["p"] == {
        "item": 0,
        "item_id": "p",
        "title": "Oil",
        "text": "Oil. All Beauty. Acme. Soft. For wood",
        "price": 12.5,
        "currency": "USD",
        "category": ["All Beauty"],
        "image_urls": ["https://i/h.jpg", "https://i/l2.jpg"],
        "image_files": [],
    }


def test_metadata_of_2014_are_python_literals(store: Store, source: Path) -> None:
    literal = {
        "asin": "x",
        "title": "It's",
        "price": 19.99,
        "brand": None,
        "imUrl": "http://i/51a._SY300_.jpg",
        "categories": [["Kindle", "Adapters"], ["Other"]],
        "description": 'A "quote"',
    }
    folder = source.parent / "old"
    publish(folder / "reviews_Shop_5.json.gz", review("a", "x"))
    publish(folder / "meta_Shop.json.gz", repr(literal).encode())
    ingest_release(store, folder, "Shop", EVERYTHING)
    row = items(store.domain("Shop"))["x"]
    assert row["text"] == 'It\'s. Kindle, Adapters. A "quote"'
    assert row["image_urls"] == ["http://i/51a.jpg"]
    assert row["price"] == pytest.approx(19.99)
    assert report(store)["items"]["format"] == "metadata of 2014"


def test_the_formats_found_are_logged_and_reported(store: Store, source: Path, messages: list[str]) -> None:
    ingest_release(store, source, "Shop", EVERYTHING)
    assert messages == [
        "rules: identical lines once; repeats keep-all, equal times in file order; items without metadata dropped; at "
        "least 1 interactions per user, 1 per item; text: title, category, brand, features, description",
        "Shop_5.json.gz: reviews of 2014/2018, 3 lines",
        "meta_Shop.json.gz: metadata of 2018 (imageURL), 3 lines",
        "Shop: order by time; 0.0% of positions have the time of the one before",
    ]
    assert report(store)["interactions"]["format"] == "reviews of 2014/2018"
    assert report(store)["rules"] == messages[0]


def test_the_5_core_file_is_preferred_and_the_other_one_logged(store: Store, source: Path, messages: list[str]) -> None:
    publish(source / "Shop.json.gz", review("c", "y"))
    ingest_release(store, source, "Shop", EVERYTHING)
    assert report(store)["interactions"]["file"] == "Shop_5.json.gz"
    assert "Shop.json.gz: not read, Shop_5.json.gz is read instead" in messages


def test_metadata_of_the_release_of_the_reviews_are_preferred(store: Store, source: Path) -> None:
    (source / "Shop_5.json.gz").unlink()
    publish(source / "Shop.jsonl.gz", review_2023("a", "x"))
    publish(source / "meta_Shop.jsonl.gz", {"parent_asin": "x", "title": "New"})
    ingest_release(store, source, "Shop", EVERYTHING)
    assert report(store)["items"]["file"] == "meta_Shop.jsonl.gz"


@pytest.mark.parametrize("name", ["Shop_5.json", "Shop.json.gz", "Shop.json", "Shop.jsonl.gz", "reviews_Shop.json.gz"])
def test_plain_and_compressed_files_are_found_by_their_published_names(store: Store, source: Path, name: str) -> None:
    (source / "Shop_5.json.gz").unlink()
    publish(source / name, review("a", "x"))
    ingest_release(store, source, "Shop", EVERYTHING)
    assert report(store)["interactions"]["file"] == name


def test_windows_line_ends_and_a_missing_last_line_end_change_nothing(store: Store, source: Path) -> None:
    lines = encode(review("a", "x", 1), review("a", "x", 1), review("b", "x", 2)).replace(b"\n", b"\r\n")[:-2]
    (source / "Shop_5.json.gz").write_bytes(gzip.compress(lines))
    ingest_release(store, source, "Shop", EVERYTHING)
    assert report(store)["interactions"] | {"sha256": "", "file": ""} == {
        "file": "",
        "sha256": "",
        "format": "reviews of 2014/2018",
        "lines": 3,
        "malformed": 0,
        "duplicate_lines": 1,
        "kept": 2,
    }


def test_empty_lines_are_no_lines(store: Store, source: Path) -> None:
    some = [review("a", "x", 1), b"", review("a", "x", 1), b"  ", review("b", "x", 2), b"", b""]
    (source / "Shop_5.json.gz").write_bytes(gzip.compress(b"\r\n" + encode(*some).replace(b"\n", b"\r\n")))
    ingest_release(store, source, "Shop", EVERYTHING)
    counted = report(store)["interactions"]
    assert {name: counted[name] for name in ("lines", "malformed", "kept")} == {"lines": 3, "malformed": 0, "kept": 2}


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_limit_counts_lines_that_are_not_empty(store: Store, source: Path, end: bytes) -> None:
    lines = [b"", review("a", "x", 1), b"", b"", review("b", "x", 1), review("c", "x", 2)]
    (source / "Shop_5.json.gz").write_bytes(gzip.compress(encode(*lines).replace(b"\n", end)))
    ingest_release(store, source, "Shop", EVERYTHING, options=AmazonConfig(limit=2))
    assert report(store)["interactions"]["lines"] == 2


def test_lines_that_all_fail_for_one_reason_are_not_to_be_tolerated(store: Store, source: Path) -> None:
    publish(source / "Shop_5.json.gz", *[b'{"reviewerID": 7}'] * 19, review("a", "x"))
    with pytest.raises(DataError, match="19 of 20 lines are like this") as caught:
        ingest_release(store, source, "Shop", EVERYTHING)
    assert "--max-rejects" not in str(caught.value.next_command)


# -- cleaning -------------------------------------------------------------------------------------------------


def test_exact_duplicate_lines_are_counted_once(store: Store, source: Path) -> None:
    one, other = review("a", "x", 1), review("a", "x", 1, reviewText="not the same bytes")
    publish(source / "Shop_5.json.gz", one, one, other, one)
    ingest_release(store, source, "Shop", EVERYTHING)
    assert len(interactions(store.domain("Shop"))) == 2
    assert report(store)["interactions"]["duplicate_lines"] == 2


@pytest.mark.parametrize(("rule", "times"), [("keep-all", [1, 2]), ("keep-first", [1]), ("keep-last", [2])])
def test_repeats_of_an_item_follow_the_rule(store: Store, source: Path, rule: str, times: list[int]) -> None:
    publish(source / "Shop_5.json.gz", review("a", "x", 2), review("a", "x", 1))
    ingest_release(store, source, "Shop", IngestConfig(min_user=1, min_item=1, repeats=rule))
    assert [row[2] for row in interactions(store.domain("Shop"))] == [1000 * time for time in times]
    assert report(store)["repeats_dropped"] == 2 - len(times)


def test_interactions_at_the_same_time_keep_the_order_of_their_lines(store: Store, source: Path) -> None:
    publish(source / "Shop_5.json.gz", review("a", "y", 7), review("a", "x", 7), review("a", "y", 3))
    ingest_release(store, source, "Shop", EVERYTHING)
    assert [row[1] for row in interactions(store.domain("Shop"))] == ["y", "y", "x"]


def test_items_without_metadata_are_dropped_with_their_interactions(store: Store, source: Path) -> None:
    publish(source / "meta_Shop.json.gz", product("x"))
    ingest_release(store, source, "Shop", EVERYTHING)
    assert store.domain("Shop").item_ids() == ["x"]
    assert report(store)["without_metadata"] == {"users": 1, "items": 1, "interactions": 1, "kept": False}


def test_items_without_metadata_can_be_kept_with_an_empty_text(store: Store, source: Path) -> None:
    publish(source / "meta_Shop.json.gz", product("x"))
    ingest_release(store, source, "Shop", UNDESCRIBED)
    row = items(store.domain("Shop"))["y"]
    assert (row["text"], row["title"], row["price"], row["image_urls"], row["category"]) == ("", None, None, [], [])
    assert report(store)["without_metadata"]["kept"] is True


def test_no_metadata_file_is_needed_when_undescribed_items_are_kept(store: Store, source: Path) -> None:
    (source / "meta_Shop.json.gz").unlink()
    ingest_release(store, source, "Shop", UNDESCRIBED)
    assert store.domain("Shop").item_ids() == ["x", "y"]
    assert report(store)["items"] is None


def test_the_k_core_is_taken_after_items_without_metadata_are_gone(store: Store, source: Path) -> None:
    publish(source / "Shop_5.json.gz", *(review(user, item) for user in "ab" for item in "xyz"), review("c", "z"))
    ingest_release(store, source, "Shop", IngestConfig(min_user=2, min_item=2))
    assert {row[0] for row in interactions(store.domain("Shop"))} == {"a", "b"}
    assert report(store)["k_core"] == {"rounds": 0, "users_dropped": 0, "items_dropped": 0, "interactions_dropped": 0}
    publish(source / "meta_Shop.json.gz", *map(product, "xyz"))
    ingest_release(store, source, "Shop", IngestConfig(min_user=2, min_item=2))
    assert report(store)["k_core"] == {"rounds": 1, "users_dropped": 1, "items_dropped": 0, "interactions_dropped": 1}


def test_the_first_metadata_line_of_an_item_counts(store: Store, source: Path) -> None:
    publish(source / "meta_Shop.json.gz", product("x"), product("x", title="Later"), product("y"), product("y"))
    ingest_release(store, source, "Shop", EVERYTHING)
    assert items(store.domain("Shop"))["x"]["title"] == "Title x"
    assert report(store)["items"]["duplicate_lines"] == 2


def test_the_text_has_the_fields_asked_for(store: Store, source: Path) -> None:
    ingest_release(store, source, "Shop", IngestConfig(min_user=1, min_item=1, text_fields=("category", "title")))
    assert items(store.domain("Shop"))["x"]["text"] == "Shop. Title x"


def test_the_order_of_metadata_lines_changes_nothing(store: Store, source: Path) -> None:
    ingest_release(store, source, "Shop", EVERYTHING)
    before = store.domain("Shop").table("items").to_pylist()
    publish(source / "meta_Shop.json.gz", product("y"), product("x"))
    ingest_release(store, source, "Shop", EVERYTHING)
    assert store.domain("Shop").table("items").to_pylist() == before


GOOD = st.builds(review, st.sampled_from("abc"), st.sampled_from("xyq"), st.integers(0, 3))
BAD = st.sampled_from([b"{", b"[]", b"\xff", b'{"reviewerID": "a"}', b'{"user_id": "a", "asin": "x"}'])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.one_of(GOOD, BAD), max_size=20))
def test_every_line_is_kept_duplicate_or_rejected(
    tmp_path_factory: pytest.TempPathFactory, lines: list[Line | bytes]
) -> None:
    folder = tmp_path_factory.mktemp("source")
    publish(folder / "Shop.json", review("z", "z"), *lines)
    publish(
        folder / "meta_Shop.json",
        product("z"),
        *(b'{"title": 1}' if isinstance(line, bytes) else product("x") for line in lines),
    )
    store = Store(folder / "store")
    ingest_release(
        store, folder, "Shop", IngestConfig(min_user=1, min_item=1, max_rejects=100, keep_without_metadata=True)
    )
    bad = sum(isinstance(line, bytes) for line in lines)
    good = [json.dumps(line) for line in lines if not isinstance(line, bytes)]
    for name, kept in (("interactions", 1 + len(set(good))), ("items", 1 + bool(good))):
        counts = report(store)[name]
        assert counts["lines"] == 1 + len(lines)
        assert counts["malformed"] == bad
        assert counts["kept"] == kept
        assert counts["duplicate_lines"] == counts["lines"] - kept - bad
    assert len(store.domain("Shop").table("rejects")) == 2 * bad


# -- freshness ------------------------------------------------------------------------------------------------


def test_an_unchanged_domain_is_fresh_and_not_written_again(filled: Store, source: Path) -> None:
    before = snapshot(filled.root)
    assert ingest_release(filled, source, "Shop", EVERYTHING).status == "fresh"
    assert snapshot(filled.root) == before


@pytest.mark.parametrize("name", ["Shop_5.json.gz", "meta_Shop.json.gz"])
def test_a_changed_file_is_read_again(filled: Store, source: Path, name: str) -> None:
    publish(source / name, *([review("a", "x")] if name.startswith("Shop") else [product("x")]))
    assert ingest_release(filled, source, "Shop", EVERYTHING).status == "built"


def test_a_changed_setting_and_force_read_again(filled: Store, source: Path) -> None:
    assert ingest_release(filled, source, "Shop", EVERYTHING, force=True).status == "built"
    assert ingest_release(filled, source, "Shop", UNDESCRIBED).status == "built"


def test_a_higher_limit_of_malformed_lines_leaves_a_domain_fresh(filled: Store, source: Path) -> None:
    config = IngestConfig(min_user=1, min_item=1, max_rejects=9)
    assert ingest_release(filled, source, "Shop", config).status == "fresh"


def test_a_limit_below_what_was_tolerated_is_refused(store: Store, source: Path) -> None:
    publish(source / "Shop_5.json.gz", review("a", "x"), b"{")
    ingest_release(store, source, "Shop", IngestConfig(min_user=1, min_item=1, max_rejects=1))
    with pytest.raises(DataError, match="0 allowed"):
        ingest_release(store, source, "Shop", EVERYTHING)
    assert len(store.domain("Shop").table("rejects")) == 1


def test_the_figures_of_a_fresh_domain_are_those_of_its_building(store: Store, source: Path) -> None:
    built = ingest_release(store, source, "Shop", EVERYTHING)
    assert ingest_release(store, source, "Shop", EVERYTHING).figures == built.figures


# -- another source of the same name --------------------------------------------------------------------------


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """Another release of the domain, in another folder."""
    folder = small_shop(tmp_path / "elsewhere")
    publish(folder / "Shop_5.json.gz", review("c", "x"))
    return folder


def test_a_domain_is_not_replaced_by_another_release_unless_forced(
    filled: Store, source: Path, elsewhere: Path
) -> None:
    before = snapshot(filled.root)
    with pytest.raises(DataError, match="domain Shop holds data from `ingest amazon` of") as caught:
        ingest_release(filled, elsewhere, "Shop", EVERYTHING)
    assert str(source) in caught.value.message
    assert str(elsewhere) in caught.value.message
    assert snapshot(filled.root) == before
    command = f"antpipe ingest amazon --domains Shop --store {filled.root} --source {elsewhere}"
    assert caught.value.next_command == f"{command} --min-user 1 --min-item 1 --force"
    assert ingest_release(filled, elsewhere, "Shop", EVERYTHING, force=True).status == "built"


def test_a_domain_from_a_table_is_not_replaced_by_reviews(store: Store, source: Path) -> None:
    make_domain(store, "Shop", [{"item_id": "mine"}])
    with pytest.raises(DataError, match="domain Shop holds data from `ingest table`"):
        ingest_release(store, source, "Shop", EVERYTHING)
    assert store.domain("Shop").item_ids() == ["mine"]


def test_files_that_moved_to_another_folder_are_the_same_source(filled: Store, source: Path) -> None:
    moved = source.rename(source.with_name("moved"))
    assert ingest_release(filled, moved, "Shop", EVERYTHING).status == "fresh"
    assert ingest_release(filled, moved, "Shop", UNDESCRIBED).status == "built"


def test_the_command_of_a_lost_table_repeats_source_and_settings(filled: Store, source: Path) -> None:
    (filled.root / "Shop" / "items.parquet").unlink()
    command = filled.domain("Shop").state("items").next_command
    assert command == (
        f"antpipe ingest amazon --domains Shop --store {filled.root} --source {source}"
        " --min-user 1 --min-item 1 --force"
    )


def test_a_domain_with_the_report_of_an_earlier_version_is_fresh_with_the_same_figures(
    filled: Store, source: Path
) -> None:
    path = filled.root / "Shop" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["artefacts"]["items"].pop("checksum")  # that version had none
    kept = manifest["artefacts"]["items"]["report"]
    kept |= {"reviews": kept.pop("interactions"), "metadata": kept.pop("items"), "shared_users": {}}
    kept["reviews"]["duplicate_lines"] = 7
    path.write_text(json.dumps(manifest))
    result = ingest_release(filled, source, "Shop", EVERYTHING)
    assert (result.status, result.figures["duplicate_lines"]) == ("fresh", 7)
    assert "shared_users_dropped" not in result.figures
