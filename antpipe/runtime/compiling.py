"""Optional torch.compile of what a training step repeats: the experts of each modality, the feed-forward parts."""

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from antpipe.core.model import Ant

BACKEND = "inductor"


def compile_parts(model: "Ant") -> None:
    """Compile in place, for batches of any size; names of parameters stay as they are.

    Attention is left out: each number of blocks in a batch would be compiled anew.
    """
    from antpipe.core.model import FeedForward, ModalityExperts, SingleProjection

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
