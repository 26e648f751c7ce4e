"""The device and the precision that a name stands for."""

import pytest
import torch

from antpipe.errors import UsageError
from antpipe.runtime.devices import choose_device, choose_precision


def test_cpu_is_the_cpu() -> None:
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(("available", "device"), [(True, "cuda"), (False, "cpu")])
def test_auto_is_the_gpu_if_there_is_one(monkeypatch: pytest.MonkeyPatch, available: bool, device: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    assert choose_device("auto") == torch.device(device)


def test_cuda_is_used_if_there_is_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("cuda") == torch.device("cuda")


def test_cuda_without_a_gpu_is_refused_and_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError) as caught:
        choose_device("cuda")
    assert caught.value.exit_code == 2
    assert "--device cpu" in str(caught.value.next_command)


def test_unknown_device_is_refused() -> None:
    with pytest.raises(UsageError, match="tpu"):
        choose_device("tpu")


@pytest.mark.parametrize(("native", "precision"), [(True, "bf16"), (False, "fp32")])
def test_auto_is_bf16_if_the_processor_multiplies_it(
    monkeypatch: pytest.MonkeyPatch, native: bool, precision: str
) -> None:
    found = {"avx512_bf16": native, "avx512_f": True}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    assert choose_precision("auto", torch.device("cpu")) == precision


def test_an_older_torch_that_cannot_tell_gives_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert choose_precision("auto", torch.device("cpu")) == "fp32"


@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_a_precision_that_is_asked_for_is_used(name: str) -> None:
    assert choose_precision(name, torch.device("cpu")) == name


def test_each_process_of_a_machine_has_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto", 1) == torch.device("cuda", 1)
    assert choose_device("cpu", 1) == torch.device("cpu")
