"""`export vectors`: the vectors of items and users as .npy with their ids, and as Parquet."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from antpipe.core.ranking import Floats
from antpipe.evaluation.vectors import OpenRun, open_for, vectors_of_users
from antpipe.export.folder import README, Draft, Exported, exporting, require_free
from antpipe.export.score import left_out_in_words, run_facts, warn_of_left_out
from antpipe.store.manifest import lacking
from antpipe.store.store import Store

if TYPE_CHECKING:
    import pyarrow as pa

TEXT = """# Vectors of {domain}

{score}

| file | content |
|---|---|
| `items.npy` | ({items}, {width}) float32, one row per item |
| `item_ids.json` | the original ids of these rows, in this order |
| `items.parquet` | the same as a table: `item_id`, `vector` |
{of_users}
```python
import json
import numpy as np

items, ids = np.load("items.npy"), json.load(open("item_ids.json"))
{example}
```
"""
OF_USERS = """| `users.npy`, `user_ids.json`, `users.parquet` | the same of {users} users: what is expected after \
their whole histories |
"""
NO_USERS = "\nThe domain has no interactions, so there are no vectors of users.\n"
WITH_USERS = """users = np.load("users.npy")
best = np.argsort(-(items @ users[0]))[:10]  # of the first user, with what she has bought already
print([ids[row] for row in best])"""
WITHOUT_USERS = """alike = np.argsort(-(items @ items[0]))[:10]  # to the first item
print([ids[row] for row in alike])"""


def export_vectors(store: Store, run: Path, domain: str, out: Path, *, force: bool = False) -> Exported:
    """Write item vectors, and user vectors if the domain has interactions.

    Raises DataError if the run cannot read the domain (see open_for), sequences are missing, or `out` is there.
    """
    require_free(out, force=force)
    opened = open_for(store, run, domain)
    users = users_of(opened)
    with exporting("vectors", out, force=force) as draft:
        draft.facts |= run_facts(opened)
        _write(draft, "item", opened.item_ids, opened.items)
        if users:
            _write(draft, "user", *users)
        left_out = draft.facts["score"]["left_out"]
        text = TEXT.format(
            domain=domain,
            score=left_out_in_words(left_out),
            items=len(opened.items),
            width=opened.items.shape[1],
            of_users=OF_USERS.format(users=len(users[0])) if users else NO_USERS,
            example=WITH_USERS if users else WITHOUT_USERS,
        )
        draft.text(README, text)
        draft.figures |= sizes(opened, users)
        about = draft.about("vectors")
    warn_of_left_out(left_out, "these vectors")
    return Exported(out, about)


def users_of(opened: OpenRun) -> tuple[list[str], Floats] | None:
    """Ids and vectors (U, E) of a domain's users; None for a catalogue without interactions."""
    return None if lacking("sequences", opened.domain.manifest()) else vectors_of_users(opened)


def sizes(opened: OpenRun, users: tuple[list[str], Floats] | None) -> dict[str, int]:
    return {"items": len(opened.items), "users": len(users[0]) if users else 0, "width": opened.items.shape[1]}


def _write(draft: Draft, of: str, ids: Sequence[str], vectors: Floats) -> None:
    import pyarrow.parquet as pq

    draft.array(f"{of}s.npy", vectors)
    draft.json(f"{of}_ids.json", list(ids))
    pq.write_table(as_table(of, ids, vectors), draft.path / f"{of}s.parquet", compression="zstd")


def as_table(of: str, ids: Sequence[str], vectors: Floats) -> "pa.Table":
    """Columns ITEM_id or USER_id, and vector (a list of fixed size)."""
    import pyarrow as pa

    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
    return pa.table({f"{of}_id": pa.array(ids, pa.string()), "vector": column})
