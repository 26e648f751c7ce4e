"""--compile: what it changes and what it must not. The tests compile with a backend that needs no C++ compiler."""

import sysconfig
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from antpipe.errors import UsageError
from antpipe.runtime import devices
from antpipe.store.store import Store
from antpipe.training import checkpoint, loop, validation
from antpipe.training.run import build_model
from tests.support.commands import run
from tests.support.interruptions import CONFIG, Killed, asked, command, failing_at, result, trained, two_shops
from tests.support.trainable import MODEL

COMPILED = replace(CONFIG, compile=True, precision="bf16", epochs=2)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return two_shops(tmp_path_factory.mktemp("shops"))


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "BACKEND", "aot_eager")


@pytest.mark.slow
@pytest.mark.usefixtures("backend")
def test_a_compiled_run_is_resumed_bit_equal_and_names_its_weights_like_any_other(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, _ = trained(store, tmp_path / "whole", COMPILED)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(loop, "target_loss", failing_at(5, loop.target_loss, Killed(), after=False))
        trained(store, tmp_path / "killed", COMPILED)
    trained(store, tmp_path / "killed", COMPILED, resume=True)
    assert result(tmp_path / "killed") == result(tmp_path / "whole")
    trained(store, tmp_path / "plain", replace(COMPILED, compile=False))
    plain = result(tmp_path / "plain")
    assert set(result(tmp_path / "whole")["weights"]) == set(plain["weights"])
    assert result(tmp_path / "whole")["rows"][0]["loss"] == pytest.approx(plain["rows"][0]["loss"], rel=0.05)
    model, _ = checkpoint.load(tmp_path / "whole")  # as `antpipe evaluate` does: nothing compiled
    assert validation.validate(model, asked(store, COMPILED).plan().data, torch.device("cpu")) == done.metrics


@pytest.mark.usefixtures("backend")
def test_parts_repeated_in_a_step_are_compiled_but_not_for_validation(store: Store) -> None:
    plan = asked(store, COMPILED).plan()
    model = build_model(plan)
    torch._dynamo.reset()
    devices.compile_parts(model)
    counted = torch._dynamo.utils.counters["stats"]
    counted.clear()
    validation.validate(model, plan.data, torch.device("cpu"))
    assert not counted["unique_graphs"]
    model.eval()
    block = torch.randn(5, MODEL.width)
    found = model.encode_blocks(block, [(1, 5)])
    assert 1 <= counted["unique_graphs"] <= MODEL.layers  # torch 2.7 shares one among equal layers
    assert torch.allclose(found, build_model(plan).eval().encode_blocks(block, [(1, 5)]), atol=1e-6)


@pytest.mark.parametrize(("missing", "said"), [("compiler", "compiler, and no-such"), ("headers", "Python.h")])
def test_missing_tools_for_compiling_are_named_before_anything_is_done(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str, said: str
) -> None:
    if missing == "compiler":
        monkeypatch.setenv("CXX", "no-such-compiler")
    else:
        monkeypatch.setenv("CXX", "true")
        monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    with pytest.raises(UsageError, match=f"--compile needs .*{said}"):
        trained(store, tmp_path / "run", COMPILED)
    assert not (tmp_path / "run").exists()


def test_compiling_is_part_of_the_fingerprint_because_it_changes_last_digits(store: Store, tmp_path: Path) -> None:
    assert asked(store).fingerprint() != asked(store, replace(CONFIG, compile=True)).fingerprint()
    assert run(*command(store, tmp_path / "run"), "--compile", "--dry-run").code == 0
