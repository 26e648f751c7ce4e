"""A run as a folder for a model hub: its files, its card, and the way to a hub and back."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import yaml
from safetensors.numpy import load_file

import antpipe as ant
from antpipe.errors import IntegrityError
from antpipe.export import model_card
from antpipe.export.model_folder import statistics
from antpipe.store.store import Store
from antpipe.training import checkpoint
from antpipe.training.folder import RunFolder
from tests.support import documents
from tests.support.commands import run as command
from tests.support.shops import make_domain
from tests.support.stand_in_hub import StandInHub, standing_in


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInHub]:
    """A hub on loopback, which the client takes for the only one."""
    with standing_in() as there:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", there.url)
        template = there.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        yield there


@pytest.fixture
def folder(plain: ant.Run, tmp_path: Path) -> Path:
    return ant.export_huggingface(plain, out=tmp_path / "model", license="mit").folder


def card_of(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8")


def test_the_folder_is_a_run_that_recommends_the_same(plain: ant.Run, folder: Path) -> None:
    there = plain.recommend("Ring", users=["u000", "u001"], k=5)
    assert ant.Run.open(folder, plain.store).recommend("Ring", users=["u000", "u001"], k=5).equals(there)


def test_the_folder_of_a_run_that_re_ranks_recommends_the_same_and_its_card_says_so(
    reranked: ant.Run, tmp_path: Path
) -> None:
    copy = ant.export_huggingface(reranked, out=tmp_path / "model", license="mit").folder
    users = ["u000", "u001", "u002"]
    there = reranked.recommend("Ring", users=users, k=9)
    assert ant.Run.open(copy, reranked.store).recommend("Ring", users=users, k=9).equals(there)
    assert "A re-ranker scores the 200 best items again" in card_of(copy)


def test_the_card_of_a_run_that_does_not_re_rank_says_nothing_of_it(
    reranked: ant.Run, floored: ant.Run, tmp_path: Path
) -> None:
    shutil.copytree(reranked.folder, tmp_path / "unused")
    model, described = checkpoint.load(tmp_path / "unused")
    assert model.reranker is not None
    model.reranker.weight.fill_(0.0)
    checkpoint.save(tmp_path / "unused", model, described)
    unused = ant.Run.open(tmp_path / "unused", reranked.store)
    for number, run in enumerate((unused, floored)):
        card = card_of(ant.export_huggingface(run, out=tmp_path / f"{number}", license="mit").folder)
        assert "re-rank" not in card
        assert "scored again" not in card


def test_weights_are_the_tensors_of_the_run(plain: ant.Run, folder: Path) -> None:
    expected = checkpoint.load(plain.folder)[0].state_dict()
    tensors = load_file(folder / "model.safetensors")
    assert {name: values.tolist() for name, values in tensors.items()} == {
        name: values.tolist() for name, values in expected.items()
    }


def test_weights_that_were_exchanged_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"other")
    with pytest.raises(ant.IntegrityError, match="not the weights its description names"):
        checkpoint.load(folder)


def test_the_configuration_has_the_model_settings_and_modalities(plain: ant.Run, folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert (config["model_type"], config["width"], config["max_len"]) == ("antpipe", 16, 10)
    assert config["modalities"] == plain.checkpoint.modalities


def test_the_card_has_the_metrics_of_the_evaluation_by_protocol(plain: ant.Run, folder: Path) -> None:
    figures = json.loads(RunFolder(plain.folder).evaluation("Ring", "test").read_text(encoding="utf-8"))
    card = card_of(folder)
    for protocol, values in figures["protocols"].items():
        assert f"| {protocol} | {values['recall@10']:.4f} | {values['ndcg@10']:.4f} |" in card
        assert f"- `{protocol}`: " in card
    head = yaml.safe_load(card.split("---\n")[1])
    assert (head["license"], head["library_name"]) == ("mit", "antpipe")
    [result] = head["model-index"][0]["results"]
    first = result["metrics"][0]
    assert first["value"] == pytest.approx(figures["protocols"]["all"]["recall@10"], abs=1e-6)


def test_the_card_names_data_and_limits(plain: ant.Run, folder: Path) -> None:
    card = card_of(folder)
    counts = plain.store.domain("Ring").manifest()["items"]["statistics"]
    assert f"| Ring | {counts['users']} | {counts['items']} | {counts['interactions']} |" in card
    assert "one run with one seed" in card
    assert "learned vector for each" not in card
    assert not list(folder.glob("items-*.parquet"))


def test_the_card_says_that_a_run_took_steps_on_other_domains_or_is_an_average(plain: ant.Run) -> None:
    merged, averaged = (replace(plain.checkpoint, stage=stage) for stage in ("fork-merge", "merge"))
    assert "fork-merge.json names" in "\n".join(model_card.data(merged, {"Ring": {}}))
    assert "the average of two runs" in model_card.about(averaged, reranks=False)


def test_the_card_of_a_run_with_ids_and_a_floor_says_what_is_not_in_the_folder(
    floored: ant.Run, tmp_path: Path
) -> None:
    card = card_of(ant.export_huggingface(floored, out=tmp_path / "out").folder)
    assert "a learned vector for each of the 24 items" in card
    assert list((tmp_path / "out").glob("items-*.parquet"))
    assert "transitions: what came after the last items in training" in card
    assert "This run was not evaluated" in card
    assert "no figures on test positions" in card


def test_a_damaged_entry_of_the_items_is_refused_and_not_left_out_of_the_card(tmp_path: Path) -> None:
    store = Store(tmp_path)
    domain = make_domain(store, "A", [{"item_id": "x"}])
    path = domain.path / "manifest.json"
    path.write_text(path.read_text().replace('"rows": 1', '"rows": 2'))
    with pytest.raises(IntegrityError, match=r"manifest\.json: the entry of items is damaged"):
        statistics(store, "A")


def test_without_a_licence_card_and_log_say_so(floored: ant.Run, tmp_path: Path, messages: list[str]) -> None:
    card = card_of(ant.export_huggingface(floored, out=tmp_path / "out").folder)
    assert "license: unknown" in card
    assert any("states no licence" in message for message in messages)


def test_a_domain_without_evaluation_is_refused_with_the_command_that_evaluates(
    floored: ant.Run, tmp_path: Path
) -> None:
    with pytest.raises(ant.DataError, match="was not evaluated on Ring") as caught:
        ant.export_huggingface(floored, "Ring", out=tmp_path / "out")
    assert str(caught.value.next_command).startswith("antpipe evaluate --domains Ring")


def test_an_evaluation_of_an_earlier_run_is_left_out(plain: ant.Run, tmp_path: Path, messages: list[str]) -> None:
    copy = ant.export_huggingface(plain, out=tmp_path / "copy", license="mit").folder
    path = RunFolder(copy).evaluation("Ring", "test")
    path.write_text(json.dumps(documents.plain(path) | {"run_fingerprint": "another"}), encoding="utf-8")
    found = ant.export_huggingface(ant.Run.open(copy, plain.store), out=tmp_path / "out", license="mit")
    assert found.figures["evaluations"] == 0
    assert any("of an earlier run" in message for message in messages)


def comparison_of(folder: Path, fingerprint: str) -> Path:
    """A folder of `compare`, as far as a card reads it."""
    means = {"ndcg@10": {"mean": 0.25, "std": 0.01, "seeds": [0.24, 0.26]}}
    arm = {
        "runs": [{"fingerprint": fingerprint}],
        "seeds": 2,
        "protocols": {"all": means},
        "verdict": {"word": "POSITIVE", "why": "a difference beyond chance"},
    }
    outcome = {
        "control": "scratch",
        "metric": "ndcg@10",
        "protocol": "all",
        "targets": {"Ring": {"arms": {"relearn": arm}}},
    }
    folder.mkdir()
    (folder / "comparison.json").write_text(json.dumps(outcome), encoding="utf-8")
    return folder


def test_the_verdict_of_a_comparison_is_on_the_card(plain: ant.Run, tmp_path: Path) -> None:
    cmp = comparison_of(tmp_path / "cmp", plain.checkpoint.fingerprint)
    card = card_of(ant.export_huggingface(plain, out=tmp_path / "out", license="mit", comparison=cmp).folder)
    assert "Ring, arm relearn against scratch, 2 seed(s), ndcg@10" in card
    assert "POSITIVE (a difference beyond chance)" in card


def test_a_comparison_without_the_run_is_refused(plain: ant.Run, tmp_path: Path) -> None:
    cmp = comparison_of(tmp_path / "cmp", "another")
    with pytest.raises(ant.DataError, match="none of its runs is this one"):
        ant.export_huggingface(plain, out=tmp_path / "out", comparison=cmp)


# -- hub --------------------------------------------------------------------------------------------------------


def test_what_is_pushed_can_be_pulled_and_is_the_same_run(
    plain: ant.Run, folder: Path, tmp_path: Path, hub: StandInHub
) -> None:
    pushed = command("hub", "push", "--path", folder, "--repo", "me/ring", "--json")
    assert pushed.code == 0, pushed.err
    assert pushed.json()["url"] == f"{hub.url}/me/ring"
    assert hub.repositories["me/ring"].private
    assert hub.heads[0]["license"] == "mit"
    pulled = command("hub", "pull", "--repo", "me/ring", "--out", tmp_path / "pulled")
    assert pulled.code == 0, pulled.err
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "pulled").iterdir()} == files
    again = ant.Run.open(tmp_path / "pulled", plain.store)
    assert again.checkpoint == plain.checkpoint


def test_a_repository_is_public_only_if_asked(folder: Path, hub: StandInHub) -> None:
    ant.hub_push(folder, "me/open", public=True)
    assert not hub.repositories["me/open"].private


def test_a_folder_that_is_no_export_is_not_uploaded(plain: ant.Run, hub: StandInHub) -> None:
    with pytest.raises(ant.DataError, match="not an export of antpipe"):
        ant.hub_push(plain.folder, "me/ring")
    assert not hub.repositories


def test_a_repository_without_a_run_leaves_no_folder(folder: Path, tmp_path: Path, hub: StandInHub) -> None:
    ant.hub_push(folder, "me/ring")
    del hub.repositories["me/ring"].files["checkpoint.json"]
    with pytest.raises(ant.DataError, match="no run of antpipe there"):
        ant.hub_pull("me/ring", out=tmp_path / "pulled")
    assert not (tmp_path / "pulled").exists()


def test_weights_damaged_on_the_hub_are_refused(folder: Path, tmp_path: Path, hub: StandInHub) -> None:
    ant.hub_push(folder, "me/ring")
    hub.repositories["me/ring"].files["model.safetensors"] = b"other"
    with pytest.raises(ant.IntegrityError, match="not the weights"):
        ant.hub_pull("me/ring", out=tmp_path / "pulled")
    assert not (tmp_path / "pulled").exists()


@pytest.mark.parametrize(("name", "why"), [("me/none", "check the name"), ("no such name", "Repo id must")])
def test_a_repository_that_is_not_there_is_refused_in_one_line(
    tmp_path: Path, hub: StandInHub, name: str, why: str
) -> None:
    with pytest.raises(ant.AntpipeError, match=why):
        ant.hub_pull(name, out=tmp_path / "pulled")
    assert hub.repositories == {}


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({"epochs": 0, "best_epoch": 0}, "its vectors were not trained"),
        ({"epochs": 4, "best_epoch": 0}, "to which the vectors of 4 epochs add too little"),
        ({"epochs": 4, "best_epoch": 3}, "the best of 4 epochs by validation, epoch 3"),
        ({"epochs": 3, "best_epoch": 0, "refit": {"of": "", "epochs": 3}}, "trained for 3 epochs on training and"),
        ({"epochs": 0, "best_epoch": 0, "refit": {"of": "", "epochs": 0}}, "its vectors were not trained"),
    ],
)
def test_a_model_card_says_how_the_run_came_about(plain: ant.Run, found: dict[str, Any], said: str) -> None:
    assert said in model_card.about(replace(plain.checkpoint, **found), reranks=False)
