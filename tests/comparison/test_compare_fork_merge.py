"""`compare --arms fork-merge`: its auxiliaries are the sources, and it is judged as other arms are."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from antpipe.comparison.plan import ComparisonRequest
from antpipe.comparison.run import run_comparison, what_would_be_done
from antpipe.errors import UsageError
from antpipe.settings.comparison import CompareConfig, RaceConfig
from antpipe.settings.fork_merge import ForkMergeConfig
from antpipe.store.store import Store
from antpipe.training.methods import fork_merge
from antpipe.training.methods.reports import read_report
from antpipe.training.request import FORK_MERGE
from tests.support.trainable import MODEL, TRAINING, make_trainable

TWO = replace(TRAINING, epochs=2, precision="fp32")
ARMS = ("scratch", FORK_MERGE)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("compare") / "store")
    for seed, name in enumerate(("A", "B", "Target")):
        make_trainable(store, name, seed=seed, by_id=False)
    return store


def asked(store: Store, out: Path, arms: tuple[str, ...] = ARMS, **more: Any) -> ComparisonRequest:
    config = CompareConfig(arms=arms, seeds=1, refit=more.pop("refit", False))
    request = ComparisonRequest(store, out, ("Target",), config, MODEL, MODEL, TWO, RaceConfig(), sources=("A", "B"))
    return replace(request, fork_merge=ForkMergeConfig(epoch_step=1, branches=(1, 2)), **more)


def test_it_trains_with_the_sources_and_continues_after_an_interruption(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = asked(store, tmp_path)
    real = fork_merge.merge

    def interrupted(*arguments: Any) -> Any:
        if arguments[-1] == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(fork_merge, "merge", interrupted)
        run_comparison(request)
    assert {row["arm"]: row["state"] for row in what_would_be_done(request)} == {
        "scratch": "finished",
        FORK_MERGE: "unfinished",
    }
    found = run_comparison(request)["targets"]["Target"]
    assert [one["budget"]["epochs"] for one in found["arms"][FORK_MERGE]["runs"]] == [2]
    assert "verdict" in found["arms"][FORK_MERGE]
    report = read_report(tmp_path / "Target" / "fork-merge-0", FORK_MERGE)
    assert set(report["ranking"]) == {"A", "B"}


def test_it_is_not_refitted(store: Store, tmp_path: Path) -> None:
    arms = {row["arm"] for row in what_would_be_done(asked(store, tmp_path, refit=True))}
    assert arms == {"scratch", "scratch, refit", FORK_MERGE}


def test_without_sources_it_is_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--arms fork-merge: trains a target with other domains; add --sources"):
        run_comparison(asked(store, tmp_path, sources=()))


def test_the_command_of_a_comparison_has_its_settings(store: Store, tmp_path: Path) -> None:
    assert "--epoch-step 1 --branches 1,2" in asked(store, tmp_path).command()
