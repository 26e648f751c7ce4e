"""What all methods promise: off by default, resumed bit for bit, refused by name where they cannot be."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from antpipe.errors import AntpipeError, UsageError
from antpipe.settings.methods import METHOD_SETTINGS, METHODS
from antpipe.settings.model import ModelConfig
from antpipe.settings.training import TrainConfig
from antpipe.store.documents import write_json
from antpipe.store.store import Store
from antpipe.training import loop
from antpipe.training.checkpoint import describe
from antpipe.training.request import RunRequest
from antpipe.training.run import run_stage
from tests.support.interruptions import CONFIG, STEPS, Killed, failing_at, result
from tests.support.trainable import MODEL

SMALL = replace(CONFIG, peer_candidates=9, balance_epochs=2)


def asked(store: Store, method: str, stage: str = "scratch", source: Path | None = None, **more: Any) -> RunRequest:
    domain = "Source" if stage == "pretrain" else "Target"
    return RunRequest(store, [domain], stage, MODEL, replace(SMALL, method=method, **more), source)


@pytest.fixture(scope="module")
def plain(store: Store, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    run = tmp_path_factory.mktemp("plain")
    run_stage(RunRequest(store, ["Target"], "scratch", MODEL, CONFIG), run)
    return result(run)


@pytest.mark.parametrize("method", METHODS)
def test_a_run_killed_at_any_step_ends_bit_equal_after_resuming(
    store: Store, tmp_path: Path, plain: dict[str, Any], monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    request = asked(store, method)
    run_stage(request, tmp_path / "whole")
    for _ in range(1, STEPS, 2):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(loop, "check_finite", failing_at(3, loop.check_finite, Killed(), after=False))
            run_stage(request, tmp_path / "killed", resume=True)
    run_stage(request, tmp_path / "killed", resume=True)
    found = result(tmp_path / "whole")
    assert result(tmp_path / "killed") == found
    assert found["weights"] != plain["weights"]
    assert found["rows"][-1]["loss"] != plain["rows"][-1]["loss"]
    assert found["weights"].keys() == plain["weights"].keys()  # only self is left


def test_a_run_described_before_there_were_methods_is_recognised(store: Store, tmp_path: Path) -> None:
    request = RunRequest(store, ["Target"], "scratch", MODEL, CONFIG)
    run_stage(request, tmp_path)
    described = describe(tmp_path)
    older = {name: value for name, value in described.train.items() if name not in METHOD_SETTINGS}
    write_json(tmp_path / "checkpoint.json", asdict(replace(described, train=older)))
    assert run_stage(request, tmp_path) == (replace(described, train=older), True)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"method": "balance", "modalities": ("text",)}, "--method balance: balances two or more modalities, and this run"),
    ({"method": "distil", "stage": "pretrain"}, "--method distil: is for stages on a target that train, not for pret"),
    ({"method": "distil", "stage": "floor"}, "--method distil: is for stages on a target that train, not for floor"),
    ({"method": "consensus", "peer_candidates": 20}, "20 candidates outside a history of 7 items take 27 items, and"),
    ({"method": "distil", "sampled_above": 20}, "draws its candidates from all 24 items, not from a sample"),
]


@pytest.mark.parametrize(("wish", "why"), REFUSED)
def test_what_a_method_cannot_do_is_refused_by_name(store: Store, wish: dict[str, Any], why: str) -> None:
    with pytest.raises(AntpipeError) as refused:
        asked(store, **wish).plan()
    assert why in refused.value.message
    assert refused.value.next_command is not None


def test_fewer_candidates_are_proposed_for_a_small_shop(store: Store) -> None:
    with pytest.raises(AntpipeError) as refused:
        asked(store, "consensus", peer_candidates=20).plan()
    assert str(refused.value.next_command) == "the same command with --peer-candidates 17"
    asked(store, "consensus", peer_candidates=17).plan()


@pytest.mark.parametrize(
    ("wish", "why"),
    [
        ({"method": "distil", "reference": True}, "--method distil: --reference"),
        ({"method": "consensus", "peer_top": 5, "peer_candidates": 4}, "--peer-top 5: at most --peer-candidates 4"),
    ],
)
def test_contradictory_settings_are_refused(wish: dict[str, Any], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        TrainConfig(**wish)


def test_a_peer_of_another_depth_is_trained_with_a_relearned_model(store: Store, tmp_path: Path) -> None:
    run_stage(asked(store, "none", "pretrain"), tmp_path / "source")
    request = asked(store, "distil", "relearn", tmp_path / "source", peer_layers=1, clip=1.0)
    found, _ = run_stage(request, tmp_path / "run")
    assert ModelConfig(**found.model) == MODEL
