"""The vectors with which a run scores: those of a domain's items, and those expected after histories.

The score of an item is the inner product of two unit vectors (their cosine), plus the history score of a run that was
trained with one, if the item is among the last max_len items of the history.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from antpipe.core.batches import Examples
from antpipe.core.ranking import Floats, catalogue_vectors, history_vectors, score_of_history, unit_rows
from antpipe.store.domain import Domain
from antpipe.store.store import Store
from antpipe.training.run import open_run

if TYPE_CHECKING:
    import torch

    from antpipe.core.model import Ant

History = NDArray[np.int32]  # rows of a domain's items, oldest first


@dataclass(frozen=True)
class OpenRun:
    """A run opened for one domain, on the CPU, with the vectors of its items.

    items: (N, D) unit vectors; encoded: (N, D) the same vectors as the sequence encoder reads them, not normalised.
    """

    run: Path
    domain: Domain
    item_ids: list[str]
    model: "Ant"
    max_len: int
    encoded: "torch.Tensor"
    items: Floats

    def history_score(self) -> float:
        """What is added to the scores of the last max_len items of a history."""
        return score_of_history(self.model)

    def after(self, part: Examples) -> Floats:
        """Unit vectors (Q, D) expected after the histories of these examples."""
        return unit_rows(history_vectors(self.model, self.encoded, part))


def open_for(store: Store, run: Path, domain: str) -> OpenRun:
    """Load a run and compute the vectors of a domain's items.

    Raises DataError if the run cannot read the domain's features, or if they changed since it was trained on them.
    """
    import torch

    model, described, catalogue = open_run(store, run, domain)
    encoded = catalogue_vectors(model, catalogue, domain, torch.device("cpu"))
    here = store.domain(domain)
    return OpenRun(run, here, here.item_ids(), model, described.max_len, encoded, unit_rows(encoded.clone()))


def item_vectors(store: Store, run: Path, domain: str) -> tuple[list[str], Floats]:
    """Original ids of a domain's items and their unit vectors (N, D), float32. Raises DataError as `open_for`."""
    opened = open_for(store, run, domain)
    return opened.item_ids, opened.items


def user_vectors(store: Store, run: Path, domain: str) -> tuple[list[str], Floats]:
    """Original ids of a domain's users and the unit vectors (U, D), float32, expected after their whole histories.

    The whole history includes validation and test items, as for `recommend`; evaluation uses shorter histories. The
    inner product with `item_vectors` is the score of an item, without the history score. Raises DataError as
    `open_for`, and if the domain has no sequences.
    """
    sequences = store.domain(domain).sequences()
    opened = open_for(store, run, domain)
    ids = opened.domain.table("users", ["user_id"])["user_id"].to_pylist()
    starts, ends = sequences.offsets[:-1], sequences.offsets[1:]
    vectors = opened.after(Examples(sequences.user, sequences.items, starts, ends, opened.max_len))
    return [ids[user] for user in sequences.user], vectors


def as_examples(histories: Sequence[History], max_len: int) -> Examples:
    """Whole histories (one or more items each) as examples without targets."""
    ends = np.cumsum([len(history) for history in histories])
    starts = np.concatenate([[0], ends[:-1]])
    return Examples(np.arange(len(ends), dtype=np.int32), np.concatenate(histories), starts, ends, max_len)
