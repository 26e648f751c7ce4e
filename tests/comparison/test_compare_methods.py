"""Arms STAGE+METHOD of `antpipe compare`."""

from dataclasses import replace
from pathlib import Path

import pytest

from antpipe.comparison.arms import plan_arms
from antpipe.comparison.plan import ComparisonRequest, jobs
from antpipe.comparison.run import run_comparison
from antpipe.errors import UsageError
from antpipe.settings.comparison import CompareConfig, ComparedTraining, RaceConfig
from antpipe.settings.methods import METHODS
from antpipe.store.store import Store
from antpipe.training import checkpoint
from tests.support.trainable import MODEL, TRAINING, make_trainable


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("methods") / "store")
    for seed, name in enumerate(("Source", "Target")):
        make_trainable(store, name, seed=seed, by_id=False)
    return store


def asked(store: Store, out: Path, *arms: str) -> ComparisonRequest:
    config = CompareConfig(arms=arms, seeds=1)
    training = replace(TRAINING, epochs=1, peer_candidates=9)
    return ComparisonRequest(store, out, ("Target",), config, MODEL, MODEL, training, RaceConfig(), sources=("Source",))


def test_an_arm_with_a_method_is_its_stage_with_what_the_method_reads(store: Store, tmp_path: Path) -> None:
    request = asked(store, tmp_path, "scratch", "relearn", *(f"relearn+{method}" for method in METHODS))
    arms, mixes = plan_arms(request)
    plain, *others = [arm for arm in arms if arm.mix]
    assert [arm.name for arm in others] == [f"relearn+{method}" for method in METHODS]
    assert all(arm.judged and arm.kind == plain.kind for arm in others)
    for arm, (method, reads) in zip(others, METHODS.items(), strict=True):
        own = {name: getattr(request.training, name) for name in reads}
        assert arm.request == replace(plain.request, training=replace(TRAINING, epochs=1, method=method, **own))
    assert [mix.request.training for mix in mixes] == [plain.request.training] == [replace(TRAINING, epochs=1)]


def test_the_settings_of_a_method_leave_other_arms_as_they_are(store: Store, tmp_path: Path) -> None:
    request = asked(store, tmp_path, "scratch", "scratch+distil", "scratch+balance")
    changed = replace(request, training=replace(request.training, peer_candidates=12))
    same = [
        one.request == other.request for one, other in zip(*(plan_arms(r)[0] for r in (request, changed)), strict=True)
    ]
    assert same == [True, False, True]


def test_arms_that_differ_in_their_method_have_their_own_folders(store: Store, tmp_path: Path) -> None:
    request = asked(store, tmp_path, "scratch", "scratch+balance", "finetune", "finetune+balance")
    work = list(jobs(plan_arms(request)[0], request))
    assert [str(job.folder.relative_to(tmp_path)) for job in work] == [
        "Target/scratch-0",
        "Target/scratch+balance-0",
        "Target/all/finetune-0",
        "Target/all/finetune+balance-0",
    ]
    assert len({job.record() for job in work}) == 4


def test_a_method_is_compared_with_the_control(store: Store, tmp_path: Path) -> None:
    found = run_comparison(asked(store, tmp_path, "scratch", "relearn+distil"))
    assert list(found["targets"]["Target"]["arms"]) == ["scratch", "relearn+distil"]
    assert checkpoint.describe(tmp_path / "Target" / "all" / "relearn+distil-0").train["method"] == "distil"
    assert checkpoint.describe(tmp_path / "pretrain" / "all").train["method"] == "none"


@pytest.mark.parametrize("name", ["relearn+magic", "pretrain+distil", "floor+distil", "markov+distil", "auto+distil"])
def test_what_is_no_stage_with_a_method_is_refused(store: Store, tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError) as refused:
        plan_arms(asked(store, tmp_path, "scratch", name))
    assert refused.value.message.startswith(f"--arms {name}: choose from")
    assert refused.value.message.endswith("or a stage with +consensus, +distil, +balance, +behaviour")


def test_a_method_for_all_arms_is_refused() -> None:
    with pytest.raises(UsageError, match=r"--method distil: in a comparison it is part of an arm") as refused:
        ComparedTraining(method="distil")
    assert str(refused.value.next_command) == "the same command without --method"
