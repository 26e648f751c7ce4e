"""What is asked of a run, and the plan that follows from it once everything is checked."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from antpipe.core import stages
from antpipe.core.catalogue import Catalogue
from antpipe.errors import SameCommand, UsageError
from antpipe.runtime.devices import choose_device, choose_precision
from antpipe.runtime.logs import log
from antpipe.settings.base import flags_of, to_json
from antpipe.settings.model import ModelConfig
from antpipe.settings.training import WITHOUT_EFFECT, TrainConfig
from antpipe.store.artefacts import artefact_of
from antpipe.store.manifest import digest
from antpipe.store.next_command import by_processes, spell, with_stages
from antpipe.store.store import Store
from antpipe.training import checkpoint
from antpipe.training.checkpoint import Checkpoint
from antpipe.training.compatibility import check_fit, reads_features_of_checkpoint
from antpipe.training.data import TrainingData, load_training_data

PRETRAIN = "pretrain"  # the only stage on several domains, with the in-batch losses


@dataclass(frozen=True)
class RunRequest:
    """One stage, to be trained on domains of the store.

    source: the run to start from, for stages that keep or freeze something. own_stages: the user's `[stage.NAME]`
    sections by name.
    """

    store: Store
    domains: Sequence[str]
    stage: str
    model: ModelConfig
    training: TrainConfig
    source: Path | None = None
    own_stages: Mapping[str, Any] = field(default_factory=dict)

    def plan(self, start: Checkpoint | None = None) -> "Plan":
        """Check everything that can be checked before training; no model is built.

        start: describes the run to start from while that is still to be trained. Raises UsageError if stage, domains,
        source and settings do not go together, DataError if the store lacks something or the source does not fit, and
        IntegrityError if the source is damaged.
        """
        precision = self.training.precision
        if precision == "auto":
            precision = choose_precision(precision, choose_device(self.training.device))
        request = replace(self, training=replace(self.training, precision=precision))
        actions = stages.find_stage(self.stage, self.own_stages)
        begun = self._start(actions, start)
        data = load_training_data(self.store, self.domains, self.training)
        self._check_settings(actions, data.catalogue)
        described = describe(request, actions, begun, data.catalogue)
        if begun is not None and self.source is not None:
            unread = [name for name in data.catalogue.widths if name not in described.modalities]
            if unread:
                what, them = " or ".join(unread), "it" if len(unread) == 1 else "them"
                where = ", ".join(self.domains)
                log.info(f"{where}: {self.stage} does not read {what}: {self.source} was trained without {them}")
            check_fit(self.store, actions, begun, described, source=self.source)
            if start is None:
                checkpoint.weights_file(self.source, begun)
        if not trains_something(request, described):
            raise UsageError(f"--stage {self.stage} freezes every parameter of this model: there is nothing to train")
        return Plan(request, actions, begun, data, described)

    def fingerprint(self) -> str:
        """Identifies the run: it covers everything that determines the result."""
        return self.plan().described.fingerprint

    def command(self, out: Path, *more: str, processes: int = 1) -> str:
        """The command line that trains this run in the folder `out`, with more flags, by so many processes."""
        inherited = checkpoint.describe(self.source).model_config() if self.source else None
        flags = ["--out", str(out), *(["--from", str(self.source)] if self.source else [])]
        flags += flags_of(self.model, inherited=inherited, environment=os.environ)
        flags += [*flags_of(self.training, environment=os.environ), *more]
        line = spell(f"train --stage {self.stage}", domains=self.domains, store=self.store.root, flags=flags)
        own = {name: actions for name, actions in self.own_stages.items() if name == self.stage}
        return by_processes(with_stages(line, own), processes)

    def _start(self, actions: stages.Stage, start: Checkpoint | None) -> Checkpoint | None:
        """The description of the run to start from, if the stage needs one."""
        if self.stage != PRETRAIN and len(self.domains) != 1:
            raise UsageError(
                f"--stage {self.stage} trains on one domain, not on {len(self.domains)}",
                SameCommand({"--domains": self.domains[0]}),
            )
        if not stages.needs_checkpoint(actions):
            if self.source is not None:
                raise UsageError(f"--stage {self.stage} starts from nothing: leave --from out")
            return None
        if self.source is None:
            raise UsageError(f"--stage {self.stage} starts from a checkpoint: name a run with --from")
        return start or checkpoint.describe(self.source)

    def _check_settings(self, actions: stages.Stage, catalogue: Catalogue) -> None:
        """Refuse what `--reference` and `--modalities none` do not go with."""
        training = self.training
        if training.reference and self.stage != PRETRAIN and len(catalogue) > training.sampled_above:
            raise UsageError(
                f"--reference needs the softmax over all {len(catalogue)} items, not over a sample",
                SameCommand({"--sampled-above": str(len(catalogue))}),
            )
        if training.reference and self.model.history_score:
            raise UsageError(
                "--reference: the authors' code adds nothing to scores",
                SameCommand({"--no-history-score": None}, without=("--history-score",)),
            )
        if training.features():
            return
        if not self.model.transductive:
            raise UsageError(
                "--modalities none leaves an item nothing but its id",
                SameCommand({"--transductive": None}, without=("--no-transductive",)),
            )
        if training.reference or (reads_features_of_checkpoint(actions) and actions["ids"] != stages.KEEP):
            what = "--reference" if training.reference else f"--stage {self.stage}"
            raise UsageError(f"{what} reads features of items: it does not go with --modalities none")


@dataclass(frozen=True)
class Plan:
    """A checked run, ready to be trained.

    request: with the precision that `auto` stands for here. actions: what the stage does with each parameter group.
    start: describes the run it starts from. described: the run's own description, before it has found anything.
    """

    request: RunRequest
    actions: stages.Stage
    start: Checkpoint | None
    data: TrainingData
    described: Checkpoint


def trains_something(request: RunRequest, described: Checkpoint) -> bool:
    """Whether the stage leaves any parameter group of the model unfrozen."""
    model = request.model
    absent = {
        "experts": not described.modalities,
        "gates": not described.modalities or not model.experts,
        "ids": described.items is None,
        "history_score": not model.history_score,
    }
    return any(action != stages.FREEZE for group, action in described.groups.items() if not absent.get(group))


def describe(request: RunRequest, actions: stages.Stage, start: Checkpoint | None, catalogue: Catalogue) -> Checkpoint:
    """The description of a run before it is trained. Its fingerprint covers everything that determines the result."""
    store, training = request.store, request.training
    modalities = {m: {"width": w, "encoder": catalogue.encoders[m]} for m, w in catalogue.widths.items()}
    if start is not None and reads_features_of_checkpoint(actions):
        known = start.modalities | {m: v for m, v in modalities.items() if m in start.modalities}
        modalities = {m: v for m, v in known.items() if m in training.features()}
    read = [artefact_of(modality, training.whitened) for modality in modalities]
    domains = {}
    for name in catalogue.domains:
        here = store.domain(name)
        there = [artefact for artefact in read if artefact in here.manifest()]
        domains[name] = {artefact: here.entry(artefact)["fingerprint"] for artefact in (*there, "sequences")}
    settings = {key: value for key, value in to_json(training).items() if key not in WITHOUT_EFFECT}
    model = to_json(request.model)
    max_len = store.domain(catalogue.domains[0]).sequences().max_len
    items = len(catalogue) if request.model.transductive else None
    begun = [start.fingerprint, start.weights_sha256] if start else None
    order = list(catalogue.domains)  # of the items' numbering, and so of the batches
    determined = [request.stage, dict(actions), model, settings, modalities, max_len, order, domains, begun]
    return Checkpoint(
        fingerprint=digest(determined),
        stage=request.stage,
        groups=dict(actions),
        model=model,
        train=to_json(training),
        modalities=modalities,
        max_len=max_len,
        items=items,
        domains=domains,
        source=start.fingerprint if start else None,
        best_epoch=0,
        epochs=0,
        metrics={},
    )
