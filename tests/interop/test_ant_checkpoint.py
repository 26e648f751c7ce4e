"""Importing the authors' checkpoints, and what stages do with the run."""

import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from antpipe.core.model import Ant
from antpipe.errors import DataError, UsageError
from antpipe.evaluation.evaluate import evaluate_run
from antpipe.interop.ant_checkpoint import import_checkpoint, read_checkpoint
from antpipe.interop.ant_reference import to_reference
from antpipe.settings.evaluation import EvaluateConfig
from antpipe.settings.model import ModelConfig
from antpipe.store.store import Store
from antpipe.training import checkpoint
from antpipe.training.checkpoint import Checkpoint
from antpipe.training.request import RunRequest
from tests.support.commands import run
from tests.support.golden_report import Report, read_golden
from tests.support.trainable import MODEL, TRAINING, WIDTHS, make_trainable, train_quickly


class Foreign:
    """A class that a torch file can only store with code."""


@pytest.fixture
def state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return to_reference(Ant(MODEL, WIDTHS, max_len=10))


@pytest.fixture
def ckpt(tmp_path: Path, state: dict[str, Tensor]) -> Path:
    """A file as a training tool writes it: the tensors and its own bookkeeping."""
    path = tmp_path / "their.ckpt"
    torch.save({"epoch": 3, "state_dict": state, "callbacks": {"best": torch.tensor(0.5)}}, path)
    return path


def import_run(path: Path, out: Path, force: bool = False, heads: int = ModelConfig.heads) -> Checkpoint:
    return import_checkpoint(path, out, heads=heads, force=force)[0]


def test_an_imported_run_has_the_weights_and_sizes_of_the_file(
    ckpt: Path, tmp_path: Path, state: dict[str, Tensor]
) -> None:
    import_run(ckpt, tmp_path / "run")
    model, described = checkpoint.load(tmp_path / "run")
    assert (described.stage, described.domains, described.max_len, described.items) == ("pretrain", {}, 10, None)
    assert described.widths() == WIDTHS
    assert {modality["encoder"] for modality in described.modalities.values()} == {None}
    back = to_reference(model)
    assert set(back) == set(state)
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())


def test_what_the_file_does_not_store_is_in_the_description(ckpt: Path, tmp_path: Path) -> None:
    described, _ = import_checkpoint(ckpt, tmp_path / "run", heads=4, fusion=0.5)
    assert (described.model_config().heads, described.model_config().fusion) == (4, 0.5)


def test_the_same_file_again_changes_nothing(ckpt: Path, tmp_path: Path) -> None:
    _, was_there = import_checkpoint(ckpt, tmp_path / "run")
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()}
    _, again = import_checkpoint(ckpt, tmp_path / "run")
    assert (was_there, again) == (False, True)
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()} == before


def test_another_run_in_the_folder_is_kept_unless_forced(ckpt: Path, tmp_path: Path, state: dict[str, Tensor]) -> None:
    first = import_run(ckpt, tmp_path / "run")
    state["LayerNorm.bias"] += 1
    torch.save(state, tmp_path / "other.pt")
    with pytest.raises(UsageError, match="holds another run") as caught:
        import_run(tmp_path / "other.pt", tmp_path / "run")
    assert checkpoint.load(tmp_path / "run")[1].fingerprint == first.fingerprint
    program, *words = shlex.split(str(caught.value.next_command))
    assert (program, run(*words).code) == ("antpipe", 0)
    assert checkpoint.load(tmp_path / "run")[1].fingerprint != first.fingerprint


