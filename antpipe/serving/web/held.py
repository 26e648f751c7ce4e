"""A run opened for a service: everything that requests ask for is in memory, and histories are encoded together.

Files on disk may be replaced while it serves; nothing of the replacement mixes into its answers.
"""

from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
import polars as pl

from antpipe.core.batches import Examples, history_blocks
from antpipe.core.catalogue import Ints
from antpipe.core.floor import queries_with_floor
from antpipe.core.ranking import Floats
from antpipe.core.scoring import LEAST_ROWS, unit_rows
from antpipe.errors import DataError
from antpipe.evaluation.vectors import TEXT_BEGINS, History, OpenRun, open_for
from antpipe.features.recorded import Describer
from antpipe.serving.new_items import described_by, describers_for, require_new, rows_of_new_items, with_new_items
from antpipe.serving.offer import Offer, offer_of
from antpipe.serving.recommend import NOBODY, text_begin
from antpipe.store.next_command import build_command
from antpipe.store.store import Store
from antpipe.training import checkpoint

if TYPE_CHECKING:
    import torch

    from antpipe.core.model import Ant

NOT_HELD = ("item",)
CENTS = 4  # digits of a price: a float32 has about seven


class HeldRun(OpenRun):
    """An opened run that no longer reads the disk. Made by `hold`."""

    def describing(self, columns: "list[str] | tuple[str, ...]") -> pl.DataFrame:  # type: ignore[override]
        return self.table.select(columns)

    def after(self, part: Examples) -> Floats:
        unit = unit_rows(vectors_together(self.model, self.encoded, part))
        return unit if self.known is None else queries_with_floor(self.model, unit, self.known, part)

    @cached_property
    def table(self) -> pl.DataFrame:
        """What the catalogue says about each item that the run knows, in order; for new items, what they came with."""
        found = super().describing([name for name in self.columns if name not in NOT_HELD])
        return found.head(len(self.item_ids))

    @cached_property
    def fingerprint(self) -> str:
        """That of the run."""
        return checkpoint.describe(self.run).fingerprint

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """That of the domain."""
        return self.domain.manifest()

    @cached_property
    def describers(self) -> dict[str, Describer]:
        """What makes the features of new items; built when the first come. Raises DataError as `describers_for`."""
        return describers_for(Store(self.domain.root), self, pictures=False)

    def with_new(self, items: Sequence[Mapping[str, Any]]) -> "HeldRun":
        """The same run with additional, new items, given as names and values. Raises DataError, naming items, and also
        while the domain is being replaced."""
        rows = rows_of_new_items(items, self.domain)
        require_new(self, rows, self.item_ids)
        new = described_by(self, rows, self.describers)
        if self.domain.manifest() != self.manifest:
            raise DataError(f"{self.domain.name} is being replaced; ask again in a few seconds")
        found = with_new_items(self, new)
        assert isinstance(found, HeldRun)
        n = len(rows)
        there = [name for name in self.table.columns if name in rows.columns]  # without those of --keep-column
        known = {name: self.__dict__[name] for name in ("fingerprint", "manifest", "histories", "columns")}
        found.__dict__.update(known, table=pl.concat([self.table, rows.select(there)], how="diagonal"))
        found.__dict__.update(
            popularity=np.append(self.popularity, np.zeros(n, np.int64)),
            shown=self.shown + shown_of(rows),
            prices=self.prices + prices_of(rows),
            currencies=self.currencies + rows["currency"].to_list(),
            pictures=[*self.pictures, *(None for _ in range(n))],
        )
        return found

    @cached_property
    def shown(self) -> list[str]:
        """What is shown for each item: its title, or the start of its text."""
        return shown_of(self.table)

    @cached_property
    def folded(self) -> pl.Series:
        """The same in lower case, to search in."""
        return pl.Series(self.shown, dtype=pl.String).str.to_lowercase()

    @cached_property
    def prices(self) -> list[float | None]:
        """The price of each item as it was written, rounded because the store keeps float32."""
        return prices_of(self.table)

    @cached_property
    def currencies(self) -> list[str | None]:
        return self.table["currency"].to_list()

    @cached_property
    def pictures(self) -> list[str | None]:
        """Where a browser finds a picture of each item: its first URL, or else a path of the service."""
        urls = self.table.select(pl.col("image_urls").list.first()).to_series().to_list()
        return [
            url if url is not None and url.startswith(("https://", "http://")) else path_of(item) if file else None
            for item, url, file in zip(self.item_ids, urls, self.picture_files, strict=True)
        ]

    @cached_property
    def picture_files(self) -> list[str | None]:
        """The first picture file of each item, as seen from the folder of the domain."""
        return self.table.select(pl.col("image_files").list.first()).to_series().to_list()

    @cached_property
    def histories(self) -> dict[str, History]:
        """The whole history of each user, by original id; empty for a catalogue without interactions."""
        ids = self.domain.table("users", ["user_id"])["user_id"].to_pylist()
        if not ids:
            return {}
        sequences = self.domain.sequences()
        offsets = sequences.offsets.tolist()
        return {
            ids[user]: sequences.items[offsets[row] : offsets[row + 1]]
            for row, user in enumerate(sequences.user.tolist())
        }

    @cached_property
    def popularity(self) -> Ints:
        """(N,) the number of interactions of each item."""
        every = [NOBODY, *self.histories.values()]
        return np.bincount(np.concatenate(every).astype(np.int64), minlength=len(self.items))

    @cached_property
    def everything(self) -> Offer:
        """All items, without any filter."""
        return offer_of(self)


