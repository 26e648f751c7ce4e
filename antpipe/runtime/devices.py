"""The device and precision to compute with, and torch.compile."""

import importlib.util
import os
import shutil
import sys
import sysconfig
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from antpipe.errors import SameCommand, UsageError

if TYPE_CHECKING:
    import torch
    from torch import nn

BACKEND = "inductor"  # of torch.compile


def choose_device(name: str, number: int | None = None) -> "torch.device":
    """The device that `auto` (a CUDA GPU if there is one, else the CPU), `cpu` or `cuda` stands for.

    number: which GPU, if several processes share a machine. Raises UsageError if `cuda` is asked for and this machine,
    or this build of torch, has none: the CPU could take a hundred times as long, so it is not used unasked.
    """
    import torch

    if name not in ("auto", "cpu", "cuda"):
        raise UsageError(f"--device {name}: choose from auto, cpu, cuda")
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise UsageError("--device cuda: torch finds no CUDA GPU here", SameCommand({"--device": "cpu"}))
    if not available or name == "cpu":
        return torch.device("cpu")
    return torch.device("cuda") if number is None else torch.device("cuda", number)


def choose_precision(name: str, device: "torch.device") -> str:
    """The precision of matrix products that `auto`, `fp32` or `bf16` stands for.

    `auto` is bf16 if the device multiplies it natively (AMX, AVX-512 BF16, GPUs since Ampere); otherwise bf16 would be
    slower, and it is fp32.
    """
    if name != "auto":
        return name
    import torch

    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if cpu_multiplies_bf16() else "fp32"


def cpu_multiplies_bf16() -> bool:
    """Whether this processor has instructions for bf16 matrix products, by torch's `get_capabilities`."""
    import torch

    if not hasattr(torch.cpu, "get_capabilities"):  # an older torch cannot tell
        return False
    found = torch.cpu.get_capabilities()
    return any(found.get(name, False) for name in ("amx_bf16", "avx512_bf16"))


def require_compiler(device: "torch.device") -> None:
    """Raise UsageError if torch could not compile for this device; to be called before anything is done."""
    import torch

    lacking = ""
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")  # where torch looks
    if not hasattr(torch.compiler, "set_stance"):
        lacking = f"torch 2.6; this is {torch.__version__}"
    elif device.type == "cuda" and importlib.util.find_spec("triton") is None:
        lacking = "triton, which is not installed"
    elif shutil.which(compiler) is None:
        lacking = f"a C++ compiler, and {compiler} is not installed (the variable CXX can name another)"
    elif not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        lacking = f"the headers of Python, and {sysconfig.get_path('include')}/Python.h is missing"
    if lacking:
        raise UsageError(f"--compile needs {lacking}", SameCommand({"--no-compile": None}, without=("--compile",)))


def compile_parts(model: "nn.Module") -> None:
    """Compile in place, for batches of any size, the parts whose class says `compiled_in_training`.

    The names of parameters stay as they are.
    """
    for part in model.modules():
        if getattr(part, "compiled_in_training", False):
            part.compile(backend=BACKEND, dynamic=True)


def uncompiled(model: "nn.Module") -> AbstractContextManager[None]:
    """Compute with the model as it is written, so that a validation finds what `antpipe evaluate` finds."""
    import torch

    if any(part._compiled_call_impl is not None for part in model.modules()):
        stance: AbstractContextManager[None] = torch.compiler.set_stance("force_eager")
        return stance
    return nullcontext()
