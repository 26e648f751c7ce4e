"""Whether a checkpoint fits a model and the features of a domain."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from antpipe.core import stages
from antpipe.errors import DataError, SameCommand
from antpipe.runtime.logs import log
from antpipe.settings.base import flag_name
from antpipe.store.artefacts import artefact_of
from antpipe.store.next_command import build_command, build_command_with, spell
from antpipe.store.store import Store
from antpipe.training.checkpoint import Checkpoint

SIZES = ("width", "layers", "heads", "inner_width", "feed_forward_experts", "feed_forward_expert_layers")
# Settings that add parameters to the model, and the group these belong to.
ADDED = {
    "history_score": "history_score",
    "floor": "floor",
    "reranker": "reranker",
    "learned_missing": "experts",
    "transductive": "ids",
}
ANY_FEATURES = "--stage relearn takes any features"


def reads_features_of_checkpoint(actions: stages.Stage) -> bool:
    """Whether experts or gates are kept. They were trained on features of one encoder: others mean nothing to them."""
    return actions["experts"] != stages.RESET or actions["gates"] != stages.RESET


def check_fit(store: Store, actions: stages.Stage, start: Checkpoint, wanted: Checkpoint, *, source: Path) -> None:
    """Refuse a checkpoint whose kept parts do not fit the features or the model, naming both sides."""
    if actions["ids"] == stages.KEEP and start.domains != wanted.domains:
        raise DataError(
            f"{source} was trained on {', '.join(start.domains) or 'another catalogue'}; this stage continues a run "
            f"on {', '.join(wanted.domains)}, with the same features and sequences"
        )
    sizes: tuple[str, ...] = SIZES if actions["encoder"] != stages.RESET else ()
    sizes += ("experts",) if reads_features_of_checkpoint(actions) and start.modalities else ()
    _require_same_shape(actions, start, wanted, sizes, source)
    if actions["positions"] != stages.RESET and start.max_len != wanted.max_len:
        raise DataError(
            f"{source} was trained with --max-len {start.max_len}, the domain's sequences have {wanted.max_len}",
            build_command_with(store.domain(next(iter(wanted.domains))), "sequences", "--max-len", str(start.max_len)),
        )
    if reads_features_of_checkpoint(actions):
        for name, here in wanted.modalities.items():
            there = start.modalities[name]
            _require_same_form(name, start, wanted, source)
            if not fits(there, here):
                raise DataError(
                    f"{source} reads {name} of {shown(there)}, the domain has {shown(here)}; {ANY_FEATURES}",
                    rebuild(store, next(iter(wanted.domains)), name, start),
                )
            if there["encoder"] is None:
                log.warning(f"{source} does not say what made its {name} features; only their width was compared")


def _require_same_shape(
    actions: stages.Stage, start: Checkpoint, wanted: Checkpoint, sizes: Sequence[str], source: Path
) -> None:
    """Refuse sizes that differ from kept parts, and parts the checkpoint lacks: all in one error, with the flags."""
    found: list[str] = []
    flags: dict[str, str | None] = {}
    without: list[str] = []
    for key in sizes:
        trained, asked = getattr(start.model_config(), key), getattr(wanted.model_config(), key)
        flag = f"--{flag_name(key)}"  # spelt out, because variables, a file or a preset may ask for the other value
        if trained != asked:
            found.append(f"was trained with {key} {trained}, this run asks for {asked}")
            flags |= {flag: str(trained)} if trained is not None else {}
            without += [flag] if trained is None else []
    for key, group in ADDED.items():
        if actions[group] != stages.RESET and getattr(wanted.model_config(), key) and not has(start, key):
            found.append(f"was trained without --{flag_name(key)}, which this stage takes from there")
            flags[f"--no-{flag_name(key)}"] = None
            without.append(f"--{flag_name(key)}")
    if found:
        again = "" if len(found) == 1 else f"; or train {source} again with the settings of this run"
        raise DataError(f"{source} {'; it '.join(found)}{again}", SameCommand(flags, tuple(without)))


def has(run: Checkpoint, key: str) -> bool:
    """Whether a run's model has the parameters that a setting adds. A floor has those of a history score."""
    model = run.model_config()
    return bool(getattr(model, key)) or (key == "history_score" and model.floor)


def fits(trained: Mapping[str, Any], here: Mapping[str, Any]) -> bool:
    """Whether features are of the kind a checkpoint was trained on. An imported checkpoint may not name its encoder."""
    return trained["width"] == here["width"] and trained["encoder"] in (None, here["encoder"])


def shown(modality: Mapping[str, Any]) -> str:
    return f"width {modality['width']} by {modality['encoder'] or 'an unknown encoder'}"


def _require_same_form(modality: str, start: Checkpoint, wanted: Checkpoint, source: Path) -> None:
    """Refuse whitened features for experts that were trained on raw ones, and the other way round."""
    before = modality in start.whitened()
    if start.modalities[modality]["encoder"] is not None and before != (modality in wanted.whitened()):
        there, here = ("whitened", "raw") if before else ("raw", "whitened")
        kept = ",".join(start.whitened())
        raise DataError(
            f"{source} reads {there} {modality}, this run would read {here} {modality}; {ANY_FEATURES}",
            SameCommand({"--whitened": kept}) if kept else SameCommand(without=("--whitened",)),
        )


def rebuild(store: Store, domain: str, modality: str, run: Checkpoint) -> str:
    """The command that builds a modality of a domain the way a run read it, as far as the run says."""
    encoder = run.modalities[modality]["encoder"]
    if modality == "price" or encoder is None:
        return build_command(store.domain(domain), modality, force=True)
    here = store.domain(domain).manifest().get(modality, {}).get("encoder", {})
    name, _, rest = encoder.rpartition(" (revision ")
    if modality in run.whitened() and here.get("name") == name and rest.startswith(str(here.get("revision"))[:12]):
        for like in _whitened_alike(store, run, artefact_of(modality, run.whitened())):
            return spell("whiten", domains=[domain], store=store.root, flags=["--modality", modality, "--like", like])
        return spell("whiten", flags=["--help"])
    return build_command_with(store.domain(domain), modality, "--encoder", name, force=True)


def _whitened_alike(store: Store, run: Checkpoint, artefact: str) -> list[str]:
    """Domains that are still whitened as the run read them."""
    read = {name: artefacts[artefact] for name, artefacts in run.domains.items() if artefact in artefacts}
    there = [name for name in read if name in store.domains()]
    return [name for name in there if store.domain(name).manifest().get(artefact, {}).get("fingerprint") == read[name]]
