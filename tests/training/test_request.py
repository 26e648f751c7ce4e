"""What can be said of a run before it is trained: its plan, its fingerprint and its command line."""

import json
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from antpipe.errors import DataError, IntegrityError
from antpipe.store.store import Store
from antpipe.training import checkpoint
from antpipe.training.folder import RunFolder
from antpipe.training.opening import open_run
from antpipe.training.request import RunRequest
from antpipe.training.run import run_stage
from tests.conftest import REPOSITORY
from tests.support.commands import run
from tests.support.trainable import MODEL, TRAINING, make_trainable, train_quickly

PLAIN = replace(TRAINING, epochs=1, precision="fp32", device="cpu")
OWN = {"probe": {"like": "finetune", "encoder": "freeze"}}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("request") / "store")
    make_trainable(store, "Source", seed=1)
    make_trainable(store, "Target", seed=2)
    return store


@pytest.fixture(scope="module")
def source(store: Store) -> Path:
    folder = store.root.with_name("source")
    train_quickly(store, "pretrain", ["Source"], folder, epochs=1)
    return folder


def test_a_run_is_planned_without_loading_torch(store: Store, source: Path) -> None:
    program = f"""
import sys
from pathlib import Path
from antpipe.settings.training import TrainConfig
from antpipe.store.store import Store
from antpipe.training import checkpoint
from antpipe.training.request import RunRequest
source = Path({str(source)!r})
model = checkpoint.describe(source).model_config()
store, training = Store(Path({str(store.root)!r})), TrainConfig(precision="fp32")
request = RunRequest(store, ["Target"], "relearn", model, training, source)
print(request.fingerprint(), request.command(Path("out")))
sys.exit("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert " --from " in done.stdout


def test_the_fingerprint_is_that_of_the_run(store: Store, source: Path, tmp_path: Path) -> None:
    request = RunRequest(store, ["Target"], "relearn", MODEL, replace(TRAINING, epochs=1), source)
    done, _ = run_stage(request, tmp_path / "run")
    assert done.fingerprint == request.fingerprint()


@pytest.mark.slow
def test_the_command_trains_the_same_run_even_for_a_custom_stage(store: Store, source: Path, tmp_path: Path) -> None:
    request = RunRequest(store, ["Target"], "probe", MODEL, PLAIN, source, OWN)
    line = request.command(tmp_path / "run").replace("antpipe", f"{shlex.quote(sys.executable)} -m antpipe", 1)
    done = subprocess.run(["bash", "-c", line], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert checkpoint.describe(tmp_path / "run").fingerprint == request.fingerprint()


def test_a_source_without_vectors_for_missing_modalities_is_refused_with_the_flag(store: Store, source: Path) -> None:
    request = RunRequest(store, ["Target"], "finetune", replace(MODEL, learned_missing=True), PLAIN, source)
    with pytest.raises(DataError, match="trained without --learned-missing") as refused:
        request.plan()
    assert str(refused.value.next_command) == "the same command with --no-learned-missing"
    replace(request, stage="relearn").plan()  # which learns them itself


def test_a_source_with_damaged_weights_is_refused_before_training(store: Store, tmp_path: Path) -> None:
    train_quickly(store, "pretrain", ["Source"], tmp_path / "source", epochs=1)
    [weights] = (tmp_path / "source").glob("model-*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(IntegrityError, match="not the weights"):
        RunRequest(store, ["Target"], "relearn", MODEL, PLAIN, tmp_path / "source").plan()


def test_a_dry_run_counts_parameters_without_values(store: Store, source: Path) -> None:
    outcome = run(
        "train",
        "--stage",
        "relearn",
        "--domains",
        "Target",
        "--from",
        source,
        "--store",
        store.root,
        "--dry-run",
        "--json",
    )
    rows = outcome.json()
    model, _ = checkpoint.load(source)
    assert sum(row["parameters"] for row in rows) == sum(one.numel() for one in model.parameters())


def test_a_run_whose_features_changed_proposes_the_command_that_trains_it_again(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    make_trainable(store, "Shop", seed=1)
    train_quickly(store, "scratch", ["Shop"], tmp_path / "run", epochs=1)
    before = checkpoint.describe(tmp_path / "run").fingerprint
    make_trainable(store, "Shop", seed=2)
    with pytest.raises(DataError, match="changed since") as refused:
        open_run(store, tmp_path / "run", "Shop")
    assert run(*shlex.split(str(refused.value.next_command))[1:]).code == 0
    assert checkpoint.describe(tmp_path / "run").fingerprint != before
    open_run(store, tmp_path / "run", "Shop")


def test_all_files_of_a_run_are_named_by_its_folder(store: Store, tmp_path: Path) -> None:
    train_quickly(store, "scratch", ["Target"], tmp_path, epochs=1)
    assert run("evaluate", "--run", tmp_path, "--domains", "Target", "--store", store.root).code == 0
    folder = RunFolder(tmp_path)
    described = checkpoint.describe(tmp_path)
    made = {folder.weights(described.weights_sha256), folder.items(described.id_tables), folder.metrics, folder.cost}
    judged = {folder.evaluation("Target", "test"), folder.ranks("Target", "test")}
    assert {folder.description, *made, *judged, tmp_path / ".run.lock"} == set(tmp_path.iterdir())
    assert json.loads(folder.description.read_text())["stage"] == "scratch"
