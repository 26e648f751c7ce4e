"""Example users: what they bought, what is recommended to them, and what they bought next."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl

from antpipe.core.batches import examples
from antpipe.evaluation.vectors import OpenRun, with_vectors
from antpipe.features.image.pictures import PictureFile
from antpipe.report.figure import shortened
from antpipe.report.findings import SPLIT
from antpipe.report.item_map import sampled
from antpipe.serving.recommend import recommend_after, titles_of
from antpipe.store.domain import Domain
from antpipe.store.store import Store
from antpipe.training.opening import open_run

HISTORY = 6  # items of a history that are shown, the latest ones
TITLE = 90  # letters
SIDE = 112  # pixels of a picture
QUALITY = 68  # of its JPEG
MOST_BYTES = 1_600_000  # of all pictures of a report, before they become text


@dataclass(frozen=True)
class Card:
    """An item as it is shown. price, picture: '' if there is none; picture: its id. hit: it was bought next."""

    title: str
    item_id: str
    price: str
    picture: str
    hit: bool = False


@dataclass(frozen=True)
class Suggested:
    """What an arm recommends to a user. place: rank of what was bought next, None if it is not among the cards."""

    arm: str
    cards: Sequence[Card]
    place: int | None


@dataclass(frozen=True)
class Example:
    """A user. history: the latest items, oldest first; `earlier` more are not shown. bought: what came next."""

    user: str
    history: Sequence[Card]
    earlier: int
    bought: Card
    lists: Sequence[Suggested]

    @property
    def hit(self) -> bool:
        """Whether some arm recommended what was bought next."""
        return any(one.place is not None for one in self.lists)


@dataclass
class Pictures:
    """Small pictures of items, each once, within a byte budget.

    urls: data URLs by the id that cards name. missing: number of files that are gone or damaged; left: number of those
    left out because the budget was used up.
    """

    wanted: bool = True
    urls: dict[str, str] = field(default_factory=dict)
    missing: int = 0
    left: int = 0
    spent: int = 0
    ids: dict[Path, str] = field(default_factory=dict)

    def of(self, path: Path | None) -> str:
        """The id of the picture in a file, '' if it is missing or left out."""
        if path is None or not self.wanted:
            return ""
        if path not in self.ids:
            self.ids[path] = self._add(thumbnail(path))
        return self.ids[path]

    def _add(self, content: bytes | None) -> str:
        if content is None:
            self.missing += 1
            return ""
        if self.spent + len(content) > MOST_BYTES:
            self.left += 1
            return ""
        self.spent += len(content)
        name = f"p{len(self.urls)}"
        self.urls[name] = f"data:image/jpeg;base64,{base64.b64encode(content).decode()}"
        return name


def thumbnail(path: Path) -> bytes | None:
    """A small JPEG of a picture file on white; None if embed-image could not read the file either."""
    from antpipe.features.image.decoding import UnreadableError, decode_picture

    content = PictureFile(str(path), None).read().content
    if content is None:
        return None
    try:
        shown, _ = decode_picture(content, least_side=SIDE)
    except UnreadableError:
        return None
    shown.thumbnail((SIDE, SIDE))
    stream = io.BytesIO()
    shown.save(stream, "JPEG", quality=QUALITY, optimize=True)
    return stream.getvalue()


def open_as_judged(store: Store, run: Path, domain: str) -> OpenRun:
    """A run with the items it was judged on. Raises DataError if the domain changed since."""
    return with_vectors(store, run, domain, *open_run(store, run, domain))


def examples_of(
    runs: Mapping[str, OpenRun], count: int, k: int, seed: int, pictures: Pictures, *, protocol: str
) -> tuple[list[Example], int]:
    """Random users of the test split with what each arm recommends, and how many users there are.

    runs: by arm, all of one domain. protocol: with `unseen`, items of the history are not recommended again. Raises
    DataError if the domain has no sequences.
    """
    opened = next(iter(runs.values()))
    part = examples(opened.domain.sequences(), SPLIT)
    chosen = sampled(len(part), count, seed)
    histories = [part.items[part.start[row] : part.end[row]] for row in chosen]
    targets = part.targets()[chosen]
    users = opened.domain.table("users", ["user_id"])["user_id"]
    lists = {
        arm: recommend_after(run, histories, k, include_seen=protocol == "all") if histories else []
        for arm, run in runs.items()
    }
    found = [*targets.tolist()]
    found += [row for history in histories for row in history[-HISTORY:].tolist()]
    found += [opened.row_of[one["item_id"]] for by_user in lists.values() for rows in by_user for one in rows]
    cards = cards_of(opened, sorted(set(found)), pictures)
    shown = []
    for number, (row, target) in enumerate(zip(chosen.tolist(), targets.tolist(), strict=True)):
        suggested = []
        for arm, by_user in lists.items():
            items = [opened.row_of[one["item_id"]] for one in by_user[number]]
            place = items.index(target) + 1 if target in items else None
            suggested.append(Suggested(arm, [marked(cards[item], item == target) for item in items], place))
        history = histories[number]
        latest = [cards[item] for item in history[-HISTORY:].tolist()]
        name = shortened(users[int(part.user[row])].as_py(), TITLE)
        shown.append(Example(name, latest, max(0, len(history) - HISTORY), cards[target], suggested))
    return shown, len(part)


def marked(card: Card, hit: bool) -> Card:
    return Card(card.title, card.item_id, card.price, card.picture, hit)


def cards_of(opened: OpenRun, rows: Sequence[int], pictures: Pictures) -> dict[int, Card]:
    """Items as cards, by row."""
    titles = titles_of(opened, np.array(rows, np.int64))
    about = opened.describing(["price", "currency"])
    files = picture_files(opened.domain, rows) if pictures.wanted else {}
    found = {}
    for row in rows:
        price, currency = about.row(row)
        said = "" if price is None else f"{price:,.2f} {currency or ''}".strip()
        item = shortened(opened.item_ids[row], TITLE)
        found[row] = Card(shortened(titles[row], TITLE) or item, item, said, pictures.of(files.get(row)))
    return found


def picture_files(domain: Domain, rows: Sequence[int]) -> dict[int, Path]:
    """The first picture of each of these items: a file that the catalogue names, or one that was fetched."""
    named = domain.table("items", ["image_files"])["image_files"].take(list(rows)).to_pylist()
    found = {row: domain.path / files[0] for row, files in zip(rows, named, strict=True) if files}
    if "pictures" in domain.manifest() and domain.state("pictures").status in ("fresh", "partial"):
        rows_of = pl.DataFrame(domain.table("pictures", ["item", "file", "state"]))
        for item, file in rows_of.filter(pl.col("state") == "ok", pl.col("item").is_in(list(rows)))[
            "item", "file"
        ].rows():
            found.setdefault(item, domain.path / file)
    return found
