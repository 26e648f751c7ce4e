"""Training by several processes, started by `torchrun`: each works on its share of every step.

A step's items are split evenly: each process projects its share, and all gather the vectors. A step's sequences are
split too: each process sums the losses of its own positions over the same candidates. So the sums of losses and
gradients over all processes are those of a single one, except for the order in which floats are added.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from antpipe.errors import AntpipeError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
# How long the other processes wait while the first one validates and saves.
PATIENCE = timedelta(hours=4)


@dataclass(frozen=True)
class World:
    """This process among those that train together: its number `rank`, from 0, and their number `size`."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # among those on this machine

    @property
    def share(self) -> tuple[int, int]:
        return self.rank, self.size


ALONE = World()


def world_of(environment: "os._Environ[str] | dict[str, str]" = os.environ) -> World:
    """What torchrun says about this process (https://docs.pytorch.org/docs/stable/elastic/run.html)."""
    if "WORLD_SIZE" not in environment:
        return ALONE
    return World(*(int(environment[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))


@contextmanager
def together(world: World, device: "torch.device") -> Iterator[None]:
    """Connect to the other processes for the duration of the block: by NCCL on GPUs, by Gloo on CPUs.

    A nested block uses the same connections: opening them a second time can hang.
    """
    if world.size == 1:
        yield
        return
    import torch.distributed as dist

    if dist.is_initialized():
        yield
        return
    if device.type == "cuda":
        import torch

        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield
        dist.barrier()  # leave together: a process that closes its connections early makes the others crash
    finally:
        dist.destroy_process_group()


def rows_of(n: int, world: World) -> slice:
    """This process's share of n rows: ceil(n / size) of them, or what is left for the last processes."""
    each = -(-n // world.size)
    return slice(min(n, world.rank * each), min(n, (world.rank + 1) * each))


def gather_rows(part: "torch.Tensor", n: int, world: World) -> "torch.Tensor":
    """All n rows (n, D), of which each process has its share (see rows_of). Gradients are summed over processes and
    go back to the owners of the rows."""
    if world.size == 1:
        return part
    import torch
    import torch.distributed as dist
    from torch.autograd.function import once_differentiable

    class Gather(torch.autograd.Function):
        @staticmethod
        def forward(_: Any, part: torch.Tensor) -> torch.Tensor:
            each = -(-n // world.size)
            padded = part.new_zeros(each, part.shape[1])
            padded[: len(part)] = part
            every = [torch.empty_like(padded) for _ in range(world.size)]
            dist.all_gather(every, padded)
            return torch.cat(every)[:n]

        @staticmethod
        @once_differentiable
        def backward(_: Any, grad: torch.Tensor) -> torch.Tensor:
            grad = grad.contiguous()
            dist.all_reduce(grad)
            return grad[rows_of(n, world)]

    gathered: torch.Tensor = Gather.apply(part.float() if part.dtype == torch.bfloat16 else part)
    return gathered


def add_gradients(parameters: "Sequence[torch.nn.Parameter]", world: World) -> None:
    """Replace each gradient by its sum over processes; one that a process lacks counts as zeros."""
    if world.size == 1:
        return
    import torch
    import torch.distributed as dist

    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([grad.flatten() for grad in grads])
    dist.all_reduce(flat)
    sizes = [parameter.numel() for parameter in parameters]
    for parameter, grad in zip(parameters, torch.split(flat, sizes), strict=True):
        parameter.grad = grad.view_as(parameter)


def total(value: "torch.Tensor", world: World) -> "torch.Tensor":
    """The sum of a number over processes, without gradient."""
    value = value.detach()
    if world.size > 1:
        import torch.distributed as dist

        value = value.clone()
        dist.all_reduce(value)
    return value


def of_first(make: Callable[[], T], world: World) -> T:
    """Call `make` in the first process, and return its result in all of them."""
    if world.size == 1:
        return make()
    import torch.distributed as dist

    box: list[Any] = [make() if world.rank == 0 else None]
    dist.broadcast_object_list(box)
    made: T = box[0]
    return made


@contextmanager
def held_by_first(hold: Callable[[], AbstractContextManager[None]], world: World) -> Iterator[None]:
    """Hold a context that the first process enters for all. If entering it fails there, it fails in all of them."""
    with ExitStack() as held:

        def enter() -> AntpipeError | None:
            try:
                held.enter_context(hold())
            except AntpipeError as error:
                return error
            return None

        refused = of_first(enter, world)
        if refused is not None:
            raise refused
        yield


def of_all(value: T, world: World) -> list[T]:
    """The values of all processes, in order of rank."""
    if world.size == 1:
        return [value]
    import torch.distributed as dist

    every: list[Any] = [None] * world.size
    dist.all_gather_object(every, value)
    return every
