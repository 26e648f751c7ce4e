"""import ant-checkpoint: turn a checkpoint of the authors' ANT into a run that stages can start from."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from antpipe.core import stages
from antpipe.errors import DataError, UsageError
from antpipe.interop.ant_reference import from_reference, unwrap
from antpipe.settings.base import to_json
from antpipe.settings.model import ModelConfig
from antpipe.store.files import file_sha256
from antpipe.store.manifest import digest
from antpipe.store.next_command import spell
from antpipe.training import checkpoint
from antpipe.training.checkpoint import Checkpoint
from antpipe.training.folder import RunFolder

if TYPE_CHECKING:
    from torch import Tensor

GOLDEN_PREFIX = "sd/"  # marks the weights in a file that also holds inputs and outputs
HELP = "antpipe import ant-checkpoint --help"


def import_checkpoint(
    path: Path,
    out: Path,
    *,
    heads: int = ModelConfig.heads,
    fusion: float = ModelConfig.fusion,
    transductive: bool = ModelConfig.transductive,
    force: bool = False,
) -> tuple[Checkpoint, bool]:
    """Write the weights of a file (see read_checkpoint) as float32 to the run folder `out`, as a run of stage pretrain.

    heads, fusion (beta): not stored in the file, see from_reference. transductive: import the item ids too. The file
    names no encoders and no domains, so neither does the run: re-learning works with any features, and stages that
    keep the experts can only check widths. Logs what was left out. Returns the run's description and whether it
    existed already. Raises DataError if the file is not a complete checkpoint, and UsageError if `heads` does not
    divide the width or `out` holds a different run (unless `force`).
    """
    tensors = read_checkpoint(path)
    try:
        model = from_reference(tensors, heads=heads, fusion=fusion, transductive=transductive).float()
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
        raise UsageError(f"--out {out}: is a file, not a folder")
    if RunFolder(out).is_finished() and not force:
        existing = checkpoint.describe(out)
        if existing.fingerprint == described.fingerprint:
            return existing, True
        flags: list[str | Path] = [path, "--out", out, "--heads", str(heads), "--fusion", str(fusion), "--force"]
        flags += ["--transductive"] if transductive else []
        raise UsageError(
            f"--out {out}: holds another run (stage {existing.stage})", spell("import ant-checkpoint", flags=flags)
        )
    checkpoint.save(out, model, described)
    return described, False


def read_checkpoint(path: Path) -> dict[str, "Tensor"]:
    """The tensors of a file by name: .safetensors, .npz, or any other file as a torch file.

    If names in an .npz start with `sd/`, only those are read, without the prefix. No code in the file is executed.
    Raises DataError if the file is missing, damaged or of another kind, or a torch file with more than tensors and
    plain values.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file", HELP)
    readers: dict[str, Callable[[Path], Any]] = {".safetensors": _read_safetensors, ".npz": _read_arrays}
    try:
        content = readers.get(path.suffix.lower(), _read_torch)(path)
    except DataError:
        raise
    except Exception as error:  # readers raise almost anything for a damaged file
        reason = str(error).partition("\n")[0]
        raise DataError(f"{path}: not a readable checkpoint ({type(error).__name__}: {reason})", HELP) from None
    if not isinstance(content, Mapping):
        raise DataError(f"{path}: holds a {type(content).__name__}, not tensors by name", HELP)
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
    from pickle import UnpicklingError  # nosec B403 # the error alone

    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about odd pickle protocols, which are read or refused below
            return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        foreign = re.search(r"GLOBAL ([\w.]+)", str(error))
        if foreign is None:  # torch's own message suggests disabling the safety
            raise DataError(f"{path}: damaged, or not a torch file of tensors and plain values", HELP) from None
        save = f"torch.save(torch.load({str(path)!r}, weights_only=False)['state_dict'], 'weights.pt')"
        raise DataError(
            f"{path}: holds {foreign[1]}, which only code in the file can restore; antpipe does not run such code. "
            "If you trust the file, save its weights alone",
            f'python -c "import torch; {save}"',
        ) from None
