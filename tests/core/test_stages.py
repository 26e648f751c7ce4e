"""Stages as a table of parameter groups."""

import pytest
import torch

from antpipe.core import stages
from antpipe.core.model import Ant
from antpipe.errors import DataError, UsageError
from antpipe.settings.model import ModelConfig
from antpipe.training.groups import group_table

CONFIG = ModelConfig(width=8, experts=2, transductive=True, history_score=True, floor=True, reranker=True)


def make_model(seed: int, text: int = 5) -> Ant:
    torch.manual_seed(seed)
    return Ant(CONFIG, {"text": text, "image": 6, "price": 4}, max_len=6, items=9)


def test_every_parameter_is_in_exactly_one_group_and_every_group_has_some() -> None:
    names = [name for name, _ in make_model(0).named_parameters()]
    assert {stages.group_of(name) for name in names} == set(stages.GROUPS)


def test_every_stage_has_an_action_for_every_group() -> None:
    for stage, actions in stages.STAGES.items():
        assert set(actions) == set(stages.GROUPS), stage
        assert set(actions.values()) <= {stages.KEEP, stages.FREEZE, stages.RESET}


@pytest.mark.parametrize("stage", ["finetune", "relearn"])
def test_kept_and_frozen_tensors_come_from_the_checkpoint_and_others_do_not(stage: str) -> None:
    source, model = make_model(0), make_model(1)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(1.0)
    stages.apply(stages.STAGES[stage], model, source.state_dict())
    for name, parameter in model.named_parameters():
        action = stages.STAGES[stage][stages.group_of(name)]
        assert torch.equal(parameter, source.state_dict()[name]) == (action != stages.RESET), name
        beside_steps = name.startswith(("floor.", "reranker.", "history_score"))
        trained = action != stages.FREEZE and not beside_steps
        assert parameter.requires_grad == trained, name


def test_a_tensor_of_the_wrong_shape_is_refused_by_name() -> None:
    with pytest.raises(DataError, match=r"modalities\.text\..*\(2, 8, 5\).*\(2, 8, 7\)"):
        stages.apply(stages.STAGES["finetune"], make_model(1, text=7), make_model(0).state_dict())


def test_relearn_accepts_different_feature_widths() -> None:
    stages.apply(stages.STAGES["relearn"], make_model(1, text=7), make_model(0).state_dict())


def test_a_missing_tensor_is_refused_by_name() -> None:
    tensors = make_model(0).state_dict()
    del tensors["encoder.0.qkv.weight"]
    with pytest.raises(DataError, match=r"encoder\.0\.qkv\.weight"):
        stages.apply(stages.STAGES["relearn"], make_model(1), tensors)


def test_a_user_stage_only_names_what_differs_from_another_stage() -> None:
    stage = stages.find_stage("mine", {"mine": {"like": "relearn", "positions": "keep"}})
    assert stage == {**stages.STAGES["relearn"], "positions": "keep"}


def test_a_user_stage_may_name_every_group_instead() -> None:
    section = {**dict.fromkeys(stages.GROUPS, "freeze"), "ids": "reset"}
    assert stages.find_stage("mine", {"mine": section}) == section


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"like": "relearn", "decoder": "keep"}, "unknown group 'decoder'"),
        ({"like": "relearn", "encoder": "thaw"}, "encoder = 'thaw': choose from keep, freeze, reset"),
        ({"like": "rewind"}, "like = 'rewind'"),
        ({"encoder": "freeze"}, "no action for positions, input_norm"),
        ({"like": "finetune", "ids": "keep"}, "they can only be reset"),
        ("freeze", "must be a table"),
    ],
)
def test_an_invalid_user_stage_is_refused(section: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        stages.find_stage("mine", {"mine": section})


def test_an_unknown_stage_is_refused_with_the_names_of_all_stages() -> None:
    with pytest.raises(
        UsageError, match=f"--stage rewind: choose from {', '.join(stages.STAGES)}, auto, fork-merge, merge, mine, or"
    ):
        stages.find_stage("rewind", {"mine": {"like": "relearn"}})


def test_a_user_stage_from_before_the_floor_treats_it_as_its_history_score() -> None:
    seven = dict.fromkeys(stages.GROUPS[:-2], "keep") | {"ids": "reset", "history_score": "freeze"}
    assert not {"floor", "reranker"} & set(seven)
    assert stages.find_stage("mine", {"mine": seven}) == {**seven, "floor": "freeze", "reranker": "reset"}


def test_a_user_stage_cannot_have_the_name_of_a_built_in_stage() -> None:
    with pytest.raises(UsageError, match="this stage exists"):
        stages.find_stage("relearn", {"relearn": {"like": "scratch"}})


def test_the_table_of_groups_counts_every_parameter_once() -> None:
    model = make_model(0)
    rows = group_table(stages.STAGES["relearn"], model)
    assert sum(row.parameters for row in rows) == sum(parameter.numel() for parameter in model.parameters())
    assert sum(row.tensors for row in rows) == len(list(model.parameters()))
    assert {row.group: row.action for row in rows} == stages.STAGES["relearn"]


def test_an_exception_keeps_a_single_tensor_of_a_group_that_is_reset() -> None:
    source, model = make_model(0), make_model(1)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(1.0)
    stages.apply(stages.STAGES["relearn"], model, source.state_dict(), stages.REFERENCE_EXCEPTIONS["relearn"])
    ours, theirs = model.state_dict(), source.state_dict()
    assert torch.equal(ours["modalities.price.bias"], theirs["modalities.price.bias"])
    assert not torch.equal(ours["modalities.price.weight"], theirs["modalities.price.weight"])


@pytest.mark.parametrize("name", ["relearn", "auto", "fork-merge", "merge"])
def test_a_section_with_the_name_of_a_stage_is_refused_whatever_is_trained(name: str) -> None:
    with pytest.raises(UsageError, match=rf"\[stage.{name}\]: this stage exists already"):
        stages.find_stage("scratch", {name: {"like": "relearn"}})
