"""`import embeddings`: vectors made elsewhere find their items by id, in any order; misfits are reported."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from antpipe.errors import AntpipeError, DataError, PartialError, UsageError
from antpipe.features.import_embeddings import import_embeddings
from antpipe.features.ingest.advice import SettingsError
from antpipe.features.vectors.arrays import read_ids
from antpipe.features.vectors.clip_retrieval import picture_name
from antpipe.features.vectors.tables import open_tables
from antpipe.settings.ingest import EmbeddingsConfig
from antpipe.store.domain import Domain
from antpipe.store.next_command import build_command_with
from antpipe.store.store import Store
from tests.support.commands import run
from tests.support.releases import snapshot
from tests.support.shops import make_domain

ITEMS = ["apple", "grape", "mango", "melon"]
VECTORS = {name: [float(place + 1), 0.5, -2.0] for place, name in enumerate(ITEMS)}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "store")
    make_domain(store, "Shop", [{"item_id": name, "text": f"text {name}"} for name in ITEMS])
    return store


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "made").mkdir()
    return tmp_path / "made"


def take(store: Store, path: Path, modality: str = "text", force: bool = False, **chosen: Any) -> Domain:
    import_embeddings(store, "Shop", path, modality, EmbeddingsConfig(**chosen), force=force)
    return store.domain("Shop")


def array(folder: Path, ids: Sequence[str], vectors: Any = None, name: str = "v.npy") -> dict[str, Any]:
    """An .npy with its ids, as arguments of `take`."""
    values = [VECTORS[one] for one in ids] if vectors is None else vectors
    np.save(folder / name, np.array(values, np.float32))
    (folder / "ids.txt").write_text("".join(f"{one}\n" for one in ids))
    return {"path": folder / name, "ids": folder / "ids.txt"}


def found(domain: Domain, modality: str = "text") -> dict[str, list[float] | None]:
    """The vectors in the store by item, None where one is absent (and then zeros)."""
    feature = domain.feature(modality)
    assert not feature.values[~feature.present].any()
    rows = zip(domain.item_ids(), feature.values.tolist(), feature.present.tolist(), strict=True)
    return {one: values if there else None for one, values, there in rows}


# -- joining --------------------------------------------------------------------------------------------------


@given(st.permutations(ITEMS))
@settings(max_examples=10, deadline=None)
def test_any_order_of_rows_gives_the_same_features(tmp_path_factory: pytest.TempPathFactory, order: list[str]) -> None:
    folder = tmp_path_factory.mktemp("order")
    store = Store(folder / "store")
    make_domain(store, "Shop", [{"item_id": name} for name in ITEMS])
    assert found(take(store, **array(folder, order))) == VECTORS


def test_missing_and_extra_ids_are_counted_shown_and_listed(store: Store, folder: Path, messages: list[str]) -> None:
    given_ = array(folder, ["melon", "pear", "apple"], [VECTORS["melon"], [9, 9, 9], VECTORS["apple"]])
    config = EmbeddingsConfig(ids=given_["ids"])
    result = import_embeddings(store, "Shop", given_["path"], "text", config)
    domain = store.domain("Shop")
    assert found(domain) == {**VECTORS, "grape": None, "mango": None}
    counts = {key: result.figures[key] for key in ("items", "present", "rows", "missing", "zeros", "extra", "repeated")}
    assert counts == {"items": 4, "present": 2, "rows": 3, "missing": 2, "zeros": 0, "extra": 1, "repeated": 0}
    assert domain.entry("text")["unmatched"] == {"missing": ["grape", "mango"], "zeros": [], "extra": ["pear"]}
    listed = pl.read_parquet(domain.path / "text_unmatched.parquet").rows()
    assert listed == [("grape", "missing"), ("mango", "missing"), ("pear", "extra")]
    assert "items without a row: 2 (grape, mango)" in messages[0]
    assert "ids that are not an item: 1 (pear)" in messages[1]


def test_the_list_goes_once_everything_matches(store: Store, folder: Path) -> None:
    take(store, **array(folder, ["melon", "pear"], [VECTORS["melon"], [9, 9, 9]]))
    domain = take(store, **array(folder, ITEMS), force=True)
    assert not (domain.path / "text_unmatched.parquet").exists()
    assert set(domain.entry("text")["files"]) == {"text.arrow"}


def test_a_row_of_zeros_stands_for_no_vector(store: Store, folder: Path) -> None:
    vectors = [VECTORS["apple"], [0, 0, 0], [1e-9, 0, 0], VECTORS["melon"]]  # 1e-9 is zero in float16
    domain = take(store, **array(folder, ITEMS, vectors))
    assert found(domain) == {**VECTORS, "grape": None, "mango": None}
    assert domain.entry("text")["unmatched"]["zeros"] == ["grape", "mango"]


def test_equal_duplicates_count_once_and_others_are_refused(store: Store, folder: Path) -> None:
    twice = [*ITEMS, "apple"]
    domain = take(store, **array(folder, twice))
    assert found(domain) == VECTORS
    assert domain.entry("text")["figures"]["repeated"] == 1
    before = snapshot(store.root)
    with pytest.raises(DataError, match=r"v\.npy: row 4: apple has another vector than in row 0"):
        take(store, **array(folder, twice, [*(VECTORS[one] for one in ITEMS), [7, 7, 7]]), force=True)
    assert snapshot(store.root) == before


@pytest.mark.parametrize("number", [np.nan, np.inf, 1e6])
def test_a_number_that_is_not_finite_is_refused_if_it_belongs_to_an_item(
    store: Store, folder: Path, number: float
) -> None:
    with pytest.raises(DataError, match=r"v\.npy: row 1 \(grape\) holds a number that is not finite in float16"):
        take(store, **array(folder, ITEMS, [[1, 2, 3], [1, number, 3], [1, 2, 3], [1, 2, 3]]))
    assert "text" not in store.domain("Shop").manifest()
    domain = take(store, **array(folder, [*ITEMS, "pear"], [*VECTORS.values(), [1, number, 3]]))
    assert found(domain) == VECTORS


def test_ids_of_another_catalogue_are_refused_with_examples_of_both(store: Store, folder: Path) -> None:
    with pytest.raises(
        DataError, match=r"none of the 2 ids .* \(such as 'B1'\) is one of its 4 items .*'apple'"
    ) as ids:
        take(store, **array(folder, ["B1", "B2"], np.ones((2, 3))))
    assert "--ids FILE" in ids.value.message
    with pytest.raises(DataError, match="every vector of an item of Shop is zeros") as zeros:
        take(store, **array(folder, ITEMS, np.zeros((4, 3))))
    assert "--path FILE" in zeros.value.message


def test_small_pieces_give_the_same(store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("antpipe.features.vectors.arrays.CHUNK", 3)
    assert found(take(store, **array(folder, [*reversed(ITEMS), "apple"]))) == VECTORS


# -- files of ids ---------------------------------------------------------------------------------------------


def test_ids_come_as_lines_json_numpy_or_item2index(folder: Path) -> None:
    (folder / "a.txt").write_text("\ufeff10\r\nb c\r\n", encoding="utf-8")
    (folder / "a.json").write_text('[10, "b c"]')
    (folder / "a.item2index").write_text("b c\t1\n10\t0\n")
    np.save(folder / "a.npy", np.array(["10", "b c"]))
    np.save(folder / "bytes.npy", np.array([b"10", b"b c"]))
    for name in ("a.txt", "a.json", "a.item2index", "a.npy", "bytes.npy"):
        assert read_ids(folder / name) == ["10", "b c"], name


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.txt", b"one\n\ntwo\n", r"a\.txt:2: an empty line"),
        ("a.json", b'{"one": 1}', "a list of ids"),
        ("a.json", b"[", "the ids cannot be read"),
        ("a.npy", b"no array", "the ids cannot be read"),
        ("a.txt", b"\xff\xfe", "a.txt"),
    ],
)
def test_ids_that_cannot_be_read_are_refused(folder: Path, name: str, content: bytes, told: str) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=told):
        read_ids(folder / name)


def test_another_number_of_ids_than_rows_is_refused(store: Store, folder: Path) -> None:
    files = array(folder, ITEMS)
    files["ids"].write_text("apple\ngrape\n")
    with pytest.raises(DataError, match=r"ids\.txt has 2 ids, .*v\.npy has 4 rows"):
        take(store, **files)


def test_rows_without_ids_are_refused(store: Store, folder: Path) -> None:
    with pytest.raises(UsageError, match="--ids is missing") as caught:
        take(store, array(folder, ITEMS)["path"])
    assert "--ids FILE" in caught.value.message


@pytest.mark.parametrize(
    "values",
    [
        np.ones(4),
        np.ones((4, 2, 2)),
        np.ones((4, 0)),
        np.full((4, 2), "a"),
        np.full((4, 2), {}),
        np.ones((4, 2), bool),
    ],
)
def test_an_array_that_is_not_rows_of_numbers_is_refused(store: Store, folder: Path, values: Any) -> None:
    files = array(folder, ITEMS)
    np.save(files["path"], values, allow_pickle=True)
    with pytest.raises(DataError, match=r"v\.npy"):
        take(store, **files)


def test_an_archive_and_arrays_that_follow_each_other_are_refused(store: Store, folder: Path) -> None:
    files, values = array(folder, ITEMS), np.ones((4, 3))
    with files["path"].open("wb") as stream:
        np.savez(stream, values)
    with pytest.raises(DataError, match=r"v\.npy: not an array that can be mapped: an archive of arrays"):
        take(store, **files)
    with files["path"].open("wb") as stream:
        np.save(stream, values)
        np.save(stream, values)
    with pytest.raises(DataError, match=r"224 bytes follow the array, as if np\.save had written into"):
        take(store, **files)


def test_half_an_array_is_refused(store: Store, folder: Path) -> None:
    files = array(folder, ITEMS)
    files["path"].write_bytes(files["path"].read_bytes()[:-7])
    with pytest.raises(DataError, match="not an array that can be mapped"):
        take(store, **files)


# -- Parquet --------------------------------------------------------------------------------------------------


def lists(ids: Sequence[str] = ITEMS, kind: Any = None, name: str = "emb") -> pa.Table:
    vectors = pa.array([VECTORS[one] for one in ids], kind or pa.list_(pa.float32()))
    return pa.table({"title": ["t"] * len(ids), "asin": list(ids), name: vectors})


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.float32()),
        pa.list_(pa.float64(), 3),
        pa.large_list(pa.float16()),
        pa.list_(pa.float16(), 3),
    ],
)
def test_parquet_with_lists_is_read(store: Store, folder: Path, kind: Any) -> None:
    pq.write_table(lists(list(reversed(ITEMS)), kind), folder / "v.parquet")
    domain = take(store, folder / "v.parquet")
    assert found(domain) == VECTORS
    assert domain.entry("text")["came_from"]["form"] == "parquet, id=asin vector=emb"


def test_parquet_with_one_column_per_number_is_read(store: Store, folder: Path) -> None:
    columns = {f"d{place}": [VECTORS[one][place] for one in ITEMS] for place in range(3)}
    pq.write_table(pa.table({"key": ITEMS, "item_id": ITEMS, "rank": [1, 2, 3, 4], **columns}), folder / "v.parquet")
    assert found(take(store, folder / "v.parquet")) == VECTORS
    assert found(take(store, folder / "v.parquet", force=True, map=("id=key", "vector=d*"))) == VECTORS
    take(store, folder / "v.parquet", force=True, map=("vector=d0+d1",))  # told as `d0 and 1 more`, as the next one
    assert found(take(store, folder / "v.parquet", force=True, map=("vector=d0+d2",)))["apple"] == [1.0, -2.0]
    with pytest.raises(UsageError, match="different: form, columns"):
        take(store, folder / "v.parquet", map=("vector=d2+d0",))
    swapped = found(take(store, folder / "v.parquet", force=True, map=("vector=d2+d0",)))
    assert swapped["grape"] == [-2.0, 2.0]


def test_parts_of_a_folder_follow_each_other(store: Store, folder: Path) -> None:
    pq.write_table(lists(ITEMS[:1]), folder / "part-0.parquet")
    pq.write_table(lists(ITEMS[1:]), folder / "part-1.parquet")
    assert found(take(store, folder)) == VECTORS
    pq.write_table(lists(["apple"]).drop_columns("emb"), folder / "part-2.parquet")
    with pytest.raises(DataError, match=r"part-2\.parquet: no column 'emb', which part-0\.parquet has"):
        take(store, folder)


@pytest.mark.parametrize("kind", [pa.list_(pa.float32()), pa.list_(pa.float32(), 3)])
def test_a_null_stands_for_no_vector(store: Store, folder: Path, kind: Any) -> None:
    vectors = pa.array([None, VECTORS["grape"], None, VECTORS["melon"]], kind)
    pq.write_table(pa.table({"id": ITEMS, "v": vectors}), folder / "v.parquet")
    assert found(take(store, folder / "v.parquet")) == {**VECTORS, "apple": None, "mango": None}


def numbered(width: int = 3, prefix: str = "d", **more: list[float]) -> pa.Table:
    columns = {f"{prefix}{at}": [float(n + at) for n in range(4)] for at in range(width)}
    return pa.table({"item_id": ITEMS, **more, **columns})


@pytest.mark.parametrize(
    ("table", "vector", "rest"),
    [
        (numbered(price=[1.0] * 4, rating=[2.0] * 4), ["d0", "d1", "d2"], "price, rating"),
        (numbered(stock=[1.0] * 4, year_2024=[2.0] * 4), ["d0", "d1", "d2"], "stock, year_2024"),
        (numbered(0, price=[1.0] * 4, x=[2.0] * 4, y=[3.0] * 4), ["x", "y"], "price"),
        (numbered(2, prefix="", price=[1.0] * 4), ["0", "1"], "price"),
        (pa.table({"item_id": ITEMS, "price": [1.0] * 4, "v": [[1.0, 2.0]] * 4}), ["v"], "price"),
    ],
)
def test_prices_and_ratings_beside_a_vector_are_not_part_of_it_and_the_columns_are_told(
    tmp_path: Path, messages: list[str], table: pa.Table, vector: list[str], rest: str
) -> None:
    pq.write_table(table, tmp_path / "v.parquet")
    assert open_tables([tmp_path / "v.parquet"], ()).columns == tuple(vector)
    assert messages[-1].startswith(f"v.parquet: id=item_id, vector={vector[0]}")
    assert messages[-1].endswith(f"; not part of it: {rest}")


def test_two_groups_of_numbered_columns_are_refused_with_the_flag_that_chooses(tmp_path: Path) -> None:
    more = {f"image_{at}": [1.0] * 4 for at in range(3)}
    pq.write_table(numbered(3, "text_", **more), tmp_path / "v.parquet")
    with pytest.raises(SettingsError, match="the vector could be image_0 to image_2 or text_0 to text_2") as caught:
        open_tables([tmp_path / "v.parquet"], ())
    assert caught.value.better == {"map": ("vector=image_*",)}
    assert open_tables([tmp_path / "v.parquet"], ("vector=text_*",)).columns == ("text_0", "text_1", "text_2")


def test_a_prefix_takes_the_numbered_columns_alone(tmp_path: Path) -> None:
    pq.write_table(numbered(discount=[1.0] * 4), tmp_path / "v.parquet")
    assert open_tables([tmp_path / "v.parquet"], ("vector=d*",)).columns == ("d0", "d1", "d2")


@pytest.mark.parametrize(
    ("table", "columns", "told"),
    [
        (pa.table({"id": ITEMS, "v": [[1.0], [2.0], [1.0, 2.0], [1.0]]}), (), "row 2 has a vector of 2 numbers"),
        (pa.table({"id": ITEMS, "v": [[1.0], [None], [1.0], [1.0]]}), (), r"row 1 \(grape\) holds a number"),
        (pa.table({"id": ["apple", None], "v": [[1.0], [2.0]]}), (), "row 1 has no id"),
        (pa.table({"id": ITEMS, "v": [[1.0]] * 4, "w": [[1.0]] * 4}), (), "the vector could be v or w"),
        (pa.table({"id": ITEMS, "v": ["a"] * 4}), (), "no column of lists"),
        (pa.table({"id": ITEMS, "v": ["a"] * 4}), ("vector=v",), "'v' holds string, not numbers"),
        (pa.table({"name": ITEMS, "v": [[1.0]] * 4}), (), "no column looks like the id"),
        (pa.table({"id": ITEMS, "v": [[1.0]] * 4}), ("id=key",), "no column 'key'"),
        (pa.table({"id": ITEMS, "v": [[1.0]] * 4}), ("vector=w",), "no column 'w'"),
        (pa.table({"id": ITEMS, "v": pa.array([None] * 4, pa.list_(pa.float32()))}), (), "no row has a vector"),
    ],
)
def test_parquet_that_does_not_fit_is_refused(
    store: Store, folder: Path, table: pa.Table, columns: tuple[str, ...], told: str
) -> None:
    pq.write_table(table, folder / "v.parquet")
    with pytest.raises(DataError, match=told):
        take(store, folder / "v.parquet", map=columns)


# -- layouts of other tools -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("suffix", "modality"), [(".feat1CLS", "text"), (".feat3CLS", "image")])
def test_feature_files_go_by_item2index(store: Store, folder: Path, suffix: str, modality: str) -> None:
    order = ["melon", "apple", "mango", "grape"]
    np.array([VECTORS[one] for one in order], np.float32).tofile(folder / f"Toy{suffix}")
    with pytest.raises(DataError, match=r"Toy\.item2index: missing"):
        take(store, folder / f"Toy{suffix}", modality)
    (folder / "Toy.item2index").write_text("".join(f"{one}\t{row}\n" for row, one in enumerate(order)))
    assert found(take(store, folder / f"Toy{suffix}", modality), modality) == VECTORS
    with pytest.raises(UsageError, match=f"holds features of {modality}"):
        take(store, folder / f"Toy{suffix}", "image" if modality == "text" else "text")
    (folder / "Toy.item2index").write_text("apple\t0\n" * 1 + "".join(f"x{n}\t{n}\n" for n in range(1, 7)))
    with pytest.raises(DataError, match="not rows of equal width for the 7 ids"):
        take(store, folder / f"Toy{suffix}", modality)


def clip(folder: Path, parts: Sequence[dict[str, Any]], kind: str = "img_emb") -> Path:
    """Folders as clip-retrieval writes them. parts: for each partition `vectors` and the columns of its metadata."""
    for name in (kind, "metadata"):
        (folder / name).mkdir(exist_ok=True)
    for number, part in enumerate(parts):
        np.save(folder / kind / f"{kind}_{number}.npy", np.array(part["vectors"], np.float16))
        columns = {name: values for name, values in part.items() if name != "vectors"}
        pq.write_table(pa.table(columns), folder / "metadata" / f"metadata_{number}.parquet")
    return folder


def test_pictures_of_clip_retrieval_are_averaged_over_all_parts(store: Store, folder: Path) -> None:
    parts = [
        {"vectors": [[1, 1], [4, 0]], "image_path": ["in/apple.jpg", "in/mango_2.PNG"]},
        {"vectors": [[2, 0], [3, 5], [0, 0]], "image_path": ["in/mango.jpg", "in/apple_3.jpg", "in/apple_2.jpg"]},
        {"vectors": [[9, 9], [1, 0]], "image_path": ["in/pear_2.jpg", "melon"]},
    ]
    domain = take(store, clip(folder, parts), "image")
    assert found(domain, "image") == {"apple": [2, 3], "grape": None, "mango": [3, 0], "melon": [1, 0]}
    assert domain.entry("image")["unmatched"] == {"missing": ["grape"], "zeros": [], "extra": ["pear_2"]}


def test_a_name_that_is_an_item_is_not_a_second_picture_of_another(tmp_path: Path, folder: Path) -> None:
    store = Store(tmp_path / "store")
    make_domain(store, "Shop", [{"item_id": "A"}, {"item_id": "A_2"}])
    clip(folder, [{"vectors": [[1, 1], [3, 3]], "image_path": ["A.jpg", "A_2.jpg"]}])
    assert found(take(store, folder, "image"), "image") == {"A": [1, 1], "A_2": [3, 3]}


def test_texts_of_clip_retrieval_go_by_a_column_of_its_metadata(store: Store, folder: Path) -> None:
    columns = {"caption": ["a", "b"], "sku": ["grape", "apple"]}
    clip(folder, [{"vectors": [[1, 2], [3, 4]], **columns}], "text_emb")
    with pytest.raises(DataError, match=r"no column 'image_path'; there: caption, sku") as caught:
        take(store, folder)
    assert "--map id=COLUMN" in caught.value.message
    assert found(take(store, folder, map=("id=sku",)))["apple"] == [3, 4]
    with pytest.raises(DataError, match="did not embed images"):
        take(store, folder, "image", map=("id=sku",))


def test_parts_of_clip_retrieval_that_do_not_fit_are_refused(store: Store, folder: Path) -> None:
    part = {"vectors": [[1, 1]], "image_path": ["apple.jpg"]}
    clip(folder, [part, {"vectors": [[1, 1, 1]], "image_path": ["mango.jpg"]}])
    with pytest.raises(DataError, match=r"img_emb_0\.npy has 2 columns, img_emb_1\.npy has 3 columns"):
        take(store, folder, "image")
    clip(folder, [part, {"vectors": [[1, 1]], "image_path": ["mango.jpg", "grape.jpg"]}])
    with pytest.raises(DataError, match=r"metadata_1\.parquet has 2 ids, .*img_emb_1\.npy has 1 rows"):
        take(store, folder, "image")
    (folder / "metadata" / "metadata_1.parquet").unlink()
    with pytest.raises(DataError, match=r"metadata_1\.parquet: missing"):
        take(store, folder, "image")


def test_only_suffixes_of_pictures_are_taken_off() -> None:
    names = ["a/b/B0.12.jpg", "B0.12", "c\\B1.JPEG", "B2"]
    assert [picture_name(name) for name in names] == ["B0.12", "B0.12", "B1", "B2"]


# -- the artefact and its command -----------------------------------------------------------------------------


def test_status_names_the_command_that_imports_again(store: Store, folder: Path) -> None:
    files = array(folder, ITEMS)
    words = (
        "import",
        "embeddings",
        "--modality",
        "text",
        "--domains",
        "Shop",
        "--path",
        files["path"],
        "--ids",
        files["ids"],
        "--encoder",
        "my-bert",
        "--store",
        store.root,
    )
    outcome = run(*words)
    assert (outcome.code, outcome.out.split()[:3]) == (0, ["Shop", "text", "built"])
    assert run(*words).out.split()[:3] == ["Shop", "text", "fresh"]
    assert store.domain("Shop").entry("text")["encoder"] == {
        "name": "my-bert",
        "revision": "as told",
        "source": "import",
    }
    make_domain(store, "Shop", [{"item_id": name, "text": f"other {name}"} for name in ITEMS])
    states = run("status", "--store", store.root, "--json").json()["Shop"]
    [state] = [one for one in states if one["artefact"] == "text"]
    assert state["why"] == "items changed since"
    assert state["next_command"].startswith("antpipe import embeddings --modality text --domains Shop --store ")
    outcome = run(*state["next_command"].split()[1:])
    assert (outcome.code, outcome.out.split()[:3]) == (0, ["Shop", "text", "built"])
    # To have it as another encoder makes it is a matter of embedding, not of importing again.
    assert build_command_with(store.domain("Shop"), "text", "--encoder", "x") == (
        f"antpipe embed-text --domains Shop --store {store.root} --encoder x"
    )


def test_another_file_or_other_ids_build_again_with_force(store: Store, folder: Path) -> None:
    def status(force: bool = False, **files: Any) -> str:
        path = files.pop("path")
        config = EmbeddingsConfig(**files)
        return import_embeddings(store, "Shop", path, "text", config, force=force).status

    assert [status(**array(folder, ITEMS)), status(**array(folder, ITEMS))] == ["built", "fresh"]
    for ids in (ITEMS, list(reversed(ITEMS))):
        files = array(folder, ids, np.ones((4, 3)))
        with pytest.raises(UsageError, match="would replace them"):
            status(**files)
        assert status(**files, force=True) == "built"
    encoder = store.domain("Shop").entry("text")["encoder"]
    assert (encoder["name"], len(encoder["revision"])) == ("v.npy", 64)


def test_a_coverage_below_the_minimum_is_reported_with_the_artefact_written(store: Store, folder: Path) -> None:
    files = array(folder, ITEMS[:3])
    with pytest.raises(PartialError, match=r"only 3 of 4 items \(75\.0%\) have a vector"):
        take(store, **files, min_coverage=0.8)
    assert found(store.domain("Shop"))["mango"] == VECTORS["mango"]
    outcome = run(
        "import",
        "embeddings",
        "--modality",
        "text",
        "--domains",
        "Shop",
        "--path",
        files["path"],
        "--ids",
        files["ids"],
        "--min-coverage",
        "0.8",
        "--store",
        store.root,
    )
    assert outcome.code == 4


@pytest.mark.parametrize(
    ("made", "chosen", "told"),
    [
        ("v.npy", {"map": ("id=a",)}, "has no columns"),
        ("v.parquet", {"ids": Path("ids.txt")}, "are in a column"),
        ("v.parquet", {"map": ("key=a",)}, "--map key=a"),
        ("v.csv", {}, "unknown format"),
        ("nothing.npy", {}, "no such file"),
        ("broken.parquet", {}, "not a Parquet file"),
    ],
)
def test_flags_and_files_that_do_not_go_together_are_refused(
    store: Store, folder: Path, made: str, chosen: dict[str, Any], told: str
) -> None:
    array(folder, ITEMS)
    pq.write_table(lists(), folder / "v.parquet")
    (folder / "v.csv").write_text("a,b\n")
    (folder / "broken.parquet").write_bytes(b"PAR1")
    with pytest.raises(AntpipeError, match=told):
        take(store, folder / made, **chosen)


def test_the_result_is_json_on_demand(store: Store, folder: Path) -> None:
    files = array(folder, ITEMS)
    outcome = run(
        "import",
        "embeddings",
        "--modality",
        "image",
        "--domains",
        "Shop",
        "--path",
        files["path"],
        "--ids",
        files["ids"],
        "--store",
        store.root,
        "--json",
    )
    [result] = json.loads(outcome.out)
    assert (result["artefact"], result["figures"]["coverage"]) == ("image", 1.0)
    assert found(store.domain("Shop"), "image") == VECTORS
