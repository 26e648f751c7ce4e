"""Runs with a floor, and runs that are nothing but one: as a user makes, resumes, evaluates and asks them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from antpipe.core import untrained
from antpipe.core.batches import Examples
from antpipe.errors import UsageError
from antpipe.evaluation.baselines import judge
from antpipe.evaluation.baselines.judge import baseline_fingerprint, judge_baseline
from antpipe.evaluation.evaluate import evaluate_run
from antpipe.evaluation.vectors import item_vectors, open_for, user_vectors
from antpipe.features.build_sequences import build_sequences
from antpipe.serving.recommend import recommend_after
from antpipe.settings.base import from_json
from antpipe.settings.evaluation import EvaluateConfig
from antpipe.settings.features import SequenceConfig
from antpipe.settings.model import ModelConfig
from antpipe.settings.training import TrainConfig
from antpipe.store.store import Store
from antpipe.training import checkpoint, request
from antpipe.training.data import load_training_data
from antpipe.training.folder import RunFolder
from antpipe.training.request import FLOOR, RunRequest
from antpipe.training.run import run_stage
from antpipe.training.state import Paused
from antpipe.training.validation import floors_of, validate
from tests.support.commands import run
from tests.support.shops import make_domain
from tests.support.trainable import MODEL, TRAINING, make_trainable

WITH_FLOOR = replace(MODEL, floor=True, transductive=True)
ON_SOURCES = replace(MODEL, floor=True)
STRONG = "--preset strong --width 16 --epochs 2 --device cpu"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("floor") / "store")
    make_trainable(store, "Shop", seed=1, by_id=False)
    make_trainable(store, "Source", seed=2, items=30, by_id=False)
    make_trainable(store, "Bare", seed=3, widths={}, by_id=False)
    make_trainable(store, "Priced", seed=4, widths={"price": 6}, by_id=False)
    return store


def train(
    store: Store,
    out: Path,
    stage: str = "scratch",
    domains: tuple[str, ...] = ("Shop",),
    source: Path | None = None,
    model: ModelConfig = WITH_FLOOR,
    training: TrainConfig = TRAINING,
    **more: Any,
) -> checkpoint.Checkpoint:
    own = {key: more.pop(key) for key in ("resume", "pause_after") if key in more}
    return run_stage(RunRequest(store, domains, stage, model, replace(training, **more), source), out, **own)[0]


def test_a_floor_of_another_form_makes_another_run_and_another_baseline(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made() -> list[str]:
        models = (WITH_FLOOR, replace(WITH_FLOOR, floor=False))
        runs = [RunRequest(store, ("Shop",), "scratch", model, TRAINING, None).fingerprint() for model in models]
        return [*runs, *(baseline_fingerprint(store, name, "Shop") for name in ("floor", "markov"))]

    before = made()
    monkeypatch.setattr(request, "FORM", untrained.FORM + 1)
    monkeypatch.setitem(judge.VERSIONS, "floor", untrained.FORM + 1)
    assert [one == other for one, other in zip(before, made(), strict=True)] == [False, True, False, True]


def figures(store: Store, out: Path, domain: str = "Shop", split: str = "test", **more: Any) -> Any:
    return evaluate_run(store, out, domain, EvaluateConfig(split=split, device="cpu", **more))["protocols"]


# -- stage floor ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("domain", ["Shop", "Bare", "Priced"])
def test_stage_floor_ranks_as_the_baseline_does(store: Store, tmp_path: Path, domain: str) -> None:
    done = train(store, tmp_path / "run", FLOOR, (domain,))
    assert (done.best_epoch, done.epochs, list(done.modalities)) == (0, 0, ["text"] if domain == "Shop" else [])
    baseline = judge_baseline(store, "floor", domain, tmp_path / "baseline")["protocols"]
    ours = figures(store, tmp_path / "run", domain)
    for protocol in baseline:
        assert ours[protocol] == pytest.approx(baseline[protocol], abs=1e-12)


def test_without_texts_to_read_a_floor_has_the_other_terms(store: Store, tmp_path: Path) -> None:
    assert train(store, tmp_path / "run", FLOOR, modalities=("none",)).modalities == {}


def test_a_shop_has_recommendations_within_seconds_of_ingest(store: Store, tmp_path: Path) -> None:
    words = ("--domains", "Shop", "--store", store.root)
    trained = run("train", "--stage", "floor", *words, "--out", tmp_path / "run")
    assert trained.code == 0, trained.err
    assert "Shop  floor: weights fitted to validation: text " in trained.err
    assert "steps=0" not in trained.err
    asked = run("recommend", "--run", tmp_path / "run", *words, "--items", "i003", "--k", "2", "--json")
    order = np.random.default_rng(24).permutation(24)  # of the ring, as make_trainable draws it
    following = order[(np.flatnonzero(order == 3)[0] + 1) % 24]
    assert asked.json()[0]["item_id"] == f"i{following:03}"
    assert "  fresh\n" in run("train", "--stage", "floor", *words, "--out", tmp_path / "run").out


def test_a_catalogue_without_interactions_is_ranked_by_texts(store: Store, tmp_path: Path) -> None:
    train(store, tmp_path / "run", FLOOR)
    (tmp_path / "items.csv").write_text("item_id,title\na,One\nb,Two\nc,Three\n", encoding="utf-8")
    ingest = ("ingest", "table", "--domain", "Catalogue", "--items", tmp_path / "items.csv", "--store", store.root)
    assert run(*ingest).code == 0
    catalogue = store.domain("Catalogue")
    with catalogue.writing("text", {}) as out:
        with out.feature("text", 3, 12) as feature:
            feature.values[:] = np.eye(12)[:3] + [[0], [0], [0.5]] * np.eye(12)[0]  # c is near a
            feature.present[:] = True
        out.details["encoder"] = {"name": "test", "revision": "1"}
    asked = run(
        *("recommend", "--run", tmp_path / "run", "--domains", "Catalogue", "--store", store.root),
        *("--items", "a", "--json"),
    )
    assert asked.code == 0, asked.err
    assert [row["item_id"] for row in asked.json()] == ["c", "b"]


# -- a model that begins at its floor ---------------------------------------------------------------------------------


@pytest.mark.parametrize("lr", [0.0, 50.0])  # nothing is learned, or every step spoils something
@pytest.mark.parametrize("stage", ["scratch", "finetune", "relearn", "linear-probe"])
def test_a_run_is_never_worse_on_validation_than_the_floor_it_began_with(
    store: Store, tmp_path: Path, stage: str, lr: float
) -> None:
    source = None
    if stage != "scratch":
        source = tmp_path / "source"
        train(store, source, "pretrain", ("Source",), model=ON_SOURCES)
    floor = train(store, tmp_path / "floor", FLOOR)
    done = train(store, tmp_path / "run", stage, source=source, lr=lr)
    rows = RunFolder(tmp_path / "run").read_rows()
    assert rows[0]["start_recall@10"] >= floor.metrics["recall@10"]
    assert all("start_recall@10" not in row for row in rows[1:])
    best = max(rows[0]["start_recall@10"], *(row["valid_recall@10"] for row in rows))
    assert done.metrics["recall@10"] == best
    if not lr:
        assert (done.best_epoch, done.epochs) == (0, 3)
    valid = figures(store, tmp_path / "run", split="valid")["all"]
    assert valid["recall@10"] == pytest.approx(best, abs=1e-12)


def test_patience_counts_from_the_best_epoch(store: Store, tmp_path: Path) -> None:
    assert train(store, tmp_path / "run", lr=0.0, patience=2, epochs=9).epochs == 3


def test_a_source_is_what_it_learned_however_good_the_floor(store: Store, tmp_path: Path) -> None:
    done = train(store, tmp_path / "run", "pretrain", ("Source",), model=ON_SOURCES, lr=50.0)
    assert done.best_epoch >= 1
    assert "start_recall@10" not in RunFolder(tmp_path / "run").read_rows()[0]


def test_a_source_is_judged_by_its_vectors_alone(store: Store, tmp_path: Path) -> None:
    done = train(store, tmp_path / "run", "pretrain", ("Source",), model=ON_SOURCES)
    model, described = checkpoint.load(tmp_path / "run")
    data = load_training_data(store, ["Source"], from_json(TrainConfig, described.train))
    model.eval()
    assert done.metrics == validate(model, data, torch.device("cpu"))
    assert done.metrics != validate(model, data, torch.device("cpu"), floors=floors_of(model, data))


@pytest.mark.parametrize("epochs", [1, 2])
def test_an_interrupted_run_ends_with_the_weights_of_one_that_was_not(
    store: Store, tmp_path: Path, epochs: int
) -> None:
    train(store, tmp_path / "whole", least_steps=5, unsold_negatives=False)
    with pytest.raises(Paused):
        train(store, tmp_path / "run", least_steps=5, unsold_negatives=False, pause_after=epochs)
    train(store, tmp_path / "run", least_steps=5, unsold_negatives=False, resume=True)
    ours, theirs = (checkpoint.load(tmp_path / name)[0].state_dict() for name in ("run", "whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    rows = [RunFolder(tmp_path / name).read_rows() for name in ("run", "whole")]
    for key in ("loss", "valid_recall@10", "start_recall@10"):
        assert [row.get(key) for row in rows[0]] == [row.get(key) for row in rows[1]]


@pytest.mark.parametrize(
    ("domain", "modalities"), [("Priced", ("price",)), ("Shop", ("image",)), ("Shop", ("none",)), ("Bare", ("none",))]
)
def test_a_model_that_reads_no_texts_has_the_other_terms(
    store: Store, tmp_path: Path, domain: str, modalities: tuple[str, ...]
) -> None:
    train(store, tmp_path / "run", domains=(domain,), modalities=modalities)
    model, _ = checkpoint.load(tmp_path / "run")
    assert model.floor is not None
    assert set(model.floor) == {"cosine", "words", "transitions", "novelty", "popularity"}
    floor = train(store, tmp_path / "floor", FLOOR, (domain,), modalities=("none",))
    assert checkpoint.describe(tmp_path / "run").metrics["recall@10"] >= floor.metrics["recall@10"]


# -- scores of a run with a floor -------------------------------------------------------------------------------------


def test_vectors_and_pairs_give_the_scores_that_recommend_shows(store: Store, tmp_path: Path) -> None:
    train(store, tmp_path / "run")
    opened = open_for(store, tmp_path / "run", "Shop")
    sequences = store.domain("Shop").sequences()
    ids, items = item_vectors(store, tmp_path / "run", "Shop")
    _, users = user_vectors(store, tmp_path / "run", "Shop")
    part = Examples(sequences.user, sequences.items, sequences.offsets[:-1], sequences.offsets[1:], opened.max_len)
    more = opened.added(part)(np.array([5]))
    scores = items @ users[5]
    scores[more.keys] += more.scores
    best = np.argsort(-scores)[:4]
    history = sequences.items[sequences.offsets[5] : sequences.offsets[6]]
    [rows] = recommend_after(opened, [history], 4, include_seen=True)
    assert [row["item_id"] for row in rows] == [ids[item] for item in best]
    assert [row["score"] for row in rows] == pytest.approx(scores[best].tolist(), abs=1e-5)


def test_an_approximate_index_that_finds_everything_gives_the_exact_figures(store: Store, tmp_path: Path) -> None:
    train(store, tmp_path / "run")
    assert figures(store, tmp_path / "run", index="hnsw") == figures(store, tmp_path / "run")


# -- shops that are hardly shops --------------------------------------------------------------------------------------


def shop_of(store: Store, name: str, users: int, items: int, length: int, *, alike: bool = False) -> None:
    """Users who go round a ring of items, all from the first one if they are alike."""
    rows = [{"item_id": f"i{number}", "title": f"item {number}", "text": f"text {number}"} for number in range(items)]
    rings = [
        (f"u{user}", f"i{(step + (0 if alike else user)) % items}", 1000 + step)
        for user in range(users)
        for step in range(length)
    ]
    domain = make_domain(store, name, rows, rings)
    with domain.writing("text", {}) as out:
        with out.feature("text", items, 12) as feature:
            feature.values[:] = np.random.default_rng(0).normal(size=(items, 12))
            feature.present[:] = True
        out.details["encoder"] = {"name": "test", "revision": "1"}
    build_sequences(store, [name], SequenceConfig(max_len=10))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("users", "items", "length", "alike"), [(20, 30, 6, False), (20, 3, 5, False), (20, 6, 6, True), (1, 6, 6, False)]
)
@pytest.mark.parametrize("stage", ["floor", "pretrain", "scratch", "finetune", "auto"])
def test_the_preset_trains_on_the_smallest_shops(
    store: Store, tmp_path: Path, users: int, items: int, length: int, alike: bool, stage: str
) -> None:
    name = f"Shop-{users}-{items}"
    shop_of(store, name, users, items, length, alike=alike)
    start = []
    if stage in ("finetune", "auto"):
        words = f"train --stage pretrain --domains Source --modalities text {STRONG}".split()
        assert run(*words, "--out", tmp_path / "source", "--store", store.root).code == 0
        start = ["--from", tmp_path / "source"]
    place = ("--domains", name, "--store", store.root)
    trained = run("train", "--stage", stage, *STRONG.split(), *start, *place, "--out", tmp_path / "run")
    assert trained.code == 0, trained.err
    assert run("evaluate", "--run", tmp_path / "run", *place).code == 0
    rows = run("recommend", "--run", tmp_path / "run", *place, "--items", "i1", "--k", "2", "--json").json()
    assert len(rows) == 2
    assert np.isfinite([row["score"] for row in rows]).all()


# -- what does not go together ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "flags"),
    [
        (ModelConfig(floor=True), "--no-floor"),
        (ModelConfig(floor=True, history_score=True), "--no-history-score --no-floor"),
    ],
)
def test_the_authors_code_has_no_floor(store: Store, tmp_path: Path, model: ModelConfig, flags: str) -> None:
    with pytest.raises(UsageError, match="the authors' code adds nothing to scores") as caught:
        train(store, tmp_path / "run", model=model, reference=True)
    assert str(caught.value.next_command) == f"the same command with {flags}"


def test_the_authors_code_scores_unsold_items() -> None:
    with pytest.raises(UsageError, match="--no-unsold-negatives: --reference scores all items"):
        TrainConfig(reference=True, unsold_negatives=False)


def test_a_source_without_a_floor_is_refused_for_a_target_with_one(store: Store, tmp_path: Path) -> None:
    train(store, tmp_path / "source", "pretrain", ("Source",), model=MODEL)
    with pytest.raises(Exception, match="was trained without --floor, which this stage takes from there") as caught:
        train(store, tmp_path / "run", "finetune", source=tmp_path / "source")
    assert str(caught.value.next_command) == "the same command with --no-floor"  # type: ignore[attr-defined]


def test_a_floor_brings_the_history_score_that_a_target_takes(store: Store, tmp_path: Path) -> None:
    train(store, tmp_path / "source", "pretrain", ("Source",), model=ON_SOURCES)
    target = replace(WITH_FLOOR, history_score=True)
    assert train(store, tmp_path / "run", "finetune", source=tmp_path / "source", model=target).epochs == 3


def test_another_number_of_least_steps_is_another_run(store: Store, tmp_path: Path) -> None:
    train(store, tmp_path / "run")
    with pytest.raises(UsageError, match=r"another run: --least-steps 0 \(now 9\)"):
        train(store, tmp_path / "run", least_steps=9)
