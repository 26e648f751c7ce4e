"""Which engine computes the shards of an embedding: this process, or workers of a Ray cluster."""

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

from antpipe.errors import DataError, UsageError
from antpipe.features.shards.plan import Advance, Embedder, Engine, Shard, ShardFolder, run_here
from antpipe.settings.features import EngineConfig

LOCAL = EngineConfig()
INSTALL_RAY = "pip install 'antpipe[ray]'"


@dataclass(frozen=True)
class Carrying:
    """How contents travel in files, one by one: as text, bytes or numbers, or lists and mappings of them."""

    pack: Callable[[Any], Any]
    unpack: Callable[[Any], Any]


def same(content: Any) -> Any:
    return content


PLAIN = Carrying(same, same)


def engine_of(config: EngineConfig, say: Callable[[str], None], carrying: Carrying | None = None) -> Engine:
    """The engine of these settings. say: is told what a user should know.

    carrying: how the contents of each shard are carried to workers that do not see what they are read from, or for
    whom what reads them is too much; None where workers read like this process does (a shared file system).
    Raises DataError where Ray is asked for and not installed, UsageError where settings contradict each other.
    """
    if config.engine == "local":
        given = [name for name in ("ray_address", "ray_workers", "ray_cpus", "ray_gpus") if getattr(config, name)]
        if given:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            raise UsageError(f"{flags}: only with --engine ray")
        return LocalEngine(config.threads, say)
    if config.ray_gpus > 1 and not config.ray_gpus.is_integer():
        raise UsageError(
            f"--ray-gpus {config.ray_gpus:g}: above 1 a whole number; a fraction is for workers that share"
        )
    if importlib.util.find_spec("ray") is None:
        raise DataError("--engine ray: ray is not installed", INSTALL_RAY)
    from antpipe.features.shards.ray import RayEngine

    return RayEngine(config, say, carrying)


def worker_device(config: EngineConfig, asked: str, here: str) -> str:
    """What the embedders of this engine compute on. asked: --device; here: what this process computes on.

    Workers of Ray see the GPUs they take, so those settings decide. UsageError where --device says the contrary.
    """
    if config.engine == "local":
        return here
    if asked == "cpu" and config.ray_gpus:
        raise UsageError(f"--device cpu with --ray-gpus {config.ray_gpus:g}: choose one")
    if asked == "cuda" and not config.ray_gpus:
        raise UsageError("--device cuda with --engine ray: say how many GPUs a worker takes, with --ray-gpus")
    return "cuda" if config.ray_gpus else "cpu"


def worker_cpus(config: EngineConfig) -> int:
    """The CPUs a worker of Ray takes, whole ones; of the engine `local` 0, which stands for all there are."""
    import torch

    if config.engine == "local":
        return 0
    return max(1, ceil(config.ray_cpus or (1 if config.ray_gpus else config.threads or torch.get_num_threads())))


@dataclass(frozen=True)
class LocalEngine:
    """`run_here` with as many threads as the work began with."""

    threads: int
    say: Callable[[str], None]

    def __call__(
        self,
        shards: Sequence[Shard],
        make: Callable[[], Embedder],
        read: Callable[[Shard], Sequence[Any]],
        folder: ShardFolder,
        advance: Advance,
    ) -> Iterator[int]:
        import torch

        before = torch.get_num_threads()
        torch.set_num_threads(noted_threads(folder, self.threads, self.say))
        try:
            yield from run_here(shards, make, read, folder, advance)
        finally:
            torch.set_num_threads(before)


def counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def noted_threads(folder: ShardFolder, asked: int, say: Callable[[str], None]) -> int:
    """How many threads of torch every process of this work computes with: sums are split by threads and so rounded.

    What was noted when the work began counts; else what is asked for; else torch's choice on this machine.
    """
    import torch

    notes = folder.notes()
    if "threads" not in notes:
        threads = asked or torch.get_num_threads()
        folder.note(notes | {"threads": threads})
        return threads
    noted = int(notes["threads"])
    if asked and asked != noted:
        say(f"the work was begun with {counted(noted, 'thread')} in each process and goes on so, not with {asked}")
    return noted
