"""A service under load on loopback: `python -m benchmarks.serve`.

Straightforward: the same web server, but each request is answered alone, one after the other: one pass of the encoder,
scores by numpy, a full argsort. antpipe: the application of `antpipe serve`, which answers in batches. Both serve the
same made-up shop, with a run with random weights, each in its own process.

Two kinds of load: requests at a fixed rate, whose latency counts from when they were due, and clients that each ask
again as soon as they are answered. Both services must give the same answers.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Thread
from typing import Any

import httpcore2
import numpy as np
import polars as pl
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from antpipe.evaluation.vectors import OpenRun, as_examples
from antpipe.runtime.process import tune_process
from antpipe.serving.web.held import HeldRun, Offers
from antpipe.serving.web.reloading import Current, Loaded, stamp_of
from antpipe.serving.web.run import bound_socket, make_server
from antpipe.settings.serving import ServeConfig
from antpipe.store.store import Store
from benchmarks.recommend import WAYS, opened

SIZES, QUICK = (20_000, 50_000), (60, 400)  # users, items
SERVICES = ("straightforward", "antpipe")
K = 10
MOST_IN_PROGRESS = 64  # requests that the load tool has open at a time; a later one waits


@dataclass
class Load:
    """The outcome of one load. seconds: latency of each answer; wall: from the first request to the last answer."""

    seconds: list[float]
    failed: int
    wall: float

    def row(self, name: str, kind: str) -> str:
        p50, p99 = np.percentile(self.seconds or [np.nan], [50, 99]) * 1000
        rate = len(self.seconds) / self.wall
        return f"{name:17}{kind:18}{len(self.seconds):>9}{self.failed:>8}{rate:>12.0f}{p50:>9.1f}{p99:>9.1f}"


# -- services ---------------------------------------------------------------------------------------------------------


def held_run(users: int, items: int, way: str) -> HeldRun:
    """A made-up run as a service holds it."""
    run, part = opened(users, items, way)
    held = HeldRun(**{field.name: getattr(run, field.name) for field in fields(run)})
    texts = {"item_id": run.item_ids, "title": [f"Thing no. {row}" for row in range(items)]}
    table = pl.DataFrame(texts).with_columns(
        text=pl.lit(None, pl.String),
        price=pl.lit(1.5),
        currency=pl.lit("EUR"),
        image_urls=pl.lit([], pl.List(pl.String)),
        image_files=pl.lit([], pl.List(pl.String)),
    )
    spans = zip(part.start.tolist(), part.end.tolist(), strict=True)
    histories = {f"u{number}": part.items[a:b] for number, (a, b) in enumerate(spans)}
    held.__dict__.update(table=table, columns=dict(table.schema), histories=histories, fingerprint="made up")
    return held


def straightforward(run: OpenRun) -> Starlette:
    """A service that answers one request after the other."""

    async def recommend(request: Request) -> JSONResponse:
        asked = await request.json()
        history = np.array([run.row_of[item] for item in asked["items"]], np.int32)
        part = as_examples([history], run.max_len)
        scores = (run.after(part) @ run.items.T)[0]
        more = run.added(part)(np.arange(1))
        scores[more.keys] += more.scores.astype(np.float32)
        scores[history] = -np.inf
        best = np.argsort(-scores, kind="stable")[: asked["k"]]
        found = [
            {"item_id": run.item_ids[row], "title": f"Thing no. {row}", "score": float(scores[row])}
            for row in best.tolist()
        ]
        return JSONResponse({"items": found})

    return Starlette(routes=[Route("/recommend", recommend, methods=["POST"])])


def server_of(name: str, sizes: tuple[int, int], way: str) -> uvicorn.Server:
    if name == SERVICES[0]:
        settings = uvicorn.Config(straightforward(opened(*sizes, way)[0]), log_config=None, access_log=False)
        return uvicorn.Server(settings)
    held, store = held_run(*sizes, way), Store(Path("no-store"))
    loaded = Loaded(held, Offers(held, 0), stamp_of(store, held.run, "shop-0"))
    return make_server(Current(store, held.run, "shop-0", 0, loaded), ServeConfig(), None)


def serve(name: str, sizes: tuple[int, int], way: str, listening: socket.socket, tell: Connection) -> None:
    """Serve until the process ends. Sends its CPU seconds whenever something is received."""
    tune_process()
    server = server_of(name, sizes, way)
    Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True).start()
    tell.send(0.0)
    while tell.recv():
        tell.send(time.process_time())


@contextmanager
def in_a_process(name: str, sizes: tuple[int, int], way: str) -> Iterator[tuple[str, Connection]]:
    """The address of a service in its own process, and the connection by which to ask for its CPU seconds."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    with bound_socket(ServeConfig(port=0)) as listening:
        process = spawn.Process(target=serve, args=(name, sizes, way, listening, theirs), daemon=True)
        process.start()
        ours.recv()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}", ours
        finally:
            process.terminate()
            process.join()


# -- load -------------------------------------------------------------------------------------------------------------


