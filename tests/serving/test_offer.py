"""Which items are offered: conditions, lists, and what is refused."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from antpipe.errors import DataError, UsageError
from antpipe.evaluation.vectors import OpenRun
from antpipe.serving.offer import offer_of, read_ids
from antpipe.serving.recommend import Wishes, recommend_after
from tests.serving.conftest import ITEMS, item_id

Open = Callable[[str], OpenRun]


def numbers(opened: OpenRun, **filters: object) -> list[int]:
    return [int(opened.item_ids[row][1:]) for row in offer_of(opened, **filters).rows]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("where", "wanted"),
    [
        ("price < 5", lambda n: n + 0.5 < 5),
        ('category contains "guitars"', lambda n: n % 4 == 0),
        ("in_stock", lambda n: n % 2 == 1),
        ("not in_stock and stock >= 30", lambda n: n % 2 == 0 and n >= 30),
        ("colour = 'blue' or item_id = 'i01'", lambda n: n % 3 == 0 or n == 1),
        ("title is null", lambda n: n % 5 == 0),
    ],
)
def test_a_condition_leaves_the_items_of_which_it_is_true(
    opened: Open, where: str, wanted: Callable[[int], bool]
) -> None:
    assert numbers(opened("plain"), where=where) == [n for n in range(ITEMS) if wanted(n)]


def test_lists_of_ids_and_a_condition_hold_together(opened: Open) -> None:
    only, exclude = [item_id(n) for n in (9, 3, 30)], [item_id(3), "sold out long ago"]
    assert numbers(opened("plain"), only=only) == [3, 9, 30]
    assert numbers(opened("plain"), only=only, exclude=exclude, where="price < 20") == [9]


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("prise < 5", "unknown column prise.*did you mean price"),
        ("price < 'cheap'", "cannot be compared"),
        ("title < 5", "cannot be compared"),
        ("price", "not true or false"),
        ("image_files contains 'a'", "unknown column image_files"),
        ("price < 5; drop table items", "cannot read it from character 10"),
        ("__import__('os').system('ls')", "unknown function|cannot read"),
        ("pl.col('price') < 5", "cannot read"),
        ("read_csv('/etc/passwd') is null", "unknown function read_csv"),
        ("(select 1) = 1", "expected|unknown column"),
        ("", "empty"),
        ("(" * 200 + "price" + ")" * 200, "nested"),
        ("price < 5 or " * 500 + "in_stock", "allowed"),
    ],
)
def test_a_condition_that_is_unclear_or_more_than_a_condition_is_refused(
    opened: Open, where: str, message: str
) -> None:
    with pytest.raises(UsageError, match=rf"--where: .*({message})"):
        offer_of(opened("plain"), where)


def test_filters_that_leave_nothing_are_an_error_that_says_so(opened: Open) -> None:
    with pytest.raises(DataError, match="none of 40 items passes the filters"):
        offer_of(opened("plain"), "price > 1000")


def test_unknown_items_in_only_are_named(opened: Open) -> None:
    with pytest.raises(DataError, match=r"--only names 1 unknown item\(s\), such as 'x'"):
        offer_of(opened("plain"), only=["i01", "x"])


@pytest.mark.parametrize("name", ["plain", "strong", "floor"])
def test_k_items_come_back_if_k_pass_the_filter_and_they_are_the_best_of_all_that_pass(opened: Open, name: str) -> None:
    history = np.array([3, 4], np.int32)
    run = opened(name)
    [everything] = recommend_after(run, [history], ITEMS)
    passing = {item_id(n) for n in range(ITEMS) if n + 0.5 < 12}
    [found] = recommend_after(run, [history], offer=offer_of(run, "price < 12"), wishes=Wishes(k=8))
    expected = [row for row in everything if row["item_id"] in passing][:8]
    assert [(row["item_id"], row["score"]) for row in found] == [(row["item_id"], row["score"]) for row in expected]
    assert len(found) == 8


def test_fewer_come_back_if_fewer_are_left(opened: Open) -> None:
    run = opened("plain")
    [found] = recommend_after(run, [np.array([3], np.int32)], offer=offer_of(run, "stock < 5"), wishes=Wishes(k=50))
    assert sorted(row["item_id"] for row in found) == [item_id(n) for n in (0, 1, 2, 4)]


def test_a_file_of_ids_is_read_line_by_line_without_repeats(tmp_path: Path) -> None:
    (tmp_path / "ids").write_bytes(b"\xef\xbb\xbfb,1\r\n\r\n a \nb,1\n")
    assert read_ids(tmp_path / "ids", "--only") == ["b,1", "a"]


@pytest.mark.parametrize(
    ("content", "message"), [(None, "No such file"), (b"\n \n", "it is empty"), (b"ab\xff", r"not UTF-8 \(byte 3\)")]
)
def test_a_file_that_holds_no_ids_is_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "ids").write_bytes(content)
    with pytest.raises(DataError, match=f"--exclude .*{message}"):
        read_ids(tmp_path / "ids", "--exclude")
