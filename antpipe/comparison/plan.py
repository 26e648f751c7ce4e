"""What `antpipe compare` compares: mixes of sources, the arms that start from them, and the runs it takes."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from antpipe.core import stages
from antpipe.errors import SameCommand, UsageError
from antpipe.evaluation.baselines.judge import BASELINES
from antpipe.features.subset import Subset, drawn_from
from antpipe.runtime.logs import silenced
from antpipe.settings.base import flags_of, from_json
from antpipe.settings.comparison import COMMON, CompareConfig, ComparedTraining, RaceConfig
from antpipe.settings.fork_merge import ForkMergeConfig
from antpipe.settings.methods import METHODS, NO_METHOD, way_of, with_method
from antpipe.settings.model import ModelConfig
from antpipe.settings.presets import PRESETS, find_preset
from antpipe.settings.sources import resolve
from antpipe.settings.training import NO_MODALITY, TrainConfig
from antpipe.store.next_command import CHOOSE_INGEST, spell, with_stages
from antpipe.store.store import Store
from antpipe.training import checkpoint
from antpipe.training.checkpoint import Checkpoint
from antpipe.training.folder import RunFolder
from antpipe.training.methods.fork_request import ForkMergeRequest
from antpipe.training.race import AUTO
from antpipe.training.request import FORK_MERGE, PRETRAIN, WITHOUT_STEPS, Plan, RunRequest

CONTROL = "scratch"
SASREC, UNISREC = "sasrec", "unisrec"
ALL_BASELINES = "baselines"
TRAINED, RACED, UNTRAINED, GIVEN = "trained", "raced", "untrained", "given"
WHOLE = "all"  # the mix of all --sources


@dataclass(frozen=True)
class Mix:
    """A pre-trained run, there or to be trained. without: the source it lacks."""

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
    that were handed in). request: what is trained, but for target and seed. mix: what it starts from. judged: whether
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

    model: of the runs on a target; source_model: of what is pre-trained for them. origins: pre-trained runs.
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
    """The model that a comparison takes where nothing else is said: that of the first run that is there."""
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
    """The plan of a run, without the messages that training it gives.

    start: what it starts from, if that is still to be trained.
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


def plan_arms(request: ComparisonRequest) -> tuple[list[Arm], list[Mix]]:
    """The arms in the order asked for, and the mixes to be pre-trained for them."""
    origins = mixes(request)
    arms: list[Arm] = []
    needed: dict[str, Mix] = {}
    for name in arm_names(request):
        if name in request.given:
            arms.append(given_arm(request, name))
            continue
        stage, method = parts_of_arm(name, request)
        control = request.control(method)
        if name in BASELINES:
            arms.append(Arm(name, UNTRAINED, replace(control, stage=name), alike=False))
        elif name == SASREC:
            training = reading(control.training, (NO_MODALITY,))
            history = request.model.history_score or request.model.floor
            model = replace(request.model, transductive=True, floor=False, reranker=False, history_score=history)
            arms.append(Arm(name, TRAINED, replace(control, model=model, training=training), alike=False))
        elif name == FORK_MERGE:
            arms.append(fork_merge_arm(request))
        elif name != AUTO and not stages.needs_checkpoint(stages.find_stage(stage, request.own_stages)):
            arms.append(Arm(name, TRAINED, replace(control, stage=stage), alike=name not in WITHOUT_STEPS))
        elif not origins:
            raise UsageError(f"--arms {name}: starts from a pre-trained run; add --from RUN, or --sources A,B")
        else:
            for mix in origins:
                arm = arm_from(mix, stage, method, request)
                arms.append(arm if len(origins) == 1 else replace(arm, name=f"{name} from {mix.name}"))
                if arm.mix and arm.mix.to_train:
                    draws = [arm.mix.draw(number) for number in range(request.config.pretrain_seeds)]
                    needed.update({drawn.name: drawn for drawn in draws})
    return arms, list(needed.values())


def parts_of_arm(name: str, request: ComparisonRequest) -> tuple[str, str]:
    """The stage and the method of an arm."""
    stage, _, method = name.rpartition("+")
    return (name, NO_METHOD) if not stage or name in request.own_stages else (stage, method)


