"""Where the Amazon releases are published: one table of URLs, and what is known of the files.

Sources of the facts, as of 2024 to 2026:
- 2014: the links of cseweb.ucsd.edu/~jmcauley/datasets/amazon/links.html point to snap.stanford.edu.
- 2018: those of cseweb.ucsd.edu/~jmcauley/datasets/amazon_v2/ point to mcauleylab.ucsd.edu (older pages name
  datarepo.eng.ucsd.edu and jmcauley.ucsd.edu).
- 2023: amazon-reviews-2023.github.io, pages "data processing" (0core, 5core) and "data loading"; layout and header of
  the benchmark: github.com/hyp1231/AmazonReviews2023, benchmark_scripts.
None of them publishes checksums.
"""

from dataclasses import dataclass

from antpipe.errors import UsageError
from antpipe.settings.ingest import AmazonConfig, DownloadConfig

BASES = {
    "2014": "https://snap.stanford.edu/data/amazon/productGraph",
    "2018": "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_v2",
    "2023": "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_2023",
}


@dataclass(frozen=True)
class Address:
    """A file of a release. path: below the release's base, with {domain} and {benchmark} to be filled in.

    local: its path in a folder of local files; '' for the name alone.
    """

    release: str
    kind: str
    path: str
    local: str = ""


ADDRESSES = (
    Address("2014", "5-core", "categoryFiles/reviews_{domain}_5.json.gz"),
    Address("2014", "complete", "categoryFiles/reviews_{domain}.json.gz"),
    Address("2014", "ratings", "categoryFiles/ratings_{domain}.csv"),
    Address("2014", "metadata", "categoryFiles/meta_{domain}.json.gz"),
    Address("2018", "5-core", "categoryFilesSmall/{domain}_5.json.gz"),
    Address("2018", "complete", "categoryFiles/{domain}.json.gz"),
    Address("2018", "ratings", "categoryFilesSmall/{domain}.csv"),
    Address("2018", "metadata", "metaFiles2/meta_{domain}.json.gz"),
    Address("2023", "complete", "raw/review_categories/{domain}.jsonl.gz"),
    Address("2023", "metadata", "raw/meta_categories/meta_{domain}.jsonl.gz"),
    *(
        Address("2023", "benchmark", path, path)
        for path in (f"benchmark/{{benchmark}}/{{domain}}.{part}.csv.gz" for part in ("train", "valid", "test"))
    ),
    Address(
        "2023", "benchmark table", "benchmark/{benchmark}/{domain}.csv.gz", "benchmark/{benchmark}/{domain}.csv.gz"
    ),
)

# sha256 by release and path below its base. Only checksums from the publisher's own pages belong here, and so far there
# are none: with other people's notes, a file that is published again would be refused. Downloads are checked by their
# size and gzip data, and their sha256 is kept in the ledger.
KNOWN_SHA256: dict[tuple[str, str], str] = {}


@dataclass(frozen=True)
class PublishedFile:
    """A file to download. name: what it is, whatever mirror it comes from. local: its path below the source folder."""

    url: str
    name: str
    local: str
    sha256: str | None


def plan_downloads(domain: str, options: AmazonConfig, config: DownloadConfig) -> list[PublishedFile]:
    """The files of a domain, reviews before metadata. Raises UsageError if the release has none of this kind.

    `--files auto` means the 5-core, or the complete reviews of 2023, which has no 5-core with texts. `--benchmark auto`
    means 5core/last_out.
    """
    kind = "complete" if config.release == "2023" else "5-core"
    kind = kind if options.files == "auto" else options.files
    benchmark = "5core/last_out" if options.benchmark == "auto" else options.benchmark
    exact = "benchmark table" if kind == "benchmark" and benchmark.endswith("rating_only") else kind
    of_release = [address for address in ADDRESSES if address.release == config.release]
    if exact not in {address.kind for address in of_release}:
        there = ", ".join(dict.fromkeys(a.kind for a in of_release if a.kind not in ("metadata", "benchmark table")))
        raise UsageError(f"--files {kind}: the release of {config.release} has none; it has {there}")
    base = (config.base_url or BASES[config.release]).rstrip("/")
    downloads = []
    for address in (a for wanted in (exact, "metadata") for a in of_release if a.kind == wanted):
        path = address.path.format(domain=domain, benchmark=benchmark)
        local = address.local.format(domain=domain, benchmark=benchmark) or path.rpartition("/")[2]
        known = KNOWN_SHA256.get((config.release, path))
        downloads.append(PublishedFile(f"{base}/{path}", f"{config.release}/{path}", local, known))
    return downloads
