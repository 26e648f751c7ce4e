"""The items a run was trained on: RUN/items-HASH.parquet has a row for each, in the order of its catalogue.

With it, a run with learned ids finds its items in a catalogue that has changed since (evaluation/served.py).
"""

from collections.abc import Mapping, Sequence

import numpy as np

from antpipe.core.transitions import training_items
from antpipe.runtime.logs import log
from antpipe.store.files import Sequences
from antpipe.store.store import Store
from antpipe.store.tables import write_table
from antpipe.training.folder import RunFolder


def write_items(
    folder: RunFolder, store: Store, id_tables: Mapping[str, str], sequences: Sequence[Sequences]
) -> dict[str, str]:
    """Write the ids of the core's items: columns domain, item_id, and trained (whether it occurs in training).

    id_tables: the hashes by domain, which are returned. sequences: what was trained on, for each domain. Nothing is
    written, and the result is empty, if a domain was ingested again since the run was planned.
    """
    import pyarrow as pa

    parts = []
    for (name, id_table), part in zip(id_tables.items(), sequences, strict=True):
        domain = store.domain(name)
        ids = domain.table("items", ["item_id"])["item_id"][: domain.core_rows()]
        if domain.entry("items")["id_table"] != id_table:
            log.warning(f"{name} was ingested again while this run was trained: the run does not know its items by id")
            return {}
        trained = np.bincount(training_items(part)[0], minlength=len(ids)) > 0
        parts.append(pa.table({"domain": pa.repeat(name, len(ids)), "item_id": ids, "trained": pa.array(trained)}))
    folder.path.mkdir(parents=True, exist_ok=True)
    write_table(folder.items(id_tables), pa.concat_tables(parts))
    return dict(id_tables)
