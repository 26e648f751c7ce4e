"""Which files of a folder of published reviews belong to a domain.

Reviews: DOMAIN_5 (the 5-core) or DOMAIN, .json or .jsonl, plain or .gz, with or without `reviews_` in front (2014).
Where several are there, the 5-core file is read: papers report on it, and the complete one would only be brought
down to a k-core again. Metadata: meta_DOMAIN, first with the suffix of the reviews (.jsonl is the release of 2023),
so that releases do not mix.
"""

import dataclasses
import shlex
from dataclasses import dataclass
from pathlib import Path

from antpipe.config import IngestConfig
from antpipe.errors import DataError
from antpipe.settings import flags_of
from antpipe.store import Store

SUFFIXES = (".json.gz", ".jsonl.gz", ".json", ".jsonl")
REVIEW_NAMES = ("{}_5", "reviews_{}_5", "{}", "reviews_{}")


@dataclass(frozen=True)
class Files:
    """A domain's files. metadata: None only where items may stay undescribed. ignored: there too, but not read."""

    reviews: Path
    metadata: Path | None
    ignored: list[Path]


def find_files(store: Store, source: Path, domain: str, config: IngestConfig) -> Files:
    """The files of a domain in a folder; DataError names the domains that are there."""
    if not source.is_dir():
        raise DataError(f"--source {source}: no such folder", command_line(store, "DIR", domain, config))
    found = [path for name in REVIEW_NAMES for path in _candidates(source, name.format(domain))]
    if not found:
        there = ",".join(domains_in(source))
        raise DataError(
            f"{source}: no review file of domain {domain} ({domain}_5.json.gz, {domain}.jsonl.gz, …); "
            f"domains there: {there or 'none'}",
            command_line(store, source, there, config) if there else command_line(store, "DIR", domain, config),
        )
    reviews = found[0]
    # Python's sort is stable: same suffix first, then the order of SUFFIXES.
    metadata = sorted(_candidates(source, f"meta_{domain}"), key=lambda path: _is_jsonl(path) != _is_jsonl(reviews))
    if not metadata and not config.keep_without_metadata:
        raise DataError(
            f"{source}: no metadata file of domain {domain} (meta_{domain}.json.gz, meta_{domain}.jsonl.gz, …)",
            command_line(store, source, domain, dataclasses.replace(config, keep_without_metadata=True)),
        )
    return Files(reviews, metadata[0] if metadata else None, found[1:] + metadata[1:])


def _candidates(source: Path, stem: str) -> list[Path]:
    return [path for suffix in SUFFIXES if (path := source / f"{stem}{suffix}").is_file()]


def _is_jsonl(path: Path) -> bool:
    return ".jsonl" in path.suffixes


def domains_in(source: Path) -> list[str]:
    """Domains a folder has review files of."""
    names = set()
    for path in source.iterdir():
        suffix = next((suffix for suffix in SUFFIXES if path.name.endswith(suffix)), None)
        if suffix and not path.name.startswith("meta_"):
            names.add(path.name.removesuffix(suffix).removeprefix("reviews_").removesuffix("_5"))
    return sorted(names)


def command_line(store: Store, source: str | Path, domain: str, config: IngestConfig) -> str:
    """The command that ingests with these settings (those that are not the defaults are spelt out)."""
    words = ["antpipe", "ingest", "amazon", "--source", str(source), "--domains", domain, "--store", str(store.root)]
    return shlex.join([*words, *flags_of(config)])
