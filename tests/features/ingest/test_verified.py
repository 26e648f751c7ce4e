"""Whether a purchase was verified, as far as the source says it: a column of interactions, null if unknown."""

from dataclasses import replace
from pathlib import Path

import pytest

from antpipe.errors import DataError
from antpipe.features.build_sequences import build_sequences
from antpipe.features.ingest.domain import INTERACTIONS
from antpipe.features.ingest.table.values import to_verified
from antpipe.features.ingest_table import ingest_table, table_source
from antpipe.features.subset import subset
from antpipe.settings.features import SequenceConfig, SubsetConfig
from antpipe.settings.ingest import TableConfig
from antpipe.store.artefacts import StageResult
from antpipe.store.domain import Domain
from antpipe.store.store import Store
from tests.support.releases import UNDESCRIBED, ingest_release, publish, review, review_2023

TABLE = TableConfig(time_unit="order")
ROWS = ["a,x,1,true", "a,y,2,False", "b,x,3,", "b,y,4,TRUE", "b,z,5,nan"]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def verified(domain: Domain) -> list[bool | None]:
    found: list[bool | None] = domain.table("interactions", ["verified"])["verified"].to_pylist()
    return found


def columns_of(domain: Domain) -> list[str]:
    return list(domain.table("interactions").column_names)


def ingest(store: Store, path: Path, rows: list[str], column: str = "verified", **more: object) -> StageResult:
    path.write_text("\n".join([f"user,item,time,{column}", *rows]) + "\n")
    table = replace(TABLE, map=more.pop("map", ()))
    return ingest_table(store, "Shop", table_source(path, None), replace(UNDESCRIBED, **more), table)  # type: ignore[arg-type]


def test_reviews_of_2018_say_it(store: Store, tmp_path: Path) -> None:
    lines = review("a", "x", 1, verified=True), review("a", "y", 2, verified=False), review("b", "x", 3)
    publish(tmp_path / "Shop_5.json", *lines)
    ingest_release(store, tmp_path, "Shop", UNDESCRIBED)
    assert verified(store.domain("Shop")) == [True, False, None]


def test_reviews_of_2023_say_it_by_another_name(store: Store, tmp_path: Path) -> None:
    publish(
        tmp_path / "Shop.jsonl",
        review_2023("a", "x", 1, verified_purchase=False),
        review_2023("a", "y", 2, verified_purchase=True),
    )
    ingest_release(store, tmp_path, "Shop", UNDESCRIBED)
    assert verified(store.domain("Shop")) == [False, True]


def test_a_source_that_does_not_say_it_gives_no_column(store: Store, tmp_path: Path) -> None:
    publish(tmp_path / "Old_5.json", review("a", "x", 1), review("a", "y", 2))
    publish(tmp_path / "Stars.csv", b"0000000001,A000000000001,5.0,100", b"0000000002,A000000000001,4.0,200")
    for name in ("Old", "Stars"):
        ingest_release(store, tmp_path, name, UNDESCRIBED)
        assert columns_of(store.domain(name)) == ["user", "item", *list(INTERACTIONS)[2:]]
        assert "verified" not in store.domain(name).entry("items")


def test_a_review_that_says_neither_true_nor_false_is_malformed(store: Store, tmp_path: Path) -> None:
    publish(tmp_path / "Shop_5.json", review("a", "x", 1, verified=True), review("a", "y", 2, verified="yes"))
    with pytest.raises(DataError, match=r"Shop_5\.json:2: Expected `bool \| null`, got `str` - at `\$\.verified`"):
        ingest_release(store, tmp_path, "Shop", UNDESCRIBED)


def test_a_table_says_it_with_true_and_false(store: Store, tmp_path: Path) -> None:
    ingest(store, tmp_path / "rows.csv", ROWS)
    assert verified(store.domain("Shop")) == [True, False, None, True, None]


def test_a_column_without_a_value_is_left_out(store: Store, tmp_path: Path) -> None:
    ingest(store, tmp_path / "rows.csv", ["a,x,1,", "a,y,2,null"])
    assert "verified" not in columns_of(store.domain("Shop"))


