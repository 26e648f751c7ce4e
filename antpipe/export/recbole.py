"""`export recbole`: RecBole's atomic files of a domain, whole and with our split, and a configuration that reads them.

The formats: recbole.io/docs/user_guide/data/atomic_files.html; the parts are those of `benchmark_filename`
(recbole.io/docs/user_guide/config/data_settings.html), with the history of each target in item_id_list.
"""

from pathlib import Path
from typing import Any

import polars as pl

from antpipe.core.ranking import Floats
from antpipe.evaluation.vectors import item_vectors
from antpipe.export.folder import README, Draft, Exported, exporting, require_free
from antpipe.export.rows import MOST_HISTORY, in_one_line, require_writable, write_parts
from antpipe.store.domain import Domain
from antpipe.store.next_command import spell
from antpipe.store.store import Store

BLANKS = " \t\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"  # token_seq is separated by blanks
CONFIG = """# RecBole's configuration of this data set, with the split of antpipe; its paths are from this folder
data_path: ./
dataset: {domain}
benchmark_filename: [train, valid, test]
USER_ID_FIELD: user_id
ITEM_ID_FIELD: item_id
LIST_SUFFIX: _list
alias_of_item_id: [{aliases}]
load_col:
  inter: [user_id, item_id_list, item_id]
  item: [item_id, title]
{embeddings}MAX_ITEM_LIST_LENGTH: {longest}
train_neg_sample_args: ~
eval_args: {{order: TO, mode: full}}
"""
EMBEDDINGS = """  itememb: [iid, item_emb]
additional_feat_suffix: [itememb]
preload_weight: {iid: item_emb}
"""
TEXT = """# {domain} for RecBole

| file | content |
|---|---|
| `{domain}/{domain}.inter` | all {interactions} interactions: user, item, time in milliseconds, rating |
| `{domain}/{domain}.item` | all {items} items of the catalogue: title, category, price, text |
| `{domain}/{domain}.train.inter`, `.valid.inter`, `.test.inter` | the split that antpipe evaluates on: one row per \
target, with the last {longest} items of its history |
{vectors}| `{domain}.yaml` | a configuration for sequential models of RecBole with that split |

Pictures and features are not in these files. RecBole holds times as float32, which are about two minutes apart: with a
split of its own, the order of times closer than that is not kept; the three parts do not depend on times.

In this folder, a sequential model of RecBole is trained by

```
run_recbole --model SASRec --dataset {domain} --config_files {domain}.yaml
```

Back into a store, with the split made again, and lines that are the same in all values once:

```
{command}
```
"""


def export_recbole(store: Store, domain: str, out: Path, *, run: Path | None = None, force: bool = False) -> Exported:
    """Write the atomic files. run: also its item vectors, as additional features of items.

    Raises DataError if the domain has no sequences, an id has a blank, the run cannot read the domain, or `out` is
    there.
    """
    require_free(out, force=force)
    here = store.domain(domain)
    sequences = here.sequences()
    items, users = here.item_ids(), here.table("users", ["user_id"])["user_id"].to_pylist()
    instead = spell("export unisrec", domains=[domain], store=store.root, flags=["--out", out])
    require_writable(items, "item", BLANKS, instead)
    require_writable(users, "user", BLANKS, instead)
    vectors = item_vectors(store, run, domain)[1] if run else None
    with exporting("recbole", out, force=force) as draft:
        folder = draft.path / domain  # RecBole's data sets are folders of their name
        folder.mkdir()
        _write_items(folder / f"{domain}.item", here)
        interactions = _write_interactions(folder / f"{domain}.inter", here, users, items)
        targets = write_parts(folder, domain, sequences, users, items)
        if vectors is not None:
            _write_vectors(folder / f"{domain}.itememb", items, vectors)
        draft.facts |= {"domain": domain, "most_history": MOST_HISTORY}
        draft.figures |= {"items": len(items), "users": len(users), "interactions": interactions, **targets}
        _describe(draft, here, out, vectors)
        about = draft.about("recbole")
    return Exported(out, about)


def _describe(draft: Draft, domain: Domain, out: Path, vectors: Floats | None) -> None:
    name = domain.name
    unit = domain.entry("items")["report"].get("time_unit")
    flags: list[str | Path] = ["--path", out / name, "--min-user", "1", "--min-item", "1"]
    flags += ["--time-unit", "order" if unit == "order" else "ms"]
    row = f"| `{name}/{name}.itememb` | the vector of each item in the run, to load as `preload_weight` |\n"
    text = TEXT.format(
        domain=name,
        interactions=draft.figures["interactions"],
        items=draft.figures["items"],
        longest=MOST_HISTORY,
        vectors=row if vectors is not None else "",
        command=spell("import recbole", domains=[name], flags=flags),
    )
    draft.text(README, text)
    embeddings = EMBEDDINGS if vectors is not None else ""
    aliases = "item_id_list" if vectors is None else "item_id_list, iid"
    config = CONFIG.format(domain=name, longest=MOST_HISTORY, embeddings=embeddings, aliases=aliases)
    draft.text(f"{name}.yaml", config)


def _write_items(path: Path, domain: Domain) -> None:
    """One line per item; an item without a price has an empty value."""
    table = pl.DataFrame(domain.table("items", ["item_id", "title", "category", "price", "text"]))
    with path.open("w", encoding="utf-8", newline="\n") as stream:
        stream.write("item_id:token\ttitle:token_seq\tcategory:token_seq\tprice:float\ttext:token_seq\n")
        for item, title, category, price, text in table.iter_rows():
            levels = in_one_line(" > ".join(category or ()))
            values = (item, in_one_line(title), levels, number(price), in_one_line(text))
            stream.write("\t".join(values) + "\n")


def _write_interactions(path: Path, domain: Domain, users: list[str], items: list[str]) -> int:
    """One line per interaction, in the order of users and times. Returns their number."""
    table = pl.DataFrame(domain.table("interactions", ["user", "item", "timestamp", "rating"]))
    rated = table["rating"].null_count() < len(table)
    with path.open("w", encoding="utf-8", newline="\n") as stream:
        stream.write("user_id:token\titem_id:token\ttimestamp:float" + ("\trating:float\n" if rated else "\n"))
        for user, item, time, rating in table.iter_rows():
            values = (users[user], items[item], str(time), *((number(rating),) if rated else ()))
            stream.write("\t".join(values) + "\n")
    return len(table)


def _write_vectors(path: Path, items: list[str], vectors: Floats) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as stream:
        stream.write("iid:token\titem_emb:float_seq\n")
        for item, vector in zip(items, vectors, strict=True):
            stream.write(f"{item}\t{' '.join(map(number, vector))}\n")


def number(value: Any) -> str:
    """A float32 in the fewest digits that read back as the same number; '' for none."""
    import numpy as np

    return "" if value is None else str(np.float32(value))
