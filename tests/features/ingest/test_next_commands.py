"""The next command of an ingest that was refused works when it is pasted, whatever its paths are called."""

import gzip
import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from antpipe.store.store import Store
from tests.support.commands import Outcome, run
from tests.support.releases import product, publish, review
from tests.support.shops import make_domain

ODD = "it's a (folder) $HOME"  # a name that a shell would take apart
KEEP_ALL = "--min-user 1 --min-item 1"
VISITS = "user,item,time\na,x,1500000000\nb,y,1500000001\n"
TWO_ITEMS = "user,item_id,product_id,time\na,x,p,1500000000\nb,y,q,1500000001\n"
GOODS = "id,title\nx,Hat\ny,Cup\n"
STRAY = "user,item,time,note\n" + "".join(
    f"u{n},i{n % 3},{1_500_000_000 + n},{note}\n"
    for n, note in enumerate(["ok", '"Wow great', "ok", 'It is 12"', "ok", "ok"])
)
REVIEWS = [review("a", "x", 1), review("b", "x", 2)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / ODD
    folder.mkdir()
    return folder


def next_command(outcome: Outcome) -> str:
    [line] = [line for line in outcome.err.splitlines() if line.startswith("antpipe: next: ")]
    return line.removeprefix("antpipe: next: ")


def check_next(folder: Path, line: str, says: str) -> None:
    """The command line is refused with these words, and the command that it proposes builds a domain."""
    words = [word.format(folder) for word in line.split()]
    refused = run(*words, "--store", folder / "store")
    assert refused.code == 3, refused.err
    assert says in refused.err
    first, *others = shlex.split(next_command(refused))
    assert first == "antpipe"
    mended = run(*others)
    assert mended.code == 0, f"{next_command(refused)}\n{mended.err}"
    assert "  built" in mended.out


@pytest.mark.parametrize(
    ("visits", "more", "says"),
    [
        (VISITS + "b\n", "", "1 malformed line, 0 allowed"),
        (VISITS.replace("time", "when"), "", "no column looks like the time"),
        (TWO_ITEMS, "", "the item could be 'item_id' or 'product_id'"),
        (STRAY, "--keep-without-metadata", "a quote opens a value"),
        (VISITS, "--min-user 9", "no interaction is left"),
        (VISITS.replace("x,", "q,").replace("y,", "r,"), "", "have items without metadata (do both files use"),
        (VISITS.replace("1500000000", "2017-07-14").replace("1500000001", "2017-07-15"), "--time-unit s", "are dates"),
        (VISITS.replace("1500000", "1500000000"), "--time-unit s", "beyond the year 5138"),
    ],
)
def test_a_refused_table_is_ingested_by_the_next_command(folder: Path, visits: str, more: str, says: str) -> None:
    (folder / "v.csv").write_text(visits)
    (folder / "g.csv").write_text(GOODS)
    line = f"ingest table --domain Shop --interactions {{}}/v.csv --items {{}}/g.csv {KEEP_ALL} {more}"
    check_next(folder, line, says)


def test_a_map_keeps_its_other_entries_in_the_next_command(folder: Path) -> None:
    (folder / "v.csv").write_text("who,item_id,product_id,time\na,x,p,1500000000\n")
    line = f"ingest table --domain Shop --interactions {{}}/v.csv --keep-without-metadata --map user=who {KEEP_ALL}"
    check_next(folder, line, "the item could be 'item_id' or 'product_id'")


def test_interactions_without_items_are_ingested_by_the_next_command(folder: Path) -> None:
    (folder / "v.csv").write_text(VISITS)
    check_next(folder, f"ingest table --domain Shop --interactions {{}}/v.csv {KEEP_ALL}", "without --items")


@pytest.mark.parametrize(
    ("files", "more", "says"),
    [
        ({"Shop_5.json": [*REVIEWS, b"{"], "meta_Shop.json": [product("x")]}, "", "1 malformed line, 0 allowed"),
        ({"Shop_5.json": REVIEWS}, "", "no metadata file"),
        ({"Shop_5.json": REVIEWS, "meta_Shop.json": [product("z")]}, "", "2 have items without metadata"),
        ({"Shop_5.json": REVIEWS, "meta_Shop.json": [product("x")]}, "--min-user 9", "no interaction is left"),
        ({"Shop_5.json": REVIEWS, "meta_Shop.json": [product("x")]}, "--files ratings", "no ratings file"),
        ({"Other_5.json": REVIEWS, "meta_Other.json": [product("x")]}, "", "domains there: Other"),
        (
            {"Shop.csv": [b"u,i,5,1", b"v,i,5,2"], "meta_Shop.json": [product("u"), product("v")]},
            "",
            "cannot tell users",
        ),
    ],
)
def test_a_refused_release_is_ingested_by_the_next_command(
    folder: Path, files: Mapping[str, list[bytes]], more: str, says: str
) -> None:
    for name, lines in files.items():
        publish(folder / name, *lines)
    check_next(folder, f"ingest amazon --source {{}} --domains Shop {KEEP_ALL} {more}", says)


def test_a_domain_of_shared_users_alone_is_ingested_by_the_next_command(folder: Path) -> None:
    make_domain(Store(folder / "store"), "Target", [{"item_id": "t"}], [("a", "t", 1), ("b", "t", 2)])
    publish(folder / "Shop_5.json", *REVIEWS)
    publish(folder / "meta_Shop.json", product("x"))
    check_next(
        folder,
        f"ingest amazon --source {{}} --domains Shop --drop-shared-users-from Target {KEEP_ALL}",
        "2 are of users of Target",
    )


def test_features_of_another_width_are_imported_by_the_next_command(folder: Path) -> None:
    header = "user_id:token\titem_id_list:token_seq\titem_id:token\n"
    for part, row in (("train", "0\t0\t1\n"), ("valid", "0\t0 1\t2\n"), ("test", "0\t0 1 2\t3\n")):
        (folder / f"Toy.{part}.inter").write_text(header + row)
    (folder / "Toy.item2index").write_text("".join(f"{name}\t{n}\n" for n, name in enumerate("abcd")))
    np.ones((4, 3), np.float32).tofile(folder / "Toy.feat1CLS")
    check_next(folder, "import unisrec --path {} --domain Toy", "rows of 3 numbers, --feature-width says 768")


def test_vectors_of_two_columns_are_imported_by_the_next_command(folder: Path) -> None:
    make_domain(Store(folder / "store"), "Shop", [{"item_id": "x"}])
    pq.write_table(pa.table({"id": ["x"], "v": [[1.0]], "w": [[1.0]]}), folder / "v.parquet")
    check_next(
        folder, "import embeddings --modality text --path {}/v.parquet --domain Shop", "the vector could be v or w"
    )


@pytest.mark.parametrize(
    "content",
    [b"", gzip.compress(b"x" * 5000)[:-9], gzip.compress(b"bad\n"), b"no gzip"],
    ids=["empty", "cut off", "no JSON", "no gzip"],
)
def test_the_next_command_of_a_bad_file_is_one_that_a_shell_runs(folder: Path, content: bytes) -> None:
    (folder / "Shop_5.json.gz").write_bytes(content)
    publish(folder / "meta_Shop.json", product("x"))
    words = ["ingest", "amazon", "--source", folder, "--domains", "Shop", "--max-rejects", "9"]
    refused = run(*words, "--store", folder / "store")
    assert refused.code == 3
    shown = subprocess.run(next_command(refused), shell=True, capture_output=True, text=True, check=False)
    assert "No such file" not in shown.stderr
    assert "not found" not in shown.stderr
