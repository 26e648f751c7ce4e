"""Whether a checkpoint fits a model and the features of a domain; opening a run for a domain."""

import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from antpipe.core import stages
from antpipe.core.catalogue import Catalogue, load_catalogue
from antpipe.errors import DataError
from antpipe.settings.base import flag_name
from antpipe.store.artefacts import artefact_of
from antpipe.store.store import Store
from antpipe.training import checkpoint
from antpipe.training.checkpoint import Checkpoint

if TYPE_CHECKING:
    from antpipe.core.model import Ant


SIZES = ("width", "layers", "heads", "inner_width", "feed_forward_experts", "feed_forward_expert_layers")


def reads_features_of_checkpoint(actions: stages.Stage) -> bool:
    """Experts or gates that are kept were trained on features of one encoder: others mean nothing to them."""
    return actions["experts"] != stages.RESET or actions["gates"] != stages.RESET


def check_fit(
    store: Store,
    actions: stages.Stage,
    start: Checkpoint,
    wanted: Checkpoint,
    *,
    source: Path,
    notice: Callable[[str], None],
) -> None:
    """Refuse a checkpoint whose kept parts do not fit the features or the model, naming both sides."""
    if actions["ids"] == stages.KEEP and start.domains != wanted.domains:
        raise DataError(
            f"{source} was trained on {', '.join(start.domains) or 'another catalogue'}; this stage goes on from a run "
            f"on {', '.join(wanted.domains)}, with the same features and sequences"
        )
    sizes: tuple[str, ...] = SIZES if actions["encoder"] != stages.RESET else ()
    sizes += ("experts",) if reads_features_of_checkpoint(actions) and start.modalities else ()
    for key in sizes:
        trained, asked = getattr(start.model_config(), key), getattr(wanted.model_config(), key)
        if trained != asked:
            flag = f"--{flag_name(key)}"  # to say it, since variables, a file and a preset may ask for the other one
            raise DataError(
                f"{source} was trained with {key} {trained}, this run asks for {asked}",
                f"the same command with{f' {flag} {trained}' if trained is not None else f'out {flag}'}",
            )
    learned, wants = (run.model_config().history_score for run in (start, wanted))
    if actions["history_score"] != stages.RESET and wants and not learned:
        raise DataError(
            f"{source} was trained without --history-score, which this stage takes from there",
            "the same command with --no-history-score",
        )
    if actions["positions"] != stages.RESET and start.max_len != wanted.max_len:
        raise DataError(
            f"{source} was trained with --max-len {start.max_len}, the domain's sequences have {wanted.max_len}",
            store.domain(next(iter(wanted.domains))).command_with("sequences", "--max-len", str(start.max_len)),
        )
    if reads_features_of_checkpoint(actions):
        for name, there in start.modalities.items():
            here = wanted.modalities[name]
            _require_same_form(name, start, wanted, source)
            if not fits(there, here):
                raise DataError(
                    f"{source} reads {name} of {shown(there)}, the domain has {shown(here)}",
                    _rebuild(store, next(iter(wanted.domains)), name, start) + " (or --stage relearn)",
                )
            if there["encoder"] is None:
                notice(f"{source} does not say what made its {name} features; only their width was compared")


def fits(trained: Mapping[str, Any], here: Mapping[str, Any]) -> bool:
    """Whether features are of the kind a checkpoint was trained on; an imported one may not know its encoder."""
    return trained["width"] == here["width"] and trained["encoder"] in (None, here["encoder"])


def shown(modality: Mapping[str, Any]) -> str:
    return f"width {modality['width']} by {modality['encoder'] or 'an unknown encoder'}"


def _require_same_form(modality: str, start: Checkpoint, wanted: Checkpoint, source: Path) -> None:
    """Whitened features mean nothing to experts that were trained on raw ones, and the other way round."""
    before = modality in start.whitened()
    if start.modalities[modality]["encoder"] is not None and before != (modality in wanted.whitened()):
        there, here = ("whitened", "raw") if before else ("raw", "whitened")
        kept = ",".join(start.whitened())
        raise DataError(
            f"{source} reads {there} {modality}, this run would read {here} {modality}",
            f"the same command {f'with --whitened {kept}' if kept else 'without --whitened'} (or --stage relearn)",
        )


def _rebuild(store: Store, domain: str, modality: str, run: Checkpoint) -> str:
    """The command that builds a modality of a domain the way a run read it, as far as the run says."""
    encoder = run.modalities[modality]["encoder"]
    if modality == "price" or encoder is None:
        return store.domain(domain).command(modality, force=True)
    here = store.domain(domain).manifest().get(modality, {}).get("encoder", {})
    name, _, rest = encoder.rpartition(" (revision ")
    if modality in run.whitened() and here.get("name") == name and rest.startswith(str(here.get("revision"))[:12]):
        like = _whitened_alike(store, run, artefact_of(modality, run.whitened()))
        words = ["antpipe", "whiten", "--modality", modality, "--domains", domain, "--store", str(store.root)]
        return shlex.join([*words, "--like", like])
    return store.domain(domain).command_with(modality, "--encoder", name)


def _whitened_alike(store: Store, run: Checkpoint, artefact: str) -> str:
    """A domain that is still whitened as the run read it."""
    for name in [one for one, read in run.domains.items() if artefact in read and one in store.domains()]:
        if store.domain(name).manifest().get(artefact, {}).get("fingerprint") == run.domains[name][artefact]:
            return name
    return "DOMAIN"


def open_run(
    store: Store, run: Path, domain: str, notice: Callable[[str], None]
) -> tuple["Ant", Checkpoint, Catalogue]:
    """A run's model and the catalogue of a domain, after checking that the model can read that domain.

    The domain may be one the run has not seen, if its features come from the same encoders. Raises DataError
    where they do not, or where the features of a trained domain changed since.
    """
    model, described = checkpoint.load(run)
    seen = domain in described.domains
    if model.ids is not None and not seen:
        known = ", ".join(described.domains) or "items unknown here"
        raise DataError(f"{run} has learned ids of {known}; {domain} is another catalogue")
    again = f"antpipe train --stage {described.stage} --domains {','.join(described.domains)} --out {run} --force …"
    for modality in described.modalities:
        artefact = artefact_of(modality, described.whitened())
        if seen and artefact not in described.domains[domain] and modality in store.domain(domain).manifest():
            raise DataError(f"{modality} of {domain} was built after {run} was trained without it", again)
    for artefact, fingerprint in described.domains.get(domain, {}).items():
        if store.domain(domain).entry(artefact)["fingerprint"] != fingerprint:
            raise DataError(f"{artefact} of {domain} changed since {run} was trained on it", again)
    catalogue = load_catalogue(
        store, tuple(described.domains) if seen else [domain], tuple(described.modalities), notice, described.whitened()
    )
    for name, encoder in catalogue.encoders.items():
        trained, here = described.modalities[name], {"width": catalogue.widths[name], "encoder": encoder}
        if not fits(trained, here):
            raise DataError(
                f"{run} reads {name} of {shown(trained)}; {domain} has {shown(here)}",
                _rebuild(store, domain, name, described),
            )
    return model, described, catalogue
