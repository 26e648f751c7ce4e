"""The vectors with which a run scores: those of a domain's items, and those expected after histories.

The score of an item is the inner product of two unit vectors (their cosine), plus the history score of a run that was
trained with one, if the item is among the last max_len items of the history. The vectors of a run with a floor are
longer, not of unit length, and hold all of its terms except words, transitions and history, which are added. A run with
a re-ranker then re-scores the best items (core/reranker.py), which is in no vector.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from antpipe.core.batches import Examples
from antpipe.core.catalogue import Catalogue, Ints, ItemInputs, item_inputs
from antpipe.core.floor import items_with_floor, queries_with_floor, weights_of
from antpipe.core.ranking import Doubles, Floats, Pairs, history_pairs, share_of_vectors
from antpipe.core.reranker import Rerank, reranking
from antpipe.core.scoring import catalogue_vectors, floor_pairs, history_vectors, score_of_history, unit_rows
from antpipe.core.untrained import Untrained
from antpipe.core.words import WordIndex, index_words
from antpipe.evaluation.served import open_served
from antpipe.store.domain import Domain
from antpipe.store.store import Store
from antpipe.training.checkpoint import Checkpoint
from antpipe.training.opening import known_for

if TYPE_CHECKING:
    import polars as pl
    import torch

    from antpipe.core.model import Ant

History = NDArray[np.int32]  # rows of a domain's items, oldest first
TEXT_BEGINS = 400  # characters kept of the text of an item without a title


@dataclass(frozen=True)
class OpenRun:
    """A run opened for one domain, in memory, with the vectors of the domain's items.

    encoded: (N, D) vectors as the sequence encoder reads them; items: (N, E) the same scaled to length 1 (E is D), or
    with a floor those of core/floor.py. catalogue: the features they are made of. known: what a floor knows of the
    domain. extra: the last items, if the store does not have them (serving/new_items.py), as rows of ITEMS.
    device: where many histories are encoded and compared with items, as torch names it.
    """

    run: Path
    domain: Domain
    item_ids: list[str]
    model: "Ant"
    max_len: int
    encoded: "torch.Tensor"
    items: Floats
    catalogue: Catalogue
    known: Untrained | None = None
    extra: "pl.DataFrame | None" = None
    device: str = "cpu"

    @cached_property
    def there(self) -> "tuple[Ant, torch.Tensor]":
        """The model and the encoded items on the device."""
        if self.device == "cpu":
            return self.model, self.encoded
        return copy.deepcopy(self.model).to(self.device), self.encoded.to(self.device)

    def added(self, part: Examples) -> Pairs:
        """What is added to the scores of some items after the histories of these examples."""
        if self.known is None:
            return history_pairs(part, len(self.items), score_of_history(self.model))
        return floor_pairs(self.known, part, weights_of(self.model))

    def after(self, part: Examples) -> Floats:
        """Vectors (Q, E) expected after the histories of these examples."""
        unit = unit_rows(history_vectors(*self.there, part))
        return unit if self.known is None else queries_with_floor(self.model, unit, self.known, part)

    @cached_property
    def rerank(self) -> Rerank | None:
        """The function that re-scores the best items; None without a re-ranker."""
        return reranking(self.model, self.known)

    def of_vectors(self, queries: Floats, rows: Ints) -> Doubles:
        """What trained vectors of a run with a floor add to the scores of rows (Q, C), -1 for none. queries: (Q, E) of
        `after`."""
        return share_of_vectors(queries, self.items, rows, self.encoded.shape[1])

    def inputs(self, rows: Ints) -> ItemInputs:
        """What the model reads of some items, given by row."""
        import torch

        first = self.catalogue.rows(self.domain.name)[0]  # new items follow those of the domain
        return item_inputs(self.catalogue, self.model.widths, first + rows, torch.device("cpu"))

    @cached_property
    def columns(self) -> "dict[str, pl.DataType]":
        """The columns of the table of items, with their types."""
        import polars as pl

        return dict(pl.read_parquet_schema(self.domain.file("items.parquet")))

    def describing(self, columns: Sequence[str]) -> "pl.DataFrame":
        """These columns of the table of items, one row per item, in order."""
        import polars as pl

        found = pl.from_arrow(self.domain.table("items", list(columns)))
        assert isinstance(found, pl.DataFrame)
        found = found[: len(self.items) - (0 if self.extra is None else len(self.extra))]
        if self.extra is None:
            return found
        there = [name for name in columns if name in self.extra.columns]  # without those of --keep-column
        return pl.concat([found, self.extra.select(there)], how="diagonal")

    @cached_property
    def titles(self) -> "pl.DataFrame":
        """The title of each item, and the beginning of its text if it has no title (null otherwise)."""
        import polars as pl

        titles = self.describing(["title"])
        if not titles["title"].null_count():
            return titles.with_columns(text=pl.lit(None, pl.String))
        begins = pl.when(pl.col("title").is_null()).then(pl.col("text").str.head(TEXT_BEGINS)).alias("text")
        return self.describing(["title", "text"]).select("title", begins)

    @property
    def reads_words(self) -> bool:
        """Whether the run compares the words of items."""
        return bool(self.catalogue.words)

    @cached_property
    def word_index(self) -> WordIndex | None:
        """The words of its items, to compare with those of new items; None if the run does not read them."""
        return index_words(self.describing(["text"])["text"].to_list()) if self.reads_words else None

    @cached_property
    def row_of(self) -> dict[str, int]:
        """The row of each item, by its original id."""
        return {item: row for row, item in enumerate(self.item_ids)}

    @cached_property
    def popularity(self) -> Ints:
        """(N,) the number of interactions of each item. Raises DataError for a catalogue without interactions."""
        return np.bincount(self.domain.sequences().items, minlength=len(self.items))


def open_for(store: Store, run: Path, domain: str) -> OpenRun:
    """Load a run and compute the vectors of a domain's items as they are now, cold ones included (served.py).

    Raises DataError if the run cannot read the domain's features, or does not know to which items its ids belong.
    """
    return with_vectors(store, run, domain, *open_served(store, run, domain))


def with_vectors(
    store: Store, run: Path, domain: str, model: "Ant", described: Checkpoint, catalogue: Catalogue
) -> OpenRun:
    """A loaded run with the vectors of a domain's items, which are those of the catalogue."""
    import torch

    encoded = catalogue_vectors(model, catalogue, domain, torch.device("cpu"))
    here, known = store.domain(domain), known_for(store, model, described, catalogue, domain)
    items = unit_rows(encoded.clone())
    items = items if known is None else items_with_floor(model, items, known)
    ids = here.item_ids()[: len(items)]  # without cold items, if the run knows items by their ids only
    return OpenRun(run, here, ids, model, described.max_len, encoded, items, catalogue, known)


