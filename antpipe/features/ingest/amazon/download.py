"""Getting the files of a domain from a release into a folder, where `ingest amazon` finds them.

The folder's .antpipe-downloads.json says where each file came from; a file that is there is not downloaded again.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

from filelock import FileLock, Timeout

from antpipe.errors import DataError, IntegrityError
from antpipe.features.ingest.advice import advised
from antpipe.features.ingest.amazon.addresses import PublishedFile, plan_downloads
from antpipe.features.ingest.amazon.fetch_file import fetch_file
from antpipe.features.ingest.amazon.files import Release, find_files
from antpipe.runtime.logs import log
from antpipe.runtime.progress import Progress, silent
from antpipe.settings.base import flags_of
from antpipe.settings.ingest import DownloadConfig
from antpipe.store.artefacts import StageResult
from antpipe.store.documents import read_json, write_json
from antpipe.store.next_command import shell

LEDGER = ".antpipe-downloads.json"


class Downloaded(TypedDict):
    """What the ledger says of a file."""

    name: str
    url: str
    bytes: int


def would_be_fetched(release: Release, config: DownloadConfig) -> list[StageResult]:
    """The files that `download_files` would download, with their URLs; files that are there are left out."""
    plan = _plan(release, config)
    return [
        StageResult(release.domain, file.local, "would be fetched", {"url": file.url})
        for file in plan
        if not (release.source / file.local).exists()
    ]


def download_files(release: Release, config: DownloadConfig, *, progress: Progress = silent) -> list[Path]:
    """Download the files of a domain into its source folder; returns their paths.

    Raises DataError if a file is not available, if the folder holds files of another release, or if another download
    into it is running; UsageError for files that the release does not have.
    """
    plan = _plan(release, config)
    release.source.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(release.source / ".antpipe-downloads.lock", timeout=0):
            return [_download_one(file, release, config, progress) for file in plan]
    except Timeout:
        raise DataError(
            f"{release.source}: another download into this folder is running", _command(release, config)
        ) from None


def _command(release: Release, config: DownloadConfig) -> str:
    return release.command(more=["--download", *flags_of(config)])


def _elsewhere(release: Release, config: DownloadConfig) -> str:
    """The command that downloads into another folder."""
    folder = release.source.resolve()
    return _command(replace(release, source=folder.with_name(f"{folder.name}-{config.release}")), config)


def _download_one(file: PublishedFile, release: Release, config: DownloadConfig, progress: Progress) -> Path:
    """One file, unless it is there already."""
    target = release.source / file.local
    if target.exists():
        log.info(_there_already(target, file, release, config))
        return target
    log.info(f"{file.url} -> {target}")
    with progress(target.name) as update:
        command = _command(release, config)
        facts = fetch_file(file.url, target, config, sha256=file.sha256, command=command, update=update)
    log.info(f"{target.name}: {facts['bytes']:,} bytes, sha256 {facts['sha256']}")
    entries = _ledger(release.source) | {file.local: {"name": file.name, **facts}}
    write_json(release.source / LEDGER, entries)
    return target


def _there_already(target: Path, file: PublishedFile, release: Release, config: DownloadConfig) -> str:
    """The message for a file that need not be downloaded. Raises DataError if it is not the one meant."""
    entry = _ledger(release.source).get(file.local)
    if entry is None:
        return f"{target.name}: already there, not downloaded by antpipe; kept"
    if entry["name"] != file.name:
        raise DataError(
            f"{target}: comes from {entry['url']}, not from {file.url}; choose another --source for this release",
            _elsewhere(release, config),
        )
    if target.stat().st_size != entry["bytes"]:
        raise DataError(
            f"{target}: has {target.stat().st_size:,} bytes, {entry['bytes']:,} were downloaded",
            f"{shell('rm', target)}; {_command(release, config)}",
        )
    return f"{target.name}: already there"


def _ledger(source: Path) -> dict[str, Any]:
    path = source / LEDGER
    try:
        read_json(path, dict[str, Downloaded], None)
        return read_json(path, dict[str, Any], None)
    except FileNotFoundError:
        return {}
    except IntegrityError as error:
        raise _damaged_ledger(path, error.message.removeprefix(f"{path}: ").removeprefix("damaged: ")) from None


def _damaged_ledger(path: Path, why: str) -> IntegrityError:
    return IntegrityError(f"{path}: damaged: {why}; it only says where the files came from", shell("rm", path))


def _plan(release: Release, config: DownloadConfig) -> list[PublishedFile]:
    """The files to download. Raises DataError if `ingest amazon` would read other files of the folder instead."""
    plan = plan_downloads(release.domain, release.options, config)
    if not release.source.is_dir():
        return plan
    planned = [release.source / file.local for file in plan]
    with advised("ingest amazon", partial(release.command, more=["--download", *flags_of(config)])):
        found = find_files(release, planned)
    others = [path for path in (*found.reviews, found.metadata) if path is not None and path not in planned]
    if others:
        raise DataError(
            f"{release.source}: holds {', '.join(path.name for path in others)}, which would be read instead of the "
            f"release of {config.release}; choose another --source",
            _elsewhere(release, config),
        )
    return plan
