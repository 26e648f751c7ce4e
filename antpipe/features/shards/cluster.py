"""A Ray cluster (https://docs.ray.io/en/latest/data) that runs pieces of work: connecting, workers, errors."""

import logging
import os
import pickle  # nosec B403 # errors of workers of the user's own cluster
import signal
import socket
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from math import ceil, floor
from typing import Any

from antpipe import __version__
from antpipe.errors import AntpipeError, UsageError
from antpipe.runtime.logs import log
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
OBJECTS = 128 << 20  # bytes of Ray's object store, besides the rows of the shards
REACHED_WITHIN = 10.0  # seconds


@contextmanager
def cluster(config: EngineConfig, cpus: float, size: int) -> Iterator[None]:
    """Connect to a cluster: the caller's, the one at the address, or a new one on this machine.

    cpus: per worker. size: bytes that go through Ray's object store. Raises AntpipeError if no cluster is available.
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
    """Raises UsageError or AntpipeError for an address that would make Ray retry for minutes or end the process."""
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


# -- workers ----------------------------------------------------------------------------------------------------------


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
    """How many workers fit on a node with these resources. No worker spans two GPUs: at .4 each, a GPU holds two."""
    room = floor(resources.get("CPU", 0) / cpus + 1e-9)
    if not gpus:
        return room
    there = resources.get("GPU", 0)
    return min(room, floor(there) * floor(1 / gpus + 1e-9) if gpus < 1 else floor(there / gpus + 1e-9))


def computed(
    worker: type, task: Any, rows: Sequence[Mapping[str, Any]], workers: int, cpus: float, gpus: float
) -> Iterator[int]:
    """The number of each piece of work, as it is finished. A Ray block is one piece, so a dead worker costs only one.

    worker: an actor class, created from `task` on each of `workers` workers; a call takes a batch of one row and
    returns what `done` gives. rows: one per piece, with its `number`. cpus, gpus: per worker. Raises what the work
    raised, and AntpipeError if Ray fails.
    """
    import ray
    from ray.data.exceptions import SystemException

    try:
        pieces = ray.data.from_items([dict(row) for row in rows], override_num_blocks=len(rows)).map_batches(
            worker,
            fn_constructor_args=(task,),
            batch_size=1,
            batch_format="numpy",
            compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1),
            num_cpus=cpus,
            num_gpus=gpus or None,
        )
        for batch in pieces.iter_batches(batch_size=1, prefetch_batches=0, batch_format="numpy"):
            yield number_of(batch)
    except (ray.exceptions.RayError, SystemException) as error:
        reason = (str(error.__cause__ or error).strip() or type(error).__name__).splitlines()[0]
        raise AntpipeError(f"Ray: {reason}; what is finished is kept", "ray status") from error


def number_of(answer: Mapping[str, Any]) -> int:
    """The number of the piece of work in a worker's answer. Raises the error that the worker met."""
    if answer["error"][0]:
        raise pickle.loads(answer["error"][0])  # nosec B301 # Ray itself sends what it computes as pickles
    return int(answer["number"][0])


def done(number: int, work: Callable[[], None]) -> dict[str, list[Any]]:
    """Do a piece of work and return the worker's answer. Errors come back as values, so that they are raised the same
    way whichever engine met them."""
    error = b""
    try:
        work()
    except Exception as raised:  # whatever it is, it is raised in the planning process
        error = packed(raised)
    return {"number": [number], "error": [error]}


# -- on the workers ---------------------------------------------------------------------------------------------------


def versions() -> dict[str, str]:
    """The versions of antpipe and of the libraries on this node; builds of one version (`+cpu`) count as the same."""
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
        pickle.loads(content)  # nosec B301 # made in the line before
    except Exception:  # library errors may have constructor arguments that pickle does not know about
        content = pickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"))
    return content
