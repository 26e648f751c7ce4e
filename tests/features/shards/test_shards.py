import errno
import json
import os
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from antpipe.errors import AntpipeError, DataError, IntegrityError, Interrupted
from antpipe.features.shards.compute import Pace, compute
from antpipe.features.shards.embedding import building, least_cosine
from antpipe.features.shards.folder import ShardFolder, ShardVectors, open_shards, sweep
from antpipe.features.shards.plan import (
    EmbeddingPlan,
    assemble,
    content_of,
    cut,
    earlier_vectors,
    first_of_equal,
    plan_rows,
)
from antpipe.runtime.progress import ignore
from antpipe.store.earlier import Earlier, earlier_feature
from antpipe.store.files import Feature
from antpipe.store.lock import alone
from antpipe.store.store import Store
from tests.support.fake_embedder import WIDTH, Contents, Counting, Stopped, vector_of
from tests.support.shops import make_domain

TEXTS = ["b", "", "a", "b", "bad", "c", "a", ""]
RECIPE = {"encoder": "fake"}


def folder_in(tmp_path: Path, key: str = "k" * 64) -> ShardFolder:
    return open_shards(tmp_path, "text", key)


def quiet_pace(total: int) -> Pace:
    return Pace(total, ignore, "texts")


def run(texts: Sequence[str], folder: ShardFolder, fake: Counting, size: int = 2) -> tuple[Feature, EmbeddingPlan, Any]:
    """Embed the texts that are not in the folder yet."""
    read = Contents(texts)
    plan = plan_rows(read.array())
    shards = cut(plan.compute, size)
    compute(shards, fake.make, read, folder, pace=quiet_pace(len(plan.compute)))
    feature = Feature(np.zeros((len(texts), WIDTH), np.float16), np.zeros(len(texts), np.bool_))
    return feature, plan, assemble(feature, plan, shards, folder)


def earlier_of(texts: Sequence[str], present: Sequence[bool] | None = None) -> Earlier:
    values = np.array([vector_of(text) for text in texts], np.float16)
    there = np.array([bool(text) for text in texts]) if present is None else np.array(present)
    return Earlier(values, there, Contents(texts).array())


# -- plan -----------------------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from(["", "a", "b", "c", "d"])), st.lists(st.sampled_from(["", "a", "b", "x"])))
def test_each_content_is_computed_or_copied_once(texts: list[str], before: list[str]) -> None:
    plan = plan_rows(Contents(texts).array(), earlier_of(before) if before else None)
    assert plan.first.tolist() == [texts.index(text) if text else -1 for text in texts]
    new = list(dict.fromkeys(text for text in texts if text and text not in before))
    old = list(dict.fromkeys(text for text in texts if text and text in before))
    assert [texts[row] for row in plan.compute] == new
    assert [texts[row] for row in plan.copied] == old
    assert [before[row] for row in plan.source] == old


def test_what_had_no_vector_before_is_computed_again() -> None:
    plan = plan_rows(Contents(["a", "b"]).array(), earlier_of(["a", "b"], [False, True]))
    assert (plan.compute.tolist(), plan.copied.tolist(), plan.source.tolist()) == ([0], [1], [1])


def test_contents_that_differ_in_one_byte_are_different() -> None:
    content = np.zeros((17, 16), np.uint8)
    content[np.arange(16), np.arange(16)] = 1
    assert first_of_equal(content).tolist() == [*range(16), -1]


def test_the_content_of_empty_bytes_is_not_all_zeros() -> None:
    assert content_of(b"") != bytes(16)


@given(st.lists(st.integers(1, 9), min_size=1), st.integers(1, 4))
def test_shards_keep_rows_in_order_and_within_both_limits(weights: list[int], size: int) -> None:
    rows = np.arange(len(weights)) * 2
    by_row = np.repeat(np.array(weights, np.int64), 2)
    shards = cut(rows, size, by_row, most=10)
    assert [shard.number for shard in shards] == list(range(len(shards)))
    assert np.concatenate([shard.rows for shard in shards]).tolist() == rows.tolist()
    for shard in shards:
        assert len(shard.rows) <= size
        assert len(shard.rows) == 1 or by_row[shard.rows].sum() <= 10


