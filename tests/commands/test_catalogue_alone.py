"""A domain of items alone: what commands say that need its users, and that the next command works when pasted."""

import shlex
from pathlib import Path

import pytest

from antpipe.features.ingest_table import ingest_table, table_source
from antpipe.features.quantize_price import quantize_price
from antpipe.settings.features import PriceConfig
from antpipe.settings.ingest import IngestConfig, TableConfig
from antpipe.store.store import Store
from tests.support.commands import TINY, Outcome, run
from tests.support.places import Place, check_refusal
from tests.support.trainable import train_quickly

ITEMS = 24


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """The catalogue Cat; the shop Shop of the same items, with users; a run pretrain of Shop. All know prices alone."""
    folder = tmp_path_factory.mktemp("catalogue")
    goods, visits = folder / "goods.csv", folder / "visits.csv"
    goods.write_text("item_id,price\n" + "".join(f"i{n:02},{n + 1}\n" for n in range(ITEMS)))
    walks = [(user, (user * 5 + step) % ITEMS, 1_000_000_000 + step) for user in range(20) for step in range(6)]
    visits.write_text("user_id,item_id,timestamp\n" + "".join(f"u{u:02},i{n:02},{time}\n" for u, n, time in walks))
    store = Store(folder / "store")
    for name, interactions in (("Cat", None), ("Shop", visits)):
        source = table_source(interactions, goods)
        ingest_table(store, name, source, IngestConfig(min_user=1, min_item=1), TableConfig())
    quantize_price(store, ["Cat", "Shop"], PriceConfig())
    assert run("build-sequences", "--domains", "Shop", "--store", store.root).code == 0
    train_quickly(store, "pretrain", ["Shop"], folder / "runs" / "pretrain", epochs=1, modalities=("price",))
    return Place(folder)


def next_of(outcome: Outcome) -> list[str]:
    """The words of the next command, without `antpipe`."""
    [line] = [line for line in outcome.err.splitlines() if line.startswith("antpipe: next: ")]
    program, *words = shlex.split(line.removeprefix("antpipe: next: "))
    assert program == "antpipe"
    return words


def test_recommend_for_a_user_of_a_catalogue_names_a_command_that_works(place: Place) -> None:
    outcome = place.run("recommend --run {runs}/pretrain --domains Cat --user nobody --store {store}")
    check_refusal(outcome, 3, "domain Cat", "no user 'nobody'", "without interactions", next_command="--items i00")
    assert run(*next_of(outcome)).code == 0


@pytest.mark.parametrize(
    "line",
    [
        "build-sequences --domains Cat --store {store}",
        "evaluate --run {runs}/pretrain --domains Cat --store {store}",
        f"train --stage scratch --domains Cat --out {{folder}}/new {TINY} --store {{store}}",
        "train --stage finetune --from {runs}/pretrain --domains Cat --out {folder}/new --store {store}",
        "train --stage auto --from {runs}/pretrain --domains Cat --out {folder}/new --store {store}",
        f"train --stage pretrain --domains Shop,Cat --out {{folder}}/new {TINY} --store {{store}}",
        f"compare --target Cat --from {{runs}}/pretrain --out {{folder}}/new {TINY} --store {{store}}",
        f"compare --target Cat --arms popularity --out {{folder}}/new {TINY} --store {{store}}",
        f"compare --target Shop --sources Cat --out {{folder}}/new {TINY} --store {{store}}",
    ],
)
def test_what_needs_users_says_that_a_catalogue_has_none_and_how_it_gets_them(place: Place, line: str) -> None:
    outcome = place.run(line)
    following = f"ingest table --domains Cat --store {place.store} --items {place.folder}/goods.csv"
    check_refusal(
        outcome,
        3,
        "domain Cat",
        "catalogue without interactions",
        next_command=f"{following} --min-user 1 --min-item 1 --interactions FILE --force",
    )
    assert not (place.folder / "new" / "checkpoint.json").exists()


def test_a_catalogue_gets_its_users_by_the_command_named(place: Place, tmp_path: Path) -> None:
    place = place.copy(tmp_path / "copy")
    words = next_of(place.run("build-sequences --domains Cat --store {store}"))
    visits = str(place.folder / "visits.csv")
    assert run(*[visits if word == "FILE" else word for word in words]).code == 0
    assert place.run("build-sequences --domains Cat --store {store}").code == 0


def test_statistics_of_a_catalogue_are_zeros(place: Place) -> None:
    figures = place.run("stats --store {store}", "--json").json()
    [cat] = [row for row in figures["domains"] if row["domain"] == "Cat"]
    assert (cat["users"], cat["interactions"], cat["average_length"], cat["density"]) == (0, 0, 0, 0)
    assert [(row["users"], row["items"]) for row in figures["shared"]] == [(0, ITEMS)]
