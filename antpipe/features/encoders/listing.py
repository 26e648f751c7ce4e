"""Lists encoders on this machine and on the hub, without using the network."""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from antpipe.errors import DataError
from antpipe.features.encoders.known import KNOWN, PACKAGED, Encoder
from antpipe.features.encoders.located import INSTALL_PACKAGED, card_licence, first_line, quiet

WEIGHTS = ("*.safetensors", "*.bin")


def offline_encoders(kind: str) -> list[Encoder]:
    """Encoders of a kind (text or image) that need no network: installed packages and models in the cache."""
    return [one for one in list_encoders(kind) if one.access == "offline"]


def offline_names(kind: str) -> str:
    """Their names for a message, and those of packages that could be installed."""
    here = [one.name for one in offline_encoders(kind)]
    missing = [one.name for one in packaged() if one.kind == kind and one.access == "install"]
    return ", ".join([*here, *(f"{name} (after {INSTALL_PACKAGED})" for name in missing)])


@contextmanager
def asking_the_hub(kind: str, name: str, next_command: str) -> Iterator[None]:
    """Ask the model hub for an encoder within the block. Raises DataError, with what to use instead, if that fails."""
    try:
        with quiet():
            yield
    except Exception as error:  # hub client, HTTP client and file system each raise errors of their own
        raise DataError(
            f"{kind} encoder {name}: not on this machine and not available from the model hub ({first_line(error)}). "
            f"Encoders that need no network: {offline_names(kind)}",
            next_command,
        ) from error


def list_encoders(kind: str | None = None, match: str | None = None, everything: bool = False) -> list[Encoder]:
    """Packaged encoders, those in the Hugging Face cache, and well-known ones on the hub, in this order.

    kind: text or image (None: both). match: only names that contain it, in any case. everything: also all that
    open_clip and timm can load, which takes the seconds these need to be imported.
    """
    cached = cached_models()
    found = [*packaged(), *cached.values()]
    further = [*KNOWN, *(every_image_encoder() if everything and kind != "text" else ())]
    names = {one.name for one in found}
    for one in further:
        if one.name in names:
            continue
        names.add(one.name)
        there = one.repository in {model.repository for model in cached.values()}
        found.append(replace(one, where="cached", access="offline") if there else one)
    wanted = [one for one in found if kind in (None, one.kind) and (match or "").lower() in one.name.lower()]
    order = ("packaged", "cached", "hub")
    return sorted(wanted, key=lambda one: (one.kind != "text", order.index(one.where)))


def packaged() -> list[Encoder]:
    """The encoders that come as packages; one that is not installed comes with the command that installs it."""
    return [
        replace(one, access="offline") if find_spec(package) else replace(one, get=INSTALL_PACKAGED)
        for package, one in PACKAGED.items()
    ]


def cached_models() -> dict[str, Encoder]:
    """Text and image encoders in the local Hugging Face cache that have weights, by repository.

    Only the revision `main`, which is what a name without a revision asks for.
    """
    from huggingface_hub import constants, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about repositories that are only partly there
            repositories = scan_cache_dir(constants.HF_HUB_CACHE).repos
    except (CacheNotFound, ValueError):  # there is no cache, or it is not a folder
        return {}
    known = {one.repository: one for one in KNOWN}
    models = {}
    for repository in sorted(repositories, key=lambda one: one.repo_id):
        for revision in repository.revisions:
            if repository.repo_type == "model" and "main" in revision.refs:
                encoder = describe(repository.repo_id, Path(revision.snapshot_path), known.get(repository.repo_id))
                if encoder is not None:
                    models[repository.repo_id] = encoder
    return models


def describe(repository: str, folder: Path, known: Encoder | None) -> Encoder | None:
    """A cached model as an encoder, judged by its files; None if it is not one that --encoder can name.

    known: what we already know about it.
    """
    if not any(path for pattern in WEIGHTS for path in folder.rglob(pattern)):
        return None
    licence = known.licence if known else card_licence(folder)
    if (folder / "modules.json").is_file():
        width, tokens = _text_facts(folder)
        return Encoder(repository, "text", "cached", "offline", width, tokens, licence, repository=repository)
    clip = _read(folder / "open_clip_config.json")
    if clip:
        name, width = f"hf-hub:{repository}", clip.get("model_cfg", {}).get("embed_dim")
    else:
        settings = _read(folder / "config.json")
        if "architecture" not in settings or not repository.startswith("timm/"):
            return replace(known, where="cached", access="offline") if known else None
        name, width = f"timm:{repository.removeprefix('timm/')}", settings.get("num_features")
    name = known.name if known else name
    return Encoder(name, "image", "cached", "offline", width, None, licence, repository=repository)


def every_image_encoder() -> Iterator[Encoder]:
    """All weights that open_clip and timm know, by the names --encoder takes."""
    with quiet():
        import open_clip
        import timm
        from timm.models import get_pretrained_cfg

    for model, tag in open_clip.list_pretrained():
        source, settings = open_clip.get_pretrained_cfg(model, tag), open_clip.get_model_config(model)
        if bool(source.get("quick_gelu")) == bool(settings.get("quick_gelu")):  # else: weights of MODEL-quickgelu
            repository = source.get("hf_hub", "").rpartition("/")[0]
            width = settings["embed_dim"]
            yield Encoder(f"{model}/{tag}", "image", "hub", "hub", width, repository=repository)
    for name in timm.list_pretrained():
        facts = get_pretrained_cfg(name)
        licence, repository = getattr(facts, "license", None), getattr(facts, "hf_hub_id", None)
        if repository:
            full = f"{repository}{name}" if repository.endswith("/") else repository
            yield Encoder(f"timm:{name}", "image", "hub", "hub", licence=licence, repository=full)


def more_to_show() -> str:
    """One line on what a list without `everything` leaves out."""
    spec = find_spec("open_clip")
    places = spec.submodule_search_locations if spec else None
    models = list(Path(places[0], "model_configs").glob("*.json")) if places else []
    return (
        f"not shown: weights for {len(models)} models of open_clip {version('open_clip_torch')}, and backbones of timm "
        f"{version('timm')}; --kind image with --all or --match TEXT shows them"
    )


def _text_facts(folder: Path) -> tuple[int | None, int | None]:
    """Width and longest text (in tokens) of a sentence-transformers folder, as far as its settings say.

    The width is that of the last module that names one.
    """
    width = _read(folder / "config.json").get("hidden_size")
    for path in sorted(folder.glob("[0-9]*_*/config.json")):
        settings = _read(path)
        given = (settings.get(key) for key in ("word_embedding_dimension", "embedding_dimension", "out_features"))
        width = next((one for one in given if one), width)
    return width, _read(folder / "sentence_bert_config.json").get("max_seq_length")


def _read(path: Path) -> dict[str, Any]:
    """A settings file, or nothing if it is missing or damaged: a list may be lax, embedding itself is strict."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
