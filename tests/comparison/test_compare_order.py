"""What a comparison says of the order of its target and sources, and of targets that nobody trains on."""

import json
from pathlib import Path
from typing import Any

import pytest

from antpipe.comparison.plan import ComparisonRequest
from antpipe.comparison.run import run_comparison, what_would_be_done
from antpipe.comparison.table import as_markdown, as_text, never_trained
from antpipe.errors import IntegrityError
from antpipe.features.build_sequences import build_sequences
from antpipe.settings.comparison import CompareConfig, RaceConfig
from antpipe.settings.features import SequenceConfig
from antpipe.store.order import cold_targets_of
from antpipe.store.store import Store
from tests.support.commands import unfolded
from tests.support.shops import make_domain
from tests.support.trainable import MODEL, TRAINING, make_trainable, train_quickly

SORTED = "of 40 users have their items in the order of ids (read as text)"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Good and Fine, whose order has nothing to do with their ids, and Spoilt and Bad, which are sorted by id."""
    store = Store(tmp_path_factory.mktemp("order") / "store")
    for seed, name in enumerate(("Good", "Fine", "Spoilt", "Bad")):
        make_trainable(store, name, seed=seed, by_id=name in ("Spoilt", "Bad"))
    return store


def compared(store: Store, out: Path, *targets: str, **more: Any) -> ComparisonRequest:
    config = CompareConfig(seeds=1, arms=more.pop("arms", ("popularity", "markov")))
    return ComparisonRequest(store, out, targets, config, MODEL, MODEL, TRAINING, RaceConfig(), **more)


def doubts(found: dict[str, Any], target: str) -> list[str]:
    return [note for note in found["targets"][target]["notes"] if SORTED in note]


def test_a_target_sorted_by_id_gets_a_note_and_a_good_one_none(store: Store, tmp_path: Path) -> None:
    found = run_comparison(compared(store, tmp_path, "Good", "Spoilt"))
    [note] = doubts(found, "Spoilt")
    assert note.startswith("target Spoilt: ")
    assert doubts(found, "Good") == []
    assert f"note: {note}" in unfolded(as_text(found))
    assert f"- note: {note}" in (tmp_path / "comparison.md").read_text(encoding="utf-8")


def test_the_user_is_warned_before_anything_is_trained(store: Store, tmp_path: Path, messages: list[str]) -> None:
    what_would_be_done(compared(store, tmp_path, "Spoilt"))
    [message] = messages
    assert message.startswith("target Spoilt: ")
    messages.clear()
    what_would_be_done(compared(store, tmp_path, "Good"))
    assert messages == []


@pytest.mark.parametrize(("source", "noted"), [("Bad", True), ("Fine", False)])
def test_a_source_to_start_from_gets_a_note_if_it_is_sorted_by_id(
    store: Store, tmp_path: Path, source: str, noted: bool
) -> None:
    train_quickly(store, "pretrain", [source], tmp_path / "start", epochs=1)
    more = {"arms": ("scratch", "relearn"), "origins": (tmp_path / "start",)}
    found = run_comparison(compared(store, tmp_path / "out", "Good", **more))
    assert [note.startswith(f"source {source}: ") for note in doubts(found, "Good")] == [True] * noted


def test_sources_to_pretrain_on_get_a_note_before_they_are_read(
    store: Store, tmp_path: Path, messages: list[str]
) -> None:
    request = compared(store, tmp_path, "Good", arms=("scratch", "relearn"), sources=("Bad", "Fine", "Spoilt"))
    what_would_be_done(request)
    assert [message.split(":")[0] for message in messages if SORTED in message] == ["source Bad", "source Spoilt"]


def test_a_source_that_is_gone_or_was_built_again_gets_no_note(tmp_path: Path, messages: list[str]) -> None:
    store = Store(tmp_path / "store")
    for name in ("Good", "Bad"):
        make_trainable(store, name, by_id=name == "Bad")
    train_quickly(store, "pretrain", ["Bad"], tmp_path / "start", epochs=1)
    request = compared(store, tmp_path / "out", "Good", arms=("scratch", "relearn"), origins=(tmp_path / "start",))
    make_trainable(store, "Bad", seed=7, by_id=True)
    messages.clear()
    what_would_be_done(request)
    (store.root / "Bad").rename(tmp_path / "elsewhere")
    what_would_be_done(request)
    assert [message for message in messages if SORTED in message] == []


def test_damaged_sequences_of_a_source_are_refused_and_not_passed_over(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    for name in ("Good", "Bad"):
        make_trainable(store, name, by_id=name == "Bad")
    train_quickly(store, "pretrain", ["Bad"], tmp_path / "start", epochs=1)
    request = compared(store, tmp_path / "out", "Good", arms=("scratch", "relearn"), origins=(tmp_path / "start",))
    path = store.root / "Bad" / "sequences.arrow"
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(IntegrityError, match=r"Bad/sequences\.arrow: missing or not written"):
        what_would_be_done(request)


def test_the_shares_of_cold_targets_are_in_every_outcome(store: Store, tmp_path: Path) -> None:
    found = run_comparison(compared(store, tmp_path, "Good"))
    cold = cold_targets_of(store.domain("Good"))
    assert cold is not None
    assert (cold.validation, cold.test) == (0.0, 0.0)
    shown = "in their own history, never in training: 0.0% of test, 0.0% of validation"
    assert shown in unfolded(as_text(found))
    assert shown in as_markdown(found)
    facts = json.loads((tmp_path / "comparison.json").read_text())["targets"]["Good"]
    assert (facts["cold_targets"]["test"], facts["cold_targets"]["validation"]) == (0.0, 0.0)
    assert (facts["order"]["basis"], facts["order"]["judged_users"]) == ("times", 40)


def test_too_many_cold_targets_are_noted(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    walks = [(f"u{user:02}", [f"i{(user * 7 + step * step) % 11:02}" for step in range(5)]) for user in range(30)]
    rows = [(user, item, time) for user, walk in walks for time, item in enumerate([*walk, f"new{int(user[1:]) % 5}"])]
    make_domain(store, "Shop", [{"item_id": item} for item in sorted({item for _, item, _ in rows})], rows)
    build_sequences(store, ["Shop"], SequenceConfig())
    found = run_comparison(compared(store, tmp_path / "out", "Shop"))
    [note] = [note for note in found["targets"]["Shop"]["notes"] if "never occur in the training part" in note]
    assert note.startswith("target Shop: 100.0% of test targets")


def test_a_target_without_validation_targets_is_compared(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    rows = [(f"u{user}", f"i{(user + step) % 3}", step) for user in range(6) for step in range(2)]
    make_domain(store, "Pairs", [{"item_id": f"i{number}"} for number in range(3)], rows)
    build_sequences(store, ["Pairs"], SequenceConfig())
    found = run_comparison(compared(store, tmp_path / "out", "Pairs"))
    assert found["targets"]["Pairs"]["cold_targets"]["validation"] is None
    assert "never in training: 0.0% of test\n" in unfolded(as_text(found))


def test_an_outcome_without_these_facts_is_shown_too() -> None:
    assert never_trained(None) == ""
    assert never_trained({"test": None, "validation": None}) == ""
