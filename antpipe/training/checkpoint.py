"""A trained model on disk: RUN/checkpoint.json, written last, names the weights file RUN/model-HASH.safetensors."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from antpipe import __version__
from antpipe.errors import AntpipeError, DataError, IntegrityError, UsageError
from antpipe.runtime.files import atomic
from antpipe.settings.base import from_json
from antpipe.settings.methods import NO_METHOD, way_of
from antpipe.settings.model import ModelConfig
from antpipe.settings.training import TrainConfig
from antpipe.store.artefacts import ARTEFACTS
from antpipe.store.documents import UPGRADE, NewerFormatError, converted, read_json, refuse_newer, write_json
from antpipe.store.files import file_sha256
from antpipe.training.folder import TRAIN_AGAIN, RunFolder

if TYPE_CHECKING:
    from torch import Tensor

    from antpipe.core.model import Ant

FORMAT = 1
LATER = {"negatives", "refit", "id_tables"}  # entries that descriptions written by antpipe 0.1.0 lack
MOST_PARTS = 4096  # maximum layers or experts of a model that a description may ask for
OTHER_USERS = "other users"


@dataclass(frozen=True)
class Checkpoint:
    """What a run was and what it found.

    fingerprint: covers everything that determines the run. groups: what the stage did with each parameter group.
    modalities: by name, the `width` of the raw feature and the `encoder` that made it (None if unknown).
    domains: fingerprints of the artefacts it read, by domain and artefact. source: fingerprint of the run it
    started from. metrics: of the best epoch, on the validation split. negatives: OTHER_USERS if the in-batch negatives
    were the next items of other users; "" for those of all rows (antpipe 0.1.0), or if `train` says what they were.
    refit: if validation targets were trained on too, for how many `epochs`, and the fingerprint `of` the run that chose
    them. id_tables: hashes of the ids of the items trained on, by domain, if the run recorded them (trained_items.py).
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
    negatives: str = ""
    refit: dict[str, Any] | None = None
    id_tables: dict[str, str] = field(default_factory=dict)
    antpipe: str = __version__
    format: int = field(default=FORMAT)

    def model_config(self) -> ModelConfig:
        return from_json(ModelConfig, self.model)

    def way(self) -> str:
        """How it was trained, as --arms names it: STAGE or STAGE+METHOD."""
        return way_of(self.stage, self.train.get("method", NO_METHOD))

    def widths(self) -> dict[str, int]:
        return {name: modality["width"] for name, modality in self.modalities.items()}

    def whitened(self) -> tuple[str, ...]:
        """The modalities it reads in their whitened form."""
        return tuple(self.train.get("whitened", ()))

    def reads(self, domain: str) -> set[str]:
        """The modalities of a domain that it reads: those of its own that the domain has."""
        return {artefact.removesuffix("-white") for artefact in self.domains.get(domain, {})} - {"sequences"}

    def build(self, device: str = "cpu") -> "Ant":
        """A model of this shape, with freshly drawn parameters; on device `meta` it has shapes but no values."""
        import torch

        from antpipe.core.model import Ant

        with torch.device(device):
            return Ant(self.model_config(), self.widths(), self.max_len, self.items)


class Modality(TypedDict):
    width: int
    encoder: str | None


class Refit(TypedDict):
    epochs: int
    of: str


def save(run: Path, model: "Ant", checkpoint: Checkpoint) -> None:
    """Write the weights, then the description that names them, so that a complete checkpoint exists at any moment.

    Raises AntpipeError if writing fails; an earlier checkpoint is then intact.
    """
    folder = RunFolder(run)
    run.mkdir(parents=True, exist_ok=True)
    with keeping(folder.description, "an earlier checkpoint in this folder is untouched"):
        with atomic(run / ".weights") as scratch:
            write_tensors(scratch, dict(model.state_dict()), {})
            sha256 = file_sha256(scratch)
        (run / ".weights").replace(folder.weights(sha256))
        write_json(folder.description, asdict(checkpoint) | {"weights_sha256": sha256})
    for leftover in folder.leftovers(sha256, checkpoint.id_tables):
        leftover.unlink()


def write_tensors(path: Path, tensors: Mapping[str, "Tensor"], metadata: dict[str, str]) -> None:
    """Write a safetensors file."""
    from safetensors.torch import save_file

    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path, metadata)