def test_shards_without_weights_have_equal_sizes_except_the_last() -> None:
    assert [len(shard.rows) for shard in cut(np.arange(7), 3)] == [3, 3, 1]
    assert cut(np.arange(0), 3) == []


def test_the_key_covers_settings_contents_and_what_is_copied() -> None:
    plan, content = plan_rows(Contents(TEXTS).array()), Contents(TEXTS).array()
    keys = {
        plan.key({"precision": "fp32"}),
        plan.key({"precision": "bf16"}),
        plan_rows(Contents([*TEXTS, "d"]).array()).key({"precision": "fp32"}),
        plan_rows(content, earlier_of(["a"])).key({"precision": "fp32"}),
    }
    assert len(keys) == 4
    assert plan_rows(content).key({"precision": "fp32"}) in keys


# -- computing and putting together ---------------------------------------------------------------------------


def test_equal_contents_are_computed_once_and_share_a_vector(tmp_path: Path) -> None:
    fake = Counting()
    feature, plan, failures = run(TEXTS, folder_in(tmp_path), fake)
    assert sorted(fake.asked) == ["a", "b", "bad", "c"]
    assert feature.present.tolist() == [True, False, True, True, False, True, True, False]
    expected = np.array(
        [vector_of(text) if there else [0] * WIDTH for text, there in zip(TEXTS, feature.present, strict=True)]
    )
    assert np.array_equal(feature.values, expected.astype(np.float16))
    assert failures == [(4, "unreadable")]
    assert plan.figures() == {"different": 4, "computed": 4, "reused": 0, "shared": 2}


def test_finished_shards_are_not_computed_again(tmp_path: Path) -> None:
    whole, _, failures = run(TEXTS, folder_in(tmp_path / "a"), Counting())
    with pytest.raises(Stopped):
        run(TEXTS, folder_in(tmp_path / "b"), Counting(stop_after=1))
    fake = Counting()
    resumed, _, again = run(TEXTS, folder_in(tmp_path / "b"), fake)
    assert fake.asked == ["bad", "c"]
    assert np.array_equal(resumed.values, whole.values)
    assert again == failures


def test_a_run_with_nothing_left_makes_no_embedder(tmp_path: Path) -> None:
    run(TEXTS, folder_in(tmp_path), Counting())
    fake = Counting(stop_after=0)
    run(TEXTS, folder_in(tmp_path), fake)
    assert fake.calls == 0


def test_vectors_of_the_earlier_artefact_are_copied(tmp_path: Path) -> None:
    earlier = earlier_of(["x", "c", "a"])
    plan = plan_rows(Contents(TEXTS).array(), earlier)
    folder, fake = folder_in(tmp_path), Counting(bad="")
    shards = cut(plan.compute, 9)
    compute(shards, fake.make, Contents(TEXTS), folder, pace=quiet_pace(2))
    feature = Feature(np.zeros((len(TEXTS), WIDTH), np.float16), np.zeros(len(TEXTS), np.bool_))
    assemble(feature, plan, shards, folder)
    assert fake.asked == ["b", "bad"]
    expected = [vector_of(text) if text else [0] * WIDTH for text in TEXTS]
    assert np.array_equal(feature.values, np.array(expected, np.float16))
    assert plan.figures() == {"different": 4, "computed": 2, "reused": 2, "shared": 2}


def test_an_embedder_that_loses_a_content_is_noticed(tmp_path: Path) -> None:
    def lossy(contents: Sequence[str], _: Callable[[int], None]) -> ShardVectors:
        return ShardVectors(np.zeros((len(contents) - 1, 2), np.float32), np.ones(len(contents) - 1, np.bool_))

    with pytest.raises(AssertionError, match="2 contents, 1 vectors"):
        compute(cut(np.arange(2), 2), lambda: lossy, Contents("ab"), folder_in(tmp_path), pace=quiet_pace(2))


def test_an_engine_that_leaves_a_shard_out_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"left shards \[0\] out"):
        compute(
            cut(np.arange(2), 2),
            Counting,
            Contents("ab"),
            folder_in(tmp_path),
            pace=quiet_pace(2),
            engine=lambda *_: iter(()),
        )


