"""Subsets of a domain's users: nested, drawn by a seed, with rows that are those of the domain."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import antpipe as ant
from antpipe.errors import DataError, SameCommand, UsageError
from antpipe.features import subset as module
from antpipe.features.build_sequences import build_sequences
from antpipe.features.status import status
from antpipe.features.subset import Subset, drawn_from, drawn_users, require_positions, subset, subsets_of
from antpipe.features.whiten import whiten
from antpipe.settings.features import SequenceConfig, SubsetConfig, WhitenConfig
from antpipe.store.domain import Domain
from antpipe.store.manifest import encoder_name
from antpipe.store.store import Store
from tests.support.commands import run, unfolded
from tests.support.next_commands import fault_of
from tests.support.shops import make_domain, picture
from tests.support.trainable import make_trainable, write_feature

FIVE = SubsetConfig((5,))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "store")
    make_trainable(store, "Shop")
    return store


def users_of(domain: Domain) -> list[str]:
    ids: list[str] = domain.table("users", ["user_id"])["user_id"].to_pylist()
    return ids


def baskets_of(domain: Domain) -> dict[str, list[str]]:
    """Original ids of items by original id of the user, in order, as the sequences have them."""
    ids, users, found = domain.item_ids(), users_of(domain), domain.sequences()
    parts = np.split(found.items, found.offsets[1:-1])
    return {users[user]: [ids[item] for item in part] for user, part in zip(found.user, parts, strict=True)}


def test_a_size_has_the_users_of_every_smaller_one(store: Store) -> None:
    subset(store, ["Shop"], SubsetConfig((12, 5, 30)))
    five, twelve, thirty = (set(users_of(store.domain(f"Shop-{size}-users"))) for size in (5, 12, 30))
    assert (len(five), len(twelve), len(thirty)) == (5, 12, 30)
    assert five < twelve < thirty < set(users_of(store.domain("Shop")))


def test_another_seed_draws_other_users_into_another_domain(store: Store) -> None:
    subset(store, ["Shop"], FIVE)
    subset(store, ["Shop"], replace(FIVE, subset_seed=1))
    first, second = (users_of(store.domain(name)) for name in ("Shop-5-users", "Shop-5-users-seed-1"))
    assert set(first) != set(second)
    assert set(first) == {users_of(store.domain("Shop"))[row] for row in drawn_users(40, 0)[:5]}


def test_a_cut_catalogue_has_the_items_that_its_users_met_in_their_order(store: Store) -> None:
    subset(store, ["Shop"], FIVE)
    part = store.domain("Shop-5-users")
    met = {item for basket in baskets_of(part).values() for item in basket}
    assert part.item_ids() == sorted(met)
    assert part.table("items")["item"].to_pylist() == list(range(len(met)))
    assert len(met) < 24


def test_a_whole_catalogue_has_all_items(store: Store) -> None:
    subset(store, ["Shop"], replace(FIVE, catalogue="whole"))
    part = store.domain("Shop-5-users-whole")
    assert part.item_ids() == store.domain("Shop").item_ids()
    assert part.entry("items")["parameters"]["catalogue"] == "whole"


@pytest.mark.parametrize("catalogue", ["cut", "whole"])
def test_sequences_and_split_are_those_of_the_domain(store: Store, catalogue: str) -> None:
    build_sequences(store, ["Shop"], SequenceConfig(max_len=7, split="time", valid_share=0.2, test_share=0.2))
    [one] = subsets_of(store.domain("Shop"), replace(FIVE, catalogue=catalogue))
    subset(store, ["Shop"], one.config())
    whole, part = store.domain("Shop"), store.domain(one.name)
    known, found = baskets_of(whole), baskets_of(part)
    assert found == {user: known[user] for user in users_of(part)}
    row_of = {user: row for row, user in enumerate(users_of(whole))}
    rows = [row_of[user] for user in users_of(part)]
    for name in ("train_end", "valid_end"):
        assert getattr(part.sequences(), name).tolist() == getattr(whole.sequences(), name)[rows].tolist()
    assert part.sequences().max_len == 7


def test_interactions_are_those_of_its_users(store: Store) -> None:
    subset(store, ["Shop"], FIVE)

    def named(domain: Domain) -> list[tuple[Any, ...]]:
        users, items = users_of(domain), domain.item_ids()
        rows = domain.table("interactions").to_pylist()
        return [(users[row["user"]], items[row["item"]], row["timestamp"], row["rating"]) for row in rows]

    part = store.domain("Shop-5-users")
    assert named(part) == [row for row in named(store.domain("Shop")) if row[0] in users_of(part)]


def test_rows_of_features_are_copied_with_their_encoder(store: Store) -> None:
    whiten(store, ["Shop"], "text", WhitenConfig(dims=4))
    subset(store, ["Shop"], FIVE)
    whole, part = store.domain("Shop"), store.domain("Shop-5-users")
    rows = [whole.item_ids().index(item) for item in part.item_ids()]
    for artefact in ("text", "image", "price", "text-white"):
        kept, known = part.feature(artefact), whole.feature(artefact)
        assert kept.values.tobytes() == np.ascontiguousarray(known.values[rows]).tobytes()
        assert kept.present.tolist() == known.present[rows].tolist()
        assert encoder_name(part.entry(artefact)) == encoder_name(whole.entry(artefact))
        assert part.entry(artefact)["present"] == int(known.present[rows].sum())
    assert part.table("text_whitening").equals(whole.table("text_whitening"))


def test_hashes_of_what_vectors_were_made_of_are_copied(store: Store) -> None:
    whole = store.domain("Shop")
    content = np.arange(24 * 16, dtype=np.uint8).reshape(24, 16)
    with whole.writing("text", {"encoder": "x"}) as out, out.feature("text", 24, 3, content) as feature:
        feature.values[:] = 1
    subset(store, ["Shop"], FIVE)
    rows = [whole.item_ids().index(item) for item in store.domain("Shop-5-users").item_ids()]
    batch, _ = module.map_batch(store.root / "Shop-5-users" / "text.arrow")
    assert batch.column("content").to_pylist() == [content[row].tobytes() for row in rows]


def test_paths_of_pictures_lead_to_those_of_the_domain(tmp_path: Path) -> None:
    store = Store(tmp_path)
    items = [{"item_id": name, "image_files": [f"{name}.png"]} for name in ("a", "b", "c")]
    make_domain(store, "Shop", items, pictures={f"{name}.png": picture(1) for name in ("a", "b", "c")})
    build_sequences(store, ["Shop"], SequenceConfig())
    subset(store, ["Shop"], SubsetConfig((1,)))
    part = store.domain("Shop-1-users")
    files = [file for files in part.table("items")["image_files"].to_pylist() for file in files]
    assert len(files) == 3
    assert all((part.path / file).is_file() for file in files)


def test_absolute_paths_of_pictures_stay(tmp_path: Path) -> None:
    store, file = Store(tmp_path / "store"), tmp_path / "a.png"
    make_domain(store, "Shop", [{"item_id": name, "image_files": [str(file)]} for name in ("a", "b", "c")])
    build_sequences(store, ["Shop"], SequenceConfig())
    subset(store, ["Shop"], SubsetConfig((1,)))
    assert store.domain("Shop-1-users").table("items")["image_files"].to_pylist() == [[str(file)]] * 3


def test_a_second_run_is_fresh(store: Store) -> None:
    first = subset(store, ["Shop"], FIVE)
    stamps = {path: path.stat().st_mtime_ns for path in (store.root / "Shop-5-users").iterdir()}
    again = subset(store, ["Shop"], FIVE)
    assert {one.status for one in first} == {"built"}
    assert {one.status for one in again} == {"fresh"}
    assert [one.figures for one in again] == [one.figures for one in first]
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps


def test_a_change_of_one_feature_of_the_domain_rebuilds_that_one_alone(store: Store) -> None:
    subset(store, ["Shop"], FIVE)
    whole = store.domain("Shop")
    write_feature(whole, "text", np.ones((24, 12)))
    [state] = [one for one in status(store, ["Shop-5-users"])["Shop-5-users"] if one.status != "fresh"]
    assert (state.artefact, state.status, state.why) == ("text", "stale", "Shop changed since")
    assert state.next_command == f"antpipe subset --domains Shop --store {store.root} --target-users 5"
    built = [one.artefact for one in subset(store, ["Shop"], FIVE) if one.status == "built"]
    assert built == ["text"]
    assert (store.domain("Shop-5-users").feature("text").values[1:] == 1).all()


def test_other_items_of_the_domain_rebuild_everything(store: Store) -> None:
    subset(store, ["Shop"], FIVE)
    make_trainable(store, "Shop", seed=3)
    assert {one.status for one in status(store)["Shop-5-users"]} == {"stale"}
    assert {one.status for one in subset(store, ["Shop"], FIVE)} == {"built"}
    assert {one.status for one in status(store)["Shop-5-users"]} == {"fresh"}


def test_a_subset_misses_only_what_the_domain_has(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    make_trainable(store, "Shop", widths={"text": 12})
    subset(store, ["Shop"], FIVE)
    assert [one.artefact for one in status(store)["Shop-5-users"]] == ["items", "text", "sequences"]
    write_feature(store.domain("Shop"), "price", np.ones((24, 4)))
    [missing] = [one for one in status(store)["Shop-5-users"] if one.status == "missing"]
    assert (missing.artefact, missing.why) == ("price", "Shop has it")
    assert fault_of(missing.next_command) is None


def test_a_damaged_copy_is_mended_by_the_command_that_is_proposed(store: Store) -> None:
    subset(store, ["Shop"], FIVE)
    (store.root / "Shop-5-users" / "text.arrow").unlink()
    with pytest.raises(Exception, match="missing or not written") as found:
        store.domain("Shop-5-users").feature("text")
    words = str(found.value.next_command).split()  # type: ignore[attr-defined]
    assert words[:2] == ["antpipe", "subset"]
    assert run(*words[1:]).code == 0
    assert store.domain("Shop-5-users").feature("text").values.shape[1] == 12


def test_a_kill_between_two_artefacts_is_continued(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    real: Callable[..., Any] = module._write_feature

    def killed(whole: Domain, part: Domain, artefact: str, *more: Any) -> Any:
        if artefact == "price":
            raise KeyboardInterrupt
        return real(whole, part, artefact, *more)

    with monkeypatch.context() as patch:
        patch.setattr(module, "_write_feature", killed)
        with pytest.raises(KeyboardInterrupt):
            subset(store, ["Shop"], FIVE)
    results = subset(store, ["Shop"], FIVE)
    built = {one.artefact: one.status for one in results}
    assert built == {"items": "fresh", "text": "fresh", "image": "fresh", "price": "built", "sequences": "built"}


def test_a_domain_of_that_name_is_not_replaced(store: Store) -> None:
    make_trainable(store, "Shop-5-users")
    with pytest.raises(DataError, match="holds data from `ingest table`, which `subset` would replace"):
        subset(store, ["Shop"], FIVE)


def test_a_subset_of_a_subset_comes_from_the_same_domain(store: Store) -> None:
    subset(store, ["Shop"], SubsetConfig((10,)))
    subset(store, ["Shop-10-users"], FIVE)
    assert drawn_from(store, "Shop-10-users-5-users") == "Shop"
    assert drawn_from(store, "Shop") == "Shop"
    assert drawn_from(store, "unknown") == "unknown"
    assert set(users_of(store.domain("Shop-10-users-5-users"))) < set(users_of(store.domain("Shop-10-users")))


# -- what is refused ----------------------------------------------------------------------------------------------


def test_more_users_than_there_are_are_refused_with_those_there_are(store: Store) -> None:
    with pytest.raises(UsageError, match="--target-users 90: Shop has 40 users") as found:
        subset(store, ["Shop"], SubsetConfig((5, 60, 90)))
    assert found.value.next_command == SameCommand({"--target-users": "5,40"})
    assert store.domains() == ["Shop"]


def test_all_users_are_a_subset_too(store: Store) -> None:
    subset(store, ["Shop"], SubsetConfig((40,)))
    assert users_of(store.domain("Shop-40-users")) == users_of(store.domain("Shop"))


@pytest.mark.parametrize(
    ("given", "message"),
    [((5, 0), "--target-users 5,0: must be at least 1"), ((5, 9, 5), "--target-users 5,9,5: give each number once")],
)
def test_numbers_that_make_no_sense_are_refused(given: tuple[int, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        SubsetConfig(given)


def test_a_catalogue_without_users_has_no_subsets(tmp_path: Path) -> None:
    items = pl.DataFrame({"item": ["a", "b"], "title": ["Red kite", "Blue kite"]})
    ant.ingest_table(tmp_path, "Shop", items=items)
    with pytest.raises(DataError, match="a catalogue without interactions"):
        subset(Store(tmp_path), ["Shop"], FIVE)


def test_a_subset_without_a_number_is_refused_with_one_that_works(store: Store) -> None:
    with pytest.raises(UsageError, match="--target-users: say how many users to draw") as found:
        subset(store, ["Shop"], SubsetConfig())
    assert found.value.next_command == SameCommand({"--target-users": "20"})


def shop_of_short_users(folder: Path) -> Store:
    """Six users with two items each, except the one who is drawn as the fourth, who has five."""
    store, fourth = Store(folder), int(drawn_users(6, 0)[3])
    rows = [(f"u{user}", f"i{step}", step) for user in range(6) for step in range(5 if user == fourth else 2)]
    make_domain(store, "Shop", [{"item_id": f"i{n}"} for n in range(5)], rows)
    build_sequences(store, ["Shop"], SequenceConfig())
    return store


def test_a_size_without_a_validation_position_is_refused_with_one_that_has_some(tmp_path: Path) -> None:
    domain = shop_of_short_users(tmp_path).domain("Shop")
    two, six = Subset("Shop", 2), Subset("Shop", 6)
    require_positions(domain, [two, six], ["test"])
    with pytest.raises(
        DataError, match=r"Shop-2-users: none of these users has a validation position; .* 4 users"
    ) as it:
        require_positions(domain, [two, six], ["validation"])
    assert it.value.next_command == SameCommand({"--target-users": "4,6"})


def test_a_stale_feature_of_the_domain_is_refused_before_anything_is_written(store: Store) -> None:
    manifest = store.root / "Shop" / "manifest.json"
    document = json.loads(manifest.read_text())
    document["artefacts"]["image"]["stage_version"] = 0
    del document["artefacts"]["image"]["checksum"]
    manifest.write_text(json.dumps(document))
    with pytest.raises(DataError, match="domain Shop: image is stale"):
        subset(store, ["Shop"], FIVE)
    assert store.domains() == ["Shop"]


def test_the_command_prints_a_line_per_artefact(store: Store) -> None:
    outcome = run("subset", "--domains", "Shop", "--target-users", "8,5", "--store", store.root)
    lines = unfolded(outcome.out).splitlines()
    assert [line.split()[:3] for line in lines[:2]] == [["Shop-5-users", name, "built"] for name in ("items", "text")]
    assert lines[-1].startswith("Shop-8-users  sequences  built 8 users, ")
