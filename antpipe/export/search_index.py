"""`export faiss`: a flat and an HNSW index of the item vectors, with the ids of their rows."""

from pathlib import Path
from typing import Any

from antpipe.core.ranking import Floats
from antpipe.evaluation.approximate import build_index, recall_of_exact
from antpipe.evaluation.vectors import open_for
from antpipe.export.folder import README, Exported, exporting, require_free
from antpipe.export.score import left_out_in_words, run_facts, warn_of_left_out
from antpipe.export.vectors import sizes, users_of
from antpipe.settings.evaluation import EvaluateConfig
from antpipe.store.store import Store

TEXT = """# FAISS indices of {domain}

{score}

| file | content |
|---|---|
| `flat.faiss` | exact search by inner product over {items} items of width {width} |
| `hnsw.faiss` | approximate search (HNSW, {hnsw}){recall} |
| `item_ids.json` | the original id of each row of both indices |
{of_users}
```python
import faiss
import json
import numpy as np

index, ids = faiss.read_index("flat.faiss"), json.load(open("item_ids.json"))
queries = {queries}
scores, rows = index.search(queries, 10)
for row in rows:
    print([ids[item] for item in row])
```
"""
OF_USERS = "| `users.npy`, `user_ids.json` | vectors of {users} users, to search with |\n"


def export_faiss(store: Store, run: Path, domain: str, out: Path, *, force: bool = False) -> Exported:
    """Write both indices, and the users' vectors to search with. HNSW has the default sizes of `evaluate`.

    Raises DataError as `export_vectors`.
    """
    require_free(out, force=force)
    opened = open_for(store, run, domain)
    users = users_of(opened)
    config = EvaluateConfig(index="hnsw")
    hnsw, facts = build_index(opened.items, config)
    facts |= recall_of_exact(users[1] if users else opened.items, opened.items, hnsw.search)
    with exporting("faiss", out, force=force) as draft:
        _write_index(draft.path / "flat.faiss", flat_index(opened.items))
        _write_index(draft.path / "hnsw.faiss", hnsw)
        draft.json("item_ids.json", opened.item_ids)
        if users:
            draft.array("users.npy", users[1])
            draft.json("user_ids.json", users[0])
        draft.facts |= {**run_facts(opened), "hnsw": facts}
        draft.figures |= {**sizes(opened, users), "hnsw_recall@10": round(facts["recall_of_exact@10"], 4)}
        left_out = draft.facts["score"]["left_out"]
        text = TEXT.format(
            domain=domain,
            score=left_out_in_words(left_out),
            items=len(opened.items),
            width=opened.items.shape[1],
            hnsw=f"M {config.hnsw_m}, efConstruction {config.ef_construction}, efSearch {config.ef_search}",
            recall=f"; it finds {facts['recall_of_exact@10']:.2%} of the 10 nearest items of "
            + ("all users" if users else "all items"),
            of_users=OF_USERS.format(users=len(users[0])) if users else "",
            queries='np.load("users.npy")[:3]  # what is expected after the histories of three users'
            if users
            else "index.reconstruct_n(0, 3)  # the first items: what is like them",
        )
        draft.text(README, text)
        about = draft.about("faiss")
    warn_of_left_out(left_out, "these indices")
    return Exported(out, about)


def flat_index(items: Floats) -> Any:
    """An exact index over (N, E) vectors by inner product."""
    import faiss

    index = faiss.IndexFlatIP(items.shape[1])
    index.add(items)
    return index


def _write_index(path: Path, index: Any) -> None:
    import faiss

    faiss.write_index(index, str(path))
