"""A trained model on disk: RUN/checkpoint.json, written last, names the weights file RUN/model-HASH.safetensors."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from antpipe import __version__
from antpipe.errors import AntpipeError, DataError, IntegrityError
from antpipe.runtime.files import atomic
from antpipe.settings.base import from_json
from antpipe.settings.model import ModelConfig
from antpipe.store.files import file_sha256, write_json

if TYPE_CHECKING:
    from torch import Tensor

    from antpipe.core.model import Ant

FORMAT = 1
DESCRIPTION = "checkpoint.json"


@dataclass(frozen=True)
class Checkpoint:
    """What a run was and found.

    fingerprint: of all that determines the run. groups: what the stage did with each group of parameters.
    modalities: by name, the `width` of the raw feature and the `encoder` that made it (None: not known).
    domains: fingerprints of the artefacts it read, by domain and artefact. source: fingerprint of the run it
    started from. metrics: of the best epoch on the validation split.
    """

    fingerprint: str
    stage: str
    groups: dict[str, str]
    model: dict[str, Any]
    train: dict[str, Any]
    modalities: dict[str, dict[str, Any]]
    max_len: int
    items: int | None
    domains: dict[str, dict[str, str]]
    source: str | None
    best_epoch: int
    epochs: int
    metrics: dict[str, float]
    weights_sha256: str = ""
    antpipe: str = __version__
    format: int = field(default=FORMAT)

    def model_config(self) -> ModelConfig:
        return from_json(ModelConfig, self.model)

    def widths(self) -> dict[str, int]:
        return {name: modality["width"] for name, modality in self.modalities.items()}

    def whitened(self) -> tuple[str, ...]:
        """The modalities it reads in their whitened form."""
        return tuple(self.train.get("whitened", ()))

    def build(self) -> "Ant":
        """A model of this shape, with first values."""
        from antpipe.core.model import Ant

        return Ant(self.model_config(), self.widths(), self.max_len, self.items)


def save(run: Path, model: "Ant", checkpoint: Checkpoint) -> None:
    """Write weights, then the description that names them: at any moment one complete checkpoint is there.

    Raises AntpipeError where the disk refuses; an earlier checkpoint is then still there.
    """
    run.mkdir(parents=True, exist_ok=True)
    with keeping(run / DESCRIPTION, "an earlier checkpoint in this folder is untouched"):
        with atomic(run / ".weights", durable=True) as scratch:
            write_tensors(scratch, dict(model.state_dict()), {})
            sha256 = file_sha256(scratch)
        (run / ".weights").replace(weights_path(run, sha256))  # named by its content
        write_json(run / DESCRIPTION, asdict(checkpoint) | {"weights_sha256": sha256})
    for leftover in run.glob("model-*.safetensors"):
        if leftover != weights_path(run, sha256):
            leftover.unlink()


def write_tensors(path: Path, tensors: Mapping[str, "Tensor"], metadata: dict[str, str]) -> None:
    """A safetensors file of these tensors."""
    from safetensors.torch import save_file

    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path, metadata)


@contextmanager
def keeping(path: Path, kept: str) -> Iterator[None]:
    """Turn a failure to write `path` (disk full, no permission) into an error that says what is not lost by it."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise AntpipeError(f"{path} cannot be written: {reason}; {kept}") from error


def weights_path(run: Path, sha256: str) -> Path:
    return run / f"model-{sha256[:12]}.safetensors"


def train_again(run: Path) -> str:
    """The command that replaces a run, as far as its folder tells."""
    return f"antpipe train --out {run} --force …"


def describe(run: Path) -> Checkpoint:
    """A run's description; DataError where there is none, IntegrityError where it is not one of ours."""
    path = run / DESCRIPTION
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(
            f"{run}: no finished run here ({DESCRIPTION} is missing)", f"antpipe train --out {run} …"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise IntegrityError(f"{path}: not JSON: {error}", train_again(run)) from None
    known = set(Checkpoint.__dataclass_fields__)
    if not isinstance(document, dict) or document.get("format") != FORMAT or set(document) != known:
        odd = sorted(set(document) ^ known) if isinstance(document, dict) else "no object"
        raise IntegrityError(
            f"{path}: not a checkpoint of format {FORMAT} (differing entries: {odd})", train_again(run)
        )
    return Checkpoint(**document)


def load_weights(run: Path, checkpoint: Checkpoint) -> dict[str, "Tensor"]:
    """The tensors by name, after checking that they are those the description names and are finite."""
    import torch
    from safetensors.torch import load_file

    path = weights_path(run, checkpoint.weights_sha256)
    if not path.is_file() or file_sha256(path) != checkpoint.weights_sha256:
        raise IntegrityError(f"{path}: missing, or not the weights {DESCRIPTION} describes", train_again(run))
    tensors: dict[str, Tensor] = load_file(path)
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise IntegrityError(f"{path}: {name} holds values that are not finite", train_again(run))
    return tensors


def load(run: Path) -> tuple["Ant", Checkpoint]:
    """The model of a run, in evaluation mode on the CPU, and its description."""
    checkpoint = describe(run)
    model = checkpoint.build()
    tensors = load_weights(run, checkpoint)
    wanted = model.state_dict()
    if set(tensors) != set(wanted):
        raise IntegrityError(
            f"{run}: unknown or missing tensors: {sorted(set(tensors) ^ set(wanted))}", train_again(run)
        )
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name].shape:
            raise IntegrityError(
                f"{run}: {name} is {tuple(tensor.shape)}, not {tuple(wanted[name].shape)}", train_again(run)
            )
    model.load_state_dict(tensors)
    return model.eval(), checkpoint
