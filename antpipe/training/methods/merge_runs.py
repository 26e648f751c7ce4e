"""`train --stage merge`: two runs of one target that started from the same values, merged group by group."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from antpipe import __version__
from antpipe.core import stages
from antpipe.core.batches import examples, sample
from antpipe.core.catalogue import Catalogue
from antpipe.errors import SameCommand, UsageError
from antpipe.runtime.logs import log
from antpipe.settings.base import flag_name, from_json, to_json
from antpipe.settings.fork_merge import ForkMergeConfig
from antpipe.settings.training import TrainConfig
from antpipe.store.documents import write_json
from antpipe.store.manifest import digest
from antpipe.store.next_command import spell
from antpipe.training import checkpoint
from antpipe.training.checkpoint import Checkpoint
from antpipe.training.data import TrainingData
from antpipe.training.folder import RunFolder, another_folder
from antpipe.training.methods.merging import Figures, Weights, merged_by_group, score
from antpipe.training.methods.reports import read_report, report_file
from antpipe.training.opening import open_run, words_read_by
from antpipe.training.parallel import ALONE, world_of
from antpipe.training.request import MERGE, WITHOUT_STEPS, Plan, RunRequest
from antpipe.training.run import FINISHED, device_of, finish, what_is_there
from antpipe.training.state import Position, begin
from antpipe.training.validation import validating
from antpipe.training.worth import SELECTION, VALID


@dataclass(frozen=True)
class MergeRequest(RunRequest):
    """The merge of two runs of a target. runs: their folders. Only the device of `training` is used."""

    runs: tuple[Path, ...] = ()
    merge_steps: int = ForkMergeConfig.merge_steps

    def plan(self, start: Checkpoint | None = None) -> Plan:  # noqa: ARG002 -- both runs are there
        """Check that the runs can be merged. Raises UsageError if they are not two runs of this target that started
        from the same values, and what `open_run` raises."""
        if len(self.runs) != 2 or self.runs[0].resolve() == self.runs[1].resolve():
            raise UsageError(f"--stage {MERGE} merges two runs: name both, --from RELEARN,SCRATCH")
        if world_of().size > 1:
            raise UsageError(f"--stage {MERGE} runs in one process", SameCommand(without=("torchrun",)))
        both = [checkpoint.describe(run) for run in self.runs]
        check_alike(self.runs, both, self.domains)
        (target,), described = self.domains, both[0]
        _, _, catalogue = open_run(self.store, self.runs[0], target)
        own = [(one.fingerprint, one.weights_sha256) for one in both]
        groups = dict.fromkeys(stages.GROUPS, stages.KEEP)
        wanted = replace(
            described,
            fingerprint=digest([MERGE, own, self.merge_steps]),
            stage=MERGE,
            groups=groups,
            source=described.fingerprint,
            best_epoch=0,
            epochs=0,
            metrics={},
            weights_sha256="",
            id_tables={target: self.store.domain(target).entry("items")["id_table"]},
            antpipe=__version__,
        )
        training = replace(from_json(TrainConfig, described.train), device=self.training.device)
        asked = replace(self, model=described.model_config(), training=training)
        return Plan(asked, groups, described, self._data(catalogue, target, training), wanted)

    def _data(self, catalogue: Catalogue, target: str, training: TrainConfig) -> TrainingData:
        sequences = self.store.domain(target).sequences()
        return TrainingData(
            catalogue, (sequences,), {target: sample(examples(sequences, "valid"), training.valid_sample)}
        )

    def command(self, out: Path, *more: str, processes: int = 1) -> str:  # noqa: ARG002 -- one process
        flags = ["--from", ",".join(map(str, self.runs)), "--out", str(out)]
        if self.merge_steps != ForkMergeConfig.merge_steps:
            flags += ["--merge-steps", str(self.merge_steps)]
        return spell(f"train --stage {MERGE}", domains=self.domains, store=self.store.root, flags=[*flags, *more])


def check_alike(runs: Sequence[Path], both: Sequence[Checkpoint], domains: Sequence[str]) -> None:
    """Refuse runs of another target, without vectors, refits, and runs that did not start from the same values."""
    for run, one in zip(runs, both, strict=True):
        if list(one.domains) != list(domains):
            seen = ", ".join(one.domains) or "another catalogue"
            raise UsageError(f"{run} was trained on {seen}, not on {', '.join(domains)}: only runs of one target merge")
        if one.stage in WITHOUT_STEPS:
            raise UsageError(f"{run} is of stage {one.stage}, which trains no vectors: there is nothing to average")
        if one.refit:
            raise UsageError(f"{run} was trained on the validation targets, which {MERGE} needs to choose weights")
    first, second = (began_with(one) for one in both)
    differ = {name: (first[name], second[name]) for name in first if first[name] != second[name]}
    if differ:
        what = [f"{name} {one} and {other}" if name.startswith("--") else name for name, (one, other) in differ.items()]
        raise UsageError(
            f"{runs[0]} and {runs[1]} did not start from the same values, so their average is meaningless: "
            + "; ".join(what)
        )


def began_with(run: Checkpoint) -> dict[str, Any]:
    """Everything that decides the initial values of a run, except what it took from another one."""
    model = run.model_config()
    settings = {f"--{flag_name(key)}": value for key, value in to_json(model).items()}
    data = {"modalities": run.modalities, "features or sequences": run.domains, "--words": words_read_by(run)}
    taken = {"stages with --init authors": run.stage} if model.init == "authors" else {}
    return {"--seed": run.train["seed"], **settings, **data, **taken}


def run_merge(request: MergeRequest, out: Path, *, force: bool = False) -> tuple[Checkpoint, bool, dict[str, Any]]:
    """Merge two runs and leave the result as a run in `out`.

    Returns the checkpoint, whether it was there already, and the content of RUN/merge.json: `runs` (their folders, the
    better one first), `validation` of each, `shares` (by parameter group, that of the second run) and `merged`.
    """
    if out.resolve() in [run.resolve() for run in request.runs]:
        raise UsageError(f"--out {out}: is one of the runs to merge", another_folder(out))
    plan, folder = request.plan(), RunFolder(out)
    with folder.lock(force):
        if not force and what_is_there(plan, out, resume=False) == FINISHED:
            return checkpoint.describe(out), True, read_report(out, MERGE)
        device = device_of(plan.request.training, ALONE)
        model = plan.described.build().to(device)
        judge_model = validating(model, plan.data, device, lambda: None)

        def judge(weights: Weights) -> Figures:
            model.load_state_dict(dict(weights))
            return judge_model()

        parts = {run: checkpoint.load_weights(run, checkpoint.describe(run)) for run in request.runs}
        found = {run: judge(weights) for run, weights in parts.items()}
        better, other = sorted(request.runs, key=lambda run: score(found[run]), reverse=True)
        weights, shares, figures = merged_by_group(
            parts[better], parts[other], found[better], judge, request.merge_steps
        )
        model.load_state_dict(dict(weights))
        begin(folder, begun=False)
        report = {
            "runs": [str(better), str(other)],
            "validation": [found[better][SELECTION], found[other][SELECTION]],
            "shares": shares,
            "merged": figures[SELECTION],
        }
        write_json(report_file(out, MERGE), report)
        finish(folder, model, plan, Position(best=dict(figures), finished=True), device)
    taken = ", ".join(f"{group} {share:g}" for group, share in shares.items() if share) or "nothing"
    log.info(
        f"{out}: {VALID}{SELECTION} {found[better][SELECTION]:.4f} of {better}, {found[other][SELECTION]:.4f} of "
        f"{other}; merged {figures[SELECTION]:.4f}, with these shares of {other}: {taken}"
    )
    return checkpoint.describe(out), False, report
