"""Recommendations into a file: formats, resuming, what is refused, and that nothing is lost."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal

from antpipe.errors import DataError, IntegrityError, Interrupted, UsageError
from antpipe.evaluation.vectors import OpenRun
from antpipe.serving import batch
from antpipe.serving.audience import Audience, all_users, histories_in, these_users
from antpipe.serving.batch import recommend_to_file
from antpipe.serving.offer import offer_of
from antpipe.serving.recommend import Wishes, recommend_after, user_histories
from tests.serving.conftest import ITEMS, RUNS, USERS
from tests.support.commands import Outcome, run
from tests.support.places import check_refusal

Open = Callable[[str], OpenRun]


def write(
    opened: OpenRun, out: Path, wishes: Wishes | None = None, audience: Audience | None = None, **more: Any
) -> Any:
    chosen = all_users(opened) if audience is None else audience
    return recommend_to_file(opened, chosen, offer_of(opened), wishes or Wishes(3), out, **more)


def read(path: Path) -> pl.DataFrame:
    if path.suffix == ".parquet":
        return pl.read_parquet(path)
    return pl.read_csv(path) if path.suffix == ".csv" else pl.read_ndjson(path)


def one_by_one(opened: OpenRun, users: list[str], wishes: Wishes) -> list[tuple[Any, ...]]:
    return [
        (user, row["rank"], row["item_id"], row["score"], row["title"])
        for user in users
        for row in recommend_after(opened, user_histories(opened, [user]), wishes=wishes)[0]
    ]


@pytest.mark.parametrize("name", sorted(RUNS))
def test_a_file_for_all_users_holds_what_each_user_gets_alone(
    opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(batch, "LARGEST_PART", 7)
    wishes = Wishes(4, diversify=0.3 if name == "plain" else 0.0)
    found = write(opened(name), tmp_path / "recs.parquet", wishes)
    users = [f"u{user:02}" for user in range(USERS)]
    assert sorted(pl.read_parquet(tmp_path / "recs.parquet").rows()) == one_by_one(opened(name), users, wishes)
    assert (found.histories, found.rows, found.items, found.fewer) == (USERS, USERS * 4, ITEMS, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["recs.parquet"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("name", sorted(RUNS))
def test_a_gpu_recommends_what_a_cpu_does(opened: Open, tmp_path: Path, name: str) -> None:
    for device in ("cpu", "cuda"):
        write(replace(opened(name), device=device), tmp_path / f"{device}.parquet")
    here, there = (read(tmp_path / f"{device}.parquet") for device in ("cpu", "cuda"))
    assert_frame_equal(here, there, abs_tol=1e-4)


def test_a_gpu_that_is_not_there_is_refused(shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    asked = ["recommend", "--run", shop / "runs" / "plain", "--domains", "Shop", "--store", shop / "store"]
    refused = run(*asked, "--users", "all", "--out", tmp_path / "recs.csv", "--device", "cuda")
    check_refusal(refused, 2, "--device cuda", next_command="--device cpu")


def test_all_formats_hold_the_same_rows(opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "LARGEST_PART", 11)
    frames = []
    for suffix in batch.SUFFIXES:
        write(opened("plain"), tmp_path / f"recs{suffix}")
        frames.append(read(tmp_path / f"recs{suffix}").cast({"rank": pl.Int64}))
    assert len(frames[0]) == USERS * 3
    assert_frame_equal(frames[0], frames[1])
    assert_frame_equal(frames[0], frames[2])


def stop_after(parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the next batch end after so many parts."""
    original, done = batch._table, []

    def table(*arguments: Any) -> pl.DataFrame:
        if len(done) == parts:
            raise KeyboardInterrupt
        done.append(1)
        return original(*arguments)

    monkeypatch.setattr(batch, "_table", table)


