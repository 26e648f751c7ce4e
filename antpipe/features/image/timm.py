"""Image backbones of timm: `timm:NAME` with weights of the hub, or `timm:NAME/CHECKPOINT-FILE`."""

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from antpipe.errors import DataError, UsageError
from antpipe.features.encoders.identity import Located
from antpipe.store.files import file_sha256

if TYPE_CHECKING:
    import torch

PREFIX = "timm:"
# What timm looks for in a repository of the hub, the better format first.
TIMM_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def locate_timm_file(name: str, mend: str) -> Located | None:
    """The encoder of a local checkpoint; None where the weights are those of the hub.

    Raises UsageError for a model or tag that timm does not know (with those that are near), DataError for an absent
    file.
    """
    model, _, checkpoint = name.removeprefix(PREFIX).partition("/")
    _check_name(name, model, with_weights=not checkpoint)
    if not checkpoint:
        return None
    path = Path(checkpoint)
    if not path.is_file():
        raise DataError(f"image encoder {name}: no such checkpoint file: {checkpoint}", mend)
    return Located(name, f"{PREFIX}{model}/{path.name}", "file", file_sha256(path), path.absolute())


def _check_name(name: str, model: str, with_weights: bool) -> None:
    import timm

    architecture, _, tag = model.partition(".")
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=5, cutoff=0.5)
        raise UsageError(
            f"image encoder {name}: timm has no model {architecture!r}"
            + (f"; near: {', '.join(near)}" if near else "")
            + f". Name it {PREFIX}NAME.TAG or {PREFIX}NAME/CHECKPOINT-FILE"
        )
    tags = [one.partition(".")[2] for one in timm.list_models(f"{architecture}.*", pretrained=True)]
    if (tag or with_weights) and (tag not in tags if tag else not tags):
        told = f"has no weights {tag!r}" if tag else "has no weights on the hub"
        shown = f"; choose from {', '.join(tags)}" if tags else f"; give a file: {PREFIX}{architecture}/CHECKPOINT-FILE"
        raise UsageError(f"image encoder {name}: {architecture} {told}{shown}")


def timm_repository(name: str) -> str:
    """The repository of the hub that has the weights of `timm:NAME`."""
    from timm.models import get_pretrained_cfg

    model = name.removeprefix(PREFIX)
    repository = get_pretrained_cfg(model).hf_hub_id
    if not repository:
        raise FileNotFoundError(f"timm names no repository for {model}")
    return str(repository)


def load_timm(located: Located, device: "torch.device") -> tuple[Any, Any, dict[str, Any]]:
    """The evaluation transform, the network without its classifier in inference mode, and facts.

    Raises DataError where the file leaves some of the network's weights unset, which timm only logs.
    """
    import timm
    import torch
    from timm.data import create_transform, resolve_model_data_config

    model = located.asked.removeprefix(PREFIX).partition("/")[0]
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


def _pooling(network: Any) -> str:
    """How the last features become one vector, in timm's words."""
    for owner in (network, getattr(network, "head", None)):
        pool = getattr(owner, "global_pool", None)
        name = pool if isinstance(pool, str) else getattr(pool, "pool_type", "")
        if name:
            return str(name)
    return "the model's own"
