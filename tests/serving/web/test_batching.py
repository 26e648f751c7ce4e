"""Requests answered together get what each would get alone, and one that fails does not disturb the others."""

import asyncio
import threading
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from antpipe.core.scoring import history_vectors
from antpipe.errors import DataError
from antpipe.evaluation.vectors import as_examples
from antpipe.serving.offer import offer_of
from antpipe.serving.recommend import NOBODY, Wishes, best_after
from antpipe.serving.web import batching
from antpipe.serving.web.batching import Batcher, Best, Question, answer_together
from antpipe.serving.web.held import HeldRun, Offers, bytes_of, vectors_together

Hold = Callable[[str], HeldRun]


def doubled(asked: Sequence[int]) -> list[int | Exception]:
    return [2 * one if one >= 0 else DataError(f"{one} is negative") for one in asked]


def test_requests_of_one_moment_are_answered_together() -> None:
    sizes: list[int] = []

    async def main() -> list[int]:
        batcher = Batcher(doubled, most=64, wait=0.05, counted=sizes.append)
        found = await asyncio.gather(*(batcher.ask(number) for number in range(10)))
        await batcher.close()
        return found

    assert asyncio.run(main()) == [2 * number for number in range(10)]
    assert sizes == [10]


def test_a_full_batch_does_not_wait_and_holds_no_more_than_allowed() -> None:
    sizes: list[int] = []

    async def main() -> list[int]:
        batcher = Batcher(doubled, most=4, wait=60.0, counted=sizes.append)
        found = await asyncio.wait_for(asyncio.gather(*(batcher.ask(number) for number in range(8))), 10)
        await batcher.close()
        return found

    assert asyncio.run(main()) == [2 * number for number in range(8)]
    assert sizes == [4, 4]


def test_what_fails_in_a_batch_fails_alone() -> None:
    async def main() -> list[int | BaseException]:
        batcher = Batcher(doubled, most=8, wait=0.01)
        found = await asyncio.gather(*(batcher.ask(number) for number in (1, -1, 2)), return_exceptions=True)
        await batcher.close()
        return found

    one, error, two = asyncio.run(main())
    assert (one, two) == (2, 4)
    assert isinstance(error, DataError)


def test_a_bug_in_one_batch_does_not_stop_the_next() -> None:
    def broken_once(asked: Sequence[int]) -> list[int]:
        if 0 in asked:
            raise ZeroDivisionError
        return list(asked)

    async def main() -> int:
        batcher = Batcher(broken_once, most=8, wait=0.0)
        with pytest.raises(ZeroDivisionError):
            await batcher.ask(0)
        found = await batcher.ask(1)
        await batcher.close()
        return found

    assert asyncio.run(main()) == 1


def test_who_gave_up_is_not_answered() -> None:
    seen: list[int] = []
    may_go = threading.Event()

    def slow(asked: Sequence[int]) -> list[int]:
        may_go.wait(10)
        seen.extend(asked)
        return list(asked)

    async def main() -> int:
        batcher = Batcher(slow, most=1, wait=0.0)
        first = asyncio.create_task(batcher.ask(1))
        given_up = asyncio.create_task(batcher.ask(2))
        last = asyncio.create_task(batcher.ask(3))
        await asyncio.sleep(0.05)
        given_up.cancel()
        may_go.set()
        found = await first + await last
        await batcher.close()
        return found

    assert asyncio.run(main()) == 4
    assert seen == [1, 3]


@pytest.mark.parametrize("name", ["plain", "strong", "history", "floor"])
def test_mixed_questions_are_answered_as_each_would_be_alone(held: Hold, name: str) -> None:
    run = held(name)
    some = offer_of(run, "stock > 9")
    questions = [
        Question(run, history, offer, wishes)
        for history in (*list(run.histories.values())[:6], NOBODY)
        for offer in (run.everything, some)
        for wishes in (Wishes(3), Wishes(9), Wishes(4, include_seen=True), Wishes(4, diversify=0.5), Wishes(100))
    ]
    for one, found in zip(questions, answer_together(questions), strict=True):
        assert isinstance(found, Best)
        alone = best_after(run, [one.history], one.offer, one.wishes)
        kept = alone.rows[0] >= 0
        assert found.rows.tolist() == alone.rows[0][kept].tolist()
        assert found.scores == pytest.approx(alone.scores[0][kept], abs=2e-6)


def test_questions_of_one_kind_share_one_search(held: Hold, monkeypatch: pytest.MonkeyPatch) -> None:
    run, calls = held("plain"), []

    def counted(*given: object) -> object:
        calls.append(given)
        return best_after(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(batching, "best_after", counted)
    histories = list(run.histories.values())
    answer_together([Question(run, history, run.everything, Wishes(k)) for k, history in enumerate(histories, 1)])
    assert len(calls) == 1


@pytest.mark.parametrize("name", ["plain", "strong"])
@pytest.mark.parametrize("count", [1, 2, 30])
def test_one_pass_for_all_histories_gives_the_vectors_of_passes_by_length(held: Hold, name: str, count: int) -> None:
    run = held(name)
    part = as_examples(list(run.histories.values())[:count], run.max_len)
    found = vectors_together(run.model, run.encoded, part).numpy()
    assert found == pytest.approx(history_vectors(run.model, run.encoded, part).numpy(), abs=2e-6)


def test_offers_used_last_are_kept_within_their_bytes(held: Hold) -> None:
    run = held("plain")
    one = bytes_of(run, offer_of(run, "stock < 20"))
    offers = Offers(run, int(2.5 * one))
    first = offers.get("stock < 20")
    assert offers.get("stock < 20") is first
    second = offers.get("stock >= 20")
    offers.get("stock < 20")
    offers.get("stock > 20")
    assert offers.get("stock < 20") is first
    assert offers.get("stock >= 20") is not second
    assert offers.size <= offers.most
    assert offers.get(None) is run.everything
    assert np.array_equal(offers.get("stock >= 20").rows, second.rows)
