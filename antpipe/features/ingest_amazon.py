"""Stage `ingest amazon`: the published review and metadata files of one domain become a domain of the store."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import polars as pl

from antpipe.features.ingest.advice import SettingsError, advised
from antpipe.features.ingest.amazon.files import FoundFiles, Release, find_files
from antpipe.features.ingest.amazon.metadata import read_metadata
from antpipe.features.ingest.amazon.reviews import read_reviews
from antpipe.features.ingest.lines import unreadable
from antpipe.features.ingest.rejects import Rejects
from antpipe.features.ingest.rules import Cleaned, clean, rules_in_words
from antpipe.features.ingest.shared_users import users_of
from antpipe.features.ingest.stage import cleaning_parameters, finish, fresh_result, require_same_source
from antpipe.runtime.logs import log
from antpipe.settings.base import flags_of
from antpipe.store.artefacts import StageResult

HASHED_AT_ONCE = 1 << 22  # bytes
COUNTED = ("interactions",)  # files whose duplicate lines are among the figures


def ingest_amazon(release: Release, *, force: bool = False, dry_run: bool = False) -> StageResult:
    """Read a domain of an Amazon release from local files into the store.

    ingest/amazon/files.py says which files of the folder are taken, reviews.py, ratings.py and metadata.py how they are
    read, and ingest/rules.py how they are cleaned. The report in the manifest counts what each step dropped; for each
    file, lines = kept + duplicate_lines + malformed. dry_run: all of this, but nothing is written.
    Raises DataError for a missing folder or file, a damaged file, lines of unclear format, too many malformed lines, a
    domain of which nothing is left, and (unless `force`) a domain of this name from another source. The store is then
    as it was.
    """
    config, target = release.config, release.store.new_domain(release.domain)
    with advised("ingest amazon", release.command):
        files = find_files(release)
        elsewhere = users_of(release.store, release.domain, config.drop_shared_users_from)
        with hashing([path for path in (*files.reviews, files.metadata) if path is not None]) as hashes:
            if not force and "items" in target.manifest():
                parameters = _parameters(release, hashes(), elsewhere)
                if fresh := fresh_result(target, parameters, config.max_rejects, COUNTED):
                    return fresh
                require_same_source(target, parameters, str(release.source.resolve()), release.command())
            log.info(rules_in_words(config, ", ".join(config.text_fields)))
            for path in files.ignored:
                log.info(f"{path.name}: not read, {files.reviews[0].name} is read instead")
            rejects = Rejects(config.max_rejects)
            reviews = read_reviews(files.reviews, release, rejects)
            metadata = None
            if files.metadata is not None:
                metadata = partial(read_metadata, files.metadata, config.text_fields, rejects)
            parts = reviews.facts.get("parts", [reviews.facts])
            lines = {path: part["lines"] for path, part in zip(files.reviews, parts, strict=True)}
            try:
                cleaned = clean(release.domain, reviews, metadata, elsewhere, config)
            except SettingsError:
                rejects.require_few(lines)  # the likelier cause
                raise
            if files.metadata is not None:
                lines[files.metadata] = cleaned.report["items"]["lines"]
            rejects.require_few(lines)
            sums = hashes()
    _add_origin(cleaned, release, files, sums)
    flags = ["--source", str(release.source), *flags_of(config), *flags_of(release.options)]
    parameters = _parameters(release, sums, elsewhere)
    return finish(target, parameters, cleaned, rejects, flags=flags, dry_run=dry_run, duplicates_in=COUNTED)


@contextmanager
def hashing(paths: Sequence[Path]) -> Iterator[Callable[[], dict[Path, str]]]:
    """Yields a function that waits for the sha256 of the files; a thread computes them meanwhile.

    The thread ends with the block. The function raises DataError if a file cannot be read.
    """
    leaving = Event()

    def work() -> dict[Path, str]:
        sums = {}
        for path in paths:
            hashed = hashlib.sha256()
            try:
                with path.open("rb") as file:
                    while some := file.read(HASHED_AT_ONCE):
                        if leaving.is_set():
                            return {}  # the sums are no longer needed
                        hashed.update(some)
            except OSError as error:
                raise unreadable(path, error) from None
            sums[path] = hashed.hexdigest()
        return sums

    with ThreadPoolExecutor(1) as thread:
        try:
            yield thread.submit(work).result
        finally:
            leaving.set()


def _add_origin(cleaned: Cleaned, release: Release, files: FoundFiles, sums: Mapping[Path, str]) -> None:
    """Add to the report where the data come from and how they were read."""
    report, config = cleaned.report, release.config
    report |= {"folder": str(release.source.resolve()), "limit": release.options.limit}
    report |= {"rules": rules_in_words(config, ", ".join(config.text_fields))}
    for name, paths in (("interactions", files.reviews), ("items", (files.metadata,))):
        known = [path for path in paths if path is not None]
        if known:
            about = {"file": [path.name for path in known], "sha256": [sums[path] for path in known]}
            report[name] = {key: ", ".join(values) for key, values in about.items()} | report[name]


def _parameters(release: Release, sums: Mapping[Path, str], elsewhere: Mapping[str, pl.Series]) -> dict[str, Any]:
    """What the fingerprint covers. The hashes of the files show which of them were chosen."""
    return {
        "format": "amazon",
        "files": list(sums.values()),
        **cleaning_parameters(release.config, elsewhere),
        "review_format": release.options.review_format,
        "limit": release.options.limit,
    }
