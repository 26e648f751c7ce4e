"""The readers of `ingest amazon` on wild input: no crash without a line number, no good line lost, counts add up."""

import gzip
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from antpipe.errors import DataError
from antpipe.settings.ingest import AmazonConfig, IngestConfig
from antpipe.store.store import Store
from tests.support.releases import encode, ingest_release, product, review, review_2023

FORGIVING = IngestConfig(min_user=1, min_item=1, keep_without_metadata=True, max_rejects=10**6)
GOOD: dict[str, Callable[[int], bytes]] = {
    "reviews-2018": lambda n: encode(review(f"A{n}", f"B{n % 5}", n)).rstrip(),
    "reviews-2023": lambda n: encode(review_2023(f"A{n}", f"B{n % 5}", n)).rstrip(),
    "ratings-2014": lambda n: b"A%d,B%d,5.0,%d" % (n, n % 5, n),
    "ratings-2018": lambda n: b"B%d,A%d,5.0,%d" % (n % 5, n, n),
    "benchmark-2023": lambda n: b"A%d,B%d,5.0,%d,B1 B2" % (n, n % 5, n),
}
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from(
    [
        "reviewerID",
        "asin",
        "overall",
        "unixReviewTime",
        "user_id",
        "parent_asin",
        "rating",
        "timestamp",
        "title",
        "price",
        "images",
        "imageURLHighRes",
        "image",
        "imUrl",
        "category",
        "categories",
        "feature",
        "features",
        "description",
        "brand",
        "store",
        "main_cat",
    ]
)
OBJECTS = st.dictionaries(KEYS, JSON_VALUES, max_size=6).map(lambda value: encode(value).rstrip())
COLUMNS = st.lists(st.text(max_size=8), max_size=6).map(lambda fields: ",".join(fields).encode("utf-8", "replace"))
NOISE = st.binary(max_size=30) | OBJECTS | COLUMNS


def mutate(line: bytes, chance: random.Random) -> bytes:
    """A line after one accident: bytes lost, doubled, changed or inserted, or everything after a position lost."""
    at = chance.randrange(len(line) + 1)
    many = chance.randrange(1, 6)
    return chance.choice(
        [
            line[:at] + line[at + many :],
            line[:at] + line[at : at + many] * 2 + line[at + many :],
            line[:at] + chance.randbytes(many) + line[at + many :],
            line[:at]
            + chance.choice([b'"', b"\\", b"{", b",", b"\x00", b"null", b"1e999", b"\xed\xa0\x80"])
            + line[at:],
            line[:at],
        ]
    )


def check_counts(store: Store, name: str, lines: int, rejected: int | None = None) -> dict[str, Any]:
    """The facts of a file, after checking that they add up."""
    entry = store.domain("Shop").entry("items")
    facts: dict[str, Any] = entry["report"][name]
    assert facts["lines"] == lines == facts["kept"] + facts["duplicate_lines"] + facts["malformed"]
    table = store.domain("Shop").table("rejects").to_pylist()
    listed = [row["line"] for row in table if row["file"] in facts["file"].split(", ")]
    assert len(listed) == facts["malformed"] == (rejected if rejected is not None else facts["malformed"])
    assert all(row["reason"] for row in table)
    return facts


def lines_of(content: bytes) -> int:
    """Lines that are not empty."""
    return sum(bool(line.strip()) for line in content.split(b"\n"))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(sorted(GOOD)), st.lists(NOISE, max_size=8), st.randoms(use_true_random=False))
