"""All arms of a comparison read the same modalities: those that all of them can read, or a given list."""

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from antpipe.comparison.plan import ComparisonRequest
from antpipe.comparison.run import run_comparison, what_would_be_done
from antpipe.errors import UsageError
from antpipe.features.whiten import whiten
from antpipe.settings.comparison import CompareConfig, RaceConfig
from antpipe.settings.features import WhitenConfig
from antpipe.settings.model import MODALITIES
from antpipe.store.store import Store
from antpipe.training import checkpoint
from antpipe.training.folder import RunFolder
from tests.support.commands import Outcome, run
from tests.support.releases import snapshot
from tests.support.trainable import MODEL, TRAINING, WIDTHS, make_trainable, train_quickly

ONE_EPOCH = replace(TRAINING, epochs=1, device="cpu")
SMALL = (
    "--seeds",
    "1",
    "--epochs",
    "1",
    "--batch-size",
    "64",
    "--width",
    "16",
    "--experts",
    "2",
    "--item-dropout",
    "0",
    "--hidden-dropout",
    "0.1",
    "--attention-dropout",
    "0.1",
    "--device",
    "cpu",
)
SAID = "Target: every arm reads text, image (the run to start from has no price)"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Source and Target have all modalities, Plain has no price, Words only text."""
    store = Store(tmp_path_factory.mktemp("modalities") / "store")
    for seed, name in enumerate(("Source", "Target")):
        make_trainable(store, name, seed=seed)
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


def asked(store: Store, out: Path, **more: Any) -> ComparisonRequest:
    """A request for Target with the common modalities; `more` replaces its fields, and those of its CompareConfig."""
    own = {key: more.pop(key) for key in list(more) if key in CompareConfig.__dataclass_fields__}
    config = replace(CompareConfig(seeds=1), **own)
    request = ComparisonRequest(store, out, ("Target",), config, MODEL, MODEL, ONE_EPOCH, RaceConfig(), common=True)
    return replace(request, **more)


def common_said(messages: list[str]) -> list[str]:
    return [message for message in messages if "every arm reads" in message]


def read(out: Path, *folders: str) -> list[set[str]]:
    return [checkpoint.describe(out / folder).reads(folder.split("/")[0]) for folder in folders]


def asks(*words: str | Path, store: Store, out: Path) -> Outcome:
    return run("compare", "--target", "Target", *SMALL, *words, "--out", out, "--store", store.root)


def next_of(outcome: Outcome) -> list[str]:
    [line] = [line for line in outcome.err.splitlines() if line.startswith("antpipe: next: ")]
    program, *words = shlex.split(line.removeprefix("antpipe: next: "))
    assert program == "antpipe"
    return words


# -- what is common ---------------------------------------------------------------------------------------------


def test_by_default_all_arms_read_the_common_modalities_which_are_named_once(
    store: Store, starts: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = asks("--from", starts["plain"], "--json", store=store, out=tmp_path / "out")
    assert outcome.code == 0, outcome.err
    assert outcome.err.count(SAID) == outcome.err.count("every arm reads") == 1
    assert "does not read" not in outcome.err
    folders = ("Target/scratch-0", "Target/plain/finetune-0", "Target/plain/relearn-0")
    assert read(tmp_path / "out", *folders) == [{"text", "image"}] * 3
    for folder in folders:
        assert checkpoint.describe(tmp_path / "out" / folder).train["modalities"] == ["text", "image"]
    found = outcome.json()
    assert found["targets"]["Target"]["notes"][0] == SAID.removeprefix("Target: ")
    assert f"- note: {SAID.removeprefix('Target: ')}" in (tmp_path / "out" / "comparison.md").read_text()
    monkeypatch.setattr("antpipe.training.run.fit", None)  # nothing is left to train
    again = asks("--from", starts["plain"], "--json", store=store, out=tmp_path / "out")
    assert again.json() == found
    assert again.err.count(SAID) == 1


def test_arms_that_read_the_same_anyway_keep_the_whole_list(
    store: Store, starts: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--from", starts["whole"])
    assert asks(*words, "--modalities", ",".join(MODALITIES), store=store, out=tmp_path / "out").code == 0
    monkeypatch.setattr("antpipe.training.run.fit", None)
    outcome = asks(*words, store=store, out=tmp_path / "out")
    assert outcome.code == 0, outcome.err
    assert "every arm reads" not in outcome.err


def test_arms_that_reset_experts_and_gates_are_not_limited_by_what_they_start_from(
    store: Store, starts: dict[str, Path], tmp_path: Path, messages: list[str]
) -> None:
    run_comparison(asked(store, tmp_path, origins=(starts["words"],), arms=("scratch", "relearn")))
    assert read(tmp_path, "Target/scratch-0", "Target/words/relearn-0") == [set(MODALITIES)] * 2
    assert not [line for line in messages if "every arm" in line]


def test_a_modality_that_one_of_several_starts_lacks_is_read_by_no_arm(
    store: Store, starts: dict[str, Path], tmp_path: Path, messages: list[str]
) -> None:
    origins = (starts["whole"], starts["plain"], starts["words"])
    run_comparison(asked(store, tmp_path, origins=origins, arms=("scratch", "finetune")))
    assert read(tmp_path, "Target/scratch-0", *(f"Target/{name}/finetune-0" for name in starts)) == [{"text"}] * 4
    assert common_said(messages) == ["Target: every arm reads text (plain has no price; words has no image or price)"]


def test_each_target_has_its_own_common_modalities(
    store: Store, starts: dict[str, Path], tmp_path: Path, messages: list[str]
) -> None:
    request = asked(store, tmp_path, origins=(starts["plain"],), targets=("Target", "Words"), arms=("scratch", "auto"))
    run_comparison(request)
    assert common_said(messages) == [SAID]
    assert not [line for line in messages if line.startswith("Words: every")]
    assert read(tmp_path, "Target/scratch-0", "Words/scratch-0") == [{"text", "image"}, {"text"}]
    assert checkpoint.describe(tmp_path / "Words/scratch-0").train["modalities"] == list(MODALITIES)


def test_mixes_that_are_pre_trained_here_read_what_their_domains_have(
    store: Store, tmp_path: Path, messages: list[str]
) -> None:
    request = asked(store, tmp_path, sources=("Plain", "Words"), arms=("scratch", "finetune"), leave_one_out=True)
    rows = what_would_be_done(request)
    assert common_said(messages) == [
        "Target: every arm reads text (all has no price; without-Plain has no image or price; "
        "without-Words has no price)"
    ]
    assert {row["state"] for row in rows} == {"missing"}
    run_comparison(request)
    mixes = {name: checkpoint.describe(tmp_path / "pretrain" / name) for name in ("all", "without-Plain")}
    assert [set(mix.modalities) for mix in mixes.values()] == [{"text", "image"}, {"text"}]
    assert {tuple(mix.train["modalities"]) for mix in mixes.values()} == {MODALITIES}
    assert read(tmp_path, "Target/scratch-0", "Target/all/finetune-0") == [{"text"}] * 2
    assert [row["state"] for row in what_would_be_done(request)] == ["finished"] * 7


def test_a_race_is_among_stages_that_all_read_the_common_modalities(
    store: Store, starts: dict[str, Path], tmp_path: Path, messages: list[str]
) -> None:
    race = RaceConfig(candidates=("finetune", "relearn"))
    request = asked(store, tmp_path, origins=(starts["plain"],), arms=("scratch", "auto"), race=race)
    run_comparison(request)
    assert common_said(messages) == [SAID]
    assert RunFolder(tmp_path / "Target" / "plain" / "auto-0").read_decision()["left_out"] == {}
    assert read(tmp_path, "Target/scratch-0", "Target/plain/auto-0") == [{"text", "image"}] * 2
    assert [row["state"] for row in what_would_be_done(request)] == ["finished"] * 2


def test_a_race_without_stages_that_keep_experts_narrows_nothing(
    store: Store, starts: dict[str, Path], tmp_path: Path, messages: list[str]
) -> None:
    race = RaceConfig(candidates=("scratch", "relearn"))
    what_would_be_done(asked(store, tmp_path, origins=(starts["plain"],), arms=("scratch", "auto"), race=race))
    assert common_said(messages) == []


def test_a_race_compares_what_is_read_of_the_target(store: Store, starts: dict[str, Path], tmp_path: Path) -> None:
    """The run to start from knows prices, which the target does not have: fine-tuning reads what the others read."""
    race = RaceConfig(candidates=("finetune", "relearn"))
    request = asked(store, tmp_path, origins=(starts["whole"],), arms=("scratch", "auto"), race=race)
    run_comparison(replace(request, targets=("Plain",)))
    assert RunFolder(tmp_path / "Plain" / "whole" / "auto-0").read_decision()["left_out"] == {}


def test_a_custom_stage_that_keeps_the_gates_is_limited_by_what_it_starts_from(
    store: Store, starts: dict[str, Path], tmp_path: Path, messages: list[str]
) -> None:
    request = asked(
        store,
        tmp_path,
        origins=(starts["plain"],),
        arms=("scratch", "gates"),
        own_stages={"gates": {"like": "relearn", "gates": "keep"}},
    )
    run_comparison(request)
    assert common_said(messages) == [SAID]


def test_baselines_that_differ_by_nature_are_left_as_they_are(
    store: Store, starts: dict[str, Path], tmp_path: Path
) -> None:
    arms = ("scratch", "finetune", "sasrec", "unisrec", "markov")
    run_comparison(asked(store, tmp_path, origins=(starts["plain"],), arms=arms))
    folders = ("Target/scratch-0", "Target/plain/finetune-0", "Target/sasrec-0", "Target/plain-text/unisrec-0")
    assert read(tmp_path, *folders) == [{"text", "image"}, {"text", "image"}, set(), {"text"}]


def test_a_modality_that_is_not_read_is_not_read_in_whitened_form_either(tmp_path: Path) -> None:
    own = Store(tmp_path / "store")
    for seed, name in enumerate(("Source", "Target")):
        make_trainable(own, name, seed=seed, widths=WIDTHS if name == "Target" else {"text": 12, "price": 6})
    whiten(own, ["Source", "Target"], "text", WhitenConfig(scope="global"))
    whiten(own, ["Target"], "image", WhitenConfig())
    words = ("--sources", "Source", "--arms", "scratch,finetune", "--whitened", "text,image")
    outcome = asks(*words, store=own, out=tmp_path / "out")
    assert outcome.code == 0, outcome.err
    assert "Target: every arm reads text, price (the run to start from has no image)" in outcome.err
    train = checkpoint.describe(tmp_path / "out" / "Target" / "scratch-0").train
    assert (train["modalities"], train["whitened"]) == (["text", "price"], ["text"])


def test_a_modality_that_no_item_of_the_target_has_is_read_by_no_arm(
    store: Store, starts: dict[str, Path], tmp_path: Path, messages: list[str]
) -> None:
    bare = make_trainable(store, "Bare", seed=6, widths={"text": WIDTHS["text"], "image": WIDTHS["image"]})
    with bare.writing("price", {"encoding": "test", "bins": 6}) as out:
        with out.feature("price", 24, 6):
            pass
        out.details["encoder"] = {"name": "test", "revision": "1"}
    request = asked(store, tmp_path, origins=(starts["whole"],), targets=("Bare",), arms=("scratch", "finetune"))
    run_comparison(request)
    assert common_said(messages) == ["Bare: every arm reads text, image (no item of Bare has a price)"]


def test_arms_without_a_common_modality_are_refused_with_those_that_have_one(
    store: Store, starts: dict[str, Path], tmp_path: Path
) -> None:
    priced = make_trainable(store, "Priced", seed=7, widths={"price": WIDTHS["price"]})
    words = ("compare", "--target", priced.name, *SMALL, "--from", starts["words"], "--out", tmp_path / "out")
    outcome = run(*words, "--arms", "scratch,finetune,relearn,markov", "--store", store.root)
    assert outcome.code == 2
    said = "scratch reads price, finetune reads nothing, relearn reads price"
    assert f"Priced: no modality is read by every arm: {said}" in outcome.err
    assert "--arms scratch,relearn,markov" in shlex.join(next_of(outcome))
    again = run(*next_of(outcome))
    assert again.code == 0, again.err


# -- runs handed in ---------------------------------------------------------------------------------------------


def test_runs_handed_in_narrow_what_the_others_read(
    store: Store, starts: dict[str, Path], tmp_path: Path, messages: list[str]
) -> None:
    train_quickly(store, "scratch", ["Target"], tmp_path / "mine", epochs=1, device="cpu", modalities=("text",))
    request = asked(
        store,
        tmp_path / "out",
        origins=(starts["whole"],),
        arms=("finetune",),
        given={"scratch": [tmp_path / "mine"]},
    )
    run_comparison(request)
    assert common_said(messages) == ["Target: every arm reads text (scratch was trained without image or price)"]
    assert read(tmp_path / "out", "Target/whole/finetune-0") == [{"text"}]


def test_a_run_handed_in_that_reads_the_common_modalities_is_comparable_whatever_list_it_was_given(
    store: Store, starts: dict[str, Path], tmp_path: Path
) -> None:
    train_quickly(store, "finetune", ["Target"], tmp_path / "mine", starts["plain"], epochs=1, device="cpu")
    found = run_comparison(asked(store, tmp_path / "out", arms=("scratch",), given={"mine": [tmp_path / "mine"]}))
    assert list(found["targets"]["Target"]["arms"]) == ["scratch", "mine"]


def test_a_run_handed_in_that_reads_more_is_refused_with_the_arms_that_can_read_as_much(
    store: Store, starts: dict[str, Path], tmp_path: Path
) -> None:
    train_quickly(store, "scratch", ["Target"], tmp_path / "mine", epochs=1, device="cpu")
    words = ("--from", starts["plain"], "--run", f"mine={tmp_path / 'mine'}")
    for more in ((), ("--dry-run",)):
        outcome = asks(*words, *more, store=store, out=tmp_path / "out")
        assert outcome.code == 2
        assert "are not comparable: reads image, price, text (not image, text)" in outcome.err
        assert not (tmp_path / "out").exists()
    outcome = asks(*words, store=store, out=tmp_path / "out")
    assert "--arms scratch,relearn" in shlex.join(next_of(outcome))
    again = run(*next_of(outcome))
    assert again.code == 0, again.err


# -- a list that is said ----------------------------------------------------------------------------------------


def test_a_list_is_taken_as_it_is_and_a_refusal_names_a_command_that_works(
    store: Store, starts: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--from", starts["words"])
    for more in (("--modalities", "text,price"), ("--modalities", "text,image,price", "--dry-run")):
        outcome = asks(*words, *more, store=store, out=tmp_path / "out")
        assert outcome.code == 2
        assert "finetune" in outcome.err
        assert "are not comparable: reads text (not " in outcome.err
        assert not (tmp_path / "out").exists()
        again = run(*next_of(outcome))
        assert again.code == 0, again.err
        assert "Target: every arm reads text (the run to start from has no image or price)" in again.err
        if not more[2:]:
            assert read(tmp_path / "out", "Target/scratch-0", "Target/words/finetune-0") == [{"text"}] * 2
            (tmp_path / "out").rename(tmp_path / "done")
    monkeypatch.setenv("ANTPIPE_TRAIN_MODALITIES", "text,price")
    assert asks(*words, store=store, out=tmp_path / "out").code == 2
    assert asks(*words, "--modalities", "common", "--dry-run", store=store, out=tmp_path / "out").code == 0


def test_a_list_that_all_arms_read_is_compared_without_a_message(
    store: Store, starts: dict[str, Path], tmp_path: Path
) -> None:
    outcome = asks("--from", starts["plain"], "--modalities", "text", store=store, out=tmp_path / "out")
    assert outcome.code == 0, outcome.err
    assert "every arm reads" not in outcome.err
    assert checkpoint.describe(tmp_path / "out" / "Target" / "scratch-0").train["modalities"] == ["text"]


def test_a_settings_file_can_give_a_list_too(store: Store, starts: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "a b.toml").write_text('[train]\nmodalities = ["text", "price"]\n')
    words = ("--from", starts["words"], "--config", tmp_path / "a b.toml")
    outcome = asks(*words, store=store, out=tmp_path / "out")
    assert outcome.code == 2
    assert "are not comparable: reads text (not price, text)" in outcome.err
    assert run(*next_of(outcome), "--dry-run").code == 0


@pytest.mark.parametrize("words", ["common,text", "text,common"])
def test_common_cannot_be_combined_with_others(store: Store, tmp_path: Path, words: str) -> None:
    outcome = asks("--arms", "scratch", "--modalities", words, store=store, out=tmp_path / "out")
    assert outcome.code == 2
    assert f"--modalities {words}: common cannot be combined with others" in outcome.err


def test_a_dry_run_says_what_is_common_and_writes_nothing(
    store: Store, starts: dict[str, Path], tmp_path: Path
) -> None:
    before = snapshot(store.root.parent)
    outcome = asks("--from", starts["plain"], "--dry-run", "--json", store=store, out=tmp_path / "out")
    assert outcome.code == 0, outcome.err
    assert outcome.err.count(SAID) == 1
    assert len(outcome.json()) == 3
    assert snapshot(store.root.parent) == before


def test_the_help_of_compare_and_train_show_their_own_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")  # wide enough for a setting per line
    helps = {name: " ".join(run(name, "--help").out.split()) for name in ("compare", "train")}
    assert "(text, image, price, none, common) [default: common]" in helps["compare"]
    assert "(text, image, price, none) [default: text,image,price]" in helps["train"]


def test_a_request_made_in_python_takes_its_list_as_it_is(
    store: Store, starts: dict[str, Path], tmp_path: Path
) -> None:
    request = asked(store, tmp_path / "out", origins=(starts["plain"],), common=False)
    with pytest.raises(UsageError, match=r"are not comparable: reads image, text \(not image, price, text\)") as caught:
        run_comparison(request)
    again = shlex.split(str(caught.value.next_command))
    assert run(*again[1:], "--dry-run").code == 0


@pytest.mark.parametrize("words", ["common", "common,text"])
def test_train_does_not_know_common_modalities(store: Store, tmp_path: Path, words: str) -> None:
    outcome = run(
        "train",
        "--stage",
        "scratch",
        "--domains",
        "Target",
        "--modalities",
        words,
        "--out",
        tmp_path / "x",
        "--store",
        store.root,
    )
    assert outcome.code == 2
    assert f"--modalities {words}: choose from text, image, price, none" in outcome.err