def test_an_interrupted_batch_leaves_no_file_and_continues_where_it_was(
    opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, messages: list[str]
) -> None:
    monkeypatch.setattr(batch, "LARGEST_PART", 7)
    with monkeypatch.context() as patch, pytest.raises(Interrupted, match="2 of 5 parts kept") as stopped:
        stop_after(2, patch)
        write(opened("strong"), tmp_path / "recs.csv")
    assert not (tmp_path / "recs.csv").exists()
    assert sorted(path.name for path in (tmp_path / "recs.csv.parts").glob("part*")) == [
        "part-00000.parquet",
        "part-00001.parquet",
    ]
    assert "the same command continues" in stopped.value.message
    found = write(opened("strong"), tmp_path / "recs.csv")
    assert found.continued == 2
    assert "2 of 5 parts were finished by an earlier run; continuing" in messages
    write(opened("strong"), tmp_path / "whole.csv")
    assert (tmp_path / "recs.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert not (tmp_path / "recs.csv.parts").exists()


@pytest.mark.parametrize("change", ["k", "users", "run", "filter"])
def test_parts_of_another_request_are_not_taken_over(
    opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    monkeypatch.setattr(batch, "LARGEST_PART", 7)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        stop_after(1, patch)
        write(opened("plain"), tmp_path / "recs.csv")
    other = opened("history" if change == "run" else "plain")
    wishes = Wishes(2 if change == "k" else 3)
    audience = these_users(other, ["u01", "u02"]) if change == "users" else all_users(other)
    offer = offer_of(other, "stock > 3" if change == "filter" else None)
    with pytest.raises(UsageError, match=r"recs.csv.parts: holds 1 finished part\(s\) of another request"):
        recommend_to_file(other, audience, offer, wishes, tmp_path / "recs.csv")
    found = recommend_to_file(other, audience, offer, wishes, tmp_path / "recs.csv", force=True)
    assert (found.continued, found.rows) == (0, len(audience) * wishes.k)


def test_a_whole_file_in_the_place_of_a_part_is_named(
    opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "LARGEST_PART", 7)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        stop_after(2, patch)
        write(opened("plain"), tmp_path / "recs.csv")
    first, second = sorted((tmp_path / "recs.csv.parts").glob("part*"))
    second.write_bytes(first.read_bytes())
    with pytest.raises(IntegrityError, match=r"part-00001\.parquet: not this part of the request; remove it"):
        write(opened("plain"), tmp_path / "recs.csv")


def test_a_damaged_part_is_named(opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "LARGEST_PART", 7)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        stop_after(1, patch)
        write(opened("plain"), tmp_path / "recs.csv")
    (tmp_path / "recs.csv.parts" / "part-00000.parquet").write_bytes(b"PAR1")
    with pytest.raises(IntegrityError, match=r"part-00000\.parquet: damaged"):
        write(opened("plain"), tmp_path / "recs.csv")
    assert not (tmp_path / "recs.csv").exists()


def test_a_file_that_is_there_stays_without_force(opened: Open, tmp_path: Path) -> None:
    (tmp_path / "recs.csv").write_text("mine", encoding="utf-8")
    with pytest.raises(UsageError, match="already exists; --force replaces it"):
        write(opened("plain"), tmp_path / "recs.csv")
    assert (tmp_path / "recs.csv").read_text(encoding="utf-8") == "mine"
    write(opened("plain"), tmp_path / "recs.csv", force=True)
    assert len(read(tmp_path / "recs.csv")) == USERS * 3


def test_users_who_get_fewer_items_are_counted(opened: Open, tmp_path: Path, messages: list[str]) -> None:
    plain = opened("plain")
    history = plain.domain.sequences().items[:1]
    offer = offer_of(plain, only=[plain.item_ids[history[0]], "i20"])
    audience = Audience(pl.DataFrame({"user_id": ["a", "b"]}), history, np.array([0, 0]), np.array([1, 0]))
    found = recommend_to_file(plain, audience, offer, Wishes(2), tmp_path / "recs.csv")
    assert (found.fewer, found.popular, found.rows) == (1, 1, 3)
    assert "1 of 2 get fewer than 2 items: no more are left to recommend" in messages


def test_reasons_are_columns_of_the_file(opened: Open, tmp_path: Path) -> None:
    write(opened("plain"), tmp_path / "recs.parquet", Wishes(2, explain=True), these_users(opened("plain"), ["u03"]))
    rows = pl.read_parquet(tmp_path / "recs.parquet")
    [expected] = recommend_after(
        opened("plain"), user_histories(opened("plain"), ["u03"]), wishes=Wishes(2, explain=True)
    )
    assert rows.columns[5:] == ["modality", "because", "method"]
    assert rows["modality"].to_list() == [row["why"]["modality"] for row in expected]
    assert rows["because"].to_list() == [row["why"]["because"][0]["item_id"] for row in expected]


# -- audiences --------------------------------------------------------------------------------------------------------


def test_histories_are_read_line_by_line(opened: Open, tmp_path: Path) -> None:
    (tmp_path / "some.txt").write_text('i03,i01\n "i02" \n\n', encoding="utf-8")
    lines = ['["i03", "i01"]', '{"user_id": "x", "items": ["i02"]}']
    (tmp_path / "some.jsonl").write_text("\n\n".join(lines), encoding="utf-8")
    plain, named = (histories_in(opened("plain"), tmp_path / f"some.{suffix}") for suffix in ("txt", "jsonl"))
    for audience in (plain, named):
        assert [one.tolist() for one in audience.histories(slice(0, 2))] == [[3, 1], [2]]
    assert plain.owners.rows() == [(None, 1), (None, 2)]
    assert named.owners.rows() == [(None, 1), ("x", 3)]  # empty lines are no records


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "i01\n\ni02\n", "line 2: no item"),
        ("a.txt", "i01\ni02,zz\n", "line 2: domain Shop: no item 'zz'"),
        ("a.jsonl", '["i01"]\n{"itms": []}\n', "line 2: an object has `items` and perhaps `user_id`, not itms"),
        ("a.jsonl", "i01\n", "line 1: not JSON"),
        ("a.jsonl", "[1, 2]\n", "line 1: items must be a list of ids in quotes"),
        ("a.jsonl", '{"items": ["i01"], "user_id": 7}\n', "line 1: user_id must be an id in quotes"),
        ("a.jsonl", "[" * 100_000, "line 1: not JSON"),
    ],
)
def test_a_line_that_is_no_history_is_refused_by_its_number(
    opened: Open, tmp_path: Path, name: str, content: str, message: str
) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        histories_in(opened("plain"), tmp_path / name)


