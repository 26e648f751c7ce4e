"""The request for a run, and the plan that follows from it once everything is checked."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from antpipe.core import stages
from antpipe.core.catalogue import Catalogue
from antpipe.core.floor import TRAINING_FORM
from antpipe.core.reranker import RERANKER_FORM
from antpipe.core.untrained import FORM
from antpipe.errors import DataError, SameCommand, UsageError
from antpipe.runtime.devices import choose_device, choose_precision
from antpipe.runtime.logs import log
from antpipe.settings.base import flags_of, from_json, to_json
from antpipe.settings.methods import BEHAVIOUR
from antpipe.settings.model import ModelConfig
from antpipe.settings.training import LATER, NO_MODALITY, WITHOUT_EFFECT, TrainConfig
from antpipe.store.artefacts import artefact_of
from antpipe.store.manifest import digest
from antpipe.store.next_command import by_processes, spell, with_stages
from antpipe.store.store import Store
from antpipe.training import checkpoint
from antpipe.training.checkpoint import OTHER_USERS, Checkpoint
from antpipe.training.compatibility import check_fit, has, reads_features_of_checkpoint
from antpipe.training.data import TrainingData, load_training_data
from antpipe.training.methods.checks import check_method
from antpipe.training.methods.weak_positives import says_verified

PRETRAIN = "pretrain"  # the only stage on several domains, with the in-batch losses
FLOOR, RERANK = "floor", "rerank"
WITHOUT_STEPS = (FLOOR, "rerank-scratch", RERANK)  # stages with no vectors to train, and so no training steps
FORK_MERGE, MERGE = "fork-merge", "merge"  # training/methods/


@dataclass(frozen=True)
class RunRequest:
    """One stage, to be trained on domains of the store.

    source: the run to start from, for stages that keep or freeze something. own_stages: the user's `[stage.NAME]`
    sections by name. then_refit: it is to be refitted when it is done. refit: the number of epochs of that refit; 0 if
    its vectors add too little to its floor.
    """

    store: Store
    domains: Sequence[str]
    stage: str
    model: ModelConfig
    training: TrainConfig
    source: Path | None = None
    own_stages: Mapping[str, Any] = field(default_factory=dict)
    then_refit: bool = False
    refit: int | None = None

    def refitted(self, done: Checkpoint) -> "RunRequest":
        """The same on training and validation targets together, for as many epochs as were best. done: this run."""
        return replace(self, refit=done.best_epoch)

    def plan(self, start: Checkpoint | None = None) -> "Plan":
        """Check everything that can be checked before training; no model is built.

        start: describes the run to start from if that is yet to be trained. Raises UsageError if stage, domains, source
        and settings cannot be combined, DataError if the store lacks something or the source does not fit, and
        IntegrityError if the source is damaged.
        """
        precision = self.training.precision
        if precision != "fp32":
            precision = choose_precision(precision, choose_device(self.training.device))
        request = replace(self, training=replace(self.training, precision=precision))
        actions = stages.find_stage(self.stage, self.own_stages)
        if self.stage in WITHOUT_STEPS and len(self.domains) == 1:
            request = as_floor(request)
        elif request.model.reranker and not request.model.floor:
            request = replace(request, model=replace(request.model, reranker=False))
        begun = self._start(actions, start)
        words = reads_words(self.stage, request.model, request.training)
        data = load_training_data(self.store, self.domains, request.training, words=words)
        request._check_settings(actions, data.catalogue)
        described = describe(request, actions, begun, data.catalogue)
        check_method(request.training, request.model, described, data)
        if begun is not None and self.source is not None:
            unread = [name for name in data.catalogue.widths if name not in described.modalities]
            if unread:
                what, them = " or ".join(unread), "it" if len(unread) == 1 else "them"
                where = ", ".join(self.domains)
                log.info(f"{where}: {self.stage} does not read {what}: {self.source} was trained without {them}")
            asked = request.training.features()
            if lost := [name for name in begun.modalities if name in asked and name not in data.catalogue.widths]:
                where, what = ", ".join(self.domains), " or ".join(lost)
                log.info(f"{where}: {self.source} was trained on {what}, which {self.stage} cannot read here")
            if self.stage == RERANK and not has(begun, "reranker"):
                raise DataError(f"{self.source} was trained without --reranker", self._with_reranker(begun))
            check_fit(self.store, actions, begun, described, source=self.source)
            if start is None:
                checkpoint.weights_file(self.source, begun)
        if not trains_something(request, described):
            raise UsageError(f"--stage {self.stage} freezes every parameter of this model: there is nothing to train")
        return Plan(request, actions, begun, data, described)

    def asks_for_refit(self) -> bool:
        """Whether its command line has --refit."""
        return self.then_refit or self.refit is not None

    def home(self, out: Path) -> Path:
        """The folder that --out names for this run in `out`: a refit is in the folder of the run it belongs to."""
        return out if self.refit is None else out.parent

    def fingerprint(self) -> str:
        """Identifies the run: it covers everything that determines the result."""
        return self.plan().described.fingerprint

    def command(self, out: Path, *more: str, processes: int = 1) -> str:
        """The command line that trains this run in the folder `out`, with more flags, by this many processes."""
        inherited = checkpoint.describe(self.source).model_config() if self.source else None
        flags = ["--out", str(self.home(out)), *(["--from", str(self.source)] if self.source else [])]
        flags += ["--refit"] if self.asks_for_refit() else []
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
        begun = start or checkpoint.describe(self.source)
        if begun.refit and set(begun.domains) & set(self.domains):
            raise UsageError(
                f"--from {self.source}: was trained on the validation targets, which this run needs to choose an epoch",
                SameCommand({"--from": str(self.source.parent)}),
            )
        return begun

    def _with_reranker(self, start: Checkpoint) -> str:
        """The command that retrains the run to start from, with a re-ranker, if it can have one."""
        if self.source is None or start.stage != PRETRAIN:
            return spell("train", flags=["--help"])
        model = replace(start.model_config(), floor=True, reranker=True)
        training = from_json(TrainConfig, start.train)
        return RunRequest(self.store, tuple(start.domains), PRETRAIN, model, training).command(self.source, "--force")

    def _check_settings(self, actions: stages.Stage, catalogue: Catalogue) -> None:
        """Refuse what `--refit`, `--reference` and `--modalities none` cannot be combined with."""
        training = self.training
        if self.asks_for_refit() and self.stage == PRETRAIN:
            raise UsageError("--refit is for stages on a target, not for pretrain", SameCommand(without=("--refit",)))
        if self.asks_for_refit() and training.limit_steps:
            raise UsageError(
                "--refit trains whole epochs, so it does not go with --limit-steps",
                SameCommand(without=("--limit-steps",)),
            )
        if training.reference and self.stage != PRETRAIN and len(catalogue) > training.sampled_above:
            raise UsageError(
                f"--reference needs the softmax over all {len(catalogue)} items, not over a sample",
                SameCommand({"--sampled-above": str(len(catalogue))}),
            )
        adding = [flag for flag in ("history-score", "floor") if getattr(self.model, flag.replace("-", "_"))]
        if training.reference and adding:
            raise UsageError(
                "--reference: the authors' code adds nothing to scores",
                SameCommand({f"--no-{flag}": None for flag in adding}, without=tuple(f"--{flag}" for flag in adding)),
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


def reads_words(stage: str, model: ModelConfig, training: TrainConfig) -> bool:
    """Whether a run reads the words of items: one without training steps needs no text features for it."""
    return model.floor and training.words and (stage in WITHOUT_STEPS or "text" in training.modalities)


def as_floor(request: RunRequest) -> RunRequest:
    """The request, with the smallest model, for a run without training steps: only its floor and re-ranker count.
    Without text features, the floor has its other terms, words among them."""
    there = request.store.domain(request.domains[0]).manifest()
    asks_for_texts = "text" in request.training.modalities
    has_texts = "text" in there and asks_for_texts
    reranker = request.stage != FLOOR
    model = ModelConfig(
        width=2, heads=1, layers=1, experts=0, floor=True, reranker=reranker, transductive=not has_texts
    )
    whitened = tuple(name for name in request.training.whitened if name == "text" and has_texts)
    read = ("text" if has_texts else NO_MODALITY,)
    words = request.training.words and asks_for_texts
    training = replace(request.training, modalities=read, whitened=whitened, words=words)
    return replace(request, model=model, training=training)


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

    def training(self) -> TrainConfig:
        """The settings it is trained with: those of the request, but a refit has its own number of epochs."""
        settings, epochs = self.request.training, self.request.refit
        return settings if epochs is None else replace(settings, epochs=epochs)

    def trained_on(self) -> TrainingData:
        """Its data; in a refit, the validation targets are trained on."""
        return self.data if self.request.refit is None else self.data.of_refit()


def trains_something(request: RunRequest, described: Checkpoint) -> bool:
    """Whether the training steps of a stage have any parameter group to train; True for a stage without steps."""
    model = request.model
    absent = {
        "experts": not described.modalities,
        "gates": not described.modalities or not model.experts,
        "ids": described.items is None,
        "history_score": not model.history_score or model.floor,
        "floor": True,  # its weights are fitted, and the re-ranker learns, outside the steps
        "reranker": True,
    }
    if request.stage in WITHOUT_STEPS:
        return True
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
    settings = {key: value for key, value in settings.items() if key not in LATER or value != getattr(TrainConfig, key)}
    model = to_json(request.model)
    shape, groups = dict(model), dict(actions)
    if not request.model.floor:  # as antpipe 0.1.0, which had none
        del shape["floor"], groups["floor"]
    if not request.model.reranker:
        del shape["reranker"], groups["reranker"]
    max_len = store.domain(catalogue.domains[0]).sequences().max_len
    items = len(catalogue) if request.model.transductive else None
    begun = [start.fingerprint, start.weights_sha256] if start else None
    order = list(catalogue.domains)  # of the items' numbering, and so of the batches
    determined: list[Any] = [request.stage, groups, shape, settings, modalities, max_len, order, domains, begun]
    negatives = OTHER_USERS if request.stage == PRETRAIN and training.in_batch() else ""
    if negatives:
        determined.append(negatives)
    if request.model.floor:
        determined.append(["floor", FORM])
        if request.stage not in WITHOUT_STEPS:
            determined.append(["vectors", TRAINING_FORM])
    if request.model.reranker:
        determined.append(["reranker", RERANKER_FORM])
    if training.method == BEHAVIOUR and (said := [name for name in catalogue.domains if says_verified(store, name)]):
        determined.append(["verified", said])  # which the fingerprint of the items does not cover
    refit = None
    if request.refit is not None:
        refit = {"of": digest(determined), "epochs": request.refit}
        determined.append(["refit", request.refit])
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
        negatives=negatives,
        refit=refit,
        id_tables={name: store.domain(name).entry("items")["id_table"] for name in catalogue.domains},
    )
