"""What an embedding has to compute, what it can copy, and how the artefact is put together.

Every item has a content: a 16-byte digest of what would be embedded, all zeros if there is nothing. Equal contents
share one vector. The vectors of contents that the earlier artefact has are copied from it; the rest is cut into shards,
in row order. A shard's vectors depend on its own contents alone, so they are the same bytes no matter which process
computes them, when, and how often the work was interrupted.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from antpipe.errors import IntegrityError
from antpipe.features.shards.folder import Rows, ShardFolder
from antpipe.store.domain import Domain
from antpipe.store.earlier import Earlier, earlier_feature
from antpipe.store.files import Feature
from antpipe.store.manifest import digest

Contents = NDArray[np.uint8]  # (N, 16)
CONTENT_BYTES = 16
ROWS_AT_ONCE = 65_536  # copied in one step


@dataclass(frozen=True)
class Shard:
    """Some of the contents to compute. rows: (n,) the first row of each content, ascending."""

    number: int
    rows: Rows


def content_of(content: bytes) -> bytes:
    """The 16-byte digest of a content; never all zeros in practice, not even for empty bytes."""
    return hashlib.blake2b(content, digest_size=CONTENT_BYTES).digest()


@dataclass(frozen=True)
class EmbeddingPlan:
    """Where each row's vector comes from.

    first: (N,) the first row with equal content, -1 if there is nothing to embed. compute: rows whose contents are
    embedded. copied, source: rows whose vectors are copied, and the rows of `earlier` they come from. compute and
    copied are ascending; together they hold each content once. again: the rows of compute whose vectors were in a now
    damaged earlier artefact; they are embedded apart from new ones, as they were then, to give the same bytes.
    """

    content: Contents
    first: Rows
    compute: Rows
    copied: Rows
    source: Rows
    earlier: Earlier | None
    again: Rows = field(default_factory=lambda: np.zeros(0, np.int64))

    def figures(self) -> dict[str, int]:
        """Numbers of different contents, of those computed and reused, and of rows that share another row's vector."""
        different = len(self.compute) + len(self.copied)
        return {
            "different": different,
            "computed": len(self.compute),
            "reused": len(self.copied),
            "shared": int((self.first >= 0).sum()) - different,
        }

    def key(self, settings: Mapping[str, Any]) -> str:
        """sha256 of everything finished shards depend on. settings: encoder, precision, id table, libraries …"""
        arrays = hashlib.sha256(self.content.tobytes())
        arrays.update(self.compute.tobytes())
        arrays.update(self.again.tobytes())
        return digest([dict(settings), arrays.hexdigest()])


def plan_rows(content: Contents, earlier: Earlier | None = None) -> EmbeddingPlan:
    """content: (N, 16) uint8. earlier: vectors that may be copied; contents without a vector in it are computed."""
    own = first_of_equal(content)
    first, reused, rotten = own, np.zeros(len(content), np.bool_), np.zeros(len(content), np.bool_)
    if earlier is not None:
        count = len(earlier.content)
        first = first_of_equal(np.concatenate([earlier.content, content]))[count:]  # below count: a row of `earlier`
        there = (first >= 0) & (first < count)
        reused[there] = earlier.present[first[there]]  # equal contents are all present, or none is
        rotten[there] = earlier.rotten
    firsts = own == np.arange(len(content))
    copied = np.flatnonzero(firsts & reused)
    compute, again = np.flatnonzero(firsts & ~reused), np.flatnonzero(firsts & rotten)
    return EmbeddingPlan(content, own, compute, copied, first[copied], earlier, again)


def first_of_equal(content: Contents) -> Rows:
    """(N,) the lowest row with the same 16 bytes; -1 for rows of zeros."""
    low, high = np.ascontiguousarray(content).view(np.uint64).reshape(len(content), 2).T
    order = np.lexsort((low, high))  # stable: equal contents keep the order of their rows
    start = np.ones(len(order), np.bool_)
    start[1:] = (low[order][1:] != low[order][:-1]) | (high[order][1:] != high[order][:-1])
    first = np.empty(len(order), np.int64)
    first[order] = order[np.flatnonzero(start)][np.cumsum(start) - 1]
    first[(low == 0) & (high == 0)] = -1
    return first


def shards_of(plan: EmbeddingPlan, size: int, weights: NDArray[np.int64] | None = None, most: int = 0) -> list[Shard]:
    """The shards that a plan computes (see cut)."""
    new = np.setdiff1d(plan.compute, plan.again)
    parts = [*cut(plan.again, size, weights, most), *cut(new, size, weights, most)]
    return [Shard(number, part.rows) for number, part in enumerate(parts)]


def cut(rows: Rows, size: int, weights: NDArray[np.int64] | None = None, most: int = 0) -> list[Shard]:
    """Shards of `size` rows, or fewer if the weights of a shard (bytes of its contents) would exceed `most`.

    weights: (N,) by row; None: no such limit.
    """
    starts = list(range(0, len(rows), size))
    if weights is not None and len(rows):
        total, starts, rows_in = 0, [0], 0
        for position, weight in enumerate(weights[rows].tolist()):
            if rows_in and (rows_in == size or total + weight > most):
                starts.append(position)
                total = rows_in = 0
            total, rows_in = total + weight, rows_in + 1
    ends = [*starts[1:], len(rows)]
    return [Shard(number, rows[start:end]) for number, (start, end) in enumerate(zip(starts, ends, strict=False))]


def earlier_vectors(place: Domain, artefact: str, recipe: Mapping[str, Any]) -> Earlier | None:
    """The artefact as last built, if its vectors were made in the same way; its catalogue may have changed since.

    recipe: everything a vector depends on besides its content; the manifest entry keeps it as `recipe`.
    """
    entry = place.manifest().get(artefact, {})
    if entry.get("recipe") != dict(recipe):
        return None
    return earlier_feature(place.path / f"{artefact}.arrow", entry)


def assemble(
    feature: Feature, plan: EmbeddingPlan, shards: Iterable[Shard], folder: ShardFolder
) -> list[tuple[int, str]]:
    """Fill the feature from the shards, the earlier artefact and shared contents.

    Returns (row, reason) of everything that could not be embedded. Raises IntegrityError if a shard cannot be read or
    has another width than the feature.
    """
    failures: list[tuple[int, str]] = []
    for shard in shards:
        vectors = folder.read(shard.number, shard.rows)
        if vectors.values.shape[1] != feature.values.shape[1]:
            raise IntegrityError(f"{folder.path}: shard {shard.number} has the shape {vectors.values.shape}")
        here = vectors.present
        feature.values[shard.rows[here]] = vectors.values[here]
        feature.present[shard.rows[here]] = True
        failures += [(int(shard.rows[position]), reason) for position, reason in vectors.failures]
    if plan.earlier is not None:
        for start in range(0, len(plan.copied), ROWS_AT_ONCE):
            part = slice(start, start + ROWS_AT_ONCE)
            feature.values[plan.copied[part]] = plan.earlier.values[plan.source[part]]
        feature.present[plan.copied] = True
    others = np.flatnonzero((plan.first >= 0) & (plan.first != np.arange(len(plan.first))))
    for start in range(0, len(others), ROWS_AT_ONCE):
        rows = others[start : start + ROWS_AT_ONCE]
        feature.values[rows] = feature.values[plan.first[rows]]
        feature.present[rows] = feature.present[plan.first[rows]]
    return failures
