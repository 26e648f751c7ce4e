"""The request for a run of stage fork-merge: a target, its auxiliaries, and when branches are merged."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from antpipe.core.catalogue import load_catalogue
from antpipe.errors import DataError, SameCommand, UsageError
from antpipe.settings.base import flags_of, to_json
from antpipe.settings.fork_merge import ForkMergeConfig
from antpipe.settings.methods import NO_METHOD
from antpipe.settings.training import TrainConfig
from antpipe.store.artefacts import artefact_of
from antpipe.store.manifest import digest
from antpipe.store.next_command import CHOOSE_INGEST, build_command_with
from antpipe.training.checkpoint import Checkpoint
from antpipe.training.compatibility import fits, rebuild, shown
from antpipe.training.data import TrainingData
from antpipe.training.loop import windows_to_train
from antpipe.training.parallel import world_of
from antpipe.training.request import FORK_MERGE, Plan, RunRequest


@dataclass(frozen=True)
class ForkMergeRequest(RunRequest):
    """A run of stage fork-merge on one target: from scratch, or from `source` as finetune starts."""

    auxiliaries: tuple[str, ...] = ()
    config: ForkMergeConfig = field(default_factory=ForkMergeConfig)

    def plan(self, start: Checkpoint | None = None) -> "ForkMergePlan":
        """Check everything that can be checked before training. Raises what RunRequest.plan does, and UsageError or
        DataError for auxiliaries that the target cannot be trained with."""
        self._check()
        stage = "scratch" if self.source is None else "finetune"
        plain = RunRequest(self.store, self.domains, stage, self.model, self.training, self.source).plan(start)
        others = {name: auxiliary_data(name, plain) for name in self.auxiliaries}
        read = {name: artefacts_of(name, data, plain) for name, data in others.items()}
        settings = to_json(replace(self.config, branches=self.sizes()))
        fingerprint = digest([FORK_MERGE, plain.described.fingerprint, read, settings])
        described = replace(plain.described, stage=FORK_MERGE, fingerprint=fingerprint)
        asked = replace(self, training=plain.request.training)
        return ForkMergePlan(asked, plain.actions, plain.start, plain.data, described, others)

    def command(self, out: Path, *more: str, processes: int = 1) -> str:
        own = ["--auxiliaries", ",".join(self.auxiliaries), *flags_of(self.config, environment=os.environ)]
        return super().command(out, *own, *more, processes=processes)

    def sizes(self) -> tuple[int, ...]:
        """The number of auxiliaries of each branch, except the branch on the target alone."""
        return tuple(sorted({min(size, len(self.auxiliaries)) for size in self.config.branches}))

    def _check(self) -> None:
        target, asked = self.domains[0], ",".join(self.auxiliaries)
        others = [name for name in self.auxiliaries or self._others() if name not in self.domains]
        instead = SameCommand({"--auxiliaries": ",".join(others)}) if others else CHOOSE_INGEST
        only = SameCommand({"--domains": target})
        refused: list[tuple[bool, str, str | SameCommand | None]] = [
            (len(self.domains) > 1, f"trains for one target, not for {','.join(self.domains)}", only),
            (not self.auxiliaries, "trains a target with other domains: name them with --auxiliaries", instead),
            (target in self.auxiliaries, f"--auxiliaries {asked}: {target} is the target", instead),
            (world_of().size > 1, "runs in one process", without("torchrun")),
            (self.asks_for_refit(), "cannot be refitted", without("--refit")),
            (self.training.limit_steps > 0, "counts in epochs, not in --limit-steps", without("--limit-steps")),
            (
                self.training.reference,
                "--reference: the authors' code of ANT has no such stage",
                without("--reference"),
            ),
            (self.training.method != NO_METHOD, f"has no --method {self.training.method}", without("--method")),
            (not self.training.features(), "shares nothing with --modalities none: ids belong to the target", None),
        ]
        for one, why, mend in refused:
            if one:
                raise UsageError(f"--stage {FORK_MERGE}: {why}", mend)

    def _others(self) -> list[str]:
        """The domains of the store that could be auxiliaries."""
        return [name for name in self.store.domains() if "sequences" in self.store.domain(name).manifest()]


def without(word: str) -> SameCommand:
    return SameCommand(without=(word,))


@dataclass(frozen=True)
class ForkMergePlan(Plan):
    """A checked run of stage fork-merge. others: the data of each auxiliary."""

    request: ForkMergeRequest
    others: Mapping[str, TrainingData]

    def training(self) -> TrainConfig:
        """The settings of a branch. With one extra epoch it never finishes by itself, but pauses for the last merge."""
        training = self.request.training
        every = min(training.eval_every, training.epochs)
        return replace(training, epochs=training.epochs + 1, eval_every=every, patience=0)

    def marks(self) -> list[int]:
        """The epochs after which branches are merged; all of them are validated."""
        every, epochs = self.training().eval_every, self.request.training.epochs
        step, last = rounded_up(self.request.config.epoch_step, every), epochs // every * every
        return [*range(step, last, step), last]

    def ranked_after(self) -> int:
        """The epochs of the runs that rank auxiliaries; 0 if every branch has none or all of them."""
        if self.request.sizes() == (len(self.others),):
            return 0
        return min(rounded_up(self.request.config.prune_epochs, self.training().eval_every), self.marks()[-1])


def rounded_up(epochs: int, every: int) -> int:
    """The smallest multiple of `every` that is at least this number of epochs."""
    return -(-epochs // every) * every


# -- auxiliaries ------------------------------------------------------------------------------------------------------


def auxiliary_data(name: str, plan: Plan) -> TrainingData:
    """What a branch reads of an auxiliary. Raises DataError if it shares no modality with the target, has features of
    other encoders or sequences of another length, or nothing to learn from."""
    request, described = plan.request, plan.described
    store, target, training = request.store, request.domains[0], request.training
    domain, read = store.domain(name), tuple(described.modalities)
    whitened = tuple(modality for modality in training.whitened if modality in read)
    there = [modality for modality in plan.data.catalogue.widths if modality in domain.manifest()]
    if not [modality for modality in there if domain.entry(modality)["present"]]:
        own = ", ".join(plan.data.catalogue.widths)
        states = (domain.state(modality).next_command for modality in plan.data.catalogue.widths)
        raise DataError(
            f"auxiliary {name}: has no {own.replace(', ', ' and no ')}, which is what this run reads of {target}",
            next(filter(None, states), None),
        )
    catalogue = load_catalogue(store, (name,), read, whitened)
    for modality, encoder in catalogue.encoders.items():
        trained, here = described.modalities[modality], {"width": catalogue.widths[modality], "encoder": encoder}
        if not fits(trained, here):
            raise DataError(
                f"auxiliary {name}: has {modality} of {shown(here)}, this run reads that of {shown(trained)}",
                rebuild(store, name, modality, described),
            )
    sequences = domain.sequences()
    if sequences.max_len != described.max_len:
        raise DataError(
            f"auxiliary {name}: its sequences have --max-len {sequences.max_len}, those of {target} "
            f"{described.max_len}",
            build_command_with(domain, "sequences", "--max-len", str(described.max_len)),
        )
    data = TrainingData(catalogue, (sequences,), {})
    try:
        windows_to_train(data, training, in_batch=False)
    except DataError as error:
        raise DataError(f"auxiliary {name}: {error.message}", error.next_command) from None
    return data


def artefacts_of(name: str, data: TrainingData, plan: Plan) -> dict[str, str]:
    """The fingerprints of what is read from an auxiliary, by artefact."""
    domain, white = plan.request.store.domain(name), plan.described.whitened()
    read = [artefact_of(modality, white) for modality in data.catalogue.widths]
    return {artefact: domain.entry(artefact)["fingerprint"] for artefact in (*read, "sequences")}
