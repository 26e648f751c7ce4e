"""`train --stage auto`: who is dropped when, that the winner equals a run of its own, and that no test item is read."""

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from antpipe.core import batches
from antpipe.core.batches import Examples, examples
from antpipe.errors import AntpipeError, DataError, DivergedError, UsageError
from antpipe.runtime.progress import Update
from antpipe.settings.comparison import CANDIDATES, RaceConfig
from antpipe.settings.training import TrainConfig
from antpipe.store.files import Sequences
from antpipe.store.lock import alone
from antpipe.store.store import Store
from antpipe.training import checkpoint, data, race
from antpipe.training.folder import RunFolder
from antpipe.training.race import AUTO, STAGES_OF, run_auto, rungs, survivors
from antpipe.training.request import RunRequest
from antpipe.training.run import run_stage
from tests.support.commands import run, unfolded
from tests.support.documents import plain
from tests.support.trainable import MODEL, TRAINING, WIDTHS, make_trainable, train_quickly

BOTH = ("recall@10", "ndcg@10")
FOUR = replace(TRAINING, epochs=4)
RACE = RaceConfig(first_rung=0.25)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Path]:
    """A store with Source, Target and Wide (a wider text encoder), and a run pre-trained on Source."""
    folder = tmp_path_factory.mktemp("race")
    store = Store(folder / "store")
    make_trainable(store, "Source", seed=1)
    make_trainable(store, "Target", seed=2)
    make_trainable(store, "Wide", seed=3, widths={**WIDTHS, "text": 20})
    train_quickly(store, "pretrain", ["Source"], folder / "source")
    return store, folder / "source"


@pytest.fixture(scope="module")
def whole(place: tuple[Store, Path]) -> tuple[Any, Path]:
    """A race that nothing disturbed: what it returned, and its folder."""
    out = place[1].with_name("whole")
    return auto(place, out), out


def auto(place: tuple[Store, Path], out: Path, domain: str = "Target", config: TrainConfig = FOUR, **more: Any) -> Any:
    store, source = place
    request = RunRequest(store, [domain], AUTO, MODEL, config, source)
    return run_auto(request, out, **{"race": RACE, **more})


@pytest.mark.parametrize(
    ("epochs", "eval_every", "first", "expected"),
    [
        (100, 1, 0.125, [12, 25, 50]),
        (8, 1, 0.125, [1, 2, 4]),
        (8, 3, 0.125, [3, 6]),  # an epoch without validation has no score
        (3, 1, 0.125, [1, 2]),
        (1, 1, 0.125, []),
        (100, 1, 0.5, [50]),
    ],
)
def test_rungs_double_and_are_validated(epochs: int, eval_every: int, first: float, expected: list[int]) -> None:
    assert rungs(epochs, eval_every, first) == expected


@pytest.mark.parametrize(
    ("scores", "kept"),
    [
        ({"a": 0.1, "b": 0.4, "c": 0.2, "d": 0.3}, ["b", "d"]),
        ({"a": 0.1, "b": 0.4, "c": 0.2}, ["b", "c"]),
        ({"a": 0.1, "b": 0.4, "c": 0.1, "d": 0.1}, ["a", "b", "c", "d"]),  # a tie is no reason to drop a candidate
        ({"a": 0.1, "b": 0.2}, ["b"]),
        ({"a": 0.1}, ["a"]),
    ],
)
def test_the_better_half_stays(scores: dict[str, float], kept: list[str]) -> None:
    assert survivors({name: (score, 0.0, 0.0) for name, score in scores.items()}) == kept


def test_of_equal_recalls_ndcg_decides_and_then_the_loss() -> None:
    scores = {"a": (1.0, 0.4, -2.0), "b": (1.0, 0.5, -3.0), "c": (1.0, 0.5, -2.5), "d": (0.9, 0.9, -0.1)}
    assert survivors(scores) == ["b", "c"]
    assert race.by_score(scores) == ["c", "b", "a", "d"]
    found = [{"epochs": 2, "scores": {}, "kept": ["c"]}]
    why = "valid_recall@10 after 2 epochs: c 1.0000, b 1.0000, a 1.0000, d 0.9000"
    assert race.reason("c", scores, found, {}) == f"{why} (of equal ones ndcg@10 decides, then the loss)"
    level = scores | {"b": scores["c"]}
    assert race.reason("c", level, found, {}).endswith(" (level with b; the first in order counts)")


