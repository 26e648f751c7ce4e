"""Training in fixed shapes, as on a GPU: the same run as in exact blocks, one step late, and what can go wrong."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from antpipe.core.model import Ant
from antpipe.errors import AntpipeError, DivergedError
from antpipe.settings.training import TrainConfig
from antpipe.store.store import Store
from antpipe.training import loop, replay, state, validation, worth
from antpipe.training.data import TrainingData, load_training_data
from antpipe.training.folder import RunFolder
from antpipe.training.loop import fit
from antpipe.training.parallel import ALONE, World
from antpipe.training.replay import ahead, out_of_memory, replays
from antpipe.training.state import Position
from antpipe.training.validation import floors_of, prepared_on, validate
from tests.support.interruptions import CONFIG, Killed, failing_at, result, trained, two_shops
from tests.support.trainable import MODEL

CPU = torch.device("cpu")
NO_DROPOUT = replace(MODEL, hidden_dropout=0.0, attention_dropout=0.0, gate_noise=False)
FULL = torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return two_shops(tmp_path_factory.mktemp("shops"))


@pytest.fixture
def fixed_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "replays", lambda *_: True)


def data_of(store: Store) -> TrainingData:
    return load_training_data(store, ["Source", "Target"], CONFIG)


def fitted(
    store: Store, config: TrainConfig = CONFIG, *, pretraining: bool = False, floor: bool = False
) -> tuple[Position, Ant]:
    data = data_of(store) if pretraining or not floor else load_training_data(store, ["Target"], CONFIG)
    torch.manual_seed(0)
    model = Ant(replace(NO_DROPOUT, history_score=True, floor=floor), data.catalogue.widths, max_len=10)
    return fit(model, data, config, pretraining=pretraining, device=CPU), model


# -- the same run -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pretraining", "config"),
    [
        (False, CONFIG),
        (False, replace(CONFIG, sampled_above=1, drawn=8, clip=0.5)),
        (True, replace(CONFIG, image_text_weight=0.1)),
        (True, replace(CONFIG, pretrain_drawn=8)),
    ],
    ids=["full softmax", "sampled softmax", "in-batch", "drawn"],
)
@pytest.mark.parametrize("floor", [False, True])
@pytest.mark.parametrize("unsold", [False, True])
def test_losses_and_metrics_of_a_run_are_those_of_exact_blocks(
    store: Store, monkeypatch: pytest.MonkeyPatch, pretraining: bool, config: TrainConfig, floor: bool, unsold: bool
) -> None:
    config, run = replace(config, unsold_negatives=unsold), partial(fitted, store, pretraining=pretraining, floor=floor)
    exact, _ = run(config)
    monkeypatch.setattr(loop, "replays", lambda *_: True)
    static, _ = run(config)
    assert (static.steps, static.all_positions) == (exact.steps, exact.all_positions)
    for one, other in zip(static.rows, exact.rows, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert one[f"valid_{worth.SELECTION}"] == pytest.approx(other[f"valid_{worth.SELECTION}"], abs=0.02)
    first = replace(config, limit_steps=1)
    value = run(first)[0].rows[0]["loss"]
    monkeypatch.undo()
    assert value == pytest.approx(run(first)[0].rows[0]["loss"], rel=1e-6)


def test_a_floor_is_trained_in_fixed_shapes_and_smaller_batches(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(CONFIG, unsold_negatives=False, smallest_batch=16, least_steps=12)
    exact, _ = fitted(store, config, floor=True)
    monkeypatch.setattr(loop, "replays", lambda *_: True)
    monkeypatch.setattr(loop, "ExactSteps", None)
    static, _ = fitted(store, config, floor=True)
    assert static.steps == exact.steps > 3 * 12
    assert [row["loss"] for row in static.rows] == pytest.approx([row["loss"] for row in exact.rows], rel=1e-4)


@pytest.mark.parametrize("floor", [False, True])
def test_validation_prepared_on_a_device_gives_the_metrics_of_the_cpu(
    store: Store, monkeypatch: pytest.MonkeyPatch, floor: bool
) -> None:
    data, (_, model) = data_of(store), fitted(store, replace(CONFIG, epochs=1), pretraining=True, floor=floor)
    floors = floors_of(model, data)
    wanted = validate(model, data, CPU, floors=floors)
    monkeypatch.setattr(validation, "scoring", None)
    assert validate(model, data, CPU, None, prepared_on(data, CPU, floors)) == wanted


@pytest.mark.usefixtures("fixed_shapes")
def test_features_brought_by_each_step_are_those_kept_on_the_device(store: Store) -> None:
    kept, brought = (fitted(store, replace(CONFIG, gpu_features=way), pretraining=True) for way in ("on", "off"))
    assert [row["loss"] for row in kept[0].rows] == [row["loss"] for row in brought[0].rows]
    assert all(
        torch.equal(one, other) for one, other in zip(kept[1].parameters(), brought[1].parameters(), strict=True)
    )
    items = 2 * 24
    assert kept[0].gpu_features_mb == pytest.approx(items * (2 * (12 + 10 + 6) + 3) / 1e6)
    assert brought[0].gpu_features_mb == 0


@pytest.mark.usefixtures("fixed_shapes")
def test_the_learning_rate_reaches_a_recorded_step() -> None:
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimiser = torch.optim.Adam([parameter], lr=torch.tensor(1.0), foreach=False)
    there = optimiser.param_groups[0]["lr"]
    assert loop.set_learning_rate(optimiser, replace(CONFIG, lr=0.5, lr_decay=0.5), False, 2) == 0.25
    assert optimiser.param_groups[0]["lr"] is there
    assert there.item() == 0.25


@pytest.mark.parametrize(
    ("device", "world", "config", "static"),
    [
        ("cpu", ALONE, CONFIG, False),
        ("cuda", ALONE, CONFIG, True),
        ("cuda", World(0, 2), CONFIG, False),
        ("cuda", ALONE, replace(CONFIG, reference=True), False),
        ("cuda", ALONE, replace(CONFIG, compile=True), False),
    ],
)
def test_fixed_shapes_are_for_one_gpu(device: str, world: World, config: TrainConfig, static: bool) -> None:
    assert replays(torch.device(device), world, config) is static


# -- interrupted ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("fixed_shapes")
def test_a_killed_run_is_resumed_bit_equal(store: Store, tmp_path: Path) -> None:
    trained(store, tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(replay, "static_loss", failing_at(5, replay.static_loss, Killed(), after=False))
        trained(store, tmp_path / "killed")
    assert str(state.position_of(RunFolder(tmp_path / "killed"))) == "epoch 2, step 1"
    trained(store, tmp_path / "killed", resume=True)
    assert result(tmp_path / "killed") == result(tmp_path / "whole")


@pytest.mark.parametrize("save_every", [0.0, 1000.0])
@pytest.mark.usefixtures("fixed_shapes")
def test_a_loss_that_is_not_finite_is_found_before_anything_is_saved(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save_every: float
) -> None:
    calls: list[int] = []

    def watched(*arguments: Any, **more: Any) -> torch.Tensor:
        calls.append(1)
        return original(*arguments, **more) * (float("nan") if len(calls) == 5 else 1.0)

    original = replay.static_loss
    monkeypatch.setattr(replay, "static_loss", watched)
    with pytest.raises(DivergedError, match="epoch 2, step 2; its batch is in"):
        trained(store, tmp_path, replace(CONFIG, save_every=save_every))
    assert len(calls) == (5 if save_every == 0 else 6)  # the loss is read while the step after it runs
    saved = state.position_of(RunFolder(tmp_path))
    assert str(saved) == ("epoch 2, step 1" if save_every == 0 else "1 epoch")
    with np.load(RunFolder(tmp_path).bad_batch) as batch:
        assert set(batch) >= {"items", "targets", "inputs_0"}
        assert np.isin(batch["targets"], batch["items"]).all()
    trained(store, tmp_path, replace(CONFIG, save_every=save_every), force=True)


# -- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("fixed_shapes")
def test_features_leave_the_gpu_if_a_step_needs_their_memory(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    undisturbed, _ = fitted(store, pretraining=True)
    monkeypatch.setattr(replay, "static_loss", failing_at(3, replay.static_loss, FULL, after=False))
    at, _ = fitted(store, pretraining=True)
    assert "too little GPU memory" in caplog.text
    assert [row["loss"] for row in at.rows] == [row["loss"] for row in undisturbed.rows]
    assert at.gpu_features_mb == 0


@pytest.mark.usefixtures("fixed_shapes")
@pytest.mark.parametrize(
    ("way", "knob"), [("on", "--gpu-features auto --resume"), ("off", f"--batch-size {CONFIG.batch_size // 2}")]
)
def test_a_lack_of_gpu_memory_names_what_to_lower_and_keeps_the_state(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str, knob: str
) -> None:
    config = replace(CONFIG, gpu_features=way)
    monkeypatch.setattr(replay, "static_loss", failing_at(3, replay.static_loss, FULL, after=False))
    with pytest.raises(AntpipeError, match=r"out of GPU memory \(epoch 1, step 2 kept\)") as caught:
        trained(store, tmp_path, config)
    assert knob in str(caught.value.next_command)
    assert str(state.position_of(RunFolder(tmp_path))) == "epoch 1, step 2"
    trained(store, tmp_path, config, resume=True)


def test_an_error_that_a_lack_of_memory_led_to_counts_as_one() -> None:
    try:
        try:
            raise FULL
        finally:
            raise RuntimeError("capture was invalidated")
    except RuntimeError as error:
        assert out_of_memory(error)
    assert not out_of_memory(RuntimeError("another"))


@pytest.mark.parametrize(("free", "there"), [(10**9, True), (5000, False)])
def test_features_are_kept_on_a_gpu_that_has_room_for_them(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, free: int, there: bool
) -> None:
    data = data_of(store)
    caplog.set_level("INFO")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, 10**9))
    monkeypatch.setattr(replay, "features_on", lambda *_: "there")
    kept = replay.keep_features(data.catalogue, data.catalogue.widths, CONFIG, torch.device("cuda"))
    assert (kept == "there") is there
    assert ("--gpu-features on" in caplog.text) is not there


# -- made ahead -------------------------------------------------------------------------------------------------------


def test_things_made_ahead_come_in_order() -> None:
    assert list(ahead(iter(range(10)), 3)) == list(range(10))
    assert list(ahead(iter(()), 3)) == []


def test_an_error_while_making_arises_where_its_thing_would() -> None:
    def made() -> Iterator[int]:
        yield from (1, 2)
        raise Killed

    found = []
    with pytest.raises(Killed):
        for one in ahead(made(), 3):
            found.append(one)
    assert found == [1, 2]
