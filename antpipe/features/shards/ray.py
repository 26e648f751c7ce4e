"""The engine `ray`: workers of a Ray cluster compute the shards, through Ray Data (https://docs.ray.io/en/latest/data).

Each worker is an actor that makes its embedder once, reads the contents of a shard, computes and writes the shard's
file into the folder; only the number comes back. Ray gives the shard of a worker that died to another one.
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
from importlib.metadata import PackageNotFoundError, version
from math import ceil, floor
from typing import Any

import numpy as np

import antpipe
from antpipe.errors import AntpipeError, UsageError
from antpipe.features.shards.engines import Carrying, counted, noted_threads
from antpipe.features.shards.plan import Advance, Embedder, Shard, ShardFolder, compute_shard
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
MOST_BEGINNINGS = 4  # of one shard in one run: what it is that kills its workers will kill the next one, too
OBJECTS = 128 << 20  # bytes of Ray's object store, besides the rows of the shards
REACHED_WITHIN = 10.0  # seconds


@dataclass(frozen=True)
class RayEngine:
    """Computes shards on a cluster: one that runs, or one of this machine that lives as long as the work.

    Raises AntpipeError where the cluster cannot be had, has no room for a worker or fails, and what an embedder raises.
    """

    config: EngineConfig
    say: Callable[[str], None]
    carrying: Carrying | None = None

    def __call__(
        self,
        shards: Sequence[Shard],
        make: Callable[[], Embedder],
        read: Callable[[Shard], Sequence[Any]],
        folder: ShardFolder,
        advance: Advance,
    ) -> Iterator[int]:
        threads = noted_threads(folder, self.config.threads, self.say)
        if self.carrying is not None:
            read = written_inputs(shards, read, folder, self.carrying, self.config.shards is not None, self.say)
        work = Work(make, read, folder, threads, versions())
        sizes = {shard.number: len(shard.rows) for shard in shards}
        cpus = self.config.ray_cpus or (1.0 if self.config.ray_gpus else float(threads))
        with cluster(self.config, cpus, sum(shard.rows.nbytes for shard in shards)), silence():
            workers = min(self._workers(cpus), len(shards))
            self.say(
                f"{counted(len(shards), 'shard')} on {counted(workers, 'Ray worker')}, "
                f"{counted(threads, 'thread')} each, on {'GPUs' if self.config.ray_gpus else 'CPUs'}"
            )
            for number, error in computed(work, shards, workers, cpus, self.config.ray_gpus):
                if error:
                    raise pickle.loads(error)
                advance(sizes[number])
                yield number

    def _workers(self, cpus: float) -> int:
        """How many workers to ask for."""
        import ray

        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        room = sum(room_of(node, cpus, self.config.ray_gpus) for node in nodes)
        asked = self.config.ray_workers
        if not room:
            gpus = f" and {self.config.ray_gpus:g} GPUs" if self.config.ray_gpus else ""
            lack = f"no node of the Ray cluster has {cpus:g} CPUs{gpus} for a worker"
            if not asked or len(nodes) == 1:
                raise AntpipeError(lack, "ray status")
            self.say(f"{lack} yet; waiting for one")
        return asked or room


def room_of(resources: Mapping[str, float], cpus: float, gpus: float) -> int:
    """How many workers a node with these resources holds. Workers that share a GPU share it whole: .4 holds 2."""
    room = floor(resources.get("CPU", 0) / cpus + 1e-9)
    if not gpus:
        return room
    there = resources.get("GPU", 0)
    return min(room, floor(there) * floor(1 / gpus + 1e-9) if gpus < 1 else floor(there / gpus + 1e-9))


def written_inputs(
    shards: Sequence[Shard],
    read: Callable[[Shard], Sequence[Any]],
    folder: ShardFolder,
    carrying: Carrying,
    keep: bool,
    say: Callable[[str], None],
) -> Callable[[Shard], Sequence[Any]]:
    """Put the contents of shards into the folder, one after the other; returns what reads them there.

    keep: those that an earlier run wrote stand. Names of files do not: the key of the folder is about contents, which
    may lie elsewhere now.
    """
    missing = [shard for shard in shards if not (keep and folder.has_input(shard.number, shard.rows))]
    if missing:
        say(f"writing the contents of {counted(len(missing), 'shard')} to {folder.path}")
    for shard in missing:
        folder.write_input(shard.number, [carrying.pack(content) for content in read(shard)], shard.rows)
    return Inputs(folder, carrying)


@dataclass(frozen=True)
class Inputs:
    """Reads contents from the folder of shards."""

    folder: ShardFolder
    carrying: Carrying

    def __call__(self, shard: Shard) -> Sequence[Any]:
        return [self.carrying.unpack(content) for content in self.folder.read_input(shard.number, shard.rows)]


# -- on the workers -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """What every worker is given. versions: of the process that plans, by library."""

    make: Callable[[], Embedder]
    read: Callable[[Shard], Sequence[Any]]
    folder: ShardFolder
    threads: int
    versions: Mapping[str, str]


class Worker:
    """An actor. Its call takes a batch of one row, {number: (1,), rows: (1,) bytes}, and returns {number, error}.

    Errors come back as values: they are then the same in the end, whichever engine met them.
    """

    def __init__(self, work: Work) -> None:
        tune_process()
        self.work = work
        self.embedder: Embedder | None = None

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[Any]]:
        shard = Shard(int(batch["number"][0]), np.frombuffer(batch["rows"][0], np.int64))
        error = b""
        try:
            self.compute(shard)
        except Exception as raised:  # whatever it is belongs to the process that plans
            error = packed(raised)
        return {"number": [shard.number], "error": [error]}

    def compute(self, shard: Shard) -> None:
        folder = self.work.folder
        if folder.is_finished(shard.number, shard.rows):  # Ray lost the answer, not the shard
            return
        if folder.begin(shard.number) > MOST_BEGINNINGS:
            raise AntpipeError(
                f"shard {shard.number} was begun {MOST_BEGINNINGS} times and its worker died each time, loading the "
                "encoder or computing: is it out of memory? Finished shards are kept",
                "the same command with more CPUs or GPUs a worker, or, which begins anew, with smaller shards",
            )
        self.embedder = self.embedder or self.ready()  # loading may kill a worker, too
        compute_shard(shard, self.embedder, self.work.read, folder, unheard)
        folder.end(shard.number)

    def ready(self) -> Embedder:
        """Make the embedder, in a process like the one that plans."""
        check_versions(self.work.versions, versions())
        import torch

        torch.set_num_threads(self.work.threads)  # Ray sets OMP_NUM_THREADS to the CPUs of the worker
        return self.work.make()


def unheard(_: int) -> None:
    """Progress inside a shard, which stays on the worker."""


def versions() -> dict[str, str]:
    """The versions of antpipe and of the libraries here; builds of one version (`+cpu`) count as the same."""
    found = {"antpipe": antpipe.__version__}
    for name in LIBRARIES:
        try:
            found[name] = version(name).partition("+")[0]
        except PackageNotFoundError:
            found[name] = "none"
    return found


def check_versions(planned: Mapping[str, str], here: Mapping[str, str]) -> None:
    """AntpipeError, by name, where a worker has other versions than the process that plans."""
    other = [f"{name} {here[name]} and not {planned[name]}" for name in planned if here[name] != planned[name]]
    if other:
        raise AntpipeError(
            f"the Ray worker on {socket.gethostname()} has {', '.join(other)}: its vectors could be others",
            "install the same versions on all nodes of the cluster",
        )


def packed(error: Exception) -> bytes:
    """An exception as bytes, with its traceback as a note; one that does not come back whole as a RuntimeError."""
    error.add_note(f"on the Ray worker {socket.gethostname()}:\n{''.join(traceback.format_exception(error))}")
    try:
        content = pickle.dumps(error)
        pickle.loads(content)
    except Exception:  # errors of libraries take arguments that pickle does not know of
        content = pickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"))
    return content


# -- Ray ------------------------------------------------------------------------------------------------------


def computed(
    work: Work, shards: Sequence[Shard], workers: int, cpus: float, gpus: float
) -> Iterator[tuple[int, bytes]]:
    """Number and error of each shard, as they are done. A block is one shard: a death repeats no more than that."""
    import ray
    from ray.data.exceptions import SystemException

    rows = [{"number": shard.number, "rows": shard.rows.tobytes()} for shard in shards]
    try:
        done = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            Worker,
            fn_constructor_args=(work,),
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
        raise AntpipeError(f"Ray: {reason}; finished shards are kept", "ray status, then the same command") from error


@contextmanager
def cluster(config: EngineConfig, cpus: float, size: int) -> Iterator[None]:
    """Connected to a cluster: that of the caller, the one of the address, or a new one on this machine.

    size: bytes of what goes through Ray's object store.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # of the parts in C++, which write to stderr
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
            next_command = "ray status; where that fails, too: docs/scale.md, A cluster"
            raise AntpipeError(f"Ray ({address}): {reason}", next_command) from error
        yield
    finally:
        ray.shutdown()
        if in_main_thread:
            signal.signal(signal.SIGTERM, before)


def check_address(address: str) -> None:
    """Refuse what Ray would try for minutes, or end the process over."""
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