def test_lines_that_the_store_knows_nothing_of_get_popular_items_if_asked(opened: Open, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("i01,zz\n\nzz\ni02\n", encoding="utf-8")
    audience = histories_in(opened("plain"), tmp_path / "a.txt", "popularity")
    assert [one.tolist() for one in audience.histories(slice(0, 4))] == [[1], [], [], [2]]
    assert write(opened("plain"), tmp_path / "recs.csv", audience=audience).popular == 2


# -- the command ------------------------------------------------------------------------------------------------------


def asked(shop: Path, *words: object, command: str = "recommend", name: str = "plain") -> Outcome:
    at = ("--run", shop / "runs" / name, "--domains", "Shop", "--store", shop / "store")
    return run(command, *at, *(str(word) for word in words))


def test_the_command_writes_a_file_for_all_users_and_says_what_is_in_it(shop: Path, tmp_path: Path) -> None:
    words = ("--users", "all", "--k", 3, "--where", "in_stock and price < 30", "--out", tmp_path / "recs.jsonl")
    done = asked(shop, *words)
    assert done.code == 0, done.err
    assert done.out == f"{tmp_path}/recs.jsonl  written\n    30 histories, 90 rows, 15 items\n"
    rows = read(tmp_path / "recs.jsonl")
    assert rows.columns == ["user_id", "rank", "item_id", "score", "title"]
    assert all(int(item[1:]) % 2 == 1 for item in rows["item_id"])
    again = asked(shop, *words, "--force", "--json").json()
    assert (again["rows"], again["path"]) == (90, f"{tmp_path}/recs.jsonl")


def test_the_command_takes_users_and_lists_from_files(shop: Path, tmp_path: Path) -> None:
    (tmp_path / "users").write_text("u05\nu01\nstranger\n", encoding="utf-8")
    (tmp_path / "exclude").write_text("i00\n", encoding="utf-8")
    words = ("--users", tmp_path / "users", "--exclude", tmp_path / "exclude", "--k", 50, "--include-seen")
    refused = asked(shop, *words, "--out", tmp_path / "recs.csv")
    assert (refused.code, "no user 'stranger'" in refused.err) == (3, True)
    done = asked(shop, *words, "--out", tmp_path / "recs.csv", "--unknown", "popularity")
    assert done.code == 0, done.err
    assert f"3 histories, {3 * (ITEMS - 1)} rows, {ITEMS - 1} items, 1 user got the most popular" in done.out
    rows = read(tmp_path / "recs.csv")
    assert rows["user_id"].unique(maintain_order=True).to_list() == ["u05", "u01", "stranger"]
    assert "i00" not in rows["item_id"].to_list()


@pytest.mark.parametrize(
    ("words", "message", "cure"),
    [
        ((), "name one of --user, --items, --users, --items-file", "--help"),
        (("--user", "u01", "--users", "all"), "not --user and --users", "--help"),
        (("--users", "all"), "--users writes a file: name it with --out", "--out recommendations.csv"),
        (("--user", "u01", "--out", "a.csv"), "--user prints", "recommend --run"),
        (("--users", "all", "--out", "a.xlsx"), "must end in one of .parquet, .csv, .jsonl", "--out a.parquet"),
        (("--user", "u01", "--where", "pryce < 3"), "did you mean price", "--help"),
        (("--user", "u01", "--diversify", "2"), "--diversify 2.0: must be at most 1", "--help"),
        (("--user", "u01", "--only", "nowhere.txt"), "--only nowhere.txt: No such file", ""),
        (("--user", "u01", "--where", "price > 900"), "none of 40 items passes the filters", "recommend --run"),
    ],
)
def test_requests_that_make_no_sense_are_refused(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], message: str, cure: str
) -> None:
    monkeypatch.chdir(tmp_path)
    refused = asked(shop, *words)
    assert refused.code in (2, 3)
    assert message in refused.err
    assert cure in refused.err.rpartition("next: ")[2]
    assert list(tmp_path.iterdir()) == []


def test_the_command_prints_reasons_below_each_item(shop: Path) -> None:
    lines = asked(shop, "--items", "i03,i04", "--k", "2", "--explain").out.splitlines()
    below = [line for line in lines if line.startswith("     ")]
    assert len(lines) - len(below) == 2
    assert lines[0] not in below
    assert "(leave-one-out)" in " ".join(below)
    rows = asked(shop, "--items", "i03,i04", "--k", "2", "--explain", "--json").json()
    assert json.dumps(rows[0]["why"]["modalities"])


def test_the_command_lists_similar_items(shop: Path) -> None:
    rows = asked(shop, "--item", "i07", "--by", "image", "--k", 3, command="similar").out.splitlines()
    assert len(rows) == 3
    refused = asked(shop, "--item", "gone", command="similar")
    assert (refused.code, "no item 'gone'" in refused.err) == (3, True)
    assert "antpipe similar --domains Shop" in refused.err
