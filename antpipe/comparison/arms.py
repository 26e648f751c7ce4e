"""The arms of a comparison, by the names that --arms gives them."""

from dataclasses import replace
from pathlib import Path

from antpipe.comparison.plan import (
    CONTROL,
    GIVEN,
    RACED,
    TRAINED,
    UNTRAINED,
    Arm,
    ComparisonRequest,
    Mix,
    mixes,
    reading,
)
from antpipe.core import stages
from antpipe.errors import UsageError
from antpipe.evaluation.baselines.judge import BASELINES
from antpipe.settings.base import from_json
from antpipe.settings.methods import METHODS, NO_METHOD, way_of
from antpipe.settings.training import NO_MODALITY, TrainConfig
from antpipe.training import checkpoint
from antpipe.training.checkpoint import Checkpoint
from antpipe.training.methods.fork_request import ForkMergeRequest
from antpipe.training.race import AUTO
from antpipe.training.request import FORK_MERGE, PRETRAIN, WITHOUT_STEPS

SASREC, UNISREC = "sasrec", "unisrec"
ALL_BASELINES = "baselines"


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


def text_only(mix: Mix, request: ComparisonRequest) -> Mix:
    """The mix pre-trained on texts alone, which is the mix itself if it knows nothing else."""
    known = None if mix.to_train else set(checkpoint.describe(mix.folder).modalities)
    training = mix.request.training
    if known == {"text"} or training.modalities == ("text",):
        return mix
    if not mix.request.domains:
        raise UsageError(f"--arms {UNISREC}: {mix.folder} does not say which domains to pre-train on with texts alone")
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
