"""One run of the ingest benchmark: `python -m benchmarks.ingest_worker plain|antpipe REVIEWS SCRATCH`.

Prints its cost and a summary of the result as JSON. Time is measured from before the way's own imports to its last
result, without the summary.
"""

import hashlib
import json
import logging
import sys
import time
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

BEGAN = time.perf_counter(), time.process_time()


def peak() -> float:
    """Peak memory so far in MB."""
    # Not ru_maxrss: in a new process, it starts at the memory of its parent.
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


class Clock:
    """Time and memory at the end of parsing, and at the end."""

    def __init__(self) -> None:
        self.taken: dict[str, float] = {}

    def parsed(self) -> None:
        self.taken |= {"parsing": time.perf_counter() - BEGAN[0], "parsing_peak": peak()}

    def ended(self) -> None:
        self.taken |= {"wall": time.perf_counter() - BEGAN[0], "cpu": time.process_time() - BEGAN[1], "peak": peak()}


def found(users: list[str], items: list[str], histories: Iterable[list[Any]], interactions: int) -> dict[str, Any]:
    """Counts, and a hash of everything: ids in order, and each user's [item, milliseconds] in order of time."""
    digest = hashlib.sha256(json.dumps([users, items]).encode())
    for history in histories:
        digest.update(json.dumps(history).encode())
    return {"users": len(users), "items": len(items), "interactions": interactions, "sha256": digest.hexdigest()}


def plain(path: Path, clock: Clock) -> dict[str, Any]:
    from benchmarks.plain_ingest import k_core, parse, sequences

    rows = parse(path)
    clock.parsed()
    rows = k_core(rows, 5)
    users, items, histories = sequences(rows)
    clock.ended()
    return found(users, items, histories, len(rows))


def antpipe(path: Path, clock: Clock, scratch: Path) -> dict[str, Any]:
    from antpipe.runtime.process import tune_process

    tune_process()
    from antpipe.features.build_sequences import build_sequences
    from antpipe.features.ingest.amazon.files import Release
    from antpipe.features.ingest_amazon import ingest_amazon
    from antpipe.runtime.logs import log
    from antpipe.settings.features import SequenceConfig
    from antpipe.settings.ingest import IngestConfig
    from antpipe.store.store import Store

    class Noticed(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage().startswith(path.name):  # logged as soon as the file is read
                clock.parsed()

    log.addHandler(Noticed())
    log.setLevel(logging.INFO)
    store, domain = Store(scratch / "store"), path.name.removesuffix("_5.json.gz")
    rules = IngestConfig(keep_without_metadata=True)
    ingest_amazon(Release(store, path.parent, domain, rules), force=True)
    build_sequences(store, [domain], SequenceConfig(), force=True)
    clock.ended()
    sequences = store.domain(domain).sequences()
    ends = sequences.offsets.tolist()
    times = store.domain(domain).table("interactions", ["timestamp"])["timestamp"].to_numpy()
    histories = (
        [list(visit) for visit in zip(sequences.items[a:b].tolist(), times[a:b].tolist(), strict=True)]
        for a, b in pairwise(ends)
    )
    users = store.domain(domain).table("users", ["user_id"])["user_id"].to_pylist()
    return found(users, store.domain(domain).item_ids(), histories, len(times))


def main(way: str, path: Path, scratch: Path) -> None:
    clock = Clock()
    what = plain(path, clock) if way == "plain" else antpipe(path, clock, scratch)
    print(json.dumps(clock.taken | {"found": what}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