def test_a_row_with_another_word_is_malformed(store: Store, tmp_path: Path) -> None:
    rows, named = [*ROWS, "c,x,6,maybe"], ("verified=verified",)
    with pytest.raises(DataError, match=r"rows\.csv:7: verified 'maybe' is neither true nor false"):
        ingest(store, tmp_path / "rows.csv", rows, map=named)
    ingest(store, tmp_path / "rows.csv", rows, max_rejects=1, map=named)
    assert store.domain("Shop").table("rejects")["reason"].to_pylist() == ["verified 'maybe' is neither true nor false"]


@pytest.mark.parametrize(
    ("yes", "no"), [("Y", "N"), ("yes", "NO"), ("t", "F"), ("1", "0"), ("1.0", "0.0"), ("True", "false")]
)
def test_a_table_says_it_in_other_words(store: Store, tmp_path: Path, yes: str, no: str) -> None:
    ingest(store, tmp_path / "rows.csv", [f"a,x,1,{yes}", f"a,y,2,{no}"], "verified_purchase")
    assert verified(store.domain("Shop")) == [True, False]


@pytest.mark.parametrize(("value", "truth"), [(1, True), (0, False), (1.0, True), (True, True), (float("nan"), None)])
def test_numbers_of_other_files_say_it(value: object, truth: bool | None) -> None:
    assert to_verified(value) is truth


def test_a_column_of_other_words_is_to_be_renamed(store: Store, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="rename it, or name the one that does with --map verified=COLUMN"):
        ingest(store, tmp_path / "rows.csv", ["a,x,1,alice", "a,y,2,bob"], map=("verified=verified",))


def test_a_column_of_other_words_that_nobody_named_is_not_used(
    store: Store, tmp_path: Path, messages: list[str]
) -> None:
    ingest(store, tmp_path / "rows.csv", ["a,x,1,true", "a,y,2,alice", "a,z,3,bob"])
    assert "verified" not in columns_of(store.domain("Shop"))
    assert len(store.domain("Shop").table("interactions")) == 3
    [warning] = [one for one in messages if "neither" in one]
    assert (
        "rows.csv:3: verified 'alice' is neither true nor false, like 2 values of column 'verified', which is not used"
        in warning
    )
    assert "--map verified=verified" in warning
    assert ingest(store, tmp_path / "rows.csv", ["a,x,1,true", "a,y,2,alice", "a,z,3,bob"]).status == "fresh"


@pytest.mark.parametrize("words", [ROWS, ["a,x,1,alice", "a,y,2,bob"]])
def test_an_empty_name_says_that_there_is_no_such_column(
    store: Store, tmp_path: Path, words: list[str], messages: list[str]
) -> None:
    ingest(store, tmp_path / "rows.csv", words, map=("verified=",))
    assert "verified" not in columns_of(store.domain("Shop"))
    assert not any("neither" in one for one in messages)


def test_a_domain_that_was_ingested_without_the_column_stays_fresh(
    store: Store, tmp_path: Path, messages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as earlier:
        earlier.delitem(
            __import__("antpipe.features.ingest.table.columns", fromlist=["x"]).INTERACTION_ROLES, "verified"
        )
        ingest(store, tmp_path / "rows.csv", ROWS)
    build_sequences(store, ["Shop"], SequenceConfig())
    assert ingest(store, tmp_path / "rows.csv", ROWS).status == "fresh"
    assert any("ingested without which purchases are verified; to add it: antpipe ingest" in one for one in messages)
    source = table_source(tmp_path / "rows.csv", None)
    assert ingest_table(store, "Shop", source, UNDESCRIBED, TABLE, force=True).status == "built"
    assert "verified" in columns_of(store.domain("Shop"))
    assert store.domain("Shop").state("sequences").status == "fresh"


def test_another_column_of_the_map_is_read_again(store: Store, tmp_path: Path) -> None:
    ingest(store, tmp_path / "rows.csv", ROWS, "bought")
    assert "verified" not in columns_of(store.domain("Shop"))
    assert ingest(store, tmp_path / "rows.csv", ROWS, "bought", map=("verified=bought",)).status == "built"
    assert verified(store.domain("Shop")) == [True, False, None, True, None]


def test_a_subset_keeps_it(store: Store, tmp_path: Path) -> None:
    ingest(store, tmp_path / "rows.csv", ROWS)
    build_sequences(store, ["Shop"], SequenceConfig())
    subset(store, ["Shop"], SubsetConfig((2,)))
    part = store.domain("Shop-2-users")
    assert part.entry("items")["verified"]
    assert verified(part) == verified(store.domain("Shop"))
