"""embed-image on Ray workers: what travels to them and what comes back, tested without a cluster."""

import contextlib
import pickle
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from antpipe.features.embed_image import embed_image
from antpipe.features.shards import ray as engine_ray
from antpipe.features.shards.cluster import number_of
from antpipe.features.shards.ray import Worker, WorkerTask
from antpipe.settings.features import EngineConfig, ImageConfig
from antpipe.store.store import Store
from tests.support.fake_embedder import Stopped
from tests.support.fake_encoders import tiny_encoder
from tests.support.shops import picture, picture_shop

FILES = {**{str(seed): picture(seed) for seed in range(6)}, "bad": b"junk", "empty": b"", "gone": picture(7)}
SHOP = {
    "A": ["0", "1"],
    "B": ["2", "bad"],
    "C": ["1", "0"],
    "D": [],
    "E": ["3"],
    "F": ["4", "5"],
    "G": ["empty"],
    "H": ["gone", "0"],
}
ON_RAY = EngineConfig(engine="ray", threads=1, ray_workers=1)


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ImageConfig:
    return replace(tiny_encoder(tmp_path, monkeypatch), shard_size=2, batch_size=2)


def shop_in(folder: Path) -> Store:
    store = Store(folder)
    picture_shop(store, FILES, SHOP)
    return store


def one_worker(monkeypatch: pytest.MonkeyPatch, hide: Path | None = None) -> list[bytes]:
    """A worker in this process that gets pickled tasks. hide: a folder it does not see. Returns the tasks."""
    tasks: list[bytes] = []

    def computed(_: type, task: WorkerTask, rows: Sequence[dict[str, Any]], *__: Any) -> Iterator[int]:
        tasks.append(pickle.dumps(task))
        if hide is not None:
            shutil.rmtree(hide)
        worker = Worker(pickle.loads(tasks[-1]))
        for row in rows:
            batch = {"number": np.array([row["number"]]), "rows": np.array([row["rows"]], object)}
            yield number_of(worker(batch))

    for name in ("cluster", "silence"):
        monkeypatch.setattr(engine_ray, name, lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(engine_ray, "computed", computed)
    monkeypatch.setattr(engine_ray, "worker_count", lambda *_: 1)
    return tasks


def artefacts(store: Store) -> list[bytes]:
    folder = store.domain("shop").path
    return [(folder / name).read_bytes() for name in ("image.arrow", "unreadable.parquet")]


def missing_picture(store: Store) -> None:
    [path] = (store.domain("shop").path).rglob("gone*")
    path.unlink()


@pytest.mark.parametrize(("travel", "shards"), [(True, 6), (False, 1)])
def test_shards_of_pictures_that_travel_have_a_limit_of_bytes(
    tmp_path: Path,
    tiny: ImageConfig,
    monkeypatch: pytest.MonkeyPatch,
    messages: list[str],
    travel: bool,
    shards: int,
) -> None:
    monkeypatch.setattr("antpipe.features.embed_image.SHARD_BYTES", 1)
    one_worker(monkeypatch)
    engine = replace(ON_RAY, shards=str(tmp_path / "exchange") if travel else None)
    embed_image(shop_in(tmp_path), "shop", replace(tiny, shard_size=100), engine=engine)
    assert messages[-1].startswith(f"{shards} shard")


def test_the_precision_is_chosen_for_the_device_of_the_workers(
    tmp_path: Path, tiny: ImageConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def chosen(_: str, device: Any) -> str:
        seen.append(device.type)
        raise Stopped

    monkeypatch.setattr("antpipe.features.embed_image.choose_precision", chosen)
    for gpus in (1.0, 0.0):
        with pytest.raises(Stopped):
            embed_image(shop_in(tmp_path), "shop", replace(tiny, device="auto"), engine=replace(ON_RAY, ray_gpus=gpus))
    assert seen == ["cuda", "cpu"]


@pytest.mark.parametrize("seen", [True, False])
def test_workers_that_see_no_picture_give_the_same_bytes(
    tmp_path: Path, tiny: ImageConfig, monkeypatch: pytest.MonkeyPatch, seen: bool
) -> None:
    here, there = shop_in(tmp_path / "here"), shop_in(tmp_path / "there")
    missing_picture(here)
    missing_picture(there)
    embed_image(here, "shop", tiny)
    [pictures] = {path.parent for path in there.domain("shop").path.rglob("0*") if path.is_file()}
    tasks = one_worker(monkeypatch, None if seen else pictures)
    engine = ON_RAY if seen else replace(ON_RAY, shards=f"file://{tmp_path}/exchange")
    embed_image(there, "shop", tiny, engine=engine)
    assert artefacts(there) == artefacts(here)
    assert len(tasks) == 1
    assert pictures.as_posix().encode() not in tasks[0]  # the list of all files is not sent
    assert list(tmp_path.glob("exchange/*")) == []
