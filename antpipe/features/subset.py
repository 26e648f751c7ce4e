"""Stage `subset`: some users of a domain, as a domain of their own, to see how well a recommender works on little data.

The users of a domain are shuffled by a seed, and a subset takes the first N: subsets of one seed are nested. Its
catalogue is whole, or cut to the items that its users met, and has no cold items; the k-core is not recomputed. Split
and features are copied from the domain, row by row: nothing is computed again, and a subset is stale once the domain
has changed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from antpipe.errors import DataError, SameCommand, UsageError
from antpipe.features.build_sequences import PARTS, History, write_sequences
from antpipe.features.ingest.domain import domain_statistics
from antpipe.features.ingest.stage import require_same_source
from antpipe.settings.base import as_word, flags_of
from antpipe.settings.features import SubsetConfig
from antpipe.store.artefacts import ARTEFACTS, StageResult, State
from antpipe.store.domain import Domain
from antpipe.store.files import map_batch
from antpipe.store.manifest import content_sha256, digest, id_table_sha256
from antpipe.store.next_command import build_command, spell
from antpipe.store.store import Store

FORMAT = "subset"
FEATURES = ("text", "image", "price", "text-white", "image-white")
KEPT = ("encoder", "edges", "edges_of", "category_edges")  # of the manifest entry of a feature
CHUNK = 4096
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Subset:
    """`users` random users of the domain `of`. catalogue: `cut` to the items they met, or `whole`."""

    of: str
    users: int
    seed: int = SubsetConfig.subset_seed
    catalogue: str = SubsetConfig.catalogue

    @property
    def name(self) -> str:
        """The name of its domain, in which settings that are not the default appear."""
        whole = "" if self.catalogue == SubsetConfig.catalogue else f"-{self.catalogue}"
        return f"{self.of}-{self.users}-users{whole}" + (f"-seed-{self.seed}" if self.seed else "")

    def config(self) -> SubsetConfig:
        return SubsetConfig((self.users,), self.seed, self.catalogue)


def subset(store: Store, domains: Sequence[str], config: SubsetConfig, *, force: bool = False) -> list[StageResult]:
    """Write the subsets of each domain; one result per artefact.

    Raises UsageError for more users than a domain has, DataError if an artefact of it is stale or damaged, or if a
    subset would replace another domain. No domain is written then.
    """
    if not config.target_users:
        half = max(1, _users(store.domain(domains[0])) // 2)
        raise UsageError("--target-users: say how many users to draw", SameCommand({"--target-users": str(half)}))
    wanted = [one for name in dict.fromkeys(domains) for one in subsets_of(store.domain(name), config)]
    return [result for one in wanted for result in write_subset(store, one, force=force)]


def subsets_of(domain: Domain, config: SubsetConfig) -> list[Subset]:
    """The subsets of a domain, the smallest first. Raises UsageError for more users than it has."""
    there, sizes = _users(domain), sorted(config.target_users)
    if not there:
        domain.sequences()  # says why it has none
    if sizes and sizes[-1] > there:
        fitting = as_word(tuple(dict.fromkeys(min(size, there) for size in sizes)))
        raise UsageError(
            f"--target-users {sizes[-1]}: {domain.name} has {there:,} users", SameCommand({"--target-users": fitting})
        )
    return [Subset(domain.name, size, config.subset_seed, config.catalogue) for size in sizes]


def drawn_users(users: int, seed: int) -> Ints:
    """(users,) all users, in the order in which they are drawn."""
    return np.random.default_rng(seed).permutation(users)


def require_positions(domain: Domain, subsets: Sequence[Subset], parts: Sequence[str]) -> None:
    """Refuse a subset in which no user has a position in one of these parts, although other users of the domain do.

    parts: of `training`, `validation`, `test`. Raises DataError, whose next command asks for enough users instead.
    """
    sequences = domain.sequences()
    ends = (np.ones_like(sequences.train_end), sequences.train_end, sequences.valid_end, np.diff(sequences.offsets))
    for part in parts:
        counts = np.zeros(_users(domain), np.int64)
        counts[sequences.user] = ends[PARTS.index(part) + 1] - ends[PARTS.index(part)]
        for one in subsets:
            met = np.flatnonzero(counts[drawn_users(len(counts), one.seed)])
            if len(met) and met[0] >= one.users:
                enough = as_word(tuple(sorted({max(other.users, int(met[0]) + 1) for other in subsets})))
                raise DataError(
                    f"{one.name}: none of these users has a {part} position; this seed needs at least "
                    f"{met[0] + 1:,} users",
                    SameCommand({"--target-users": enough}),
                )


def write_subset(store: Store, one: Subset, *, force: bool = False) -> list[StageResult]:
    """Write the parts of a subset that are not fresh: items, interactions, users, all features, sequences."""
    whole, part = store.domain(one.of), store.new_domain(one.name)
    manifest = whole.manifest()
    for artefact in [name for name in FEATURES if name in manifest]:
        whole.feature(artefact)  # refuses a stale one before anything is written
    whole.sequences()
    results = [_write_items(whole, part, one, force)]
    user, item = (np.full(size, -1, np.int64) for size in (_users(whole), whole.rows()))
    kept_users, kept_items = _kept(whole, one)
    user[kept_users], item[kept_items] = np.arange(len(kept_users)), np.arange(len(kept_items))
    results += [_write_feature(whole, part, name, kept_items, force) for name in FEATURES if name in manifest]
    return [*results, _write_sequences(whole, part, user, item, force)]


def is_written(store: Store, one: Subset) -> bool:
    """Whether the domain of a subset exists and is what would be drawn now."""
    if one.name not in store.domains():
        return False
    domain = store.domain(one.name)
    states = [of_subset(store, domain, domain.state(name)) for name in ("items", *FEATURES, "sequences")]
    return _whole_of(domain) == one.of and all(state is None or state.status == "fresh" for state in states)


def drawn_from(store: Store, name: str) -> str:
    """The domain that a subset was drawn from, through subsets of subsets; the name itself if it is not a subset."""
    there = store.domains()
    while name in there and (above := _whole_of(store.domain(name))):
        name = above
    return name


def of_subset(store: Store, domain: Domain, state: State) -> State | None:
    """The state of a subset's artefact, given its state in the store: changes in the whole domain count too.

    None if it is missing because the whole domain does not have it either. A domain that is gone does not count.
    """
    name = _whole_of(domain)
    if name is None or name not in store.domains():
        return state
    there, own = store.domain(name).manifest(), domain.manifest().get(state.artefact)
    if own is None and (state.artefact not in there or state.artefact not in (*FEATURES, "sequences")):
        return None
    made_of = "" if own is None else own["parameters"].get("copied", "")
    if state.status in ("fresh", "missing") and state.artefact in there and made_of != _version(there[state.artefact]):
        status, why = ("missing", f"{name} has it") if own is None else ("stale", f"{name} changed since")
        return State(state.artefact, status, why, build_command(domain, "items"))
    return state


def _whole_of(domain: Domain) -> str | None:
    """The domain from which this one was drawn; None if it is not a subset."""
    parameters = domain.manifest().get("items", {}).get("parameters", {})
    return str(parameters["of"]) if parameters.get("format") == FORMAT else None


def _version(entry: dict[str, Any]) -> str:
    """A hash of an artefact: of its fingerprint and of the content of its files."""
    return digest([entry["fingerprint"], content_sha256(entry)])


def _users(whole: Domain) -> int:
    return int(whole.table("users", ["user"]).num_rows)


def _kept(whole: Domain, one: Subset) -> tuple[Ints, Ints]:
    """The users and the items of a subset, ascending."""
    users = np.sort(drawn_users(_users(whole), one.seed)[: one.users])
    if one.catalogue == "whole":
        return users, np.arange(whole.core_rows())
    met = whole.table("interactions", ["user", "item"])
    return users, np.unique(met["item"].to_numpy()[np.isin(met["user"].to_numpy(), users)]).astype(np.int64)


def _write_items(whole: Domain, part: Domain, one: Subset, force: bool) -> StageResult:
    entry, flags = whole.entry("items"), flags_of(one.config())
    parameters = {"format": FORMAT, "of": one.of, "users": one.users, "seed": one.seed, "catalogue": one.catalogue}
    parameters["copied"] = _version(entry)
    if not force:
        command = spell(FORMAT, domains=[one.of], store=whole.root, flags=flags)
        require_same_source(part, parameters, "", command)
        if part.is_fresh("items", parameters):
            return StageResult(part.name, "items", "fresh", part.entry("items")["statistics"])
    users, items = _kept(whole, one)
    tables: dict[str, pl.DataFrame] = {
        name: pl.DataFrame(whole.table(name)) for name in ("items", "interactions", "users", "rejects")
    }
    met = tables["interactions"].filter(pl.col("user").is_in(users.tolist()))
    met = met.with_columns(_place(users, met["user"]), _place(items, met["item"]))
    rows = tables["items"][items].with_columns(pl.Series("item", np.arange(len(items), dtype=np.int32)))
    rows = rows.with_columns(_files_from(one.of, rows["image_files"]))
    ids = rows["item_id"].to_list()
    statistics = domain_statistics(rows, met)
    with part.writing("items", parameters, id_table=id_table_sha256(ids)) as out:
        out.parquet("items.parquet", rows.to_arrow())
        out.parquet("interactions.parquet", met.to_arrow())
        people = tables["users"][users].with_columns(pl.Series("user", np.arange(len(users), dtype=np.int32)))
        out.parquet("users.parquet", people.to_arrow())
        out.parquet("rejects.parquet", tables["rejects"].clear().to_arrow())
        report = {"of": one.of, **({"time_unit": unit} if (unit := entry.get("report", {}).get("time_unit")) else {})}
        out.details |= {"rows": len(ids), "statistics": statistics, "report": report}
        out.details |= {"flags": flags, "domains": [one.of]}
        out.details |= {key: entry[key] for key in ("split", "verified") if key in entry}
    return StageResult(part.name, "items", "built", statistics)


def _files_from(domain: str, files: pl.Series) -> pl.Series:
    """Paths of pictures, relative to the folder of `domain`, as paths from the folder of another domain beside it;
    absolute ones, as of `ingest table`, stay."""
    file = pl.element()
    beside = pl.when(file.str.starts_with("/")).then(file).otherwise(pl.lit(f"../{domain}/") + file)
    return files.list.eval(beside)


def _place(kept: Ints, column: pl.Series) -> pl.Series:
    """The positions of a column's values in `kept`, which is ascending and has them all."""
    return pl.Series(column.name, np.searchsorted(kept, column.to_numpy()).astype(np.int32))


