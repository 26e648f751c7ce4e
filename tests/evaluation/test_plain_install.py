"""Training, evaluating and recommending work without the libraries of encoders."""

import subprocess
import sys
from pathlib import Path

import pytest

from antpipe.store.store import Store
from tests.support.commands import TINY
from tests.support.trainable import make_trainable

ENCODERS = ("sentence_transformers", "transformers", "open_clip", "timm", "torchvision")
# In a process of its own. A module that is None in sys.modules cannot be imported.
SCRIPT = f"""
import sys
sys.modules |= dict.fromkeys({ENCODERS})
from antpipe.cli import main
try:
    main(sys.argv[1:])
except SystemExit as stop:
    code = stop.code or 0
print("imported", *(name for name in {ENCODERS} if sys.modules[name] is not None), file=sys.stderr)
sys.exit(code)
"""


@pytest.mark.slow
def test_train_evaluate_and_recommend_import_no_encoder_library(tmp_path: Path) -> None:
    make_trainable(Store(tmp_path / "store"), "Shop")
    for line in (
        f"train --stage scratch --domains Shop --out run {TINY}",
        "evaluate --run run --domains Shop --device cpu",
        "recommend --run run --domains Shop --items i001",
    ):
        words = [sys.executable, "-c", SCRIPT, *line.split(), "--store", "store"]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stderr.splitlines()[-1] == "imported"
