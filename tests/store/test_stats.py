"""`antpipe stats`: size, density and coverage of domains, and what they share."""

from pathlib import Path

import pytest

from antpipe.features.build_sequences import build_sequences
from antpipe.settings.features import SequenceConfig
from antpipe.store.figures import Figures, Overlap, domain_figures, overlaps, statistics
from antpipe.store.order import ColdTargets, Order
from antpipe.store.store import Store
from tests.support.commands import run
from tests.support.places import check_refusal
from tests.support.shops import make_domain


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A (three users, two items), B (shares a user and an item with A) and C (shares nothing)."""
    store = Store(tmp_path / "store")
    make_domain(
        store,
        "A",
        [{"item_id": "x", "text": "X", "price": 2.0, "image_urls": ["https://i/x.jpg"]}, {"item_id": "y"}],
        [("u", "x", 1), ("u", "y", 2), ("v", "x", 1), ("w", "y", 1)],
    )
    make_domain(store, "B", [{"item_id": "y", "text": "Y"}], [("u", "y", 1), ("z", "y", 2)])
    make_domain(store, "C", [{"item_id": "c", "image_files": ["c.png"]}], [("c", "c", 1)], {"c.png": b"picture"})
    return store


def test_figures_of_a_domain_are_counted_by_hand(store: Store) -> None:
    assert domain_figures(store.domain("A")) == Figures(
        "A",
        users=3,
        items=2,
        interactions=4,
        average_length=4 / 3,
        density=4 / 6,
        with_text=0.5,
        with_image=0.5,
        with_price=0.5,
        order=Order("times", judged_users=0, sorted_by_id=None, by_chance=None, ids="rows", tied=0.0),
        cold=None,
    )
    assert domain_figures(store.domain("C")).with_image == 1.0


def test_users_and_items_are_shared_by_their_original_ids(store: Store) -> None:
    assert overlaps([store.domain(name) for name in "ABC"]) == [
        Overlap(("A", "B"), users=1, items=1),
        Overlap(("A", "C"), 0, 0),
        Overlap(("B", "C"), 0, 0),
    ]


def test_the_table_has_one_row_per_domain_and_one_line_per_pair_that_shares(store: Store) -> None:
    outcome = run("stats", "--store", store.root)
    assert outcome.code == 0, outcome.err
    assert outcome.out.splitlines() == [
        "domain  users  items  interactions  per user    text   image  price",
        "A           3      2             4       1.3   50.0%   50.0%  50.0%",
        "B           2      1             2       1.0  100.0%    0.0%   0.0%",
        "C           1      1             1       1.0    0.0%  100.0%   0.0%",
        "",
        "domain  order by  sorted by id  by chance   tied  cold valid  cold test",
        "A          times             -          -   0.0%           -          -",
        "B          times             -          -      -           -          -",
        "C          times             -          -      -           -          -",
        "",
        "A and B: users 1, items 1 in common",
    ]


@pytest.fixture
def sorted_shop(tmp_path: Path) -> Store:
    """Shop: 30 users who met 5 of 20 items at three times, sorted by id.

    Nobody's training part has items 18 and 19, the test targets of users 14 to 19; 18 is the validation target of four.
    """
    store = Store(tmp_path / "spoilt")
    walks = [(f"u{user:02}", [f"i{(user + step) % 20:02}" for step in range(5)]) for user in range(30)]
    rows = [
        (user, item, time) for user, walk in walks for item, time in zip(sorted(walk), (1, 1, 2, 3, 3), strict=True)
    ]
    make_domain(store, "Shop", [{"item_id": f"i{number:02}"} for number in range(20)], rows)
    return store


def test_the_order_of_a_domain_and_its_cold_targets_are_shown(sorted_shop: Store) -> None:
    build_sequences(sorted_shop, ["Shop"], SequenceConfig())
    lines = run("stats", "--store", sorted_shop.root).out.splitlines()
    assert lines[3:] == [
        "domain  order by  sorted by id  by chance   tied  cold valid  cold test",
        "Shop       times        100.0%       1.7%  50.0%       13.3%      20.0%",
    ]
    [row] = run("stats", "--json", "--store", sorted_shop.root).json()["domains"]
    assert row["order"] == {
        "basis": "times",
        "judged_users": 30,
        "sorted_by_id": 1.0,
        "by_chance": pytest.approx(1 / 60),
        "ids": "text",
        "tied": 0.5,
    }
    assert row["cold"]["test"] == pytest.approx(6 / 30)


def test_an_order_that_cannot_be_that_in_time_is_warned_of(sorted_shop: Store) -> None:
    outcome = run("stats", "--store", sorted_shop.root)
    assert outcome.code == 0
    assert outcome.err.startswith("antpipe: warning: domain Shop: 100.0% of 30 users have their items in the order of")
    assert len(outcome.err.splitlines()) == 1


def test_stale_sequences_have_no_cold_targets(sorted_shop: Store) -> None:
    build_sequences(sorted_shop, ["Shop"], SequenceConfig())
    assert isinstance(domain_figures(sorted_shop.domain("Shop")).cold, ColdTargets)
    make_domain(sorted_shop, "Shop", [{"item_id": "x"}], [("u", "x", 1), ("u", "x", 2)])
    assert domain_figures(sorted_shop.domain("Shop")).cold is None


def test_damaged_sequences_are_refused_and_not_taken_for_missing(sorted_shop: Store) -> None:
    build_sequences(sorted_shop, ["Shop"], SequenceConfig())
    path = sorted_shop.domain("Shop").path / "sequences.arrow"
    path.write_bytes(path.read_bytes() + b"more")
    outcome = run("stats", "--store", sorted_shop.root)
    check_refusal(outcome, 5, "sequences.arrow: missing or not written", next_command="build-sequences")


def test_a_line_says_that_domains_share_nothing(store: Store) -> None:
    assert run("stats", "--domains", "A,C", "--store", store.root).out.endswith("\nno users or items in common\n")
    assert "in common" not in run("stats", "--domains", "A", "--store", store.root).out


def test_the_same_figures_are_there_as_data(store: Store) -> None:
    data = run("stats", "--domains", "A,B", "--json", "--store", store.root).json()
    assert [row["domain"] for row in data["domains"]] == ["A", "B"]
    assert data["shared"] == [{"domains": ["A", "B"], "users": 1, "items": 1}]
    assert len(statistics(store, ["A"])["shared"]) == 0


def test_a_store_without_domains_names_the_next_command(tmp_path: Path) -> None:
    assert "next: antpipe ingest sample" in run("stats", "--store", tmp_path / "none").out


def test_an_unknown_domain_is_refused(store: Store) -> None:
    outcome = run("stats", "--domains", "A,D", "--store", store.root)
    check_refusal(outcome, 3, "no domain 'D'", next_command="antpipe ingest")