def test_a_file_instead_of_a_run_folder_is_refused(ckpt: Path, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("notes")
    with pytest.raises(UsageError, match="is a file"):
        import_run(ckpt, tmp_path / "run")
    assert (tmp_path / "run").read_text() == "notes"


def test_relearning_an_imported_run_works_with_features_of_other_widths(
    ckpt: Path, tmp_path: Path, state: dict[str, Tensor]
) -> None:
    import_run(ckpt, tmp_path / "run")
    store = Store(tmp_path / "store")
    make_trainable(store, "target", widths={"text": 9, "price": 3})
    train_quickly(store, "relearn", ["target"], tmp_path / "relearned", source=tmp_path / "run")
    model, described = checkpoint.load(tmp_path / "relearned")
    assert described.source == checkpoint.describe(tmp_path / "run").fingerprint
    kept = to_reference(model)
    frozen = [name for name in state if name.startswith("trm_encoder.")]
    assert frozen
    assert all(torch.equal(kept[name], state[name]) for name in frozen)


def test_finetuning_an_imported_run_warns_that_only_widths_are_compared(
    ckpt: Path, tmp_path: Path, messages: list[str]
) -> None:
    import_run(ckpt, tmp_path / "run")
    store = Store(tmp_path / "store")
    make_trainable(store, "target")
    plan = RunRequest(store, ["target"], "finetune", MODEL, TRAINING, tmp_path / "run").plan()
    assert plan.described.modalities["text"]["encoder"] is not None
    assert any("does not say what made its text features" in line for line in messages)


def test_finetuning_an_imported_run_on_another_width_is_refused(ckpt: Path, tmp_path: Path) -> None:
    import_run(ckpt, tmp_path / "run")
    store = Store(tmp_path / "store")
    make_trainable(store, "target", widths=WIDTHS | {"text": 9})
    with pytest.raises(DataError, match=r"text of width 12 by an unknown encoder.*width 9"):
        train_quickly(store, "finetune", ["target"], tmp_path / "tuned", source=tmp_path / "run")


def test_an_imported_run_can_be_evaluated_on_features_of_its_widths(ckpt: Path, tmp_path: Path) -> None:
    import_run(ckpt, tmp_path / "run")
    store = Store(tmp_path / "store")
    make_trainable(store, "target")
    result = evaluate_run(store, tmp_path / "run", "target", EvaluateConfig())
    assert result["stage"] == "pretrain"
    assert result["positions"] > 0


@pytest.mark.parametrize("suffix", ["pt", "npz", "safetensors"])
def test_every_kind_of_file_gives_the_same_tensors(tmp_path: Path, state: dict[str, Tensor], suffix: str) -> None:
    path = tmp_path / f"their.{suffix}"
    if suffix == "pt":
        torch.save(state, path)
    elif suffix == "npz":
        np.savez(path, **{f"sd/{name}": tensor.numpy() for name, tensor in state.items()}, scores=np.zeros(3))
    else:
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    found = read_checkpoint(path)
    assert set(found) == set(state)
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


def test_a_file_that_needs_code_is_refused_by_name(tmp_path: Path, state: dict[str, Tensor]) -> None:
    torch.save({"state_dict": state, "hyper_parameters": Foreign()}, tmp_path / "their.ckpt")
    with pytest.raises(DataError, match=r"their\.ckpt: holds .*Foreign, which only code") as refused:
        import_run(tmp_path / "their.ckpt", tmp_path / "run")
    assert "['state_dict']" in str(refused.value.next_command)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.ckpt", b""),
        ("b.ckpt", b"hello there"),
        ("c.npz", b"PK\x03\x04"),
        ("d.safetensors", b"abc"),
        ("e.pt", b"\x80"),
    ],
)
def test_a_damaged_file_is_refused_with_its_name(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=name.replace(".", r"\.")):
        read_checkpoint(tmp_path / name)


def test_a_truncated_checkpoint_is_refused(ckpt: Path) -> None:
    ckpt.write_bytes(ckpt.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"their\.ckpt"):
        read_checkpoint(ckpt)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.ckpt: no such file"):
        read_checkpoint(tmp_path / "none.ckpt")


def test_a_list_of_tensors_is_refused(tmp_path: Path) -> None:
    torch.save([torch.ones(3)], tmp_path / "list.pt")
    with pytest.raises(DataError, match=r"list\.pt: holds a list, not tensors by name"):
        read_checkpoint(tmp_path / "list.pt")


def test_values_that_are_not_finite_are_refused_by_file_and_name_and_write_nothing(
    tmp_path: Path, state: dict[str, Tensor]
) -> None:
    state["LayerNorm.weight"][0] = torch.nan
    torch.save(state, tmp_path / "their.pt")
    with pytest.raises(DataError, match=r"their\.pt: LayerNorm\.weight: 1 of 16 values are not finite"):
        import_run(tmp_path / "their.pt", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_heads_that_do_not_divide_the_width_are_refused(ckpt: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--heads 5"):
        import_run(ckpt, tmp_path / "run", heads=5)


@pytest.mark.realdata
def test_the_golden_arrays_can_be_imported(golden: Path, tmp_path: Path, messages: list[str]) -> None:
    (path,) = golden.glob("*.npz")
    case = read_golden(golden, 32, Report())
    import_checkpoint(path, tmp_path / "run", heads=case.settings["heads"])
    model, _ = checkpoint.load(tmp_path / "run")
    case.compare("imported run, item vectors", model.items(case.features()).fused, "cat/item_emb")
    assert "item_embedding.weight" in messages[0]


@pytest.mark.realdata
def test_golden_item_ids_are_imported_on_request(golden: Path, tmp_path: Path) -> None:
    (path,) = golden.glob("*.npz")
    case = read_golden(golden, 32, Report())
    import_checkpoint(path, tmp_path / "run", heads=case.settings["heads"], transductive=True)
    model, described = checkpoint.load(tmp_path / "run")
    assert model.ids is not None
    assert described.items == case.about["_config"]["n_items"]
    assert torch.equal(model.ids.weight, case.tensor("sd/item_embedding.weight")[1:])
