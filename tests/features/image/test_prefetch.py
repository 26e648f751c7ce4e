"""Pictures are decoded ahead of the model, in threads and in processes."""

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
from antpipe.features.image.pictures import CHANGED, PictureFile, packed_contents
from antpipe.features.image.prefetch import (
    WORTH_PROCESSES,
    Decoded,
    Decoder,
    DecodingFailure,
    Prefetcher,
    choose_workers,
    when_killed,
)
from antpipe.features.image.preparation import split_transform
from tests.conftest import REPOSITORY
from tests.support.shops import picture

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def decoder() -> Decoder:
    steps = [Resize(16), CenterCrop(16), ToTensor(), Normalize([0.5] * 3, [0.5] * 3)]
    return Decoder(split_transform(Compose(steps)), scaled=True)


def files_in(folder: Path, count: int) -> list[PictureFile]:
    found = []
    for number in range(count):
        path, content = folder / f"{number}.png", picture(number)
        path.write_bytes(content)
        found.append(PictureFile(str(path), hashlib.sha256(content).hexdigest()))
    return found


def same(one: Decoded, other: Decoded) -> bool:
    assert one.pixels is not None
    assert other.pixels is not None
    return np.array_equal(one.pixels, other.pixels) and one.failures == other.failures


def test_bad_files_leave_a_gap_and_have_a_reason(tmp_path: Path) -> None:
    good = files_in(tmp_path, 2)
    (tmp_path / "empty").touch()
    empty = PictureFile(str(tmp_path / "empty"), hashlib.sha256(b"").hexdigest())
    absent = PictureFile(str(tmp_path / "absent"), None)
    [decoded] = Prefetcher(decoder(), 0).batches([[good[0], empty, good[1], absent]])
    assert decoded.failures == {
        1: DecodingFailure("empty file"),
        3: DecodingFailure("cannot be read: No such file or directory"),
    }
    assert decoded.pixels is not None
    assert np.array_equal(decoded.pixels, np.stack([decoder().one(file) for file in good]))  # type: ignore[arg-type]


def test_a_batch_without_a_picture_has_no_pixels(tmp_path: Path) -> None:
    [decoded] = Prefetcher(decoder(), 0).batches([[PictureFile(str(tmp_path / "absent"), None)]])
    assert decoded.pixels is None


def test_a_file_that_changed_since_it_was_hashed_is_reported(tmp_path: Path) -> None:
    [file] = files_in(tmp_path, 1)
    Path(file.path).write_bytes(picture(9))
    reason = f"{CHANGED}: {file.path} on {socket.gethostname()}"
    assert decoder().one(file) == DecodingFailure(reason, changed=True)


def test_a_file_that_vanished_since_it_was_hashed_is_not_a_bad_picture(tmp_path: Path) -> None:
    [file] = files_in(tmp_path, 1)
    Path(file.path).unlink()
    reason = f"{CHANGED}: {file.path} on {socket.gethostname()}: cannot be read: No such file or directory"
    assert decoder().one(file) == DecodingFailure(reason, changed=True)
    with pytest.raises(DataError, match=r"picture files changed while they were embedded: .*No such file"):
        packed_contents([file])
    assert packed_contents([PictureFile(file.path, None)])[0]["why"]  # could not be read before, either


def test_a_file_that_appeared_since_it_was_missed_is_reported(tmp_path: Path) -> None:
    [file] = files_in(tmp_path, 1)
    failure = decoder().one(PictureFile(file.path, None))
    assert isinstance(failure, DecodingFailure)
    assert failure.changed


def test_the_next_batch_is_decoded_while_one_is_used(tmp_path: Path) -> None:
    batches = [[file] for file in files_in(tmp_path, 3)]
    given: list[Any] = []

    class Watched(list[Any]):
        def __iter__(self) -> Iterator[Any]:
            for batch in super().__iter__():
                given.append(batch)
                yield batch

    decoded = Prefetcher(decoder(), 0).batches(Watched(batches))
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
def test_the_number_of_processes_follows_work_and_cores(
    monkeypatch: pytest.MonkeyPatch, asked: int | None, pictures: int, device: torch.device, workers: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert choose_workers(asked, pictures, device) == workers


@pytest.mark.slow
def test_processes_decode_as_threads_do_until_one_is_killed(tmp_path: Path) -> None:
    found = files_in(tmp_path, 7)
    batches = [[*found[:3], PictureFile(str(tmp_path / "absent"), None)], found[3:5], found[5:]]
    in_threads = list(Prefetcher(decoder(), 0).batches(batches))
    prefetcher = Prefetcher(decoder(), 1)
    assert all(map(same, prefetcher.batches(batches), in_threads))
    [worker] = multiprocessing.active_children()
    assert all(map(same, prefetcher.batches(batches[::-1]), in_threads[::-1]))
    assert multiprocessing.active_children() == [worker]  # the same process for every shard
    os.kill(int(worker.pid or 0), signal.SIGKILL)
    with pytest.raises(AntpipeError, match="was killed") as caught, when_killed("antpipe status"):
        for _ in range(20):
            list(prefetcher.batches(batches))
    assert caught.value.next_command == "antpipe status"


PARENT = """
import multiprocessing, sys, time
from pathlib import Path
from torchvision.transforms import Compose, Normalize, Resize, ToTensor
from antpipe.features.image.prefetch import Decoder, Prefetcher
from antpipe.features.image.preparation import split_transform
from tests.features.image.test_prefetch import files_in

if __name__ == "__main__":
    large = Decoder(split_transform(Compose([Resize(900), ToTensor(), Normalize([0], [1])])), scaled=False)
    batches = Prefetcher(large, 1).batches([files_in(Path(sys.argv[1]), 1)] * 9)
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
    streams: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}  # it complains about leaked semaphores
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
    """False if it has ended and only its exit code is left to be read."""
    outcome = subprocess.run(["ps", "-o", "stat=", "-p", str(process)], capture_output=True, text=True, check=False)
    return bool(outcome.stdout.strip()) and not outcome.stdout.startswith("Z")


def test_other_errors_are_not_mistaken_for_a_killed_process() -> None:
    with pytest.raises(RuntimeError, match="shape"), when_killed(""):
        raise RuntimeError("shape mismatch")
