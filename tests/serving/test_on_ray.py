"""A batch on a Ray cluster: the file that this process writes, and what is refused."""

from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="pip install 'antpipe[ray]'")
import polars as pl
from polars.testing import assert_frame_equal

from antpipe.errors import AntpipeError, SameCommand, UsageError
from antpipe.features.shards.cluster import number_of, versions
from antpipe.serving import batch
from antpipe.serving.batch import Part, key_of_request
from antpipe.serving.on_ray import BatchTask, BatchWorker, engine_for
from antpipe.serving.prepare import BatchRequest, prepare
from antpipe.settings.features import EngineConfig
from antpipe.settings.serving import RecommendConfig
from antpipe.store.store import Store
from tests.serving.conftest import USERS
from tests.support.commands import run
from tests.support.places import check_refusal


def request_of(shop: Path, domain: str = "Shop") -> BatchRequest:
    return BatchRequest(Store(shop / "store"), shop / "runs" / "strong", domain, RecommendConfig(k=4), users="all")


def worker_of(request: BatchRequest, folder: Path, key: str | None = None) -> BatchWorker:
    ready = prepare(request)
    own = key_of_request(ready.opened, ready.audience, ready.offer, ready.wishes)
    parts = {n: Part(n, slice(10 * n, 10 * n + 10), folder / f"part-{n:05}.parquet", "key") for n in range(USERS // 10)}
    return BatchWorker(BatchTask(request, key or own, parts, 1, versions()))


@pytest.mark.slow
def test_a_cluster_writes_the_file_of_one_process(shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "LARGEST_PART", 7)
    asked = ["recommend", "--run", shop / "runs" / "strong", "--domains", "Shop", "--store", shop / "store"]
    asked += ["--users", "all", "--k", "4"]
    flags = ["--engine", "ray", "--ray-workers", "2", "--ray-cpus", "1"]
    assert run(*asked, "--out", tmp_path / "here.parquet").code == 0
    done = run(*asked, "--out", tmp_path / "ray.parquet", *flags)
    assert done.code == 0, done.err
    assert "5 parts on 2 Ray workers" in done.err
    assert_frame_equal(pl.read_parquet(tmp_path / "ray.parquet"), pl.read_parquet(tmp_path / "here.parquet"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here.parquet", "ray.parquet"]


def test_a_worker_writes_what_is_missing_and_opens_the_run_once(shop: Path, tmp_path: Path) -> None:
    worker = worker_of(request_of(shop), tmp_path)
    (tmp_path / "part-00001.parquet").write_bytes(b"there")
    assert [number_of(worker({"number": [n]})) for n in range(3)] == [0, 1, 2]
    assert (tmp_path / "part-00001.parquet").read_bytes() == b"there"
    ready = worker.prepared
    assert ready is not None
    expected = batch.recommend_to_file(
        *(ready.opened, ready.audience, ready.offer, ready.wishes), tmp_path / "all.parquet"
    )
    whole = pl.read_parquet(expected.path)
    parts = pl.concat([pl.read_parquet(tmp_path / f"part-{n:05}.parquet") for n in (0, 2)])
    assert_frame_equal(parts, pl.concat([whole[:40], whole[80:]]))


def test_a_worker_that_reads_other_files_says_so(shop: Path, tmp_path: Path) -> None:
    worker = worker_of(request_of(shop), tmp_path, key="another")
    with pytest.raises(AntpipeError, match="reads another run, store or file"):
        number_of(worker({"number": [0]}))


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"shards": "s3://bucket"}, "--shards"),
        ({"ray_gpus": 1.0}, "--ray-gpus 1: recommend computes on CPUs"),
        ({"engine": "local", "ray_workers": 2}, "--ray-workers: only with --engine ray"),
    ],
)
def test_settings_that_do_not_fit_are_refused(shop: Path, settings: dict[str, object], why: str) -> None:
    request = request_of(shop)
    config = replace(EngineConfig(engine="ray"), **settings)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=why):
        engine_for(config, request, prepare(request))


def test_workers_compute_on_cpus(shop: Path) -> None:
    request = request_of(shop)
    prepared = prepare(request)
    on_gpu = replace(request, settings=replace(request.settings, device="cuda"))
    with pytest.raises(UsageError, match="--device cuda: workers of Ray compute on CPUs") as refused:
        engine_for(EngineConfig(engine="ray"), on_gpu, prepared)
    assert refused.value.next_command == SameCommand(without=("--device",))


def test_an_engine_for_one_user_is_refused(shop: Path) -> None:
    asked = ["recommend", "--run", shop / "runs" / "strong", "--domains", "Shop", "--store", shop / "store"]
    refused = run(*asked, "--user", "u03", "--engine", "ray")
    check_refusal(refused, 2, "--engine: only with --users or --items-file", next_command="--user u03")