def _copied(whole: Domain, artefact: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters and details of a copy: those of the domain's artefact, and which one it is.

    The command recorded for the copy is the one that builds the subset; other settings, such as another encoder, are
    for a command on the whole domain.
    """
    entry = whole.entry(artefact)
    details = {key: entry[key] for key in KEPT if key in entry}
    details |= {"came_with_items": True, "stage": entry["stage"], "flags": entry.get("flags", [])}
    details["domains"] = entry.get("domains", [whole.name])
    return {**entry["parameters"], "copied": _version(entry)}, details


def _write_feature(whole: Domain, part: Domain, artefact: str, items: Ints, force: bool) -> StageResult:
    parameters, details = _copied(whole, artefact)
    if not force and part.is_fresh(artefact, parameters):
        return StageResult(part.name, artefact, "fresh", part.entry(artefact)["figures"])
    source, file = whole.feature(artefact), ARTEFACTS[artefact].files[0]
    content = _content(whole.path / file, items)
    width = source.values.shape[1]
    with part.writing(artefact, parameters) as out:
        with out.feature(file.removesuffix(".arrow"), len(items), width, content) as feature:
            for start in range(0, len(items), CHUNK):
                rows = items[start : start + CHUNK]
                feature.values[start : start + len(rows)] = source.values[rows]
                source.release()
                feature.release()
            feature.present[:] = source.present[items]
            present = int(feature.present.sum())
        for extra in ARTEFACTS[artefact].files[1:]:
            out.parquet(extra, whole.table(extra.removesuffix(".parquet")))
        if _version(whole.entry(artefact)) != parameters["copied"]:
            raise DataError(
                f"domain {whole.name}: {artefact} changed while it was copied", build_command(part, "items")
            )
        figures = {"items": len(items), "present": present, "coverage": round(present / len(items), 4), "width": width}
        out.details |= {**details, "figures": figures}
    return StageResult(part.name, artefact, "built", figures)


def _content(path: Path, items: Ints) -> NDArray[np.uint8] | None:
    """(n, 16) the digests of what the vectors of some items were made of; None if the file has none."""
    batch, _ = map_batch(path)
    if "content" not in batch.schema.names:
        return None
    return np.frombuffer(batch.column("content").buffers()[1], np.uint8)[: 16 * len(batch)].reshape(-1, 16)[items]


def _write_sequences(whole: Domain, part: Domain, user: Ints, item: Ints, force: bool) -> StageResult:
    """user, item: numbers in the subset by number in the whole domain, -1 for those left out."""
    parameters, details = _copied(whole, "sequences")
    if not force and part.is_fresh("sequences", parameters):
        return StageResult(part.name, "sequences", "fresh", part.entry("sequences")["figures"])
    batch, _ = map_batch(whole.path / "sequences.arrow")
    rows = batch.filter(pa.array(user[batch.column("user").to_numpy()] >= 0))
    lists = rows.column("items")
    history = History(
        part,
        user[rows.column("user").to_numpy()].astype(np.int32),
        lists.offsets.to_numpy().astype(np.int32) - lists.offsets[0].as_py(),
        item[lists.flatten().to_numpy()].astype(np.int32),
        rows.column("timestamps").flatten().to_numpy(),
        None,
        timed=True,
    )
    train_end, valid_end = (rows.column(name).to_numpy() for name in ("train_end", "valid_end"))
    return write_sequences(history, train_end, valid_end, parameters, details)
