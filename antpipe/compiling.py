"""Optional torch.compile of what a training step repeats: the experts of each modality, the feed-forward parts."""

import importlib.util
import os
import shutil
import sys
import sysconfig
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from antpipe.errors import UsageError

if TYPE_CHECKING:
    import torch

    from antpipe.model import Ant

BACKEND = "inductor"


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


def compile_parts(model: "Ant") -> None:
    """Compile in place, for batches of any size; names of parameters stay as they are.

    Attention is left out: each number of blocks in a batch would be compiled anew.
    """
    from antpipe.model import FeedForward, ModalityExperts, SingleProjection

    for part in model.modules():
        if isinstance(part, FeedForward | ModalityExperts | SingleProjection):
            part.compile(backend=BACKEND, dynamic=True)


def uncompiled(model: "Ant") -> AbstractContextManager[None]:
    """Compute with the model as it is written, so that a validation finds what `antpipe evaluate` finds."""
    import torch

    if any(part._compiled_call_impl is not None for part in model.modules()):
        stance: AbstractContextManager[None] = torch.compiler.set_stance("force_eager")
        return stance
    return nullcontext()
