"""Image encoders of open_clip: MODEL/TAG, MODEL/CHECKPOINT-FILE, `hf-hub:REPOSITORY` or `local-dir:FOLDER`."""

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from antpipe.errors import DataError, UsageError
from antpipe.features.encoders.located import Located, folder_digest, hub_weights
from antpipe.store.files import file_sha256

if TYPE_CHECKING:
    import torch

# What open_clip looks for in a hub repository that names no file, the better format first.
HUB_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
CHECKPOINT_FILES = (".pt", ".pth", ".bin", ".safetensors", ".npz", ".ckpt")


def locate_open_clip_file(name: str, next_command: str) -> Located | None:
    """The encoder of a local file or folder; None if its weights are on the hub.

    Raises UsageError for a model or tag that open_clip does not know (and suggests similar ones), DataError for a
    missing file or folder.
    """
    if name.startswith("local-dir:"):
        folder = Path(name.removeprefix("local-dir:"))
        if not folder.is_dir():
            raise DataError(f"image encoder {name}: no such folder", next_command)
        return Located(name, f"local-dir:{folder.resolve().name}", "folder", folder_digest(folder), folder.absolute())
    if name.startswith("hf-hub:"):
        return None
    model, _, pretrained = name.partition("/")
    _check_model(name, model)
    if Path(pretrained).is_file():
        checkpoint = Path(pretrained)
        return Located(name, f"{model}/{checkpoint.name}", "file", file_sha256(checkpoint), checkpoint.absolute())
    _check_tag(name, model, pretrained, next_command)
    return None


def _check_model(name: str, model: str) -> None:
    import open_clip

    known = open_clip.list_models()
    if model not in known:
        near = difflib.get_close_matches(model, known, n=5, cutoff=0.5)
        raise UsageError(
            f"image encoder {name}: open_clip has no model {model!r}"
            + (f"; similar: {', '.join(near)}" if near else "")
            + ". Name it MODEL/TAG, MODEL/CHECKPOINT-FILE, timm:NAME or packaged/efficientnet-lite0"
        )


def _check_tag(name: str, model: str, tag: str, next_command: str) -> None:
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(model)
    configuration = open_clip.get_pretrained_cfg(model, tag)
    if not configuration and ("/" in tag or tag.endswith(CHECKPOINT_FILES)):
        raise DataError(f"image encoder {name}: no such checkpoint file: {tag}", next_command)
    if not configuration:
        shown = difflib.get_close_matches(tag, tags, n=5, cutoff=0.4) or tags
        raise UsageError(f"image encoder {name}: {model} has no weights {tag!r}; choose from {', '.join(shown)}")
    quick = bool(configuration.get("quick_gelu", False))
    if quick != bool(open_clip.get_model_config(model).get("quick_gelu", False)):
        # open_clip only warns here, and computes with another activation than the weights were trained with.
        fitting = f"{model}-quickgelu" if quick else model.removesuffix("-quickgelu")
        raise UsageError(f"image encoder {name}: the weights {tag!r} belong to the model {fitting}: {fitting}/{tag}")


def fetch_open_clip(name: str) -> tuple[Path, str]:
    """Folder or weights file of a model on the hub, downloaded if it is not here, and its revision.

    The revision is the commit, or the sha256 of weights from a plain URL. Raises whatever the hub client raises.
    """
    from huggingface_hub import snapshot_download
    from open_clip import download_pretrained, get_pretrained_cfg

    if name.startswith("hf-hub:"):
        repository = name.removeprefix("hf-hub:")
        snapshot_download(repository, allow_patterns=["*.json", "*.txt", "*.model"])
        folder, _ = hub_weights(repository, HUB_WEIGHTS)
        return folder, folder.name
    model, _, tag = name.partition("/")
    configuration = get_pretrained_cfg(model, tag)
    repository, _, file = configuration.get("hf_hub", "").rpartition("/")
    if not repository:
        weights = Path(download_pretrained(configuration))
        return weights, file_sha256(weights)
    files = (str(Path(file).with_suffix(".safetensors")), file) if file else HUB_WEIGHTS
    folder, weights = hub_weights(repository, files)
    return weights, folder.name


def load_open_clip(located: Located, device: "torch.device") -> tuple[Any, Any, dict[str, Any]]:
    """The transform of a picture, the network in inference mode, and facts. Raises whatever open_clip does."""
    import open_clip

    model, _, tag = located.asked.partition("/")
    settings = preprocessing(model, tag)
    in_folder = located.path.is_dir()
    # Name the located weights by their path, not by their tag: these are the ones the revision is about. This function
    # of open_clip refuses to continue with random weights; the others only log it.
    network, transform = open_clip.create_model_from_pretrained(
        f"local-dir:{located.path}" if in_folder else model,
        None if in_folder else str(located.path),
        device=device,
        image_mean=settings.get("mean"),
        image_std=settings.get("std"),
        image_interpolation=settings.get("interpolation"),
        image_resize_mode=settings.get("resize_mode"),
    )
    facts = {"pooling": "projected, not normalised", "library": f"open_clip {open_clip.__version__}"}
    return transform, network.eval(), facts


def preprocessing(model: str, tag: str) -> dict[str, Any]:
    """The preprocessing of a tag; for a checkpoint file, what all tags of its model have in common.

    Models such as SigLIP do not use CLIP's, and open_clip knows theirs by tag only. Empty for a folder or a repository,
    which bring their own.
    """
    import open_clip

    settings: dict[str, Any] = open_clip.get_pretrained_cfg(model, tag)
    known = [open_clip.get_pretrained_cfg(model, one) for one in open_clip.list_pretrained_tags_by_model(model)]
    if settings or not known:
        return settings
    return {key: value for key, value in known[0].items() if all(other.get(key) == value for other in known)}
