"""The states of the artefacts of a store, and which command comes next on this machine."""

import shlex
from collections.abc import Sequence
from dataclasses import replace

from antpipe.errors import IntegrityError
from antpipe.features.encoders.listing import offline_encoders
from antpipe.features.ingest.shared_users import changed_targets
from antpipe.features.subset import of_subset
from antpipe.features.whiten import changed_fit
from antpipe.settings.features import ImageConfig, TextConfig
from antpipe.settings.model import EMBEDDED
from antpipe.settings.sources import resolve
from antpipe.store.artefacts import ARTEFACTS, State
from antpipe.store.domain import Domain
from antpipe.store.next_command import build_command, with_flag
from antpipe.store.store import Store

# Artefacts built only on request do not count as missing, nor do pictures that cannot be fetched.
UNMISSED = [name for name, kind in ARTEFACTS.items() if kind.on_request or name == "pictures"]


def status(store: Store, domains: Sequence[str] | None = None, *, verify: bool = False) -> dict[str, list[State]]:
    """The states of the artefacts of each domain, in the order of the pipeline.

    domains: None for all of the store. verify: also read all files and compare their content hashes. Artefacts that are
    absent but not needed are left out: whitened features, and pictures if there are no URLs. A next command uses an
    encoder of this machine if the default one is not here. Raises DataError for an unknown domain.
    """
    names = store.domains() if domains is None else domains
    found = {name: _states(store, store.domain(name), verify) for name in names}
    return {
        name: [
            _with_encoder(one)
            for one in states
            if one is not None and (one.status != "missing" or one.next_command or one.artefact not in UNMISSED)
        ]
        for name, states in found.items()
    }


def _states(store: Store, domain: Domain, verify: bool) -> list[State | None]:
    """The states of all artefacts; if the manifest as a whole is damaged, one that says so."""
    try:
        return [_state(store, domain, artefact, verify) for artefact in ARTEFACTS]
    except IntegrityError as error:
        return [State("manifest", "stale", error.message, str(error.next_command or ""))]


def _state(store: Store, domain: Domain, artefact: str, verify: bool) -> State | None:
    """The state of one artefact, including its inputs in other domains. None if it is absent but not needed."""
    state = of_subset(store, domain, domain.verify(artefact) if verify else domain.state(artefact))
    if state is None or state.status != "fresh":
        return state
    if artefact == "items":
        why = changed_targets(store, domain)
    else:
        why = changed_fit(store, domain, artefact) if artefact.endswith("-white") else ""
    return State(artefact, "stale", why, build_command(domain, artefact)) if why else state


def _with_encoder(state: State) -> State:
    """`state`; if its next command needs the default encoder and that is not on this machine, with one that is.

    The hub is not asked. The default stays if no encoder is here at all, or if an environment variable names another.
    """
    words = shlex.split(state.next_command)
    if state.artefact not in EMBEDDED or f"embed-{state.artefact}" not in words or "--encoder" in words:
        return state
    config: type[TextConfig] | type[ImageConfig] = TextConfig if state.artefact == "text" else ImageConfig
    here = [one.name for one in offline_encoders(state.artefact)]
    if config.encoder in here or not here or resolve(config, {}, {}).encoder != config.encoder:
        return state
    why = f"the default encoder {config.encoder} is not on this machine"
    command = with_flag(state.next_command, "--encoder", here[0])
    return replace(state, why=f"{state.why}; {why}" if state.why else why, next_command=command)
