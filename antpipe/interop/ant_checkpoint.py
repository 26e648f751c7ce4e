"""import ant-checkpoint: a checkpoint of the authors' ANT becomes a run that stages can start from."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from antpipe.core import stages
from antpipe.errors import DataError, UsageError
from antpipe.interop.ant_reference import load_state, unwrap
from antpipe.settings.base import to_json
from antpipe.settings.model import ModelConfig
from antpipe.store.files import digest, file_sha256
from antpipe.training import checkpoint
from antpipe.training.checkpoint import Checkpoint

if TYPE_CHECKING:
    from torch import Tensor

GOLDEN_PREFIX = "sd/"  # of the weights among arrays that hold inputs and outputs, too
HELP = "antpipe import ant-checkpoint --help"


def import_checkpoint(
    path: Path,
    out: Path,
    *,
    heads: int = ModelConfig.heads,
    fusion: float = ModelConfig.fusion,
    transductive: bool = ModelConfig.transductive,
    force: bool,
    notice: Callable[[str], None],
) -> tuple[Checkpoint, bool]:
    """Write the run `out`, of stage pretrain, with the weights of a file (see read_checkpoint, load_state) as float32.

    heads, fusion (beta): what the file does not tell, see load_state. transductive: take the item ids, too.
    The run names no encoders and no domains, as the file does not: re-learning works with any features, whatever
    keeps the experts only compares widths. notice: told what was left out. Returns the run's description and whether
    it was there already. Raises DataError for a file that is not a whole checkpoint, UsageError where `out` holds
    another run and not `force`, or `heads` does not divide the width.
    """
    tensors = read_checkpoint(path)
    try:
        model = load_state(tensors, heads=heads, fusion=fusion, transductive=transductive, notice=notice).float()
    except DataError as error:
        raise DataError(f"{path}: {error.message}", HELP) from None
    modalities = {name: {"width": width, "encoder": None} for name, width in model.widths.items()}
    items = None if model.ids is None else model.ids.num_embeddings
    origin = f"ant-checkpoint {file_sha256(path)}"
    described = Checkpoint(
        fingerprint=digest([origin, to_json(model.config), modalities, model.max_len, items]),
        stage="pretrain",
        groups=dict(stages.STAGES["pretrain"]),
        model=to_json(model.config),
        train={},
        modalities=modalities,
        max_len=model.max_len,
        items=items,
        domains={},
        source=origin,
        best_epoch=0,
        epochs=0,
        metrics={},
    )
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out}: is a file", "name another folder")
    if (out / checkpoint.DESCRIPTION).exists() and not force:
        existing = checkpoint.describe(out)
        if existing.fingerprint == described.fingerprint:
            return existing, True
        raise UsageError(
            f"--out {out}: holds another run (stage {existing.stage})", "name another folder, or add --force"
        )
    checkpoint.save(out, model, described)
    return described, False


def read_checkpoint(path: Path) -> dict[str, "Tensor"]:
    """The tensors by name of a file: .safetensors, .npz (where some names start with `sd/`, only those, without it),
    or anything else as a torch file.

    Nothing in the file is executed: raises DataError for a torch file that is more than tensors and plain values, as
    well as for one that is missing, damaged or of another kind.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file", HELP)
    readers: dict[str, Callable[[Path], Any]] = {".safetensors": _read_safetensors, ".npz": _read_arrays}
    try:
        content = readers.get(path.suffix.lower(), _read_torch)(path)
    except DataError:
        raise
    except Exception as error:  # a damaged file makes its reader fail in almost any way
        reason = str(error).partition("\n")[0]
        raise DataError(f"{path}: not a readable checkpoint ({type(error).__name__}: {reason})", HELP) from None
    if not isinstance(content, Mapping):
        raise DataError(f"{path}: holds no tensors by name but {type(content).__name__}", HELP)
    try:
        return unwrap(content)
    except DataError as error:
        raise DataError(f"{path}: {error.message}", HELP) from None


def _read_safetensors(path: Path) -> Mapping[str, Any]:
    from safetensors.torch import load_file

    tensors: dict[str, Any] = load_file(path)
    return tensors


def _read_arrays(path: Path) -> Mapping[str, Any]:
    import numpy as np

    with np.load(path, allow_pickle=False) as arrays:
        named = [name for name in arrays.files if name.startswith(GOLDEN_PREFIX)] or arrays.files
        return {name.removeprefix(GOLDEN_PREFIX): arrays[name] for name in named}


def _read_torch(path: Path) -> Any:
    import warnings
    from pickle import UnpicklingError

    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # odd pickle protocols: read or refused below
            return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        foreign = re.search(r"GLOBAL ([\w.]+)", str(error))
        if foreign is None:  # torch's own message advises to switch the safety off
            raise DataError(f"{path}: damaged, or not a torch file of tensors and plain values", HELP) from None
        save = f"torch.save(torch.load({str(path)!r}, weights_only=False)['state_dict'], 'weights.pt')"
        raise DataError(
            f"{path}: holds {foreign[1]}, which only code inside the file can restore; antpipe runs no such code",
            f'where you trust the file: python -c "import torch; {save}"',
        ) from None