def fork_merge_arm(request: ComparisonRequest) -> Arm:
    """The arm that trains each target with the sources, from scratch."""
    if not request.sources:
        raise UsageError(f"--arms {FORK_MERGE}: trains a target with other domains; add --sources A,B")
    control = vars(request.control()) | {"stage": FORK_MERGE}
    run = ForkMergeRequest(**control, auxiliaries=request.sources, config=request.fork_merge)
    return Arm(FORK_MERGE, TRAINED, run, judged=True)


def arm_from(mix: Mix, name: str, method: str, request: ComparisonRequest) -> Arm:
    """The arm of a stage, perhaps with a method, that starts from a mix."""
    run = replace(request.control(method), stage=name, source=mix.folder)
    label = way_of(name, method)
    if name == UNISREC:
        texts = text_only(mix, request)
        training = reading(run.training, ("text",))
        run = replace(run, model=texts.request.model, training=training, source=texts.folder)
        return Arm(label, TRAINED, run, texts, alike=False)
    kind, trains = RACED if name == AUTO else TRAINED, name not in WITHOUT_STEPS
    return Arm(label, kind, run, mix, judged=mix.without is None, alike=trains)


def arm_names(request: ComparisonRequest) -> list[str]:
    """The names asked for, with `baselines` spelt out, then those of runs handed in; each once."""
    asked = list(request.config.arms)
    if ALL_BASELINES in asked:
        place = asked.index(ALL_BASELINES)
        asked[place : place + 1] = [*BASELINES, SASREC, *([UNISREC] if request.origins or request.sources else [])]
    if PRETRAIN in asked:
        raise UsageError("--arms pretrain: is not a way to train on a target")
    known = [*stages.STAGES, AUTO, FORK_MERGE, *BASELINES, SASREC, UNISREC, *request.own_stages, *request.given]
    stages_to_cure = {*stages.STAGES, *request.own_stages} - {PRETRAIN, *WITHOUT_STEPS, "unfreeze"}
    cured = {f"{stage}+{method}" for stage in stages_to_cure for method in METHODS}
    for name in asked:
        if name not in {*known, *cured} or name == "unfreeze":
            raise UsageError(
                f"--arms {name}: choose from {', '.join(dict.fromkeys(known))}, {ALL_BASELINES}, or a stage with "
                f"{', '.join(f'+{method}' for method in METHODS)}"
            )
    return list(dict.fromkeys([*asked, *request.given]))


def reading(training: TrainConfig, modalities: tuple[str, ...]) -> TrainConfig:
    """The same settings with these modalities. What is not read is not read in whitened form either."""
    whitened = tuple(name for name in training.whitened if name in modalities)
    return replace(training, modalities=modalities, whitened=whitened)


def text_only(mix: Mix, request: ComparisonRequest) -> Mix:
    """The mix pre-trained on texts alone, which is the mix itself if it knows nothing else."""
    known = None if mix.to_train else set(checkpoint.describe(mix.folder).modalities)
    training = mix.request.training
    if known == {"text"} or training.modalities == ("text",):
        return mix
    if not mix.request.domains:
        raise UsageError(f"--arms {UNISREC}: {mix.folder} does not say on what to pre-train again, with texts alone")
    name = f"{mix.name}-text"
    training = replace(reading(training, ("text",)), device=request.training.device)
    made = replace(mix.request, training=training)
    return replace(mix, name=name, folder=request.out / PRETRAIN / name, request=made, to_train=True)


def given_arm(request: ComparisonRequest, name: str) -> Arm:
    """Runs handed in, by the target each was trained on; settings are those of the first."""
    by_target: dict[str, list[Path]] = {target: [] for target in request.targets}
    described: list[Checkpoint] = []
    for folder in request.given[name]:
        described.append(checkpoint.describe(folder))
        domains = list(described[-1].domains)
        if len(domains) != 1 or domains[0] not in by_target:
            raise UsageError(
                f"--run {name}={folder}: was trained on {', '.join(domains) or 'another catalogue'}, "
                f"not on {' or '.join(request.targets)}"
            )
        by_target[domains[0]].append(folder)
    model, training = described[0].model_config(), from_json(TrainConfig, described[0].train)
    run = replace(request.control(), stage=name, model=model, training=training)
    return Arm(name, GIVEN, run, judged=name != CONTROL, runs=by_target)


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
