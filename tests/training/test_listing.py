"""Runs of a store, the next step, and what is told before a transfer: shared users, modalities that are dropped."""

import shlex
from pathlib import Path

import numpy as np
import pytest

from antpipe.api.overview import next_step, runs, status
from antpipe.api.runs import Run
from antpipe.commands import show
from antpipe.errors import DataError
from antpipe.store.store import Store
from antpipe.training.folder import RunFolder
from antpipe.training.listing import run_folders
from tests.support.commands import run
from tests.support.shops import make_domain
from tests.support.trainable import make_trainable, train_quickly, write_feature


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Shop and Source, which share all users, below the current folder."""
    monkeypatch.chdir(tmp_path)
    store = Store(Path("store"))
    make_trainable(store, "Shop", seed=1)
    make_trainable(store, "Source", seed=2)
    return store


def shown(store: Store, *more: str) -> str:
    return run("status", "--store", store.root, *more).out


def step(store: Store) -> list[str]:
    """The words of the next step."""
    line = shown(store).splitlines()[-1]
    assert line.startswith("next: antpipe ")
    return shlex.split(line)[2:]


def test_runs_are_listed_with_what_they_were_trained_on(store: Store, tmp_path: Path) -> None:
    train_quickly(store, "pretrain", ["Source"], Path("runs/source"), epochs=1, modalities=("text",))
    train_quickly(store, "relearn", ["Shop"], Path("runs/deep/shop"), Path("runs/source"), epochs=1)
    train_quickly(Store(tmp_path / "store"), "scratch", ["Shop"], Path(".hidden/run"), epochs=1)
    out = shown(store)
    assert "run  runs/deep/shop  relearn on Shop  reads text, image, price\n" in out
    assert "run  runs/source     pretrain on Source  reads text\n" in out
    assert ".hidden" not in out
    assert "runs/source" not in shown(store, "--domains", "Shop")
    assert "run  " not in shown(store, "--runs", str(store.root))


def test_candidates_of_an_unfinished_race_are_not_listed(store: Store) -> None:
    race = RunFolder(Path("runs/auto"))
    train_quickly(store, "scratch", ["Shop"], race.candidates / "scratch", epochs=1)
    race.race.write_text("{}")
    assert runs(store) == []
    assert list(run_folders(Path("runs"), store.root, unfinished=True)) == [race.candidates / "scratch"]


def test_a_run_whose_data_changed_says_so(store: Store) -> None:
    train_quickly(store, "scratch", ["Shop"], Path("runs/shop"), epochs=1)
    make_trainable(store, "Shop", seed=3)
    assert "run  runs/shop  scratch on Shop  reads text, image, price; changed since: Shop\n" in shown(store)
    assert step(store)[0] == "train"


def test_a_damaged_run_is_told_and_passed_over(store: Store, messages: list[str]) -> None:
    Path("runs/broken").mkdir(parents=True)
    Path("runs/broken/checkpoint.json").write_text("{")
    assert runs(store) == []
    assert any("runs/broken/checkpoint.json: not JSON" in line for line in messages)


def test_runs_of_another_store_are_not_listed(store: Store, tmp_path: Path) -> None:
    other = Store(tmp_path / "elsewhere")
    make_trainable(other, "Another")
    train_quickly(other, "scratch", ["Another"], Path("runs/another"), epochs=1)
    assert runs(store) == []


def test_a_run_with_a_method_is_named_as_arms_are(store: Store) -> None:
    folder = Path("runs/shop")
    train_quickly(store, "scratch", ["Shop"], folder, epochs=1, method="balance")
    [found] = runs(store)
    assert (found.stage, found.way) == ("scratch", "scratch+balance")
    assert "scratch+balance on Shop" in show.overview({}, [found], "")
    opened = Run.open(folder, store)
    assert show.run(opened).startswith("runs/shop  scratch+balance  ")
    assert opened.evaluate("Shop").figures["stage"] == "scratch+balance"


def test_the_next_step_goes_from_training_to_recommending(store: Store) -> None:
    assert step(store) == [
        "train",
        "--stage",
        "pretrain",
        "--domains",
        "Shop",
        "--store",
        "store",
        "--out",
        "runs/pretrain",
    ]
    train_quickly(store, "pretrain", ["Source"], Path("runs/source"), epochs=1)
    assert step(store) == [
        "compare",
        "--store",
        "store",
        "--target",
        "Shop",
        "--from",
        "runs/source",
        "--out",
        "compare",
    ]
    train_quickly(store, "scratch", ["Shop"], Path("runs/shop"), epochs=1)
    assert step(store) == ["recommend", "--domains", "Shop", "--store", "store", "--run", "runs/shop", "--user", "u000"]
    assert run(*step(store)).code == 0


def test_a_shop_that_cannot_be_trained_on_yet_is_built_first(tmp_path: Path) -> None:
    store = Store(tmp_path)
    make_domain(store, "New", [{"item_id": "a", "text": "a cup"}], [("u", "a", t) for t in range(3)])
    assert next_step(store, status(store), []) == f"antpipe build-sequences --domains New --store {tmp_path}"


def test_a_catalogue_alone_has_no_next_step(tmp_path: Path) -> None:
    store = Store(tmp_path)
    (tmp_path / "goods.csv").write_text("item_id,title\na,A cup\n")
    assert run("ingest", "table", "--domain", "Goods", "--items", tmp_path / "goods.csv", "--store", tmp_path).code == 0
    assert next_step(store, status(store), []) == ""


def test_prices_are_not_proposed_to_a_shop_that_has_none(tmp_path: Path) -> None:
    store = Store(tmp_path)
    make_domain(store, "Shop", [{"item_id": "a", "text": "a cup"}, {"item_id": "b"}])
    [price] = [state for state in status(store)["Shop"] if state.artefact == "price"]
    assert (price.status, price.why, price.next_command) == ("missing", "no item has a price", "")


def test_a_shop_with_nothing_to_learn_from_is_told_to_learn_ids(store: Store) -> None:
    visits = [(f"u{n}", f"i{(n + t) % 8}", t) for n in range(8) for t in range(5)]
    make_domain(store, "Bare", [{"item_id": f"i{n}"} for n in range(8)], visits)
    assert run("build-sequences", "--domains", "Bare", "--store", store.root).code == 0
    line = [
        "train",
        "--stage",
        "scratch",
        "--domains",
        "Bare",
        "--out",
        "runs/bare",
        "--epochs",
        "1",
        "--store",
        "store",
    ]
    refused = run(*line)
    assert "no features to learn from, and none to build: no item has a text; no item has a picture" in refused.err
    said = refused.err.split("next: ")[-1]
    assert run(*shlex.split(said)[1:]).code == 0


# -- before a transfer ----------------------------------------------------------------------------------------


def test_shared_users_are_told_with_the_flag_that_drops_them(store: Store) -> None:
    train_quickly(store, "pretrain", ["Source"], Path("runs/source"), epochs=1)
    told = "source Source and target Shop share 40 of the target's 40 users"
    line = ["--from", "runs/source", "--epochs", "1", "--store", "store"]
    for command in (
        ["train", "--stage", "relearn", "--domains", "Shop", "--out", "runs/shop", *line],
        ["compare", "--target", "Shop", "--seeds", "1", "--arms", "scratch,relearn", "--out", "cmp", *line],
    ):
        outcome = run(*command)
        assert outcome.code == 0, outcome.err
        assert outcome.err.count(told) == 1
        assert "--drop-shared-users-from Shop" in outcome.err


def test_the_command_that_drops_shared_users_works(store: Store) -> None:
    rows = "".join(f"u{n:03},p{(n + t) % 9},{1_600_000_000 + t}\n" for n in range(30, 60) for t in range(5))
    Path("orders.csv").write_text("user,item,time\n" + rows)
    words = ["ingest", "table", "--domain", "Web", "--interactions", "orders.csv", "--keep-without-metadata"]
    assert run(*words, "--store", "store").code == 0
    web = store.domain("Web")
    write_feature(web, "text", np.ones((9, 12)))
    assert run("build-sequences", "--domains", "Web", "--max-len", "10", "--store", "store").code == 0
    train_quickly(store, "pretrain", ["Web"], Path("runs/web"), epochs=1)
    words = ["train", "--stage", "relearn", "--domains", "Shop", "--out", "runs/shop", "--from", "runs/web"]
    outcome = run(*words, "--epochs", "1", "--store", "store")
    [line] = [line for line in outcome.err.splitlines() if "share 10 of the target's 40 users" in line]
    command = line[line.index("(antpipe ") + 1 : -1]
    assert run(*shlex.split(command)[1:]).code == 0
    assert store.domain("Web").table("users").num_rows == 20


def test_a_modality_of_the_source_that_the_target_lacks_is_told(store: Store, messages: list[str]) -> None:
    train_quickly(store, "pretrain", ["Source"], Path("runs/source"), epochs=1)
    make_trainable(store, "Plain", widths={"text": 12})
    train_quickly(store, "relearn", ["Plain"], Path("runs/plain"), Path("runs/source"), epochs=1)
    assert "Plain: runs/source was trained on image or price, which relearn cannot read here" in messages


def test_all_that_a_source_run_lacks_is_said_at_once(store: Store) -> None:
    train_quickly(store, "pretrain", ["Source"], Path("runs/source"), epochs=1)
    line = ["--domains", "Shop", "--out", "runs/shop", "--from", "runs/source", "--preset", "strong", "--epochs", "1"]
    refused = run("train", "--stage", "finetune", *line, "--store", "store")
    assert "trained with experts 2, this run asks for 0; it was trained without --history-score" in refused.err
    command = refused.err.split("next: ")[-1]
    assert "--experts 2 --no-history-score --no-floor" in command
    again = run(*shlex.split(command)[1:])
    assert again.code == 0, again.err


def test_an_unknown_domain_has_no_runs(store: Store) -> None:
    with pytest.raises(DataError, match="no domain 'Nowhere'"):
        status(store, "Nowhere")
