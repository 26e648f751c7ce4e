"""embed-image continues where it was stopped, and computes only what is new or changed."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from antpipe.errors import DataError
from antpipe.features.embed_image import embed_image
from antpipe.features.image import prefetch
from antpipe.features.image.embedder import ImageEmbedder
from antpipe.features.image.pictures import PictureFile
from antpipe.features.shards.folder import ShardVectors
from antpipe.settings.features import ImageConfig
from antpipe.store.files import file_sha256
from antpipe.store.store import Store
from tests.support.fake_encoders import tiny_encoder
from tests.support.fake_progress import calling
from tests.support.interruptions import Killed, failing_at
from tests.support.shops import picture, picture_shop

FILES = {**{str(seed): picture(seed) for seed in range(6)}, "bad": b"junk", "empty": b""}
SHOP = {
    "A": ["0", "1"],
    "B": ["2", "bad"],
    "C": ["1", "0"],
    "D": [],
    "E": ["3"],
    "F": ["4", "5", "0", "1"],
    "G": ["empty"],
}


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ImageConfig:
    return replace(tiny_encoder(tmp_path, monkeypatch), shard_size=2, batch_size=2)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many items each call of an embedder was given."""
    calls: list[int] = []
    embed = ImageEmbedder.__call__

    def counted(
        self: ImageEmbedder, contents: Sequence[Sequence[PictureFile]], advance: Callable[[int], None]
    ) -> ShardVectors:
        calls.append(len(contents))
        return embed(self, contents, advance)

    monkeypatch.setattr(ImageEmbedder, "__call__", counted)
    return calls


def artefact(store: Store) -> str:
    return file_sha256(store.domain("shop").path / "image.arrow")


def vectors(store: Store) -> dict[str, Any]:
    domain = store.domain("shop")
    return dict(zip(domain.item_ids(), domain.feature("image").values.copy(), strict=True))


def listed_bad(store: Store) -> list[tuple[str, str]]:
    """(item, why) of every picture that could not be used."""
    domain = store.domain("shop")
    ids, rows = domain.item_ids(), pq.read_table(domain.path / "unreadable.parquet").to_pylist()
    return [(ids[row["item"]], row["why"]) for row in rows]


JUNK = "not a picture: formats read: JPEG, PNG, WEBP, GIF, BMP, TIFF, AVIF"


def exact(config: ImageConfig) -> ImageConfig:
    """Without the comparison of a sample, which calls embedders too."""
    return replace(config, decode="exact")


@pytest.mark.parametrize("batch", range(1, 6))
def test_a_run_killed_at_any_batch_is_finished_to_the_same_bytes(
    store: Store,
    tiny: ImageConfig,
    batch: int,
    embedded: list[int],
    monkeypatch: pytest.MonkeyPatch,
    messages: list[str],
) -> None:
    picture_shop(store, FILES, SHOP)
    embed_image(store, "shop", exact(tiny))
    whole, listed = artefact(store), listed_bad(store)
    assert embedded == [2, 2, 1]  # A and C have the same pictures, D has none
    (store.domain("shop").path / "manifest.json").unlink()
    picture_shop(store, FILES, SHOP)
    embedded.clear()
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(prefetch, "stacked", failing_at(batch, prefetch.stacked, Killed(), after=False))
        embed_image(store, "shop", exact(tiny))
    finished = len(embedded) - 1
    embedded.clear()
    messages.clear()
    result = embed_image(store, "shop", exact(tiny))
    assert embedded == [2, 2, 1][finished:]
    assert messages == ([f"{finished} of 3 shards were finished by an earlier run; continuing"] if finished else [])
    assert (artefact(store), listed_bad(store)) == (whole, listed)
    assert result.figures["computed"] == 5
    assert not list(store.domain("shop").path.glob(".shards-*"))


def test_only_new_and_changed_items_are_computed(
    store: Store, tiny: ImageConfig, embedded: list[int], messages: list[str]
) -> None:
    picture_shop(store, FILES, SHOP)
    embed_image(store, "shop", exact(tiny))
    before = vectors(store)
    embedded.clear()
    files = {**FILES, "3": picture(30), "new": picture(31)}
    picture_shop(store, files, {**SHOP, "AA": ["new"], "F": ["1", "0", "5", "4"], "H": ["2", "bad"]})
    result = embed_image(store, "shop", exact(tiny))
    after = vectors(store)
    # E has another picture, AA is new, G has no vector and is tried again; only the order of F's pictures changed.
    assert sum(embedded) == 3
    assert messages == ["shop: 3 new or changed items to embed, 3 kept from before"]
    assert {name: result.figures[name] for name in ("computed", "reused", "shared")} == {
        "computed": 3,
        "reused": 3,
        "shared": 2,
    }
    for item in ("A", "B", "C", "D", "F", "G"):
        assert np.array_equal(after[item], before[item])
    assert not np.array_equal(after["E"], before["E"])
    assert np.array_equal(after["H"], before["B"])


