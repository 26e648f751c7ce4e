"""The device and precision to compute with, and torch.compile."""

import importlib.util
import os
import re
import shutil
import sys
import sysconfig
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from antpipe.errors import SameCommand, UsageError
from antpipe.runtime.logs import log

if TYPE_CHECKING:
    import torch
    from torch import nn

BACKEND = "inductor"  # of torch.compile
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")


def choose_device(name: str, number: int | None = None) -> "torch.device":
    """The device that `auto` (a CUDA GPU if there is one, else the CPU), `cpu`, `cuda` or `cuda:N` means.

    number: which GPU, if several processes share a machine. Raises UsageError if `cuda` is asked for and this machine,
    or this build of torch, has none: the CPU could take a hundred times as long, so there is no silent fallback.
    """
    import torch

    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise UsageError(f"--device {name}: choose from auto, cpu, cuda, cuda:N")
    if name == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        why = why_no_gpu()
        if name != "auto":
            raise UsageError(
                f"--device {name}: {why or 'torch finds no CUDA GPU here'}", SameCommand({"--device": "cpu"})
            )
        if why:
            log.warning(f"computing on the CPU: {why}")
        return torch.device("cpu")
    use_planless_attention()
    if ":" not in name:
        return torch.device("cuda") if number is None else torch.device("cuda", number)
    if number is not None:
        raise UsageError(
            f"--device {name}: each process of torchrun has a GPU of its own", SameCommand({"--device": "cuda"})
        )
    device = torch.device(name)
    if device.index >= torch.cuda.device_count():
        last = torch.cuda.device_count() - 1
        raise UsageError(
            f"--device {name}: the GPUs here are cuda:0 to cuda:{last}", SameCommand({"--device": "cuda:0"})
        )
    torch.cuda.set_device(device)  # streams, graphs and random states are those of the current device
    return device


def use_planless_attention() -> None:
    """Keep torch from leaving attention to cuDNN."""
    import torch

    # cuDNN, torch's first choice in half precision, builds an execution plan for every new (batch, length): a training
    # step took 465 ms instead of 19 on an H100 (torch 2.11; pytorch/pytorch#155958). torch's own kernels need no plan.
    torch.backends.cuda.enable_cudnn_sdp(False)


def why_no_gpu() -> str:
    """Why torch, built for CUDA, cannot use the GPU of this machine; empty without a GPU or such a torch."""
    import torch

    if torch.version.cuda is None or not NVIDIA_DRIVER.exists():
        return ""
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except RuntimeError as error:  # a driver that is too old, or a GPU that fails
        return str(error).split(" Please ")[0].strip()
    return ""


def choose_precision(name: str, device: "torch.device") -> str:
    """The precision of matrix products that `auto`, `fp32` or `bf16` stands for.

    `auto` is bf16 if the device multiplies it natively (AMX, AVX-512 BF16, GPUs since Ampere); otherwise bf16 would be
    slower, and it is fp32. Raises UsageError if bf16 is asked for on a GPU without it.
    """
    import torch

    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        if name == "bf16" and not native:
            gpu = torch.cuda.get_device_name(device)
            raise UsageError(f"--precision bf16: {gpu} does not multiply bf16", SameCommand({"--precision": "fp32"}))
        return ("bf16" if native else "fp32") if name == "auto" else name
    if name != "auto":
        return name
    return "bf16" if cpu_multiplies_bf16() else "fp32"


def cpu_multiplies_bf16() -> bool:
    """Whether this processor has instructions for bf16 matrix products, by torch's `get_capabilities`."""
    import torch

    if not hasattr(torch.cpu, "get_capabilities"):  # an older torch cannot tell
        return False
    found = torch.cpu.get_capabilities()
    return any(found.get(name, False) for name in ("amx_bf16", "avx512_bf16"))


def require_compiler(device: "torch.device") -> None:
    """Raise UsageError if torch cannot compile for this device; call this before any work begins."""
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
