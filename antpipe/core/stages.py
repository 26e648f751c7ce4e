"""What each stage does with each group of parameters, as data (arXiv 2309.10195, section 4.4)."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from antpipe.errors import DataError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from antpipe.core.model import Ant

KEEP = "keep"  # taken from the checkpoint, then trained
FREEZE = "freeze"  # taken from the checkpoint, not trained
RESET = "reset"  # initialised again, then trained
ACTIONS = (KEEP, FREEZE, RESET)

GROUPS = ("encoder", "positions", "input_norm", "experts", "gates", "ids", "history_score", "floor", "reranker")
Stage = Mapping[str, str]  # action by group

STAGES: dict[str, Stage] = {
    "pretrain": dict.fromkeys(GROUPS, RESET),
    "scratch": dict.fromkeys(GROUPS, RESET),
    "floor": dict.fromkeys(GROUPS, RESET),  # nothing is trained: the untrained terms alone (core/floor.py)
    # A floor whose best items are re-ranked: by a network learned on the target alone, or first on other shops.
    "rerank-scratch": dict.fromkeys(GROUPS, RESET),
    "rerank": dict.fromkeys(GROUPS, RESET) | {"reranker": KEEP},
    # Ids belong to one catalogue: a stage that moves to another catalogue cannot keep them.
    "finetune": dict.fromkeys(GROUPS, KEEP) | {"ids": RESET},
    "relearn": dict.fromkeys(GROUPS, RESET)
    | {"encoder": FREEZE, "input_norm": KEEP, "history_score": KEEP, "floor": KEEP, "reranker": KEEP},
    "linear-probe": dict.fromkeys(GROUPS, FREEZE) | {"experts": RESET, "gates": RESET, "ids": RESET},
    "relearn-unfrozen": dict.fromkeys(GROUPS, RESET)
    | {"encoder": KEEP, "input_norm": KEEP, "history_score": KEEP, "floor": KEEP, "reranker": KEEP},
    # How UniSRec (arXiv 2206.05941) is transferred: sequence encoder and positions frozen, the adaptor trained.
    "unisrec": dict.fromkeys(GROUPS, KEEP) | {"encoder": FREEZE, "positions": FREEZE, "ids": RESET},
    # Continues a run on the same target (which is checked), so even ids can be kept.
    "unfreeze": dict.fromkeys(GROUPS, KEEP) | {"reranker": FREEZE},
}

OTHER_STAGES = ("auto", "fork-merge", "merge")  # they train or merge runs of these
# Single tensors that the authors' code treats differently from their group (`--reference`; docs/method.md).
REFERENCE_EXCEPTIONS: dict[str, dict[str, str]] = {"relearn": {"modalities.price.bias": KEEP}}


def find_stage(name: str, own: Mapping[str, object]) -> Stage:
    """A stage by name: one of STAGES, or one of the user's `[stage.NAME]` TOML sections.

    own: those sections. A section gives an action per group; with `like`, a stage of STAGES fills in the rest.
    Raises UsageError for unknown names, groups and actions, missing groups, and names that are taken.
    """
    if taken := [one for one in own if one in STAGES or one in OTHER_STAGES]:
        raise UsageError(f"[stage.{taken[0]}]: this stage exists already; choose another name")
    if name in STAGES:
        return STAGES[name]
    if name not in own:
        known = ", ".join([*STAGES, *OTHER_STAGES, *own])
        raise UsageError(f"--stage {name}: choose from {known}, or define it as [stage.{name}]")
    section = own[name]
    if not isinstance(section, dict):
        raise UsageError(f"[stage.{name}]: must be a table with an action per group")
    actions = {group: action for group, action in section.items() if group != "like"}
    if "like" in section:
        if section["like"] not in STAGES:
            raise UsageError(f"[stage.{name}] like = {section['like']!r}: choose from {', '.join(STAGES)}")
        actions = {**STAGES[section["like"]], **actions}
    elif "history_score" in actions:  # a section for antpipe 0.1.0, which had no floor, names all its groups
        actions.setdefault("floor", actions["history_score"])
    actions.setdefault("reranker", RESET)  # nor did it have a re-ranker
    for group, action in actions.items():
        if group not in GROUPS:
            raise UsageError(f"[stage.{name}]: unknown group {group!r}; known: {', '.join(GROUPS)}")
        if action not in ACTIONS:
            raise UsageError(f"[stage.{name}] {group} = {action!r}: choose from {', '.join(ACTIONS)}")
    missing = [group for group in GROUPS if group not in actions]
    if missing:
        raise UsageError(f"[stage.{name}]: no action for {', '.join(missing)}; add one, or add like = STAGE")
    if actions["ids"] != RESET:
        raise UsageError(
            f"[stage.{name}] ids = {actions['ids']!r}: ids belong to one catalogue, so they can only be reset"
        )
    return actions


def needs_checkpoint(stage: Stage) -> bool:
    return any(action != RESET for action in stage.values())


def group_of(parameter: str) -> str:
    """The group of a parameter of `Ant`, by the parameter's name."""
    names = parameter.split(".")
    head, tail = names[0], names[-1]
    if head == "modalities":
        return "gates" if tail in ("w_gate", "w_noise") else "experts"
    if head == "missing":
        return "experts"
    if head in GROUPS:
        return head
    raise AssertionError(f"parameter {parameter} is in no group")


def apply(
    stage: Stage, model: "Ant", source: Mapping[str, "Tensor"], exceptions: Mapping[str, str] | None = None
) -> None:
    """Copy what the stage keeps from a checkpoint into a freshly initialised model, and freeze what it freezes.

    source: the checkpoint's tensors by name. exceptions: actions of single tensors that differ from their group's.
    Raises DataError naming a tensor that the checkpoint lacks or has in another shape.
    """
    for name, parameter in model.named_parameters():
        action = (exceptions or {}).get(name, stage[group_of(name)])
        if action == RESET:
            continue
        if name not in source:
            raise DataError(f"the stage takes {name} from the checkpoint, but the checkpoint has no such tensor")
        if source[name].shape != parameter.shape:
            shapes = f"{tuple(source[name].shape)} in the checkpoint, {tuple(parameter.shape)} in the model"
            raise DataError(f"the stage takes {name} from the checkpoint, but its shape differs: {shapes}")
        parameter.data.copy_(source[name])
        parameter.requires_grad_(action == KEEP and parameter.requires_grad)
