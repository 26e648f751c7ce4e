"""`antpipe tune`: which trials there are, when they stop, what is kept of them, and what is refused."""

import dataclasses
import shlex
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import antpipe as ant
from antpipe.core import batches
from antpipe.core.batches import Examples, examples
from antpipe.errors import AntpipeError, DivergedError, Interrupted, SameCommand, UsageError
from antpipe.settings.model import ModelConfig
from antpipe.settings.training import TrainConfig
from antpipe.settings.tuning import SPACE, Choice, Span, TuneConfig
from antpipe.store.files import Sequences
from antpipe.store.store import Store
from antpipe.training import checkpoint, data
from antpipe.training.folder import RunFolder
from antpipe.training.request import RunRequest
from antpipe.tuning import draw
from antpipe.tuning import run as tuning
from antpipe.tuning.search import Search
from antpipe.tuning.trials import FAILED, FINISHED, PRUNED, RUNNING, Rung, Trial
from tests.support.commands import run
from tests.support.documents import plain
from tests.support.interruptions import Killed, failing_at
from tests.support.next_commands import fault_of
from tests.support.trainable import MODEL, TRAINING, make_trainable, train_quickly

pytest.importorskip("optuna", reason="pip install 'antpipe[tune]'")
SMALL: dict[str, Any] = {"width": 16, "experts": 2, "layers": 1, "batch_size": 64, "epochs": 4, "device": "cpu"}
SEARCHED = ("lr", "hidden_dropout", "transductive")
FIELDS = {field.name: field for config in (ModelConfig, TrainConfig) for field in fields(config)}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("tune") / "store")
    make_trainable(store, "Source", seed=1)
    make_trainable(store, "Target", seed=2)
    return store


@pytest.fixture(scope="module")
def source(store: Store) -> Path:
    train_quickly(store, "pretrain", ["Source"], store.root.with_name("source"), epochs=1)
    return store.root.with_name("source")


@pytest.fixture(scope="module")
def whole(store: Store) -> ant.Tuned:
    """A search that nothing disturbed."""
    return tuned(store, store.root.with_name("whole"))


def tuned(store: Store, out: Path, **more: Any) -> ant.Tuned:
    return ant.tune(store, "Target", out=out, **{"search": SEARCHED, "trials": 4, **SMALL, **more})


def without_times(trials: list[Trial]) -> list[Trial]:
    return [replace(one, seconds=0.0) for one in trials]


def scored(monkeypatch: pytest.MonkeyPatch, *recalls: float) -> None:
    """Let each trial have this validation recall at its rungs."""

    def score_at(legs: Any, _: int) -> tuple[float, float, float]:
        return recalls[int(legs[0].folder.path.name.removeprefix("trial-"))], 0.0, 0.0

    monkeypatch.setattr(tuning, "score_at", score_at)


# -- the space ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SPACE)
def test_a_searched_setting_is_one_of_model_or_training_and_its_range_is_allowed(name: str) -> None:
    dimension, field = SPACE[name], FIELDS[name]
    values = dimension.values if isinstance(dimension, Choice) else (dimension.low, dimension.high)
    kind = type(field.default)
    assert all(type(value) is kind for value in values)
    least, most = field.metadata["least"], field.metadata["most"]
    assert all((least is None or value >= least) and (most is None or value <= most) for value in values)
    if isinstance(dimension, Span):
        assert dimension.low < dimension.high
        assert [draw.rounded(value) for value in values] == list(values)


def request_of(store: Store, **more: Any) -> RunRequest:
    return RunRequest(store, ["Target"], "scratch", MODEL, TRAINING, **more)


def test_what_is_given_is_not_searched(store: Store, tmp_path: Path) -> None:
    search = Search(request_of(store), tmp_path, TuneConfig(), frozenset({"lr", "width"}))
    assert set(search.space()) == SPACE.keys() - {"lr", "width"}


def test_sizes_that_come_from_the_run_to_start_from_are_not_searched(
    store: Store, source: Path, tmp_path: Path
) -> None:
    for stage, taken in (
        ("finetune", {"width", "layers", "experts", "history_score"}),
        ("relearn", {"width", "layers", "history_score"}),
    ):
        request = replace(request_of(store), stage=stage, source=source)
        assert set(Search(request, tmp_path, TuneConfig(stage=stage), frozenset()).space()) == SPACE.keys() - taken