def test_every_candidate_has_its_stages() -> None:
    assert set(STAGES_OF) == set(CANDIDATES)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load_weights(run, checkpoint.describe(run))


def scored(monkeypatch: pytest.MonkeyPatch, winner: str) -> None:
    """Let this candidate always be the best on validation."""
    real = race.score_at

    def score_at(legs: Any, epochs: int) -> race.Score:
        recall, ndcg, loss = real(legs, epochs)
        return recall + (legs[-1].folder.path.name == winner), ndcg, loss

    monkeypatch.setattr(race, "score_at", score_at)


def row_of(epoch: int, recall: float, gain: float) -> dict[str, float]:
    return {"epoch": epoch, "loss": 9.0 - epoch, "valid_recall@10": recall, "valid_ndcg@10": recall, "valid_gain": gain}


@pytest.mark.parametrize(
    ("recalls", "gains", "score"),
    [
        ([0.31, 0.35], [0.0, 0.0], 0.4),  # the vectors would not stay: the floor as it is kept
        ([0.31, 0.35], [7.0, 5.0], 0.41),  # those of the epoch that is kept, not those with the best recall
        ([0.31, 0.28], [7.0, 9.0], 0.38),
        ([0.31, 0.35], [4.0, 5.0], 0.4),
    ],
)
def test_a_candidate_with_a_floor_scores_as_the_run_it_would_be_if_it_ended_now(
    monkeypatch: pytest.MonkeyPatch, recalls: list[float], gains: list[float], score: float
) -> None:
    """The floor alone has .3, and .4 if it is re-ranked."""
    rows = [row_of(epoch + 1, *found) for epoch, found in enumerate(zip(recalls, gains, strict=True))]
    floors = {f"{prefix}{name}": figure for prefix, figure in (("start_", 0.3), ("floor_", 0.4)) for name in BOTH}
    rows[0] |= floors | {"reranked": 1.0}
    monkeypatch.setattr(race, "rows_of", lambda _: rows)
    leg: Any = None
    assert race.score_at([leg], 2) == pytest.approx((score, score, 0.0))


