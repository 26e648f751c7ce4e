"""The best items after histories, against scores computed one by one."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from antpipe.core.batches import Examples
from antpipe.core.ranking import PairScores
from antpipe.errors import DataError
from antpipe.evaluation.vectors import as_examples
from antpipe.serving import top
from antpipe.serving.offer import offered
from antpipe.serving.top import top_items

MAX_LEN = 5


def made(rng: np.random.Generator, items: int, histories: int, values: int, more: int) -> tuple[Any, Examples]:
    """Something like an opened run: vectors of few different values, so that many scores tie, and pairs."""
    vectors = rng.integers(-values, values + 1, (items, 3)).astype(np.float32) / 4
    queries = rng.integers(-values, values + 1, (histories, 3)).astype(np.float32) / 4
    pairs = [np.sort(rng.choice(items, min(more, items), replace=False)) for _ in range(histories)]
    added = [rng.choice([-0.5, 0.25, 1.0], len(one)) for one in pairs]

    def of(part: Examples) -> Any:
        def some(rows: Any) -> PairScores:
            keys = [number * items + pairs[part.user[row]] for number, row in enumerate(rows)]
            return PairScores(np.concatenate([added[part.user[row]] for row in rows]), np.concatenate(keys))

        return some

    part = as_examples([rng.integers(0, items, rng.integers(1, 6)).astype(np.int32) for _ in range(histories)], MAX_LEN)
    run = SimpleNamespace(items=vectors, after=lambda some: queries[some.user], added=of, device="cpu")
    return run, part


def one_by_one(run: Any, part: Examples, allowed: Any, k: int, include_seen: bool) -> list[list[tuple[int, float]]]:
    found = []
    for number in range(len(part)):
        scores = run.items.astype(np.float64) @ run.after(part)[number].astype(np.float64)
        more = run.added(part)([number])
        scores[more.keys] += more.scores
        hidden = set() if include_seen else set(part.items[part.start[number] : part.end[number]].tolist())
        left = [row for row in np.flatnonzero(allowed).tolist() if row not in hidden]
        found.append([(row, scores[row]) for row in sorted(left, key=lambda row: (-scores[row], row))[:k]])
    return found


@given(
    seed=st.integers(0, 2**32 - 1),
    items=st.integers(1, 90),
    histories=st.integers(1, 12),
    k=st.integers(1, 40),
    values=st.integers(0, 3),
    more=st.integers(0, 20),
    share=st.sampled_from([0.1, 0.5, 1.0]),
    include_seen=st.booleans(),
)
@example(seed=0, items=90, histories=3, k=2, values=0, more=0, share=1.0, include_seen=False)  # all scores are equal
@settings(max_examples=150, deadline=None)
def test_the_best_items_are_those_found_one_by_one_whatever_the_sizes_of_blocks_and_tiles(
    seed: int, items: int, histories: int, k: int, values: int, more: int, share: float, include_seen: bool
) -> None:
    rng = np.random.default_rng(seed)
    run, part = made(rng, items, histories, values, more)
    allowed = rng.random(items) < share
    allowed[rng.integers(items)] = True
    offer = offered(run, allowed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(top, "HISTORIES_AT_ONCE", int(rng.integers(1, 6)))
        patch.setattr(top, "ITEMS_AT_ONCE", int(rng.integers(1, 100)))
        patch.setattr(top, "GROUP", int(rng.choice([1, 2, 8])))
        found = top_items(run, part, offer, k, include_seen=include_seen)
    expected = one_by_one(run, part, allowed, k, include_seen)
    assert found.rows.shape == (histories, min(k, int(allowed.sum())))
    for rows, scores, wanted in zip(found.rows, found.scores, expected, strict=True):
        real = rows >= 0
        assert rows[real].tolist() == [row for row, _ in wanted]
        assert scores[real].tolist() == pytest.approx([score for _, score in wanted], abs=1e-12)
        assert not real[len(wanted) :].any()
        assert (scores[~real] == -np.inf).all()


def test_vectors_that_are_not_finite_are_refused() -> None:
    run, part = made(np.random.default_rng(0), 8, 2, 2, 0)
    offer = offered(run, np.ones(8, np.bool_))
    run.after = lambda some: np.full((len(some), 3), np.nan, np.float32)
    with pytest.raises(DataError, match="not finite"):
        top_items(run, part, offer, 2)
