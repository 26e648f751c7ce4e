"""Getting the files of a domain from a release into a folder, where `ingest amazon` finds them.

The folder's .antpipe-downloads.json says what each file came from; a file that is there is not fetched again.
"""

import json
import shlex
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock, Timeout

from antpipe.errors import DataError
from antpipe.features.ingest.amazon.addresses import Download, plan_downloads
from antpipe.features.ingest.amazon.download import download
from antpipe.features.ingest.amazon.files import Request, find_files
from antpipe.settings.base import flags_of
from antpipe.settings.ingest import DownloadConfig
from antpipe.store.artefacts import StageResult
from antpipe.store.files import write_json

LEDGER = ".antpipe-downloads.json"
MEBIBYTE = 1 << 20


class Update(Protocol):
    """Shows where the work stands."""

    def __call__(self, done: float, total: int, note: str = "") -> None: ...


def would_be_fetched(request: Request, config: DownloadConfig) -> list[StageResult]:
    """The files that `download_files` would fetch, with their addresses; those that are there are left out."""
    plan = plan_downloads(request.domain, request.options, config)
    _require_no_other_release(request, plan, config)
    return [
        StageResult(request.domain, file.local, "would be fetched", {"url": file.url})
        for file in plan
        if not (request.source / file.local).exists()
    ]


def download_files(
    request: Request,
    config: DownloadConfig,
    *,
    announce: Callable[[str], None],
    progress: Callable[[str], AbstractContextManager[Update]],
) -> list[Path]:
    """Fetch the files of a domain into its source folder; returns their paths.

    Raises DataError where a file cannot be had, where the folder holds the like of another release, and where another
    download into it is under way; UsageError for files the release does not have.
    """
    plan = plan_downloads(request.domain, request.options, config)
    command = request.command("--download", *flags_of(config))
    _require_no_other_release(request, plan, config)
    request.source.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(request.source / ".antpipe-downloads.lock", timeout=0):
            return [_download_one(file, request, config, announce, progress, command) for file in plan]
    except Timeout:
        raise DataError(f"{request.source}: another download into this folder is under way", command) from None


def _download_one(
    file: Download,
    request: Request,
    config: DownloadConfig,
    announce: Callable[[str], None],
    progress: Callable[[str], AbstractContextManager[Update]],
    command: str,
) -> Path:
    """One file, if it is not there yet."""
    target = request.source / file.local
    if target.exists():
        elsewhere = request.command("--download", *flags_of(config), source="DIR")
        announce(_there_already(target, file, _ledger(request.source), command, elsewhere))
        return target
    announce(f"{file.url} -> {target}")
    with progress(target.name) as update:

        def show(done: float, total: int) -> None:
            update(done / MEBIBYTE, -(-total // MEBIBYTE), "MiB")

        facts = download(file.url, target, config, sha256=file.sha256, show=show, announce=announce, command=command)
    announce(f"{target.name}: {facts['bytes']:,} bytes, sha256 {facts['sha256']}")
    entries = _ledger(request.source) | {file.local: {"name": file.name, **facts}}
    write_json(request.source / LEDGER, entries)
    return target


def _there_already(target: Path, file: Download, ledger: dict[str, Any], command: str, elsewhere: str) -> str:
    """What to say of a file that need not be fetched. DataError where it is not the one meant.

    command: of the next try; elsewhere: of one into another folder."""
    entry = ledger.get(file.local)
    if entry is None:
        return f"{target.name}: is there already, and was not downloaded by antpipe: kept"
    if entry["name"] != file.name:
        raise DataError(
            f"{target}: comes from {entry['url']}, asked for is {file.url}: choose another --source for this release",
            elsewhere,
        )
    if target.stat().st_size != entry["bytes"]:
        raise DataError(
            f"{target}: has {target.stat().st_size:,} bytes, {entry['bytes']:,} were downloaded",
            f"rm {shlex.quote(str(target))}; {command}",
        )
    return f"{target.name}: is there already"


def _ledger(source: Path) -> dict[str, Any]:
    path = source / LEDGER
    mend = f"rm {shlex.quote(str(path))}"
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise DataError(f"{path}: damaged: {error}; it only says where the files came from", mend) from None
    whole = isinstance(entries, dict) and all(
        isinstance(entry, dict) and entry.keys() >= {"name", "url", "bytes"} for entry in entries.values()
    )
    if not whole:
        raise DataError(f"{path}: damaged: it lists no files; it only says where they came from", mend)
    return dict(entries)


def _require_no_other_release(request: Request, plan: list[Download], config: DownloadConfig) -> None:
    """Refuse a folder where `ingest` would take another file than the one downloaded, before anything is."""
    if not request.source.is_dir():
        return
    planned = [request.source / file.local for file in plan]
    found = find_files(request, planned)
    others = [path for path in (*found.reviews, found.metadata) if path is not None and path not in planned]
    if others:
        raise DataError(
            f"{request.source}: holds {', '.join(path.name for path in others)}, which would be read in place of the "
            f"release of {config.release}: choose another --source",
            request.command("--download", *flags_of(config), source="DIR"),
        )
