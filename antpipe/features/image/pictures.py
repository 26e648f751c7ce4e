"""The pictures of a catalogue: which files belong to which item, their digests, and which could not be used."""

import hashlib
import json
import os
import re
import socket
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from antpipe.errors import DataError, IntegrityError
from antpipe.features.shards.plan import CONTENT_BYTES, Contents, EmbeddingPlan, Shard, content_of
from antpipe.runtime.strangers import open_regular
from antpipe.store.domain import Domain
from antpipe.store.files import read_stamp, rot_in
from antpipe.store.manifest import digest
from antpipe.store.next_command import build_command

if TYPE_CHECKING:
    import pyarrow as pa

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
HASHED_AT_ONCE = 4096  # pictures
MOST_BYTES = 1 << 28  # of a picture file
FETCHED = re.compile(r"(?:.*/)?fetched/[0-9a-f]{2}/([0-9a-f]{64})\.[a-z]+")
CAME_WITH_ITEMS = re.compile(r"(?:.*/)?images-[0-9a-f]{12}/([^/]+)")
CHANGED = "not what it was when its content was hashed"
# One row per picture that could not be used; lies beside image.arrow.
UNREADABLE = "unreadable.parquet"


@dataclass(frozen=True, slots=True)
class Picture:
    """A file that shows the item of this row. `path` is a string because a whole catalogue's pictures are in memory.

    name: for the user and the digest. sha256: of its content; None before it is read (`hashed`) or if it cannot be.
    """

    row: int
    name: str
    path: str
    sha256: str | None = field(default=None, compare=False)


def listed_pictures(root: Path, files: Sequence[Sequence[str]]) -> list[Picture]:
    """The pictures that the catalogue names. files: for each row, paths relative to `root`."""
    folder = root.absolute()
    return [Picture(row, name, str(folder / name)) for row, names in enumerate(files) for name in names]


def folder_pictures(folder: Path, item_ids: Sequence[str]) -> list[Picture]:
    """Files of a folder named ITEM_ID.EXT, ITEM_ID_2.EXT …, in this order within an item; others are ignored.

    Ids are compared with file names and never made into paths, so any id is safe. A name that is itself an id
    (`A_2.jpg` if there is an item `A_2`) belongs to that item alone.
    """
    row_of = {item_id: row for row, item_id in enumerate(item_ids)}
    found: list[tuple[int, int, str, Path]] = []
    for path in folder.absolute().iterdir():
        if path.suffix.lower() not in SUFFIXES or not path.is_file():
            continue
        numbered = re.fullmatch(r"(.+)_([0-9]+)", path.stem, re.DOTALL)
        if path.stem in row_of:
            found.append((row_of[path.stem], 1, path.name, path))
        elif numbered and numbered[1] in row_of:
            found.append((row_of[numbered[1]], int(numbered[2]), path.name, path))
    return [Picture(row, name, str(path)) for row, _, name, path in sorted(found)]


def first_of_each_item(pictures: Sequence[Picture], most: int) -> list[Picture]:
    """At most `most` pictures per item, by row, in the order given; a file that is named twice counts once."""
    kept: list[Picture] = []
    for _, own in groupby(sorted(pictures, key=lambda picture: picture.row), key=lambda picture: picture.row):
        files: dict[str, Picture] = {}  # keeps the order, as the sort above does within an item
        for picture in own:
            files.setdefault(os.path.normpath(picture.path), picture)
        kept += list(files.values())[:most]
    return kept


def hashed(pictures: Sequence[Picture]) -> list[Picture]:
    """The same pictures with the sha256 of their files, read on all cores."""

    def with_hash(picture: Picture) -> Picture:
        try:
            with open_regular(Path(picture.path), MOST_BYTES) as stream:
                return replace(picture, sha256=hashlib.file_digest(stream, "sha256").hexdigest())
        except OSError:  # reported when the picture is to be embedded
            return replace(picture, sha256=None)

    found: list[Picture] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(pictures), HASHED_AT_ONCE):  # a waiting task takes more memory than a picture
            found += pool.map(with_hash, pictures[start : start + HASHED_AT_ONCE])
    return found