def test_bad_pictures_of_kept_items_are_still_listed(store: Store, tiny: ImageConfig) -> None:
    picture_shop(store, FILES, SHOP)
    embed_image(store, "shop", exact(tiny))
    assert listed_bad(store) == [("B", JUNK), ("G", "empty file")]
    domain = picture_shop(store, FILES, {"0": ["bad", "2"], **SHOP})
    result = embed_image(store, "shop", exact(tiny))
    assert listed_bad(store) == [("0", JUNK), ("B", JUNK), ("G", "empty file")]
    assert result.figures["unreadable"] == 3
    entry = domain.entry("image")
    assert entry["unreadable_reasons"] == {"not a picture": 2, "empty file": 1}
    assert [one["item"] for one in entry["unreadable"]] == ["0", "B", "G"]
    assert entry["unreadable"][0]["file"] == f"{domain.entry('items')['images']}/bad"


def test_without_the_list_of_bad_pictures_everything_is_recomputed(store: Store, tiny: ImageConfig) -> None:
    domain = picture_shop(store, FILES, SHOP)
    embed_image(store, "shop", exact(tiny))
    (domain.path / "unreadable.parquet").unlink()
    picture_shop(store, FILES, {**SHOP, "H": ["5"]})
    assert embed_image(store, "shop", exact(tiny)).figures["reused"] == 0
    assert listed_bad(store) == [("B", JUNK), ("G", "empty file")]


def test_force_recomputes_everything(store: Store, tiny: ImageConfig) -> None:
    picture_shop(store, FILES, SHOP)
    embed_image(store, "shop", exact(tiny))
    figures = embed_image(store, "shop", exact(tiny), force=True).figures
    assert (figures["computed"], figures["reused"]) == (5, 0)


@pytest.mark.parametrize("change", [{"normalize": True}, {"dims": 8}, {"precision": "bf16"}, {"decode": "scaled"}])
def test_vectors_made_in_another_way_are_not_kept(store: Store, tiny: ImageConfig, change: dict[str, Any]) -> None:
    picture_shop(store, FILES, SHOP)
    embed_image(store, "shop", exact(tiny))
    picture_shop(store, FILES, {**SHOP, "H": ["0"]})  # what is fresh would be replaced only with --force
    result = embed_image(store, "shop", replace(exact(tiny), min_cosine=0.5, **change))
    assert (result.status, result.figures["reused"]) == ("built", 0)


def test_a_higher_min_cosine_alone_keeps_the_vectors(store: Store, tiny: ImageConfig, embedded: list[int]) -> None:
    picture_shop(store, FILES, SHOP)
    embed_image(store, "shop", exact(tiny))
    embedded.clear()
    result = embed_image(store, "shop", replace(exact(tiny), min_cosine=0.9999))
    assert result.status == "built"
    assert sum(embedded) == 1  # only G, which has no vector


def test_a_picture_that_changes_while_others_are_embedded_ends_the_run(
    store: Store, tiny: ImageConfig, tmp_path: Path
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    picture_shop(store, {}, {"A": [], "B": [], "C": []})
    for seed, item in enumerate("ABC"):
        (folder / f"{item}.png").write_bytes(picture(seed))
    config = replace(exact(tiny), images=folder, shard_size=1)

    def change(done: int, _total: int, _note: str) -> None:
        if done == 1:
            (folder / "C.png").write_bytes(picture(9))

    with pytest.raises(DataError, match="changed while they were embedded") as caught:
        embed_image(store, "shop", config, progress=calling(change))
    command = str(caught.value.next_command)
    assert command.startswith("antpipe embed-image")
    assert "--batch-size 2 --shard-size 1" in command  # finished shards only count for the same steps
    assert "image" not in store.domain("shop").manifest()
    assert embed_image(store, "shop", config).figures["present"] == 3
