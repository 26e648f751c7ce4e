"""`recommend` on a shop whose users walk around a ring of items."""

from pathlib import Path

import pytest

from antpipe.serving.recommend import recommend
from antpipe.store.store import Store
from tests.support.trainable import make_trainable, train_quickly


@pytest.mark.parametrize(("titles", "word"), [(True, "item"), (False, "text")])
def test_an_item_without_a_title_is_shown_with_its_text(tmp_path: Path, titles: bool, word: str) -> None:
    store = Store(tmp_path / "store")
    make_trainable(store, "Ring", titles=titles)
    train_quickly(store, "scratch", ["Ring"], tmp_path / "run", epochs=1)
    rows = recommend(store, tmp_path / "run", "Ring", items=["i003"], k=4)
    assert [row["title"] for row in rows] == [f"{word} {int(row['item_id'][1:])}" for row in rows]


def test_a_trained_model_suggests_the_items_that_follow_on_the_ring(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    make_trainable(store, "Ring")
    train_quickly(store, "scratch", ["Ring"], tmp_path / "run", epochs=60, lr=4e-3)
    rows = recommend(store, tmp_path / "run", "Ring", items=["i003", "i004"], k=5)
    assert "i005" in [row["item_id"] for row in rows]
    assert not {"i003", "i004"} & {row["item_id"] for row in rows}
    assert [row["score"] for row in rows] == sorted((row["score"] for row in rows), reverse=True)
