"""The engine `ray`: workers of a Ray cluster compute the shards, through Ray Data (https://docs.ray.io/en/latest/data).

Each worker is an actor. It makes its embedder once, reads the contents of a shard, computes, and writes the shard's
file into the folder; only the number comes back. If a worker dies, Ray gives its shard to another one.
"""

import logging
import os
import pickle
import signal
import socket
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from math import ceil, floor
from typing import Any

import numpy as np

from antpipe import __version__
from antpipe.errors import AntpipeError, UsageError
from antpipe.features.shards.compute import Advance, Embedder, Packing, Read, agreed_threads, compute_shard, counted
from antpipe.features.shards.folder import ShardFolder
from antpipe.features.shards.plan import Shard
from antpipe.runtime.logs import log
from antpipe.runtime.process import tune_process
from antpipe.settings.features import EngineConfig

# Vectors may change with any of them.
LIBRARIES = (
    "torch",
    "torchvision",
    "numpy",
    "pyarrow",
    "pillow",
    "sentence-transformers",
    "transformers",
    "tokenizers",
    "open_clip_torch",
    "timm",
)
MOST_BEGINNINGS = 4  # of one shard in one run: whatever kills its workers will kill the next one too
OBJECTS = 128 << 20  # bytes of Ray's object store, besides the rows of the shards
REACHED_WITHIN = 10.0  # seconds


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
        for number, error in computed(task, shards, workers, cpus, config.ray_gpus):
            if error:
                raise pickle.loads(error)
            advance(sizes[number])
            yield number


def worker_count(config: EngineConfig, cpus: float) -> int:
    """How many workers to ask the connected cluster for. cpus: per worker. Raises AntpipeError if none has room."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    room = sum(room_of(node, cpus, config.ray_gpus) for node in nodes)
    if not room:
        gpus = f" and {config.ray_gpus:g} GPUs" if config.ray_gpus else ""
        lack = f"no node of the Ray cluster has {cpus:g} CPUs{gpus} for a worker"
        if not config.ray_workers or len(nodes) == 1:
            raise AntpipeError(lack, "ray status")
        log.warning(f"{lack} yet; waiting for one")
    return config.ray_workers or room


def room_of(resources: Mapping[str, float], cpus: float, gpus: float) -> int:
    """How many workers a node with these resources holds. A shared GPU is whole: at .4 GPUs each, it holds two."""
    room = floor(resources.get("CPU", 0) / cpus + 1e-9)
    if not gpus:
        return room
    there = resources.get("GPU", 0)
    return min(room, floor(there) * floor(1 / gpus + 1e-9) if gpus < 1 else floor(there / gpus + 1e-9))


def written_inputs(shards: Sequence[Shard], read: Read, folder: ShardFolder, packing: Packing, *, keep: bool) -> Read:
    """Write the contents of shards into the folder, one after the other; returns what reads them from there.

    keep: leave those that an earlier run wrote. Do not keep names of files: the folder's key covers contents, which may
    lie elsewhere now.
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
    """An actor. Its call takes a batch of one row, {number: (1,), rows: (1,) bytes}, and returns {number, error}.

    Errors come back as values, so that they end up the same whichever engine met them.
    """

    def __init__(self, task: WorkerTask) -> None:
        tune_process()
        self.task = task
        self.embedder: Embedder | None = None

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[Any]]:
        shard = Shard(int(batch["number"][0]), np.frombuffer(batch["rows"][0], np.int64))
        error = b""
        try:
            self.compute(shard)
        except Exception as raised:  # whatever it is, the planning process raises it
            error = packed(raised)
        return {"number": [shard.number], "error": [error]}

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


def versions() -> dict[str, str]:
    """The versions of antpipe and of the libraries here; builds of one version (`+cpu`) count as the same."""
    found = {"antpipe": __version__}
    for name in LIBRARIES:
        try:
            found[name] = version(name).partition("+")[0]
        except PackageNotFoundError:
            found[name] = "none"
    return found


def check_versions(planned: Mapping[str, str], here: Mapping[str, str]) -> None:
    """Raises AntpipeError, naming the libraries, if a worker has other versions than the planning process."""
    other = [f"{name} {here[name]} and not {planned[name]}" for name in planned if here[name] != planned[name]]
    if other:
        raise AntpipeError(
            f"the Ray worker on {socket.gethostname()} has {', '.join(other)}: its vectors could differ; install the "
            "same versions on all nodes of the cluster"
        )


