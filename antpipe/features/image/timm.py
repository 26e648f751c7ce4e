"""Image backbones of timm: `timm:NAME` with weights on the hub, or `timm:NAME/CHECKPOINT-FILE`."""

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from antpipe.errors import DataError, UsageError
from antpipe.features.encoders.located import Located, first_line, hub_weights
from antpipe.store.files import file_sha256

if TYPE_CHECKING:
    import torch

TIMM = "timm:"
# What timm looks for in a hub repository, the better format first.
TIMM_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def locate_timm_file(name: str, next_command: str) -> Located | None:
    """The encoder of a local checkpoint; None if its weights are on the hub.

    Raises UsageError for a model or tag that timm does not know (and suggests similar ones), DataError for a missing
    file.
    """
    model, _, checkpoint = name.removeprefix(TIMM).partition("/")
    _check_name(name, model, with_weights=not checkpoint)
    if not checkpoint:
        return None
    path = Path(checkpoint)
    if not path.is_file():
        raise DataError(f"image encoder {name}: no such checkpoint file: {checkpoint}", next_command)
    return Located(name, f"{TIMM}{model}/{path.name}", "file", file_sha256(path), path.absolute())


def _check_name(name: str, model: str, with_weights: bool) -> None:
    import timm

    architecture, _, tag = model.partition(".")
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=5, cutoff=0.5)
        raise UsageError(
            f"image encoder {name}: timm has no model {architecture!r}"
            + (f"; similar: {', '.join(near)}" if near else "")
            + f". Name it {TIMM}NAME.TAG or {TIMM}NAME/CHECKPOINT-FILE"
        )
    tags = [one.partition(".")[2] for one in timm.list_models(f"{architecture}.*", pretrained=True)]
    if (tag or with_weights) and (tag not in tags if tag else not tags):
        lacks = f"has no weights {tag!r}" if tag else "has no weights on the hub"
        shown = f"; choose from {', '.join(tags)}" if tags else f"; give a file: {TIMM}{architecture}/CHECKPOINT-FILE"
        raise UsageError(f"image encoder {name}: {architecture} {lacks}{shown}")


def timm_repository(name: str) -> str:
    """The hub repository that has the weights of `timm:NAME`. Raises FileNotFoundError if timm names none."""
    from timm.models import get_pretrained_cfg

    model = name.removeprefix(TIMM)
    repository = get_pretrained_cfg(model).hf_hub_id
    if not repository:
        raise FileNotFoundError(f"timm names no repository for {model}")
    return str(repository)


def fetch_timm(name: str) -> tuple[Path, str]:
    """Weights file of `timm:NAME` on the hub, downloaded if it is not here, and its commit."""
    folder, weights = hub_weights(timm_repository(name), TIMM_WEIGHTS)
    return weights, folder.name


def load_timm(located: Located, device: "torch.device") -> tuple[Any, Any, dict[str, Any]]:
    """The evaluation transform, the network without its classifier in inference mode, and facts.

    Raises DataError if the file leaves some of the network's weights unset, which timm only logs.
    """
    import timm
    import torch
    from timm.data import create_transform, resolve_model_data_config

    require_plain(located)
    model = located.asked.removeprefix(TIMM).partition("/")[0]
    overlay = {"file": str(located.path), "hf_hub_id": None, "url": None}

    def load(seed: int) -> Any:
        torch.manual_seed(seed)
        return timm.create_model(model, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=0)

    with torch.random.fork_rng(devices=[]):
        network, other = load(0).state_dict(), load(1)
    unset = [name for name, values in other.state_dict().items() if not torch.equal(values, network[name])]
    if unset:
        raise DataError(
            f"image encoder {located.asked}: {located.path} does not hold weights of this model: it has none for "
            f"{', '.join(unset[:3])}" + (" …" if len(unset) > 3 else "")
        )
    network = other.to(device).eval()
    configuration = resolve_model_data_config(network)
    facts = {
        "pooling": f"{_pooling(network)}, before the classifier",
        "library": f"timm {timm.__version__}",
        "licence": network.pretrained_cfg.get("license"),
    }
    return create_transform(**configuration, is_training=False), network, facts


def require_plain(located: Located) -> None:
    """Raises DataError if a torch file holds more than tensors and plain values: old versions of timm would run it."""
    import torch

    if located.path.suffix in (".safetensors", ".npz"):
        return
    try:
        torch.load(located.path, map_location="meta", weights_only=True)
    except Exception as error:  # for a damaged file it raises nearly anything
        raise DataError(
            f"image encoder {located.asked}: {located.path} does not hold weights that are tensors alone: "
            f"{first_line(error)}"
        ) from None


def _pooling(network: Any) -> str:
    """How the last features become one vector, in timm's terms."""
    for owner in (network, getattr(network, "head", None)):
        pool = getattr(owner, "global_pool", None)
        name = pool if isinstance(pool, str) else getattr(pool, "pool_type", "")
        if name:
            return str(name)
    return "the model's own"