@pytest.mark.parametrize("winner", ["scratch", "relearn"])
def test_the_winner_equals_the_run_trained_alone(
    place: tuple[Store, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, winner: str
) -> None:
    scored(monkeypatch, winner)
    done, was_there, decision = auto(place, tmp_path / "auto")
    store, source = place
    start = None if winner == "scratch" else source
    train_quickly(store, winner, ["Target"], tmp_path / "alone", start, epochs=4)
    assert (decision["chosen"], was_there) == (winner, False)
    assert done == checkpoint.describe(tmp_path / "alone")
    ours, theirs = weights(tmp_path / "auto"), weights(tmp_path / "alone")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert len((tmp_path / "auto" / "metrics.jsonl").read_text().splitlines()) == 4
    assert not RunFolder(tmp_path / "auto").candidates.exists()


def test_relearning_and_then_unfreezing_trains_everything_from_the_first_rung_on(
    place: tuple[Store, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored(monkeypatch, "relearn-then-unfreeze")
    done, _, decision = auto(place, tmp_path / "auto")
    assert decision["chosen"] == "relearn-then-unfreeze"
    assert (done.stage, done.train["epochs"]) == ("unfreeze", 3)
    store, source = place
    train_quickly(store, "relearn", ["Target"], tmp_path / "first", source, epochs=1)
    train_quickly(store, "unfreeze", ["Target"], tmp_path / "second", tmp_path / "first", epochs=3)
    assert done == checkpoint.describe(tmp_path / "second")
    assert not torch.equal(weights(tmp_path / "auto")["encoder.0.qkv.weight"], weights(source)["encoder.0.qkv.weight"])


@pytest.mark.parametrize("lr", [0.001, 50.0])
def test_with_a_floor_the_choice_is_never_below_it(place: tuple[Store, Path], tmp_path: Path, lr: float) -> None:
    store, model = place[0], replace(MODEL, floor=True)
    request = RunRequest(store, ["Source"], "pretrain", model, FOUR)
    run_stage(request, tmp_path / "source")
    floor, _ = run_stage(replace(request, domains=["Target"], stage="floor"), tmp_path / "floor")
    config = replace(FOUR, lr=lr)
    asked = RunRequest(store, ["Target"], AUTO, replace(model, transductive=True), config, tmp_path / "source")
    done, _, decision = run_auto(asked, tmp_path / "auto", race=RACE)
    for rung in decision["rungs"]:
        assert min(rung["scores"].values()) >= floor.metrics["recall@10"]
    assert done.metrics["recall@10"] >= max(decision["rungs"][-1]["scores"].values())


def test_the_decision_says_when_and_why_each_candidate_was_dropped(whole: tuple[Any, Path]) -> None:
    (_, _, decision), out = whole
    assert decision == plain(out / "auto.json")
    first = decision["rungs"][0]
    assert first["epochs"] == 1
    assert set(first["scores"]) == set(CANDIDATES)
    assert first["scores"]["relearn"] == first["scores"]["relearn-then-unfreeze"]  # the same until they part
    ties = first["ties"]
    scores = {name: (one, ties[name]["ndcg@10"], -ties[name]["loss"]) for name, one in first["scores"].items()}
    assert set(first["kept"]) == set(survivors(scores))
    last = decision["rungs"][-1]
    assert decision["chosen"] in last["kept"]
    assert f"after {last['epochs']} epoch" in decision["why"]
    assert decision["selection"] == "valid recall@10, protocol all"


def test_losers_train_no_further_than_their_rung(
    place: tuple[Store, Path], tmp_path: Path, messages: list[str]
) -> None:
    trained: dict[str, int] = {}

    @contextmanager
    def counting(stage: str) -> Iterator[Update]:
        yield lambda done, _total, _note="": trained.__setitem__(stage, int(done))

    two = replace(RACE, candidates=("scratch", "relearn"))
    _, _, decision = auto(place, tmp_path / "auto", race=two, progress=counting)
    for name, epochs in trained.items():
        until = [rung["epochs"] for rung in decision["rungs"] if name in rung["scores"]]
        assert epochs == (4 if name == decision["chosen"] else until[-1])
    assert messages[0].startswith(f"{tmp_path / 'auto'}: valid_recall@10 after 1 epoch of 4: ")


def test_the_test_split_is_never_read(
    place: tuple[Store, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def guarded(sequences: Sequences, split: str) -> Examples:
        assert split == "valid", "the test split was read"
        return examples(sequences, split)

    for module in (batches, data):
        monkeypatch.setattr(module, "examples", guarded)
    _, _, decision = auto(place, tmp_path / "auto")
    assert decision["rungs"]


def test_other_test_items_change_neither_the_choice_nor_the_weights(
    place: tuple[Store, Path], whole: tuple[Any, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Store.domain

    def poisoned(self: Store, name: str) -> Any:
        domain = real(self, name)
        read = domain.sequences

        def sequences() -> Sequences:
            there = read()
            items = there.items.copy()
            items[there.offsets[1:] - 1] = 0
            return replace(there, items=items)

        domain.sequences = sequences  # type: ignore[method-assign]
        return domain

    (_, _, before), folder = whole
    monkeypatch.setattr(Store, "domain", poisoned)
    _, _, after = auto(place, tmp_path / "after")
    assert (after["chosen"], after["rungs"]) == (before["chosen"], before["rungs"])
    ours, theirs = weights(folder), weights(tmp_path / "after")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_an_interrupted_race_ends_the_same_after_resuming(
    place: tuple[Store, Path], whole: tuple[Any, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0
    real = race.train_until

    def interrupted(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise KeyboardInterrupt
        real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(race, "train_until", interrupted)
        with pytest.raises(KeyboardInterrupt):
            auto(place, tmp_path / "auto")
    with pytest.raises(UsageError, match="unfinished race: --resume continues it"):
        auto(place, tmp_path / "auto")
    done, _, decision = auto(place, tmp_path / "auto", resume=True)
    assert done == whole[0][0]
    both = (decision, whole[0][2])
    without_times = [{key: value for key, value in one.items() if key != "seconds"} for one in both]
    assert without_times[0] == without_times[1]


def test_a_finished_race_is_not_run_again_and_another_one_is_refused(
    place: tuple[Store, Path], whole: tuple[Any, Path]
) -> None:
    first, out = whole
    stamp = (out / "checkpoint.json").stat().st_mtime_ns
    assert auto(place, out) == (first[0], True, first[2])
    with pytest.raises(UsageError, match="holds another run"):
        auto(place, out, config=replace(FOUR, seed=1))
    assert (out / "checkpoint.json").stat().st_mtime_ns == stamp
    assert RunFolder(out).read_decision() == first[2]


def test_a_race_is_not_resumed_with_other_settings(
    place: tuple[Store, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(race, "finish_best", interrupted)
        with pytest.raises(KeyboardInterrupt):
            auto(place, tmp_path / "auto")
    with pytest.raises(UsageError, match="unfinished race of other candidates, settings or data"):
        auto(place, tmp_path / "auto", config=replace(FOUR, lr=0.1), resume=True)
    auto(place, tmp_path / "auto", resume=True)


def test_a_race_whose_winner_was_replaced_is_not_taken_for_finished(place: tuple[Store, Path], tmp_path: Path) -> None:
    two = {"config": replace(TRAINING, epochs=2), "race": RaceConfig(candidates=("scratch",))}
    done, _, decision = auto(place, tmp_path / "auto", **two)
    assert decision["weights_sha256"] == done.weights_sha256
    path = tmp_path / "auto" / "checkpoint.json"
    path.write_text(json.dumps(plain(path) | {"weights_sha256": "0" * 64}))
    with pytest.raises(UsageError, match="holds another run"):
        auto(place, tmp_path / "auto", **two)


def test_two_races_in_one_folder_are_refused(place: tuple[Store, Path], tmp_path: Path) -> None:
    with alone(tmp_path / "auto", "run"), pytest.raises(AntpipeError, match="run is being written by process"):
        auto(place, tmp_path / "auto")


def diverging(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Let these candidates diverge in their last epoch."""
    real = race.train_until

    def train_until(legs: Any, epochs: int, progress: Any) -> None:
        if epochs == FOUR.epochs and legs[-1].folder.path.name in names:
            raise DivergedError("the loss is nan")
        real(legs, epochs, progress)

    monkeypatch.setattr(race, "train_until", train_until)


def test_if_the_best_diverges_after_the_last_rung_the_next_best_is_chosen(
    place: tuple[Store, Path], whole: tuple[Any, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = whole[0][2]["rungs"][-1]["scores"]
    first, second = sorted(scores, key=lambda name: -scores[name])[:2]
    diverging(monkeypatch, first)
    done, _, decision = auto(place, tmp_path / "auto")
    assert (decision["chosen"], decision["left_out"]) == (second, {first: "the loss is nan"})
    assert decision["why"].endswith(f"; {first} diverged later")
    assert done.stage == STAGES_OF[second][-1]


def test_if_all_diverge_the_next_command_is_that_of_the_race(
    place: tuple[Store, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    diverging(monkeypatch, *CANDIDATES)
    with pytest.raises(DivergedError, match="every candidate diverged") as caught:
        auto(place, tmp_path / "auto")
    command = str(caught.value.next_command)
    assert command.startswith("antpipe train --stage auto --domains Target --store ")
    assert f"--out {tmp_path / 'auto'} --from {place[1]} " in command
    assert command.endswith("--lr 0.0001 --force")


def test_a_race_has_no_limit_of_steps(place: tuple[Store, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--limit-steps does not go with --stage auto"):
        auto(place, tmp_path / "auto", config=replace(FOUR, limit_steps=3))
    assert not (tmp_path / "auto").exists()


def test_a_candidate_that_cannot_read_the_target_is_left_out_by_name(place: tuple[Store, Path], tmp_path: Path) -> None:
    two = replace(TRAINING, epochs=2)
    _, _, decision = auto(place, tmp_path / "auto", domain="Wide", config=two)
    assert list(decision["left_out"]) == ["finetune"]
    assert "text of width 12" in decision["left_out"]["finetune"]
    assert "finetune" not in decision["rungs"][0]["scores"]


def test_with_one_epoch_all_candidates_that_fit_into_it_are_trained(place: tuple[Store, Path], tmp_path: Path) -> None:
    _, _, decision = auto(place, tmp_path / "auto", config=replace(TRAINING, epochs=1))
    [rung] = decision["rungs"]
    assert (rung["epochs"], set(rung["scores"])) == (1, {"scratch", "finetune", "relearn"})
    assert rung["scores"][decision["chosen"]] == max(rung["scores"].values())
    assert decision["left_out"] == {"relearn-then-unfreeze": "it takes at least 2 epochs"}


def test_a_race_without_able_candidates_is_an_error(place: tuple[Store, Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no candidate can train on Wide: .* text of width 12"):
        auto(place, tmp_path / "auto", domain="Wide", race=RaceConfig(candidates=("finetune",)))


def test_data_that_all_candidates_lack_is_an_error(place: tuple[Store, Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no domain 'Nowhere'"):
        auto(place, tmp_path / "auto", domain="Nowhere")
    assert not (tmp_path / "auto").exists()


def test_a_race_needs_a_run_to_start_from(place: tuple[Store, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="give one domain and --from RUN"):
        auto((place[0], None), tmp_path / "auto")  # type: ignore[arg-type]


COMMAND = ("train", "--stage", "auto", "--domains", "Target", "--epochs", "2", "--batch-size", "64", "--device", "cpu")


def test_the_command_says_what_it_chose_and_why(place: tuple[Store, Path], tmp_path: Path) -> None:
    store, source = place
    words = (
        *COMMAND,
        "--candidates",
        "scratch,relearn",
        "--first-rung",
        "0.5",
        "--from",
        source,
        "--store",
        store.root,
    )
    outcome = run(*words, "--dry-run")
    assert outcome.out == "scratch, relearn: the worse half is dropped after 1 of 2 epochs\n"
    outcome = run(*words, "--out", tmp_path / "auto")
    assert outcome.code == 0, outcome.err
    first, chosen, rung = unfolded(outcome.out).splitlines()
    decision = RunFolder(tmp_path / "auto").read_decision()
    assert first.startswith(f"{tmp_path}/auto  {decision['chosen']}  trained best epoch ")
    assert chosen == f"chosen: {decision['chosen']}  ({decision['why']})"
    assert rung.startswith("after 1 of 2 epochs: ")
    again = run(*words, "--out", tmp_path / "auto", "--json").json()
    assert again["auto"] == decision
    assert again["checkpoint"]["stage"] == decision["chosen"]


def test_ctrl_c_ends_a_race_with_130_and_names_the_command_that_continues_it(
    place: tuple[Store, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(race, "train_until", interrupted)
    store, source = place
    outcome = run(*COMMAND, "--from", source, "--store", store.root, "--out", tmp_path / "auto")
    assert outcome.code == 130
    proposed = shlex.split(outcome.err.splitlines()[-2].removeprefix("antpipe: next: "))
    assert proposed[:6] == ["antpipe", "train", "--stage", "auto", "--domains", "Target"]
    monkeypatch.undo()
    outcome = run(*proposed[1:])
    assert outcome.code == 0, outcome.err
    assert proposed[-1] == "--resume"