def packed(error: Exception) -> bytes:
    """An exception as bytes, with its traceback as a note; one that does not survive pickling as a RuntimeError."""
    error.add_note(f"on the Ray worker {socket.gethostname()}:\n{''.join(traceback.format_exception(error))}")
    try:
        content = pickle.dumps(error)
        pickle.loads(content)
    except Exception:  # errors of libraries take arguments that pickle does not know about
        content = pickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"))
    return content


# -- Ray ------------------------------------------------------------------------------------------------------


def computed(
    task: WorkerTask, shards: Sequence[Shard], workers: int, cpus: float, gpus: float
) -> Iterator[tuple[int, bytes]]:
    """Number and error of each shard, as they finish. A block is one shard, so a dead worker costs no more than that.

    cpus, gpus: per worker. Raises AntpipeError if Ray fails.
    """
    import ray
    from ray.data.exceptions import SystemException

    rows = [{"number": shard.number, "rows": shard.rows.tobytes()} for shard in shards]
    try:
        done = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            Worker,
            fn_constructor_args=(task,),
            batch_size=1,
            batch_format="numpy",
            compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1),
            num_cpus=cpus,
            num_gpus=gpus or None,
        )
        for batch in done.iter_batches(batch_size=1, prefetch_batches=0, batch_format="numpy"):
            yield int(batch["number"][0]), batch["error"][0]
    except (ray.exceptions.RayError, SystemException) as error:
        reason = (str(error.__cause__ or error).strip() or type(error).__name__).splitlines()[0]
        raise AntpipeError(f"Ray: {reason}; finished shards are kept", "ray status") from error


@contextmanager
def cluster(config: EngineConfig, cpus: float, size: int) -> Iterator[None]:
    """Connect to a cluster: the caller's, the one at the address, or a new one on this machine.

    cpus: per worker. size: bytes that go through Ray's object store. Raises AntpipeError if no cluster can be had.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # Ray's C++ parts write to stderr
    import ray

    if ray.is_initialized():
        yield
        return
    address = config.ray_address or os.environ.get("RAY_ADDRESS") or "local"
    check_address(address)
    own: dict[str, Any] = {}
    if address == "local":
        asked = ceil(max(1, config.ray_workers) * cpus)
        own = {
            "include_dashboard": False,
            "object_store_memory": OBJECTS + 2 * size,
            "num_cpus": max(asked, os.cpu_count() or 1),
        }
    in_main_thread = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)  # Ray sets its own
    try:
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL, **own)
        except Exception as error:  # errors of sockets, of versions, of processes that do not start
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise AntpipeError(f"Ray ({address}): {reason} (docs/scale.md, A cluster)", "ray status") from error
        yield
    finally:
        ray.shutdown()
        if in_main_thread:
            signal.signal(signal.SIGTERM, before)


def check_address(address: str) -> None:
    """Raises UsageError or AntpipeError for an address that Ray would try for minutes, or end the process over."""
    if address in ("local", "auto"):
        return
    if "://" in address:
        raise UsageError(
            f"--ray-address {address}: run the command on a node of the cluster and give HOST:PORT or auto"
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise UsageError(f"--ray-address {address}: give HOST:PORT (of `ray start --head`) or auto")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACHED_WITHIN).close()
    except OSError as error:
        raise AntpipeError(
            f"--ray-address {address}: no Ray cluster answers ({error.strerror or error})", "ray start --head"
        ) from error


@contextmanager
def silence() -> Iterator[None]:
    """Keep Ray Data's own progress and log lines from the terminal; its log files have them."""
    import ray.data

    context = ray.data.DataContext.get_current()
    console = [handler for handler in logging.getLogger("ray.data").handlers if handler.name == "console"]
    before = (context.enable_progress_bars, context.print_on_execution_start, [handler.level for handler in console])
    context.enable_progress_bars = context.print_on_execution_start = False
    for handler in console:
        handler.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        context.enable_progress_bars, context.print_on_execution_start, levels = before
        for handler, level in zip(console, levels, strict=True):
            handler.setLevel(level)