def tensors_sha256(tensors: Mapping[str, "Tensor"]) -> str:
    """A hash of the names, types, shapes and bytes of tensors."""
    import torch

    found = hashlib.sha256()
    for name in sorted(tensors):
        plain = tensors[name].detach().cpu().contiguous()
        found.update(f"{name} {plain.dtype} {tuple(plain.shape)}".encode())
        found.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def read_tensors(path: Path) -> dict[str, "Tensor"]:
    """The tensors of a safetensors file by name. Raises IntegrityError if it is damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, ValueError, SafetensorError) as error:
        raise damaged(f"{path}: cannot be read: {error}") from None
    return tensors


@contextmanager
def keeping(path: Path, kept: str) -> Iterator[None]:
    """Turn a failure to write `path` (disk full, no permission) into an AntpipeError that says what is kept."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise AntpipeError(f"{path} cannot be written: {reason}; {kept}") from error


def describe(run: Path) -> Checkpoint:
    """The description of a finished run.

    Raises DataError if there is none and IntegrityError if the file is not a description this version can read.
    """
    path = RunFolder(run).description
    try:
        document = read_json(path, dict[str, Any], TRAIN_AGAIN)
    except FileNotFoundError:
        raise DataError(f"{run}: no finished run here ({path.name} is missing)", TRAIN_AGAIN) from None
    except IntegrityError as error:
        raise damaged(error.message) from None
    refuse_newer(path, document.get("format"), FORMAT)
    known = set(Checkpoint.__dataclass_fields__)
    if set(document) > known:
        raise NewerFormatError(f"{path}: {', '.join(sorted(set(document) - known))} is of a newer antpipe", UPGRADE)
    if document.get("format") != FORMAT or set(document) | LATER != known:
        raise damaged(f"{path}: not a checkpoint of format {FORMAT} (odd entries: {sorted(known ^ set(document))})")
    try:
        return checked(converted(document, Checkpoint))
    except (ValueError, UsageError) as error:
        raise damaged(f"{path}: damaged: {error}") from None


def checked(found: Checkpoint) -> Checkpoint:
    """The description, after checking its values. Raises ValueError or UsageError if any is impossible."""
    config, train = found.model_config(), from_json(TrainConfig, found.train)
    wrong = [
        what
        for what, right in (
            ("weights_sha256", not set(found.weights_sha256) - set("0123456789abcdef")),
            ("max_len", found.max_len >= 1),
            ("items", found.items is None or found.items >= 1),
            ("epochs", 0 <= found.best_epoch <= found.epochs <= train.epochs or found.refit is not None),
            ("model", max(config.layers, config.experts) <= MOST_PARTS),
            (
                "domains",
                all(isinstance(one, dict) and one.keys() <= ARTEFACTS.keys() for one in found.domains.values()),
            ),
        )
        if not right
    ]
    for name, modality in found.modalities.items():
        if converted(modality, Modality)["width"] < 1:
            wrong.append(name)
    if found.refit is not None:
        converted(found.refit, Refit)
    if wrong:
        raise ValueError(f"impossible value of {', '.join(wrong)}")
    return found


def weights_file(run: Path, checkpoint: Checkpoint) -> Path:
    """The weights file of a run. Raises IntegrityError unless it is the one the description names."""
    folder = RunFolder(run)
    path = folder.weights(checkpoint.weights_sha256)
    path = folder.published if folder.published.is_file() and not path.exists() else path
    if not path.is_file() or file_sha256(path) != checkpoint.weights_sha256:
        raise damaged(f"{path}: missing, or not the weights its description names")
    return path


def load_weights(run: Path, checkpoint: Checkpoint) -> dict[str, "Tensor"]:
    """The tensors by name. Raises IntegrityError unless they are those the description names, and finite."""
    import torch

    path = weights_file(run, checkpoint)
    tensors = read_tensors(path)
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise damaged(f"{path}: {name} holds values that are not finite")
    return tensors


def load(run: Path) -> tuple["Ant", Checkpoint]:
    """The model of a run, in evaluation mode on the CPU, and its description."""
    checkpoint = describe(run)
    tensors = load_weights(run, checkpoint)
    wanted = checkpoint.build("meta").state_dict()
    if set(tensors) != set(wanted):
        raise damaged(f"{run}: unknown or missing tensors: {sorted(set(tensors) ^ set(wanted))}")
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name].shape:
            raise damaged(f"{run}: {name} is {tuple(tensor.shape)}, not {tuple(wanted[name].shape)}")
    model = checkpoint.build()
    model.load_state_dict(tensors)
    return model.eval(), checkpoint


def damaged(message: str) -> IntegrityError:
    return IntegrityError(f"{message}; train it again with --force", TRAIN_AGAIN)