def test_good_lines_of_any_kind_survive_among_noise(
    tmp_path_factory: pytest.TempPathFactory, form: str, noise: list[bytes], chance: random.Random
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    good = [GOOD[form](10**6 + n) for n in range(4)]
    rest = [piece for line in noise for piece in line.split(b"\n") if piece not in good]
    shuffled = [*good, *rest]
    chance.shuffle(shuffled)
    shuffled.insert(0, good.pop())  # the first line is no header
    (folder / ("Shop.json" if form.startswith("reviews") else "Shop.csv")).write_bytes(b"\n".join(shuffled) + b"\n")
    store = Store(folder / "store")
    ingest_release(store, folder, "Shop", FORGIVING, options=AmazonConfig(review_format=form))
    facts = check_counts(store, "interactions", lines_of(b"\n".join(shuffled)))
    assert facts["malformed"] <= len(rest)
    users = set(store.domain("Shop").table("users")["user_id"].to_pylist())
    assert {f"A{10**6 + n}" for n in range(4)} <= users


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(NOISE, max_size=8))
def test_good_metadata_survive_among_noise(tmp_path_factory: pytest.TempPathFactory, noise: list[bytes]) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    lines = [piece for line in noise for piece in line.split(b"\n")]
    lines.insert(len(lines) // 2, encode(product("wanted")).rstrip())
    (folder / "meta_Shop.json").write_bytes(b"\n".join(lines) + b"\n")
    (folder / "Shop.json").write_bytes(encode(review("a", "wanted")))
    store = Store(folder / "store")
    ingest_release(store, folder, "Shop", FORGIVING)
    check_counts(store, "items", lines_of(b"\n".join(lines)))
    assert store.domain("Shop").table("items")["title"].to_pylist() == ["Title wanted"]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.binary(max_size=200), st.sampled_from(["Shop.json", "Shop.csv", "Shop.json.gz", "Shop.csv.gz"]), st.booleans()
)
def test_any_bytes_as_a_file_are_a_domain_or_an_error_that_names_the_file(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, name: str, packed: bool
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / name).write_bytes(gzip.compress(content) if packed and name.endswith(".gz") else content)
    store = Store(folder / "store")
    try:
        ingest_release(store, folder, "Shop", FORGIVING)
    except DataError as error:
        assert str(folder / name) in error.message
        assert error.next_command
        assert not store.root.exists()


def damaged(lines: list[bytes], seed: int, share: float = 0.05) -> tuple[list[bytes], list[bytes]]:
    """The lines, some of them after an accident, and those that are unchanged."""
    chance = random.Random(seed)
    result, whole = [], []
    for line in lines:
        if chance.random() < share:
            result += mutate(line, chance).split(b"\n")
        else:
            result.append(line)
            whole.append(line)
    return result, whole


@pytest.mark.realdata
@pytest.mark.parametrize("seed", range(3))
def test_published_files_with_accidents_lose_only_the_lines_that_were_hit(
    real_data: Path, tmp_path: Path, seed: int
) -> None:
    whole = {}
    for name in ("Gift_Cards_5.json.gz", "meta_Gift_Cards.json.gz"):
        lines = gzip.decompress((real_data / "amazon2018" / name).read_bytes()).splitlines()
        result, whole[name] = damaged(lines, seed)
        (tmp_path / name.replace("Gift_Cards", "Shop").removesuffix(".gz")).write_bytes(b"\n".join(result) + b"\n")
    store = Store(tmp_path / "store")
    ingest_release(store, tmp_path, "Shop", FORGIVING)
    for name, part in (("Gift_Cards_5.json.gz", "interactions"), ("meta_Gift_Cards.json.gz", "items")):
        path = tmp_path / name.replace("Gift_Cards", "Shop").removesuffix(".gz")
        facts = check_counts(store, part, lines_of(path.read_bytes()))
        assert 0 < facts["malformed"] <= facts["lines"] - len(whole[name])
        assert facts["kept"] >= len(set(whole[name])) * (part == "interactions")


@pytest.mark.realdata
@pytest.mark.parametrize("form", ["ratings-2014", "ratings-2018", "benchmark-2023"])
def test_published_ids_as_ratings_with_accidents_are_recognised_and_counted(
    real_data: Path, tmp_path: Path, form: str
) -> None:
    import msgspec

    text = gzip.decompress((real_data / "amazon2018" / "All_Beauty_5.json.gz").read_bytes())
    rows = [msgspec.json.decode(line) for line in text.splitlines()]
    scale = 1000 if form == "benchmark-2023" else 1
    lines = []
    for row in rows:
        ids = [row["reviewerID"], row["asin"]]
        ids = ids[::-1] if form == "ratings-2018" else ids
        lines.append(f"{','.join(ids)},{row['overall']},{row['unixReviewTime'] * scale}".encode())
    result, whole = damaged(lines, seed=1)
    (tmp_path / "Shop.csv").write_bytes(b"\n".join(result) + b"\n")
    store = Store(tmp_path / "store")
    ingest_release(store, tmp_path, "Shop", FORGIVING)
    facts = check_counts(store, "interactions", lines_of((tmp_path / "Shop.csv").read_bytes()))
    assert facts["format"].startswith(form.replace("-", " of "))
    assert facts["kept"] >= len(set(whole))
    assert 0 < facts["malformed"] <= facts["lines"] - len(whole)
