"""What `antpipe compare` compares: mixes of sources, the arms that start from them, and the runs it takes."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from antpipe.errors import SameCommand, UsageError
from antpipe.features.subset import Subset, drawn_from
from antpipe.runtime.logs import silenced
from antpipe.settings.base import flags_of, from_json
from antpipe.settings.comparison import COMMON, CompareConfig, ComparedTraining, RaceConfig
from antpipe.settings.fork_merge import ForkMergeConfig
from antpipe.settings.methods import NO_METHOD, way_of, with_method
from antpipe.settings.model import ModelConfig
from antpipe.settings.presets import PRESETS, find_preset
from antpipe.settings.sources import resolve
from antpipe.settings.training import TrainConfig
from antpipe.store.next_command import CHOOSE_INGEST, spell, with_stages
from antpipe.store.store import Store
from antpipe.training import checkpoint
from antpipe.training.checkpoint import Checkpoint
from antpipe.training.folder import RunFolder
from antpipe.training.request import FORK_MERGE, PRETRAIN, Plan, RunRequest

CONTROL = "scratch"
TRAINED, RACED, UNTRAINED, GIVEN = "trained", "raced", "untrained", "given"
WHOLE = "all"  # the mix of all --sources


@dataclass(frozen=True)
class Mix:
    """A pre-trained run, existing or to be trained. without: the source it lacks."""

    name: str
    folder: Path
    request: RunRequest
    to_train: bool = False
    without: str | None = None

    def draw(self, number: int) -> "Mix":
        """The same mix, pre-trained with another seed; `number` 0 is this one."""
        if not number:
            return self
        training = replace(self.request.training, seed=self.request.training.seed + number)
        name = f"{self.name}-seed-{training.seed}"
        return replace(
            self, name=name, folder=self.folder.parent / name, request=replace(self.request, training=training)
        )


@dataclass(frozen=True)
class Arm:
    """One way to get a recommender for a target.

    name: how it is shown. kind: TRAINED (a stage), RACED (auto), UNTRAINED (a baseline without training) or GIVEN (runs
    that were handed in). request: what is trained, except target and seed. mix: what it starts from. judged: whether
    it gets a verdict on transfer. alike: whether it must be like the control in features, model and budget (baselines
    differ by nature). runs: those handed in, by target.
    """

    name: str
    kind: str
    request: RunRequest
    mix: Mix | None = None
    judged: bool = False
    alike: bool = True
    runs: Mapping[str, Sequence[Path]] = field(default_factory=dict)

    @property
    def way(self) -> str:
        """Its stage and method, as --arms names them."""
        return way_of(self.request.stage, self.request.training.method)

    def is_refitted(self) -> bool:
        """Whether --refit trains its runs again."""
        return self.kind == TRAINED and self.request.stage != FORK_MERGE


@dataclass(frozen=True)
class Job:
    """One run of an arm on a target with a seed, and its folder.

    reads: modalities, instead of those of the arm. draw: which pre-training of the arm's mix it starts from.
    then_refit, refit: as in RunRequest.
    """

    arm: Arm
    target: str
    seed: int
    folder: Path
    reads: tuple[str, ...] | None = None
    draw: int = 0
    then_refit: bool = False
    refit: int | None = None

    @property
    def mix(self) -> Mix | None:
        return self.arm.mix.draw(self.draw) if self.arm.mix else None

    @property
    def request(self) -> RunRequest:
        training = replace(self.arm.request.training, seed=self.seed)
        training = training if self.reads is None else reading(training, self.reads)
        source = self.mix.folder if self.mix else self.arm.request.source
        asked = replace(self.arm.request, domains=(self.target,), training=training)
        return replace(asked, source=source, then_refit=self.then_refit, refit=self.refit)

    def as_control(self) -> RunRequest:
        """The control with the settings of this run, as a stand-in for a race, whose stage is not known before it."""
        return replace(self.request, stage=CONTROL, source=None)

    def record(self) -> str:
        """Name of the JSON with its result, below the folder of the comparison."""
        again = "" if self.refit is None else "-refit"
        return f"results/{self.target}/{runs_of(self.arm, self.draw)}-{self.seed}{again}.json"

    def refitted(self, done: Checkpoint) -> "Job":
        """The refit of this run, which is not judged: an arm has one verdict. done: this run."""
        again = self.request.refitted(done).refit
        return replace(self, arm=replace(self.arm, judged=False), folder=RunFolder(self.folder).refit, refit=again)


def runs_of(arm: Arm, draw: int) -> str:
    """Where runs of an arm are, below the folder of a target, without their seeds."""
    return f"{arm.mix.draw(draw).name}/{arm.way}" if arm.mix else arm.name


@dataclass(frozen=True)
class ComparisonRequest:
    """A comparison as it was asked for.

    model: that of runs on a target; source_model: that of runs pre-trained for them. origins: pre-trained runs.
    sources: domains to pre-train on here. given: folders of runs by the name of their arm. own_stages: the user's
    `[stage.NAME]` sections. common: arms that must be alike read only the modalities that all of them can read.
    subsets: by name, the targets that are subsets of those asked for (see comparison/curve.py).
    """

    store: Store
    out: Path
    targets: tuple[str, ...]
    config: CompareConfig
    model: ModelConfig
    source_model: ModelConfig
    training: TrainConfig
    race: RaceConfig
    origins: tuple[Path, ...] = ()
    sources: tuple[str, ...] = ()
    given: Mapping[str, Sequence[Path]] = field(default_factory=dict)
    own_stages: Mapping[str, Any] = field(default_factory=dict)
    common: bool = False
    subsets: Mapping[str, Subset] = field(default_factory=dict)
    fork_merge: ForkMergeConfig = field(default_factory=ForkMergeConfig)

    def asked(self) -> list[str]:
        """The targets as they were asked for: domains, not their subsets."""
        return list(dict.fromkeys(self.subsets[name].of if name in self.subsets else name for name in self.targets))

    def control(self, method: str = NO_METHOD) -> RunRequest:
        """The control on all targets, or the same with a method; the other arms follow from it."""
        training = with_method(self.training, method)
        return RunRequest(self.store, self.targets, CONTROL, self.model, training, own_stages=self.own_stages)

    def command(self) -> str:
        """The command line of this comparison."""
        name, apart = preset_between(self.model, self.source_model)
        preset = find_preset(name, on_target=True)
        inherited = inherited_model(self.origins, self.given)
        model = resolve(ModelConfig, {}, {}, {}, inherited, preset.get("model", {}))
        usual = resolve(ComparedTraining, {}, {}, {}, None, preset.get("train", {}))
        training = ComparedTraining(**vars(self.training) | ({"modalities": (COMMON,)} if self.common else {}))
        flags = ["--target", ",".join(self.asked()), "--out", str(self.out)]
        flags += ["--from", ",".join(map(str, self.origins))] if self.origins else []
        flags += ["--sources", ",".join(self.sources)] if self.sources else []
        for arm, folders in self.given.items():
            flags += ["--run", f"{arm}={','.join(map(str, folders))}"]
        flags += ["--preset", name] if name else []
        flags += flags_of(self.config, environment=os.environ)
        flags += flags_of(self.model, without=apart, inherited=model, environment=os.environ)
        flags += flags_of(training, inherited=usual, environment=os.environ)
        flags += flags_of(self.race, environment=os.environ) + flags_of(self.fork_merge, environment=os.environ)
        return with_stages(spell("compare", store=self.store.root, flags=flags), self.own_stages)


def inherited_model(origins: Sequence[Path], given: Mapping[str, Sequence[Path]]) -> ModelConfig | None:
    """The model settings that a comparison inherits: those of the first run that it starts from or was given."""
    there = [*origins, *(folders[0] for folders in given.values())]
    return checkpoint.describe(there[0]).model_config() if there else None


def preset_between(model: ModelConfig, source_model: ModelConfig) -> tuple[str | None, tuple[str, ...]]:
    """The preset that asks for one model on targets and for the other one on sources, and the settings that differ."""
    on_target, on_source = asdict(model), asdict(source_model)
    apart = tuple(key for key in on_target if on_target[key] != on_source[key])
    for name in PRESETS if apart else ():
        both = [find_preset(name, on_target=target)["model"] for target in (True, False)]
        if all([part.get(key) for part in both] == [on_target[key], on_source[key]] for key in apart):
            return name, apart
    return None, ()


def planned(request: RunRequest, start: Checkpoint | None = None) -> Plan:
    """The plan of a run, without the messages that training it logs.

    start: what it starts from, if that is yet to be trained.
    """
    with silenced():
        return request.plan(start)


def mixes(request: ComparisonRequest) -> list[Mix]:
    """The runs named by --from, and those of --sources: all of them, and with --leave-one-out all but each one."""
    found = []
    for folder in request.origins:
        described = checkpoint.describe(folder)
        learned = of_targets(request, described.domains)
        if learned:
            which = "a target" if set(learned) <= {*request.asked(), *request.targets} else "of a target's users"
            raise UsageError(f"--from {folder}: was trained on {', '.join(learned)}, which is {which}")
        training = from_json(TrainConfig, described.train) if described.train else request.training
        made = RunRequest(request.store, tuple(described.domains), PRETRAIN, described.model_config(), training)
        found.append(Mix(folder.resolve().name, folder, made))
    sets: dict[str, tuple[tuple[str, ...], str | None]] = {}
    if request.sources:
        sets[WHOLE] = request.sources, None
    if request.config.leave_one_out:
        if len(request.sources) < 2:
            raise UsageError("--leave-one-out needs at least two sources: add --sources A,B,C")
        for one in request.sources:
            sets[f"without-{one}"] = tuple(name for name in request.sources if name != one), one
    check_sources(request)
    training = replace(
        request.control().training,
        epochs=request.config.pretrain_epochs or request.training.epochs,
        batch_size=request.config.pretrain_batch_size or request.training.batch_size,
    )
    for name, (domains, without) in sets.items():
        to_make = RunRequest(request.store, domains, PRETRAIN, request.source_model, training)
        found.append(Mix(name, request.out / PRETRAIN / name, to_make, to_train=True, without=without))
    names = [mix.name for mix in found]
    if len(set(names)) != len(names):
        raise UsageError(f"several runs to start from have the same name: {', '.join(names)}; rename their folders")
    return found


def of_targets(request: ComparisonRequest, domains: Iterable[str]) -> list[str]:
    """Those of some domains that are a target, or share its users because one was drawn from the other."""
    targets = {drawn_from(request.store, name) for name in request.asked()}
    return sorted(name for name in domains if drawn_from(request.store, name) in targets)


def check_sources(request: ComparisonRequest) -> None:
    """Refuse sources that have the users of a target."""
    shared = of_targets(request, request.sources)
    if not shared:
        return
    left = [name for name in request.sources if name not in shared]
    others = [] if left else list(request.store.domains())
    others = [name for name in others if drawn_from(request.store, name) == name]
    others = [name for name in others if not of_targets(request, [name])]
    others = [name for name in others if "sequences" in request.store.domain(name).manifest()]
    same = set(shared) <= {*request.asked(), *request.targets}
    what = "both a source and a target" if same else "a source with the users of a target"
    raise UsageError(
        f"{', '.join(shared)}: {what}{'' if left else ', and no other source is left'}",
        SameCommand({"--sources": ",".join(left or others)}) if left or others else CHOOSE_INGEST,
    )


def reading(training: TrainConfig, modalities: tuple[str, ...]) -> TrainConfig:
    """The same settings with these modalities. What is not read is not read in whitened form either."""
    whitened = tuple(name for name in training.whitened if name in modalities)
    return replace(training, modalities=modalities, whitened=whitened)


def jobs(arms: Sequence[Arm], request: ComparisonRequest) -> Iterator[Job]:
    """The runs of a comparison: those of one target together, arm by arm and seed by seed."""
    first = request.training.seed
    for target in request.targets:
        for arm in arms:
            home = request.out / target
            if arm.kind == GIVEN:
                for folder in arm.runs[target]:
                    yield Job(arm, target, int(checkpoint.describe(folder).train["seed"]), folder)
            elif arm.kind == UNTRAINED:
                yield Job(arm, target, first, home / runs_of(arm, 0))
            else:
                again = request.config.refit and arm.is_refitted()
                for number in range(request.config.seeds):
                    draw = number % request.config.pretrain_seeds if arm.mix else 0
                    seed = first + number
                    yield Job(arm, target, seed, home / f"{runs_of(arm, draw)}-{seed}", draw=draw, then_refit=again)