def bodies(items: int, count: int) -> list[bytes]:
    """Requests with made-up histories of 1 to 20 items, about 6 on average."""
    rng = np.random.default_rng(7)
    lengths = np.clip(rng.geometric(1 / 6, count), 1, 20)
    return [
        json.dumps({"items": [f"i{row}" for row in rng.integers(0, items, length)], "k": K}).encode()
        for length in lengths.tolist()
    ]


async def ask(pool: httpcore2.AsyncConnectionPool, url: str, body: bytes) -> tuple[int, bytes]:
    headers = {"content-type": "application/json"}
    answer = await pool.request("POST", f"{url}/recommend", headers=headers, content=body)
    return answer.status, answer.content


async def at_a_rate(url: str, asked: Sequence[bytes], rate: float) -> Load:
    """Requests that are due at a fixed rate, whether earlier ones are answered or not."""
    seconds, failed, due = [], 0, asyncio.Queue[tuple[bytes, float] | None]()

    async def one() -> None:
        nonlocal failed
        async with httpcore2.AsyncConnectionPool(max_connections=1) as pool:  # one pool for all would be slow
            while (request := await due.get()) is not None:
                status, _ = await ask(pool, url, request[0])
                if status == 200:
                    seconds.append(time.perf_counter() - request[1])
                else:
                    failed += 1

    async with asyncio.TaskGroup() as group:
        for _ in range(MOST_IN_PROGRESS):
            group.create_task(one())
        began = time.perf_counter()
        for number, body in enumerate(asked):
            moment = began + number / rate
            await asyncio.sleep(max(0.0, moment - time.perf_counter()))
            due.put_nowait((body, moment))
        for _ in range(MOST_IN_PROGRESS):
            due.put_nowait(None)
    return Load(seconds, failed, time.perf_counter() - began)


async def by_clients(url: str, asked: Sequence[bytes], clients: int) -> Load:
    """Requests of clients that each ask again as soon as they are answered."""
    seconds, failed, left = [], 0, list(asked)

    async def one(pool: httpcore2.AsyncConnectionPool) -> None:
        nonlocal failed
        while left:
            body, began = left.pop(), time.perf_counter()
            status, _ = await ask(pool, url, body)
            if status == 200:
                seconds.append(time.perf_counter() - began)
            else:
                failed += 1

    async with httpcore2.AsyncConnectionPool(max_connections=clients) as pool:
        began = time.perf_counter()
        await asyncio.gather(*(one(pool) for _ in range(clients)))
    return Load(seconds, failed, time.perf_counter() - began)


async def answers(url: str, asked: Sequence[bytes]) -> list[list[str]]:
    """The items that each request gets."""
    async with httpcore2.AsyncConnectionPool() as pool:
        found = [await ask(pool, url, body) for body in asked]
    return [[item["item_id"] for item in json.loads(content)["items"]] for _, content in found]


def same_answers(one: list[list[str]], other: list[list[str]]) -> float:
    """The share of ranks with the same item; near ties in float32 may swap."""
    pairs = [(a, b) for left, right in zip(one, other, strict=True) for a, b in zip(left, right, strict=True)]
    return sum(a == b for a, b in pairs) / len(pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=SIZES[1])
    parser.add_argument("--seconds", type=float, default=10.0, help="of each load at a rate")
    parser.add_argument("--rate", type=float, default=300.0, help="requests per second")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--way", choices=WAYS, default=WAYS[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it works")
    given = parser.parse_args()
    sizes = QUICK if given.quick else (SIZES[0], given.items)
    print(f"{sizes[1]:,} items, {given.way}, k = {K}; {os.cpu_count()} CPUs, load average {os.getloadavg()[0]:.1f}")
    heads = f"{'service':17}{'load':18}{'answered':>9}{'failed':>8}{'requests/s':>12}"
    print(f"{heads}{'p50 ms':>9}{'p99 ms':>9}{'CPU ms':>9}{'of tool':>9}")
    found = []
    every = bodies(sizes[1], int(given.rate * given.seconds))
    for name in SERVICES:
        asked = every if name == SERVICES[1] else every[: max(50, len(every) // 10)]
        with in_a_process(name, sizes, given.way) as (url, tell):
            found.append(asyncio.run(answers(url, asked[:50])))
            loads: list[tuple[str, Any]] = [(f"{given.clients} clients", by_clients(url, asked, given.clients))]
            if name == SERVICES[1]:
                loads.append((f"{given.rate:.0f} per second", at_a_rate(url, asked, given.rate)))
            for kind, load in loads:
                before, own = cpu_seconds(tell), time.process_time()
                done = asyncio.run(load)
                each = 1000 / max(len(done.seconds), 1)
                service, tool = (cpu_seconds(tell) - before) * each, (time.process_time() - own) * each
                print(f"{done.row(name, kind)}{service:>9.2f}{tool:>9.2f}", flush=True)
    share = same_answers(*found)
    print(f"same items in the same places: {share:.2%}")
    if share < 0.99:
        raise SystemExit("the services answer differently")


def cpu_seconds(tell: Connection) -> float:
    tell.send(True)
    seconds: float = tell.recv()
    return seconds


if __name__ == "__main__":
    main()
