"""Which engine computes the shards of an embedding: this process, or workers of a Ray cluster."""

import importlib.util
from functools import partial
from math import ceil

from antpipe.errors import DataError, UsageError
from antpipe.features.shards.compute import Engine, Packing, compute_here
from antpipe.features.shards.ray import compute_on_ray
from antpipe.settings.features import EngineConfig

LOCAL = EngineConfig()
INSTALL_RAY = "pip install 'antpipe[ray]'"


def engine_of(config: EngineConfig, packing: Packing | None = None) -> Engine:
    """The engine of these settings.

    packing: how contents are sent to workers that cannot read them where this process does, or if the object that reads
    them is too large to send; None if workers read as this process does (a shared file system). Raises DataError if Ray
    is asked for and not installed, UsageError if settings contradict each other.
    """
    if config.engine == "local":
        given = [name for name in ("ray_address", "ray_workers", "ray_cpus", "ray_gpus") if getattr(config, name)]
        if given:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            raise UsageError(f"{flags}: only with --engine ray")
        return partial(compute_here, threads=config.threads)
    if config.ray_gpus > 1 and not config.ray_gpus.is_integer():
        raise UsageError(
            f"--ray-gpus {config.ray_gpus:g}: above 1 a whole number; a fraction is for workers that share a GPU"
        )
    if importlib.util.find_spec("ray") is None:
        raise DataError("--engine ray: ray is not installed", INSTALL_RAY)
    return partial(compute_on_ray, config=config, packing=packing)


def worker_device(config: EngineConfig, asked: str, here: str) -> str:
    """The device on which the engine's embedders compute. asked: --device; here: the device of this process.

    Ray workers see the GPUs they take, so the settings of the engine decide. Raises UsageError if --device contradicts
    them.
    """
    if config.engine == "local":
        return here
    if asked == "cpu" and config.ray_gpus:
        raise UsageError(f"--device cpu with --ray-gpus {config.ray_gpus:g}: choose one")
    if asked.startswith("cuda") and not config.ray_gpus:
        raise UsageError(f"--device {asked} with --engine ray: say how many GPUs a worker takes, with --ray-gpus")
    return "cuda" if config.ray_gpus else "cpu"


def worker_cpus(config: EngineConfig) -> int:
    """Whole CPUs that a Ray worker takes; 0 for the engine `local`, meaning all there are."""
    import torch

    if config.engine == "local":
        return 0
    return max(1, ceil(config.ray_cpus or (1 if config.ray_gpus else config.threads or torch.get_num_threads())))