def test_choices_that_the_other_settings_do_not_allow_are_left_out(store: Store, tmp_path: Path) -> None:
    request = request_of(store)
    request = replace(request, model=replace(MODEL, width=384, heads=128))
    request = replace(request, training=replace(TRAINING, reference=True))
    space = Search(request, tmp_path, TuneConfig(), frozenset()).space()
    assert space["width"] == Choice((128, 256, 512))
    assert "unsold_negatives" not in space


@pytest.mark.parametrize(
    ("words", "said", "change"),
    [
        ({"search": ("lr", "dropout")}, "--search dropout: choose from lr, batch_size", None),
        (
            {"search": ("lr", "item-dropout")},
            "--search item-dropout: choose",
            SameCommand({"--search": "lr,item_dropout"}),
        ),
        ({"search": ("lr", "width")}, "--search width: --width 16 is given", SameCommand({"--search": "lr"})),
        ({"search": ("width",)}, "--search width: --width 16 is given", SameCommand(without=("--search",))),
        ({"trials": 0}, "--trials 0: must be at least 1", None),
        ({"stage": "pretrain"}, "--stage pretrain: choose from scratch", None),
        ({"stage": "relearn"}, "starts from a checkpoint: name a run with --from", None),
        ({"resume": True, "force": True}, "choose one of them", None),
    ],
)
def test_what_cannot_be_searched_is_refused_before_anything_is_written(
    store: Store, tmp_path: Path, words: dict[str, Any], said: str, change: SameCommand | None
) -> None:
    with pytest.raises(UsageError, match=said) as refused:
        tuned(store, tmp_path / "search", **words)
    assert refused.value.next_command == change
    assert not (tmp_path / "search").exists()


def test_a_size_of_the_source_is_refused_by_name(store: Store, source: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--search layers: --stage relearn takes it from the run to start from"):
        ant.tune(store, "Target", out=tmp_path, stage="relearn", start=source, search=["lr", "layers"])


def test_several_targets_are_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="searched for one target") as refused:
        ant.tune(store, "Target,Source", out=tmp_path)
    assert refused.value.next_command == SameCommand({"--target": "Target"})


def test_without_optuna_the_command_that_installs_it_is_named(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draw, "find_spec", lambda _: None)
    with pytest.raises(UsageError, match="tune needs optuna") as refused:
        tuned(store, tmp_path / "search")
    assert refused.value.next_command == "pip install 'antpipe[tune]'"


# -- what is drawn --------------------------------------------------------------------------------------------

TWO = {"lr": SPACE["lr"], "width": SPACE["width"]}


def finished(number: int, recall: float, **settings: Any) -> Trial:
    return Trial(number, FINISHED, settings, {"recall@10": recall, "ndcg@10": recall / 2})


def test_equal_seeds_and_trials_give_equal_draws() -> None:
    trials = [finished(0, 0.1, lr=0.001, width=64), Trial(1, FAILED, {"lr": 0.01, "width": 256})]
    first = draw.draw(TWO, 3, trials)
    assert first == draw.draw(TWO, 3, trials)
    assert first != draw.draw(TWO, 4, trials)
    assert first != draw.draw(TWO, 3, [*trials, replace(trials[1], trial=2)])


def test_no_settings_are_drawn_twice_and_a_small_space_ends() -> None:
    space, trials = {"transductive": SPACE["transductive"], "layers": SPACE["layers"]}, []
    while (drawn := draw.draw(space, 0, trials)) is not None:
        trials.append(finished(len(trials), 0.1, **drawn))
    assert len({tuple(one.settings.items()) for one in trials}) == len(trials) == 6


def test_a_search_that_tried_all_there_is_is_finished(store: Store, tmp_path: Path) -> None:
    asked = {"search": ("transductive",), "trials": 5}
    assert len(tuned(store, tmp_path / "search", **asked).trials) == 2
    assert len(tuned(store, tmp_path / "search", **asked).trials) == 2


def test_a_trial_that_failed_is_the_worst_of_all_however_good_its_rungs_were() -> None:
    good, settings = Rung(1, recall=0.9, ndcg=0.9), {"lr": 0.001, "width": 64}
    ranges = {name: draw.distribution(one) for name, one in TWO.items()}
    failed, pruned = (draw.as_optuna(Trial(0, state, settings, rungs=[good]), ranges) for state in (FAILED, PRUNED))
    assert (failed.value, failed.intermediate_values) == (None, {})
    assert pruned.intermediate_values[1] > 0.9