def require_intact(place: Domain, pictures: Sequence[Picture]) -> None:
    """Raises IntegrityError if a picture (`hashed`) in the store is not what was written there.

    Fetched ones are named by their content, and the manifest has the hashes of those that came with the items.
    """
    came = place.entry("items").get("pictures", {})
    for picture in pictures:
        fetched, own = FETCHED.fullmatch(picture.name), CAME_WITH_ITEMS.fullmatch(picture.name)
        recorded = fetched[1] if fetched else came.get(own[1]) if own else None
        if recorded and picture.sha256 not in (None, recorded):
            mend = build_command(place, "pictures" if fetched else "items", force=True)
            raise IntegrityError(f"{picture.path}: its content differs from what was written", mend)


def pictures_digest(pictures: Sequence[Picture]) -> str:
    """sha256 over row, name and content of every picture (`hashed`); for an unreadable one, over row and name."""
    return digest([[picture.row, picture.name, picture.sha256] for picture in pictures])


@dataclass(frozen=True, slots=True)
class PictureFile:
    """A picture file to decode. sha256: what its content must be; None if it could not be read when it was hashed.

    content, why: after reading, its bytes, or the reason why there are none.
    """

    path: str
    sha256: str | None
    content: bytes | None = None
    why: str = ""

    def read(self) -> "PictureFile":
        """The same file with its content, or with the reason why it cannot be read."""
        if self.content is not None or self.why:
            return self
        try:
            with open_regular(Path(self.path), MOST_BYTES) as stream:
                return replace(self, content=stream.read())
        except OSError as error:
            return replace(self, why=f"cannot be read: {error.strerror or type(error).__name__}")

    def gone(self) -> bool:
        """Whether it cannot be read now, but could be when it was hashed; it then does not count as a bad picture."""
        return bool(self.why) and self.sha256 is not None

    def changed(self) -> str:
        """The message for a file that is gone or has another content."""
        return f"{CHANGED}: {self.path} on {socket.gethostname()}" + (f": {self.why}" if self.why else "")


@dataclass(frozen=True)
class PictureLists:
    """The pictures of all items; can be pickled. Row i has names[starts[i]:starts[i + 1]] and the files likewise.

    An item's pictures are ordered by content, so that equal pictures give equal bytes.
    """

    starts: NDArray[np.int64]  # (N + 1,)
    names: list[str]
    files: list[PictureFile]

    @staticmethod
    def of(pictures: Sequence[Picture], rows: int) -> "PictureLists":
        """rows: the number of items N. pictures: hashed."""
        ordered = sorted(pictures, key=lambda one: (one.row, one.sha256 or "", one.name))
        counts = np.bincount([one.row for one in ordered], minlength=rows)
        files = [PictureFile(one.path, one.sha256) for one in ordered]
        return PictureLists(np.concatenate([[0], np.cumsum(counts)]), [one.name for one in ordered], files)

    def of_row(self, row: int) -> list[PictureFile]:
        return self.files[self.starts[row] : self.starts[row + 1]]

    def __call__(self, shard: Shard) -> list[list[PictureFile]]:
        """The pictures of each item of a shard."""
        return [self.of_row(row) for row in shard.rows.tolist()]

    def sizes(self) -> NDArray[np.int64]:
        """(N,) bytes of each item's pictures, as their files are now; unreadable ones count 0."""
        sizes = np.zeros(len(self.files) + 1, np.int64)
        for position, file in enumerate(self.files, 1):
            with suppress(OSError):
                sizes[position] = Path(file.path).stat().st_size
        total = np.cumsum(sizes)
        return total[self.starts[1:]] - total[self.starts[:-1]]

    @cached_property
    def content(self) -> Contents:
        """(N, 16) a digest of each item's pictures; zeros if it has none."""
        content = np.zeros((len(self.starts) - 1, CONTENT_BYTES), np.uint8)
        for row in np.flatnonzero(np.diff(self.starts)).tolist():
            hashes = [file.sha256 for file in self.of_row(row)]
            content[row] = np.frombuffer(content_of(json.dumps(hashes).encode()), np.uint8)
        return content


