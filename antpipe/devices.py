"""Where to compute."""

from typing import TYPE_CHECKING

from antpipe.errors import UsageError

if TYPE_CHECKING:
    import torch


def choose_device(name: str) -> "torch.device":
    """The device `auto` (a CUDA GPU where there is one, else the CPU), `cpu` or `cuda` stands for.

    Raises UsageError where `cuda` is asked for and this machine (or this build of torch) has none: computing on
    the CPU instead could take a hundred times as long, so it is not done unasked.
    """
    import torch

    if name not in ("auto", "cpu", "cuda"):
        raise UsageError(f"--device {name}: choose from auto, cpu, cuda")
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise UsageError("--device cuda: torch finds no CUDA GPU here", "the same command with --device cpu")
    return torch.device("cuda" if available and name != "cpu" else "cpu")
