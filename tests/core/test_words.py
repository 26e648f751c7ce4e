"""Word neighbours: TF-IDF by hand, what counts as a word, and bounds."""

import numpy as np
import pytest

from antpipe.core import words
from antpipe.core.words import word_neighbours


def test_neighbours_share_rare_words_and_pairs_of_words() -> None:
    found = word_neighbours(["red scarf", "red scarf", "red mitten", "kettle"]).toarray()
    # "red" is in three of four texts, "scarf" and "red scarf" in two; idf is ln((1 + n) / (1 + texts with it)) + 1.
    red, scarf = np.log(5 / 4) + 1, np.log(5 / 3) + 1
    assert found[0, 1] == pytest.approx(1)
    assert found[0, 2] == pytest.approx(red / np.sqrt(red**2 + 2 * scarf**2))
    assert found[2, 0] == pytest.approx(found[0, 2])
    assert not found[3].any()
    assert not found.diagonal().any()


def test_a_word_counts_once_per_text() -> None:
    found = word_neighbours(["red red red scarf", "red wool", "scarf wool", "red"]).toarray()
    assert np.allclose(found, word_neighbours(["red scarf", "red wool", "scarf wool", "red"]).toarray())


def test_only_the_closest_neighbours_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["alpha beta gamma", "alpha beta", "alpha delta", "gamma delta", "beta epsilon epsilon"]
    whole = word_neighbours(texts).toarray()
    monkeypatch.setattr(words, "NEIGHBOURS", 2)
    monkeypatch.setattr(words, "ROWS_AT_ONCE", 2)
    found = word_neighbours(texts).toarray()
    for row, all_of_it in zip(found, whole, strict=True):
        assert sorted(row[row > 0]) == pytest.approx(sorted(all_of_it[all_of_it > 0])[-2:])
        assert ((row == 0) | np.isclose(row, all_of_it)).all()


def test_a_word_of_too_many_items_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "MOST_ITEMS", 2)
    found = word_neighbours(["shop red", "shop red", "shop blue", "shop"]).toarray()
    assert found[0, 1] == pytest.approx(1)
    assert found.sum() == pytest.approx(2)


@pytest.mark.parametrize("texts", [[], ["one"], ["", None], [None, None], ["a b", "c d"], ["unique", "words", "only"]])
def test_shops_without_common_words_have_no_neighbours(texts: list[str | None]) -> None:
    found = word_neighbours(texts)
    assert found.shape == (len(texts), len(texts))
    assert found.nnz == 0


def test_new_items_change_nothing_among_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "NEIGHBOURS", 1)
    texts = ["red scarf", "red scarf wool", "blue scarf", "blue kettle"]
    before, after = word_neighbours(texts).toarray(), word_neighbours(texts, ["blue kettle", "unheard of"]).toarray()
    assert (after[:4, :4] == before).all()
    assert after[3, 4] == pytest.approx(1)  # closer than the only neighbour kept
    assert after[0, 4] == 0
    assert after[4, 3] == pytest.approx(1)
    assert not after[5].any()