def shown_of(table: pl.DataFrame) -> list[str]:
    """The title of each row of a table of items, or the start of its text."""
    shown = table.select("title", pl.col("text").str.head(TEXT_BEGINS))
    return [text_begin(text) if title is None else title for title, text in shown.iter_rows()]


def prices_of(table: pl.DataFrame) -> list[float | None]:
    return table["price"].cast(pl.Float64).round(CENTS).to_list()


def path_of(item: str) -> str:
    """The path of an item's picture, relative to the service's own."""
    return f"pictures/{quote(item, safe='')}"


def hold(store: Store, run: Path, domain: str) -> HeldRun:
    """Open a run and read into memory what requests ask for.

    Raises DataError as `open_for`, and if the domain was replaced meanwhile.
    """
    opened = open_for(store, run, domain)
    held = HeldRun(**{field.name: getattr(opened, field.name) for field in fields(opened)})
    if held.table["item_id"].to_list() != held.item_ids:
        again = build_command(held.domain, "items", force=True)
        raise DataError(f"domain {domain}: its items were replaced while they were read", again)
    for name in ("fingerprint", "manifest", "row_of", "titles", "shown", "folded", "prices", "currencies", "pictures"):
        getattr(held, name)
    for name in ("histories", "popularity", "everything"):
        getattr(held, name)
    held.everything.rows.setflags(write=False)
    return held


def vectors_together(model: "Ant", items: "torch.Tensor", part: Examples) -> "torch.Tensor":
    """Like `history_vectors` of core/scoring.py, for few histories of different lengths: one encoder pass for all.

    Everything but attention is one operation for all positions. Equal up to the last digits of float32.
    """
    import torch

    blocks = list(history_blocks(part, len(part)))
    rows = np.concatenate([some for some, _ in blocks])
    shapes = [inputs.shape for _, inputs in blocks]
    read = np.concatenate([inputs.ravel() for _, inputs in blocks])
    ends = np.cumsum(np.concatenate([np.full(count, length) for count, length in shapes])) - 1
    if len(read) < LEAST_ROWS:  # see there: the last digits do not depend on the number of threads
        more = LEAST_ROWS - len(read)
        read, shapes = np.concatenate([read, np.resize(read, more)]), [*shapes, (more, 1)]
    out = torch.empty(len(part), items.shape[1], dtype=items.dtype)
    with torch.inference_mode():
        found = model.encode_blocks(items[torch.from_numpy(read)], shapes)
        out[torch.from_numpy(rows)] = found[torch.from_numpy(ends)]
    return out


class Offers:
    """The offers of one held run by filter; the most recently used are kept, up to a number of bytes."""

    def __init__(self, held: HeldRun, most: int) -> None:
        self.held, self.most, self.size = held, most, 0
        self.kept: OrderedDict[tuple[str | None, frozenset[str], frozenset[str] | None], Offer] = OrderedDict()
        self.lock = Lock()

    def get(self, where: str | None, exclude: Collection[str] = (), only: Collection[str] | None = None) -> Offer:
        """The offer of a filter. Raises as offer_of."""
        if where is None and not exclude and only is None:
            return self.held.everything
        key = (where, frozenset(exclude), None if only is None else frozenset(only))
        with self.lock:
            if key in self.kept:
                self.kept.move_to_end(key)
                return self.kept[key]
        offer = offer_of(self.held, where, exclude, only)
        with self.lock:
            self._keep(key, offer)
        return offer

    def _keep(self, key: tuple[str | None, frozenset[str], frozenset[str] | None], offer: Offer) -> None:
        size = bytes_of(self.held, offer)
        if size > self.most or key in self.kept:
            return
        self.kept[key] = offer
        self.size += size
        while self.size > self.most:
            _, dropped = self.kept.popitem(last=False)
            self.size -= bytes_of(self.held, dropped)


def bytes_of(held: HeldRun, offer: Offer) -> int:
    """The size of an offer, without vectors that it shares with the run."""
    own = 0 if offer.vectors is held.items else offer.vectors.nbytes
    return int(offer.rows.nbytes + offer.column.nbytes + own)
