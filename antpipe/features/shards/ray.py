"""The engine `ray`: workers of a Ray cluster compute the shards, through Ray Data (https://docs.ray.io/en/latest/data).

Each worker is an actor. It makes its embedder once, reads the contents of a shard, computes, and writes the shard's
file into the folder; only the number comes back. If a worker dies, Ray gives its shard to another one.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from antpipe.errors import AntpipeError
from antpipe.features.shards.cluster import check_versions, cluster, computed, done, silence, versions, worker_count
from antpipe.features.shards.compute import Advance, Embedder, Packing, Read, agreed_threads, compute_shard, counted
from antpipe.features.shards.folder import ShardFolder
from antpipe.features.shards.plan import Shard
from antpipe.runtime.logs import log
from antpipe.runtime.process import tune_process
from antpipe.settings.features import EngineConfig

MOST_BEGINNINGS = 4  # of one shard in one run: whatever killed these workers would kill the next one too


def compute_on_ray(
    shards: Sequence[Shard],
    make: Callable[[], Embedder],
    read: Read,
    folder: ShardFolder,
    advance: Advance,
    *,
    config: EngineConfig,
    packing: Packing | None = None,
) -> Iterator[int]:
    """The engine `ray`: on a running cluster, or on one on this machine that lives as long as the work.

    packing: see `engine_of`. Raises what an embedder raises, and AntpipeError if the cluster cannot be reached, has no
    room for a worker or fails.
    """
    threads = agreed_threads(folder, config.threads)
    if packing is not None:
        read = written_inputs(shards, read, folder, packing, keep=config.shards is not None)
    task = WorkerTask(make, read, folder, threads, versions())
    sizes = {shard.number: len(shard.rows) for shard in shards}
    cpus = config.ray_cpus or (1.0 if config.ray_gpus else float(threads))
    with cluster(config, cpus, sum(shard.rows.nbytes for shard in shards)), silence():
        workers = min(worker_count(config, cpus), len(shards))
        log.info(
            f"{counted(len(shards), 'shard')} on {counted(workers, 'Ray worker')}, "
            f"{counted(threads, 'thread')} each, on {'GPUs' if config.ray_gpus else 'CPUs'}"
        )
        rows = [{"number": shard.number, "rows": shard.rows.tobytes()} for shard in shards]
        for number in computed(Worker, task, rows, workers, cpus, config.ray_gpus):
            advance(sizes[number])
            yield number


def written_inputs(shards: Sequence[Shard], read: Read, folder: ShardFolder, packing: Packing, *, keep: bool) -> Read:
    """Write the contents of shards into the folder, one after the other; returns what reads them from there.

    keep: do not rewrite those that an earlier run wrote. Not for names of files: the folder's key covers contents,
    whose files may be elsewhere now.
    """
    missing = [shard for shard in shards if not (keep and folder.has_input(shard.number, shard.rows))]
    if missing:
        log.info(f"writing the contents of {counted(len(missing), 'shard')} to {folder.path}")
    for shard in missing:
        folder.write_input(shard.number, [packing.pack(content) for content in read(shard)], shard.rows)
    return partial(read_written, folder, packing)


def read_written(folder: ShardFolder, packing: Packing, shard: Shard) -> list[Any]:
    """The contents of a shard that `written_inputs` wrote."""
    return [packing.unpack(content) for content in folder.read_input(shard.number, shard.rows)]


# -- on the workers -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WorkerTask:
    """What every worker is given. versions: those of the planning process, by library."""

    make: Callable[[], Embedder]
    read: Read
    folder: ShardFolder
    threads: int
    versions: Mapping[str, str]


class Worker:
    """An actor. Its call takes a batch of one row, {number: (1,), rows: (1,) bytes}."""

    def __init__(self, task: WorkerTask) -> None:
        tune_process()
        self.task = task
        self.embedder: Embedder | None = None

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[Any]]:
        shard = Shard(int(batch["number"][0]), np.frombuffer(batch["rows"][0], np.int64))
        return done(shard.number, partial(self.compute, shard))

    def compute(self, shard: Shard) -> None:
        folder = self.task.folder
        if folder.is_finished(shard.number, shard.rows):  # Ray lost the answer, not the shard
            return
        if folder.begin(shard.number) > MOST_BEGINNINGS:
            raise AntpipeError(
                f"shard {shard.number} was begun {MOST_BEGINNINGS} times and its worker died each time, loading the "
                "encoder or computing: is it out of memory? Finished shards are kept. Give each worker more CPUs or "
                "GPUs, or make shards smaller, which starts over",
                "ray status",
            )
        self.embedder = self.embedder or self.ready()  # loading may kill a worker too
        compute_shard(shard, self.embedder, self.task.read, folder, lambda _: None)
        folder.end(shard.number)

    def ready(self) -> Embedder:
        """Make the embedder, in a process like the planning one."""
        check_versions(self.task.versions, versions())
        import torch

        torch.set_num_threads(self.task.threads)  # Ray sets OMP_NUM_THREADS to the CPUs of the worker
        return self.task.make()
