"""What a stage does with each group of parameters, as data (arXiv 2309.10195, section 4.4)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from antpipe.errors import DataError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from antpipe.core.model import Ant

KEEP = "keep"  # taken from the checkpoint, trained on
FREEZE = "freeze"  # taken from the checkpoint, not trained
RESET = "reset"  # drawn anew, trained
ACTIONS = (KEEP, FREEZE, RESET)

GROUPS = ("encoder", "positions", "input_norm", "experts", "gates", "ids", "history_score")
Stage = Mapping[str, str]  # what happens to each group

STAGES: dict[str, Stage] = {
    "pretrain": dict.fromkeys(GROUPS, RESET),
    "scratch": dict.fromkeys(GROUPS, RESET),
    # Ids belong to one catalogue: no stage that goes to another can keep them.
    "finetune": dict.fromkeys(GROUPS, KEEP) | {"ids": RESET},
    "relearn": {
        "encoder": FREEZE,
        "positions": RESET,
        "input_norm": KEEP,
        "experts": RESET,
        "gates": RESET,
        "ids": RESET,
        "history_score": KEEP,
    },
    "linear-probe": dict.fromkeys(GROUPS, FREEZE) | {"experts": RESET, "gates": RESET, "ids": RESET},
    "relearn-unfrozen": {
        "encoder": KEEP,
        "positions": RESET,
        "input_norm": KEEP,
        "experts": RESET,
        "gates": RESET,
        "ids": RESET,
        "history_score": KEEP,
    },
    # As UniSRec (arXiv 2206.05941) is carried over: sequence encoder and positions frozen, the adaptor goes on.
    "unisrec": {
        "encoder": FREEZE,
        "positions": FREEZE,
        "input_norm": KEEP,
        "experts": KEEP,
        "gates": KEEP,
        "ids": RESET,
        "history_score": KEEP,
    },
    # Goes on from a run on the same target (checked), so that even ids may stay.
    "unfreeze": dict.fromkeys(GROUPS, KEEP),
}

# Single tensors that the authors' code treats unlike their group (the `reference` switch; docs/method.md).
REFERENCE_EXCEPTIONS: dict[str, dict[str, str]] = {"relearn": {"modalities.price.bias": KEEP}}


def find_stage(name: str, own: Mapping[str, object]) -> Stage:
    """A stage by its name: one of STAGES, or one of the user's `[stage.NAME]` TOML sections.

    own: those sections. Such a section has an action for each group, or `like`, a stage that says the rest.
    Unknown groups and actions, missing groups, and names already taken are refused.
    """
    if name in STAGES:
        if name in own:
            raise UsageError(f"[stage.{name}]: this stage exists; choose another name")
        return STAGES[name]
    if name not in own:
        raise UsageError(f"--stage {name}: choose from {', '.join([*STAGES, *own])}, or define it as [stage.{name}]")
    section = own[name]
    if not isinstance(section, dict):
        raise UsageError(f"[stage.{name}]: must be a table of groups")
    actions = {group: action for group, action in section.items() if group != "like"}
    if "like" in section:
        if section["like"] not in STAGES:
            raise UsageError(f"[stage.{name}] like = {section['like']!r}: choose from {', '.join(STAGES)}")
        actions = {**STAGES[section["like"]], **actions}
    for group, action in actions.items():
        if group not in GROUPS:
            raise UsageError(f"[stage.{name}]: unknown group {group!r}; known: {', '.join(GROUPS)}")
        if action not in ACTIONS:
            raise UsageError(f"[stage.{name}] {group} = {action!r}: choose from {', '.join(ACTIONS)}")
    missing = [group for group in GROUPS if group not in actions]
    if missing:
        raise UsageError(f"[stage.{name}]: says nothing of {', '.join(missing)}; name an action, or add like = …")
    if actions["ids"] != RESET:
        raise UsageError(
            f"[stage.{name}] ids = {actions['ids']!r}: ids belong to one catalogue, they can only be reset"
        )
    return actions


def needs_checkpoint(stage: Stage) -> bool:
    return any(action != RESET for action in stage.values())


def group_of(parameter: str) -> str:
    """The one group a parameter of `Ant` belongs to, by its name."""
    names = parameter.split(".")
    head, tail = names[0], names[-1]
    if head == "modalities":
        return "gates" if tail in ("w_gate", "w_noise") else "experts"
    if head == "missing":
        return "experts"
    if head in GROUPS:
        return head
    raise AssertionError(f"parameter {parameter} belongs to no group")


@dataclass(frozen=True)
class GroupRow:
    """One line of `train --dry-run`: a group, what the stage does with it, and how large it is."""

    group: str
    action: str
    tensors: int
    parameters: int


def group_table(stage: Stage, model: "Ant") -> list[GroupRow]:
    """The groups of a model in the order of GROUPS; those it has no parameter of are left out."""
    rows = []
    for group in GROUPS:
        sizes = [parameter.numel() for name, parameter in model.named_parameters() if group_of(name) == group]
        if sizes:
            rows.append(GroupRow(group, stage[group], len(sizes), sum(sizes)))
    return rows


def apply(
    stage: Stage, model: "Ant", source: Mapping[str, "Tensor"], exceptions: Mapping[str, str] | None = None
) -> None:
    """Give a freshly initialised model what the stage takes from a checkpoint, and freeze what it freezes.

    source: the checkpoint's tensors by name. exceptions: actions of single tensors instead of their group's.
    Raises DataError, naming it, where a tensor to take is missing there or has another shape.
    """
    for name, parameter in model.named_parameters():
        action = (exceptions or {}).get(name, stage[group_of(name)])
        if action == RESET:
            continue
        if name not in source:
            raise DataError(f"the stage takes {name} from the checkpoint, which has no such tensor")
        if source[name].shape != parameter.shape:
            shapes = f"{tuple(source[name].shape)} in the checkpoint, {tuple(parameter.shape)} in the model"
            raise DataError(f"the stage takes {name} from the checkpoint, but its shape differs: {shapes}")
        parameter.data.copy_(source[name])
        parameter.requires_grad_(action == KEEP)
