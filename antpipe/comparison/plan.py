"""What `antpipe compare` compares: mixes of sources, the arms that start from them, and the runs it takes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from antpipe.core import stages
from antpipe.errors import UsageError
from antpipe.evaluation.baselines.judge import BASELINES
from antpipe.settings.base import from_json
from antpipe.settings.evaluation import CompareConfig
from antpipe.settings.model import ModelConfig
from antpipe.settings.training import NO_MODALITY, RaceConfig, TrainConfig
from antpipe.store.store import Store
from antpipe.training import checkpoint
from antpipe.training.checkpoint import Checkpoint
from antpipe.training.race import AUTO
from antpipe.training.run import PRETRAIN

CONTROL = "scratch"
SASREC, UNISREC = "sasrec", "unisrec"
ALL_BASELINES = "baselines"
TRAINED, RACED, UNTRAINED, GIVEN = "trained", "raced", "untrained", "given"
WHOLE = "all"  # the mix of all --sources


@dataclass(frozen=True)
class Mix:
    """A pre-trained run, there or to be trained: its folder, domains and settings. without: the source it lacks."""

    name: str
    folder: Path
    domains: tuple[str, ...]
    model: ModelConfig
    training: TrainConfig
    to_train: bool = False
    without: str | None = None


@dataclass(frozen=True)
class Arm:
    """One way to get a recommender for a target.

    name: how it is shown. kind: TRAINED (a stage), RACED (auto), UNTRAINED (a baseline without training) or GIVEN
    (runs that were there). mix: what it starts from. judged: whether it gets a verdict on transfer. alike: whether it
    must be like the control in features, model and budget (baselines differ by nature). runs: given ones, by target.
    """

    name: str
    kind: str
    stage: str
    model: ModelConfig
    training: TrainConfig
    mix: Mix | None = None
    judged: bool = False
    alike: bool = True
    runs: Mapping[str, Sequence[Path]] = field(default_factory=dict)

    def folder(self) -> str:
        """Where its runs are, below the folder of a target, but for their seeds."""
        return f"{self.mix.name}/{self.stage}" if self.mix else self.name


@dataclass(frozen=True)
class Job:
    """One run of an arm on a target with a seed, and its folder."""

    arm: Arm
    target: str
    seed: int
    folder: Path

    def training(self) -> TrainConfig:
        return replace(self.arm.training, seed=self.seed)

    def record(self) -> str:
        """Name of the JSON with its result, below the folder of the comparison."""
        return f"results/{self.target}/{self.arm.folder()}-{self.seed}.json"


@dataclass(frozen=True)
class Request:
    """A comparison as it was asked for.

    model: of the runs on a target; source_model: of what is pre-trained for them. given: folders of runs by the name
    of their arm.
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


def mixes(request: Request) -> list[Mix]:
    """The runs named by --from, and those of --sources: all of them, and with --leave-one-out all but each one."""
    found = []
    for folder in request.origins:
        described = checkpoint.describe(folder)
        learned = set(described.domains) & set(request.targets)
        if learned:
            raise UsageError(f"--from {folder}: was trained on {', '.join(sorted(learned))}, which is a target")
        found.append(
            Mix(
                folder.resolve().name,
                folder,
                tuple(described.domains),
                described.model_config(),
                from_json(TrainConfig, described.train) if described.train else request.training,
            )
        )
    sets: dict[str, tuple[tuple[str, ...], str | None]] = {}
    if request.sources:
        sets[WHOLE] = request.sources, None
    if request.config.leave_one_out:
        if len(request.sources) < 2:
            raise UsageError("--leave-one-out needs at least two sources", "add --sources A,B,C")
        for one in request.sources:
            sets[f"without-{one}"] = tuple(name for name in request.sources if name != one), one
    shared = set(request.sources) & set(request.targets)
    if shared:
        raise UsageError(f"{', '.join(sorted(shared))}: both a source and a target")
    config = request.config
    training = replace(
        request.training,
        epochs=config.pretrain_epochs or request.training.epochs,
        batch_size=config.pretrain_batch_size or request.training.batch_size,
    )
    for name, (domains, without) in sets.items():
        folder = request.out / PRETRAIN / name
        found.append(Mix(name, folder, domains, request.source_model, training, to_train=True, without=without))
    names = [mix.name for mix in found]
    if len(set(names)) != len(names):
        raise UsageError(f"several runs to start from are called alike: {', '.join(names)}", "rename their folders")
    return found


