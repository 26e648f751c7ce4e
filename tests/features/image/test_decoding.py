"""Pictures decoded ahead of the model, in threads and in processes."""

import hashlib
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.transforms import CenterCrop, Compose, Normalize, Resize, ToTensor

from antpipe.errors import AntpipeError, DataError
from antpipe.features.image.decoding import (
    CHANGED,
    WORTH_PROCESSES,
    Decoded,
    Decoder,
    Decoding,
    Source,
    choose_workers,
    told_of_workers,
)
from antpipe.features.image.lists import file_contents
from antpipe.features.image.preparation import split_transform
from tests.conftest import REPOSITORY
from tests.support.shops import picture

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def decoder() -> Decoder:
    steps = [Resize(16), CenterCrop(16), ToTensor(), Normalize([0.5] * 3, [0.5] * 3)]
    return Decoder(split_transform(Compose(steps)), scaled=True)


def sources(folder: Path, count: int) -> list[Source]:
    found = []
    for number in range(count):
        path, content = folder / f"{number}.png", picture(number)
        path.write_bytes(content)
        found.append(Source(str(path), hashlib.sha256(content).hexdigest()))
    return found


def same(one: Decoded, other: Decoded) -> bool:
    assert one.pixels is not None
    assert other.pixels is not None
    return np.array_equal(one.pixels, other.pixels) and one.failures == other.failures


def test_bad_files_leave_a_gap_and_a_reason(tmp_path: Path) -> None:
    good = sources(tmp_path, 2)
    (tmp_path / "empty").touch()
    empty = Source(str(tmp_path / "empty"), hashlib.sha256(b"").hexdigest())
    absent = Source(str(tmp_path / "absent"), None)
    [decoded] = Decoding(decoder(), 0).batches([[good[0], empty, good[1], absent]])
    assert decoded.failures == [(1, "empty file"), (3, "cannot be read: No such file or directory")]
    assert decoded.pixels is not None
    assert np.array_equal(decoded.pixels, np.stack([decoder().one(source) for source in good]))  # type: ignore[arg-type]


def test_a_batch_without_a_picture_has_no_pixels(tmp_path: Path) -> None:
    [decoded] = Decoding(decoder(), 0).batches([[Source(str(tmp_path / "absent"), None)]])
    assert decoded.pixels is None


def test_a_file_that_changed_since_it_was_hashed_is_told(tmp_path: Path) -> None:
    [source] = sources(tmp_path, 1)
    Path(source.path).write_bytes(picture(9))
    assert decoder().one(source) == f"{CHANGED}: {source.path} on {socket.gethostname()}"


def test_a_file_that_is_gone_since_it_was_hashed_is_no_bad_picture(tmp_path: Path) -> None:
    [source] = sources(tmp_path, 1)
    Path(source.path).unlink()
    told = f"{CHANGED}: {source.path} on {socket.gethostname()}: cannot be read: No such file or directory"
    assert decoder().one(source) == told
    with pytest.raises(DataError, match=r"picture files changed while they were embedded: .*No such file"):
        file_contents([source])
    assert file_contents([Source(source.path, None)])[0]["why"]  # could not be read before, either


def test_a_file_that_came_back_since_it_was_missed_is_told(tmp_path: Path) -> None:
    [source] = sources(tmp_path, 1)
    assert str(decoder().one(Source(source.path, None))).startswith(CHANGED)


def test_the_next_batch_is_decoded_while_one_is_used(tmp_path: Path) -> None:
    batches = [[source] for source in sources(tmp_path, 3)]
    given: list[Any] = []

    class Watched(list[Any]):
        def __iter__(self) -> Iterator[Any]:
            for batch in super().__iter__():
                given.append(batch)
                yield batch

    decoded = Decoding(decoder(), 0).batches(Watched(batches))
    next(decoded)
    assert given == batches[:2]
    assert len(list(decoded)) == 2


@pytest.mark.parametrize(
    ("asked", "pictures", "device", "workers"),
    [
        (None, WORTH_PROCESSES - 1, GPU, 0),
        (None, WORTH_PROCESSES, CPU, 4),
        (None, WORTH_PROCESSES, GPU, 8),
        (3, 1, CPU, 3),
        (0, 10**6, GPU, 0),
    ],
)
def test_processes_are_chosen_by_work_and_cores(
    monkeypatch: pytest.MonkeyPatch, asked: int | None, pictures: int, device: torch.device, workers: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert choose_workers(asked, pictures, device) == workers


@pytest.mark.slow
def test_processes_decode_as_threads_do_until_one_is_killed(tmp_path: Path) -> None:
    found = sources(tmp_path, 7)
    batches = [[*found[:3], Source(str(tmp_path / "absent"), None)], found[3:5], found[5:]]
    in_threads = list(Decoding(decoder(), 0).batches(batches))
    decoding = Decoding(decoder(), 1)
    assert all(map(same, decoding.batches(batches), in_threads))
    [worker] = multiprocessing.active_children()
    assert all(map(same, decoding.batches(batches[::-1]), in_threads[::-1]))
    assert multiprocessing.active_children() == [worker]  # the same process for every shard
    os.kill(int(worker.pid or 0), signal.SIGKILL)
    with pytest.raises(AntpipeError, match="was killed") as caught, told_of_workers("antpipe again"):
        for _ in range(20):
            list(decoding.batches(batches))
    assert caught.value.next_command == "antpipe again"


PARENT = """
import multiprocessing, sys, time
from pathlib import Path
from torchvision.transforms import Compose, Normalize, Resize, ToTensor
from antpipe.features.decoding import Decoder, Decoding
from antpipe.features.preparation import split_transform
from tests.test_decoding import sources

if __name__ == "__main__":
    large = Decoder(split_transform(Compose([Resize(900), ToTensor(), Normalize([0], [1])])), scaled=False)
    batches = Decoding(large, 1).batches([sources(Path(sys.argv[1]), 1)] * 9)
    next(batches)
    time.sleep(1)  # the next ones wait, more than a pipe holds
    print(multiprocessing.active_children()[0].pid, flush=True)
    time.sleep(60)
"""


@pytest.mark.slow
def test_processes_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    streams: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}  # it leaves semaphores, and is told so
    with subprocess.Popen([sys.executable, script, tmp_path], **streams, env=environment) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        parent.kill()
    for _ in range(200):
        if not is_running(worker):
            return
        time.sleep(0.1)
    os.kill(worker, signal.SIGKILL)
    pytest.fail("the process outlived its parent by 20 seconds")


def is_running(process: int) -> bool:
    """Not so where it only waits for its exit code to be read."""
    told = subprocess.run(["ps", "-o", "stat=", "-p", str(process)], capture_output=True, text=True, check=False)
    return bool(told.stdout.strip()) and not told.stdout.startswith("Z")


def test_other_errors_are_not_taken_for_a_killed_process() -> None:
    with pytest.raises(RuntimeError, match="shape"), told_of_workers(""):
        raise RuntimeError("shape mismatch")
