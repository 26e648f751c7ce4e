"""Similar items: by item vectors, features and ids."""

from collections.abc import Callable

import numpy as np
import pytest

from antpipe.errors import DataError, UsageError
from antpipe.evaluation.vectors import OpenRun
from antpipe.serving.offer import offer_of
from antpipe.serving.similar import similar_items
from tests.serving.conftest import ITEMS, item_id

Open = Callable[[str], OpenRun]


def cosines(vectors: np.ndarray, row: int) -> np.ndarray:
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return np.asarray(unit @ unit[row])


@pytest.mark.parametrize("by", ["fused", "text", "image", "price", "id"])
def test_items_are_ordered_by_the_cosine_of_what_is_compared(opened: Open, by: str) -> None:
    run = opened("strong")
    if by == "fused":
        vectors = run.encoded.numpy()
    elif by == "id":
        vectors = run.model.ids.weight.detach().numpy()  # type: ignore[union-attr]
    else:
        vectors = run.domain.feature(by).values.astype(np.float32)
    expected = cosines(vectors, 7)
    rows = similar_items(run, item_id(7), by, k=ITEMS)
    assert [row["score"] for row in rows] == sorted((row["score"] for row in rows), reverse=True)
    for row in rows:
        assert row["score"] == pytest.approx(expected[int(row["item_id"][1:])], abs=1e-5)
    lacking = {item_id(int(n)) for n in np.flatnonzero(np.linalg.norm(vectors, axis=1) == 0)}
    assert {row["item_id"] for row in rows} == {item_id(n) for n in range(ITEMS) if n != 7} - lacking


def test_similar_items_keep_to_the_offer(opened: Open) -> None:
    run = opened("plain")
    rows = similar_items(run, item_id(7), k=3, offer=offer_of(run, "in_stock and price > 30"))
    assert all(int(row["item_id"][1:]) % 2 == 1 and int(row["item_id"][1:]) >= 30 for row in rows)
    assert [row["rank"] for row in rows] == [1, 2, 3]


def test_an_item_that_lacks_the_modality_is_an_error_that_says_so(opened: Open) -> None:
    with pytest.raises(DataError, match="item 'i00' has no text to compare"):
        similar_items(opened("plain"), item_id(0), "text")


def test_what_the_run_does_not_read_is_refused_with_what_it_reads(opened: Open) -> None:
    with pytest.raises(UsageError, match="reads no id; choose from fused, text, image, price"):
        similar_items(opened("plain"), item_id(1), "id")


def test_an_unknown_item_is_an_error(opened: Open) -> None:
    with pytest.raises(DataError, match="no item 'x'"):
        similar_items(opened("plain"), "x")