def plan_arms(request: Request) -> tuple[list[Arm], list[Mix]]:
    """The arms in the order asked for, and the mixes that are to be pre-trained for them."""
    origins = mixes(request)
    arms: list[Arm] = []
    needed: dict[str, Mix] = {}
    for name in arm_names(request):
        if name in request.given:
            arms.append(given_arm(request, name))
            continue
        if name in BASELINES:
            arms.append(Arm(name, UNTRAINED, name, request.model, request.training, alike=False))
            continue
        if name == SASREC:
            model = replace(request.model, transductive=True)
            training = reading(request.training, (NO_MODALITY,))
            arms.append(Arm(name, TRAINED, CONTROL, model, training, alike=False))
            continue
        actions = stages.STAGES["finetune"] if name == AUTO else stages.find_stage(name, request.own_stages)
        if not stages.needs_checkpoint(actions):
            arms.append(Arm(name, TRAINED, name, request.model, request.training))
            continue
        if not origins:
            raise UsageError(f"--arms {name}: starts from a pre-trained run", "add --from RUN, or --sources A,B")
        for mix in origins:
            start = text_only(mix, request) if name == UNISREC else mix
            if start.to_train:
                needed[start.name] = start
            arms.append(
                Arm(
                    name if len(origins) == 1 else f"{name} from {mix.name}",
                    RACED if name == AUTO else TRAINED,
                    name,
                    start.model if name == UNISREC else request.model,
                    reading(request.training, ("text",)) if name == UNISREC else request.training,
                    mix=start,
                    judged=name != UNISREC and mix.without is None,
                    alike=name != UNISREC,
                )
            )
    return arms, list(needed.values())


def arm_names(request: Request) -> list[str]:
    """Names asked for, `baselines` spelt out, then those of given runs; each once."""
    asked = list(request.config.arms)
    if ALL_BASELINES in asked:
        place = asked.index(ALL_BASELINES)
        asked[place : place + 1] = [*BASELINES, SASREC, *([UNISREC] if request.origins or request.sources else [])]
    if PRETRAIN in asked:
        raise UsageError("--arms pretrain: is no way to train on a target")
    known = [*stages.STAGES, AUTO, *BASELINES, SASREC, UNISREC, *request.own_stages, *request.given]
    for name in asked:
        if name not in known or name == "unfreeze":
            raise UsageError(f"--arms {name}: choose from {', '.join(dict.fromkeys(known))}, {ALL_BASELINES}")
    return list(dict.fromkeys([*asked, *request.given]))


def reading(training: TrainConfig, modalities: tuple[str, ...]) -> TrainConfig:
    """The same settings with these modalities; what is not read is not read in its whitened form either."""
    whitened = tuple(name for name in training.whitened if name in modalities)
    return replace(training, modalities=modalities, whitened=whitened)


def text_only(mix: Mix, request: Request) -> Mix:
    """The mix pre-trained on texts alone, which is the mix itself where it knows nothing else."""
    known = None if mix.to_train else set(checkpoint.describe(mix.folder).modalities)
    if known == {"text"} or mix.training.modalities == ("text",):
        return mix
    if not mix.domains:
        raise UsageError(f"--arms {UNISREC}: {mix.folder} does not say on what to pre-train again, with texts alone")
    name = f"{mix.name}-text"
    training = replace(reading(mix.training, ("text",)), device=request.training.device)
    return replace(mix, name=name, folder=request.out / PRETRAIN / name, training=training, to_train=True)


def given_arm(request: Request, name: str) -> Arm:
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
    first = described[0]
    return Arm(
        name,
        GIVEN,
        name,
        first.model_config(),
        from_json(TrainConfig, first.train),
        judged=name != CONTROL,
        runs=by_target,
    )


def jobs(arms: Sequence[Arm], request: Request) -> Iterator[Job]:
    """The runs of a comparison: those of one target together, arm by arm and seed by seed."""
    for target in request.targets:
        for arm in arms:
            if arm.kind == GIVEN:
                for folder in arm.runs[target]:
                    yield Job(arm, target, int(checkpoint.describe(folder).train["seed"]), folder)
                continue
            home = request.out / target
            if arm.kind == UNTRAINED:
                yield Job(arm, target, request.training.seed, home / arm.folder())
                continue
            for seed in range(request.training.seed, request.training.seed + request.config.seeds):
                yield Job(arm, target, seed, home / f"{arm.folder()}-{seed}")
