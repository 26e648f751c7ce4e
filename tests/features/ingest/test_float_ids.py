"""Ids that became floating point numbers: used as long as they are exact, refused if several may have become one."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from antpipe.errors import DataError
from antpipe.features.import_embeddings import import_embeddings
from antpipe.features.import_recbole import find_recbole
from antpipe.features.ingest_table import ingest_table, table_source
from antpipe.settings.ingest import EmbeddingsConfig, IngestConfig, TableConfig
from antpipe.store.store import Store
from tests.support.commands import run
from tests.support.places import check_refusal
from tests.support.shops import make_domain

KEEP_ALL = IngestConfig(min_user=1, min_item=1, keep_without_metadata=True, max_rejects=10)
BASE = 2**62
MERGED = [float(BASE + n) for n in range(4)]  # all the same


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def ingest(store: Store, visits: Path | None, goods: Path | None = None) -> list[str]:
    """Ingest as Shop; its item ids."""
    ingest_table(store, "Shop", table_source(visits, goods), KEEP_ALL, TableConfig(), force=True)
    return store.domain("Shop").item_ids()


def write(path: Path, **columns: Any) -> Path:
    """A table in the format of its name."""
    table = pa.table(
        {name: values if isinstance(values, pa.Array) else pa.array(values) for name, values in columns.items()}
    )
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    elif path.suffix == ".arrow":
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    else:
        delimiter = "," if path.suffix == ".csv" else "\t"
        rows = [[str(name) for name in table.column_names], *zip(*table.to_pydict().values(), strict=True)]
        path.write_text("".join(delimiter.join("" if v is None else str(v) for v in row) + "\n" for row in rows))
    return path


TIMES = [1_600_000_000 + n for n in range(4)]


@pytest.mark.parametrize("name", ["v.parquet", "v.arrow", "v.csv", "v.tsv"])
@pytest.mark.parametrize("column", ["user_id", "item_id"])
def test_visits_with_float_ids_that_merged_are_refused(store: Store, tmp_path: Path, name: str, column: str) -> None:
    columns: dict[str, Any] = {"user_id": ["u", "v", "w", "x"], "item_id": ["a", "b", "c", "d"], column: MERGED}
    path = write(tmp_path / name, **columns, timestamp=TIMES)
    line = 1 if name in ("v.parquet", "v.arrow") else 2
    with pytest.raises(DataError, match=rf"{name}:{line}: .*4\.6116\d+e\+18 .*'{column}' .*2\^53") as caught:
        ingest(store, path)
    assert f"write column '{column}' as integers or text" in caught.value.message
    assert not store.domains()


@pytest.mark.parametrize("name", ["g.parquet", "g.arrow", "g.csv"])
def test_items_with_float_ids_that_merged_are_refused(store: Store, tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"'item_id'.*2\^53"):
        ingest(store, None, write(tmp_path / name, item_id=MERGED, title=["a", "b", "c", "d"]))


def test_merged_ids_are_reported_before_the_missing_id_that_made_the_column_float(store: Store, tmp_path: Path) -> None:
    path = write(tmp_path / "v.parquet", user_id=list("uvwx"), item_id=[None, *MERGED[1:]], timestamp=TIMES)
    words = ("--interactions", path, "--keep-without-metadata", "--min-user", "1", "--min-item", "1")
    outcome = run("ingest", "table", "--domain", "Shop", "--store", store.root, *words)
    check_refusal(outcome, 3, "v.parquet:2", "'item_id'", "2^53", next_command="antpipe ingest table --help")


@pytest.mark.parametrize("number", [2.0**53, -(2.0**53), 1e300])
def test_the_bound_is_where_doubles_lose_whole_numbers(store: Store, tmp_path: Path, number: float) -> None:
    good = write(tmp_path / "good.parquet", user_id=list("uv"), item_id=[2.0**53 - 1, 7.0], timestamp=TIMES[:2])
    assert ingest(store, good) == ["7", "9007199254740991"]
    bad = write(tmp_path / "bad.parquet", user_id=list("uv"), item_id=[7.0, number], timestamp=TIMES[:2])
    with pytest.raises(DataError, match=r"bad\.parquet:2: "):
        ingest(store, bad)


@pytest.mark.parametrize(("kind", "bits"), [(pa.float32(), 24), (pa.float16(), 11)])
def test_shorter_floats_lose_whole_numbers_earlier(store: Store, tmp_path: Path, kind: Any, bits: int) -> None:
    width = np.float32 if bits == 24 else np.float16
    for number, refused in ((2**bits - 1, False), (2**bits, True)):
        ids = pa.array(np.array([7, number], width), kind)
        path = write(tmp_path / f"{refused}.parquet", user_id=list("uv"), item_id=ids, timestamp=TIMES[:2])
        if refused:
            with pytest.raises(DataError, match=rf"2\^{bits}"):
                ingest(store, path)
        else:
            assert ingest(store, path) == [str(number), "7"]


def test_a_dictionary_of_floats_is_a_column_of_floats(store: Store, tmp_path: Path) -> None:
    ids = pa.array(MERGED).dictionary_encode()
    with pytest.raises(DataError, match=r"2\^53"):
        ingest(store, write(tmp_path / "v.parquet", user_id=list("uvwx"), item_id=ids, timestamp=TIMES))


def test_a_float_id_that_is_not_whole_is_malformed(store: Store, tmp_path: Path) -> None:
    path = write(
        tmp_path / "v.parquet",
        user_id=list("uvwxy"),
        item_id=[1.0, 7.5, float("inf"), float("nan"), None],
        timestamp=[*TIMES, TIMES[-1] + 1],
    )
    assert ingest(store, path) == ["1"]
    reasons = store.domain("Shop").table("rejects")["reason"].to_pylist()
    assert reasons == [
        "item id 7.5 is not a whole number",
        "item id inf is not a whole number",
        "no item id",
        "no item id",
    ]


def test_whole_numbers_and_texts_of_any_length_are_ids(store: Store, tmp_path: Path) -> None:
    users = pa.array([2**63 + 1, 2**63 + 3], pa.uint64())
    path = write(tmp_path / "v.parquet", user_id=users, item_id=[BASE + 1, BASE + 2], timestamp=TIMES[:2])
    assert ingest(store, path) == [str(BASE + 1), str(BASE + 2)]
    texts = ["12E45678901", "1e18", "9007199254740993", "1.5", "3.0", "1.25.0+18", "v1.2e+3x"]
    assert ingest(store, None, write(tmp_path / "g.csv", item_id=texts, title=texts)) == sorted(texts)


@pytest.mark.parametrize(
    "text",
    ["1.2345678901234568e+18", "9007199254740992.0", "1.23457E+18", "1.2345678901234568e18", "-9e+99", "1.5e+400"],
)
def test_texts_that_floats_were_written_as_are_refused_too(store: Store, tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "g.csv", item_id=["a", text], title=["a", "b"])
    with pytest.raises(DataError, match=r"g\.csv:3: .*2\^53") as caught:
        ingest(store, None, path)
    assert text in caught.value.message


def test_atomic_files_with_float_ids_that_merged_are_refused(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "ML.inter"
    path.write_text("user_id:token\titem_id:token\ttimestamp:float\nu\t4.611686018427388e+18\t1\n")
    source = find_recbole(tmp_path, "Shop", store.root, keep_without_metadata=True)
    with pytest.raises(DataError, match=r"ML\.inter:2: .*'item_id'.*2\^53"):
        ingest_table(store, "Shop", source, KEEP_ALL, TableConfig())


# -- vectors made elsewhere -------------------------------------------------------------------------------------------


def take(store: Store, path: Path, ids: Path | None = None) -> list[bool]:
    """Import vectors of the text of Shop; which items have one."""
    import_embeddings(store, "Shop", path, "text", EmbeddingsConfig(ids=ids))
    return store.domain("Shop").feature("text").present.tolist()


def test_vectors_of_float_ids_find_their_items_while_they_are_exact(store: Store, tmp_path: Path) -> None:
    ids = ["1000000000000000", "12345678", "7"]
    make_domain(store, "Shop", [{"item_id": one} for one in ids])
    path = write(tmp_path / "v.parquet", item_id=[float(one) for one in ids], v=[[1.0], [2.0], [3.0]])
    assert take(store, path) == [True, True, True]


def test_vectors_of_float_ids_that_merged_are_refused(store: Store, tmp_path: Path) -> None:
    make_domain(store, "Shop", [{"item_id": one} for one in (str(BASE), "7")])
    path = write(tmp_path / "v.parquet", item_id=[7.0, float(BASE)], v=[[1.0], [2.0]])
    with pytest.raises(DataError, match=r"v\.parquet: row 1: .*'item_id'.*2\^53"):
        take(store, path)


def test_ids_of_vectors_that_were_written_as_floats_are_refused(store: Store, tmp_path: Path) -> None:
    make_domain(store, "Shop", [{"item_id": one} for one in (str(BASE), "7")])
    np.save(tmp_path / "v.npy", np.ones((2, 1), np.float32))
    (tmp_path / "ids.txt").write_text("7\n4.611686018427388e+18\n")
    with pytest.raises(DataError, match=r"v\.npy: row 1: .*4\.611686018427388e\+18.*2\^53"):
        take(store, tmp_path / "v.npy", tmp_path / "ids.txt")