def item_vectors(store: Store, run: Path, domain: str) -> tuple[list[str], Floats]:
    """Original ids of a domain's items and their vectors (N, E), float32: unit vectors (E is D), or with a floor longer
    ones. Raises DataError as `open_for`."""
    opened = open_for(store, run, domain)
    return opened.item_ids, opened.items


def user_vectors(store: Store, run: Path, domain: str) -> tuple[list[str], Floats]:
    """Original ids of a domain's users and the vectors (U, E), float32, expected after their whole histories.

    The whole history includes validation and test items, as for `recommend`; evaluation uses shorter histories. The
    inner product with `item_vectors` is the score of an item without the history score, a floor's words and
    transitions, and re-ranking. Raises DataError as `open_for`, and if the domain has no sequences.
    """
    store.domain(domain).sequences()  # raises before anything is computed
    return vectors_of_users(open_for(store, run, domain))


def vectors_of_users(opened: OpenRun) -> tuple[list[str], Floats]:
    """The same for an open run. Raises DataError if the domain has no sequences."""
    sequences = opened.domain.sequences()
    ids = opened.domain.table("users", ["user_id"])["user_id"].to_pylist()
    starts, ends = sequences.offsets[:-1], sequences.offsets[1:]
    vectors = opened.after(Examples(sequences.user, sequences.items, starts, ends, opened.max_len))
    return [ids[user] for user in sequences.user], vectors


def as_examples(histories: Sequence[History], max_len: int) -> Examples:
    """Whole histories (one or more items each) as examples without targets."""
    ends = np.cumsum([len(history) for history in histories])
    starts = np.concatenate([[0], ends[:-1]])
    return Examples(np.arange(len(ends), dtype=np.int32), np.concatenate(histories), starts, ends, max_len)
