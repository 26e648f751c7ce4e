"""embed-text when it is interrupted, runs again on a changed catalogue, meets a full disk or another process."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from antpipe.errors import AntpipeError, DataError, Interrupted
from antpipe.features import embed_text as stage
from antpipe.features.ingest.domain import INTERACTIONS, ITEMS, REJECTS, write_domain
from antpipe.features.shards import folder as shard_folder
from antpipe.features.shards.compute import compute_here
from antpipe.settings.features import EngineConfig
from antpipe.store.store import Store
from tests.conftest import REPOSITORY
from tests.support.fake_progress import calling
from tests.support.fake_text_encoder import CONFIG, SHARD, FakeEncoder, embed
from tests.support.shops import make_domain

COUNT = 95
TEXTS = [f"text {number:03}" for number in range(COUNT)]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeEncoder:
    encoder = FakeEncoder()
    encoder.install(monkeypatch)
    return encoder


def shop(folder: Path, texts: list[str] = TEXTS) -> Store:
    """One shop whose items have these texts, in this order."""
    store = Store(folder / "store")
    make_domain(store, "shop", [{"item_id": f"{row:06}", "text": text} for row, text in enumerate(texts)])
    return store


def content(store: Store) -> bytes:
    return (store.domain("shop").path / "text.arrow").read_bytes()


def start(store: Store, log: Path, seconds: float, size: int = SHARD) -> "subprocess.Popen[str]":
    """A process that embeds the shop; returns when it is about to begin."""
    words = [
        sys.executable,
        "-m",
        "tests.support.fake_text_encoder",
        str(store.root),
        str(log),
        str(seconds),
        str(size),
    ]
    child = subprocess.Popen(words, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    return child


def shards_on_disk(store: Store) -> set[int]:
    files = store.domain("shop").path.glob(".shards-text-*/shard-*.arrow")
    return {int(path.stem.removeprefix("shard-")) for path in files}


# -- kills ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("fake")
def test_a_run_killed_again_and_again_ends_with_the_file_of_an_undisturbed_run(tmp_path: Path) -> None:
    undisturbed = shop(tmp_path / "undisturbed")
    embed(undisturbed)
    store, draw, kills = shop(tmp_path / "killed"), random.Random(4), 0
    while True:
        log, finished = tmp_path / f"log-{kills}", shards_on_disk(store)
        child = start(store, log, seconds=0.01)
        if kills < 4:
            time.sleep(draw.uniform(0.01, 0.12))
            child.send_signal(signal.SIGKILL)
            kills += 1
        code = child.wait(60)
        begun = log.read_text().splitlines() if log.exists() else []
        again = {TEXTS.index(text) // SHARD for text in begun[1:] if text in TEXTS[::SHARD]}
        assert not again & finished  # the first line of a log may be that of the sample
        if code == 0:
            break
    assert content(store) == content(undisturbed)
    assert not list(store.domain("shop").path.glob(".shards-*"))
    assert not list(store.domain("shop").path.glob(".new.*"))


def test_an_interrupted_run_continues_after_its_last_shard(
    tmp_path: Path, fake: FakeEncoder, monkeypatch: pytest.MonkeyPatch, messages: list[str]
) -> None:
    whole = shop(tmp_path / "whole")
    embed(whole)
    store = shop(tmp_path / "broken")

    def stop(done: int, *_: object) -> None:
        if done == 5 * SHARD:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted) as caught:
        embed(store, progress=calling(stop))
    assert str(caught.value.next_command).startswith("antpipe embed-text --domains shop ")
    fake.asked.clear()
    monkeypatch.setattr(fake, "reference", None)  # what was settled stands: no sample is drawn again
    embed(store)
    assert fake.texts() == TEXTS[4 * SHARD :]  # the fifth was computed, but not kept
    assert messages == ["4 of 10 shards were finished by an earlier run; continuing"]
    assert content(store) == content(whole)


def test_shards_of_other_settings_or_texts_are_not_continued(tmp_path: Path, fake: FakeEncoder) -> None:
    store = shop(tmp_path)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    for config in (CONFIG, replace(CONFIG, dims=2), replace(CONFIG, shard_size=7)):
        with pytest.raises(KeyboardInterrupt):
            embed(store, config, progress=calling(stop))
        assert len(list(store.domain("shop").path.glob(".shards-text-*"))) == 1
    fake.asked.clear()
    embed(shop(tmp_path, [*TEXTS, "one more"]))
    assert set(fake.texts()) == {*TEXTS, "one more"}


@pytest.mark.usefixtures("fake")
def test_shards_left_by_a_kill_after_the_end_are_removed_by_the_next_run(tmp_path: Path) -> None:
    store = shop(tmp_path)
    embed(store)
    left = store.domain("shop").path / ".shards-text-0123456789ab"
    left.mkdir()
    assert embed(store).status == "fresh"
    assert not left.exists()


# -- a changed catalogue --------------------------------------------------------------------------------------


def test_only_new_and_changed_texts_are_computed_and_their_number_logged(
    tmp_path: Path, fake: FakeEncoder, messages: list[str]
) -> None:
    before = embed(shop(tmp_path))
    fake.asked.clear()
    changed = ["new", *TEXTS[:40], "changed", *TEXTS[41:], TEXTS[3]]
    store = shop(tmp_path, changed)
    result = embed(store)
    assert fake.texts() == ["changed", "changed", "new", "new"]  # in the sample, and in the shard
    assert messages == ["shop: 2 new or changed texts to embed, 94 kept from before"]
    keys = ("items", "texts", "computed", "reused", "shared")
    assert [before.figures[key] for key in keys] == [95, 95, 95, 0, 0]
    assert [result.figures[key] for key in keys] == [97, 96, 2, 94, 1]
    fresh = shop(tmp_path / "fresh", changed)
    embed(fresh)
    assert np.array_equal(store.domain("shop").feature("text").values, fresh.domain("shop").feature("text").values)


def test_items_in_another_order_cost_nothing(tmp_path: Path, fake: FakeEncoder) -> None:
    embed(shop(tmp_path))
    fake.asked.clear()
    result = embed(shop(tmp_path, TEXTS[::-1]))
    assert (fake.asked, result.figures["computed"], result.figures["cosine"]) == ([], 0, 1.0)


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize(
    "change", [{"dims": 2}, {"precision": "fp32"}, {"prefix": "query: "}, {"normalize": True}, {"prompt": "query"}]
)
def test_vectors_made_in_another_way_are_not_kept(tmp_path: Path, change: dict[str, Any]) -> None:
    embed(shop(tmp_path))
    store = shop(tmp_path, TEXTS[1:])  # what is fresh would be replaced only with --force
    assert embed(store, replace(CONFIG, **change)).figures["reused"] == 0


def test_vectors_of_another_revision_are_not_kept(tmp_path: Path, fake: FakeEncoder) -> None:
    store = shop(tmp_path)
    embed(store)
    fake.revision = "2"
    assert embed(store).figures["reused"] == 0


@pytest.mark.usefixtures("fake")
def test_force_recomputes_everything(tmp_path: Path) -> None:
    store = shop(tmp_path)
    embed(store)
    assert embed(store, force=True).figures["computed"] == COUNT


def test_a_shard_that_was_cut_from_new_texts_alone_is_not_one_of_all_texts(
    tmp_path: Path, fake: FakeEncoder, messages: list[str]
) -> None:
    fake.noise = 0.2  # bf16 is wanted, and the sample objects
    embed(shop(tmp_path), replace(CONFIG, precision="fp32"))
    grown = [*(f"new {number}" for number in range(3 * SHARD)), *TEXTS[::-1]]
    store = shop(tmp_path, grown[::-1])

    def stop(done: int, *_: object) -> None:
        if done == 2 * SHARD:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed(store, progress=calling(stop))
    assert shards_on_disk(store) == {0}
    messages.clear()
    assert embed(store, force=True).figures["computed"] == len(grown)
    assert messages == []  # nothing was finished
    fresh = shop(tmp_path / "fresh", grown[::-1])
    embed(fresh)
    assert np.array_equal(store.domain("shop").feature("text").values, fresh.domain("shop").feature("text").values)


# -- precision ------------------------------------------------------------------------------------------------


def test_bf16_that_is_too_far_off_is_given_up_for_fp32_with_a_message(
    tmp_path: Path, fake: FakeEncoder, messages: list[str]
) -> None:
    store = shop(tmp_path)
    fake.noise = 0.2
    embed(store, replace(CONFIG, precision="auto", min_cosine=0.9985))
    assert messages == []  # nobody asked for bf16
    figures = embed(store, force=True).figures
    [message] = messages
    assert message.startswith("shop: the cosine of torch bf16 to fp32 vectors is only 0.9")
    assert message.endswith("(--min-cosine 0.999): computing in fp32 instead")
    assert (figures["precision"], figures["cosine"]) == ("fp32", 1.0)
    plain = shop(tmp_path / "plain")
    embed(plain, replace(CONFIG, precision="fp32"))
    assert np.array_equal(store.domain("shop").feature("text").values, plain.domain("shop").feature("text").values)


def test_a_lower_min_cosine_accepts_bf16_and_the_cosine_is_kept(tmp_path: Path, fake: FakeEncoder) -> None:
    store = shop(tmp_path)
    fake.noise = 0.2
    figures = embed(store, replace(CONFIG, min_cosine=0.5)).figures
    assert figures["precision"] == "bf16"
    assert 0.5 < figures["cosine"] < 0.999
    assert store.domain("shop").entry("text")["encoder"]["precision"] == "bf16"


def test_the_precision_is_chosen_for_the_device_of_the_workers(
    tmp_path: Path, fake: FakeEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not fake.noise
    monkeypatch.setattr(stage, "choose_device", lambda _: "cuda")  # of the machine of the command
    monkeypatch.setattr(stage, "choose_precision", lambda _, device: {"cuda": "bf16", "cpu": "fp32"}[device.type])
    monkeypatch.setattr(stage, "engine_of", lambda *_: compute_here)
    config = replace(CONFIG, device="auto", precision="auto")
    for gpus, precision in ((0.0, "fp32"), (1.0, "bf16")):
        engine = EngineConfig(engine="ray", ray_gpus=gpus)
        assert embed(shop(tmp_path / precision), config, engine=engine).figures["precision"] == precision


def test_once_fp32_was_chosen_a_changed_catalogue_stays_in_fp32(tmp_path: Path, fake: FakeEncoder) -> None:
    fake.noise = 0.2
    embed(shop(tmp_path))
    figures = embed(shop(tmp_path, [*TEXTS, "new"])).figures
    assert (figures["precision"], figures["computed"], figures["reused"]) == ("fp32", 1, COUNT)


def test_a_higher_min_cosine_gives_up_vectors_that_were_good_enough_before(tmp_path: Path, fake: FakeEncoder) -> None:
    store = shop(tmp_path)
    fake.noise = 0.02
    assert embed(store, replace(CONFIG, min_cosine=0.99)).figures["precision"] == "bf16"
    figures = embed(store, replace(CONFIG, min_cosine=0.999999)).figures
    assert (figures["precision"], figures["reused"]) == ("fp32", 0)


def test_an_encoder_whose_batches_differ_from_the_library_even_in_fp32_is_refused(
    tmp_path: Path, fake: FakeEncoder
) -> None:
    store = shop(tmp_path)
    fake.noise32 = 0.2
    with pytest.raises(DataError, match="in batches its vectors are not those of the library"):
        embed(store, replace(CONFIG, precision="fp32"))
    assert "text" not in store.domain("shop").manifest()


# -- disk and other processes ---------------------------------------------------------------------------------


def test_a_full_disk_leaves_the_earlier_vectors_and_the_finished_shards(
    tmp_path: Path, fake: FakeEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed(shop(tmp_path))
    store = shop(tmp_path, [f"{text}!" for text in TEXTS])
    before, sync = content(store), os.fsync
    room = iter(range(5))

    def full(descriptor: int) -> None:
        if next(room, None) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr(shard_folder.os, "fsync", full)
    with pytest.raises(
        AntpipeError, match="No space left on device; text is as before, and finished shards are kept"
    ) as caught:
        embed(store)
    assert str(caught.value.next_command).endswith("--device cpu --precision bf16 --shard-size 10")  # as they were cut
    assert content(store) == before
    assert shards_on_disk(store) == {0, 1, 2}  # the first two writes were notes: how, and with how many threads
    monkeypatch.undo()
    fake.asked.clear()
    with pytest.MonkeyPatch.context() as patch:
        fake.install(patch)
        embed(store)
    assert fake.texts() == [f"{text}!" for text in TEXTS[3 * SHARD :]]


@pytest.mark.usefixtures("fake")
def test_a_second_process_learns_who_is_at_work(tmp_path: Path) -> None:
    store = shop(tmp_path)
    child = start(store, tmp_path / "log", seconds=0.3)
    try:
        while not (tmp_path / "log").exists():
            time.sleep(0.005)
        with pytest.raises(AntpipeError, match=rf"text is being written by process {child.pid} on "):
            embed(store)
    finally:
        child.kill()
        child.wait()
    assert embed(store).status == "built"


# -- memory ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc, as Linux has it")
def test_memory_does_not_grow_with_the_texts(tmp_path: Path) -> None:
    characters, peaks = 2000, []
    for rows in (20_000, 60_000):
        store = Store(tmp_path / str(rows))
        text = pl.format("{} {}", pl.int_range(rows), pl.lit("word " * (characters // 5)))
        others = {"title": "", "currency": "", "price": None, "category": [], "image_urls": [], "image_files": []}
        table = pl.select(pl.int_range(rows).cast(pl.String).alias("item_id"), text.alias("text")).with_columns(
            pl.lit(value, dtype=ITEMS[name]).alias(name) for name, value in others.items()
        )
        write_domain(
            store.new_domain("shop"),
            parameters={"format": "table"},
            items=table,
            interactions=pl.DataFrame([("u", "0", 1, None)], schema=INTERACTIONS, orient="row"),
            rejects=pl.DataFrame(schema=REJECTS),
            report={},
            flags=[],
        )
        del table
        child = start(store, tmp_path / "log", seconds=0, size=2000)
        out, _ = child.communicate(timeout=120)
        figures = json.loads(out)
        assert figures["computed"] == rows
        peaks.append(figures["peak"])
    assert (
        peaks[1] - peaks[0] < 0.5 * 40_000 * characters
    )  # the added texts; buffers of the reader vary by 0.25 of that
