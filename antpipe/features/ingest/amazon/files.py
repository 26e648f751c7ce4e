"""Which files of a folder of published reviews belong to a domain.

Kinds of review files, in the order in which they are looked for: the 5-core (DOMAIN_5), the complete reviews (DOMAIN),
both .json or .jsonl; ratings only (DOMAIN.csv); the benchmark of 2023 (DOMAIN.train.csv, .valid, .test, or the table
that was split, DOMAIN.csv), as it is published in folders like benchmark/5core/last_out. All plain or .gz; in the
release of 2014 with `reviews_` or `ratings_` in front. The 5-core comes first because papers report on it, and the
complete file would only be brought down to a k-core again. Metadata: meta_DOMAIN, first with the suffix of the reviews
(.jsonl is the release of 2023), so that releases do not mix.
"""

import dataclasses
import shlex
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from antpipe.errors import DataError
from antpipe.settings.base import flags_of
from antpipe.settings.ingest import BENCHMARKS, AmazonConfig, IngestConfig
from antpipe.store.store import Store

JSON = (".json.gz", ".jsonl.gz", ".json", ".jsonl")
CSV = (".csv.gz", ".csv")
NAMES = {
    "5-core": (("{}_5", "reviews_{}_5"), JSON),
    "complete": (("{}", "reviews_{}"), JSON),
    "ratings": (("{}", "ratings_{}"), CSV),
}
SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Request:
    """A domain that is to be ingested: from where, by which rules, which of its files."""

    store: Store
    source: Path
    domain: str
    rules: IngestConfig
    options: AmazonConfig

    def command(self, *more: str, source: str = "", domains: str = "") -> str:
        """The command that asks for it, in another place or with more words where they are given."""
        words = ["antpipe", "ingest", "amazon", "--source", source or str(self.source)]
        words += ["--domains", domains or self.domain, "--store", str(self.store.root)]
        return shlex.join([*words, *flags_of(self.rules), *flags_of(self.options), *more])

    def with_rules(self, rules: IngestConfig) -> "Request":
        return dataclasses.replace(self, rules=rules)

    def with_options(self, options: AmazonConfig) -> "Request":
        return dataclasses.replace(self, options=options)


@dataclass(frozen=True)
class Files:
    """A domain's files. reviews: one, or those of a split. metadata: None only where items may stay undescribed.
    ignored: there too, but not read."""

    reviews: tuple[Path, ...]
    metadata: Path | None
    ignored: list[Path]


def find_files(request: Request, planned: Collection[Path] = ()) -> Files:
    """The files of a domain in its folder; DataError says what is there instead. planned: files to count as there."""
    source, domain = request.source, request.domain
    if not source.is_dir():
        raise DataError(f"--source {source}: no such folder", request.command("--download"))
    there = list(_review_files(source, domain, request.options.benchmark, planned))
    wanted = request.options.files
    chosen = next((files for kind, files in there if wanted in ("auto", kind)), None)
    if chosen is None:
        raise _no_reviews(request, [kind for kind, _ in there])
    others = [path for _, files in there for path in files if path not in chosen]
    # Python's sort is stable: same suffix first, then the order of JSON.
    jsonl = _is_jsonl(chosen[0])
    metadata = sorted(_candidates(source, [f"meta_{domain}"], JSON, planned), key=lambda path: _is_jsonl(path) != jsonl)
    if not metadata and not request.rules.keep_without_metadata:
        raise DataError(
            f"{source}: no metadata file of domain {domain} (meta_{domain}.json.gz, meta_{domain}.jsonl.gz, …)",
            request.command("--keep-without-metadata"),
        )
    return Files(chosen, metadata[0] if metadata else None, others + metadata[1:])


def _review_files(
    source: Path, domain: str, benchmark: str, planned: Collection[Path]
) -> Iterator[tuple[str, tuple[Path, ...]]]:
    """What there is to choose from, the best first: its kind, and the files that belong together."""
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
    """Where benchmark files may lie: in the folder itself, or in those of the release below it."""
    wanted = BENCHMARKS if benchmark == "auto" else (benchmark,)
    own = benchmark == "auto" or source.resolve().as_posix().endswith(f"/{benchmark}")
    below = [root / name for name in wanted for root in (source / "benchmark", source)]
    return [source] * own + below


def split_files(folder: Path, domain: str, planned: Collection[Path]) -> tuple[Path, ...]:
    """The files of train, valid and test; none where there are none; DataError where one is missing."""
    found = {name: _candidates(folder, [f"{domain}.{name}"], CSV, planned) for name in SPLITS}
    missing = [f"{domain}.{name}.csv" for name, paths in found.items() if not paths]
    if len(missing) == len(SPLITS):
        return ()
    if missing:
        there = ", ".join(paths[0].name for paths in found.values() if paths)
        raise DataError(
            f"{folder}: {there} without {', '.join(missing)}: interactions would be missing",
            f"get {', '.join(missing)} (or .gz) into {folder}, then repeat the command",
        )
    return tuple(paths[0] for paths in found.values())


def _no_reviews(request: Request, kinds: list[str]) -> DataError:
    """The error of a folder without the review file asked for."""
    source, domain, options = request.source, request.domain, request.options
    if kinds:
        every = request.with_options(dataclasses.replace(options, files="auto"))
        return DataError(
            f"{source}: no {options.files} file of domain {domain}; there: {', '.join(dict.fromkeys(kinds))}",
            every.command(),
        )
    there = ",".join(domains_in(source))
    return DataError(
        f"{source}: no review file of domain {domain} ({domain}_5.json.gz, {domain}.jsonl.gz, {domain}.csv, …); "
        f"domains there: {there or 'none'}",
        request.command(domains=there) if there else request.command("--download"),
    )


def _is_jsonl(path: Path) -> bool:
    """Whether a file is one of the release of 2023, as far as its name shows it."""
    return ".jsonl" in path.suffixes or ".train" in path.suffixes or path.parent.name in {"rating_only"}


def domains_in(source: Path) -> list[str]:
    """Domains a folder has review files of."""
    names = set()
    for folder in dict.fromkeys([source, *benchmark_folders(source, "auto")]):
        for path in folder.iterdir() if folder.is_dir() else ():
            suffix = next((suffix for suffix in (*JSON, *CSV) if path.name.endswith(suffix)), None)
            if suffix and not path.name.startswith(("meta_", ".")):
                stem = path.name.removesuffix(suffix).removeprefix("reviews_").removeprefix("ratings_")
                names.add(stem.removesuffix("_5").removesuffix(".train").removesuffix(".valid").removesuffix(".test"))
    return sorted(names)
