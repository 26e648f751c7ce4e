"""The device and the precision that a name stands for."""

from pathlib import Path

import pytest
import torch

from antpipe.errors import UsageError
from antpipe.runtime import devices
from antpipe.runtime.devices import choose_device, choose_precision
from antpipe.settings.evaluation import EvaluateConfig
from antpipe.settings.features import ImageConfig, TextConfig
from antpipe.settings.training import TrainConfig


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


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """Pretend that there are two GPUs; returns those made current."""
    made_current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", made_current.append)
    return made_current


def test_one_of_several_gpus_can_be_named_and_becomes_the_current_one(two_gpus: list[torch.device]) -> None:
    assert choose_device("cuda:1") == torch.device("cuda", 1)
    assert two_gpus == [torch.device("cuda", 1)]


@pytest.mark.usefixtures("two_gpus")
def test_a_gpu_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(UsageError, match="cuda:0 to cuda:1") as caught:
        choose_device("cuda:2")
    assert "--device cuda:0" in str(caught.value.next_command)


@pytest.mark.usefixtures("two_gpus")
def test_a_numbered_gpu_is_refused_where_each_process_has_its_own() -> None:
    with pytest.raises(UsageError, match="each process") as caught:
        choose_device("cuda:1", 0)
    assert "--device cuda" in str(caught.value.next_command)


@pytest.mark.parametrize("config", [TrainConfig, EvaluateConfig, TextConfig, ImageConfig])
def test_settings_take_a_numbered_gpu_and_nothing_like_it(config: type) -> None:
    assert config(device="cuda:3").device == "cuda:3"
    for odd in ("cuda:", "cuda:N1", "cpu:0", "cuda:-1"):
        with pytest.raises(UsageError, match="cuda:N"):
            config(device=odd)


@pytest.mark.usefixtures("two_gpus")
def test_attention_is_not_left_to_cudnn_on_a_gpu() -> None:
    torch.backends.cuda.enable_cudnn_sdp(True)
    choose_device("cuda")
    assert not torch.backends.cuda.cudnn_sdp_enabled()


@pytest.fixture
def old_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040). Please update it.")

    there = tmp_path / "version"
    there.touch()
    monkeypatch.setattr(devices, "NVIDIA_DRIVER", there)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", refuse)


@pytest.mark.usefixtures("old_driver")
def test_a_driver_that_is_too_old_is_named_and_auto_says_that_it_uses_the_cpu(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(UsageError, match="driver on your system is too old"):
        choose_device("cuda")
    assert choose_device("auto") == torch.device("cpu")
    assert "computing on the CPU: The NVIDIA driver" in caplog.text


def test_bf16_is_refused_on_a_gpu_that_does_not_multiply_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Old GPU")
    gpu = torch.device("cuda")
    assert choose_precision("auto", gpu) == "fp32"
    with pytest.raises(UsageError, match="Old GPU does not multiply bf16") as caught:
        choose_precision("bf16", gpu)
    assert "--precision fp32" in str(caught.value.next_command)