def packed_names(files: Sequence[PictureFile]) -> list[dict[str, Any]]:
    """An item's pictures as plain data, for workers that see the files."""
    return [asdict(file) for file in files]


def packed_contents(files: Sequence[PictureFile]) -> list[dict[str, Any]]:
    """An item's pictures as plain data with the bytes of the files, for workers that do not see them.

    Raises DataError if a file cannot be read that could be when it was hashed.
    """
    found = [file.read() for file in files]
    for file in found:
        if file.gone():
            raise DataError(f"picture files changed while they were embedded: {file.changed()}")
    return packed_names(found)


def unpacked_files(plain: Sequence[Mapping[str, Any]]) -> list[PictureFile]:
    """The inverse of `packed_names` and `packed_contents`."""
    return [PictureFile(**one) for one in plain]


@dataclass(frozen=True)
class BadPicture:
    """A picture that could not be used. row: of its item. sha256: None if the file cannot be read."""

    row: int
    file: str
    sha256: str | None
    why: str


def bad_before(place: Domain) -> list[BadPicture] | None:
    """The bad pictures of the catalogue as last embedded; None if that is not known."""
    import pyarrow.parquet as pq

    path = place.path / UNREADABLE
    stamp = read_stamp(path)
    if stamp is None or stamp["fingerprint"] != place.manifest().get("image", {}).get("fingerprint"):
        return None
    if why := rot_in(path, place.manifest()["image"]):
        raise IntegrityError(why, build_command(place, "image", force=True))
    columns = ["item", "file", "sha256", "why"]
    return [BadPicture(*(row[name] for name in columns)) for row in pq.read_table(path, columns=columns).to_pylist()]


def all_bad(
    lists: PictureLists, plan: EmbeddingPlan, failures: Sequence[tuple[int, str]], before: Sequence[BadPicture]
) -> list[BadPicture]:
    """The bad pictures of all items, by row: of computed items, copied ones, and those that share their pictures.

    failures: (row, `NUMBER reason`) from computing. before: of the artefact that vectors were copied from.
    """
    found: dict[int, list[tuple[int, str]]] = defaultdict(list)  # by row: which of its pictures, and why
    for row, failure in failures:
        number, _, why = failure.partition(" ")
        found[row].append((int(number), why))
    by_source = defaultdict(list)
    for bad in before:
        by_source[bad.row].append(bad)
    for row, source in zip(plan.copied.tolist(), plan.source.tolist(), strict=True):
        found[row] += _numbered(lists, row, by_source.get(source, ()))
    everyone = np.flatnonzero(plan.first >= 0).tolist()
    return [
        BadPicture(row, lists.names[position], lists.files[position].sha256, why)
        for row in everyone
        for number, why in found.get(int(plan.first[row]), ())
        for position in [int(lists.starts[row]) + number]
    ]


def _numbered(lists: PictureLists, row: int, bad: Sequence[BadPicture]) -> Iterator[tuple[int, str]]:
    """Position and reason of these pictures in the item's current list, found by their content."""
    left = list(bad)
    for number, file in enumerate(lists.of_row(row)):
        match = next((one for one in left if one.sha256 == file.sha256), None)
        if match is not None:
            left.remove(match)
            yield number, match.why


def bad_table(bad: Sequence[BadPicture]) -> "pa.Table":
    """The table of unreadable.parquet: item (row), file, sha256, why."""
    import pyarrow as pa

    return pa.table(
        {
            "item": pa.array([one.row for one in bad], pa.int32()),
            "file": pa.array([one.file for one in bad], pa.string()),
            "sha256": pa.array([one.sha256 for one in bad], pa.string()),
            "why": pa.array([one.why for one in bad], pa.string()),
        }
    )


def bad_details(bad: Sequence[BadPicture], item_ids: Sequence[str], most: int) -> dict[str, Any]:
    """For the manifest: how many per reason, and the first `most`."""
    return {
        "unreadable_reasons": dict(Counter(one.why.partition(": ")[0] for one in bad)),
        "unreadable": [{"item": item_ids[one.row], "file": one.file, "why": one.why} for one in bad[:most]],
    }