def test_better_settings_are_drawn_more_often() -> None:
    """Of trials whose recall falls with the width, the narrow ones are followed."""
    trials: list[Trial] = []
    for number in range(40):
        drawn = draw.draw(TWO, 0, trials)
        assert drawn is not None
        trials.append(finished(number, 1 / drawn["width"], **drawn))
    widths = [one.settings["width"] for one in trials]
    assert widths[20:].count(64) > 2 * widths[:10].count(64)


def test_settings_given_beyond_the_ranges_do_not_disturb_the_draw() -> None:
    assert draw.draw(TWO, 0, [finished(0, 0.1, lr=1.0, width=16)])


# -- trials ---------------------------------------------------------------------------------------------------


def test_the_first_trial_has_the_settings_as_given(whole: ant.Tuned) -> None:
    assert whole.trials[0].settings == {"lr": 0.001, "hidden_dropout": 0.5, "transductive": False}
    assert [one.trial for one in whole.trials] == [0, 1, 2, 3]
    assert whole.best.score() == max(one.score() for one in whole.trials if one.state == FINISHED)


def test_each_trial_is_a_run_with_its_settings_and_figures(whole: ant.Tuned) -> None:
    for trial in whole.trials:
        if trial.state == FINISHED:
            there = checkpoint.describe(whole.folder / f"trial-{trial.trial:03}")
            assert (there.fingerprint, there.metrics, there.epochs) == (trial.fingerprint, trial.metrics, 4)
            assert {name: (there.model | there.train)[name] for name in SEARCHED} == trial.settings
    assert len((whole.folder / "trials.jsonl").read_text().splitlines()) == 4


def test_the_best_settings_train_the_run_of_the_best_trial(store: Store, whole: ant.Tuned, tmp_path: Path) -> None:
    ant.train(store, "scratch", "Target", out=tmp_path / "run", config=whole.settings)
    there = checkpoint.describe(whole.folder / f"trial-{whole.best.trial:03}")
    assert checkpoint.describe(tmp_path / "run") == there


def test_the_commands_that_come_next_can_be_pasted(whole: ant.Tuned, tmp_path: Path) -> None:
    assert [fault_of(line) for line in whole.next.values()] == [None, None]
    words = shlex.split(whole.next["train"])[1:]
    assert run(*words[:-1], tmp_path / "run").code == 0


def test_with_a_source_the_best_settings_train_the_run_of_the_best_trial(
    store: Store, source: Path, tmp_path: Path
) -> None:
    found = ant.tune(
        store, "Target", out=tmp_path / "s", stage="relearn", start=source, trials=2, epochs=1, preset="strong",
        floor=False, history_score=False, modalities=["text"],
    )  # fmt: skip
    words = shlex.split(found.next["train"])[1:]
    assert run(*words).code == 0
    assert checkpoint.describe(tmp_path / "s-best") == checkpoint.describe(
        found.folder / f"trial-{found.best.trial:03}"
    )
    assert found.next["compare"].endswith(f"--arms scratch,relearn --out {tmp_path / 's-compare'}")


