"""Concurrent requests answered together: one pass of the encoder and one search for all that wait."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from antpipe.core.catalogue import Ints
from antpipe.core.ranking import Doubles
from antpipe.errors import AntpipeError
from antpipe.evaluation.vectors import History
from antpipe.serving.offer import Offer
from antpipe.serving.recommend import Wishes, best_after
from antpipe.serving.web.held import HeldRun

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Question:
    """One search for the best items. held: the run that answers, even if another one is loaded meanwhile."""

    held: HeldRun
    history: History
    offer: Offer
    wishes: Wishes


@dataclass(frozen=True)
class Best:
    """The best items, (k,) rows and scores; fewer if no more are left."""

    rows: Ints
    scores: Doubles


def answer_together(questions: Sequence[Question]) -> list[Best | Exception]:
    """One answer per question, in order; a question that could not be answered gets its error.

    Questions of the same run, offer and way to choose share one search, which finds as many as the largest k asks for.
    Diversified lists depend on k, so they share one only for the same k.
    """
    groups: dict[object, list[int]] = {}
    for number, one in enumerate(questions):
        wishes = one.wishes
        alike = (id(one.held), id(one.offer), wishes.include_seen, wishes.diversify, wishes.diversify and wishes.k)
        groups.setdefault(alike, []).append(number)
    found: list[Best | Exception] = [AssertionError("not answered")] * len(questions)
    for numbers in groups.values():
        first = questions[numbers[0]]
        most = max(questions[number].wishes.k for number in numbers)
        wishes = Wishes(most, first.wishes.include_seen, first.wishes.diversify)
        try:
            best = best_after(first.held, [questions[number].history for number in numbers], first.offer, wishes)
        except (AntpipeError, MemoryError) as error:
            for number in numbers:
                found[number] = error
            continue
        for number, rows, scores in zip(numbers, best.rows, best.scores, strict=True):
            real = np.flatnonzero(rows[: questions[number].wishes.k] >= 0)
            found[number] = Best(rows[real], scores[real])
    return found


class Batcher(Generic[Asked, Answer]):
    """Collects concurrent questions and lets one thread answer them together.

    work: gets at most `most` questions, returns an answer or error for each. wait: seconds to wait for more after the
    first question; while one batch is worked on, the next one fills without waiting. counted: called with the size of
    each batch.
    """

    def __init__(
        self,
        work: Callable[[Sequence[Asked]], Sequence[Answer | Exception]],
        most: int,
        wait: float,
        counted: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.work, self.most, self.wait, self.counted = work, most, wait, counted
        self.waiting: deque[tuple[Asked, asyncio.Future[Answer]]] = deque()
        self.thread = ThreadPoolExecutor(1, "antpipe-batch")
        self.more, self.full = asyncio.Event(), asyncio.Event()
        self.task = asyncio.create_task(self._run())

    async def ask(self, question: Asked) -> Answer:
        """The answer to a question. Raises its error."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.waiting.append((question, future))
        self.more.set()
        if len(self.waiting) >= self.most:
            self.full.set()
        return await future

    async def close(self) -> None:
        """Stop. Questions that wait are cancelled."""
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        for _, future in self.waiting:
            future.cancel()
        await asyncio.to_thread(self.thread.shutdown)

    async def _run(self) -> None:
        while True:
            await self.more.wait()
            with suppress(TimeoutError):
                async with asyncio.timeout(self.wait):
                    await self.full.wait()
            # Questions given up, by a timeout or a closed connection, need no answer.
            taken = [self.waiting.popleft() for _ in range(min(self.most, len(self.waiting)))]
            batch = [(question, future) for question, future in taken if not future.done()]
            if not self.waiting:
                self.more.clear()
            if len(self.waiting) < self.most:
                self.full.clear()
            if batch:
                await self._answer(batch)

    async def _answer(self, batch: "list[tuple[Asked, asyncio.Future[Answer]]]") -> None:
        self.counted(len(batch))
        try:
            loop = asyncio.get_running_loop()
            answers = await loop.run_in_executor(self.thread, self.work, [question for question, _ in batch])
        except Exception as error:  # a bug in the work: each request reports it
            answers = [error] * len(batch)
        for (_, future), answer in zip(batch, answers, strict=True):
            if future.done():
                continue
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)
