"""Recommendations for many on a Ray cluster: its workers write the parts of a batch, each with a run of its own.

A worker reads the store, the run, the files of the request and the folder of the parts at the same paths as the
planning process, so they lie on a file system that all nodes share.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from antpipe.errors import AntpipeError, SameCommand, UsageError
from antpipe.features.shards.cluster import check_versions, cluster, computed, done, silence, versions, worker_count
from antpipe.features.shards.compute import counted
from antpipe.features.shards.engine import engine_of
from antpipe.runtime.logs import log
from antpipe.runtime.process import tune_process
from antpipe.serving.batch import Engine, Part, key_of_request, write_part
from antpipe.serving.prepare import BatchRequest, OpenBatch, prepare
from antpipe.settings.features import EngineConfig


def engine_for(config: EngineConfig, request: BatchRequest, prepared: OpenBatch) -> Engine | None:
    """The engine of these settings for a request; None for this process.

    Raises UsageError for settings that do not fit, DataError if Ray is asked for and not installed.
    """
    engine_of(config)  # raises for contradictory settings
    if config.shards is not None:
        raise UsageError(
            f"--shards {config.shards}: recommend keeps its parts beside the file of --out",
            SameCommand(without=("--shards",)),
        )
    if config.engine == "local":
        return None
    if config.ray_gpus:
        raise UsageError(
            f"--ray-gpus {config.ray_gpus:g}: recommend computes on CPUs", SameCommand(without=("--ray-gpus",))
        )
    device = request.settings.device
    if device.startswith("cuda"):
        raise UsageError(f"--device {device}: workers of Ray compute on CPUs", SameCommand(without=("--device",)))
    on_cpus = replace(request, settings=replace(request.settings, device="cpu"))
    return partial(write_on_ray, config=config, request=on_cpus, prepared=prepared)


def write_on_ray(
    parts: Sequence[Part], *, config: EngineConfig, request: BatchRequest, prepared: OpenBatch
) -> Iterator[int]:
    """The numbers of parts as workers write them. Raises what a worker raises, and AntpipeError if the cluster cannot
    be reached, has no room for a worker or fails."""
    threads = config.threads or 1
    key = key_of_request(prepared.opened, prepared.audience, prepared.offer, prepared.wishes)
    task = BatchTask(request, key, {part.number: part for part in parts}, threads, versions())
    cpus = config.ray_cpus or float(threads)
    with cluster(config, cpus, 0), silence():
        workers = min(worker_count(config, cpus), len(parts))
        log.info(f"{counted(len(parts), 'part')} on {counted(workers, 'Ray worker')}")
        yield from computed(BatchWorker, task, [{"number": part.number} for part in parts], workers, cpus, 0.0)


@dataclass(frozen=True)
class BatchTask:
    """What every worker is given. key: that of the request, by which a worker checks that it reads the same files.
    versions: those of the planning process, by library."""

    request: BatchRequest
    key: str
    parts: Mapping[int, Part]
    threads: int
    versions: Mapping[str, str]


class BatchWorker:
    """An actor, which opens the run once. Its call takes a batch of one row, {number: (1,)}."""

    def __init__(self, task: BatchTask) -> None:
        tune_process()
        self.task = task
        self.prepared: OpenBatch | None = None

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[Any]]:
        number = int(batch["number"][0])
        return done(number, partial(self.write, self.task.parts[number]))

    def write(self, part: Part) -> None:
        if part.path.is_file():  # Ray lost the answer, not the part
            return
        found = self.prepared = self.prepared or self.ready()
        write_part(found.opened, found.audience, found.offer, found.wishes, part)

    def ready(self) -> OpenBatch:
        """Open the run, in a process like the planning one."""
        import torch

        check_versions(self.task.versions, versions())
        torch.set_num_threads(self.task.threads)  # Ray sets OMP_NUM_THREADS to the CPUs of the worker
        found = prepare(self.task.request)
        if key_of_request(found.opened, found.audience, found.offer, found.wishes) != self.task.key:
            raise AntpipeError("a Ray worker reads another run, store or file than the planning process at these paths")
        return found
