"""Example users: their histories, what is recommended, hits, and pictures."""

import base64
import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from antpipe.core.batches import examples
from antpipe.features.image import pictures as picture_files
from antpipe.report import users
from antpipe.report.users import Pictures, examples_of, open_as_judged, thumbnail
from antpipe.store.store import Store
from tests.support.shops import picture


def test_a_user_has_history_recommendations_and_what_came_next(compared_shop: Path) -> None:
    store = Store(compared_shop / "store")
    opened = open_as_judged(store, compared_shop / "runs" / "scratch-0", "Kites")
    shown, count = examples_of({"scratch": opened}, 100, 30, 0, Pictures(), protocol="all")
    part = examples(opened.domain.sequences(), "test")
    assert (len(shown), count) == (len(part), len(part))
    first = shown[0]
    history = part.items[part.start[0] : part.end[0]]
    assert [card.item_id for card in first.history] == [opened.item_ids[row] for row in history[-6:]]
    assert first.earlier == max(0, len(history) - 6)
    assert first.bought.item_id == opened.item_ids[part.targets()[0]]
    [suggested] = first.lists
    assert len(suggested.cards) == 30  # the whole catalogue: what came next is among them
    assert suggested.place is not None
    assert [card.hit for card in suggested.cards].index(True) + 1 == suggested.place
    assert suggested.cards[suggested.place - 1].item_id == first.bought.item_id
    assert first.hit


def test_hits_among_the_first_ten_are_those_of_the_evaluation(compared_shop: Path) -> None:
    from antpipe.report.findings import gather

    [one] = gather([], [compared_shop / "cmp"]).judged
    path = one.folders["scratch"][0]
    opened = open_as_judged(Store(compared_shop / "store"), path, "Kites")
    shown, count = examples_of({"scratch": opened}, 1000, 10, 0, Pictures(), protocol="all")
    hits = sum(example.hit for example in shown) / count
    assert hits == pytest.approx(one.metric_of("scratch", "recall@10")["seeds"][0])


def test_under_unseen_no_item_of_the_history_comes_again(compared_shop: Path) -> None:
    opened = open_as_judged(Store(compared_shop / "store"), compared_shop / "runs" / "scratch-0", "Kites")
    shown, _ = examples_of({"scratch": opened}, 10, 30, 0, Pictures(), protocol="unseen")
    for example in shown:
        assert not {card.item_id for card in example.history} & {card.item_id for card in example.lists[0].cards}


def test_prices_are_those_of_the_catalogue(compared_shop: Path) -> None:
    opened = open_as_judged(Store(compared_shop / "store"), compared_shop / "runs" / "scratch-0", "Kites")
    cards = users.cards_of(opened, [0, 1, 9], Pictures())
    assert [card.price for card in cards.values()] == ["", "2.50 EUR", "10.50 EUR"]


def test_a_picture_becomes_a_small_jpeg_once(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    path.write_bytes(picture(1, (1000, 500)))
    pictures = Pictures()
    assert (pictures.of(path), pictures.of(path)) == ("p0", "p0")
    [url] = pictures.urls.values()
    image = Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/jpeg;base64,"))))
    assert image.size == (112, 56)


def test_what_is_transparent_becomes_white(tmp_path: Path) -> None:
    path = tmp_path / "clear.png"
    Image.new("RGBA", (20, 20), (0, 0, 0, 0)).save(path)
    content = thumbnail(path)
    assert content is not None
    assert np.asarray(Image.open(io.BytesIO(content))).min() > 250


def test_missing_and_damaged_pictures_are_counted(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no picture")
    pictures = Pictures()
    assert [pictures.of(tmp_path / name) for name in ("bad.png", "gone.png")] == ["", ""]
    assert pictures.of(None) == ""
    assert (pictures.missing, pictures.urls) == (2, {})


def test_a_picture_in_a_format_that_embed_image_does_not_read_is_left_out(tmp_path: Path) -> None:
    Image.new("RGB", (20, 20)).save(tmp_path / "a.eps")
    Image.new("RGB", (20, 20)).save(tmp_path / "a.ppm")
    assert [thumbnail(tmp_path / name) for name in ("a.eps", "a.ppm")] == [None, None]


def test_a_picture_file_beyond_the_limit_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(picture(1))
    monkeypatch.setattr(picture_files, "MOST_BYTES", 10)
    assert thumbnail(tmp_path / "a.png") is None


def test_nobody_waits_for_a_pipe_in_place_of_a_picture(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    assert thumbnail(tmp_path / "a.png") is None


def test_no_more_bytes_of_pictures_are_taken_than_there_is_room_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(picture(number, (200, 200)))
    first = thumbnail(tmp_path / "0.png")
    assert first is not None
    monkeypatch.setattr(users, "MOST_BYTES", len(first))
    pictures = Pictures()
    assert [pictures.of(tmp_path / f"{number}.png") for number in range(3)] == ["p0", "", ""]
    assert pictures.left == 2
    assert Pictures(wanted=False).of(tmp_path / "0.png") == ""
