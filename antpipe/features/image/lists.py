"""The pictures of every item as shards want them: what stands for them, their files, and what became of bad ones."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from antpipe.errors import DataError
from antpipe.features.image.decoding import Source
from antpipe.features.image.pictures import Picture
from antpipe.features.shards.plan import CONTENT_BYTES, Contents, Plan, Shard, content_of
from antpipe.store.domain import Domain
from antpipe.store.files import read_stamp

if TYPE_CHECKING:
    import pyarrow as pa

# A row for each picture that could not be used, beside image.arrow.
UNREADABLE = "unreadable.parquet"


@dataclass(frozen=True)
class PictureLists:
    """Can be pickled. Row i has the pictures from starts[i] below starts[i + 1] of `names` and `sources`.

    Those of an item are ordered by content: the mean does not depend on their order, and equal pictures give equal
    bytes.
    """

    starts: NDArray[np.int64]  # (N + 1,)
    names: list[str]
    sources: list[Source]

    @staticmethod
    def of(pictures: Sequence[Picture], rows: int) -> "PictureLists":
        """pictures: hashed."""
        ordered = sorted(pictures, key=lambda one: (one.row, one.sha256 or "", one.name))
        counts = np.bincount([one.row for one in ordered], minlength=rows)
        sources = [Source(one.path, one.sha256) for one in ordered]
        return PictureLists(np.concatenate([[0], np.cumsum(counts)]), [one.name for one in ordered], sources)

    def __call__(self, shard: Shard) -> list[list[Source]]:
        return [self.sources[self.starts[row] : self.starts[row + 1]] for row in shard.rows]

    def sizes(self) -> NDArray[np.int64]:
        """(N,) bytes of the pictures of each item, as their files are now; 0 for one that cannot be read."""
        sizes = np.zeros(len(self.sources) + 1, np.int64)
        for place, source in enumerate(self.sources, 1):
            with suppress(OSError):
                sizes[place] = Path(source.path).stat().st_size
        total = np.cumsum(sizes)
        return total[self.starts[1:]] - total[self.starts[:-1]]

    @cached_property
    def content(self) -> Contents:
        """(N, 16): what stands for the pictures of each item; zeros where there is none."""
        content = np.zeros((len(self.starts) - 1, CONTENT_BYTES), np.uint8)
        for row in np.flatnonzero(np.diff(self.starts)):
            hashes = [source.sha256 for source in self.sources[self.starts[row] : self.starts[row + 1]]]
            content[row] = np.frombuffer(content_of(json.dumps(hashes).encode()), np.uint8)
        return content


def file_names(sources: Sequence[Source]) -> list[dict[str, Any]]:
    """The pictures of an item as plain data, for workers that see the files."""
    return [asdict(source) for source in sources]


def file_contents(sources: Sequence[Source]) -> list[dict[str, Any]]:
    """The pictures of an item as plain data, with the bytes of the files, for workers that do not see them.

    DataError where a file cannot be read that could be when it was hashed.
    """
    found = [source.read() for source in sources]
    for source in found:
        if source.gone():
            raise DataError(f"picture files changed while they were embedded: {source.changed()}")
    return [asdict(source) for source in found]


def sources_of(plain: Sequence[Mapping[str, Any]]) -> list[Source]:
    """The inverse of the two."""
    return [Source(**one) for one in plain]


@dataclass(frozen=True)
class Bad:
    """A picture that could not be used. row: of the item. sha256: None where the file cannot be read."""

    row: int
    file: str
    sha256: str | None
    why: str


def bad_before(place: Domain) -> list[Bad] | None:
    """The bad pictures of the catalogue as it was embedded last; None where that is not known."""
    import pyarrow.parquet as pq

    path = place.path / UNREADABLE
    stamp = read_stamp(path)
    if stamp is None or stamp["fingerprint"] != place.manifest().get("image", {}).get("fingerprint"):
        return None
    columns = ["item", "file", "sha256", "why"]
    return [Bad(*(row[name] for name in columns)) for row in pq.read_table(path, columns=columns).to_pylist()]


def all_bad(lists: PictureLists, plan: Plan, failures: Sequence[tuple[int, str]], before: Sequence[Bad]) -> list[Bad]:
    """Of all items: computed, copied, and with the same pictures as one of these; by row.

    failures: (row, `NUMBER why`) of what was computed.
    """
    found: dict[int, list[tuple[int, str]]] = defaultdict(list)  # by row: which of its pictures, and why
    for row, told in failures:
        number, _, why = told.partition(" ")
        found[row].append((int(number), why))
    by_source = defaultdict(list)
    for bad in before:
        by_source[bad.row].append(bad)
    for row, source in zip(plan.copied.tolist(), plan.source.tolist(), strict=True):
        found[row] += _numbered(lists, row, by_source.get(source, ()))
    everyone = np.flatnonzero(plan.first >= 0).tolist()
    return [
        Bad(row, lists.names[place], lists.sources[place].sha256, why)
        for row in everyone
        for number, why in found.get(int(plan.first[row]), ())
        for place in [int(lists.starts[row]) + number]
    ]


def _numbered(lists: PictureLists, row: int, bad: Sequence[Bad]) -> Iterator[tuple[int, str]]:
    """The same pictures in the present list of the item, by their content."""
    left = list(bad)
    for number, source in enumerate(lists.sources[lists.starts[row] : lists.starts[row + 1]]):
        match = next((one for one in left if one.sha256 == source.sha256), None)
        if match is not None:
            left.remove(match)
            yield number, match.why


def bad_table(bad: Sequence[Bad]) -> "pa.Table":
    import pyarrow as pa

    return pa.table(
        {
            "item": pa.array([one.row for one in bad], pa.int32()),
            "file": pa.array([one.file for one in bad], pa.string()),
            "sha256": pa.array([one.sha256 for one in bad], pa.string()),
            "why": pa.array([one.why for one in bad], pa.string()),
        }
    )


def bad_details(bad: Sequence[Bad], item_ids: Sequence[str], most: int) -> dict[str, Any]:
    """For the manifest: how many for each reason, and the first few."""
    return {
        "unreadable_reasons": dict(Counter(one.why.partition(": ")[0] for one in bad)),
        "unreadable": [{"item": item_ids[one.row], "file": one.file, "why": one.why} for one in bad[:most]],
    }
