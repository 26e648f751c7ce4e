"""fetch-images as a stage: what it asks for, what it writes to the store, and who uses that."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from antpipe.errors import DataError, IntegrityError, PartialError, UsageError
from antpipe.features.embed_image import embed_image
from antpipe.features.fetch_images import fetch_images
from antpipe.settings.features import FetchConfig, ImageConfig
from antpipe.store.domain import Domain
from antpipe.store.store import Store
from tests.support.commands import run
from tests.support.fake_encoders import tiny_encoder
from tests.support.picture_server import PictureServer, answer, picture_server
from tests.support.releases import snapshot
from tests.support.shops import make_domain, picture

QUICK = FetchConfig(allow_private=True, rate=0, backoff=0.001, retries=1, timeout=2.0)
EVIL = [
    "../../etc/passwd",
    "/etc/passwd",
    "a/b",
    "a\0b",
    "A",
    "a",
    "..",
    ".",
    "x" * 4000,
    "ß",
    "SS",
    "a\nb",
    "-rf",
    "\u202e",
]


@pytest.fixture
def server() -> Iterator[PictureServer]:
    with picture_server() as running:
        yield running


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ImageConfig:
    return tiny_encoder(tmp_path, monkeypatch)


def shop(store: Store, urls: dict[str, list[str]], name: str = "shop") -> Domain:
    """A domain with these image URLs of each item."""
    return make_domain(store, name, [{"item_id": item_id, "image_urls": listed} for item_id, listed in urls.items()])


def rows(domain: Domain) -> list[dict[str, Any]]:
    return pl.DataFrame(domain.table("pictures")).sort("item", "slot").to_dicts()


def states(domain: Domain) -> list[str]:
    return [row["state"] for row in rows(domain)]


def files(domain: Domain) -> set[str]:
    return {path.name for path in (domain.path / "fetched").rglob("*") if path.is_file()} - {".lock", "ledger.parquet"}


# -- what is asked for ----------------------------------------------------------------------------------------


def test_each_item_gets_its_own_pictures_in_order(store: Store, server: PictureServer) -> None:
    urls = [server.serve(f"/{n}", answer(picture(n))) for n in range(5)]
    domain = shop(store, {"B": [urls[0], urls[1]], "A": [urls[2]], "C": []})
    result = fetch_images(store, "shop", QUICK)
    table = rows(domain)
    assert [(row["item"], row["slot"], row["url"]) for row in table] == [
        (0, 1, urls[2]),
        (1, 1, urls[0]),
        (1, 2, urls[1]),
    ]
    contents = [(domain.path / row["file"]).read_bytes() for row in table]
    assert contents == [picture(2), picture(0), picture(1)]
    assert (result.domain, result.artefact, result.status) == ("shop", "pictures", "built")
    expected = {"items": 3, "present": 2, "coverage": 0.6667, "urls": 3, "ok": 3, "failed": 0, "pending": 0, "asked": 3}
    assert {name: result.figures[name] for name in expected} == expected


def test_equal_urls_are_asked_for_once(store: Store, server: PictureServer) -> None:
    url = server.serve("/a", answer(picture(1)))
    domain = shop(store, {"A": [url, url], "B": [url], "C": [f" {url} "]})
    fetch_images(store, "shop", QUICK)
    assert server.hits == {"/a": 1}
    assert [(row["item"], row["slot"], row["state"]) for row in rows(domain)] == [(n, 1, "ok") for n in range(3)]


def test_only_the_first_urls_of_an_item_are_asked_for(store: Store, server: PictureServer) -> None:
    urls = [server.serve(f"/{n}", answer(picture(n))) for n in range(6)]
    shop(store, {"A": urls})
    fetch_images(store, "shop", replace(QUICK, max_images=2))
    assert set(server.hits) == {"/0", "/1"}
    fetch_images(store, "shop", QUICK)
    assert server.hits == {f"/{n}": 1 for n in range(4)}


def test_a_limit_leaves_the_rest_to_the_next_run(store: Store, server: PictureServer) -> None:
    urls = [server.serve(f"/{n}", answer(picture(n))) for n in range(5)]
    domain = shop(store, {f"i{n}": [url] for n, url in enumerate(urls)})
    figures = fetch_images(store, "shop", replace(QUICK, limit=2)).figures
    assert (figures["ok"], figures["pending"], figures["asked"]) == (2, 3, 2)
    state = domain.state("pictures")
    assert (state.status, state.why) == ("partial", "3 of 5 URLs were not asked for yet")
    assert "--limit" not in state.next_command
    assert run(*state.next_command.split()[1:]).code == 0
    assert domain.state("pictures").status == "fresh"
    assert set(server.hits.values()) == {1}


def test_a_second_run_asks_for_nothing_and_is_fresh(store: Store, server: PictureServer) -> None:
    shop(store, {"A": [server.serve("/a", answer(picture(1)))], "B": [server.url("/nowhere")], "C": ["ftp://x/"]})
    assert fetch_images(store, "shop", QUICK).status == "built"
    before = snapshot(store.root)
    result = fetch_images(store, "shop", QUICK)
    assert (result.status, result.figures["asked"]) == ("fresh", 0)
    assert snapshot(store.root) == before
    assert sum(server.hits.values()) == 2
    assert fetch_images(store, "shop", QUICK, force=True).status == "built"
    assert sum(server.hits.values()) == 2


def test_failures_are_asked_for_again_only_on_demand_and_by_kind(
    store: Store, server: PictureServer, messages: list[str]
) -> None:
    busy, gone = server.serve("/busy", answer(status="503 X")), server.serve("/gone", answer(status="404 X"))
    domain = shop(store, {"A": [busy], "B": [gone]})
    fetch_images(store, "shop", QUICK)
    assert states(domain) == ["failed", "gone"]
    said = list(messages)
    server.hits.clear()
    fetch_images(store, "shop", QUICK)
    assert not server.hits
    server.serve("/busy", answer(picture(1)))
    server.serve("/gone", answer(picture(2)))
    [retry] = [line.partition("to ask again: ")[2] for line in said if "to ask again: " in line]
    assert retry.endswith(" --retry-failed")
    assert run(*retry.split()[1:]).code == 0
    assert states(domain) == ["ok", "gone"]
    assert rows(domain)[0]["attempts"] == 3  # two in the first run
    assert not server.hits["/gone"]
    [all_again] = [line.partition("all the same: ")[2] for line in said if "all the same: " in line]
    assert run(*all_again.split()[1:]).code == 0
    assert states(domain) == ["ok", "ok"]
    assert "--retry" not in " ".join(domain.entry("pictures")["flags"])


def test_a_picture_that_was_changed_or_removed_is_fetched_again(store: Store, server: PictureServer) -> None:
    urls = [server.serve(f"/{n}", answer(picture(n))) for n in range(3)]
    domain = shop(store, {f"i{n}": [url] for n, url in enumerate(urls)})
    fetch_images(store, "shop", QUICK)
    paths = [domain.path / row["file"] for row in rows(domain)]
    paths[0].write_bytes(picture(0)[:-1] + b"!")
    paths[1].unlink()
    server.hits.clear()
    fetch_images(store, "shop", QUICK)
    assert server.hits == {"/0": 1, "/1": 1}
    assert [path.read_bytes() for path in paths] == [picture(n) for n in range(3)]


# -- placeholders ---------------------------------------------------------------------------------------------


def test_the_same_bytes_under_many_urls_are_placeholders(store: Store, server: PictureServer) -> None:
    same, own = picture(1), picture(2)
    urls = [server.serve(f"/{n}", answer(same)) for n in range(3)] + [server.serve("/own", answer(own))]
    domain = shop(store, {f"i{n}": [url] for n, url in enumerate(urls)})
    figures = fetch_images(store, "shop", replace(QUICK, placeholder_urls=3)).figures
    assert states(domain) == ["placeholder"] * 3 + ["ok"]
    assert rows(domain)[0]["reason"] == "the same bytes under 3 URLs"
    assert (figures["present"], figures["placeholder"]) == (1, 3)
    for wanted in (4, 0):
        fetch_images(store, "shop", replace(QUICK, placeholder_urls=wanted))
        assert states(domain) == ["ok"] * 4
    assert set(server.hits.values()) == {1}
    assert len(files(domain)) == 2


def test_one_url_of_many_items_is_not_a_placeholder(store: Store, server: PictureServer) -> None:
    url = server.serve("/a", answer(picture(1)))
    domain = shop(store, {f"i{n:02}": [url] for n in range(20)})
    fetch_images(store, "shop", QUICK)
    assert states(domain) == ["ok"] * 20


@pytest.mark.parametrize(("size", "state"), [((1, 1), "placeholder"), ((40, 7), "placeholder"), ((8, 8), "ok")])
def test_a_picture_of_hardly_any_pixels_is_a_placeholder(
    store: Store, server: PictureServer, size: tuple[int, int], state: str
) -> None:
    domain = shop(store, {"A": [server.serve("/a", answer(picture(1, size, "GIF")))]})
    fetch_images(store, "shop", QUICK)
    assert rows(domain)[0]["state"] == state
    assert rows(domain)[0]["reason"] == ("" if state == "ok" else f"{size[0]} x {size[1]} pixels")


# -- the store ------------------------------------------------------------------------------------------------


def test_no_item_id_is_part_of_a_path(store: Store, server: PictureServer) -> None:
    urls = {item_id: [server.serve(f"/{n}", answer(picture(n)))] for n, item_id in enumerate(EVIL)}
    domain = shop(store, urls)
    fetch_images(store, "shop", QUICK)
    by_item = dict(zip(domain.item_ids(), rows(domain), strict=True))
    for number, item_id in enumerate(EVIL):
        assert (domain.path / by_item[item_id]["file"]).read_bytes() == picture(number)
    for name in files(domain):
        stem, _, suffix = name.partition(".")
        assert (len(stem), suffix) == (64, "png")
    assert {path.name for path in store.root.parent.iterdir()} == {"store"}


def test_another_catalogue_takes_what_it_needs_from_the_cache(store: Store, server: PictureServer) -> None:
    urls = {item_id: [server.serve(f"/{item_id}", answer(picture(n)))] for n, item_id in enumerate("ABCD")}
    domain = shop(store, {item_id: urls[item_id] for item_id in "BCD"})
    fetch_images(store, "shop", QUICK)
    shop(store, {item_id: urls[item_id] for item_id in "ACD"})
    state = domain.state("pictures")
    assert state.status == "stale"
    assert run(*state.next_command.split()[1:]).code == 0
    assert [(domain.path / row["file"]).read_bytes() for row in rows(domain)] == [picture(n) for n in (0, 2, 3)]
    assert set(server.hits.values()) == {1}
    assert domain.state("pictures").status == "fresh"


def test_items_that_swapped_their_urls_swap_their_pictures(store: Store, server: PictureServer) -> None:
    first, second = (server.serve(f"/{n}", answer(picture(n))) for n in range(2))
    domain = shop(store, {"A": [first], "B": [second]})
    fetch_images(store, "shop", QUICK)
    shop(store, {"A": [second], "B": [first]})
    assert domain.state("pictures").why == "items changed since"
    fetch_images(store, "shop", QUICK)
    assert [(domain.path / row["file"]).read_bytes() for row in rows(domain)] == [picture(1), picture(0)]
    assert server.hits == {"/0": 1, "/1": 1}


def test_a_damaged_table_is_restored_without_asking_again(store: Store, server: PictureServer) -> None:
    domain = shop(store, {"A": [server.serve("/a", answer(picture(1)))]})
    fetch_images(store, "shop", QUICK)
    (domain.path / "pictures.parquet").write_bytes(b"junk")
    state = domain.state("pictures")
    assert state.status == "stale"
    assert run(*state.next_command.split()[1:]).code == 0
    assert (domain.state("pictures").status, states(domain), server.hits["/a"]) == ("fresh", ["ok"], 1)


@pytest.mark.parametrize("content", [b"", b"junk"])
def test_a_damaged_ledger_is_refused_with_what_to_remove(store: Store, server: PictureServer, content: bytes) -> None:
    domain = shop(store, {"A": [server.serve("/a", answer(picture(1)))]})
    fetch_images(store, "shop", QUICK)
    ledger = domain.path / "fetched" / "ledger.parquet"
    ledger.write_bytes(content)
    with pytest.raises(IntegrityError, match="not a ledger") as caught:
        fetch_images(store, "shop", QUICK)
    assert caught.value.next_command == f"rm {ledger}"
    assert ledger.read_bytes() == content


def test_a_ledger_cannot_name_a_file_outside_of_the_cache(store: Store, server: PictureServer) -> None:
    domain = shop(store, {"A": [server.serve("/a", answer(picture(1)))]})
    fetch_images(store, "shop", QUICK)
    ledger = domain.path / "fetched" / "ledger.parquet"
    pl.read_parquet(ledger).with_columns(pl.lit("../../secret.png").alias("file")).write_parquet(ledger)
    fetch_images(store, "shop", QUICK)
    assert server.hits["/a"] == 2
    assert rows(domain)[0]["file"].startswith("fetched/")


def test_items_without_urls_are_refused_and_nothing_is_written(store: Store) -> None:
    domain = shop(store, {"A": [], "B": [""]})
    before = snapshot(store.root)
    with pytest.raises(DataError, match="none of its 2 items has an image URL"):
        fetch_images(store, "shop", QUICK)
    assert snapshot(store.root) == before
    assert not (domain.path / "fetched").exists()


def test_status_leaves_pictures_out_if_there_are_no_urls(store: Store, server: PictureServer) -> None:
    shop(store, {"A": []})
    shop(store, {"A": [server.url("/a")]}, "web")
    shown = run("status", "--store", store.root).out
    assert "shop  pictures" not in shown
    assert f"web  pictures   missing  next: antpipe fetch-images --domains web --store {store.root}" in shown


@pytest.mark.parametrize("agent", ["", " a", "a\nX: y", "ä"])
def test_a_user_agent_that_is_not_a_valid_header_is_refused(agent: str) -> None:
    with pytest.raises(UsageError, match="--user-agent"):
        FetchConfig(user_agent=agent)


# -- the command ----------------------------------------------------------------------------------------------


def test_the_command_prints_figures_and_progress(store: Store, server: PictureServer) -> None:
    shop(store, {"A": [server.serve("/a", answer(picture(1)))], "B": [server.url("/nowhere")]})
    words = ("fetch-images", "--domains", "shop", "--store", store.root, "--allow-private", "--rate", "0")
    outcome = run(*words)
    assert outcome.code == 0
    assert outcome.out.startswith(
        "shop  pictures  built\n    2 items, 1 described, coverage 50.0%, 2 URLs, 1 ok, 1 gone"
    )
    assert "shop pictures: 2/2 1 without picture, " in outcome.err
    assert "URLs without a picture: 1 (mostly gone: HTTP 404)" in outcome.err
    [row] = run(*words, "--json").json()
    assert (row["status"], row["figures"]["gone"]) == ("fresh", 1)


def test_a_coverage_below_the_minimum_ends_with_exit_code_4(store: Store, server: PictureServer) -> None:
    domain = shop(
        store, {"A": [server.serve("/a", answer(picture(1)))], "B": [server.serve("/b", answer(status="500 X"))]}
    )
    config = replace(QUICK, min_coverage=0.9)
    for _ in range(2):
        with pytest.raises(PartialError, match=r"only 1 of 2 items \(50\.0%\).*asks for 90\.0%") as caught:
            fetch_images(store, "shop", config)
        assert str(caught.value.next_command).endswith("--retry-failed --min-coverage 0.9")
    assert states(domain) == ["ok", "failed"]
    assert fetch_images(store, "shop", replace(QUICK, min_coverage=0.5)).status == "fresh"


# -- embed-image ----------------------------------------------------------------------------------------------


def test_fetched_pictures_are_embedded_without_further_flags(
    store: Store, server: PictureServer, tiny: ImageConfig
) -> None:
    urls = [server.serve(f"/{n}", answer(picture(n))) for n in range(2)]
    domain = shop(store, {"A": [urls[0]], "B": [urls[1]], "C": [server.url("/nowhere")]})
    with pytest.raises(DataError, match="none of their image URLs was fetched") as caught:
        embed_image(store, "shop", tiny)
    assert caught.value.next_command == f"antpipe fetch-images --domains shop --store {store.root}"
    fetch_images(store, "shop", QUICK)
    assert embed_image(store, "shop", tiny).figures["present"] == 2
    assert domain.feature("image").present.tolist() == [True, True, False]


def test_vectors_are_stale_when_other_pictures_were_fetched_and_only_then(
    store: Store, server: PictureServer, tiny: ImageConfig
) -> None:
    urls = [server.serve("/0", answer(picture(0))), server.serve("/1", answer(status="503 X"))]
    domain = shop(store, {"A": [urls[0]], "B": [urls[1]]})
    fetch_images(store, "shop", QUICK)
    embed_image(store, "shop", tiny)
    fetch_images(store, "shop", replace(QUICK, retry_failed=True))  # in vain
    assert domain.state("image").status == "fresh"
    server.serve("/1", answer(picture(1)))
    fetch_images(store, "shop", replace(QUICK, retry_failed=True))
    assert (domain.state("image").status, domain.state("image").why) == ("stale", "pictures changed since")
    assert embed_image(store, "shop", tiny).figures["present"] == 2
    assert embed_image(store, "shop", tiny).status == "fresh"


def test_pictures_of_another_catalogue_are_not_embedded(store: Store, server: PictureServer, tiny: ImageConfig) -> None:
    urls = [server.serve(f"/{n}", answer(picture(n))) for n in range(2)]
    shop(store, {"A": [urls[0]], "B": [urls[1]]})
    fetch_images(store, "shop", QUICK)
    for changed in ({"A": [urls[1]], "B": [urls[0]]}, {"A": [urls[0]], "C": [urls[1]]}):
        domain = shop(store, changed)
        with pytest.raises(DataError, match="pictures is stale") as caught:
            embed_image(store, "shop", tiny)
        assert str(caught.value.next_command).startswith("antpipe fetch-images --domains shop ")
        assert "image" not in domain.manifest()


def test_placeholders_are_not_embedded(store: Store, server: PictureServer, tiny: ImageConfig) -> None:
    urls = [server.serve(f"/{n}", answer(picture(7))) for n in range(3)] + [server.serve("/own", answer(picture(2)))]
    shop(store, {f"i{n}": [url] for n, url in enumerate(urls)})
    fetch_images(store, "shop", replace(QUICK, placeholder_urls=3))
    embed_image(store, "shop", tiny)
    assert store.domain("shop").feature("image").present.tolist() == [False, False, False, True]
