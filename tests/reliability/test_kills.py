"""A kill, or a full disk, at any operation that changes files leaves what was there before, or what was to come."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

ATTEMPTS, SEED = 6, 3  # python -m tests.support.kills FOLDER 0 0 tries each operation


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_kills_and_full_disks_leave_the_old_or_the_new(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "tests.support.kills", tmp_path, ATTEMPTS, SEED]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [str(word) for word in command], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["wrong"] == []
    assert told["tried"] == ATTEMPTS
    assert min(told["operations"].values()) >= 5