def test_the_pace_reports_rate_and_time_left() -> None:
    now = [0.0]
    shown: list[tuple[int, int, str]] = []
    pace = Pace(1000, lambda done, total, note="": shown.append((done, total, note)), "texts", clock=lambda: now[0])
    pace.skip(100)
    now[0] = 10.0
    pace.advance(50)
    now[0] = 12.0
    pace.advance(50)  # the time before the first step was mostly spent on loading
    assert shown == [(150, 1000, "5 texts/s, 3 min left"), (200, 1000, "25 texts/s, 32 s left")]


# -- files ----------------------------------------------------------------------------------------------------


def test_a_shard_comes_back_as_it_was_written_even_by_another_process(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)
    folder = pickle.loads(pickle.dumps(folder_in(tmp_path)))
    rows = np.array([2, 5, 7])
    folder.write(7, ShardVectors(values, np.array([True, False, True]), [(1, "no picture")]), rows)
    back = folder_in(tmp_path).read(7, rows)
    assert np.array_equal(back.values, values.astype(np.float16))
    assert (back.present.tolist(), back.failures) == ([True, False, True], [(1, "no picture")])


def test_damaged_foreign_and_unfinished_shards_do_not_count(tmp_path: Path) -> None:
    folder = folder_in(tmp_path)
    vectors, rows = ShardVectors(np.ones((2, 3), np.float32), np.ones(2, np.bool_)), np.arange(2)
    for number in range(5):
        folder.write(number, vectors, rows)
    files = sorted(Path(folder.path).iterdir())
    files[0].write_bytes(files[0].read_bytes()[:-20])
    files[1].write_bytes(b"")
    (Path(folder.path) / ".shard-000005.arrow.123").write_bytes(files[2].read_bytes())
    ShardFolder(folder.filesystem, folder.path, "another").write(3, vectors, rows)
    folder.note({"precision": "bf16"})
    assert folder.finished([rows] * 4) == [2]
    assert sorted(path.name for path in Path(folder.path).iterdir()) == ["plan.json", "shard-000002.arrow"]
    assert folder.notes() == {"precision": "bf16"}
    assert folder.finished([rows + 1] * 4) == []  # of other rows
    assert list(Path(folder.path).glob("shard-*")) == []


def test_a_damaged_shard_is_refused_by_name(tmp_path: Path) -> None:
    folder = folder_in(tmp_path)
    with pytest.raises(IntegrityError, match=r"shard-000003.arrow: not a shard"):
        folder.read(3, np.arange(2))


def test_a_kill_while_writing_a_shard_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_in(tmp_path)

    def killed(_: int) -> None:
        raise Stopped

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(os, "fsync", killed)
        folder.write(0, ShardVectors(np.ones((1, 2), np.float32), np.ones(1, np.bool_)), np.arange(1))
    assert list(Path(folder.path).iterdir()) == []


def test_only_shards_of_this_artefact_and_another_key_are_removed(tmp_path: Path) -> None:
    old, other = folder_in(tmp_path, "a" * 64), open_shards(tmp_path, "image", "c" * 64)
    folder = folder_in(tmp_path, "b" * 64)
    assert [Path(place.path).is_dir() for place in (old, other, folder)] == [False, True, True]


def test_a_sweep_leaves_the_shards_of_a_running_process(tmp_path: Path) -> None:
    folder = folder_in(tmp_path)
    with alone(tmp_path, "text"):
        sweep(tmp_path, "text")
        assert Path(folder.path).is_dir()
    sweep(tmp_path, "text")
    assert not Path(folder.path).exists()


# -- store ----------------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A shop with a text artefact that records what its vectors were made of."""
    store = Store(tmp_path / "store")
    place = make_domain(store, "shop", [{"item_id": name} for name in "abc"])
    with place.writing("text", {"encoder": "fake"}) as out:
        with out.feature("text", 3, 2, Contents(["x", "", "y"]).array()) as feature:
            feature.values[:] = [[1, 2], [0, 0], [3, 4]]
            feature.present[:] = [True, False, True]
        out.details |= {"recipe": RECIPE}
    return store