def test_a_trial_in_the_worse_half_at_a_rung_stops_there(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored(monkeypatch, 0.4, 0.5, 0.1, 0.45, 0.44)
    found = tuned(store, tmp_path, trials=5)
    assert [one.state for one in found.trials] == [FINISHED, FINISHED, PRUNED, FINISHED, PRUNED]
    assert [one.epochs for one in found.trials] == [4, 4, 1, 4, 2]
    assert [[rung.epochs for rung in one.rungs] for one in found.trials] == [[1, 2], [1, 2], [1], [1, 2], [1, 2]]


def test_of_a_pruned_trial_figures_are_kept_and_the_training_state_is_not(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored(monkeypatch, 0.4, 0.1)
    found = tuned(store, tmp_path, trials=2)
    here = RunFolder(tmp_path / "trial-001")
    assert found.trials[1].state == PRUNED
    assert [row["epoch"] for row in here.read_rows()] == [1]
    assert not here.holds_something()


def test_a_search_that_is_killed_before_it_removes_a_state_removes_it_when_it_continues(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored(monkeypatch, 0.4, 0.1, 0.5)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        forget = failing_at(3, tuning.SearchFolder.forget_pruned, Killed(), after=False)
        patch.setattr(tuning.SearchFolder, "forget_pruned", forget)
        tuned(store, tmp_path, trials=3)
    state = RunFolder(tmp_path / "trial-001").state
    assert [one.state for one in tuning.SearchFolder(tmp_path).trials()] == [FINISHED, PRUNED]
    assert state.exists()
    again = tuned(store, tmp_path, trials=3, resume=True)
    assert [one.state for one in again.trials] == [FINISHED, PRUNED, FINISHED]
    assert not state.exists()


@pytest.mark.parametrize(
    ("others", "here", "worse"),
    [((), 0.1, False), ((0.2,), 0.1, True), ((0.2, 0.1), 0.1, False), ((0.3, 0.2, 0.1), 0.2, False)],
)
def test_the_better_half_and_who_is_level_with_it_trains_on(
    others: tuple[float, ...], here: float, worse: bool
) -> None:
    there = [Trial(n, PRUNED, {}, rungs=[Rung(2, recall, 0.0)]) for n, recall in enumerate(others)]
    elsewhere = [Trial(9, PRUNED, {}, rungs=[Rung(4, 0.9, 0.0)])]
    assert tuning.is_worse(Rung(2, here, 0.0), [*there, *elsewhere]) is worse


def test_without_pruning_all_trials_train_to_the_end(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored(monkeypatch, 0.4, 0.1)
    found = tuned(store, tmp_path, trials=2, prune=False)
    assert [(one.state, one.rungs) for one in found.trials] == [(FINISHED, []), (FINISHED, [])]


def test_a_trial_that_stopped_early_by_itself_is_not_pruned(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored(monkeypatch, 0.4, 0.1)
    found = tuned(store, tmp_path, trials=2, limit_steps=2, first_rung=0.5)
    assert [one.state for one in found.trials] == [FINISHED, FINISHED]
    assert [len(one.rungs) for one in found.trials] == [1, 1]


def test_the_test_split_is_never_read(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def guarded(sequences: Sequences, split: str) -> Examples:
        assert split == "valid", "the test split was read"
        return examples(sequences, split)

    for module in (batches, data):
        monkeypatch.setattr(module, "examples", guarded)
    assert tuned(store, tmp_path, trials=2, epochs=2).best


def test_few_validation_users_are_said_with_the_standard_error(
    store: Store, tmp_path: Path, messages: list[str]
) -> None:
    found = tuned(store, tmp_path, trials=1, epochs=1)
    assert any("40 validation positions, so a recall@10 of 0.1 has a standard error of 0.047" in m for m in messages)
    recall = found.best.metrics["recall@10"]
    assert found.standard_error == pytest.approx((recall * (1 - recall) / 40) ** 0.5)


def test_a_trial_that_diverges_is_recorded_and_the_next_one_follows(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = tuning.train_until
    monkeypatch.setattr(tuning, "train_until", failing_at(1, real, DivergedError("the loss is nan"), after=False))
    found = tuned(store, tmp_path, trials=2)
    assert [(one.state, one.why) for one in found.trials] == [(FAILED, "the loss is nan"), (FINISHED, "")]


def test_a_trial_that_lacks_memory_is_recorded_and_the_next_one_follows(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lack = AntpipeError("out of GPU memory")
    lack.__cause__ = torch.OutOfMemoryError("CUDA out of memory")
    monkeypatch.setattr(tuning, "train_until", failing_at(1, tuning.train_until, lack, after=False))
    found = tuned(store, tmp_path, trials=2)
    assert [one.state for one in found.trials] == [FAILED, FINISHED]


def test_if_no_trial_can_be_trained_the_next_command_is_that_of_the_search(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverging(*_: Any) -> None:
        raise DivergedError("the loss is nan")

    monkeypatch.setattr(tuning, "train_until", diverging)
    with pytest.raises(DivergedError, match="no trial could be trained: the loss is nan") as caught:
        tuned(store, tmp_path, trials=2)
    command = str(caught.value.next_command)
    assert command.endswith("--clip 1 --force")
    assert fault_of(command) is None


def test_other_errors_end_the_search(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = tuning.train_until
    monkeypatch.setattr(tuning, "train_until", failing_at(2, real, AntpipeError("no room"), after=False))
    with pytest.raises(AntpipeError, match="no room"):
        tuned(store, tmp_path)


# -- continuing -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", [2, 4])
def test_a_search_that_was_killed_ends_with_the_same_trials(
    store: Store, whole: ant.Tuned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(tuning, "train_until", failing_at(call, tuning.train_until, Killed(), after=True))
        tuned(store, tmp_path)
    with pytest.raises(UsageError, match=r"of 4 trials of this search: --resume continues") as refused:
        tuned(store, tmp_path)
    assert refused.value.next_command == SameCommand({"--resume": None})
    again = tuned(store, tmp_path, resume=True)
    assert without_times(again.trials) == without_times(whole.trials)
    assert again.settings.read_bytes() == whole.settings.read_bytes()
    assert RUNNING not in (tmp_path / "trials.jsonl").read_text()


def test_ctrl_c_proposes_the_command_that_continues_the_search(
    store: Store, whole: ant.Tuned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(Interrupted) as stopped:
        patch.setattr(tuning, "train_until", failing_at(2, tuning.train_until, KeyboardInterrupt(), after=True))
        tuned(store, tmp_path)
    command = stopped.value.next_command
    assert command is not None
    assert command.endswith("--resume")
    outcome = run(*shlex.split(command)[1:], "--json")
    assert outcome.code == 0, outcome.err
    theirs = [one["settings"] for one in outcome.json()["trials"]]
    assert theirs == [one.settings for one in whole.trials]


def test_a_search_that_is_there_is_fresh_and_can_have_more_trials(store: Store, tmp_path: Path) -> None:
    first = tuned(store, tmp_path, trials=2, epochs=1)
    again = tuned(store, tmp_path, trials=2, epochs=1)
    assert (again.status, again.trials) == ("fresh", first.trials)
    more = tuned(store, tmp_path, trials=3, epochs=1, resume=True)
    assert (more.status, more.trials[:2], len(more.trials)) == ("searched", first.trials, 3)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"seed": 1}, r"--seed 0 \(now 1\)"),
        ({"search": ("lr",)}, r"searches lr,hidden_dropout,transductive \(now lr\)"),
        ({"first_rung": 0.5}, r"rungs 1,2 \(now 2\)"),
    ],
)
def test_a_folder_with_another_search_is_refused(
    store: Store, whole: ant.Tuned, other: dict[str, Any], said: str
) -> None:
    before = plain(whole.folder / "search.json")
    with pytest.raises(UsageError, match=f"holds another search: {said}; --force replaces it") as refused:
        tuned(store, whole.folder, **other)
    assert refused.value.next_command == SameCommand({"--out": f"{whole.folder}-2"})
    assert plain(whole.folder / "search.json") == before


def test_a_folder_with_a_run_is_refused_even_by_force(store: Store, source: Path) -> None:
    there = sorted(source.iterdir())
    for force in (False, True):
        with pytest.raises(UsageError, match="holds a run; a search needs a folder of its own"):
            tuned(store, source, force=force)
    assert sorted(source.iterdir()) == there


def test_force_searches_again_and_removes_nothing_else(store: Store, tmp_path: Path) -> None:
    tuned(store, tmp_path, trials=2, epochs=1)
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    found = tuned(store, tmp_path, trials=1, epochs=1, force=True, seed=1)
    assert (len(found.trials), (tmp_path / "trial-001").exists()) == (1, False)
    assert (tmp_path / "notes.txt").read_text(encoding="utf-8") == "mine"


def test_a_row_that_was_edited_is_called_damaged(store: Store, tmp_path: Path) -> None:
    tuned(store, tmp_path, trials=1, epochs=1)
    rows = tmp_path / "trials.jsonl"
    rows.write_text(rows.read_text().replace('"lr": 0.001', '"lr": 0.002'), encoding="utf-8")
    with pytest.raises(ant.IntegrityError, match=r"trials.jsonl:1: damaged"):
        tuned(store, tmp_path, trials=1, epochs=1)


def test_the_command_shows_the_best_beside_the_settings_as_given(store: Store, whole: ant.Tuned) -> None:
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    words = ["--search", ",".join(SEARCHED), "--trials", "4", "--store", store.root, "--out", whole.folder]
    outcome = run("tune", "--target", "Target", *words, *flags)
    assert outcome.code == 0, outcome.err
    assert f"best: trial {whole.best.trial}  recall@10 {whole.best.metrics['recall@10']:.4f}" in outcome.out
    assert f"as given: trial 0  recall@10 {whole.trials[0].metrics['recall@10']:.4f}" in outcome.out
    assert outcome.out.splitlines()[-2:] == [f"next: {line}" for line in whole.next.values()]
    assert dataclasses.asdict(whole.best)["settings"] == whole.best.settings
