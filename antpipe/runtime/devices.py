"""Where to compute, and what that needs."""

import importlib.util
import os
import shutil
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

from antpipe.errors import UsageError

if TYPE_CHECKING:
    import torch


def choose_device(name: str, number: int | None = None) -> "torch.device":
    """The device `auto` (a CUDA GPU where there is one, else the CPU), `cpu` or `cuda` stands for.

    Raises UsageError where `cuda` is asked for and this machine (or this build of torch) has none: computing on
    the CPU instead could take a hundred times as long, so it is not done unasked. number: of the GPU, where several
    processes share a machine.
    """
    import torch

    if name not in ("auto", "cpu", "cuda"):
        raise UsageError(f"--device {name}: choose from auto, cpu, cuda")
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise UsageError("--device cuda: torch finds no CUDA GPU here", "the same command with --device cpu")
    if not available or name == "cpu":
        return torch.device("cpu")
    return torch.device("cuda") if number is None else torch.device("cuda", number)


def choose_precision(name: str, device: "torch.device") -> str:
    """The precision of matrix products that `auto`, `fp32` or `bf16` stands for: `auto` is bf16 where the device
    multiplies it natively (AMX or AVX-512 BF16, a GPU from Ampere on), and fp32 elsewhere, where bf16 is slower."""
    if name != "auto":
        return name
    import torch

    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if cpu_multiplies_bf16() else "fp32"


def cpu_multiplies_bf16() -> bool:
    """Whether this processor has instructions for bf16 matrix products (what torch's `get_capabilities` finds)."""
    import torch

    if not hasattr(torch.cpu, "get_capabilities"):  # an older torch cannot tell
        return False
    found = torch.cpu.get_capabilities()
    return any(found.get(name, False) for name in ("amx_bf16", "avx512_bf16"))


def require_compiler(device: "torch.device") -> None:
    """Refuse --compile, before anything is done, where torch would fail to compile for this device."""
    import torch

    lacking = None
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")  # where torch looks
    if not hasattr(torch.compiler, "set_stance"):
        lacking = f"torch 2.6; this is {torch.__version__}"
    elif device.type == "cuda" and importlib.util.find_spec("triton") is None:
        lacking = "triton, which is not installed"
    elif shutil.which(compiler) is None:
        lacking = f"a C++ compiler, and {compiler} is not here (the variable CXX names another)"
    elif not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        lacking = f"the headers of Python, and {sysconfig.get_path('include')}/Python.h is not here"
    if lacking:
        raise UsageError(f"--compile needs {lacking}", "the same command without --compile")