def test_the_earlier_artefact_can_be_read_after_the_catalogue_changed(store: Store) -> None:
    make_domain(store, "shop", [{"item_id": "z"}])
    place = store.domain("shop")
    with pytest.raises(IntegrityError, match="another catalogue"):
        place.feature("text")
    earlier = earlier_vectors(place, "text", RECIPE)
    assert earlier is not None
    assert earlier.values.tolist() == [[1, 2], [0, 0], [3, 4]]
    assert earlier.present.tolist() == [True, False, True]
    assert np.array_equal(earlier.content, Contents(["x", "", "y"]).array())


def test_vectors_of_another_recipe_are_not_reused(store: Store) -> None:
    assert earlier_vectors(store.domain("shop"), "text", {"encoder": "other"}) is None


def test_an_earlier_file_that_is_not_the_manifests_is_not_reused(store: Store) -> None:
    place = store.domain("shop")
    entry, path = place.entry("text"), place.path / "text.arrow"
    assert earlier_feature(path, entry | {"fingerprint": "other"}) is None
    path.write_bytes(path.read_bytes() + b" ")
    assert earlier_feature(path, entry) is None
    path.unlink()
    assert earlier_feature(path, entry) is None


def test_features_without_contents_are_readable_but_not_reused(store: Store) -> None:
    place = store.domain("shop")
    with place.writing("text", {"encoder": "fake"}) as out, out.feature("text", 3, 2) as feature:
        feature.values[:] = 1
    assert place.feature("text").values.shape == (3, 2)
    assert earlier_feature(place.path / "text.arrow", place.entry("text")) is None


def test_a_full_disk_is_reported_before_anything_is_mapped(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    place = store.domain("shop")
    before = (place.path / "text.arrow").read_bytes()

    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with (
        pytest.raises(AntpipeError, match=r"No space left on device; text is as before") as caught,
        building(place, "text", {"encoder": "other"}, "antpipe embed-text --help") as out,
        out.feature("text", 3, 2),
    ):
        raise AssertionError("not reached")
    assert caught.value.next_command == "antpipe embed-text --help"
    assert (place.path / "text.arrow").read_bytes() == before
    assert place.state("text").status == "fresh"
    assert not list(place.path.glob(".new.*"))


def test_ctrl_c_while_building_names_what_is_kept_and_the_next_command(store: Store) -> None:
    place = store.domain("shop")
    with (
        pytest.raises(Interrupted, match="domain shop: interrupted; finished shards are kept") as caught,
        building(place, "text", {"encoder": "other"}, "antpipe embed-text --help"),
    ):
        raise KeyboardInterrupt
    assert caught.value.next_command == "antpipe embed-text --help"
    assert place.state("text").status == "fresh"


def test_cosines_of_zeros() -> None:
    zero, one = np.zeros((1, 2), np.float32), np.array([[2, 0]], np.float32)
    assert [least_cosine(a, b) for a, b in ((zero, zero), (zero, one), (one, zero), (one, -one))] == [1, 0, 0, -1]
    assert least_cosine(zero[:0], zero[:0]) == 1


def test_what_is_left_over_is_removed_after_the_commit_and_not_before(store: Store) -> None:
    place, seen = store.domain("shop"), []
    with pytest.raises(DataError), place.writing("text", {"encoder": "new"}) as out:
        out.afterwards = lambda: seen.append("failed")
        raise DataError("no")
    with place.writing("text", {"encoder": "new"}) as out:
        with out.feature("text", 3, 2):
            pass
        out.afterwards = lambda: seen.append(json.loads((place.path / "manifest.json").read_text())["artefacts"])
    assert [entry["text"]["parameters"]["encoder"] for entry in seen] == ["new"]


def test_tables_have_row_groups_of_moderate_size(store: Store) -> None:
    items = [{"item_id": f"{number:06}"} for number in range(70_000)]
    place = make_domain(store, "big", items, [("u", "000000", 1)])
    groups = pq.ParquetFile(place.path / "items.parquet").metadata
    assert [groups.row_group(n).num_rows for n in range(groups.num_row_groups)] == [65_536, 4_464]
