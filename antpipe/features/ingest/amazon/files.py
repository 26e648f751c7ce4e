"""Which files of a folder of published reviews belong to a domain.

Kinds of review files, in the order in which they are looked for: the 5-core (DOMAIN_5) and the complete reviews
(DOMAIN), both .json or .jsonl; ratings only (DOMAIN.csv); the benchmark of 2023 (DOMAIN.train.csv, .valid, .test, or
the table that was split, DOMAIN.csv), as it is published in folders like benchmark/5core/last_out. All plain or packed;
in the release of 2014 with `reviews_` or `ratings_` in front. The 5-core comes first because papers report on it, and
the complete file would only be brought down to a k-core again. Metadata: meta_DOMAIN, first with the suffix of the
reviews (.jsonl is the release of 2023), so that releases do not mix.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from antpipe.errors import DataError
from antpipe.features.ingest.advice import SettingsError, flags_with
from antpipe.settings.ingest import BENCHMARKS, AmazonConfig, IngestConfig
from antpipe.store.next_command import spell
from antpipe.store.store import Store

AGAIN = (".zst", ".bz2", ".xz", ".zip")  # as people pack the files again
JSON = (".json.gz", ".jsonl.gz", ".json", ".jsonl", *(f"{end}{pack}" for end in (".json", ".jsonl") for pack in AGAIN))
CSV = (".csv.gz", ".csv", *(f".csv{pack}" for pack in AGAIN))
NAMES = {
    "5-core": (("{}_5", "reviews_{}_5"), JSON),
    "complete": (("{}", "reviews_{}"), JSON),
    "ratings": (("{}", "ratings_{}"), CSV),
}
SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Release:
    """The published files of a domain, and how to ingest them.

    source: their folder. config: the cleaning rules. options: which files are read, in which format.
    """

    store: Store
    source: Path
    domain: str
    config: IngestConfig
    options: AmazonConfig = field(default_factory=AmazonConfig)

    def command(self, better: Mapping[str, Any] = MappingProxyType({}), more: Sequence[str | Path] = ()) -> str:
        """The command that ingests it. better: settings to replace, by name. more: further flags."""
        flags = ["--source", self.source, *flags_with(better, self.config, self.options), *more]
        return spell("ingest amazon", domains=[self.domain], store=self.store.root, flags=flags)


@dataclass(frozen=True)
class FoundFiles:
    """The files of a domain. reviews: one, or the parts of a split. metadata: None only if items may go without.
    ignored: files that could have been read instead."""

    reviews: tuple[Path, ...]
    metadata: Path | None
    ignored: list[Path]


def find_files(release: Release, planned: Collection[Path] = ()) -> FoundFiles:
    """The files of a domain in its folder. planned: files to treat as present.

    Raises DataError, which names what is there instead, if files are missing.
    """
    source, domain = release.source, release.domain
    if not source.is_dir():
        raise DataError(f"--source {source}: no such folder", release.command(more=["--download"]))
    there = list(_review_files(source, domain, release.options.benchmark, planned))
    wanted = release.options.files
    chosen = next((files for kind, files in there if wanted in ("auto", kind)), None)
    if chosen is None:
        raise _no_reviews(release, [kind for kind, _ in there])
    others = [path for _, files in there for path in files if path not in chosen]
    # Python's sort is stable: same suffix first, then the order of JSON.
    jsonl = _is_jsonl(chosen[0])
    metadata = sorted(_candidates(source, [f"meta_{domain}"], JSON, planned), key=lambda path: _is_jsonl(path) != jsonl)
    if not metadata and not release.config.keep_without_metadata:
        raise SettingsError(
            f"{source}: no metadata file of domain {domain} (meta_{domain}.json.gz, meta_{domain}.jsonl.gz, …)",
            {"keep_without_metadata": True},
        )
    return FoundFiles(chosen, metadata[0] if metadata else None, others + metadata[1:])


def _review_files(
    source: Path, domain: str, benchmark: str, planned: Collection[Path]
) -> Iterator[tuple[str, tuple[Path, ...]]]:
    """The choice of review files, the best first: the kind, and the files that belong together."""
    for kind, (names, suffixes) in NAMES.items():
        for path in _candidates(source, [name.format(domain) for name in names], suffixes, planned):
            yield kind, (path,)
    for folder in benchmark_folders(source, benchmark):
        if files := split_files(folder, domain, planned):
            yield "benchmark", files
        elif folder.name == "rating_only":
            for path in _candidates(folder, [domain], CSV, planned):
                if folder != source:  # there it is one of the ratings already
                    yield "benchmark", (path,)


def _candidates(folder: Path, stems: Sequence[str], suffixes: Sequence[str], planned: Collection[Path]) -> list[Path]:
    """The files of these names, those of the first stem first."""
    paths = [folder / f"{stem}{suffix}" for stem in stems for suffix in suffixes]
    return [path for path in paths if path in planned or path.is_file()]


def benchmark_folders(source: Path, benchmark: str) -> list[Path]:
    """Where benchmark files may be: in the folder itself, or in the release's subfolders."""
    wanted = BENCHMARKS if benchmark == "auto" else (benchmark,)
    own = benchmark == "auto" or source.resolve().as_posix().endswith(f"/{benchmark}")
    below = [root / name for name in wanted for root in (source / "benchmark", source)]
    return [source] * own + below


def split_files(folder: Path, domain: str, planned: Collection[Path]) -> tuple[Path, ...]:
    """The files of train, valid and test, or none. Raises DataError if only some exist."""
    found = {name: _candidates(folder, [f"{domain}.{name}"], CSV, planned) for name in SPLITS}
    missing = [f"{domain}.{name}.csv" for name, paths in found.items() if not paths]
    if len(missing) == len(SPLITS):
        return ()
    if missing:
        there = ", ".join(paths[0].name for paths in found.values() if paths)
        raise DataError(
            f"{folder}: {there} without {', '.join(missing)} (or .gz): interactions would be missing; add the missing "
            "files, or move the others away"
        )
    return tuple(paths[0] for paths in found.values())


def _no_reviews(release: Release, kinds: list[str]) -> DataError:
    """The error for a folder without the review file asked for."""
    source, domain, wanted = release.source, release.domain, release.options.files
    if kinds:
        return SettingsError(
            f"{source}: no {wanted} file of domain {domain}; there: {', '.join(dict.fromkeys(kinds))}",
            {"files": "auto"},
        )
    there = ",".join(domains_in(source))
    return DataError(
        f"{source}: no review file of domain {domain} ({domain}_5.json.gz, {domain}.jsonl.gz, {domain}.csv, …); "
        f"domains there: {there or 'none'}",
        replace(release, domain=there).command() if there else release.command(more=["--download"]),
    )


def _is_jsonl(path: Path) -> bool:
    """Whether a file belongs to the release of 2023, judged by its name."""
    return ".jsonl" in path.suffixes or ".train" in path.suffixes or path.parent.name == "rating_only"


def domains_in(source: Path) -> list[str]:
    """The domains of which a folder has review files."""
    names = set()
    for folder in dict.fromkeys([source, *benchmark_folders(source, "auto")]):
        for path in folder.iterdir() if folder.is_dir() else ():
            suffix = next((suffix for suffix in (*JSON, *CSV) if path.name.endswith(suffix)), None)
            if suffix and not path.name.startswith(("meta_", ".")):
                stem = path.name.removesuffix(suffix).removeprefix("reviews_").removeprefix("ratings_")
                names.add(stem.removesuffix("_5").removesuffix(".train").removesuffix(".valid").removesuffix(".test"))
    return sorted(names)
