"""RUN/fork-merge.json and RUN/merge.json: what a run of such a stage chose, and by which figures."""

from pathlib import Path
from typing import Any

from antpipe.store.documents import read_json
from antpipe.training.folder import TRAIN_AGAIN


def report_file(run: Path, stage: str) -> Path:
    return run / f"{stage}.json"


def read_report(run: Path, stage: str) -> dict[str, Any]:
    """What a run of this stage chose; empty if it is of another. Raises IntegrityError if the file is damaged."""
    path = report_file(run, stage)
    return read_json(path, dict[str, Any], TRAIN_AGAIN) if path.exists() else {}
