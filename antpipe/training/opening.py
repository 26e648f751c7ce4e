"""A finished run opened for a domain: its model, the features that it reads, and what its floor knows."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from antpipe.core import stages
from antpipe.core.batches import with_validation
from antpipe.core.catalogue import Catalogue, load_catalogue
from antpipe.core.floor import known_in
from antpipe.core.untrained import Untrained
from antpipe.errors import DataError
from antpipe.settings.base import from_json
from antpipe.settings.training import TrainConfig
from antpipe.store.artefacts import artefact_of
from antpipe.store.files import Sequences
from antpipe.store.manifest import lacking
from antpipe.store.store import Store
from antpipe.training import checkpoint
from antpipe.training.checkpoint import Checkpoint
from antpipe.training.compatibility import fits, rebuild, shown
from antpipe.training.folder import TRAIN_AGAIN
from antpipe.training.request import FORK_MERGE, RunRequest, reads_words

if TYPE_CHECKING:
    from antpipe.core.model import Ant


def open_run(store: Store, run: Path, domain: str) -> tuple["Ant", Checkpoint, Catalogue]:
    """A run's model and the catalogue of a domain, after checking that the model can read that domain.

    The run need not have seen the domain, if its features come from the same encoders. Raises DataError if they do not,
    or if the features of a trained domain changed since.
    """
    model, described = checkpoint.load(run)
    if changed := changes(store, run, described, domain):
        why = f"{changed[0]} of {domain} changed since {run} was trained on it"
        raise DataError(why, train_again(store, run, described))
    domains = tuple(described.domains) if domain in described.domains else (domain,)
    return model, described, readable(store, run, described, domains)


def changes(store: Store, run: Path, described: Checkpoint, domain: str) -> list[str]:
    """The artefacts of a domain that changed since a run was trained on it; none if it was not.

    Raises DataError if the run has learned ids of other catalogues, or was trained without a modality that exists now.
    """
    seen = described.domains.get(domain)
    if seen is None and described.items is not None:
        known = ", ".join(described.domains) or "items unknown here"
        raise DataError(f"{run} has learned ids of {known}; {domain} is another catalogue")
    here = store.domain(domain)
    for modality in described.modalities:
        artefact = artefact_of(modality, described.whitened())
        if seen is not None and artefact not in seen and modality in here.manifest():
            why = f"{modality} of {domain} was built after {run} was trained without it"
            raise DataError(why, train_again(store, run, described))
    return [name for name, fingerprint in (seen or {}).items() if here.entry(name)["fingerprint"] != fingerprint]


def readable(
    store: Store, run: Path, described: Checkpoint, domains: Sequence[str], *, with_cold: bool = False
) -> Catalogue:
    """The catalogue of some domains, with the features that a run reads. Raises DataError if their encoders differ."""
    words = words_read_by(described)
    catalogue = load_catalogue(
        store, domains, tuple(described.modalities), described.whitened(), words=words, with_cold=with_cold
    )
    for name, encoder in catalogue.encoders.items():
        trained, here = described.modalities[name], {"width": catalogue.widths[name], "encoder": encoder}
        if not fits(trained, here):
            raise DataError(
                f"{run} reads {name} of {shown(trained)}; {domains[0]} has {shown(here)}",
                rebuild(store, domains[0], name, described),
            )
    return catalogue


def words_read_by(described: Checkpoint) -> bool:
    """Whether a run reads the words of items."""
    return reads_words(described.stage, described.model_config(), from_json(TrainConfig, described.train))


def seen_by(described: Checkpoint, domain: str, sequences: Sequences) -> Sequences:
    """A domain's sequences, with all that a run has seen as the training part: a refit has seen validation targets."""
    return with_validation(sequences) if described.refit and domain in described.domains else sequences


def known_for(store: Store, model: "Ant", described: Checkpoint, catalogue: Catalogue, domain: str) -> Untrained | None:
    """What the floor of a model knows of a domain; None for a model without a floor."""
    if model.floor is None:
        return None
    here = store.domain(domain)
    none = bool(lacking("sequences", here.manifest()))  # a catalogue without interactions has no transitions
    return known_in(catalogue, model.widths, domain, None if none else seen_by(described, domain, here.sequences()))


def train_again(store: Store, run: Path, described: Checkpoint) -> str:
    """The command that replaces a run. Which folder it started from is not recorded."""
    if described.source is not None or described.stage == FORK_MERGE:
        return TRAIN_AGAIN
    own = {} if described.stage in stages.STAGES else {described.stage: described.groups}
    model, training = described.model_config(), from_json(TrainConfig, described.train)
    refit = described.refit["epochs"] if described.refit else None
    request = RunRequest(store, tuple(described.domains), described.stage, model, training, None, own, refit=refit)
    return request.command(run, "--force")
