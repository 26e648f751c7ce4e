"""Which modalities a single run reads, and what it says about those that it does not read."""

from dataclasses import replace
from pathlib import Path

import pytest

from antpipe.evaluation.evaluate import evaluate_run
from antpipe.settings.evaluation import EvaluateConfig
from antpipe.store.store import Store
from antpipe.training import checkpoint, race
from antpipe.training.request import RunRequest
from tests.support.commands import run
from tests.support.trainable import MODEL, TRAINING, WIDTHS, make_trainable, train_quickly

ONE_EPOCH = replace(TRAINING, epochs=1, device="cpu")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Source and Target have all modalities, Plain has no price, Words only text."""
    store = Store(tmp_path_factory.mktemp("modalities") / "store")
    make_trainable(store, "Source", seed=1)
    make_trainable(store, "Target", seed=2)
    make_trainable(store, "Plain", seed=3, widths={"text": WIDTHS["text"], "image": WIDTHS["image"]})
    make_trainable(store, "Words", seed=4, widths={"text": WIDTHS["text"]})
    return store


@pytest.fixture(scope="module")
def starts(store: Store) -> dict[str, Path]:
    """Runs to start from: whole, pre-trained on Source; plain, on Plain; words, on Words."""
    folders = {name: store.root.with_name(name) for name in ("whole", "plain", "words")}
    for folder, domain in zip(folders.values(), ("Source", "Plain", "Words"), strict=True):
        train_quickly(store, "pretrain", [domain], folder, epochs=1, device="cpu")
    return folders


@pytest.mark.parametrize(
    ("stage", "start", "said"),
    [
        ("finetune", "words", "Target: finetune does not read image or price: {} was trained without them"),
        ("finetune", "plain", "Target: finetune does not read price: {} was trained without it"),
        ("unisrec", "plain", "Target: unisrec does not read price: {} was trained without it"),
        ("gates", "plain", "Target: gates does not read price: {} was trained without it"),
        ("finetune", "whole", None),
        ("relearn", "plain", None),
        ("scratch", None, None),
    ],
)
def test_a_stage_that_keeps_experts_or_gates_names_the_modalities_it_does_not_read(
    store: Store, starts: dict[str, Path], stage: str, start: str | None, said: str | None, messages: list[str]
) -> None:
    source = starts[start] if start else None
    own = {"gates": {"like": "relearn", "gates": "keep"}}
    RunRequest(store, ["Target"], stage, MODEL, ONE_EPOCH, source, own).plan()
    assert messages == ([said.format(source)] if said else [])


def test_a_run_reads_only_the_modalities_asked_for(
    store: Store, starts: dict[str, Path], tmp_path: Path, messages: list[str]
) -> None:
    """Neither in training nor when it is evaluated, even if the run to start from knows it."""
    train_quickly(
        store, "finetune", ["Target"], tmp_path / "run", starts["whole"], epochs=1, device="cpu", modalities=("text",)
    )
    described = checkpoint.describe(tmp_path / "run")
    assert (list(described.modalities), described.reads("Target")) == (["text"], {"text"})
    evaluate_run(store, tmp_path / "run", "Target", EvaluateConfig(device="cpu"))
    assert messages == []


def test_a_race_names_once_the_modalities_that_a_stage_does_not_read(
    store: Store, starts: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(race, "survivors", list)  # nobody is dropped, so that each trains up to every rung
    outcome = run(
        "train",
        "--stage",
        "auto",
        "--from",
        starts["plain"],
        "--domains",
        "Target",
        "--epochs",
        "4",
        "--out",
        tmp_path / "run",
        "--store",
        store.root,
    )
    assert outcome.code == 0, outcome.err
    assert outcome.err.count(f"Target: finetune does not read price: {starts['plain']} was trained without it") == 1
